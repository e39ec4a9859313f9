//! `render` and `configure`: files for other programs.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use model::Topology;
use render::{RenderedFile, SystemdOptions, Unsupported};
use routes::Matcher;

use crate::args::{Configure, Proxy, Render, StackArguments, Systemd};
use crate::place::{self, Place};

pub(crate) fn render(what: &Render, stack: &StackArguments) -> anyhow::Result<()> {
    match what {
        Render::Synapse { out } => {
            let place = Place::find(stack)?;
            let topology = place.plan()?;
            let files = render::synapse(&topology, &place.layout);
            write(out, &files)?;
            eprintln!("wrote {} files to `{}`", files.len(), out.display());
            let pools: Vec<_> =
                topology.instances().iter().filter(|i| i.is_pool()).map(|i| i.name.as_str()).collect();
            if let [first, ..] = pools[..] {
                eprintln!(
                    "the processes of the pools {} are configured where they run: `matrix-stack configure --instance \
                     {first} --name NAME`",
                    pools.join(", ")
                );
            }
            Ok(())
        }
        Render::Nginx(to) => proxy(Place::find(stack)?, to, render::nginx),
        Render::Haproxy(to) => {
            proxy(Place::find(stack)?, to, |topology, matcher| Ok(render::haproxy(topology, matcher)))
        }
        Render::Envoy(to) => proxy(Place::find(stack)?, to, render::envoy),
        Render::Systemd(to) => systemd(to, stack),
    }
}

/// Another proxy's configuration. It holds no secrets, and that proxy runs as another user, so all may read it.
fn proxy(
    mut place: Place,
    to: &Proxy,
    render: fn(&Topology, &Matcher) -> Result<String, Unsupported>,
) -> anyhow::Result<()> {
    if let Some(listen) = &to.listen {
        place.loaded.stack.listen.address.clone_from(listen);
    }
    let topology = place.plan()?;
    let text = render(&topology, &super::routes::matcher(&topology)?)?;
    let Some(out) = &to.out else { return super::print(&text) };
    fs::write(out, text)
        .with_context(|| format!("cannot write `{}`; choose another with `--out FILE`", out.display()))
}

fn systemd(to: &Systemd, stack: &StackArguments) -> anyhow::Result<()> {
    let place = Place::find_for_system(stack)?;
    super::on_this_machine(&place)?;
    let Some(config) = place::file(stack.config.as_deref()) else {
        bail!("units need a stack file: write one with `matrix-stack init`, or name it with `--config FILE`");
    };
    let absolute = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("`{}` has no absolute path", path.display()))
    };
    let packages = match &to.packages.packages_dir {
        Some(dir) => absolute(dir)?,
        None => config::default_packages_dir(true, None, None).context("there is no default for packages")?,
    };
    let program = match &to.program {
        Some(program) => absolute(program)?,
        None => {
            std::env::current_exe().context("cannot find this program's own file; say `--program FILE`")?
        }
    };
    let options = SystemdOptions {
        name: to.name.clone(),
        user: to.user.clone(),
        program,
        config: absolute(config)?,
        packages,
        whole: to.whole,
    };
    let files = render::systemd(&place.plan()?, &place.layout, &options);
    write_for_all(&to.out, &files)?;
    eprintln!("wrote {} files to `{}`", files.len(), to.out.display());
    Ok(())
}

pub(crate) fn configure(place: &Place, arguments: &Configure) -> anyhow::Result<()> {
    let topology = place.plan()?;
    let name = arguments.name.as_deref();
    let files = render::synapse_instance(&topology, &place.layout, &arguments.instance, name)?;
    let out = arguments.out.clone().unwrap_or_else(|| place.layout.config());
    write(&out, &files)?;
    eprintln!("wrote {} files to `{}`", files.len(), out.display());
    Ok(())
}

/// Writes files that may hold what a user passed through, so they are for the owner alone.
fn write(out: &Path, files: &[RenderedFile]) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(out).with_context(|| {
        format!("cannot make the directory `{}`; choose another with `--out DIR`", out.display())
    })?;
    for file in files {
        runtime::write_file(&out.join(&file.path), file.contents.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Writes files that hold nothing of the kind, in directories below `out`.
fn write_for_all(out: &Path, files: &[RenderedFile]) -> anyhow::Result<()> {
    for file in files {
        let path = out.join(&file.path);
        let directory = path.parent().unwrap_or(out);
        fs::create_dir_all(directory).with_context(|| {
            format!("cannot make the directory `{}`; choose another with `--out DIR`", directory.display())
        })?;
        runtime::write_file(&path, file.contents.as_bytes(), 0o644)?;
    }
    Ok(())
}
