//! `serve`: one companion service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use service::Signals;

use crate::args::Serve;

pub(crate) fn serve(service: &Serve, config: Option<&Path>) -> anyhow::Result<ExitCode> {
    match service {
        Serve::Ldap => ldap(config),
    }
}

fn ldap(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let file = config.map_or_else(|| PathBuf::from("ldap.yaml"), Path::to_owned);
    let read = || -> anyhow::Result<ldap_proxy::Settings> {
        let name = file.display().to_string();
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read `{name}`; `--config FILE` names another file"))?;
        let settings: ldap_proxy::Settings = config::document(&name, &text)?;
        settings.check().map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        Ok(settings)
    };
    let settings = read()?;
    super::block_on(async {
        let reload = || read().map_err(|error| format!("{error:#}"));
        ldap_proxy::run(settings, Signals::new()?, reload).await?;
        Ok(ExitCode::SUCCESS)
    })
}
