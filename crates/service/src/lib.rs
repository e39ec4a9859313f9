//! What every companion service has around it: sockets, signals, health, readiness and metrics.
//!
//! A service brings an [`axum::Router`] for those who use it, and [`Observed`] for those who watch it; [`run`] does the rest. One
//! that speaks no HTTP takes [`bind()`], [`observe`] and [`Signals`] by themselves.

mod bind;
pub mod documents;
mod http;
pub mod proxied;
mod signals;
pub mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use sd_notify::NotifyState;
use tokio::task::JoinHandle;

pub use bind::{BindError, Listener, bind, bind_unix};
pub use http::{Peer, serve};
pub use signals::{Asked, Signals};

/// How long requests may take to finish once a service was told to stop.
pub const DRAIN: Duration = Duration::from_secs(20);

/// What a service tells those who watch it.
pub trait Observed: Send + Sync + 'static {
    /// Whether it can do its work now; else why not, in one line.
    fn ready(&self) -> Result<(), String>;

    /// Its metrics in the text format of `OpenMetrics` 1.0.
    fn metrics(&self) -> String;

    /// It has been told to stop: requests that come over connections which are open still are to be refused, or finished soon.
    fn stopping(&self) {}
}

/// A service that speaks HTTP.
#[derive(Debug)]
pub struct Http {
    /// Where requests come in.
    pub listener: Listener,
    /// What answers them.
    pub app: Router,
    /// Where `/health`, `/ready` and `/metrics` are served, if anywhere.
    pub metrics: Option<Listener>,
}

/// Serves until SIGINT or SIGTERM, then lets requests finish for [`DRAIN`]. SIGHUP calls `reload`, whose complaint is logged while
/// everything stays as it was. systemd is told when it is ready and when it stops.
pub async fn run(
    http: Http,
    observed: Arc<dyn Observed>,
    mut signals: Signals,
    mut reload: impl FnMut() -> Result<(), String>,
) {
    let Http { listener, app, metrics } = http;
    let watching = metrics.map(|metrics| observe(metrics, observed.clone()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let end = async move {
        // Dropped, it has come as well.
        let _ = stopped.await;
    };
    let serving = tokio::spawn(serve(listener, app, end, DRAIN));
    ready();
    loop {
        match signals.next().await {
            Asked::Reload => match reload() {
                Ok(()) => tracing::info!("reloaded"),
                Err(error) => tracing::error!(%error, "the new configuration is refused; the old one stays"),
            },
            Asked::End(signal) => {
                tracing::info!(signal, "stopping");
                break;
            }
        }
    }
    stopping();
    observed.stopping();
    drop(stop);
    if let Err(error) = serving.await {
        tracing::error!(%error, "serving failed");
    }
    if let Some(watching) = watching {
        watching.abort();
    }
}

/// Serves `/health`, `/ready` and `/metrics` on a listener of their own, as long as the task is not aborted.
pub fn observe(listener: Listener, observed: Arc<dyn Observed>) -> JoinHandle<()> {
    tokio::spawn(serve(listener, observation(observed), std::future::pending(), Duration::ZERO))
}

/// `/health`, `/ready` and `/metrics`.
pub fn observation(observed: Arc<dyn Observed>) -> Router {
    const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];
    const METRICS: [(header::HeaderName, &str); 1] =
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let readiness = observed.clone();
    Router::new()
        .route("/health", get(|| async { (JSON, r#"{"status":"ok"}"#) }))
        .route(
            "/ready",
            get(move || async move {
                match readiness.ready() {
                    Ok(()) => (StatusCode::OK, JSON, r#"{"ready":true}"#.to_owned()),
                    Err(reason) => {
                        let text = format!("{{\"ready\":false,\"reason\":{reason:?}}}");
                        (StatusCode::SERVICE_UNAVAILABLE, JSON, text)
                    }
                }
            }),
        )
        .route("/metrics", get(move || async move { (METRICS, observed.metrics()) }))
}

/// Tells systemd that the service is ready.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// Tells systemd that the service stops.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}
