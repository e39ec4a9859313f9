//! `serve`: one companion service, with a file of its own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use model::{ListenAddress, Stack};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use service::documents::{Documents, Table};
use service::{Http, Signals, bind};

use super::block_on;
use crate::args::{Serve, StackArguments};
use crate::place::load;

/// Runs a service until it is told to stop.
pub(crate) fn serve(service: &Serve, stack: &StackArguments) -> anyhow::Result<()> {
    let file = stack.config.as_deref();
    match service {
        Serve::LivekitJwt => livekit_jwt(file),
        Serve::WellKnown => well_known(file),
        Serve::Ldap => ldap(file),
        Serve::Alertmanager { check } => alertmanager(needed(file)?, *check),
        Serve::SentryWebhook => sentry_webhook(file),
        Serve::Webhook => webhook(file),
    }
}

fn livekit_jwt(file: Option<&Path>) -> anyhow::Result<()> {
    let setup = match file {
        Some(file) => livekit_jwt::Setup::new(read(file)?)?,
        None => livekit_jwt::Setup::from_environment(environment)?,
    };
    block_on(async { Ok(livekit_jwt::run(setup).await?) })
}

/// The documents of a stack, read again by SIGHUP.
fn well_known(file: Option<&Path>) -> anyhow::Result<()> {
    let stack = load(file)?.stack;
    let listen: ListenAddress =
        stack.well_known.listen.parse().map_err(|error| anyhow!("well_known.listen: {error}"))?;
    let documents = Arc::new(Documents::new(table(&stack)));
    let reload = || {
        let stack = load(file).map_err(|error| error.to_string())?.stack;
        documents.replace(table(&stack));
        Ok(())
    };
    block_on(async {
        let signals = Signals::new().context("cannot take signals")?;
        let listener = bind("well_known.listen", &listen).await?;
        let http = Http { listener, app: documents.app(), metrics: None };
        service::run(http, documents.clone(), signals, reload).await;
        Ok(())
    })
}

fn ldap(file: Option<&Path>) -> anyhow::Result<()> {
    let file = file.unwrap_or(Path::new("ldap.yaml"));
    let read = || -> anyhow::Result<ldap_proxy::Settings> {
        let settings: ldap_proxy::Settings = self::read(file)?;
        settings.check().map_err(|error| anyhow!("{}: {error}", file.display()))?;
        Ok(settings)
    };
    let settings = read()?;
    block_on(async {
        let reload = || read().map_err(|error| format!("{error:#}"));
        Ok(ldap_proxy::run(settings, Signals::new()?, reload).await?)
    })
}

fn alertmanager(file: &Path, check: bool) -> anyhow::Result<()> {
    if check {
        hooks::alertmanager::Config::read(file, environment)?;
        return Ok(());
    }
    block_on(async { Ok(hooks::serve::alertmanager(file).await?) })
}

fn needed(file: Option<&Path>) -> anyhow::Result<&Path> {
    file.context("`--config FILE` is missing: name the service's configuration")
}

fn sentry_webhook(file: Option<&Path>) -> anyhow::Result<()> {
    use hooks::sentry::{self, Config};
    let read = || hooked(file, || Config::from_env(environment), Config::settings);
    let (config, settings) = read()?;
    let reload = || read().map_err(|error| format!("{error:#}"));
    block_on(async { Ok(sentry::run(config, settings, Signals::new()?, reload).await?) })
}

fn webhook(file: Option<&Path>) -> anyhow::Result<()> {
    use hooks::webhook::{self, Config};
    let read = || hooked(file, || Config::from_env(environment), Config::settings);
    let (config, settings) = read()?;
    let reload = || read().map_err(|error| format!("{error:#}"));
    block_on(async { Ok(webhook::run(config, settings, Signals::new()?, reload).await?) })
}

/// The configuration of a service of webhooks and what it is made of: from its file, else from the environment.
fn hooked<C, S, E>(
    file: Option<&Path>,
    from_env: impl FnOnce() -> Result<(C, S), E>,
    settings: impl FnOnce(&C) -> Result<S, E>,
) -> anyhow::Result<(C, S)>
where
    C: DeserializeOwned + JsonSchema,
    E: std::error::Error + Send + Sync + 'static,
{
    let Some(file) = file else { return Ok(from_env()?) };
    let config: C = read(file)?;
    let settings = settings(&config).with_context(|| file.display().to_string())?;
    Ok((config, settings))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Paths, and what stands there.
fn table(stack: &Stack) -> Table {
    let documents = routes::well_known(stack).into_iter();
    Table {
        documents: documents
            .map(|(which, document)| {
                (format!("/.well-known/matrix/{}", which.segment()), document.to_string())
            })
            .collect(),
        caching: routes::well_known_caching(stack),
        headers: &routes::answers::CORS,
        preflight_max_age: routes::answers::PREFLIGHT_MAX_AGE,
    }
}

/// A service's file.
fn read<T: DeserializeOwned + JsonSchema>(file: &Path) -> anyhow::Result<T> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{name}`"))?;
    Ok(config::document(&name, &text)?)
}
