//! Every process of a stack, as the supervisor takes it: what it is, and all that starting it takes.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Address, CompanionKind, Instance, Layout, PlannedCompanion, Stack, Topology};
use nix::sys::signal::Signal;

use crate::install::{self, InstallOptions, Packages};
use crate::launch::{self, Launcher, Spec, User};
use crate::postgres::{self, Cluster};
use crate::proc;
use crate::progress::Event;
use crate::supervisor::{About, Kind, Teller};
use crate::up::{UpError, UpOptions, system};
use crate::valkey::Valkey;

/// What Synapse runs with, and what else is there.
pub(crate) struct Programs {
    python: PathBuf,
    pub(crate) synapse: String,
    /// Nothing of ours if PostgreSQL, Valkey and Synapse are all the user's own.
    pub(crate) packages: Option<Packages>,
}

/// Finds what the processes run, and installs what is missing.
pub(crate) async fn programs(
    options: &UpOptions,
    launcher: &Launcher,
    teller: &Teller,
) -> Result<Programs, UpError> {
    let stack = options.topology.stack().clone();
    let install = InstallOptions::new(&options.packages, launcher.clone());
    // Dropped with this future, when the start is interrupted.
    let _cancel = install.cancel_on_drop();
    let teller = teller.clone();
    let find = move || {
        find_programs(&stack, &install, &mut |step| teller.tell(Event::Step { text: step.to_string() }))
    };
    match tokio::task::spawn_blocking(find).await {
        Ok(programs) => programs,
        Err(error) => Err(system("install")(io::Error::other(error))),
    }
}

/// What a stack runs with, installed first where it is missing. Blocks.
pub(crate) fn find_programs(
    stack: &Stack,
    install: &InstallOptions,
    tell: &mut dyn FnMut(install::Step),
) -> Result<Programs, UpError> {
    let own = stack.synapse.python.clone();
    let all_external = own.is_some() && stack.database.external.is_some() && stack.redis.external.is_some();
    mas_program(stack)?;
    let packages = if all_external { None } else { Some(install::ensure(install, tell)?) };
    let (python, synapse) = match (own, &packages) {
        (Some(python), _) => {
            let version = install::check_python(&python, &install.launcher)?;
            (python, version)
        }
        (None, Some(packages)) => (packages.python.clone(), packages.synapse_version.clone()),
        (None, None) => unreachable!("packages are installed unless the user brings Synapse"),
    };
    Ok(Programs { python, synapse, packages })
}

/// The program of the fork server, among the configuration files.
pub(crate) fn fork_server_program(layout: &Layout) -> PathBuf {
    layout.config().join("forkserver.py")
}

/// So many connections more than the stack needs at its start may PostgreSQL take, so that processes can be added while it
/// runs. Each costs some 20 KiB of memory.
const ROOM: u32 = 100;

/// How many connections the database takes as long as it runs.
pub(crate) fn connections(topology: &Topology) -> u32 {
    let database = &topology.stack().database;
    let grows = database.external.is_none() && database.max_connections.is_none();
    topology.max_connections() + if grows { ROOM } else { 0 }
}

/// PostgreSQL, Valkey and the fork server, as far as the stack brings them.
pub(crate) fn services(
    options: &UpOptions,
    programs: &Programs,
    launcher: &Launcher,
    database_password: &Path,
) -> Result<Vec<(About, Kind)>, UpError> {
    let UpOptions { topology, layout, .. } = options;
    let stack = topology.stack();
    let user = launch::unprivileged_user()?;
    let mut units = Vec::new();
    if let Some(packages) = &programs.packages {
        if stack.database.external.is_none() {
            units.push(postgres_unit(options, packages, user.clone(), launcher, database_password)?);
        }
        if stack.redis.external.is_none() {
            let valkey = Valkey::new(packages, layout, user, launcher.clone());
            let about = about("valkey", &["valkey-server"], Signal::SIGTERM);
            let address = Some(Address::Unix { path: layout.valkey_socket() }.to_string());
            units.push((About { address, ..about }, Kind::Valkey(Arc::new(valkey))));
        }
    }
    if options.fork_server {
        // Synapse takes its working directory as the default of some paths.
        let spec = python(programs, layout).arg(fork_server_program(layout)).death_signal(Signal::SIGTERM);
        let about = about("forkserver", &["forkserver.py"], Signal::SIGTERM);
        units.push((about, Kind::ForkServer { spec: Box::new(spec) }));
    }
    Ok(units)
}

fn postgres_unit(
    options: &UpOptions,
    packages: &Packages,
    user: Option<User>,
    launcher: &Launcher,
    database_password: &Path,
) -> Result<(About, Kind), UpError> {
    let UpOptions { topology, layout, .. } = options;
    let cluster = Arc::new(Cluster::new(packages, layout, user, launcher.clone()));
    let settings = postgres_settings(topology);
    let password = config::secrets::read(database_password)?.expose().to_owned();
    let mas = topology.companion(CompanionKind::Mas.name()).is_some();
    let about = about("postgres", &["bin/postgres"], Signal::SIGINT);
    let address = Some(Address::Unix { path: layout.postgres_socket_dir() }.to_string());
    Ok((About { address, ..about }, Kind::Postgres { cluster, settings, password, mas }))
}

pub(crate) fn postgres_settings(topology: &Topology) -> postgres::Settings {
    postgres::Settings {
        max_connections: connections(topology),
        // Unknown, PostgreSQL gets the settings of a small machine.
        memory_bytes: proc::memory_bytes().unwrap_or(1 << 30),
    }
}

/// A Synapse process that is started by itself.
pub(crate) fn synapse_alone(instance: &Instance, programs: &Programs, layout: &Layout) -> Spec {
    python(programs, layout).args(["-m", instance.app.module()]).args(render::config_args(layout, instance))
}

/// One of Synapse's processes.
pub(crate) fn synapse(instance: &Instance, programs: &Programs, layout: &Layout) -> (About, Kind) {
    let args = render::config_args(layout, instance);
    let alone = synapse_alone(instance, programs, layout);
    let about = About {
        name: instance.name.clone(),
        group: instance.group.clone(),
        roles: instance.roles.iter().map(ToString::to_string).collect(),
        address: Some(instance.client.as_ref().unwrap_or(&instance.private).to_string()),
        // As its title has it; before it has set that, as the fork server is called; by itself, as it was started.
        marks: vec![
            format!("synapse: {}", instance.name),
            "forkserver.py".to_owned(),
            instance.app.module().to_owned(),
        ],
        stop: Signal::SIGTERM as i32,
    };
    (about, Kind::Synapse { instance: Box::new(instance.clone()), args, alone: Box::new(alone) })
}

/// The program of the Matrix Authentication Service, where the stack runs it.
fn mas_program(stack: &Stack) -> Result<Option<PathBuf>, UpError> {
    const NAME: &str = "mas-cli";
    let Some(mas) = stack.auth.mas.as_ref().filter(|mas| mas.run) else { return Ok(None) };
    let found = match &mas.program {
        Some(program) => program.is_file().then(|| program.clone()),
        None => launch::find_programs(NAME, &std::env::var_os("PATH").unwrap_or_default()).into_iter().next(),
    };
    let program = mas.program.clone().unwrap_or_else(|| NAME.into());
    found.map(Some).ok_or(UpError::NoMas { program })
}

/// What a companion is started with.
pub(crate) fn companion_alone(companion: &PlannedCompanion, stack: &Stack, layout: &Layout) -> Spec {
    let name = companion.kind.name();
    let file = layout.config().join(render::companion_file(companion.kind));
    if companion.kind == CompanionKind::Mas {
        // Should it have gone since it was looked for, the start says so.
        let program = mas_program(stack).ok().flatten().unwrap_or_else(|| "mas-cli".into());
        // It brings its database up to date by itself, and puts clients and providers of the file into it.
        let spec = Spec::new(program)
            .args(["server", "--config"])
            .arg(file)
            .directory(layout.data_dir())
            .umask(0o077)
            .death_signal(Signal::SIGTERM);
        let of_its_own = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("MAS_"));
        return std::env::vars_os().map(|(name, _)| name).filter(of_its_own).fold(spec, Spec::env_remove);
    }
    // This very program, even if its file was replaced or removed since it was started.
    Spec::new("/proc/self/exe")
        .args(["serve", name, "--config"])
        .arg(file)
        // As systemd says it.
        .env("STATE_DIRECTORY", layout.companions())
        .directory(layout.data_dir())
        .umask(0o077)
        .death_signal(Signal::SIGTERM)
}

/// One of the services beside Synapse.
pub(crate) fn companion(companion: &PlannedCompanion, stack: &Stack, layout: &Layout) -> (About, Kind) {
    let name = companion.kind.name();
    let file = layout.config().join(render::companion_file(companion.kind));
    let mark = match companion.kind {
        CompanionKind::Mas => format!("server --config {}", file.display()),
        _ => format!("serve {name}"),
    };
    let about = about(name, &[&mark], Signal::SIGTERM);
    let address = Some(companion.address.as_ref().unwrap_or(&companion.private).to_string());
    let spec = Box::new(companion_alone(companion, stack, layout));
    (About { address, ..about }, Kind::Companion { companion: Box::new(companion.clone()), spec })
}

/// Python with Synapse, free of what the user's environment says to Python and Synapse.
fn python(programs: &Programs, layout: &Layout) -> Spec {
    let spec = Spec::new(&programs.python).arg("-I").directory(layout.data_dir()).umask(0o077);
    std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            name.to_str().is_some_and(|name| name.starts_with("PYTHON") || name.starts_with("SYNAPSE_"))
        })
        .fold(spec, Spec::env_remove)
}

fn about(name: &str, marks: &[&str], stop: Signal) -> About {
    About {
        name: name.to_owned(),
        group: name.to_owned(),
        roles: vec![name.to_owned()],
        address: None,
        marks: marks.iter().map(ToString::to_string).collect(),
        stop: stop as i32,
    }
}
