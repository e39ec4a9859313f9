//! `serve`: one companion service, with a file of its own.

use std::path::Path;

use anyhow::Context as _;

use crate::args::{Serve, StackArguments};

/// Runs a service until it is told to stop.
pub(crate) fn serve(service: &Serve, stack: &StackArguments) -> anyhow::Result<()> {
    let file = stack.config.as_deref();
    match service {
        Serve::Alertmanager { check } => alertmanager(needed(file)?, *check),
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
