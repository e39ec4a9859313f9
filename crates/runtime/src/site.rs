//! The processes of one stack on this machine: brought up, and changed while they run.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{Action, InstanceChange, Layout, Topology};
use router::{AccessLog, Router, Snapshot};
use routes::Table;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::time::timeout;

use crate::change::{self, Step};
use crate::client::{Phase, State};
use crate::forks;
use crate::listen::{self, Given, Socket, Sockets};
use crate::progress::Event;
use crate::route;
use crate::state::{self, Agreement, Applied};
use crate::supervisor::{About, Ended, Kind, SETTLE, Supervisor, Teller};
use crate::units::{self, Programs};
use crate::up::{ReadAgain, UpError, system};

/// How long requests under way may take to finish while all others wait for them.
const QUIET: Duration = Duration::from_secs(5);

/// How long all requests wait for processes that start. From then on only those wait that such a process has to answer.
const PAUSE: Duration = Duration::from_secs(30);

/// The processes of one stack.
pub(crate) struct Site {
    pub(crate) layout: Layout,
    pub(crate) teller: Teller,
    pub(crate) programs: Programs,
    pub(crate) table: &'static Table,
    pub(crate) supervisor: Arc<Supervisor>,
    /// How long processes may take to become healthy.
    pub(crate) start_timeout: Duration,
    /// How many connections the database takes.
    pub(crate) connections: u32,
    pub(crate) applied: Mutex<Applied>,
    pub(crate) doors: Mutex<Doors>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) read_again: ReadAgain,
    /// Held by whoever changes or restarts processes.
    pub(crate) turn: AsyncMutex<()>,
}

/// The addresses that the router listens on.
pub(crate) struct Doors {
    public: Door,
    metrics: Option<Door>,
}

/// An address that the router listens on until this is dropped.
struct Door {
    address: String,
    _open: oneshot::Sender<()>,
}

impl Doors {
    pub(crate) fn open(router: &Router, topology: &Topology, sockets: Sockets) -> io::Result<Self> {
        let listen = &topology.stack().listen;
        let metrics = sockets.metrics.zip(listen.metrics.as_deref());
        Ok(Self {
            public: Door::public(router, &listen.address, &sockets.public)?,
            metrics: metrics.map(|(socket, address)| Door::private(router, address, &socket)).transpose()?,
        })
    }

    /// The addresses of a topology that are not open yet.
    fn closed(&self, topology: &Topology) -> (Option<String>, Option<String>) {
        let listen = &topology.stack().listen;
        let unless = |address: &String, door: Option<&Door>| {
            door.is_none_or(|door| door.address != *address).then(|| address.clone())
        };
        let metrics = listen.metrics.as_ref().and_then(|address| unless(address, self.metrics.as_ref()));
        (unless(&listen.address, Some(&self.public)), metrics)
    }

    /// Opens what was missing and closes what the topology does not have.
    fn change(&mut self, router: &Router, topology: &Topology, missing: Missing) -> io::Result<()> {
        let listen = &topology.stack().listen;
        if let Some(socket) = missing.public {
            self.public = Door::public(router, &listen.address, &socket)?;
        }
        match (&listen.metrics, missing.metrics) {
            (Some(address), Some(socket)) => self.metrics = Some(Door::private(router, address, &socket)?),
            (None, _) => self.metrics = None,
            (Some(_), None) => {}
        }
        Ok(())
    }
}

/// Sockets that are bound and not served yet.
struct Missing {
    public: Option<Socket>,
    metrics: Option<Socket>,
}

async fn bind_if(field: &'static str, address: Option<String>) -> Result<Option<Socket>, UpError> {
    match address {
        Some(address) => Ok(Some(listen::bind(field, &address, &mut Given::default()).await?)),
        None => Ok(None),
    }
}

impl Door {
    fn public(router: &Router, address: &str, socket: &Socket) -> io::Result<Self> {
        let (open, closed) = oneshot::channel();
        tokio::spawn(router.serve_until(socket.listener()?, async { drop(closed.await) }));
        Ok(Self { address: address.to_owned(), _open: open })
    }

    fn private(router: &Router, address: &str, socket: &Socket) -> io::Result<Self> {
        let (open, closed) = oneshot::channel();
        tokio::spawn(router.serve_private_until(socket.listener()?, async { drop(closed.await) }));
        Ok(Self { address: address.to_owned(), _open: open })
    }
}

/// The router, which holds every request until its processes are there.
pub(crate) fn start_router(topology: &Topology, layout: &Layout, table: &Table) -> Result<Router, UpError> {
    let snapshot = route::snapshot(topology, table)?;
    let options =
        router::Options { access_log: AccessLog::File(layout.log("access")), ..router::Options::default() };
    let router =
        Router::start(snapshot, options).map_err(|error| UpError::Router { message: error.to_string() })?;
    for instance in topology.instances() {
        router.hold(&instance.name);
    }
    Ok(router)
}

/// Writes every process's configuration.
pub(crate) fn write_configuration(topology: &Topology, layout: &Layout) -> Result<(), UpError> {
    for file in render::synapse(topology, layout).into_iter().chain(render::companions(topology, layout)) {
        state::write_private(&layout.config().join(&file.path), file.contents.as_bytes())?;
    }
    state::write_private(&units::fork_server_program(layout), forks::PROGRAM.as_bytes())?;
    Ok(())
}

/// Removes the configuration of processes that are no more.
pub(crate) fn tidy_configuration(topology: &Topology, layout: &Layout) {
    let files = render::synapse(topology, layout).into_iter().chain(render::companions(topology, layout));
    let files: BTreeSet<_> = files.map(|file| file.path).collect();
    for entry in std::fs::read_dir(layout.config()).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = path.extension().is_some_and(|extension| extension == "yaml");
        if ours && !files.contains(Path::new(&entry.file_name())) {
            // What stays is read by nobody.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Site {
    fn router(&self) -> &Router {
        &self.supervisor.shared.router
    }

    fn doors(&self) -> MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers who shares which work.
    fn remember(&self, agreement: Agreement) -> Result<(), UpError> {
        let mut applied = self.applied();
        applied.agreement = agreement;
        Ok(applied.save(&self.layout)?)
    }

    /// These processes of a topology.
    pub(crate) fn units(&self, topology: &Topology, names: &[String]) -> Vec<(About, Kind)> {
        let unit = |name: &String| match topology.instance(name) {
            Some(instance) => Some(units::synapse(instance, &self.programs, &self.layout)),
            None => topology
                .companion(name)
                .map(|companion| units::companion(companion, topology.stack(), &self.layout)),
        };
        names.iter().filter_map(unit).collect()
    }

    /// The result of `work`, unless it takes longer than `limit`.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, UpError>>,
    ) -> Result<T, UpError> {
        timeout(limit, work).await.unwrap_or_else(|_| {
            let board = self.supervisor.shared.board();
            let unhealthy = board.entries().filter(|entry| entry.state != State::Healthy && !entry.optional);
            Err(UpError::Timeout { limit, names: unhealthy.map(|entry| entry.about.name.clone()).collect() })
        })
    }

    /// Starts processes and waits until they are healthy; fails if one ends again and again. `same`: everybody agrees
    /// with those that ran before about who shares which work. `fresh`: the database may be new.
    pub(crate) async fn bring_up(
        &self,
        units: Vec<(About, Kind)>,
        same: bool,
        fresh: bool,
    ) -> Result<(), UpError> {
        let supervisor = &self.supervisor;
        let mut ends = supervisor.ends();
        let names: BTreeSet<String> = units.iter().map(|(about, _)| about.name.clone()).collect();
        supervisor.add(units);
        let workers = async {
            let fresh = fresh && supervisor.database().await;
            let schema = async {
                // After a change of stream writers main must be the first to look at the stream positions: parallel
                // starts fail there. In a new database there are none.
                if fresh || same { supervisor.schema().await } else { std::future::pending().await }
            };
            let separate = async {
                // Processes that start one by one are too slow to come in each other's way.
                if same && !fresh { supervisor.separate().await } else { std::future::pending().await }
            };
            tokio::select! {
                () = schema => {}
                () = separate => {}
                () = supervisor.healthy("main") => {}
            }
            supervisor.let_workers_start();
            supervisor.all_healthy(|name| names.contains(name)).await;
        };
        tokio::pin!(workers);
        loop {
            tokio::select! {
                biased;
                () = &mut workers => return Ok(()),
                end = ends.recv() => match end {
                    Ok(end) if names.contains(&end.name) && is_hopeless(&end) => {
                        let Ended { name, reason, lines, .. } = end;
                        return Err(UpError::Process { name, reason, lines });
                    }
                    Ok(end) => tracing::debug!(process = end.name, reason = end.reason, "ended while starting"),
                    Err(RecvError::Lagged(_)) => {}
                    // The sender lives as long as the supervisor.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
            }
        }
    }

    /// Has the processes become what the stack file says now. What is refused changes nothing.
    pub(crate) async fn reload(&self) -> Result<(), UpError> {
        let result = self.alone(Box::pin(self.change())).await.unwrap_or(Err(UpError::Ending));
        if result.is_err() {
            self.teller.tell(Event::NotChanged {});
        }
        result
    }

    /// Does what changes or restarts processes: one after the other, and not beyond the beginning of the stack's end.
    pub(crate) async fn alone<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut phase = self.phase.clone();
        let work = async {
            let _turn = self.turn.lock().await;
            work.await
        };
        tokio::select! {
            biased;
            // An error means that the supervisor is at its very end.
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => None,
            done = work => Some(done),
        }
    }

    /// Waits until nobody changes processes any more, once the stack's end has begun.
    pub(crate) async fn left_alone(&self) {
        drop(self.turn.lock().await);
    }

    async fn change(&self) -> Result<(), UpError> {
        let clock = Instant::now();
        let read_again = self.read_again.clone();
        let new = tokio::task::spawn_blocking(move || read_again.read()).await;
        let new = new
            .map_err(|error| system("read the stack file")(io::Error::other(error)))?
            .map_err(|report| UpError::File { report })?;
        let topology = &self.supervisor.shared.topology;
        if let Some(change::Fixed { field, reason }) = change::fixed(&topology.load(), &new, self.connections)
        {
            return Err(UpError::Fixed { field, reason });
        }
        // All that can be refused is tried before anything changes.
        let snapshot = route::snapshot(&new, self.table)?;
        config::secrets::ensure(new.stack(), &self.layout)?;
        let (public, metrics) = self.doors().closed(&new);
        let missing = Missing {
            public: bind_if("listen.address", public).await?,
            metrics: bind_if("listen.metrics", metrics).await?,
        };

        let changes = change::changes(&self.supervisor.running(), &new);
        self.tell(&changes);
        let new = Arc::new(new);
        let carried_out = self.carry_out(&changes, &new, snapshot, missing).await;
        self.supervisor.shared.board().arrange(new.names());
        if let Err(error) = carried_out {
            // Main may have failed before it let them; who can start shall.
            self.supervisor.let_workers_start();
            return Err(UpError::Incomplete { source: Box::new(error) });
        }
        self.remember(state::agreement(&new))?;
        tidy_configuration(&new, &self.layout);
        let kept = changes.iter().filter(|change| change.action == Action::Keep).count();
        let seconds = clock.elapsed().as_secs_f64();
        self.teller.tell(Event::Changed { changed: changes.len() - kept, kept, seconds });
        Ok(())
    }

    /// Says what is about to happen to which processes.
    fn tell(&self, changes: &[InstanceChange]) {
        for ((action, because), names) in model::grouped(changes) {
            if action != Action::Keep {
                self.teller.tell(Event::Change {
                    names: names.into_iter().map(str::to_owned).collect(),
                    action: action.describe().to_owned(),
                    because: because.to_vec(),
                });
            }
        }
    }

    async fn carry_out(
        &self,
        changes: &[InstanceChange],
        new: &Arc<Topology>,
        snapshot: Snapshot,
        missing: Missing,
    ) -> Result<(), UpError> {
        let (supervisor, router) = (&self.supervisor, self.router());
        let same = self.applied().agreement == state::agreement(new);
        let mut table = Some((snapshot, missing));
        let mut pause = None;
        for step in change::steps(changes, new) {
            match step {
                Step::Pause => pause = Some(self.quiet().await),
                Step::Stop(names) => {
                    let patience = if pause.is_some() { Duration::ZERO } else { SETTLE };
                    supervisor.remove(&names, patience).await;
                    for name in names.iter().filter(|name| new.names().all(|kept| kept != name.as_str())) {
                        supervisor.shared.board().forget(name);
                    }
                }
                Step::Configure => {
                    if !same {
                        // Until all have started, nobody can rely on either.
                        self.remember(Agreement::new())?;
                    }
                    write_configuration(new, &self.layout)?;
                    supervisor.shared.topology.store(Arc::clone(new));
                }
                Step::Route => {
                    let Some((snapshot, missing)) = table.take() else { continue };
                    router.reload(snapshot);
                    if pause.is_some() {
                        // They are known by other addresses now, perhaps; each is released when it is healthy.
                        for instance in new.instances().iter().filter(|i| !supervisor.is_healthy(&i.name)) {
                            router.hold(&instance.name);
                        }
                    }
                    self.doors().change(router, new, missing).map_err(system("listen"))?;
                }
                Step::Start(names) => self.start(new, &names, same, pause.take()).await?,
                Step::Roll { name, paused } => {
                    let names = [name];
                    let pause = if paused { Some(self.quiet().await) } else { None };
                    supervisor.remove(&names, if paused { Duration::ZERO } else { SETTLE }).await;
                    self.start(new, &names, same, pause).await?;
                }
            }
        }
        let healthy = async {
            supervisor.all_healthy(|_| true).await;
            Ok(())
        };
        self.within(self.start_timeout, healthy).await
    }

    /// Starts processes of a topology. All requests wait until they are healthy, but not for ever.
    async fn start(
        &self,
        topology: &Topology,
        names: &[String],
        same: bool,
        pause: Option<router::Pause>,
    ) -> Result<(), UpError> {
        let starting = self.bring_up(self.units(topology, names), same, false);
        let starting = self.within(self.start_timeout, starting);
        tokio::pin!(starting);
        if pause.is_some()
            && let Ok(started) = timeout(PAUSE, &mut starting).await
        {
            return started;
        }
        drop(pause);
        starting.await
    }

    /// Keeps new requests waiting, and lets those under way finish that would be lost.
    async fn quiet(&self) -> router::Pause {
        let pause = self.router().pause();
        let left = self.router().all_settled(QUIET).await;
        if left > 0 {
            tracing::warn!(requests = left, "processes stop although requests are under way");
        }
        pause
    }
}

/// Whether another try would end like this one.
fn is_hopeless(end: &Ended) -> bool {
    let limit = match end.name.as_str() {
        "postgres" | "valkey" | "forkserver" | "main" => 2,
        // Parallel starts may fail at the database's isolation once or twice.
        _ => 4,
    };
    end.in_a_row >= limit || end.lines.iter().any(|line| line.starts_with("Error in configuration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_errors_are_not_tried_again() {
        let end = |name: &str, in_a_row, line: &str| Ended {
            name: name.into(),
            reason: "exit code 1".into(),
            lines: vec![line.into()],
            in_a_row,
        };
        assert!(is_hopeless(&end("sync_1", 1, "Error in configuration at 'x':")));
        assert!(!is_hopeless(&end("sync_1", 3, "psycopg2.errors.SerializationFailure")));
        assert!(is_hopeless(&end("sync_1", 4, "psycopg2.errors.SerializationFailure")));
        assert!(!is_hopeless(&end("postgres", 1, "")) && is_hopeless(&end("postgres", 2, "")));
    }
}
