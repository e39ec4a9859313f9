//! What runs a service around its handlers.

use std::path::Path;
use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use service::{Observed, Signals};

use crate::alertmanager::{self, Alertmanager, Config};
use crate::courier::{Courier, StartError};

/// How a service with a courier is.
#[derive(Debug)]
pub struct Observation {
    courier: Courier,
    registry: Registry,
}

impl Observation {
    /// Of this courier, with the metrics of a registry, which has the courier's own.
    pub fn new(courier: Courier, registry: Registry) -> Self {
        Self { courier, registry }
    }
}

impl Observed for Observation {
    fn ready(&self) -> Result<(), String> {
        self.courier.ready()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

/// Why a service does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] alertmanager::Error),
    /// Its account or its store.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Where it listens.
    #[error(transparent)]
    Bind(#[from] service::BindError),
    /// Its signals.
    #[error("signals cannot be taken: {0}")]
    Signals(#[from] std::io::Error),
}

/// Runs `serve alertmanager` until it is told to stop.
///
/// # Errors
/// It cannot begin.
pub async fn alertmanager(file: &Path) -> Result<(), Error> {
    let variable = |name: &str| std::env::var(name).ok();
    let signals = Signals::new()?;
    let config = Config::read(file, variable)?;
    let courier = Courier::start("alertmanager", &config.matrix(), &config.queue(variable))?;
    let handler = Alertmanager::new(&config, &courier)?;
    let mut registry = Registry::default();
    courier.register(&mut registry);
    handler.register(&courier, &mut registry);
    let observed = Arc::new(Observation::new(courier.clone(), registry));
    let listener = service::bind("listen", &config.listen().map_err(alertmanager::Error::from)?).await?;
    let metrics = match config.metrics().map_err(alertmanager::Error::from)? {
        Some(address) => Some(service::bind("metrics", &address).await?),
        None => None,
    };
    let shown = observed.clone();
    let app = handler.router(move || metrics_response(&*shown));
    let health = service::observation(observed.clone());
    // Only `/health` and `/ready`: where metrics are, the configuration says.
    let app = axum::Router::new()
        .route("/health", axum::routing::any_service(health.clone()))
        .route("/ready", axum::routing::any_service(health))
        .fallback_service(app);
    let file = file.to_owned();
    let reload = move || {
        let config = Config::read(&file, variable).map_err(|error| error.to_string())?;
        courier.reload(&config.matrix()).map_err(|error| error.to_string())?;
        handler.reload(&config).map_err(|error| error.to_string())
    };
    tracing::info!("ready");
    service::run(service::Http { listener, app, metrics }, observed, signals, reload).await;
    Ok(())
}

fn metrics_response(observed: &impl Observed) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], observed.metrics()).into_response()
}
