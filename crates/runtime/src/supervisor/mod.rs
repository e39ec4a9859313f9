//! The processes of a running stack: started in the order in which they need each other, watched, started again when
//! they end, and stopped in the reverse order.

mod board;
mod policy;
mod spawn;
#[cfg(test)]
mod tests;
mod unit;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use model::{CompanionKind, Layout, Topology};
use nix::sys::signal::Signal;
use router::Router;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub(crate) use board::{About, Board, Entry};
pub(crate) use spawn::Spawner;
pub(crate) use unit::{Kind, SETTLE};

use crate::client::State;
use crate::forks::ForkServer;
use crate::logs;
use crate::progress::{Event, Progress};
use crate::state::{Record, Records};
use unit::{Command, Unit};

/// How many events a slow follower may lag behind.
const EVENTS: usize = 1024;
/// How long a restarted process may take to be healthy until the one who asked is told that it is not.
const RESTART_LIMIT: Duration = Duration::from_secs(120);
/// Logs that are longer are cut to a new start, the old lines being kept in `NAME.log.1`.
const LOG_CHECK: Duration = Duration::from_secs(60);

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// With the fork server that had started it.
    Orphaned,
    /// Otherwise: it could not be started, was given up, or its parent ended.
    Lost(String),
}

impl Exit {
    pub(crate) fn from_parts(code: Option<i32>, signal: Option<i32>) -> Self {
        match (code, signal) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Lost("it ended in an unknown way".to_owned()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
            Self::Orphaned => f.write_str("the fork server ended"),
            Self::Lost(reason) => f.write_str(reason),
        }
    }
}

/// A process ended that should not have.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) name: String,
    pub(crate) reason: String,
    /// Its last log lines.
    pub(crate) lines: Vec<String>,
    /// How often it ended since it was stable.
    pub(crate) in_a_row: u32,
}

/// How Synapse's processes are started at present.
#[derive(Clone)]
pub(crate) enum Forks {
    /// Not at all: the fork server is not there yet, or no more.
    Down,
    /// By the fork server.
    Ready(ForkServer),
    /// As programs of their own: the fork server cannot fork this Synapse.
    Unusable,
}

/// What must be there before a process can start. Each is opened and closed as the processes come and go.
pub(crate) struct Gates {
    database: watch::Sender<bool>,
    cache: watch::Sender<bool>,
    forks: watch::Sender<Forks>,
    /// Whether main was started.
    main: watch::Sender<bool>,
    /// Whether workers may start: opened for all once main has come so far.
    workers: watch::Sender<bool>,
    /// Whether the database was created in this run.
    fresh: watch::Sender<bool>,
    /// Whether role and database are known to exist.
    provisioned: watch::Sender<bool>,
}

impl Gates {
    /// Waits until a process of this kind can start; `first` is its first start in this run.
    async fn open_for(&self, kind: &Kind, first: bool) {
        if let Kind::Companion { companion, .. } = kind
            && companion.kind == CompanionKind::Mas
        {
            // It would end without its database.
            let _ = self.database.subscribe().wait_for(|open| *open).await;
        }
        let Kind::Synapse { instance, args, .. } = kind else { return };
        // The senders live as long as `self`, so waiting cannot fail.
        let _ = self.database.subscribe().wait_for(|open| *open).await;
        let _ = self.cache.subscribe().wait_for(|open| *open).await;
        let _ = self.forks.subscribe().wait_for(|forks| !matches!(forks, Forks::Down)).await;
        if !instance.is_main() {
            let _ = self.main.subscribe().wait_for(|started| *started).await;
            let forks = self.forks.borrow().clone();
            if let (true, Forks::Ready(server)) = (first, forks) {
                server.prepare(args).await;
            }
            let _ = self.workers.subscribe().wait_for(|open| *open).await;
        }
    }

    fn open(&self, kind: &Kind) {
        match kind {
            Kind::Postgres { .. } => drop(self.database.send_replace(true)),
            Kind::Valkey(_) => drop(self.cache.send_replace(true)),
            Kind::ForkServer { .. } | Kind::Synapse { .. } | Kind::Companion { .. } => {}
        }
    }

    fn close(&self, kind: &Kind) {
        match kind {
            Kind::Postgres { .. } => drop(self.database.send_replace(false)),
            Kind::Valkey(_) => drop(self.cache.send_replace(false)),
            // Parked, it stays unusable.
            Kind::ForkServer { .. } => drop(self.forks.send_if_modified(|forks| {
                let was_ready = matches!(forks, Forks::Ready(_));
                if was_ready {
                    *forks = Forks::Down;
                }
                was_ready
            })),
            Kind::Synapse { .. } | Kind::Companion { .. } => {}
        }
    }
}

/// Tells what happens: the user, and whoever follows through the control socket.
#[derive(Clone)]
pub(crate) struct Teller {
    progress: Arc<dyn Progress>,
    events: broadcast::Sender<Event>,
}

impl Teller {
    pub(crate) fn new(progress: Arc<dyn Progress>) -> Self {
        Self { progress, events: broadcast::channel(EVENTS).0 }
    }

    pub(crate) fn tell(&self, event: Event) {
        self.progress.event(&event);
        // An error means that nobody follows.
        let _ = self.events.send(event);
    }

    /// The events from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// What the units share.
pub(crate) struct Shared {
    pub(crate) layout: Layout,
    /// Whose configuration is written.
    pub(crate) topology: Arc<ArcSwap<Topology>>,
    /// When the supervisor started.
    pub(crate) clock: Instant,
    pub(crate) gates: Gates,
    pub(crate) router: Router,
    board: Mutex<Board>,
    spawner: Spawner,
    /// So many workers start at once; more would only get in each other's way.
    permits: Semaphore,
    teller: Teller,
    ends: broadcast::Sender<Ended>,
    hurry: watch::Sender<bool>,
    /// The records of the running processes are out of date.
    records: Notify,
    /// Some process became healthy or stopped.
    changed: Notify,
}

impl Shared {
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a process's entry; returns how many are healthy then, of how many.
    fn set(&self, name: &str, change: impl FnOnce(&mut Entry)) -> (usize, usize) {
        let mut board = self.board();
        if let Some(entry) = board.get_mut(name) {
            change(entry);
        }
        board.healthy()
    }

    pub(crate) fn tell(&self, event: Event) {
        self.teller.tell(event);
    }

    /// From now on, nobody is given more time to stop than necessary.
    pub(crate) fn hurry(&self) {
        self.hurry.send_replace(true);
    }
}

/// What a supervisor starts with.
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) topology: Arc<ArcSwap<Topology>>,
    pub(crate) spawner: Spawner,
    pub(crate) teller: Teller,
    /// How many workers start at once.
    pub(crate) width: usize,
    /// Whether the database and the cache are someone else's, and there.
    pub(crate) external: External,
    /// Whether Synapse's processes are started one by one from the outset.
    pub(crate) separate: bool,
    pub(crate) clock: Instant,
}

/// Which services the user runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct External {
    pub(crate) database: bool,
    pub(crate) cache: bool,
}

/// All processes of a stack.
pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    units: Mutex<Vec<Arc<Handle>>>,
    keeper: JoinHandle<()>,
}

struct Handle {
    name: String,
    stage: Stage,
    commands: mpsc::Sender<Command>,
    /// Gone when it has been waited for.
    task: AsyncMutex<Option<JoinHandle<()>>>,
}

/// The order of stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Companion,
    Worker,
    Main,
    ForkServer,
    Cache,
    Database,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Companion, Self::Worker, Self::Main, Self::ForkServer, Self::Cache, Self::Database];

    fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Postgres { .. } => Self::Database,
            Kind::Valkey(_) => Self::Cache,
            Kind::ForkServer { .. } => Self::ForkServer,
            Kind::Synapse { instance, .. } if instance.is_main() => Self::Main,
            Kind::Synapse { .. } => Self::Worker,
            Kind::Companion { .. } => Self::Companion,
        }
    }
}

/// Why a restart that was asked for did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestartError {
    #[error(
        "`{target}` is no process, role or group of this stack: see `matrix-stack status` for their names"
    )]
    Unknown { target: String },
    #[error(
        "`router` is the supervisor itself: restart the stack with `matrix-stack down` and `matrix-stack up`"
    )]
    Router,
    #[error("{name} is not healthy {} s after its restart: see `matrix-stack logs {name}`", RESTART_LIMIT.as_secs())]
    NotHealthy { name: String },
    #[error("{name} does not run: see `matrix-stack status`")]
    NotRunning { name: String },
    #[error("the stack is being stopped: start it again with `matrix-stack up`")]
    Ending,
}

impl Supervisor {
    /// Supervises nothing yet.
    pub(crate) fn start(plan: Plan, router: Router) -> Self {
        let forks = if plan.separate { Forks::Unusable } else { Forks::Down };
        let shared = Arc::new(Shared {
            layout: plan.layout,
            topology: plan.topology,
            clock: plan.clock,
            gates: Gates {
                database: watch::Sender::new(plan.external.database),
                cache: watch::Sender::new(plan.external.cache),
                forks: watch::Sender::new(forks),
                main: watch::Sender::new(false),
                workers: watch::Sender::new(false),
                fresh: watch::Sender::new(false),
                provisioned: watch::Sender::new(false),
            },
            router,
            board: Mutex::default(),
            spawner: plan.spawner,
            permits: Semaphore::new(plan.width),
            teller: plan.teller,
            ends: broadcast::Sender::new(EVENTS),
            hurry: watch::Sender::new(false),
            records: Notify::new(),
            changed: Notify::new(),
        });
        let keeper = tokio::spawn(keep(Arc::clone(&shared)));
        Self { shared, units: Mutex::default(), keeper }
    }

    /// Lets these processes start as soon as what they need is there. If main is one of them, workers wait until they
    /// are let.
    pub(crate) fn add(&self, units: Vec<(About, Kind)>) {
        let shared = &self.shared;
        if units.iter().any(|(_, kind)| Stage::of(kind) == Stage::Main) {
            shared.gates.main.send_replace(false);
            shared.gates.workers.send_replace(false);
        }
        for (about, _) in &units {
            shared.board().enter(about.clone());
        }
        for (About { name, .. }, kind) in units {
            let (commands, orders) = mpsc::channel(16);
            let stage = Stage::of(&kind);
            let log = shared.layout.log(&name);
            let unit = Unit { name: name.clone(), kind, log, shared: Arc::clone(shared), commands: orders };
            let task = AsyncMutex::new(Some(tokio::spawn(unit.run())));
            self.handles().push(Arc::new(Handle { name, stage, commands, task }));
        }
    }

    /// Hears of each process that ends unasked from now on.
    pub(crate) fn ends(&self) -> broadcast::Receiver<Ended> {
        self.shared.ends.subscribe()
    }

    fn handles(&self) -> MutexGuard<'_, Vec<Arc<Handle>>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the named process is healthy.
    pub(crate) async fn healthy(&self, name: &str) {
        self.wait(|board| board.get(name).is_some_and(|entry| entry.state == State::Healthy)).await;
    }

    /// Synapse's processes and the companions, each with the topology that it was started with.
    pub(crate) fn running(&self) -> Vec<(String, Arc<Topology>)> {
        let board = self.shared.board();
        let synapse =
            |name: &str| self.handles().iter().any(|unit| unit.name == name && unit.stage <= Stage::Main);
        board
            .entries()
            .filter(|entry| synapse(&entry.about.name))
            .map(|entry| {
                // Until it starts, it will with what is written now.
                let topology = entry.topology.clone().unwrap_or_else(|| self.shared.topology.load_full());
                (entry.about.name.clone(), topology)
            })
            .collect()
    }

    pub(crate) fn is_healthy(&self, name: &str) -> bool {
        self.shared.board().get(name).is_some_and(|entry| entry.state == State::Healthy)
    }

    /// Waits until every process that is meant is healthy.
    pub(crate) async fn all_healthy(&self, which: impl Fn(&str) -> bool) {
        self.wait(|board| {
            let mut meant = board.entries().filter(|entry| which(&entry.about.name));
            meant.all(|entry| entry.optional || entry.state == State::Healthy)
        })
        .await;
    }

    async fn wait(&self, condition: impl Fn(&Board) -> bool) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change between the two is missed.
            changed.as_mut().enable();
            if condition(&self.shared.board()) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the database answers; true if it was created in this run.
    pub(crate) async fn database(&self) -> bool {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.shared.gates.database.subscribe().wait_for(|open| *open).await;
        *self.shared.gates.fresh.borrow()
    }

    /// Waits until main has found or made the database's tables, as far as the fork server tells.
    pub(crate) async fn schema(&self) {
        let mut forks = self.shared.gates.forks.subscribe();
        loop {
            let ready =
                forks.wait_for(|forks| matches!(forks, Forks::Ready(_))).await.map(|forks| forks.clone());
            let Ok(Forks::Ready(server)) = ready else { return std::future::pending().await };
            tokio::select! {
                () = server.schema() => return,
                // Another fork server may have taken its place.
                _ = forks.changed() => {}
            }
        }
    }

    /// Waits until it is clear that Synapse's processes are started one by one.
    pub(crate) async fn separate(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.shared.gates.forks.subscribe().wait_for(|forks| matches!(forks, Forks::Unusable)).await;
    }

    /// Lets the workers start.
    pub(crate) fn let_workers_start(&self) {
        self.shared.gates.workers.send_replace(true);
    }

    /// Restarts the processes that `target` means, one after the other, each with how long it took from the signal to
    /// being healthy.
    pub(crate) async fn restart(
        &self,
        target: &str,
        mut done: impl FnMut(&str, Duration),
    ) -> Result<(), RestartError> {
        if target == "router" {
            return Err(RestartError::Router);
        }
        let names = self.shared.board().named(target);
        if names.is_empty() {
            return Err(RestartError::Unknown { target: target.to_owned() });
        }
        for name in names {
            let Some(unit) = self.handles().iter().find(|unit| unit.name == name).cloned() else { continue };
            let (who, answer) = oneshot::channel();
            if unit.commands.send(Command::Restart(who)).await.is_err() {
                return Err(RestartError::NotRunning { name });
            }
            match timeout(RESTART_LIMIT, answer).await {
                Ok(Ok(took)) => done(&name, took),
                Ok(Err(_)) => return Err(RestartError::NotRunning { name }),
                Err(_) => return Err(RestartError::NotHealthy { name }),
            }
            if name == "forkserver" && timeout(RESTART_LIMIT, self.all_healthy(|_| true)).await.is_err() {
                return Err(RestartError::NotHealthy { name });
            }
        }
        Ok(())
    }

    /// Stops these processes, workers before main, and supervises them no more. Requests under way that would be lost
    /// may take so long to end.
    pub(crate) async fn remove(&self, names: &[String], patience: Duration) {
        self.stop_those(|name| names.iter().any(|known| known == name), patience).await;
    }

    async fn stop_those(&self, which: impl Fn(&str) -> bool, patience: Duration) {
        for stage in Stage::ALL {
            let units: Vec<Arc<Handle>> = self
                .handles()
                .iter()
                .filter(|unit| unit.stage == stage && which(&unit.name))
                .cloned()
                .collect();
            for unit in &units {
                // A unit whose channel is closed has stopped by itself.
                let _ = unit.commands.send(Command::Stop(patience)).await;
            }
            for unit in &units {
                // If this is dropped while it waits, the next one who stops waits on.
                let mut task = unit.task.lock().await;
                if let Some(running) = task.as_mut()
                    && let Err(error) = running.await
                {
                    tracing::error!(unit = unit.name, %error, "a unit failed");
                }
                *task = None;
            }
            self.handles().retain(|unit| units.iter().all(|stopped| !Arc::ptr_eq(stopped, unit)));
        }
    }

    /// Stops everything, workers first, the database last.
    pub(crate) async fn stop(&self) {
        self.stop_those(|_| true, Duration::ZERO).await;
        self.keeper.abort();
        save_records(&self.shared);
    }
}

/// Keeps the records of running processes up to date, and the logs from growing without bound.
async fn keep(shared: Arc<Shared>) {
    /// Many processes start at once: one write for all of them.
    const GATHER: Duration = Duration::from_millis(100);
    loop {
        tokio::select! {
            () = shared.records.notified() => {
                sleep(GATHER).await;
                save_records(&shared);
            }
            () = sleep(LOG_CHECK) => {
                let directory = shared.layout.logs();
                // Copying up to a log's bound takes a moment.
                let _ = tokio::task::spawn_blocking(move || logs::cut_long(&directory)).await;
            }
        }
    }
}

fn save_records(shared: &Shared) {
    let records = shared
        .board()
        .entries()
        .filter_map(|entry| {
            let About { name, marks, stop, .. } = &entry.about;
            Some(Record { name: name.clone(), id: entry.process?, marks: marks.clone(), stop: *stop })
        })
        .collect();
    if let Err(error) = Records::new(records).save(&shared.layout) {
        tracing::warn!(%error, "the running processes are not recorded");
    }
}
