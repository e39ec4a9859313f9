//! `render` and `configure`: files for other programs.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use model::Topology;
use render::{RenderedFile, Unsupported};
use routes::Matcher;

use crate::args::{Configure, Proxy, Render};
use crate::place::Place;

pub(crate) fn render(place: Place, what: &Render) -> anyhow::Result<()> {
    match what {
        Render::Synapse { out } => {
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
        Render::Nginx(to) => proxy(place, to, render::nginx),
        Render::Haproxy(to) => proxy(place, to, |topology, matcher| Ok(render::haproxy(topology, matcher))),
        Render::Envoy(to) => proxy(place, to, render::envoy),
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

pub(crate) fn configure(place: &Place, arguments: &Configure) -> anyhow::Result<()> {
    let topology = place.plan()?;
    let name = arguments.name.as_deref();
    let files = render::synapse_instance(&topology, &place.layout, &arguments.instance, name)?;
    let out = arguments.out.clone().unwrap_or_else(|| place.layout.config());
    write(&out, &files)?;
    config::secrets::write_pgpass(topology.stack(), &place.layout)?;
    eprintln!("wrote {} files to `{}`", files.len(), out.display());
    if let Some(seconds) = arguments.wait_for_main
        && arguments.instance != topology.main().name
    {
        // Late is better than never: without main, a process still does most of its work.
        let limit = Duration::from_secs(seconds.into());
        if let Err(error) =
            super::block_on(async { Ok(runtime::wait_until_healthy(&topology.main().private, limit).await) })?
        {
            eprintln!("main is not healthy yet ({error}); not waiting any longer");
        }
    }
    Ok(())
}

/// Writes files that may hold what a user passed through, so they are for the owner alone.
fn write(out: &Path, files: &[RenderedFile]) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(out).with_context(|| {
        format!("cannot make the directory `{}`; choose another with `--out DIR`", out.display())
    })?;
    for file in files {
        let path = out.join(&file.path);
        let write = || -> std::io::Result<()> {
            // A new file takes the old one's place whole: a process that starts meanwhile reads one or the other.
            let temporary = path.with_extension("new");
            let _ = fs::remove_file(&temporary);
            let mut handle =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            handle.write_all(file.contents.as_bytes())?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}
