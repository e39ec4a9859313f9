//! `serve`: one companion service, with a file of its own.

use std::path::Path;

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use service::Signals;

use crate::args::{Serve, StackArguments};

/// Runs a service until it is told to stop.
pub(crate) fn serve(service: &Serve, stack: &StackArguments) -> anyhow::Result<()> {
    let file = stack.config.as_deref();
    match service {
        Serve::Alertmanager { check } => alertmanager(needed(file)?, *check),
        Serve::SentryWebhook => sentry_webhook(file),
        Serve::Webhook => webhook(file),
    }
}

fn alertmanager(file: &Path, check: bool) -> anyhow::Result<()> {
    if check {
        hooks::alertmanager::Config::read(file, |name| std::env::var(name).ok())?;
        return Ok(());
    }
    super::block_on(async { Ok(hooks::serve::alertmanager(file).await?) })
}

fn needed(file: Option<&Path>) -> anyhow::Result<&Path> {
    file.context("`--config FILE` is missing: name the service's configuration")
}

fn sentry_webhook(file: Option<&Path>) -> anyhow::Result<()> {
    use hooks::sentry::{self, Config};
    let read = || -> anyhow::Result<_> {
        let Some(file) = file else { return Ok(Config::from_env(environment)?) };
        let config: Config = document(file)?;
        let settings = config.settings().with_context(|| file.display().to_string())?;
        Ok((config, settings))
    };
    let (config, settings) = read()?;
    super::block_on(async {
        let reload = || read().map_err(|error| format!("{error:#}"));
        sentry::run(config, settings, Signals::new()?, reload).await?;
        Ok(())
    })
}

fn webhook(file: Option<&Path>) -> anyhow::Result<()> {
    use hooks::webhook::{self, Config};
    let read = || -> anyhow::Result<_> {
        let Some(file) = file else { return Ok(Config::from_env(environment)?) };
        let config: Config = document(file)?;
        let settings = config.settings().with_context(|| file.display().to_string())?;
        Ok((config, settings))
    };
    let (config, settings) = read()?;
    super::block_on(async {
        let reload = || read().map_err(|error| format!("{error:#}"));
        webhook::run(config, settings, Signals::new()?, reload).await?;
        Ok(())
    })
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A service's file.
fn document<T: DeserializeOwned + JsonSchema>(file: &Path) -> anyhow::Result<T> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{name}`"))?;
    Ok(config::document(&name, &text)?)
}
