//! Policy: which role each class of endpoints prefers, by which key it is spread, its timeout and its cap.

use std::fmt::Write as _;
use std::time::Duration;

use model::{Balance, Role};
use serde::Serialize;

use crate::table::{Endpoint, Method, Process};

/// A class of endpoints that are treated alike. Indexes [`CLASSES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is described by its row in CLASSES")]
pub enum ClassId {
    Unknown,
    Main,
    MainStore,
    Sso,
    Admin,
    AdminReader,
    SyncIncremental,
    SyncInitial,
    SyncSliding,
    RoomSend,
    RoomMembership,
    RoomCreate,
    RoomRead,
    Typing,
    ToDevice,
    AccountData,
    Presence,
    PushRules,
    Receipts,
    DeviceLists,
    ThreadSubscriptions,
    Keys,
    KeyBackup,
    UserDirectory,
    Search,
    Login,
    Client,
    MediaUpload,
    MediaDownload,
    MediaPreview,
    MediaAdmin,
    Quarantine,
    FederationInbound,
    FederationMembership,
    FederationRead,
    Mas,
    Companion,
}

impl ClassId {
    /// Its place in [`CLASSES`], for dense arrays.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its row.
    pub const fn class(self) -> &'static Class {
        &CLASSES[self as usize]
    }
}

/// What a request's instance is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Nothing: any instance will do.
    None,
    /// The room ID (or alias) in the path.
    Room,
    /// The user who asks.
    User,
    /// The server that asks, or else the client's address.
    Origin,
}

impl Key {
    /// The key's name; none for [`Key::None`].
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Room => Some("room"),
            Self::User => Some("user"),
            Self::Origin => Some("origin"),
        }
    }
}

/// One row of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// Its place.
    pub id: ClassId,
    /// Its name, as metrics label it.
    pub name: &'static str,
    /// The role that it prefers; where it is absent, the role's own fallbacks follow ([`model::RoleSpec::fallback`]).
    pub role: Role,
    /// What its requests are spread by, where the role's balance is a hash.
    pub key: Key,
    /// How long the head of the response may take, from the moment the whole request was sent.
    pub timeout: Duration,
    /// The most requests in flight at one instance; more wait or are refused.
    pub cap: u32,
    /// Why, as a clause: `… because WHY`.
    pub why: &'static str,
}

impl Class {
    /// The roles to try, before looking at which exist.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        std::iter::once(self.role).chain(self.role.spec().fallback.iter().copied())
    }

    /// How this class's requests are spread over the instances of a role: the role's balance, as far as the class has
    /// the key for it.
    pub fn balance(&self, role: Role) -> Balance {
        match (role.spec().balance, self.key) {
            (Balance::HashRoom, Key::User) => Balance::HashUser,
            (Balance::HashRoom, Key::Room)
            | (Balance::HashUser, Key::User)
            | (Balance::HashOrigin, Key::Origin)
            | (Balance::None | Balance::RoundRobin | Balance::LeastConnections, _) => role.spec().balance,
            _ => Balance::LeastConnections,
        }
    }
}

const fn class(
    id: ClassId,
    name: &'static str,
    role: Role,
    key: Key,
    seconds: u64,
    cap: u32,
    why: &'static str,
) -> Class {
    Class { id, name, role, key, timeout: Duration::from_secs(seconds), cap, why }
}

/// Every class, in the order of [`ClassId`].
pub static CLASSES: [Class; 37] = [
    class(
        ClassId::Unknown,
        "unknown",
        Role::Main,
        Key::None,
        180,
        100,
        "the table of this Synapse version does not have the path, and main serves whatever there is",
    ),
    class(ClassId::Main, "main", Role::Main, Key::None, 180, 250, "only main registers it"),
    class(
        ClassId::MainStore,
        "main_store",
        Role::Main,
        Key::None,
        180,
        250,
        "workers register it too, but fail with 500, because what their store lacks is called there",
    ),
    class(
        ClassId::Sso,
        "sso",
        Role::Main,
        Key::None,
        60,
        250,
        "the steps of a login through an identity provider (and of a QR code login) share a session in one process's \
         memory, and there is one main",
    ),
    class(ClassId::Admin, "admin", Role::Main, Key::None, 600, 50, "only main registers it"),
    class(
        ClassId::AdminReader,
        "admin_reader",
        Role::ClientReader,
        Key::None,
        600,
        50,
        "workers register this part of the admin API too",
    ),
    class(
        ClassId::SyncIncremental,
        "sync_incremental",
        Role::Sync,
        Key::User,
        300,
        2000,
        "a user's syncs share that worker's caches",
    ),
    class(
        ClassId::SyncInitial,
        "sync_initial",
        Role::InitialSync,
        Key::User,
        900,
        50,
        "an initial sync is long and heavy and is kept away from the incremental ones",
    ),
    class(
        ClassId::SyncSliding,
        "sync_sliding",
        Role::Sync,
        Key::User,
        300,
        2000,
        "a sliding sync is light from its first request on, and a user's syncs share that worker's caches",
    ),
    class(
        ClassId::RoomSend,
        "room_send",
        Role::Room,
        Key::Room,
        120,
        500,
        "a room's events are made by one worker, whose caches know the room",
    ),
    class(
        ClassId::RoomMembership,
        "room_membership",
        Role::Room,
        Key::Room,
        600,
        500,
        "a room's events are made by one worker, and a join over federation may take minutes",
    ),
    class(
        ClassId::RoomCreate,
        "room_create",
        Role::Room,
        Key::User,
        300,
        500,
        "rooms are made where events are made, and there is no room ID yet to choose by",
    ),
    class(
        ClassId::RoomRead,
        "room_read",
        Role::Room,
        Key::Room,
        180,
        500,
        "what is read about a room lies in the caches of the worker that makes its events",
    ),
    class(ClassId::Typing, "typing", Role::Typing, Key::None, 60, 500, "only the stream's writer can answer"),
    class(
        ClassId::ToDevice,
        "to_device",
        Role::ToDevice,
        Key::None,
        60,
        500,
        "only the stream's writer can answer",
    ),
    class(
        ClassId::AccountData,
        "account_data",
        Role::AccountData,
        Key::None,
        60,
        500,
        "the stream's writer answers without asking another process, and reads what it has just written",
    ),
    class(
        ClassId::Presence,
        "presence",
        Role::Presence,
        Key::None,
        60,
        500,
        "the stream's writer holds everyone's presence and answers without asking another process",
    ),
    class(
        ClassId::PushRules,
        "push_rules",
        Role::PushRules,
        Key::None,
        60,
        500,
        "only the stream's writer can change push rules, and it reads what it has just written",
    ),
    class(
        ClassId::Receipts,
        "receipts",
        Role::Receipts,
        Key::None,
        60,
        500,
        "only the stream's writers can answer",
    ),
    class(
        ClassId::DeviceLists,
        "device_lists",
        Role::DeviceLists,
        Key::None,
        60,
        500,
        "the stream's writers answer without asking another process",
    ),
    class(
        ClassId::ThreadSubscriptions,
        "thread_subscriptions",
        Role::ThreadSubscriptions,
        Key::None,
        60,
        500,
        "only the stream's writers can change subscriptions, and they read what they have just written",
    ),
    class(
        ClassId::Keys,
        "keys",
        Role::ClientReader,
        Key::None,
        120,
        500,
        "any worker can answer, and other servers may have to be asked for their users' keys",
    ),
    class(ClassId::KeyBackup, "key_backup", Role::ClientReader, Key::None, 120, 500, "any worker can answer"),
    class(
        ClassId::UserDirectory,
        "user_directory",
        Role::UserDir,
        Key::None,
        60,
        500,
        "searches stay with the process that keeps the directory",
    ),
    class(
        ClassId::Search,
        "search",
        Role::ClientReader,
        Key::None,
        180,
        100,
        "any worker can answer, some slowly",
    ),
    class(
        ClassId::Login,
        "login",
        Role::ClientReader,
        Key::None,
        60,
        250,
        "any worker can answer; hashing passwords takes processor time, so there is a cap of its own",
    ),
    class(ClassId::Client, "client", Role::ClientReader, Key::None, 60, 500, "any worker can answer"),
    class(
        ClassId::MediaUpload,
        "media_upload",
        Role::MediaRepository,
        Key::None,
        300,
        250,
        "only processes that run the media repository register it",
    ),
    class(
        ClassId::MediaDownload,
        "media_download",
        Role::MediaRepository,
        Key::None,
        180,
        500,
        "only processes that run the media repository register it, and remote media may have to be fetched",
    ),
    class(
        ClassId::MediaPreview,
        "media_preview",
        Role::MediaRepository,
        Key::None,
        120,
        100,
        "only processes that run the media repository register it, and a page has to be fetched",
    ),
    class(
        ClassId::MediaAdmin,
        "media_admin",
        Role::MediaRepository,
        Key::None,
        600,
        50,
        "the part of the admin API that processes register which run the media repository",
    ),
    class(
        ClassId::Quarantine,
        "quarantine",
        Role::QuarantinedMediaChanges,
        Key::None,
        600,
        50,
        "only a writer of the stream that runs the media repository can answer",
    ),
    class(
        ClassId::FederationInbound,
        "federation_inbound",
        Role::FederationInbound,
        Key::Origin,
        300,
        500,
        "a server's transactions are handled by one worker, in order",
    ),
    class(
        ClassId::FederationMembership,
        "federation_membership",
        Role::FederationReader,
        Key::Origin,
        600,
        250,
        "any worker can answer, and joining a large room may take minutes",
    ),
    class(
        ClassId::FederationRead,
        "federation_read",
        Role::FederationReader,
        Key::Origin,
        180,
        500,
        "any worker can answer, and a server's requests share that worker's caches",
    ),
    class(
        ClassId::Mas,
        "mas",
        Role::ClientReader,
        Key::None,
        60,
        250,
        "any worker can answer Matrix Authentication Service",
    ),
    class(
        ClassId::Companion,
        "companion",
        Role::Main,
        Key::None,
        60,
        250,
        "a service beside Synapse answers, under the path that the stack gives it",
    ),
];

/// One line of policy: endpoints to a class.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The methods, or none for all.
    methods: &'static [Method],
    /// A path in [`normal_form`], with `*` for one segment and `**` for any number at the end.
    pub(crate) path: &'static str,
    pub(crate) class: ClassId,
}

const fn rule(methods: &'static [Method], path: &'static str, class: ClassId) -> Rule {
    Rule { methods, path, class }
}

const ANY: &[Method] = &[];
const GET: &[Method] = &[Method::Get];
const WRITE: &[Method] = &[Method::Post, Method::Put, Method::Delete];

/// The rules, of which the first that fits counts. What main alone registers needs none.
pub(crate) static RULES: &[Rule] = &[
    // Syncs. `/sync` and `/events` are initial ones or not by their query.
    rule(GET, "client/sync", ClassId::SyncIncremental),
    rule(GET, "client/events", ClassId::SyncIncremental),
    rule(GET, "client/initialSync", ClassId::SyncInitial),
    rule(GET, "client/rooms/*/initialSync", ClassId::SyncInitial),
    rule(ANY, "client/org.matrix.simplified_msc3575/sync", ClassId::SyncSliding),
    // Streams.
    rule(ANY, "client/rooms/*/typing/*", ClassId::Typing),
    rule(ANY, "client/sendToDevice/**", ClassId::ToDevice),
    rule(ANY, "client/user/*/account_data/**", ClassId::AccountData),
    rule(ANY, "client/user/*/rooms/*/account_data/**", ClassId::AccountData),
    rule(ANY, "client/user/*/rooms/*/tags/**", ClassId::AccountData),
    rule(ANY, "client/org.matrix.msc3391/user/**", ClassId::AccountData),
    rule(ANY, "client/presence/**", ClassId::Presence),
    rule(ANY, "client/pushrules/**", ClassId::PushRules),
    rule(ANY, "client/rooms/*/receipt/**", ClassId::Receipts),
    rule(ANY, "client/rooms/*/read_markers", ClassId::Receipts),
    rule(ANY, "client/devices/**", ClassId::DeviceLists),
    rule(ANY, "client/delete_devices", ClassId::DeviceLists),
    rule(ANY, "client/org.matrix.msc3814.v1/dehydrated_device", ClassId::DeviceLists),
    rule(ANY, "client/keys/upload", ClassId::DeviceLists),
    rule(ANY, "client/keys/device_signing/upload", ClassId::DeviceLists),
    rule(ANY, "client/keys/signatures/upload", ClassId::DeviceLists),
    rule(ANY, "client/io.element.msc4306/rooms/*/thread/*/subscription", ClassId::ThreadSubscriptions),
    rule(ANY, "client/io.element.msc4308/thread_subscriptions", ClassId::ThreadSubscriptions),
    // Rooms.
    rule(ANY, "client/createRoom/**", ClassId::RoomCreate),
    rule(WRITE, "client/rooms/*/join/**", ClassId::RoomMembership),
    rule(WRITE, "client/rooms/*/invite/**", ClassId::RoomMembership),
    rule(WRITE, "client/rooms/*/leave/**", ClassId::RoomMembership),
    rule(WRITE, "client/rooms/*/kick/**", ClassId::RoomMembership),
    rule(WRITE, "client/rooms/*/ban/**", ClassId::RoomMembership),
    rule(WRITE, "client/rooms/*/unban/**", ClassId::RoomMembership),
    rule(WRITE, "client/join/**", ClassId::RoomMembership),
    rule(WRITE, "client/knock/**", ClassId::RoomMembership),
    rule(WRITE, "client/rooms/**", ClassId::RoomSend),
    rule(GET, "client/rooms/**", ClassId::RoomRead),
    rule(GET, "client/room_summary/*", ClassId::RoomRead),
    rule(GET, "client/im.nheko.summary/**", ClassId::RoomRead),
    rule(GET, "client/org.matrix.msc2432/rooms/**", ClassId::RoomRead),
    rule(GET, "client/io.element.msc4502/rooms/**", ClassId::RoomRead),
    // Keys and directories.
    rule(ANY, "client/keys/**", ClassId::Keys),
    rule(ANY, "client/org.matrix.msc3983/keys/**", ClassId::Keys),
    rule(ANY, "client/room_keys/**", ClassId::KeyBackup),
    rule(ANY, "client/user_directory/search", ClassId::UserDirectory),
    rule(ANY, "client/search", ClassId::Search),
    // Logins.
    rule(ANY, "client/login/sso/**", ClassId::Sso),
    rule(ANY, "client/login/cas/**", ClassId::Sso),
    rule(ANY, "client/login", ClassId::Login),
    rule(ANY, "client/register/**", ClassId::Login),
    rule(ANY, "_synapse/client/pick_idp", ClassId::Sso),
    rule(ANY, "_synapse/client/pick_username/**", ClassId::Sso),
    rule(ANY, "_synapse/client/new_user_consent", ClassId::Sso),
    rule(ANY, "_synapse/client/sso_register", ClassId::Sso),
    rule(ANY, "_synapse/client/oidc/**", ClassId::Sso),
    rule(ANY, "_synapse/client/saml2/**", ClassId::Sso),
    rule(ANY, "_matrix/saml2/**", ClassId::Sso),
    rule(ANY, "_synapse/client/rendezvous/**", ClassId::Sso),
    rule(ANY, "_synapse/mas/**", ClassId::Mas),
    // Media.
    rule(WRITE, "media/**", ClassId::MediaUpload),
    rule(GET, "media/preview_url", ClassId::MediaPreview),
    rule(GET, "media/**", ClassId::MediaDownload),
    rule(GET, "client/media/preview_url", ClassId::MediaPreview),
    rule(GET, "client/media/**", ClassId::MediaDownload),
    rule(GET, "federation/media/**", ClassId::MediaDownload),
    rule(WRITE, "admin/media/quarantine/**", ClassId::Quarantine),
    rule(WRITE, "admin/media/unquarantine/**", ClassId::Quarantine),
    rule(WRITE, "admin/quarantine_media/**", ClassId::Quarantine),
    rule(WRITE, "admin/room/*/media/quarantine", ClassId::Quarantine),
    rule(WRITE, "admin/user/*/media/quarantine", ClassId::Quarantine),
    rule(ANY, "admin/media/**", ClassId::MediaAdmin),
    rule(ANY, "admin/purge_media_cache", ClassId::MediaAdmin),
    rule(ANY, "admin/room/*/media", ClassId::MediaAdmin),
    rule(ANY, "admin/users/*/media", ClassId::MediaAdmin),
    // Federation. What the first two call is in Synapse's `DataStore`, of main, but not in its `GenericWorkerStore`.
    rule(ANY, "federation/openid/userinfo", ClassId::MainStore),
    rule(ANY, "federation/org.matrix.msc4370/extremities/*", ClassId::MainStore),
    rule(ANY, "federation/send/**", ClassId::FederationInbound),
    rule(ANY, "federation/send_join/**", ClassId::FederationMembership),
    rule(ANY, "federation/send_knock/**", ClassId::FederationMembership),
    rule(ANY, "federation/send_leave/**", ClassId::FederationMembership),
    rule(ANY, "federation/invite/**", ClassId::FederationMembership),
    rule(ANY, "federation/exchange_third_party_invite/*", ClassId::FederationMembership),
    rule(ANY, "federation/3pid/onbind", ClassId::FederationMembership),
    // The rest of what workers register.
    rule(ANY, "federation/**", ClassId::FederationRead),
    rule(ANY, "key/**", ClassId::FederationRead),
    rule(ANY, "client/**", ClassId::Client),
    rule(ANY, "_matrix/client/versions", ClassId::Client),
    rule(ANY, "_synapse/client/**", ClassId::Client),
    rule(ANY, "admin/**", ClassId::AdminReader),
];

/// Prefixes under which several versions of one endpoint lie, and what stands for them in rules.
const PREFIXES: [(&str, &[&str], &str); 5] = [
    ("/_matrix/client/", &["api/v1", "r0", "v1", "v3", "unstable"], "client"),
    ("/_matrix/federation/", &["v1", "v2", "unstable"], "federation"),
    ("/_matrix/media/", &["r0", "v1", "v3"], "media"),
    ("/_matrix/key/", &["v2"], "key"),
    ("/_synapse/admin/", &["v1", "v2", "v3"], "admin"),
];

/// A path in three parts, if versions of its endpoint lie side by side: the [name](PREFIXES) of what it is under, the
/// version, the rest.
fn split(path: &str) -> Option<(&'static str, &'static str, &str)> {
    PREFIXES.iter().find_map(|(prefix, versions, name)| {
        let rest = path.strip_prefix(prefix)?;
        versions
            .iter()
            .find_map(|version| Some((*name, *version, rest.strip_prefix(version)?.strip_prefix('/')?)))
    })
}

/// A path without its version: `/_matrix/client/v3/sync` is `client/sync`.
pub(crate) fn normal_form(path: &str) -> (&'static str, &str) {
    match split(path) {
        Some((name, _, rest)) => (name, rest),
        None => ("", path.strip_prefix('/').unwrap_or(path)),
    }
}

/// The version in a path, if it has one.
pub(crate) fn version(path: &str) -> Option<&'static str> {
    split(path).map(|(_, version, _)| version)
}

/// What in a query makes a sync an initial one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitialBy {
    /// `/sync`: no `since`, or `full_state=true`.
    Since,
    /// `/events`: no `from`.
    From,
}

impl InitialBy {
    /// What makes a request to this path an initial sync, if its query can.
    pub(crate) fn path(path: &str) -> Option<Self> {
        match normal_form(path) {
            ("client", "sync") => Some(Self::Since),
            ("client", "events") => Some(Self::From),
            _ => None,
        }
    }

    /// The parameter without which it is one.
    pub(crate) const fn unless(self) -> &'static str {
        match self {
            Self::Since => "since",
            Self::From => "from",
        }
    }

    /// The parameter that makes it one with this value, even so.
    pub(crate) const fn or_if(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Since => Some(("full_state", "true")),
            Self::From => None,
        }
    }
}

impl Rule {
    fn fits(&self, method: Method, path: &str) -> bool {
        if !self.methods.is_empty() && !self.methods.contains(&method) {
            return false;
        }
        let (name, rest) = normal_form(path);
        let mut segments = (!name.is_empty()).then_some(name).into_iter().chain(rest.split('/'));
        for wanted in self.path.split('/') {
            match (wanted, segments.next()) {
                ("**", _) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(segment)) if wanted == segment => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }
}

/// The class of an endpoint, and the rule that says so. None: the router answers it itself or never forwards it.
pub(crate) fn classify(endpoint: &Endpoint) -> Option<(ClassId, Option<&'static Rule>)> {
    let path = &*endpoint.path;
    if !(path.starts_with("/_matrix/") || path.starts_with("/_synapse/")) {
        return None;
    }
    if endpoint.by == [Process::Main] {
        let class = if path.starts_with("/_synapse/admin/") { ClassId::Admin } else { ClassId::Main };
        return Some((class, None));
    }
    match RULES.iter().find(|rule| rule.fits(endpoint.method, path)) {
        Some(rule) => Some((rule.class, Some(rule))),
        // No rule: main serves it, and a test fails until there is one.
        None => Some((ClassId::Main, None)),
    }
}

/// The table of classes as Markdown, for the manual.
pub fn classes_table_markdown() -> String {
    let mut out = String::from(
        "| class | roles, best first | key | timeout | cap | because |\n|---|---|---|---|---|---|\n",
    );
    for class in &CLASSES {
        let mut roles: Vec<_> = class.roles().map(|role| format!("`{role}`")).collect();
        if class.id == ClassId::Companion {
            roles = vec!["–".to_owned()];
        }
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} s | {} | {} |",
            class.name,
            roles.join(", "),
            class.key.name().unwrap_or("–"),
            class.timeout.as_secs(),
            class.cap,
            class.why,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;

    #[test]
    fn classes_stand_at_their_own_index() {
        for (index, class) in CLASSES.iter().enumerate() {
            assert_eq!(class.id.index(), index, "{}", class.name);
            assert_eq!(serde_json::to_value(class.id).expect("a name"), class.name);
        }
    }

    #[test]
    fn every_rule_decides_something() {
        for rule in RULES {
            let used = Table::all()
                .iter()
                .flat_map(Table::endpoints)
                .any(|e| matches!(classify(e), Some((_, Some(by))) if std::ptr::eq(by, rule)));
            assert!(
                used,
                "the rule for `{}` decides nothing: remove it, or move it before what hides it",
                rule.path
            );
        }
    }

    #[test]
    fn nothing_that_a_worker_serves_stays_on_main_unless_policy_says_so() {
        for table in Table::all() {
            for endpoint in table.endpoints().iter().filter(|e| e.worker_capable()) {
                let Some((class, rule)) = classify(endpoint) else { continue };
                let on_main = class.class().role == Role::Main;
                assert!(
                    !on_main || (matches!(class, ClassId::Sso | ClassId::MainStore) && rule.is_some()),
                    "{} {} of Synapse {} is served by workers but has no rule",
                    endpoint.method,
                    endpoint.path,
                    table.version(),
                );
            }
        }
    }

    #[test]
    fn main_alone_serves_what_it_alone_registers() {
        for table in Table::all() {
            for endpoint in table.endpoints().iter().filter(|e| !e.worker_capable()) {
                let Some((class, _)) = classify(endpoint) else { continue };
                assert_eq!(class.class().role, Role::Main, "{} {}", endpoint.method, endpoint.path);
            }
        }
    }

    #[test]
    fn a_stream_that_has_to_be_written_is_written_by_the_preferred_role() {
        for endpoint in Table::newest().endpoints() {
            let Some((class, _)) = classify(endpoint) else { continue };
            for stream in &endpoint.writes {
                assert_eq!(class.class().role, stream.role(), "{} {}", endpoint.method, endpoint.path);
            }
        }
    }
}
