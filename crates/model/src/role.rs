//! The roles that a Synapse process can play, as data: one row a role.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A part of a homeserver's work that a process of its own can do.
///
/// Each role is one row of [`ROLES`]. An instance may carry several roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(
    description = "A part of a homeserver's work that a process of its own can do. An instance may carry several."
)]
pub enum Role {
    /// Synapse's main process: everything that no other role does. There is always exactly one.
    #[schemars(skip)]
    Main,
    /// Writer of the `typing` stream.
    Typing,
    /// Writer of the `to_device` stream.
    ToDevice,
    /// Writer of the `account_data` stream (room tags included).
    AccountData,
    /// Writer of the `presence` stream.
    Presence,
    /// Writer of the `push_rules` stream.
    PushRules,
    /// Writers of the `receipts` stream.
    Receipts,
    /// Writers of the `device_lists` stream.
    DeviceLists,
    /// Writers of the `thread_subscriptions` stream (MSC4306).
    ThreadSubscriptions,
    /// Writers of the `quarantined_media_changes` stream; they are media processes.
    QuarantinedMediaChanges,
    /// Event persisters: writers of the `events` stream, sharded by room.
    EventPersister,
    /// The media repository: uploads, downloads, thumbnails, URL previews.
    MediaRepository,
    /// The one media process that runs the media repository's background jobs.
    MediaBackground,
    /// Client requests about one room: sending, state, messages, membership.
    Room,
    /// Incremental `/sync` and sliding sync.
    Sync,
    /// Initial syncs, which are long and heavy, kept away from the incremental ones.
    InitialSync,
    /// Federation requests that read: backfill, state, keys, queries.
    FederationReader,
    /// Federation transactions sent to us (`/_matrix/federation/v1/send/{txnId}`).
    FederationInbound,
    /// Other client requests that any process can answer.
    ClientReader,
    /// The user directory: searches, and its background update (`update_user_directory_from_worker`).
    UserDir,
    /// Background tasks (`run_background_tasks_on`) and application service traffic (`notify_appservices_from_worker`).
    Background,
    /// Push notifications (`pusher_instances`).
    Pusher,
    /// Outgoing federation traffic (`federation_sender_instances`).
    FederationSender,
}

/// What makes a process able to play a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The main process.
    Main,
    /// Named in `stream_writers` for this stream.
    StreamWriter(Stream),
    /// Has `enable_media_repo: true`.
    MediaApp,
    /// Any generic worker, by configuration.
    Generic,
}

/// How requests, or work, are spread over a role's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One instance: nothing to balance.
    None,
    /// Each in turn.
    RoundRobin,
    /// The instance with the fewest requests in flight.
    LeastConnections,
    /// Consistent hash of the room ID in the path.
    HashRoom,
    /// Consistent hash of the user who asks.
    HashUser,
    /// Consistent hash of where the request comes from: the origin server's name, else the client's address.
    HashOrigin,
    /// Synapse itself decides which instance does the work, by configuration that all processes share.
    BySynapse(Shard),
}

/// What Synapse shards by, for [`Balance::BySynapse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// By room ID (event persisters).
    Room,
    /// By user ID (pushers).
    User,
    /// By destination server (federation senders).
    Destination,
}

/// A replication stream that `stream_writers` can give to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Room events.
    Events,
    /// Typing notifications.
    Typing,
    /// To-device messages.
    ToDevice,
    /// Account data and room tags.
    AccountData,
    /// Read receipts.
    Receipts,
    /// Presence.
    Presence,
    /// Push rules.
    PushRules,
    /// Device lists and keys.
    DeviceLists,
    /// Thread subscriptions (MSC4306).
    ThreadSubscriptions,
    /// Changes of the quarantine state of media.
    QuarantinedMediaChanges,
}

impl Stream {
    /// Every stream, in the order that Synapse's manual lists them.
    pub const ALL: [Self; 10] = [
        Self::Events,
        Self::Typing,
        Self::ToDevice,
        Self::AccountData,
        Self::Receipts,
        Self::Presence,
        Self::PushRules,
        Self::DeviceLists,
        Self::ThreadSubscriptions,
        Self::QuarantinedMediaChanges,
    ];

    /// The stream's name in Synapse's `stream_writers`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Typing => "typing",
            Self::ToDevice => "to_device",
            Self::AccountData => "account_data",
            Self::Receipts => "receipts",
            Self::Presence => "presence",
            Self::PushRules => "push_rules",
            Self::DeviceLists => "device_lists",
            Self::ThreadSubscriptions => "thread_subscriptions",
            Self::QuarantinedMediaChanges => "quarantined_media_changes",
        }
    }

    /// The role whose instances write this stream.
    pub fn role(self) -> Role {
        ROLES.iter().find(|spec| spec.kind == Kind::StreamWriter(self)).map_or(Role::Main, |spec| spec.role)
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One row of the role table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleSpec {
    /// The role.
    pub role: Role,
    /// Its name in `stack.yaml`, on the command line and in metrics.
    pub name: &'static str,
    /// What makes a process able to play it.
    pub kind: Kind,
    /// Whether several instances may carry it.
    pub scalable: bool,
    /// Whether their number may change at run time: nobody, neither another process nor a list that all agree on, knows an
    /// instance by name because of this role.
    pub elastic: bool,
    /// How requests or work are spread over its instances.
    pub balance: Balance,
    /// Whether it answers clients' or other servers' requests, so that its instances open a client listener.
    pub serves_http: bool,
    /// Who serves its requests when no instance carries it, tried in this order.
    pub fallback: &'static [Role],
    /// What it does, in a few words.
    pub summary: &'static str,
}

const fn writer(
    role: Role,
    name: &'static str,
    stream: Stream,
    scalable: bool,
    balance: Balance,
    summary: &'static str,
) -> RoleSpec {
    RoleSpec {
        role,
        name,
        kind: Kind::StreamWriter(stream),
        scalable,
        elastic: false,
        balance,
        serves_http: true,
        fallback: &[Role::Main],
        summary,
    }
}

const fn generic(
    role: Role,
    name: &'static str,
    scalable: bool,
    balance: Balance,
    serves_http: bool,
    fallback: &'static [Role],
    summary: &'static str,
) -> RoleSpec {
    RoleSpec {
        role,
        name,
        kind: Kind::Generic,
        scalable,
        elastic: false,
        balance,
        serves_http,
        fallback,
        summary,
    }
}

const fn reader(
    role: Role,
    name: &'static str,
    balance: Balance,
    fallback: &'static [Role],
    summary: &'static str,
) -> RoleSpec {
    RoleSpec { elastic: true, ..generic(role, name, true, balance, true, fallback, summary) }
}

/// Every role, in the order in which the manual lists them.
pub const ROLES: [RoleSpec; 23] = [
    RoleSpec {
        role: Role::Main,
        name: "main",
        kind: Kind::Main,
        scalable: false,
        elastic: false,
        balance: Balance::None,
        serves_http: true,
        fallback: &[],
        summary: "everything that no other role does",
    },
    writer(Role::Typing, "typing", Stream::Typing, false, Balance::None, "typing notifications"),
    writer(Role::ToDevice, "to_device", Stream::ToDevice, false, Balance::None, "to-device messages"),
    writer(
        Role::AccountData,
        "account_data",
        Stream::AccountData,
        false,
        Balance::None,
        "account data and tags",
    ),
    writer(Role::Presence, "presence", Stream::Presence, false, Balance::None, "presence"),
    writer(Role::PushRules, "push_rules", Stream::PushRules, false, Balance::None, "push rules"),
    writer(Role::Receipts, "receipts", Stream::Receipts, true, Balance::RoundRobin, "read receipts"),
    writer(
        Role::DeviceLists,
        "device_lists",
        Stream::DeviceLists,
        true,
        Balance::RoundRobin,
        "device lists and uploaded keys",
    ),
    writer(
        Role::ThreadSubscriptions,
        "thread_subscriptions",
        Stream::ThreadSubscriptions,
        true,
        Balance::RoundRobin,
        "thread subscriptions (MSC4306)",
    ),
    RoleSpec {
        fallback: &[Role::MediaRepository, Role::Main],
        ..writer(
            Role::QuarantinedMediaChanges,
            "quarantined_media_changes",
            Stream::QuarantinedMediaChanges,
            true,
            Balance::RoundRobin,
            "quarantine of media",
        )
    },
    writer(
        Role::EventPersister,
        "event_persister",
        Stream::Events,
        true,
        Balance::BySynapse(Shard::Room),
        "writes events to the database",
    ),
    RoleSpec {
        role: Role::MediaRepository,
        name: "media_repository",
        kind: Kind::MediaApp,
        scalable: true,
        elastic: true,
        balance: Balance::LeastConnections,
        serves_http: true,
        fallback: &[Role::QuarantinedMediaChanges, Role::Main],
        summary: "media up and down, thumbnails, URL previews",
    },
    RoleSpec {
        role: Role::MediaBackground,
        name: "media_background",
        kind: Kind::MediaApp,
        scalable: false,
        elastic: false,
        balance: Balance::None,
        serves_http: false,
        fallback: &[Role::MediaRepository, Role::QuarantinedMediaChanges, Role::Main],
        summary: "the media repository's background jobs",
    },
    reader(
        Role::Room,
        "room",
        Balance::HashRoom,
        &[Role::ClientReader, Role::Main],
        "requests about one room",
    ),
    reader(Role::Sync, "sync", Balance::HashUser, &[Role::InitialSync, Role::Main], "incremental sync"),
    reader(Role::InitialSync, "initial_sync", Balance::HashUser, &[Role::Sync, Role::Main], "initial syncs"),
    reader(
        Role::FederationReader,
        "federation_reader",
        Balance::HashOrigin,
        &[Role::FederationInbound, Role::Main],
        "other servers' reads",
    ),
    reader(
        Role::FederationInbound,
        "federation_inbound",
        Balance::HashOrigin,
        &[Role::FederationReader, Role::Main],
        "transactions from other servers",
    ),
    reader(
        Role::ClientReader,
        "client_reader",
        Balance::LeastConnections,
        &[Role::Room, Role::Main],
        "the other client requests",
    ),
    generic(
        Role::UserDir,
        "user_dir",
        false,
        Balance::None,
        true,
        &[Role::ClientReader, Role::Main],
        "the user directory",
    ),
    generic(
        Role::Background,
        "background",
        false,
        Balance::None,
        false,
        &[Role::Main],
        "background tasks and application services",
    ),
    generic(
        Role::Pusher,
        "pusher",
        true,
        Balance::BySynapse(Shard::User),
        false,
        &[Role::Main],
        "push notifications",
    ),
    generic(
        Role::FederationSender,
        "federation_sender",
        true,
        Balance::BySynapse(Shard::Destination),
        false,
        &[Role::Main],
        "traffic to other servers",
    ),
];

impl Role {
    /// This role's row of the table.
    pub fn spec(self) -> &'static RoleSpec {
        // The table lists the variants in declaration order; a test holds that.
        &ROLES[self as usize]
    }

    /// The role's name in `stack.yaml`, on the command line and in metrics.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        ROLES.iter().find(|spec| spec.name == name).map(|spec| spec.role)
    }

    /// The stream that this role writes, if it is a stream writer.
    pub fn stream(self) -> Option<Stream> {
        match self.spec().kind {
            Kind::StreamWriter(stream) => Some(stream),
            _ => None,
        }
    }

    /// Whether a process that carries this role must be a media process (`enable_media_repo: true`).
    pub fn needs_media_process(self) -> bool {
        matches!(self.spec().kind, Kind::MediaApp | Kind::StreamWriter(Stream::QuarantinedMediaChanges))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No role has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no role `{0}`")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::from_name(name).ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "–",
            Self::RoundRobin => "round robin",
            Self::LeastConnections => "least connections",
            Self::HashRoom => "hash of room ID",
            Self::HashUser => "hash of user ID",
            Self::HashOrigin => "hash of origin",
            Self::BySynapse(Shard::Room) => "sharded by room by Synapse",
            Self::BySynapse(Shard::User) => "sharded by user by Synapse",
            Self::BySynapse(Shard::Destination) => "sharded by destination by Synapse",
        })
    }
}

/// The role table as Markdown, for the manual.
pub fn roles_table_markdown() -> String {
    use std::fmt::Write as _;
    let mut out = String::from(
        "| role | kind | many? | pool? | balance | serves HTTP | falls back to | what it does |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for spec in &ROLES {
        let kind = match spec.kind {
            Kind::Main => "main process".to_owned(),
            Kind::StreamWriter(stream) if stream.name() == spec.name => "stream writer".to_owned(),
            Kind::StreamWriter(stream) => format!("stream writer (`{stream}`)"),
            Kind::MediaApp => "media process".to_owned(),
            Kind::Generic => "generic worker".to_owned(),
        };
        let fallback: Vec<_> = spec.fallback.iter().map(|role| format!("`{role}`")).collect();
        let yes = |b| if b { "yes" } else { "no" };
        let _ = writeln!(
            out,
            "| `{}` | {kind} | {} | {} | {} | {} | {} | {} |",
            spec.name,
            yes(spec.scalable),
            yes(spec.elastic),
            spec.balance,
            yes(spec.serves_http),
            if fallback.is_empty() { "–".to_owned() } else { fallback.join(", ") },
            spec.summary
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_declaration_order_and_names_are_unique() {
        for (index, spec) in ROLES.iter().enumerate() {
            assert_eq!(spec.role as usize, index, "{} is out of order", spec.name);
            assert_eq!(Role::from_name(spec.name), Some(spec.role));
            assert_eq!(serde_json::to_value(spec.role).unwrap(), spec.name);
        }
    }

    #[test]
    fn every_stream_has_exactly_one_role() {
        for stream in Stream::ALL {
            assert_eq!(stream.role().stream(), Some(stream));
            assert_eq!(ROLES.iter().filter(|s| s.kind == Kind::StreamWriter(stream)).count(), 1);
            assert_eq!(serde_json::to_value(stream).unwrap(), stream.name());
        }
    }

    #[test]
    fn what_is_elastic_scales_serves_requests_and_is_in_no_list_of_synapses() {
        for spec in ROLES.iter().filter(|spec| spec.elastic) {
            assert!(spec.scalable && spec.serves_http, "{}", spec.name);
            assert!(!matches!(spec.kind, Kind::Main | Kind::StreamWriter(_)), "{}", spec.name);
            assert!(!matches!(spec.balance, Balance::None | Balance::BySynapse(_)), "{}", spec.name);
        }
    }

    #[test]
    fn every_fallback_chain_ends_at_main() {
        for spec in &ROLES[1..] {
            assert_eq!(spec.fallback.last(), Some(&Role::Main), "{}", spec.name);
            assert!(!spec.fallback.contains(&spec.role));
        }
    }
}
