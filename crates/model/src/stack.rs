//! What a person writes: the types of `stack.yaml`.
//!
//! These types are the schema and the manual: the JSON Schema and the configuration reference are
//! generated from them and from their doc comments.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use indexmap::IndexMap;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Auth, Companions, Preset, Role};

/// The largest `count` of a worker group. Synapse's replication is all to all, so hundreds of processes cost
/// more than they give.
pub const MAX_WORKERS_PER_GROUP: u16 = 64;

/// A complete Matrix homeserver deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// The domain part of this server's user IDs, as in `@alice:example.org`. It can never be changed
    /// afterwards (Synapse's `server_name`).
    pub server_name: ServerName,
    /// The URL under which clients reach the homeserver. Default: the address that the router listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/?#]+/?$"), example = &"https://matrix.example.org")]
    pub public_base_url: Option<String>,
    /// Which processes to run: `small` (main and two combined workers), `medium` (one or two workers for each kind
    /// of work), `full` (every role its own process), `custom` (main and just what `workers` lists).
    /// Default: the largest that fits this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"medium")]
    pub preset: Option<Preset>,
    /// Worker groups by name: they change the preset's groups of the same name, or add new ones.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(extend("examples" = [{"sync": {"roles": ["sync", "initial_sync"], "count": 2}}]))]
    pub workers: IndexMap<String, WorkerGroup>,
    /// Where the router listens, and what it exposes.
    #[serde(default)]
    pub listen: Listen,
    /// How the processes of the stack reach each other.
    #[serde(default)]
    pub network: Network,
    /// The directory that holds this stack's database, media, secrets, logs and sockets.
    /// Default: `/var/lib/matrix-stack/SERVER_NAME` for root, else `~/.local/share/matrix-stack/SERVER_NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/var/lib/matrix-stack/example.org")]
    pub data_dir: Option<PathBuf>,
    /// PostgreSQL, which matrix-stack installs and runs unless a server is given.
    #[serde(default)]
    pub database: Database,
    /// Valkey or Redis, which matrix-stack installs and runs unless a server is given.
    #[serde(default)]
    pub redis: Redis,
    /// Synapse itself: where it comes from, and options passed through to it.
    #[serde(default)]
    pub synapse: Synapse,
    /// Who may create an account.
    #[serde(default)]
    pub registration: Registration,
    /// Who says which users there are, and whose an access token is: Synapse itself, or a service beside it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub auth: Auth,
    /// The media repository.
    #[serde(default)]
    pub media: Media,
    /// Synapse's caches.
    #[serde(default)]
    pub caches: Caches,
    /// Traffic with other homeservers.
    #[serde(default)]
    pub federation: Federation,
    /// The documents under `/.well-known/matrix/`.
    #[serde(default)]
    pub well_known: WellKnown,
    /// Services beside Synapse: webhooks into rooms, tokens for calls, LDAP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub companions: Companions,
    /// Secrets that you bring as files. Those not named here are generated once, in the data directory.
    #[serde(default)]
    pub secrets: Secrets,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Stack {
    /// A stack with nothing but a server name.
    pub fn new(server_name: ServerName) -> Self {
        Self {
            server_name,
            public_base_url: None,
            preset: None,
            workers: IndexMap::new(),
            listen: Listen::default(),
            network: Network::default(),
            data_dir: None,
            database: Database::default(),
            redis: Redis::default(),
            synapse: Synapse::default(),
            registration: Registration::default(),
            auth: Auth::default(),
            media: Media::default(),
            caches: Caches::default(),
            federation: Federation::default(),
            well_known: WellKnown::default(),
            companions: Companions::default(),
            secrets: Secrets::default(),
        }
    }

    /// The URL under which clients reach the homeserver, without a slash at its end.
    pub fn base_url(&self) -> String {
        if let Some(url) = &self.public_base_url {
            return url.trim_end_matches('/').to_owned();
        }
        let scheme = if self.listen.tls.is_some() { "https" } else { "http" };
        let host = match self.listen.address.parse() {
            // A plan asks for `public_base_url` then.
            Ok(ListenAddress::Unix(_)) => "localhost".to_owned(),
            _ => self.listen.address.replace("0.0.0.0", "localhost").replace("[::]", "localhost"),
        };
        format!("{scheme}://{host}")
    }
}

/// A Matrix server name: a DNS name, IPv4 address or bracketed IPv6 address, with an optional port
/// (Matrix specification, appendices, "Server Name").
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

impl JsonSchema for ServerName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServerName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 230,
            "pattern": r"^([0-9a-z.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$",
            "format": "matrix-server-name",
            "examples": ["example.org"],
        })
    }
}

/// The text is not a Matrix server name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a Matrix server name: use a domain such as `example.org`, in lower case, without `https://` or a path"
)]
pub struct InvalidServerName(String);

impl TryFrom<String> for ServerName {
    type Error = InvalidServerName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (text.as_str(), None),
        };
        let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
            }
        };
        let port_ok =
            port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
        // Synapse refuses upper case; 230 leaves room for a localpart in 255 bytes of user ID.
        if host_ok && port_ok && text.len() <= 230 && !text.bytes().any(|b| b.is_ascii_uppercase()) {
            Ok(Self(text))
        } else {
            Err(InvalidServerName(text))
        }
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.0
    }
}

impl ServerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A group of like workers: the same roles, run `count` times. Instances are called `NAME_1`, `NAME_2` and so on; a pool is
/// called `NAME`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerGroup {
    /// The roles that each instance carries. Default: those of the preset's group of this name, else the one
    /// role that has the group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [["sync", "initial_sync"]]))]
    pub roles: Option<Vec<Role>>,
    /// How many instances to run; 0 removes a group of the preset. Default: as the preset says, else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 64), example = 2)]
    pub count: Option<u16>,
    /// How many instances an autoscaler may run at most, where the group is a pool (`network.hosts.pools`). The database
    /// and the memory are planned for as many. Default: `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64), example = 2)]
    pub max_count: Option<u16>,
    /// Database connections of each instance. Default: `database.pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Factor on the size of each cache of these instances. Default: `caches.global_factor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 100.0), example = 1.0)]
    pub cache_factor: Option<f64>,
    /// Synapse options for these instances alone, passed through as they are.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(extend("examples" = [{"event_cache_size": "20K"}]))]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Where the router listens, and what it exposes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address and port for clients and other servers, such as `127.0.0.1:8008`, `0.0.0.0:8008` or `[::]:8008`; or a unix
    /// socket, such as `unix:/run/matrix/router.sock`, to which everybody may connect who may enter its directory.
    #[schemars(regex(pattern = r"^(unix:/.+|(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5})$"))]
    pub address: String,
    /// Address and port for Prometheus metrics and the router's own health, on `/metrics` and `/health`.
    /// Default: none; they are then only on the control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$"), example = &"127.0.0.1:9090")]
    pub metrics: Option<String>,
    /// Whether Synapse's admin API (`/_synapse/admin`) can be reached on the public address. Closed by default.
    pub admin_api: bool,
    /// Whether to take the client's address from `X-Forwarded-For`. Say yes only if every request comes through
    /// a proxy of yours that sets it, or adds to it.
    pub trust_forwarded_for: bool,
    /// How many proxies of yours stand in front, one behind another, each of which adds an address to `X-Forwarded-For`:
    /// counted from its end, this is the place of the client's. What clients write there themselves comes before it, and is
    /// dropped. Counts with `trust_forwarded_for` alone.
    #[schemars(range(min = 1, max = 16))]
    pub trusted_proxies: u8,
    /// The PROXY protocol, version 1 or 2, with which a load balancer in front says whose each connection is. Every
    /// connection must begin with it then. Default: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// TLS on the public address, with HTTP/2 for clients that speak it. Default: plain HTTP, for a proxy of yours in front.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// An address that the router listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// The text is neither an address with a port nor `unix:` with an absolute path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address and a port to listen on")]
pub struct NotAnAddress(pub String);

impl FromStr for ListenAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') => {
                Ok(Self::Unix(path.into()))
            }
            Some(_) => Err(NotAnAddress(text.to_owned())),
            None => text.parse().map(Self::Tcp).map_err(|_| NotAnAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The PROXY protocol, version 1 or 2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyProtocol {
    /// The networks that load balancers connect from. Connections from elsewhere are refused; those over a unix socket
    /// are not. Default: any.
    #[schemars(extend("examples" = [["10.0.0.0/8", "fd00::/8"]]))]
    pub from: Vec<Sources>,
}

impl ProxyProtocol {
    /// Whether somebody at this address is believed.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|sources| sources.contains(address))
    }
}

/// A network in CIDR notation (RFC 4632), or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sources(IpNet);

impl Sources {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl TryFrom<String> for Sources {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(Self).map_err(|_| format!("`{text}` is not a network such as `10.0.0.0/8`"))
    }
}

impl From<Sources> for String {
    fn from(sources: Sources) -> Self {
        sources.0.to_string()
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Sources {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sources".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$",
            "examples": ["10.0.0.0/8"],
        })
    }
}

/// The certificate of the public address. Both files are looked at once a minute, and a certificate that was renewed is used
/// from then on, without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The file with the certificate and those that lead to its root, in PEM.
    #[schemars(example = &"/etc/letsencrypt/live/matrix.example.org/fullchain.pem")]
    pub certificate: PathBuf,
    /// The file with the certificate's private key, in PEM.
    #[schemars(example = &"/etc/letsencrypt/live/matrix.example.org/privkey.pem")]
    pub private_key: PathBuf,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8008".to_owned(),
            metrics: None,
            admin_api: false,
            trust_forwarded_for: false,
            trusted_proxies: 1,
            proxy_protocol: None,
            tls: None,
        }
    }
}

/// How the processes of the stack reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Unix sockets in the data directory: all processes on one machine, nothing to reach from outside.
    #[default]
    Unix,
    /// TCP ports on one address, counted up from a first one.
    Tcp(Tcp),
    /// Each process on a host of its own, as on Kubernetes, with the same two ports everywhere.
    Hosts(Hosts),
}

impl Network {
    /// The pools, where groups may be some.
    pub(crate) fn pools(&self) -> Option<&Pools> {
        if let Self::Hosts(hosts) = self { hosts.pools.as_ref() } else { None }
    }
}

/// TCP ports on one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// The address to listen on.
    pub host: std::net::IpAddr,
    /// The first port. Every process takes two.
    #[schemars(range(min = 1024))]
    pub base_port: u16,
}

impl Default for Tcp {
    fn default() -> Self {
        Self { host: std::net::Ipv4Addr::LOCALHOST.into(), base_port: 18000 }
    }
}

/// A host for each process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hosts {
    /// What stands before each process's name in its host's name. `_` in a process's name becomes `-`.
    pub prefix: String,
    /// What stands behind it, such as `.matrix.svc.cluster.local`.
    pub suffix: String,
    /// What main is called in its host's name. Where hosts are numbered, as the pods of a `StatefulSet` of Kubernetes are, it is
    /// `main-1`.
    #[schemars(length(min = 1))]
    pub main: String,
    /// The port for clients' and servers' requests.
    #[schemars(range(min = 1))]
    pub http_port: u16,
    /// The port for replication, metrics and health.
    #[schemars(range(min = 1))]
    pub private_port: u16,
    /// Lets groups whose processes nobody knows by name come and go at run time: such a group becomes a pool, which is one
    /// name in the DNS with all of its processes behind it, as a headless service of Kubernetes is. `docs/roles.md` says
    /// which roles can be in a pool. Default: every process has a name of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pools: Option<Pools>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            prefix: "synapse-".to_owned(),
            suffix: String::new(),
            main: "main".to_owned(),
            http_port: 8008,
            private_port: 9093,
            pools: None,
        }
    }
}

impl Hosts {
    /// The host of the process or pool of this name, of which `suffix` is the end.
    pub fn host(&self, name: &str, suffix: &str) -> String {
        let name = if name == "main" { &self.main } else { name };
        format!("{}{}{suffix}", self.prefix, name.replace('_', "-"))
    }
}

/// Groups as names in the DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pools {
    /// What stands behind a group's name in its pool's host name, as `network.hosts.suffix` behind a process's. Before it
    /// stands `network.hosts.prefix`.
    #[schemars(example = &".matrix.svc.cluster.local")]
    pub suffix: String,
    /// How the processes behind the name are found.
    pub lookup: Lookup,
}

/// How the processes behind a pool's name are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// By the name's addresses (A and AAAA): a process each, on `network.hosts.http_port`.
    #[default]
    Address,
    /// By the targets and ports of `_http._tcp.NAME` (SRV). Those of the lowest priority take the requests, whatever
    /// their weights.
    Srv,
}

/// A process's database connections (Synapse's `database.args.cp_min` and `cp_max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// How many connections are kept open.
    #[schemars(range(min = 1, max = 100))]
    pub min: u16,
    /// How many there may be at once.
    #[schemars(range(min = 1, max = 100))]
    pub max: u16,
}

impl Default for Pool {
    fn default() -> Self {
        Self { min: 1, max: 5 }
    }
}

/// PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// A PostgreSQL server of your own. Its database must exist, with encoding `UTF8` and collation `C`.
    /// Default: matrix-stack installs and runs PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<Postgres>,
    /// How many connections the server allows (PostgreSQL's `max_connections`). Default: as many as the stack
    /// needs where matrix-stack runs PostgreSQL, 100 for a server of your own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 10000), example = 500)]
    pub max_connections: Option<u32>,
    /// Connections of each Synapse process.
    pub pool: Pool,
}

/// A PostgreSQL server of your own. Its password is `secrets.database_password`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Host name, address, or the directory of the server's unix socket.
    #[schemars(length(min = 1), example = &"db.example.org")]
    pub host: String,
    /// Port.
    #[serde(default = "default_postgres_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// User name.
    #[serde(default = "default_synapse")]
    pub user: String,
    /// Database name.
    #[serde(default = "default_synapse")]
    pub database: String,
    /// How the connection is secured (libpq's `sslmode`). Default: as libpq does, `prefer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"verify-full", extend("enum" = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full", null]))]
    pub sslmode: Option<String>,
}

fn default_postgres_port() -> u16 {
    5432
}

fn default_synapse() -> String {
    "synapse".to_owned()
}

/// Valkey or Redis, over which Synapse's processes tell each other what changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// A Valkey or Redis server of your own. Its password is `secrets.redis_password`.
    /// Default: matrix-stack installs and runs Valkey.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<RedisServer>,
}

/// A Valkey or Redis server of your own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisServer {
    /// Host name or address.
    #[schemars(length(min = 1), example = &"redis.example.org")]
    pub host: String,
    /// Port.
    #[serde(default = "default_redis_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The number of the logical database.
    #[serde(default)]
    pub dbid: u16,
}

fn default_redis_port() -> u16 {
    6379
}

/// Synapse itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Synapse {
    /// The Python interpreter of an environment of your own with `matrix-synapse[postgres,redis]` in it.
    /// Default: matrix-stack installs Synapse.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/opt/synapse/bin/python")]
    pub python: Option<PathBuf>,
    /// Synapse options for every process, passed through as they are. Options that matrix-stack sets itself are
    /// refused.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(extend("examples" = [{"forget_rooms_on_leave": true}]))]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Who may create an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Registration {
    /// Whether anyone may create an account without proving anything (Synapse's `enable_registration` with
    /// `enable_registration_without_verification`). Accounts can always be created with `matrix-stack user add`.
    pub open: bool,
}

/// The media repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Media {
    /// The largest upload, such as `50M` (Synapse's `max_upload_size`).
    #[schemars(regex(pattern = r"^[0-9]+[KMG]?$"))]
    pub max_upload_size: String,
    /// Where media files lie (Synapse's `media_store_path`). Default: `media` in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/srv/matrix/media")]
    pub store_path: Option<PathBuf>,
    /// Whether all hosts see the same files there. It must be so where media processes run on several hosts.
    pub shared_storage: bool,
    /// Whether Synapse fetches previews of the URLs in messages. Private and local addresses are never fetched.
    pub url_previews: bool,
}

impl Default for Media {
    fn default() -> Self {
        Self {
            max_upload_size: "50M".to_owned(),
            store_path: None,
            shared_storage: false,
            url_previews: false,
        }
    }
}

impl Media {
    /// [`Media::max_upload_size`] in bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        let text = self.max_upload_size.as_str();
        let (digits, unit) = match text.bytes().last() {
            Some(b'K') => (&text[..text.len() - 1], 1 << 10),
            Some(b'M') => (&text[..text.len() - 1], 1 << 20),
            Some(b'G') => (&text[..text.len() - 1], 1 << 30),
            _ => (text, 1),
        };
        digits.parse::<u64>().unwrap_or(0).saturating_mul(unit)
    }
}

/// Synapse's caches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Caches {
    /// Factor on the size of each cache (Synapse's `caches.global_factor`). Each process has its own caches.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub global_factor: f64,
}

impl Default for Caches {
    fn default() -> Self {
        Self { global_factor: 0.5 }
    }
}

/// Traffic with other homeservers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Federation {
    /// Whether this server talks to other servers at all.
    pub enabled: bool,
}

impl Default for Federation {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The documents under `/.well-known/matrix/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WellKnown {
    /// Where other servers reach this one: the `m.server` of `/.well-known/matrix/server`, such as
    /// `matrix.example.org:443`. Default: the host and port of `public_base_url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"matrix.example.org:443")]
    pub server: Option<String>,
    /// Members to add to `/.well-known/matrix/client`, beside `m.homeserver` and what the fields below make; where both have
    /// one, this one counts.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(extend("examples" = [{"org.example.setting": {"enabled": true}}]))]
    pub client: serde_json::Map<String, serde_json::Value>,
    /// The URL of the identity server that clients use (`m.identity_server`). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://identity.example.org")]
    pub identity_server: Option<String>,
    /// The URLs of services that give out LiveKit tokens for calls, such as `matrix-stack serve livekit-jwt`, best first
    /// (`org.matrix.msc4143.rtc_foci`). Default: none, so that clients have no calls of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [["https://livekit-jwt.example.org"]]))]
    pub livekit: Vec<String>,
    /// Where users sign in, if not at the homeserver (`org.matrix.msc2965.authentication`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// What clients of Element's do about encryption (`io.element.e2ee`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionHints>,
    /// The URL of a style for maps (`m.tile_server`). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://maps.example.org/style.json")]
    pub tile_server: Option<String>,
    /// The domain of a Jitsi for calls of the old kind (`im.vector.riot.jitsi`). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"meet.example.org")]
    pub jitsi: Option<String>,
    /// Whom to turn to about this server: `/.well-known/matrix/support`. Default: there is no such document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub support: Option<Support>,
    /// The document at `/.well-known/matrix/openid-configuration`, as it stands here. Default: there is none.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(extend("examples" = [{"issuer": "https://auth.example.org/"}]))]
    pub openid_configuration: serde_json::Map<String, serde_json::Value>,
    /// How long others may keep the documents, in seconds. Other servers keep that for two days at most.
    #[schemars(range(max = 31_536_000))]
    pub max_age: u32,
    /// Where `matrix-stack serve well-known` serves the documents alone, for a proxy in front of `server_name` where the
    /// stack itself is elsewhere.
    #[schemars(example = &"127.0.0.1:8090")]
    pub listen: String,
}

impl Default for WellKnown {
    fn default() -> Self {
        Self {
            server: None,
            client: serde_json::Map::new(),
            identity_server: None,
            livekit: Vec::new(),
            authentication: None,
            encryption: None,
            tile_server: None,
            jitsi: None,
            support: None,
            openid_configuration: serde_json::Map::new(),
            max_age: 3600,
            listen: "127.0.0.1:8090".to_owned(),
        }
    }
}

/// Where users sign in (MSC2965).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Authentication {
    /// The issuer's URL.
    #[schemars(example = &"https://auth.example.org/")]
    pub issuer: String,
    /// The URL where users manage their accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://auth.example.org/account")]
    pub account: Option<String>,
}

/// What clients of Element's do about encryption. What is not said, they decide by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EncryptionHints {
    /// Whether new private rooms are encrypted unless somebody decides otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub default: Option<bool>,
    /// Whether nobody can go on without a backup of their keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub secure_backup_required: Option<bool>,
    /// The ways to set up such a backup: `key`, `passphrase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [["key"]]))]
    pub secure_backup_setup_methods: Option<Vec<String>>,
    /// Whether nobody can make an encrypted room.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = false)]
    pub force_disable: Option<bool>,
}

/// Whom to turn to about a server (MSC1929).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Support {
    /// People.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [[{"role": "admin", "matrix_id": "@admin:example.org"}]]))]
    pub contacts: Vec<Contact>,
    /// The URL of a page for users.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://example.org/help")]
    pub page: Option<String>,
}

/// Somebody to turn to, by Matrix or by mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// What for: `admin`, `security`, or another role in full.
    #[schemars(example = &"admin")]
    pub role: String,
    /// Their Matrix ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"@admin:example.org")]
    pub matrix_id: Option<String>,
    /// Their mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"admin@example.org")]
    pub email_address: Option<String>,
}

/// Secrets that you bring as files. Each file holds the secret alone; white space around it is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// The server's signing key, in Synapse's format (`ed25519 ID KEY`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<SecretSource>,
    /// Key for access and guest tokens (Synapse's `macaroon_secret_key`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macaroon_secret_key: Option<SecretSource>,
    /// Key for the values in HTML forms (Synapse's `form_secret`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form_secret: Option<SecretSource>,
    /// Lets its holder create accounts (Synapse's `registration_shared_secret`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_shared_secret: Option<SecretSource>,
    /// Lets Synapse's processes trust each other (Synapse's `worker_replication_secret`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_replication_secret: Option<SecretSource>,
    /// The database user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_password: Option<SecretSource>,
    /// The password of Valkey or Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_password: Option<SecretSource>,
    /// Lets Synapse and MAS trust each other (Synapse's `matrix_authentication_service.secret_path`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mas_shared_secret: Option<SecretSource>,
    /// What MAS encrypts cookies and parts of its database with: 32 bytes as 64 hexadecimal digits, with nothing behind
    /// them. It must never change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mas_encryption: Option<SecretSource>,
    /// MAS's RSA key for signatures, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mas_rsa_key: Option<SecretSource>,
    /// MAS's elliptic-curve key (P-256) for signatures, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mas_ec_key: Option<SecretSource>,
    /// The password of MAS's database user, where that is not Synapse's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mas_database_password: Option<SecretSource>,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretSource {
    /// The file that holds it. It must not be readable for others (mode 0600 or 0400).
    #[schemars(length(min = 1), example = &"/etc/matrix-stack/secret")]
    pub file: PathBuf,
}

/// Synapse options that matrix-stack sets itself, each with what to use instead.
pub const OWNED_SYNAPSE_OPTIONS: &[(&str, &str)] = &[
    ("server_name", "set `server_name` at the top of stack.yaml"),
    ("public_baseurl", "set `public_base_url` at the top of stack.yaml"),
    ("listeners", "set `listen` and `network`"),
    ("worker_listeners", "set `listen` and `network`"),
    ("worker_app", "list the process under `workers`"),
    ("worker_name", "list the process under `workers`"),
    (
        "worker_log_config",
        "remove it: each process logs to stderr, which matrix-stack keeps in a file of its own",
    ),
    ("log_config", "remove it: each process logs to stderr, which matrix-stack keeps in a file of its own"),
    ("pid_file", "remove it: matrix-stack supervises the processes"),
    ("worker_pid_file", "remove it: matrix-stack supervises the processes"),
    ("daemonize", "remove it: matrix-stack supervises the processes"),
    ("worker_daemonize", "remove it: matrix-stack supervises the processes"),
    ("database", "set `database`"),
    ("databases", "set `database`"),
    ("redis", "set `redis`"),
    ("instance_map", "list the processes under `workers`"),
    ("stream_writers", "give the stream's role to a group under `workers`"),
    ("run_background_tasks_on", "give the role `background` to a group under `workers`"),
    ("update_user_directory_from_worker", "give the role `user_dir` to a group under `workers`"),
    ("notify_appservices_from_worker", "give the role `background` to a group under `workers`"),
    ("media_instance_running_background_jobs", "give the role `media_background` to a group under `workers`"),
    ("start_pushers", "give the role `pusher` to a group under `workers`"),
    ("pusher_instances", "give the role `pusher` to a group under `workers`"),
    ("send_federation", "give the role `federation_sender` to a group under `workers`"),
    ("federation_sender_instances", "give the role `federation_sender` to a group under `workers`"),
    ("outbound_federation_restricted_to", "set `federation`"),
    ("enable_media_repo", "give the role `media_repository` to a group under `workers`"),
    ("media_store_path", "set `media.store_path`"),
    ("max_upload_size", "set `media.max_upload_size`"),
    ("url_preview_enabled", "set `media.url_previews`"),
    ("enable_registration", "set `registration.open`"),
    ("enable_registration_without_verification", "set `registration.open`"),
    ("registration_shared_secret", "set `secrets.registration_shared_secret`"),
    ("registration_shared_secret_path", "set `secrets.registration_shared_secret`"),
    ("macaroon_secret_key", "set `secrets.macaroon_secret_key`"),
    ("macaroon_secret_key_path", "set `secrets.macaroon_secret_key`"),
    ("form_secret", "set `secrets.form_secret`"),
    ("form_secret_path", "set `secrets.form_secret`"),
    ("signing_key", "set `secrets.signing_key`"),
    ("signing_key_path", "set `secrets.signing_key`"),
    ("worker_replication_secret", "set `secrets.worker_replication_secret`"),
    ("worker_replication_secret_path", "set `secrets.worker_replication_secret`"),
    ("worker_replication_host", "remove it: Synapse no longer reads it"),
    ("worker_replication_http_port", "remove it: Synapse no longer reads it"),
    ("worker_main_http_uri", "remove it: Synapse no longer reads it"),
    ("serve_server_wellknown", "set `well_known`"),
    ("extra_well_known_client_content", "set `well_known.client`"),
    ("enable_metrics", "set `listen.metrics`"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_are_those_of_the_specification() {
        for good in [
            "example.org",
            "matrix.example.org:8448",
            "localhost",
            "1.2.3.4:1234",
            "[1234:5678::abcd]:5678",
            "a-b.c",
        ] {
            assert!(ServerName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "https://example.org",
            "example.org/",
            "Example.org",
            "a b",
            "a:99999",
            "[::g]",
            "a:",
            "@a:b:c",
        ] {
            assert!(ServerName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(ServerName::try_from("a".repeat(231)).is_err());
    }

    #[test]
    fn upload_sizes_have_units() {
        let size =
            |text: &str| Media { max_upload_size: text.to_owned(), ..Media::default() }.max_upload_bytes();
        assert_eq!(size("50M"), 50 << 20);
        assert_eq!(size("10"), 10);
        assert_eq!(size("2G"), 2 << 30);
    }
}
