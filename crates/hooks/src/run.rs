//! What every service here has around it.

use std::sync::Arc;

use axum::Router;
use model::{ListenAddress, NotAnAddress};
use prometheus_client::registry::Registry;
use service::{BindError, Http, Signals, bind};

use crate::serve::Observation;
use crate::webhook::ConfigError;
use crate::{Courier, Matrix, Queue, Requests, StartError, Store};

/// Why a service cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// An address.
    #[error("`{field}`: {error}; write an IP address and a port, or `unix:` and a path")]
    Address {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        error: NotAnAddress,
    },
    /// Nothing can listen there.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Nothing could be delivered.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What the configurations of the services have in common.
pub(crate) struct Common<'a> {
    pub(crate) listen: &'a str,
    pub(crate) metrics: Option<&'a str>,
    pub(crate) matrix: &'a Matrix,
    pub(crate) queue: Option<&'a Queue>,
}

/// What one service is called, and what its configuration has of the common part.
pub(crate) struct Kind<C> {
    /// To the store, which keeps services apart.
    pub(crate) name: &'static str,
    /// What the names of its own metrics begin with.
    pub(crate) prefix: &'static str,
    pub(crate) common: fn(&C) -> Common<'_>,
}

/// Serves until a signal ends it. `make` makes the handlers from the store, and the way to give them other settings; `reload` reads the
/// configuration again.
pub(crate) async fn run<C, S, T: FnMut(S)>(
    kind: Kind<C>,
    config: &C,
    signals: Signals,
    make: impl FnOnce(Store) -> (Router, T),
    mut reload: impl FnMut() -> Result<(C, S), String>,
) -> Result<(), RunError> {
    let Common { listen, metrics, matrix, queue } = (kind.common)(config);
    let usual = || Queue::usual(kind.name, |name| std::env::var(name).ok());
    let courier = Courier::start(kind.name, matrix, &queue.cloned().unwrap_or_else(usual))?;
    let (app, mut take) = make(courier.store().clone());
    let parse = |field: &'static str, text: &str| {
        text.parse::<ListenAddress>().map_err(|error| RunError::Address { field, error })
    };
    let listener = bind("listen", &parse("listen", listen)?).await?;
    let metrics = match metrics {
        Some(address) => Some(bind("metrics", &parse("metrics", address)?).await?),
        None => None,
    };
    let (mut registry, requests) = (Registry::default(), Requests::default());
    courier.register(&mut registry);
    requests.register(registry.sub_registry_with_prefix(kind.prefix));
    let http = Http { listener, app: requests.count(app), metrics };
    let observed = Arc::new(Observation::new(courier.clone(), registry));
    let reload = || {
        let (config, settings) = reload()?;
        courier.reload((kind.common)(&config).matrix).map_err(|error| error.to_string())?;
        take(settings);
        Ok(())
    };
    service::run(http, observed, signals, reload).await;
    Ok(())
}

/// The account that a peer's environment variables name.
pub(crate) fn account_from_env(
    var: impl Fn(&str) -> Option<String>,
    url: &str,
    user: &str,
) -> Result<Matrix, ConfigError> {
    let set = |name: &str| var(name).filter(|value| !value.trim().is_empty());
    let missing = |setting: &str, mend| ConfigError {
        setting: setting.to_owned(),
        reason: "it is not set".to_owned(),
        mend,
    };
    Ok(Matrix {
        homeserver_url: set(url).ok_or_else(|| missing(url, "set it to the URL of the homeserver"))?,
        access_token_file: None,
        access_token: Some(set("MATRIX_TOKEN").ok_or_else(|| {
            missing("MATRIX_TOKEN", "set it to an access token of the bot: passwords are not taken")
        })?),
        user_id: set(user),
        proxy: set("PROXY"),
    })
}

/// Where messages wait unless `STORE` says it: in the directory that systemd gives the service, or in the working directory.
pub(crate) fn queue_from_env(var: impl Fn(&str) -> Option<String>, name: &str) -> Queue {
    let set = |name: &str| var(name).filter(|value| !value.is_empty());
    Queue::at(set("STORE").unwrap_or_else(|| {
        let directory = set("STATE_DIRECTORY").unwrap_or_else(|| ".".to_owned());
        format!("{directory}/{name}.db")
    }))
}
