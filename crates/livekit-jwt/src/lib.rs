//! LiveKit tokens for users of Matrix homeservers (MSC4143, MSC4195), and delayed leaves (MSC4140) that are looked after for them.
//!
//! A client shows an `OpenID` token of its homeserver, the service asks that homeserver who it is, and gives out a token with which
//! the client joins a LiveKit room. What it speaks is what lk-jwt-service speaks, so that each can take the other's place.

mod config;
mod formula;
mod homeserver;
mod http;
mod job;
mod jobs;
mod jwt;
mod limit;
mod metrics;
mod request;
mod resp;
mod sfu;
mod sfus;
mod store;
mod valkey;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use discovery::{Discovery, SetupError};
use service::{BindError, Http, Observed, Signals, bind};
use tokio::sync::watch;

pub use config::{Config, ConfigError, DelayedLeaves, HomeserverConfig, Limits, Setup, SfuConfig};
pub use formula::Formula;
pub use jwt::{Key, KeyError};
pub use limit::Rate;
pub use store::StoreError;

use homeserver::Homeservers;
use jobs::Jobs;
use limit::Limiter;
use metrics::Metrics;
use sfu::{Sfu, api_of};
use sfus::Sfus;
use store::Store;

/// Milliseconds, since 1970 or between two times.
pub type Millis = u64;

/// The time.
fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// How many users and homeservers are held to limits at the same time.
const LIMITED: usize = 100_000;

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Other servers cannot be asked.
    #[error("federation.{0}")]
    Federation(#[from] SetupError),
    /// Delayed leaves cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else has the address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The system gives no signals.
    #[error("cannot take signals: {0}")]
    Signals(std::io::Error),
}

/// The service.
#[derive(Debug)]
pub(crate) struct Service {
    config: Config,
    homeservers: Arc<Homeservers>,
    sfus: Arc<Sfus>,
    jobs: Arc<Jobs>,
    metrics: Arc<Metrics>,
    users: Limiter<String>,
    servers: Limiter<String>,
    closing: watch::Sender<bool>,
}

impl Service {
    async fn new(setup: Setup) -> Result<Arc<Self>, StartError> {
        let Setup { config, keys } = setup;
        let homeservers = Arc::new(Homeservers {
            discovery: Arc::new(Discovery::new(&config.federation)?),
            known: config.homeservers.clone(),
        });
        let all = config.sfus.iter().zip(keys).map(|(sfu, keys)| Sfu {
            url: sfu.url.clone(),
            api: api_of(sfu.api_url.as_ref().unwrap_or(&sfu.url)),
            keys,
        });
        let sfus = Arc::new(Sfus::new(all.collect()));
        let metrics = Arc::new(Metrics::new());
        let (closing, closed) = watch::channel(false);
        let jobs = Arc::new(Jobs {
            homeservers: homeservers.clone(),
            sfus: sfus.clone(),
            metrics: metrics.clone(),
            store: Store::of(&config.delayed_leaves).await?,
            check_every: config.delayed_leaves.check_seconds * 1000,
            closing: closed,
            running: Mutex::new(HashMap::new()),
        });
        let (users, servers) =
            (Limiter::new(config.limits.user, LIMITED), Limiter::new(config.limits.homeserver, LIMITED));
        Ok(Arc::new(Self { config, homeservers, sfus, jobs, metrics, users, servers, closing }))
    }

    /// Whether a homeserver's users may begin calls.
    fn has_full_access(&self, server: &str) -> bool {
        let full = &self.config.full_access_homeservers;
        matches!(&full[..], [all] if all == "*") || full.iter().any(|name| name == server)
    }

    /// Whether a homeserver's users get tokens at all.
    fn is_served(&self, server: &str) -> bool {
        let Config { allowed_homeservers, denied_homeservers, .. } = &self.config;
        let listed = |list: &[String]| list.iter().any(|name| name == server);
        !listed(denied_homeservers) && (allowed_homeservers.is_empty() || listed(allowed_homeservers))
    }
}

impl Observed for Service {
    fn ready(&self) -> Result<(), String> {
        if *self.closing.borrow() { Err("it is shutting down".to_owned()) } else { Ok(()) }
    }

    fn metrics(&self) -> String {
        self.metrics.text()
    }

    fn stopping(&self) {
        self.closing.send_replace(true);
    }
}

/// Runs the service until it is told to stop.
pub async fn run(setup: Setup) -> Result<(), StartError> {
    let listen = config::address("listen", &setup.config.listen)?;
    let metrics = setup.config.metrics.as_ref().map(|text| config::address("metrics", text)).transpose()?;
    let service = Service::new(setup).await?;
    let signals = Signals::new().map_err(StartError::Signals)?;
    let listener = bind("listen", &listen).await?;
    let metrics = match metrics {
        Some(address) => Some(bind("metrics", &address).await?),
        None => None,
    };
    service.jobs.resume().await;
    let jobs = service.jobs.clone();
    let sharing = tokio::spawn(async move { jobs.share().await });
    tracing::info!(address = %listen, "LiveKit tokens are given out");
    let app = http::app(service.clone());
    let reload = || Err("this service reads its configuration when it starts; restart it".to_owned());
    service::run(Http { listener, app, metrics }, service, signals, reload).await;
    // It does not panic.
    let _ = sharing.await;
    Ok(())
}
