//! The router alone, in front of processes that run elsewhere.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use model::{Address, Stack, Topology};
use router::{Router, Snapshot};
use routes::Table;
use sd_notify::NotifyState;
use service::{Asked, Signals};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::handover::{self, Handover, Predecessor, Successor};
use crate::listen::{Given, Serving, Sockets};
use crate::probe;
use crate::up::{UpError, raise_file_limit};

/// How long requests may take to finish once the router was told to stop: as long as a client's long poll, and a
/// moment more.
const DRAIN: Duration = Duration::from_secs(40);

/// How long it is waited for the names of the processes to be looked up before anybody is told that requests are taken.
const NAMES: Duration = Duration::from_secs(5);

/// How long a router that was replaced keeps connections that lie idle.
const LINGER: Duration = Duration::from_secs(15);

/// How long a router that replaces another waits for its first health checks.
const FIRST_CHECKS: Duration = Duration::from_secs(10);

/// How often a watched file is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How long a router may take to say that it is well.
const PROBE: Duration = Duration::from_secs(3);

/// Why a router is not well, as far as can be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It has nowhere to be asked.
    #[error(
        "the router says how it is at `listen.metrics` alone, and stack.yaml does not set that; set it, to `127.0.0.1:9090` say"
    )]
    Unset,
    /// It does not say that it is well.
    #[error("the router is not well: {reason}; see whether it runs, and with this stack file")]
    NotWell {
        /// What was said, or not.
        reason: String,
    },
}

/// Asks the router that runs for a stack whether it is well.
pub async fn probe_router(stack: &Stack) -> Result<(), ProbeError> {
    let place = stack.listen.metrics.as_deref().and_then(|address| address.rsplit_once(':'));
    let (host, port) = place.ok_or(ProbeError::Unset)?;
    // Who listens on all addresses does so on this one.
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "::1",
        host => host.trim_matches(['[', ']']),
    };
    let port = port.parse().map_err(|_| ProbeError::Unset)?;
    let address = Address::Tcp { host: host.to_owned(), port };
    probe::health(&address, PROBE).await.map_err(|reason| ProbeError::NotWell { reason })
}

/// The router's snapshot of a topology.
pub(crate) fn snapshot(topology: &Topology, table: &Table) -> Result<Snapshot, UpError> {
    let stack = topology.stack();
    Snapshot::with_table(table, topology, router::Settings::from_stack(stack))
        .map_err(|error| UpError::Router { message: error.to_string() })?
        .with_tls(stack)
        .map_err(UpError::Tls)
}

/// A file that is looked at again and again. Its content counts, so that it does not matter how it was replaced.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// None if it could not be read.
    seen: Option<Vec<u8>>,
}

impl Watch {
    /// Begins with what the file holds now.
    pub fn new(path: PathBuf) -> Self {
        Self { seen: std::fs::read(&path).ok(), path }
    }

    /// Whether the file holds something else than when this was asked last.
    fn has_changed(&mut self) -> bool {
        let now = std::fs::read(&self.path).ok();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

/// How a router runs alone.
#[derive(Debug, Default)]
pub struct RouteOptions {
    /// What is settled once.
    pub router: router::Options,
    /// Sockets that this process was started with.
    pub given: Given,
    /// The socket by which it takes over from the router that runs, and by which the next will take over from it.
    pub handover: Option<PathBuf>,
    /// The file whose change is a reason to reload.
    pub watch: Option<Watch>,
}

/// Routes requests to a topology's processes, by the endpoint table of their Synapse, until SIGINT or SIGTERM, or until
/// another router has taken over. At SIGHUP `reload` is asked for the topology anew; what it complains of is logged, and
/// everything stays as it was.
///
/// `ready` is called once requests are taken. It must run in a multi-threaded tokio runtime.
pub async fn route(
    topology: &Topology,
    table: &Table,
    options: RouteOptions,
    ready: impl FnOnce(),
    reload: impl FnMut() -> Result<Topology, String>,
) -> Result<(), UpError> {
    let RouteOptions { router: options, mut given, handover: path, watch } = options;
    let signals = Signals::new().map_err(|source| UpError::System { action: "handle signals", source })?;
    raise_file_limit();
    let watch = watch.map(|watch| {
        let mut interval = interval(WATCH_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (watch, interval)
    });
    let mut predecessor = None;
    if let Some(path) = &path
        && let Some((running, sockets)) = Predecessor::find(path).await?
    {
        (predecessor, given) = (Some(running), sockets);
    }
    let sockets = Sockets::bind(topology, &mut given).await?;
    for address in given.left() {
        tracing::warn!(address, "was given a socket that stack.yaml does not name; it is closed");
    }
    drop(given);
    let router = Router::start(snapshot(topology, table)?, options)
        .map_err(|error| UpError::Router { message: error.to_string() })?;
    if !router.resolved(NAMES).await {
        tracing::warn!("not every name could be looked up; what is reached by the others is asked meanwhile");
    }
    let handover = match &path {
        Some(path) => {
            let wish = signal(SignalKind::user_defined2())
                .map_err(|source| UpError::System { action: "handle signals", source })?;
            let listener = match predecessor {
                Some(predecessor) => {
                    router.checked(FIRST_CHECKS).await;
                    predecessor.relieve(path).await?
                }
                None => handover::own(path).await?,
            };
            Some((Handover::new(listener, &sockets).map_err(listening)?, wish))
        }
        None => None,
    };
    let serving = sockets.serve(&router).map_err(listening)?;
    ready();
    tell(&[NotifyState::Ready]);

    let mut life = Life { router: &router, table, signals, handover, watch, reload };
    let end = life.run(&sockets, serving).await?;
    // Nobody may wait in sockets on which nobody will accept.
    let Life { mut signals, .. } = life;
    drop(sockets);
    let end = match end {
        End::Asked => {
            tell(&[NotifyState::Stopping]);
            router.shutdown(DRAIN).await
        }
        End::Replaced => tokio::select! {
            end = router.leave(LINGER, DRAIN) => end,
            // With its successor, most likely.
            _ = signals.end() => router.shutdown(DRAIN).await,
        },
    };
    tracing::info!(finished = end.finished, cut = end.cut, "stopped");
    Ok(())
}

fn listening(source: io::Error) -> UpError {
    UpError::System { action: "listen", source }
}

/// Why a router stops.
enum End {
    /// By a signal.
    Asked,
    /// Another one took over.
    Replaced,
}

/// A router that runs.
struct Life<'a, R> {
    router: &'a Router,
    table: &'a Table,
    signals: Signals,
    handover: Option<(Handover, Signal)>,
    watch: Option<(Watch, Interval)>,
    reload: R,
}

impl<R: FnMut() -> Result<Topology, String>> Life<'_, R> {
    /// What there is to do until it stops.
    async fn run(&mut self, sockets: &Sockets, mut serving: Serving) -> Result<End, UpError> {
        loop {
            tokio::select! {
                asked = self.signals.next() => match asked {
                    Asked::End(_) => return Ok(End::Asked),
                    Asked::Reload => self.reload(),
                },
                () = changed(&mut self.watch) => {
                    tracing::info!("the watched file has changed");
                    self.reload();
                }
                next = successor(&mut self.handover) => {
                    let successor = match next {
                        Ok(Some(successor)) => successor,
                        Ok(None) => {
                            start_successor();
                            continue;
                        }
                        Err(error) => {
                            tracing::error!(%error, "nobody can take over from this router any more");
                            self.handover = None;
                            continue;
                        }
                    };
                    serving.stop().await;
                    if let Some(pid) = successor.pid {
                        tell(&[NotifyState::MainPid(pid)]);
                    }
                    let Err(error) = successor.begin().await else {
                        tracing::info!("another router has taken over");
                        return Ok(End::Replaced);
                    };
                    tracing::error!(%error, "the router that was to take over is gone; this one goes on");
                    tell(&[NotifyState::MainPid(std::process::id())]);
                    serving = sockets.serve(self.router).map_err(listening)?;
                }
            }
        }
    }

    fn reload(&mut self) {
        // systemd wants to know when (`Type=notify-reload`).
        let now = NotifyState::monotonic_usec_now().into_iter();
        tell(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
        let new = (self.reload)()
            .and_then(|topology| snapshot(&topology, self.table).map_err(|error| error.to_string()));
        match new {
            Ok(snapshot) => {
                self.router.reload(snapshot);
                tracing::info!("reloaded");
            }
            Err(error) => tracing::error!(%error, "not reloaded; everything stays as it was"),
        }
        tell(&[NotifyState::Ready]);
    }
}

/// Waits until the watched file has changed.
async fn changed(watch: &mut Option<(Watch, Interval)>) {
    let Some((watch, interval)) = watch else { return std::future::pending().await };
    loop {
        interval.tick().await;
        if watch.has_changed() {
            return;
        }
    }
}

/// Waits for a router that takes over, or for a wish to start one: then there is none yet.
async fn successor(handover: &mut Option<(Handover, Signal)>) -> io::Result<Option<Successor>> {
    let Some((handover, wish)) = handover else { return std::future::pending().await };
    tokio::select! {
        successor = handover.next() => successor.map(Some),
        Some(()) = wish.recv() => Ok(None),
    }
}

/// Starts this program as it was started, perhaps in a new version, to take over from this process.
fn start_successor() {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    match tokio::process::Command::new(&program).args(arguments).spawn() {
        Ok(mut child) => {
            tokio::spawn(async move {
                if let Ok(status) = child.wait().await {
                    tracing::error!(%status, "the router that was to take over has ended; this one goes on");
                }
            });
        }
        Err(error) => {
            tracing::error!(%error, program = %program.display(), "cannot start a router that takes over; this one goes on");
        }
    }
}

/// Tells the service manager, if there is one (`sd_notify(3)`).
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told what goes on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_file_has_changed_when_its_content_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stack.yaml");
        let mut watch = Watch::new(path.clone());
        assert!(!watch.has_changed());
        // As Kubernetes does it: a link is swapped.
        for (version, text) in [("1", "a"), ("2", "a"), ("3", "b")] {
            let changes = version != "2";
            std::fs::create_dir(dir.path().join(version)).unwrap();
            std::fs::write(dir.path().join(version).join("stack.yaml"), text).unwrap();
            let link = dir.path().join("new");
            std::os::unix::fs::symlink(dir.path().join(version).join("stack.yaml"), &link).unwrap();
            std::fs::rename(&link, &path).unwrap();
            assert_eq!(watch.has_changed(), changes, "{version}");
            assert!(!watch.has_changed());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(watch.has_changed() && !watch.has_changed());
    }
}
