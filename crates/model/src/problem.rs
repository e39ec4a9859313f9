//! Why a stack cannot be planned: each problem names the field, the reason and the mend.

use std::fmt;

use crate::{CompanionKind, Role, Stream, Violation};

/// One reason why a stack cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A group is called like the main process.
    #[error("`{group}` is the main process's own name")]
    ReservedName {
        /// The group.
        group: String,
    },
    /// A group's name cannot be part of a process's name.
    #[error("`{group}` cannot be a group's name")]
    BadGroupName {
        /// The group.
        group: String,
    },
    /// A new group says neither roles nor has a role's name.
    #[error("the group `{group}` has no roles")]
    NoRoles {
        /// The group.
        group: String,
    },
    /// A group lists the main process as a role.
    #[error("`main` cannot be given to a group: there is exactly one main process, and it is always there")]
    MainAsRole {
        /// The group.
        group: String,
    },
    /// A group lists a role twice.
    #[error("the group `{group}` lists the role `{role}` twice")]
    RoleTwice {
        /// The group.
        group: String,
        /// The role.
        role: Role,
    },
    /// A stream that has exactly one writer would get several, or a role that exists once several processes.
    #[error("`{role}` can be carried by one process only, but {count} would carry it ({})", .groups.join(", "))]
    TooMany {
        /// The role.
        role: Role,
        /// How many processes would carry it.
        count: usize,
        /// The groups that carry it.
        groups: Vec<String>,
        /// The field to blame.
        field: String,
    },
    /// More instances than a group may have.
    #[error("the group `{group}` has {count} instances; at most {max} are possible")]
    CountTooLarge {
        /// The group.
        group: String,
        /// `count` or `max_count`.
        field: &'static str,
        /// The count.
        count: u16,
        /// The largest count.
        max: u16,
    },
    /// A group may have fewer instances than it begins with.
    #[error("the group `{group}` may have {max} instances at most, but begins with {count}")]
    MaxBelowCount {
        /// The group.
        group: String,
        /// The count.
        count: u16,
        /// The largest count.
        max: u16,
    },
    /// A group that is no pool has a largest count above the count that it has.
    #[error("`max_count` is for pools, and the group `{group}` is none: {}", describe_no_pool(.role.as_ref()))]
    NoPool {
        /// The group.
        group: String,
        /// The role because of which its processes are known by name; none where the stack has no pools.
        role: Option<Role>,
    },
    /// A pool is called like a process.
    #[error("the pool `{group}` and a process of another group are both called so")]
    NameTaken {
        /// The group that is a pool.
        group: String,
    },
    /// A media process would also write a stream or serve endpoints that it does not have.
    #[error(
        "the group `{group}` is a media process because of `{media}`, and such a process cannot also be `{other}`: \
         it writes no stream but `quarantined_media_changes` and serves no client or federation endpoint"
    )]
    MediaMixed {
        /// The group.
        group: String,
        /// The role that makes it a media process.
        media: Role,
        /// The role that it cannot also have.
        other: Role,
    },
    /// A media process exists but none of them answers requests.
    #[error(
        "`media_background` makes a media process, after which main serves no media any more, but no other process \
         would serve it"
    )]
    NoMediaServer {
        /// The group with the role `media_background`.
        group: String,
    },
    /// Media processes on several hosts without shared storage.
    #[error("{count} media processes run on hosts of their own, and each would see only its own files")]
    MediaNotShared {
        /// How many media processes there are.
        count: u32,
    },
    /// The processes could open more database connections than the server allows.
    #[error(
        "{processes} Synapse processes may open {needed} database connections (with {reserved} kept for \
         administration), but the server allows {max}"
    )]
    TooManyConnections {
        /// How many Synapse processes there are.
        processes: u32,
        /// What they may open, the reserve included.
        needed: u32,
        /// The reserve.
        reserved: u32,
        /// What the server allows.
        max: u32,
    },
    /// A pool whose minimum is above its maximum.
    #[error("the smallest number of connections, {min}, is above the largest, {max}")]
    PoolUpsideDown {
        /// The field of the pool.
        field: String,
        /// The minimum.
        min: u16,
        /// The maximum.
        max: u16,
    },
    /// Two listeners would share an address.
    #[error("`{first}` and `{second}` would both listen on {address}")]
    AddressTwice {
        /// The one listener.
        first: String,
        /// The other listener.
        second: String,
        /// The address.
        address: String,
        /// The field to blame.
        field: String,
    },
    /// The ports counted up from `base_port` do not fit.
    #[error("{processes} processes take two ports each, and counted up from {base_port} they pass 65535")]
    PortsExhausted {
        /// How many processes there are.
        processes: usize,
        /// The first port.
        base_port: u16,
    },
    /// A unix socket's path is longer than the operating system allows.
    #[error("the socket path `{path}` has {length} bytes; the operating system allows 107")]
    SocketPathTooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// The router's unix socket has a path that is longer than the operating system allows.
    #[error("the socket path `{path}` has {length} bytes; the operating system allows 107")]
    ListenPathTooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Nobody can say where clients reach a router that listens on a unix socket.
    #[error("`{address}` does not say under which URL clients reach the homeserver")]
    NeedsBaseUrl {
        /// The router's address.
        address: String,
    },
    /// A Synapse option that matrix-stack sets itself is passed through.
    #[error("matrix-stack sets Synapse's option `{option}` itself")]
    OwnedOption {
        /// The option.
        option: String,
        /// The field where it stands.
        field: String,
        /// What to do instead.
        mend: &'static str,
    },
    /// Processes on several hosts would have to reach a server that listens on a unix socket of one machine.
    #[error(
        "processes on hosts of their own cannot reach the {server} that matrix-stack runs, which has only a unix socket"
    )]
    NeedsExternal {
        /// PostgreSQL or Valkey.
        server: &'static str,
        /// The field to set.
        field: &'static str,
    },
    /// The largest upload is nothing.
    #[error("`{text}` is not a size that anything could be uploaded with")]
    UploadSize {
        /// What was written.
        text: String,
    },
    /// An address to listen on that is none.
    #[error("`{text}` is not an address and a port to listen on")]
    BadAddress {
        /// The field.
        field: &'static str,
        /// What was written.
        text: String,
    },
    /// Processes on several hosts have nobody who starts a companion.
    #[error(
        "`{kind}` runs beside the processes of one machine, and `network: hosts` gives each a host of its own"
    )]
    CompanionElsewhere {
        /// Which companion.
        kind: CompanionKind,
    },
    /// A companion cannot be reached under the path.
    #[error("the path `{path}` is taken by something else")]
    CompanionPath {
        /// The field.
        field: String,
        /// The path.
        path: String,
    },
    /// A companion's settings say where it listens.
    #[error("matrix-stack settles where a companion listens")]
    CompanionSettled {
        /// The field.
        field: String,
    },
    /// Something contradicts the Matrix Authentication Service, or it would refuse it.
    #[error("{reason}")]
    Mas {
        /// The field.
        field: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        mend: String,
    },
    /// The planner made a topology that breaks an invariant: a defect of matrix-stack, caught before it does harm.
    #[error("the plan breaks a rule of Synapse's: {0}")]
    Broken(Violation),
}

impl Problem {
    /// The field of `stack.yaml` to blame, as a dotted path such as `workers.typing.count`.
    pub fn field(&self) -> String {
        match self {
            Self::ReservedName { group } | Self::BadGroupName { group } | Self::NoRoles { group } => {
                format!("workers.{group}")
            }
            Self::MainAsRole { group } | Self::RoleTwice { group, .. } | Self::MediaMixed { group, .. } => {
                format!("workers.{group}.roles")
            }
            Self::NoMediaServer { group } | Self::NameTaken { group } => format!("workers.{group}"),
            Self::CountTooLarge { group, field, .. } => format!("workers.{group}.{field}"),
            Self::MaxBelowCount { group, .. } | Self::NoPool { group, .. } => {
                format!("workers.{group}.max_count")
            }
            Self::TooMany { field, .. }
            | Self::PoolUpsideDown { field, .. }
            | Self::AddressTwice { field, .. }
            | Self::OwnedOption { field, .. }
            | Self::CompanionPath { field, .. }
            | Self::Mas { field, .. }
            | Self::CompanionSettled { field } => field.clone(),
            Self::CompanionElsewhere { kind } => kind.field().to_owned(),
            Self::MediaNotShared { .. } => "media.shared_storage".to_owned(),
            Self::TooManyConnections { .. } => "database.max_connections".to_owned(),
            Self::PortsExhausted { .. } => "network.tcp.base_port".to_owned(),
            Self::SocketPathTooLong { .. } => "data_dir".to_owned(),
            Self::ListenPathTooLong { .. } => "listen.address".to_owned(),
            Self::NeedsBaseUrl { .. } => "public_base_url".to_owned(),
            Self::UploadSize { .. } => "media.max_upload_size".to_owned(),
            Self::BadAddress { field, .. } | Self::NeedsExternal { field, .. } => (*field).to_owned(),
            Self::Broken(_) => "workers".to_owned(),
        }
    }

    /// What to do about it.
    pub fn mend(&self) -> String {
        match self {
            Self::ReservedName { .. } => {
                "give the group another name; options for every process belong under `synapse.extra`"
                    .to_owned()
            }
            Self::BadGroupName { .. } => {
                "use lower-case letters, digits and `_`, a letter first, at most 40 characters".to_owned()
            }
            Self::NoRoles { .. } => {
                "add `roles: [...]`, or call the group like the one role that it should have".to_owned()
            }
            Self::MainAsRole { .. } => "remove `main` from `roles`".to_owned(),
            Self::RoleTwice { role, .. } => format!("remove one `{role}`"),
            Self::TooMany { role, groups, .. } if groups.len() > 1 => {
                format!(
                    "leave `{role}` in one of these groups, with `count: 1`; `count: 0` removes a group of the preset"
                )
            }
            Self::TooMany { role, .. } => match role.stream() {
                Some(stream) => format!("set `count: 1`: Synapse allows one writer of the stream `{stream}`"),
                None => "set `count: 1`".to_owned(),
            },
            Self::CountTooLarge { max, .. } => format!("set a count of at most {max}"),
            Self::MaxBelowCount { count, .. } => format!("set a `max_count` of at least {count}"),
            Self::NoPool { role: None, .. } => "set `count` instead, or set `network.hosts.pools`".to_owned(),
            Self::NoPool { role: Some(_), .. } => {
                "set `count` instead, or give the group only roles that can be in a pool".to_owned()
            }
            Self::NameTaken { .. } => "call one of the groups otherwise".to_owned(),
            Self::MediaMixed { media, other, .. } => {
                format!("put `{media}` and `{other}` in groups of their own")
            }
            Self::NoMediaServer { .. } => {
                "add a group with the role `media_repository`, or give that role to this group too".to_owned()
            }
            Self::MediaNotShared { .. } => {
                "mount the same storage on every host at `media.store_path` and set \
                 `media.shared_storage: true`, or run one media process"
                    .to_owned()
            }
            Self::TooManyConnections { needed, processes, max, reserved, .. } => {
                let fits = max.saturating_sub(*reserved) / (*processes).max(1);
                format!(
                    "raise `max_connections` of the server and here to at least {needed}{}",
                    if fits >= 1 {
                        format!(", or lower `database.pool.max` to {fits}")
                    } else {
                        ", or run fewer workers".to_owned()
                    }
                )
            }
            Self::PoolUpsideDown { .. } => "make `min` at most `max`".to_owned(),
            Self::AddressTwice { .. } => "give one of them another port".to_owned(),
            Self::PortsExhausted { processes, .. } => {
                format!("set a `base_port` of at most {}", 65535usize.saturating_sub(2 * processes - 1))
            }
            Self::SocketPathTooLong { .. } => {
                "use a shorter `data_dir`, or set `network: {tcp: {}}`".to_owned()
            }
            Self::OwnedOption { mend, .. } => (*mend).to_owned(),
            Self::NeedsExternal { field, .. } => format!("set `{field}` to a server that all hosts reach"),
            Self::UploadSize { .. } => "write a number with K, M or G, such as `50M`".to_owned(),
            Self::BadAddress { field, .. } => {
                let or = if *field == "listen.address" {
                    ", or `unix:` and the absolute path of a socket"
                } else {
                    ""
                };
                format!("write an IP address and a port, such as `127.0.0.1:8008` or `[::]:8008`{or}")
            }
            Self::ListenPathTooLong { .. } => {
                "use a shorter path, such as `unix:/run/matrix.sock`".to_owned()
            }
            Self::NeedsBaseUrl { .. } => {
                "set it to the URL of the proxy in front, such as `https://matrix.example.org`".to_owned()
            }
            Self::CompanionElsewhere { kind } => {
                format!(
                    "remove it here, and run `matrix-stack serve {kind}` where it belongs; on Kubernetes that is its chart"
                )
            }
            Self::CompanionPath { .. } => {
                "choose a path of its own, outside `/_matrix`, `/_synapse` and `/.well-known`".to_owned()
            }
            Self::CompanionSettled { .. } => "remove it".to_owned(),
            Self::Mas { mend, .. } => mend.clone(),
            Self::Broken(_) => {
                "please report this with your stack.yaml; meanwhile use a preset without changes".to_owned()
            }
        }
    }
}

/// Every reason why a stack cannot be planned, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: {problem}; {}", problem.field(), problem.mend())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Why a group is no pool.
fn describe_no_pool(role: Option<&Role>) -> String {
    match role {
        Some(role) => format!("`{role}` makes other processes know it by name"),
        None => "each of its processes has a name of its own".to_owned(),
    }
}

/// How [`Violation`] tells a stream's writers.
pub(crate) fn describe_writers(stream: Stream, writers: &[String]) -> String {
    match writers {
        [] => format!("the stream `{stream}` has no writer"),
        [one] => format!("the stream `{stream}` is written by `{one}`"),
        many => format!("the stream `{stream}` is written by {} processes: {}", many.len(), many.join(", ")),
    }
}
