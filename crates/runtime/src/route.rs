//! The router alone, in front of processes that run elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use model::Topology;
use router::{Router, Snapshot};
use routes::Table;

use crate::up::{Asked, Signals, UpError, bind_listeners, raise_file_limit};

/// How long requests may take to finish once the router was told to stop: as long as a client's long poll, and a
/// moment more.
const DRAIN: Duration = Duration::from_secs(40);

/// How long it is waited for the names of the processes to be looked up before anybody is told that requests are taken.
const NAMES: Duration = Duration::from_secs(5);

/// The router's snapshot of a topology.
pub(crate) fn snapshot(topology: &Topology, table: &Table) -> Result<Snapshot, UpError> {
    let stack = topology.stack();
    Snapshot::with_table(table, topology, router::Settings::from_stack(stack))
        .map_err(|error| UpError::Router { message: error.to_string() })?
        .with_tls(stack)
        .map_err(UpError::Tls)
}

/// How often a followed file is looked at.
const FOLLOW: Duration = Duration::from_secs(2);

/// A file that is followed: that it changes is as good as SIGHUP. Its contents are compared, whatever its times say, since
/// Kubernetes puts another file in the place of one that it mounts.
#[derive(Debug)]
pub struct Followed {
    path: PathBuf,
    contents: Option<Vec<u8>>,
}

impl Followed {
    /// Follows a file from what it has now; make this before the file is read for what it says.
    pub fn new(path: PathBuf) -> Self {
        let contents = std::fs::read(&path).ok();
        Self { path, contents }
    }

    /// Waits until it has other contents. That it is gone is none.
    async fn change(&mut self) {
        loop {
            tokio::time::sleep(FOLLOW).await;
            let contents = tokio::fs::read(&self.path).await.ok();
            if contents.is_some() && contents != self.contents {
                self.contents = contents;
                return;
            }
        }
    }
}

/// Routes requests to a topology's processes, by the endpoint table of their Synapse, until SIGINT or SIGTERM. At SIGHUP, or when
/// the followed file changes, `reload` is asked for the topology anew; what it complains of is logged, and everything stays as
/// it was.
///
/// `ready` is called once requests are taken. It must run in a multi-threaded tokio runtime.
pub async fn route(
    topology: &Topology,
    table: &Table,
    options: router::Options,
    ready: impl FnOnce(),
    mut reload: impl FnMut() -> Result<Topology, String>,
    mut followed: Option<Followed>,
) -> Result<(), UpError> {
    let mut signals =
        Signals::new().map_err(|source| UpError::System { action: "handle signals", source })?;
    raise_file_limit();
    let listeners = bind_listeners(topology).await?;
    let router = Router::start(snapshot(topology, table)?, options)
        .map_err(|error| UpError::Router { message: error.to_string() })?;
    tokio::spawn(router.serve(listeners.public));
    if let Some(metrics) = listeners.metrics {
        tokio::spawn(router.serve_private(metrics));
    }
    if !router.resolved(NAMES).await {
        tracing::warn!("not every name could be looked up; what is reached by the others is asked meanwhile");
    }
    ready();
    loop {
        let change = async {
            match &mut followed {
                Some(followed) => followed.change().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            asked = signals.next() => if let Asked::End(_) = asked { break },
            () = change => {}
        }
        let new = reload().and_then(|topology| snapshot(&topology, table).map_err(|error| error.to_string()));
        match new {
            Ok(snapshot) => {
                router.reload(snapshot);
                tracing::info!("reloaded");
            }
            Err(error) => tracing::error!(%error, "not reloaded; everything stays as it was"),
        }
    }
    let end = router.shutdown(DRAIN).await;
    tracing::info!(finished = end.finished, cut = end.cut, "stopped");
    Ok(())
}
