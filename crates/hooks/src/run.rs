//! What every service here has around it.

use std::sync::Arc;

use axum::Router;
use model::{ListenAddress, NotAnAddress};
use prometheus_client::registry::Registry;
use service::{BindError, Http, Signals, bind};

use crate::serve::Observation;
use crate::webhook::ConfigError;
use crate::{Courier, Matrix, Queue, Requests, StartError};

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

/// Where a service listens.
pub(crate) struct Addresses<'a> {
    pub(crate) listen: &'a str,
    pub(crate) metrics: Option<&'a str>,
}

/// Serves until a signal ends it. `prefix` is that of the service's own metrics.
pub(crate) async fn run(
    prefix: &'static str,
    addresses: Addresses<'_>,
    app: Router,
    courier: Courier,
    signals: Signals,
    reload: impl FnMut() -> Result<(), String>,
) -> Result<(), RunError> {
    let parse = |field: &'static str, text: &str| {
        text.parse::<ListenAddress>().map_err(|error| RunError::Address { field, error })
    };
    let listener = bind("listen", &parse("listen", addresses.listen)?).await?;
    let metrics = match addresses.metrics {
        Some(address) => Some(bind("metrics", &parse("metrics", address)?).await?),
        None => None,
    };
    let (mut registry, requests) = (Registry::default(), Requests::default());
    courier.register(&mut registry);
    requests.register(registry.sub_registry_with_prefix(prefix));
    let http = Http { listener, app: requests.count(app), metrics };
    service::run(http, Arc::new(Observation::new(courier, registry)), signals, reload).await;
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
