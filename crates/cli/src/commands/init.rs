//! `init`: a commented stack.yaml to start from.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use model::{Preset, ServerName};

use crate::args::Init;

pub(crate) fn init(arguments: &Init, preset: Option<Preset>) -> anyhow::Result<()> {
    let name = ServerName::try_from(arguments.server_name.clone())?;
    let text = config::init_yaml(&name, preset);
    let out = &arguments.out;
    if out == Path::new("-") {
        return super::print(&text);
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(out).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            anyhow!("`{}` is already there; edit it, or write elsewhere with `--out FILE`", out.display())
        } else {
            anyhow!("cannot write `{}`: {error}; choose another place with `--out FILE`", out.display())
        }
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write `{}`", out.display()))?;
    // The first line of the file points editors at the schema beside it, for completion and checks while typing.
    let schema = out.with_file_name(config::SCHEMA_FILE);
    let text = format!("{}\n", serde_json::to_string_pretty(&config::schema())?);
    std::fs::write(&schema, text).with_context(|| format!("cannot write `{}`", schema.display()))?;
    eprintln!("wrote `{}`; edit it, then run `matrix-stack check` and `matrix-stack up`", out.display());
    Ok(())
}
