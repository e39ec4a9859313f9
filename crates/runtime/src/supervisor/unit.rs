//! The life of one process: wait for what it needs, start, become healthy, be watched, end, and again.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{CompanionKind, Instance, PlannedCompanion};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::policy::RestartPolicy;
use super::spawn::Output;
use super::{Ended, Exit, Forks, Shared};
use crate::client::State;
use crate::forks::{ForkServer, Hello, Order};
use crate::launch::Spec;
use crate::postgres::{self, Cluster};
use crate::proc::ProcessId;
use crate::progress::Event;
use crate::state;
use crate::valkey::{self, Valkey};
use crate::{logs, probe};

/// How often a process that starts is asked whether it is healthy: a connection to a socket that is not there yet
/// costs microseconds. One that takes longer is asked less often, for there may be many of them, or much to recover.
const START_PROBE: Duration = Duration::from_millis(10);
const LATE_PROBE: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(1);
/// How often a healthy process is asked. Its end is noticed at once without; this is for those that hang.
const WATCH_PROBE: Duration = Duration::from_secs(10);
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// A process that starts must be healthy by then. Migrations of a large database may take main long.
const START_LIMIT: Duration = Duration::from_secs(90);
const MAIN_START_LIMIT: Duration = Duration::from_secs(3600);
/// How long a fork server that has ended is still listened to.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A process that did not answer for so long is restarted.
const HUNG: Duration = Duration::from_secs(60);
/// How long requests under way may take when a process restarts or goes. Those that can be sent again do not count.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);
/// How long a process that is asked to stop hurriedly gets.
const HURRY: Duration = Duration::from_secs(2);

const STOP_SYNAPSE: &[(Signal, Duration)] =
    &[(Signal::SIGTERM, Duration::from_secs(10)), (Signal::SIGKILL, Duration::from_secs(5))];
/// Longer than it lets requests finish.
const STOP_COMPANION: &[(Signal, Duration)] = &[
    (Signal::SIGTERM, service::DRAIN.saturating_add(Duration::from_secs(2))),
    (Signal::SIGKILL, Duration::from_secs(5)),
];
/// Longer than the time that it gives its own children.
const STOP_FORK_SERVER: &[(Signal, Duration)] =
    &[(Signal::SIGTERM, Duration::from_secs(15)), (Signal::SIGKILL, Duration::from_secs(5))];

/// What kind of process it is, and all that starting it takes.
pub(crate) enum Kind {
    Postgres { cluster: Arc<Cluster>, settings: postgres::Settings, password: String, mas: bool },
    Valkey(Arc<Valkey>),
    ForkServer { spec: Box<Spec> },
    Synapse { instance: Box<Instance>, args: Vec<String>, alone: Box<Spec> },
    Companion { companion: Box<PlannedCompanion>, spec: Box<Spec> },
}

/// An order to a unit.
pub(crate) enum Command {
    /// Stop for good, once the requests that would be lost by it have ended, or so much time has passed.
    Stop(Duration),
    /// Stop, and start at once; the answer is the time from the signal to being healthy.
    Restart(oneshot::Sender<Duration>),
}

/// One process under supervision.
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) log: PathBuf,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
}

/// A process that runs.
struct Child {
    id: ProcessId,
    exit: Pin<Box<dyn Future<Output = Exit> + Send>>,
    ended: Option<Exit>,
    /// The fork server's first word, and the way to give it orders.
    hello: Option<(ForkServer, oneshot::Receiver<Hello>)>,
}

/// How a stretch of a unit's life ended.
enum Next {
    /// The process is healthy.
    Healthy,
    /// The process ended, or was ended because of the reason.
    Ended(Exit),
    /// It was stopped because that was ordered.
    Restart,
    /// The unit is to stop; how long requests under way may take.
    Stop(Duration),
    /// Nothing more to do but wait for the order to stop: a fork server that cannot be used.
    Park,
}

/// Those who wait for a restart to be done, and when it began.
#[derive(Default)]
struct Waiting {
    who: Vec<oneshot::Sender<Duration>>,
    since: Option<Instant>,
}

impl Unit {
    /// Runs until the unit is told to stop, or the supervisor is gone.
    pub(crate) async fn run(mut self) {
        let mut policy = RestartPolicy::default();
        let mut waiting = Waiting::default();
        let mut first = true;
        loop {
            // 1. Wait for what it needs.
            self.shared.set(&self.name, |entry| {
                if entry.state != State::Failed {
                    entry.state = if first { State::Waiting } else { State::Restarting };
                }
            });
            let shared = Arc::clone(&self.shared);
            let needs = shared.gates.open_for(&self.kind, first);
            if !until(needs, &mut self.commands, &mut waiting).await {
                return self.stopped();
            }
            let permit = match &self.kind {
                Kind::Synapse { instance, .. } if !instance.is_main() => {
                    let permit = shared.permits.acquire();
                    tokio::select! {
                        permit = permit => permit.ok(),
                        () = stop_ordered(&mut self.commands, &mut waiting) => return self.stopped(),
                    }
                }
                _ => None,
            };

            // 2. Start.
            let log_start = logs::length(&self.log);
            let started = Instant::now();
            // Looked at before the process can have read anything: it never counts as newer than it is.
            let topology = self.shared.topology.load_full();
            first = false;
            let mut child = match self.launch().await {
                Ok(child) => child,
                Err(reason) => {
                    drop(permit);
                    if !self.ended(Exit::Lost(reason), log_start, None, &mut policy, &mut waiting).await {
                        return self.stopped();
                    }
                    continue;
                }
            };
            let child = &mut child;
            self.shared.set(&self.name, |entry| {
                if entry.state != State::Failed {
                    entry.state = State::Starting;
                }
                entry.process = Some(child.id);
                entry.topology = Some(topology);
                // Not the first time.
                entry.restarts += u32::from(entry.since.is_some());
                entry.since = Some(started);
            });
            if let Kind::Synapse { instance, .. } = &self.kind
                && instance.is_main()
            {
                self.shared.gates.main.send_replace(true);
            }
            self.shared.records.notify_one();
            self.shared.tell(Event::Starting { name: self.name.clone() });

            // 3. Become healthy.
            let mut next = self.start(child, &mut waiting).await;
            drop(permit);
            let mut healthy_since = None;
            if let Next::Healthy = next {
                healthy_since = Some(self.shared.clock.elapsed());
                self.healthy(started, &mut waiting);

                // 4. Be watched.
                next = self.watch(child, &mut waiting).await;
            }

            // 5. End.
            self.shared.gates.close(&self.kind);
            match next {
                Next::Stop(patience) => {
                    self.settle(child, patience).await;
                    self.terminate(child).await;
                    return self.stopped();
                }
                Next::Restart => {
                    self.settle(child, SETTLE).await;
                    waiting.since = Some(Instant::now());
                    self.terminate(child).await;
                    self.gone(None);
                }
                Next::Park => {
                    child.ended().await;
                    // Who asks for its restart gets no answer: there is nothing to restart.
                    while let Some(Command::Restart(_)) = self.commands.recv().await {}
                    return self.stopped();
                }
                Next::Healthy => {}
                Next::Ended(exit) => {
                    self.hold();
                    if child.id.alive() {
                        self.terminate(child).await;
                    }
                    if !self.ended(exit, log_start, healthy_since, &mut policy, &mut waiting).await {
                        return self.stopped();
                    }
                }
            }
        }
    }

    async fn launch(&self) -> Result<Child, String> {
        match &self.kind {
            Kind::Postgres { cluster, settings, .. } => {
                let (preparing, settings) = (Arc::clone(cluster), *settings);
                let prepared = blocking(move || preparing.prepare(&settings)).await?;
                if prepared.created {
                    self.shared.gates.fresh.send_replace(true);
                }
                self.spawn(&cluster.spec()).await
            }
            Kind::Valkey(valkey) => {
                let preparing = Arc::clone(valkey);
                blocking(move || preparing.prepare()).await?;
                self.spawn(&valkey.spec()).await
            }
            Kind::ForkServer { spec } => {
                let child = self.shared.spawner.spawn(spec, Output::Pipes(&self.log)).await;
                let mut child = child.map_err(|error| format!("cannot start it: {error}"))?;
                let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
                    return Err("it has no pipes".to_owned());
                };
                let mut child = Child::direct(child)?;
                child.hello = Some(ForkServer::new(stdin, stdout));
                Ok(child)
            }
            Kind::Companion { spec, .. } => {
                self.remove_sockets();
                self.spawn(spec).await
            }
            Kind::Synapse { instance, args, alone } => {
                self.remove_sockets();
                let forks = self.shared.gates.forks.borrow().clone();
                match forks {
                    Forks::Ready(server) => {
                        let order =
                            Order { name: &self.name, app: instance.app.module(), args, log: &self.log };
                        let forked = server.spawn(order).await?;
                        let exit = async move { forked.exit.await.unwrap_or(Exit::Orphaned) };
                        Ok(Child { id: identify(forked.pid), exit: Box::pin(exit), ended: None, hello: None })
                    }
                    Forks::Unusable => self.spawn(alone).await,
                    Forks::Down => Err("the fork server ended".to_owned()),
                }
            }
        }
    }

    fn remove_sockets(&self) {
        match &self.kind {
            Kind::Synapse { instance, .. } => state::remove_own_sockets(instance),
            // It does not remove what an earlier run left; the others do.
            Kind::Companion { companion, .. } if companion.kind == CompanionKind::Mas => {
                state::remove_socket(&companion.private);
            }
            _ => {}
        }
    }

    async fn spawn(&self, spec: &Spec) -> Result<Child, String> {
        let child = self.shared.spawner.spawn(spec, Output::Log(&self.log)).await;
        Child::direct(child.map_err(|error| format!("cannot start {}: {error}", spec.program().display()))?)
    }

    /// Waits until a process that was just started is healthy, or something else comes first.
    async fn start(&mut self, child: &mut Child, waiting: &mut Waiting) -> Next {
        let limit = match &self.kind {
            Kind::Synapse { instance, .. } if instance.is_main() => MAIN_START_LIMIT,
            _ => START_LIMIT,
        };
        let hello = child.hello.take();
        let ready = become_healthy(&self.kind, &self.shared, hello);
        tokio::pin!(ready);
        tokio::select! {
            biased;
            exit = child.wait() => match self.kind {
                // Why it cannot be used may still be in its pipe.
                Kind::ForkServer { .. } => timeout(LAST_WORDS, ready).await.unwrap_or(Next::Ended(exit)),
                _ => Next::Ended(exit),
            },
            next = &mut ready => next,
            () = stop_ordered(&mut self.commands, waiting) => Next::Stop(Duration::ZERO),
            () = sleep(limit) => Next::Ended(Exit::Lost(format!("it was not healthy within {} s", limit.as_secs()))),
        }
    }

    fn healthy(&self, started: Instant, waiting: &mut Waiting) {
        self.shared.gates.open(&self.kind);
        let (healthy, total) = self.shared.set(&self.name, |entry| entry.state = State::Healthy);
        self.shared.router.release(&self.name);
        let seconds = started.elapsed().as_secs_f64();
        self.shared.tell(Event::Healthy { name: self.name.clone(), healthy, total, seconds });
        let took = waiting.since.take().unwrap_or(started).elapsed();
        for who in waiting.who.drain(..) {
            // Whoever asked may have gone.
            let _ = who.send(took);
        }
        self.shared.changed.notify_waiters();
    }

    /// Watches a healthy process until it ends, hangs, or is ordered to end.
    async fn watch(&mut self, child: &mut Child, waiting: &mut Waiting) -> Next {
        let mut unhealthy: Option<Instant> = None;
        loop {
            let look = async {
                sleep(WATCH_PROBE).await;
                self.kind.probe().await
            };
            tokio::select! {
                biased;
                exit = child.wait() => return Next::Ended(exit),
                command = self.commands.recv() => match command {
                    Some(Command::Restart(who)) => {
                        waiting.who.push(who);
                        return Next::Restart;
                    }
                    Some(Command::Stop(patience)) => return Next::Stop(patience),
                    None => return Next::Stop(Duration::ZERO),
                },
                answer = look => match answer {
                    Ok(()) => {
                        if let Some(since) = unhealthy.take() {
                            let (healthy, total) = self.shared.set(&self.name, |entry| entry.state = State::Healthy);
                            let seconds = since.elapsed().as_secs_f64();
                            self.shared.tell(Event::Healthy { name: self.name.clone(), healthy, total, seconds });
                        }
                    }
                    Err(reason) => {
                        let since = *unhealthy.get_or_insert_with(|| {
                            self.shared.set(&self.name, |entry| entry.state = State::Unhealthy);
                            self.shared.tell(Event::Unhealthy { name: self.name.clone(), reason: reason.clone() });
                            Instant::now()
                        });
                        if since.elapsed() >= HUNG {
                            return Next::Ended(Exit::Lost(format!("it hung ({reason})")));
                        }
                    }
                },
            }
        }
    }

    /// Asks the process to stop, ever more firmly, and waits for its end.
    async fn terminate(&self, child: &mut Child) {
        let stops = match self.kind {
            Kind::Postgres { .. } => postgres::STOP,
            Kind::Valkey(_) => valkey::STOP,
            Kind::ForkServer { .. } => STOP_FORK_SERVER,
            Kind::Synapse { .. } => STOP_SYNAPSE,
            Kind::Companion { .. } => STOP_COMPANION,
        };
        let mut hurry = self.shared.hurry.subscribe();
        for (signal, patience) in stops {
            child.id.signal(*signal);
            let hurried = async {
                // An error means that nobody can hurry any more.
                if hurry.wait_for(|hurry| *hurry).await.is_err() {
                    std::future::pending::<()>().await;
                }
                sleep(HURRY).await;
            };
            tokio::select! {
                () = child.ended() => return,
                () = sleep(*patience) => {}
                () = hurried => {}
            }
        }
    }

    /// Requests wait at the router from now on.
    fn hold(&self) {
        self.shared.router.hold(&self.name);
    }

    /// Keeps requests from the process, and waits for those that would be lost with it.
    async fn settle(&self, child: &mut Child, patience: Duration) {
        self.hold();
        if patience.is_zero() {
            return;
        }
        let mut hurry = self.shared.hurry.subscribe();
        tokio::select! {
            left = self.shared.router.settled(&self.name, patience) => if left > 0 {
                tracing::warn!(process = self.name, requests = left, "it stops although requests are under way");
            },
            _ = child.wait() => {}
            // An error means that nobody can hurry any more.
            Ok(_) = hurry.wait_for(|hurry| *hurry) => {}
        }
    }

    /// The process is no more.
    fn gone(&self, exit: Option<&Exit>) {
        self.shared.set(&self.name, |entry| {
            entry.process = None;
            entry.state = State::Restarting;
            if let Some(exit) = exit {
                entry.last_exit = Some(exit.to_string());
            }
        });
        self.shared.records.notify_one();
    }

    /// Notes an end that nobody ordered, and waits as long as is wise; false if the unit is to stop.
    async fn ended(
        &mut self,
        exit: Exit,
        log_start: u64,
        healthy_since: Option<Duration>,
        policy: &mut RestartPolicy,
        waiting: &mut Waiting,
    ) -> bool {
        self.gone(Some(&exit));
        let down = matches!(*self.shared.gates.forks.borrow(), Forks::Down);
        if exit == Exit::Orphaned || (down && matches!(self.kind, Kind::Synapse { .. })) {
            // It ended with the fork server, which is told once for all of them.
            return true;
        }
        let verdict = policy.ended(self.shared.clock.elapsed(), healthy_since);
        let lines = logs::tail_since(&self.log, log_start);
        let reason = self.explain(&lines).unwrap_or_else(|| exit.to_string());
        if verdict.failed {
            self.shared.set(&self.name, |entry| entry.state = State::Failed);
        }
        // While the stack starts, whoever waits for that shows the log if it was in vain.
        let repeated = policy.in_a_row() > 1 && self.shared.ends.receiver_count() == 0;
        self.shared.tell(Event::Exited {
            name: self.name.clone(),
            reason: reason.clone(),
            retry_seconds: verdict.delay.as_secs_f64(),
            log: if repeated { lines.clone() } else { Vec::new() },
        });
        // Nobody listens once the start is over.
        let _ = self.shared.ends.send(Ended {
            name: self.name.clone(),
            reason,
            lines,
            in_a_row: policy.in_a_row(),
        });
        tokio::select! {
            () = sleep(verdict.delay) => true,
            command = self.commands.recv() => match command {
                Some(Command::Restart(who)) => {
                    waiting.who.push(who);
                    true
                }
                Some(Command::Stop(_)) | None => false,
            },
        }
    }

    fn explain(&self, lines: &[String]) -> Option<String> {
        let text = lines.join("\n");
        match &self.kind {
            Kind::Postgres { cluster, .. } => cluster.explain(&text).map(|error| error.to_string()),
            Kind::Valkey(valkey) => valkey.explain(&text).map(|error| error.to_string()),
            Kind::ForkServer { .. } | Kind::Synapse { .. } | Kind::Companion { .. } => None,
        }
    }

    fn stopped(&self) {
        self.remove_sockets();
        self.shared.set(&self.name, |entry| {
            entry.process = None;
            entry.state = State::Stopped;
        });
        self.shared.records.notify_one();
        self.shared.changed.notify_waiters();
        let left = self.shared.board().running();
        self.shared.tell(Event::Stopped { name: self.name.clone(), left });
    }
}

impl Kind {
    /// Whether the process answers as it should; else why not.
    async fn probe(&self) -> Result<(), String> {
        match self {
            Self::Postgres { cluster, .. } => cluster.ready().await.map_err(|error| error.to_string()),
            Self::Valkey(valkey) => valkey.ready().await.map_err(|error| error.to_string()),
            // Its only work is to fork, and a fork that it does not do is noticed.
            Self::ForkServer { .. } => Ok(()),
            Self::Synapse { instance, .. } => probe::health(&instance.private, PROBE_LIMIT).await,
            Self::Companion { companion, .. } => probe::health(&companion.private, PROBE_LIMIT).await,
        }
    }
}

async fn become_healthy(
    kind: &Kind,
    shared: &Shared,
    hello: Option<(ForkServer, oneshot::Receiver<Hello>)>,
) -> Next {
    match kind {
        Kind::ForkServer { .. } => {
            let Some((server, greeted)) = hello else { return std::future::pending().await };
            match greeted.await {
                Ok(Hello::Ready(version)) => {
                    tracing::info!(synapse = version, "the fork server is ready");
                    shared.gates.forks.send_replace(Forks::Ready(server));
                    Next::Healthy
                }
                Ok(Hello::Unsupported(reason)) => {
                    shared.set("forkserver", |entry| {
                        entry.optional = true;
                        entry.state = State::Stopped;
                        entry.process = None;
                        entry.last_exit = Some(reason.clone());
                    });
                    shared.gates.forks.send_replace(Forks::Unusable);
                    let text = format!(
                        "Synapse's processes start one by one, which takes longer: the fork server says {reason}"
                    );
                    shared.tell(Event::Note { text });
                    shared.changed.notify_waiters();
                    Next::Park
                }
                // Its end is on its way.
                Err(_) => std::future::pending().await,
            }
        }
        Kind::Postgres { cluster, password, mas, .. } => {
            answer(|| kind.probe()).await;
            if !*shared.gates.provisioned.borrow() {
                if let Err(error) = cluster.provision(password, *mas).await {
                    return Next::Ended(Exit::Lost(error.to_string()));
                }
                shared.gates.provisioned.send_replace(true);
            }
            Next::Healthy
        }
        Kind::Valkey(_) | Kind::Companion { .. } => {
            answer(|| kind.probe()).await;
            Next::Healthy
        }
        Kind::Synapse { instance, .. } => {
            for address in [&instance.private].into_iter().chain(&instance.client) {
                answer(|| probe::health(address, PROBE_LIMIT)).await;
            }
            Next::Healthy
        }
    }
}

/// Asks again and again until the answer is good.
async fn answer<F: Future<Output = Result<(), String>>>(ask: impl Fn() -> F) {
    let began = Instant::now();
    while ask().await.is_err() {
        sleep(if began.elapsed() < LATE { START_PROBE } else { LATE_PROBE }).await;
    }
}

impl Child {
    fn direct(mut child: tokio::process::Child) -> Result<Self, String> {
        let pid = child.id().ok_or("it ended at once")?;
        let exit = async move {
            match child.wait().await {
                Ok(status) => {
                    use std::os::unix::process::ExitStatusExt;
                    Exit::from_parts(status.code(), status.signal())
                }
                Err(error) => Exit::Lost(format!("it cannot be waited for: {error}")),
            }
        };
        Ok(Self { id: identify(pid), exit: Box::pin(exit), ended: None, hello: None })
    }

    /// How it ended, or was lost sight of.
    async fn wait(&mut self) -> Exit {
        if let Some(exit) = &self.ended {
            return exit.clone();
        }
        let exit = (&mut self.exit).await;
        self.ended.insert(exit).clone()
    }

    /// Waits until the process has ended, reaped if it is ours to reap.
    async fn ended(&mut self) {
        if let Exit::Lost(_) | Exit::Orphaned = self.wait().await {
            // Nobody will report its end: the kernel ends it with its parent.
            while self.id.alive() {
                sleep(START_PROBE).await;
            }
        }
    }
}

/// The process with this number; one that is gone already gets an identity that no process has.
fn identify(pid: u32) -> ProcessId {
    ProcessId::of(pid).unwrap_or(ProcessId { pid, started: u64::MAX })
}

async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, String>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns when the unit is to stop. An order to restart a process that is about to start is fulfilled by that start.
async fn stop_ordered(commands: &mut mpsc::Receiver<Command>, waiting: &mut Waiting) {
    while let Some(Command::Restart(who)) = commands.recv().await {
        waiting.who.push(who);
    }
}

/// Waits for `done`; false if the unit is to stop before.
async fn until(
    done: impl Future<Output = ()>,
    commands: &mut mpsc::Receiver<Command>,
    waiting: &mut Waiting,
) -> bool {
    tokio::select! {
        biased;
        () = stop_ordered(commands, waiting) => false,
        () = done => true,
    }
}
