//! The router alone, in front of processes that run elsewhere.

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

/// Routes requests to a topology's processes, by the endpoint table of their Synapse, until SIGINT or SIGTERM. At SIGHUP `reload` is asked for the topology anew; what it
/// complains of is logged, and everything stays as it was.
///
/// `ready` is called once requests are taken. It must run in a multi-threaded tokio runtime.
pub async fn route(
    topology: &Topology,
    table: &Table,
    options: router::Options,
    ready: impl FnOnce(),
    mut reload: impl FnMut() -> Result<Topology, String>,
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
        if let Asked::End(_) = signals.next().await {
            break;
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
