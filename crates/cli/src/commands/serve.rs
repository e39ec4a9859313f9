//! `serve`: one companion service, with a file of its own.

use std::path::Path;

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::args::{Serve, StackArguments};

/// Runs a service until it is told to stop.
pub(crate) fn serve(service: &Serve, stack: &StackArguments) -> anyhow::Result<()> {
    let file = stack.config.as_deref();
    match service {
        Serve::LivekitJwt => livekit_jwt(file),
    }
}

fn livekit_jwt(file: Option<&Path>) -> anyhow::Result<()> {
    let setup = match file {
        Some(file) => livekit_jwt::Setup::new(read(file)?)?,
        None => livekit_jwt::Setup::from_environment(|name| std::env::var(name).ok())?,
    };
    Ok(runtime()?.block_on(livekit_jwt::run(setup))?)
}

/// A service's file.
fn read<T: DeserializeOwned + JsonSchema>(file: &Path) -> anyhow::Result<T> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{name}`"))?;
    Ok(config::document(&name, &text)?)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}
