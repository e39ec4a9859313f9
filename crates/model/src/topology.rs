//! The plan of a stack: which Synapse processes exist, what each does and where it listens.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::problem::describe_writers;
use crate::{Balance, Kind, Lookup, PlannedCompanion, PlannedMas, Pool, Preset, ROLES, Role, Stack, Stream};

/// Where a listener listens, and where others reach it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged)]
pub enum Address {
    /// A unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
    /// A TCP port.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The program that a Synapse process runs (`worker_app`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum App {
    /// `synapse.app.homeserver`, the main process.
    Main,
    /// `synapse.app.generic_worker`.
    Generic,
    /// `synapse.app.media_repository`: a generic worker with `enable_media_repo: true`.
    Media,
}

impl App {
    /// The Python module that runs it.
    pub fn module(self) -> &'static str {
        match self {
            Self::Main => "synapse.app.homeserver",
            Self::Generic => "synapse.app.generic_worker",
            Self::Media => "synapse.app.media_repository",
        }
    }
}

/// A group of like workers, after preset and `workers` were put together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The roles of each instance, in the order of [`ROLES`].
    pub roles: Vec<Role>,
    /// How many instances it has, or begins with where it is a pool; at least one.
    pub count: u16,
    /// How many it may have at most; like `count` where it is no pool.
    pub max_count: u16,
    /// The database connections of each instance.
    pub pool: Pool,
    /// Factor on the size of each cache of these instances.
    pub cache_factor: Option<f64>,
    /// Synapse options for these instances alone.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// How many like processes stand behind a pool's name, and how they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Replicas {
    /// How many run at first, at least one.
    pub count: u16,
    /// How many may run, at least as many.
    pub max: u16,
    /// How they are found.
    pub lookup: Lookup,
}

/// One Synapse process, or a pool: any number of like processes behind one name, which come and go at run time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Instance {
    /// Its name, such as `sync_2`; the main process is `main`, a pool is called like its group. Unique, and stable while
    /// counts change.
    pub name: String,
    /// The group that it belongs to; `main` for the main process.
    pub group: String,
    /// The roles that it carries, in the order of [`ROLES`].
    pub roles: Vec<Role>,
    /// The program.
    pub app: App,
    /// Where it takes clients' and other servers' requests (or media requests), if it takes any.
    pub client: Option<Address>,
    /// Where it answers health and metrics, and replication if [`Instance::replication`] says so.
    pub private: Address,
    /// Whether the private listener serves replication: main, and every stream writer.
    pub replication: bool,
    /// The streams that it writes.
    pub writes: Vec<Stream>,
    /// Synapse's `enable_media_repo`.
    pub enable_media_repo: bool,
    /// Database connections.
    pub pool: Pool,
    /// Factor on the size of each cache, where it differs from the stack's.
    pub cache_factor: Option<f64>,
    /// Synapse options for this instance alone.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Set where this is a pool. What is said here then holds for each of its processes, but for the name, of which each
    /// has its own, and the host, behind which they all stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Replicas>,
}

impl Instance {
    /// Whether this is a pool rather than one process.
    pub fn is_pool(&self) -> bool {
        self.replicas.is_some()
    }

    /// How many processes this is at most.
    pub fn processes(&self) -> u32 {
        self.replicas.map_or(1, |replicas| replicas.max.into())
    }

    /// Whether this is the main process.
    pub fn is_main(&self) -> bool {
        self.app == App::Main
    }

    /// Whether it carries this role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// The name that `stream_writers` and other lists of instances use: `master` for main, else the instance's name.
    pub fn writer_name(&self) -> &str {
        if self.is_main() { "master" } else { &self.name }
    }
}

/// Which Synapse processes exist, what each of them does and where it listens.
///
/// Made by [`crate::plan()`] alone, so that a value of this type keeps every rule in [`Violation`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Topology {
    pub(crate) stack: Stack,
    pub(crate) preset: Preset,
    pub(crate) groups: Vec<Group>,
    pub(crate) instances: Vec<Instance>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) companions: Vec<PlannedCompanion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mas: Option<PlannedMas>,
    pub(crate) max_connections: u32,
}

impl Topology {
    /// The stack that this is the plan of.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The preset that the layout started from.
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// The worker groups, each with at least one instance.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Every Synapse process, and every pool of them; main first.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// The services beside Synapse.
    pub fn companions(&self) -> &[PlannedCompanion] {
        &self.companions
    }

    /// The Matrix Authentication Service, wherever it runs.
    pub fn mas(&self) -> Option<&PlannedMas> {
        self.mas.as_ref()
    }

    /// The service beside Synapse with this name.
    pub fn companion(&self, name: &str) -> Option<&PlannedCompanion> {
        self.companions.iter().find(|companion| companion.kind.name() == name)
    }

    /// What all that the stack runs is called: Synapse's processes, and the services beside them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let instances = self.instances.iter().map(|instance| instance.name.as_str());
        instances.chain(self.companions.iter().map(|companion| companion.kind.name()))
    }

    /// The database connections that the server must allow.
    pub fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// How many Synapse processes there are, with pools at their largest.
    pub fn processes(&self) -> u32 {
        self.instances.iter().map(Instance::processes).sum()
    }

    /// The instance with this name.
    pub fn instance(&self, name: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.name == name)
    }

    /// The main process.
    pub fn main(&self) -> &Instance {
        &self.instances[0]
    }

    /// The instances that carry this role themselves.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(move |instance| instance.has(role))
    }

    /// The instances that `name` means: those that carry the role of this name, or belong to the group of this name,
    /// or are called so.
    pub fn named(&self, name: &str) -> Vec<&Instance> {
        let role = Role::from_name(name);
        self.instances
            .iter()
            .filter(|i| i.name == name || i.group == name || role.is_some_and(|role| i.has(role)))
            .collect()
    }

    /// The processes that write a stream.
    pub fn writers(&self, stream: Stream) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(move |instance| instance.writes.contains(&stream))
    }

    /// Who does a role's work: the role itself where an instance carries it, else the first of its fallbacks that
    /// one does, with the instances that do it.
    pub fn serving(&self, role: Role) -> (Role, Vec<&Instance>) {
        // Main's media repository is off once a media process exists, so main cannot stand in for those roles;
        // the planner refuses the stacks where it would come to that.
        std::iter::once(role)
            .chain(role.spec().fallback.iter().copied())
            .map(|role| (role, self.with_role(role).collect::<Vec<_>>()))
            .find(|(_, instances)| !instances.is_empty())
            .unwrap_or_else(|| (Role::Main, vec![self.main()]))
    }

    /// Whether media is served by processes of its own instead of main.
    pub fn has_media_process(&self) -> bool {
        self.instances.iter().any(|instance| instance.app == App::Media)
    }

    /// Every rule of Synapse's that this topology breaks. The planner gives out none that breaks any.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_instances(&mut found);
        self.check_streams(&mut found);
        self.check_media(&mut found);
        self.check_addresses(&mut found);
        let needed = connections(&self.instances);
        if needed > self.max_connections {
            found.push(Violation::Connections { needed, allowed: self.max_connections });
        }
        found
    }

    fn check_instances(&self, found: &mut Vec<Violation>) {
        let mains =
            self.instances.iter().filter(|i| i.is_main() || i.name == "main" || i.has(Role::Main)).count();
        if mains != 1 || !self.instances.first().is_some_and(|i| i.is_main() && i.name == "main") {
            found.push(Violation::Main { count: mains });
        }
        for instance in &self.instances {
            if instance.name == "master"
                || self.instances.iter().filter(|i| i.name == instance.name).count() > 1
            {
                found.push(Violation::Name { instance: instance.name.clone() });
            }
            let serves = instance.roles.iter().any(|role| role.spec().serves_http);
            if serves != instance.client.is_some() {
                found.push(Violation::ClientListener { instance: instance.name.clone(), needed: serves });
            }
            let needed = instance.is_main() || !instance.writes.is_empty();
            if needed != instance.replication {
                found.push(Violation::ReplicationListener { instance: instance.name.clone() });
            }
            if instance.is_pool()
                && (instance.replication || !instance.roles.iter().all(|r| r.spec().elastic))
            {
                found.push(Violation::Pool { instance: instance.name.clone() });
            }
        }
        // This one is named in Synapse's configuration whoever does the work.
        if let [background, ..] = &self.serving(Role::MediaBackground).1[..]
            && background.is_pool()
        {
            found.push(Violation::Pool { instance: background.name.clone() });
        }
        for spec in &ROLES {
            let count = self.with_role(spec.role).count();
            if !spec.scalable && count > 1 {
                found.push(Violation::Singleton { role: spec.role, count });
            }
        }
    }

    fn check_streams(&self, found: &mut Vec<Violation>) {
        for stream in Stream::ALL {
            let writers: Vec<String> = self.writers(stream).map(|i| i.writer_name().to_owned()).collect();
            let role = stream.role();
            let wrong_count = if role.spec().scalable { writers.is_empty() } else { writers.len() != 1 };
            // Whoever carries the role writes; main, or for quarantine a media process, where nobody carries it.
            let carriers: Vec<_> = self.with_role(role).map(|i| i.writer_name().to_owned()).collect();
            if wrong_count || (!carriers.is_empty() && carriers != writers) {
                found.push(Violation::Writers { stream, writers });
            }
        }
    }

    fn check_media(&self, found: &mut Vec<Violation>) {
        let media_exists = self.has_media_process();
        for instance in &self.instances {
            let is_media = instance.app == App::Media;
            let should_enable = if media_exists { is_media } else { instance.is_main() };
            let needs_media = instance.roles.iter().any(|role| role.needs_media_process());
            let mixes = is_media
                && (instance.roles.iter().any(|role| !role.needs_media_process())
                    || instance.writes.iter().any(|s| *s != Stream::QuarantinedMediaChanges));
            if instance.enable_media_repo != should_enable || needs_media != is_media || mixes {
                found.push(Violation::Media { instance: instance.name.clone() });
            }
        }
        for writer in self.writers(Stream::QuarantinedMediaChanges) {
            if !writer.enable_media_repo || writer.client.is_none() {
                found.push(Violation::QuarantineWriter { instance: writer.name.clone() });
            }
        }
        let on_hosts = matches!(self.stack.network, crate::Network::Hosts(_));
        let media = media_processes(&self.instances);
        if on_hosts && media > 1 && !self.stack.media.shared_storage {
            found.push(Violation::MediaStorage { count: media });
        }
        if media_exists && !self.instances.iter().any(|i| i.app == App::Media && i.client.is_some()) {
            found.push(Violation::NoMediaServer);
        }
    }

    fn check_addresses(&self, found: &mut Vec<Violation>) {
        let mut seen: BTreeMap<&Address, &str> = BTreeMap::new();
        for instance in &self.instances {
            for address in instance.client.iter().chain([&instance.private]) {
                if let Some(first) = seen.insert(address, &instance.name) {
                    found.push(Violation::Address {
                        address: address.clone(),
                        first: first.to_owned(),
                        second: instance.name.clone(),
                    });
                }
            }
        }
    }
}

/// The database connections that these instances may open, with the reserve for administration.
pub(crate) fn connections(instances: &[Instance]) -> u32 {
    instances.iter().map(|i| u32::from(i.pool.max) * i.processes()).sum::<u32>()
        + crate::reserved_connections()
}

/// How many media processes these instances are at most.
pub(crate) fn media_processes(instances: &[Instance]) -> u32 {
    instances.iter().filter(|i| i.app == App::Media).map(Instance::processes).sum()
}

/// A rule of Synapse's that a topology breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// There must be exactly one main process, called `main`, first.
    #[error("there are {count} main processes instead of one that is called `main`")]
    Main {
        /// How many there are.
        count: usize,
    },
    /// Names are unique, and `master` is Synapse's own name for main.
    #[error("the name `{instance}` is taken")]
    Name {
        /// The name.
        instance: String,
    },
    /// A role that exists once is carried by several instances.
    #[error("{count} processes carry the role `{role}`, of which there can be one")]
    Singleton {
        /// The role.
        role: Role,
        /// How many carry it.
        count: usize,
    },
    /// A stream has too many writers, too few, or other ones than the processes that carry its role.
    #[error("{}", describe_writers(*.stream, .writers))]
    Writers {
        /// The stream.
        stream: Stream,
        /// Its writers.
        writers: Vec<String>,
    },
    /// Main and stream writers, and only they, serve replication.
    #[error("`{instance}` writes a stream but serves no replication, or the other way round")]
    ReplicationListener {
        /// The instance.
        instance: String,
    },
    /// Instances whose roles serve requests, and only they, open a client listener.
    #[error("`{instance}` {} a client listener", if *.needed { "lacks" } else { "must not open" })]
    ClientListener {
        /// The instance.
        instance: String,
        /// Whether it needs one.
        needed: bool,
    },
    /// `enable_media_repo` is true on media processes, and on main only while there is no media process; media
    /// processes do nothing else.
    #[error("`{instance}` mixes media with other work, or its `enable_media_repo` is wrong")]
    Media {
        /// The instance.
        instance: String,
    },
    /// Writers of `quarantined_media_changes` serve media.
    #[error("`{instance}` writes `quarantined_media_changes` but serves no media")]
    QuarantineWriter {
        /// The instance.
        instance: String,
    },
    /// Media processes on several hosts need shared storage.
    #[error("{count} media processes on several hosts share no storage")]
    MediaStorage {
        /// How many media processes there are.
        count: u32,
    },
    /// The processes of a pool are known to nobody by name.
    #[error("`{instance}` is a pool, but other processes have to know its processes by name")]
    Pool {
        /// The pool.
        instance: String,
    },
    /// Media processes exist but none takes requests.
    #[error("no process serves media")]
    NoMediaServer,
    /// Two listeners share an address.
    #[error("`{first}` and `{second}` both listen on {address}")]
    Address {
        /// The address.
        address: Address,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// The processes may open more connections than the database allows.
    #[error("the processes may open {needed} database connections; {allowed} are allowed")]
    Connections {
        /// What they may open.
        needed: u32,
        /// What is allowed.
        allowed: u32,
    },
}

impl Topology {
    /// The role's balance, as it is with the instances that exist: none where there is but one.
    pub fn balance(&self, role: Role) -> Balance {
        let (serving, instances) = self.serving(role);
        match (serving.spec().kind, &instances[..]) {
            (Kind::Main, _) | (_, []) => Balance::None,
            (_, [one]) if !one.is_pool() => Balance::None,
            _ => role.spec().balance,
        }
    }
}
