//! The processes of a stack one by one, for a supervisor other than `up`, such as systemd.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{CompanionKind, Layout, PlannedCompanion, Topology};
use tokio::time::sleep;

use crate::install::{InstallOptions, Packages};
use crate::launch::{self, Launcher, Spec};
use crate::postgres::Cluster;
use crate::progress::{Event, Progress};
use crate::state::{self, Lock};
use crate::units::{Programs, companion_alone, find_programs, postgres_settings, synapse_alone};
use crate::up::UpError;
use crate::valkey::Valkey;

/// How long PostgreSQL may take until it answers: it replays its log after a crash.
const DATABASE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// Installs what a stack runs, and makes its directories and secrets. Blocks, for minutes if it has to.
pub fn install(
    topology: &Topology,
    layout: &Layout,
    packages: &Path,
    progress: &Arc<dyn Progress>,
) -> Result<(), UpError> {
    let stack = topology.stack();
    let options = InstallOptions::new(packages, Launcher::this_program());
    find_programs(stack, &options, &mut |step| progress.event(&Event::Step { text: step.to_string() }))?;
    state::prepare_directories(layout, &layout.media(stack))?;
    config::secrets::ensure(stack, layout)?;
    Ok(())
}

/// Turns this process into one of the stack's: `postgres` or `valkey`, where the stack brings them, or an instance of the
/// topology. Each is given what it needs first: PostgreSQL its data directory, a Synapse process its configuration, and
/// main its database. Returns only if that fails.
pub async fn run(
    topology: &Topology,
    layout: &Layout,
    packages: &Path,
    name: &str,
    progress: &Arc<dyn Progress>,
) -> Result<Infallible, UpError> {
    let alone = Alone { topology, layout };
    let names = alone.names();
    if !names.iter().any(|known| known == name) {
        return Err(UpError::NoProcess { name: name.to_owned(), names });
    }
    install(topology, layout, packages, progress)?;
    Lock::share(layout)?;
    let options = InstallOptions::new(packages, Launcher::this_program());
    let programs = find_programs(topology.stack(), &options, &mut |_| ())?;
    let spec = match (name, &programs.packages) {
        ("postgres", Some(packages)) => alone.postgres(packages)?,
        ("valkey", Some(packages)) => alone.valkey(packages)?,
        _ => match topology.companion(name) {
            Some(companion) => alone.companion(companion)?,
            None => alone.synapse(name, &programs).await?,
        },
    };
    Err(launch::become_program(&spec).into())
}

struct Alone<'a> {
    topology: &'a Topology,
    layout: &'a Layout,
}

impl Alone<'_> {
    fn names(&self) -> Vec<String> {
        let stack = self.topology.stack();
        let brought =
            [("postgres", stack.database.external.is_none()), ("valkey", stack.redis.external.is_none())];
        let brought = brought.into_iter().filter_map(|(name, is_ours)| is_ours.then_some(name));
        brought.chain(self.topology.names()).map(str::to_owned).collect()
    }

    fn cluster(&self, packages: &Packages) -> Result<Cluster, UpError> {
        let user = launch::unprivileged_user()?;
        Ok(Cluster::new(packages, self.layout, user, Launcher::this_program()))
    }

    fn postgres(&self, packages: &Packages) -> Result<Spec, UpError> {
        let cluster = self.cluster(packages)?;
        cluster.prepare(&postgres_settings(self.topology))?;
        Ok(cluster.spec())
    }

    fn valkey(&self, packages: &Packages) -> Result<Spec, UpError> {
        let user = launch::unprivileged_user()?;
        let valkey = Valkey::new(packages, self.layout, user, Launcher::this_program());
        valkey.prepare()?;
        Ok(valkey.spec())
    }

    fn companion(&self, companion: &PlannedCompanion) -> Result<Spec, UpError> {
        for file in render::companions(self.topology, self.layout) {
            state::write_private(&self.layout.config().join(&file.path), file.contents.as_bytes())?;
        }
        if companion.kind == CompanionKind::Mas {
            state::remove_socket(&companion.private);
        }
        Ok(companion_alone(companion, self.topology.stack(), self.layout))
    }

    async fn synapse(&self, name: &str, programs: &Programs) -> Result<Spec, UpError> {
        let Self { topology, layout } = self;
        let instance = topology
            .instance(name)
            .ok_or_else(|| UpError::NoProcess { name: name.to_owned(), names: self.names() })?;
        for file in render::synapse_instance(topology, layout, name, None).into_iter().flatten() {
            state::write_private(&layout.config().join(&file.path), file.contents.as_bytes())?;
        }
        state::remove_own_sockets(instance);
        if let Some(packages) = &programs.packages
            && instance.is_main()
            && topology.stack().database.external.is_none()
        {
            self.provision(packages).await?;
        }
        Ok(synapse_alone(instance, programs, layout))
    }

    /// Waits for PostgreSQL, and makes Synapse's role and database in it.
    async fn provision(&self, packages: &Packages) -> Result<(), UpError> {
        let cluster = self.cluster(packages)?;
        let deadline = Instant::now() + DATABASE;
        while let Err(error) = cluster.ready().await {
            if Instant::now() > deadline {
                return Err(error.into());
            }
            sleep(POLL).await;
        }
        let password = &self.layout.secret_paths(self.topology.stack()).database_password.path;
        let mas = self.topology.companion(CompanionKind::Mas.name()).is_some();
        Ok(cluster.provision(config::secrets::read(password)?.expose(), mas).await?)
    }
}
