//! The proxy's file.

use std::net::SocketAddr;
use std::path::PathBuf;

use model::{ListenAddress, ProxyProtocol, Tls};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dn::Dn;

/// What the proxy does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where clients come in.
    #[serde(default)]
    pub listen: Listen,
    /// Where `/health`, `/ready` and `/metrics` are served: an address and a port, or `unix:PATH`. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"127.0.0.1:9389")]
    pub metrics: Option<String>,
    /// The LDAP servers.
    #[schemars(length(min = 1, max = 64))]
    pub servers: Vec<Server>,
    /// How the servers are reached.
    #[serde(default)]
    pub upstream: Upstream,
    /// The identity of a service, whose searches are balanced one by one. Default: none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// What clients may do.
    #[serde(default)]
    pub policy: Policy,
    /// How much they may take.
    #[serde(default)]
    pub limits: Limits,
    /// Answers to searches that are remembered. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// What is written to the log, beside what goes wrong: never a password, a filter or an attribute's value.
    #[serde(default)]
    pub access_log: AccessLog,
}

/// Where clients come in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// The address for LDAP, with StartTLS where `tls` is there. Null: nowhere.
    pub ldap: Option<SocketAddr>,
    /// The address for LDAP within TLS; it needs `tls`. Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ldaps: Option<SocketAddr>,
    /// The certificate that clients see. Its files are read again on SIGHUP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The file with the certificates, in PEM, of those who issue clients' certificates. Clients must have one then. Default:
    /// none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// The PROXY protocol, version 1 or 2, with which a load balancer in front says whose each connection is. Every
    /// connection must begin with it then. Default: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            ldap: Some(SocketAddr::from(([127, 0, 0, 1], 3389))),
            ldaps: None,
            tls: None,
            client_ca: None,
            proxy_protocol: None,
        }
    }
}

/// An LDAP server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `ldap://HOST:PORT` or `ldaps://HOST:PORT`, the port 389 or 636 by default. The host is looked up for each connection.
    #[schemars(example = &"ldap://ipa1.example.org")]
    pub url: String,
    /// Whether `ldap://` turns to TLS by StartTLS, without which nothing is sent.
    #[serde(default)]
    pub start_tls: bool,
    /// Its share under `weighted`.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// Servers of a tier are used only where all of the lower tiers are down or full.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub tier: u32,
    /// How many connections it takes. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
}

fn one() -> u32 {
    1
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host's name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the connection begins with TLS.
    pub tls: bool,
}

impl Server {
    /// Where it is.
    pub fn place(&self) -> Result<Place, String> {
        let bad = || format!("`{}` is not as in `ldap://HOST:PORT` or `ldaps://HOST:PORT`", self.url);
        let (tls, rest) = match self.url.split_once("://").ok_or_else(bad)? {
            ("ldap", rest) => (false, rest),
            ("ldaps", rest) => (true, rest),
            _ => return Err(bad()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let standard = if tls { 636 } else { 389 };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (rest, standard),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '?', '@', ' ']) {
            return Err(bad());
        }
        Ok(Place { host: host.to_owned(), port, tls })
    }
}

/// How the servers are reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// How a server is chosen for a connection, or for one of the service's searches.
    pub balance: Balance,
    /// The file with the certificates, in PEM, of those who issue servers' certificates.
    pub ca: PathBuf,
    /// The proxy's own certificate, for servers that ask for one. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How many seconds a connection may take to come about, TLS included.
    #[schemars(range(min = 1, max = 300))]
    pub connect_seconds: u32,
    /// How many seconds a server may leave its oldest request without a byte before it counts as failed. 0: any time.
    #[schemars(range(max = 86_400))]
    pub response_seconds: u32,
    /// How servers are looked at.
    pub health: Health,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            balance: Balance::RoundRobin,
            ca: "/etc/ssl/certs/ca-certificates.crt".into(),
            tls: None,
            connect_seconds: 5,
            response_seconds: 60,
            health: Health::default(),
        }
    }
}

/// How a server is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after another.
    #[default]
    RoundRobin,
    /// The one with the fewest connections for its weight.
    LeastConnections,
    /// The first of the list that is up.
    FirstAvailable,
    /// One after another, each as often as its weight says.
    Weighted,
}

/// How servers are looked at: a connection with all that belongs to it, then a search for the root entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// How many seconds lie between two looks.
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: u32,
    /// How many looks in a row have to succeed before a server that was down is used.
    #[schemars(range(min = 1, max = 100))]
    pub rise: u32,
    /// How many looks or connections in a row have to fail before a server is down.
    #[schemars(range(min = 1, max = 100))]
    pub fall: u32,
    /// Over how many seconds a server that comes back is brought to its full share under `weighted` and `least_connections`.
    #[schemars(range(max = 3600))]
    pub slow_start_seconds: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { interval_seconds: 5, rise: 2, fall: 3, slow_start_seconds: 0 }
    }
}

/// The identity of a service. A client that binds as it, with its password, is answered by the proxy itself; its searches
/// without controls then go to whichever server is chosen for each, over connections that are shared. Anything else takes
/// a connection of its own, bound as the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name that it binds as.
    #[schemars(example = &"uid=synapse,cn=sysaccounts,cn=etc,dc=example,dc=org")]
    pub dn: String,
    /// The file with its password.
    pub password_file: PathBuf,
    /// How many shared connections each server gets.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 64))]
    pub connections: u32,
}

fn two() -> u32 {
    2
}

/// What clients may do. A bind with a name and an empty password is refused in any case, since servers take it for
/// an anonymous one (RFC 4513, section 5.1.2), and careless programs for a login.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Whether whatever changes entries is refused, passwords and unknown extended operations included.
    pub read_only: bool,
    /// Whether clients that have not bound may do more than look at the root entry.
    pub anonymous: bool,
    /// Whether passwords are taken within TLS alone.
    pub require_tls: bool,
    /// The SASL mechanisms that may be used, in capitals. Those that put a layer of their own around what follows (GSSAPI,
    /// DIGEST-MD5) cannot pass, nor can EXTERNAL, by which a server would see the proxy.
    pub sasl_mechanisms: Vec<String>,
    /// Names at or below which those who bind have to be. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bind_dns: Vec<String>,
    /// Names at or below which entries have to be that are searched, compared or changed. The root entry can be read in
    /// any case. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// Attributes that searches may return and look at. Others are left out of what is asked for; a filter with another is
    /// refused. It needs `read_only`. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            read_only: false,
            anonymous: true,
            require_tls: false,
            sasl_mechanisms: ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"]
                .map(str::to_owned)
                .to_vec(),
            bind_dns: Vec::new(),
            bases: Vec::new(),
            attributes: Vec::new(),
        }
    }
}

/// How much clients may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How many connections clients have in all.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: u32,
    /// How many one client's address has.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_per_client: u32,
    /// How many operations of a connection are under way at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub pending: u32,
    /// How large a client's message may be, in bytes.
    #[schemars(range(min = 1024, max = 16_777_216))]
    pub request_bytes: u32,
    /// How large a server's message may be, in bytes.
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub response_bytes: u32,
    /// How many entries a search may return; a client that asks for more is given these. 0: any number.
    #[schemars(range(max = 2_147_483_647))]
    pub search_entries: u32,
    /// How many seconds a search may take at the server. 0: any time.
    #[schemars(range(max = 86_400))]
    pub search_seconds: u32,
    /// After how many seconds without an operation a connection is closed. 0: never.
    #[schemars(range(max = 604_800))]
    pub idle_seconds: u32,
    /// How many seconds a client may take for TLS, for the rest of a message, or without reading what it is sent.
    #[schemars(range(min = 1, max = 3600))]
    pub io_seconds: u32,
    /// How many seconds operations may take to finish when the proxy stops.
    #[schemars(range(max = 3600))]
    pub drain_seconds: u32,
    /// Binds from one address, an IPv6 network of 64 bits counting as one. Null: no limit.
    pub binds_per_client: Option<Rate>,
    /// Binds as one name, in whatever spelling. Null: no limit.
    pub binds_per_dn: Option<Rate>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_client: 1024,
            pending: 64,
            request_bytes: 256 << 10,
            response_bytes: 4 << 20,
            search_entries: 0,
            search_seconds: 0,
            idle_seconds: 600,
            io_seconds: 30,
            drain_seconds: 20,
            binds_per_client: Some(Rate { burst: 100, per_minute: 60, count: Count::Failed }),
            binds_per_dn: Some(Rate { burst: 10, per_minute: 6, count: Count::Failed }),
        }
    }
}

/// How often something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How often at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: u32,
    /// How often a minute in the long run.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub per_minute: u32,
    /// What counts.
    #[serde(default)]
    pub count: Count,
}

/// What counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// Binds that fail for their password.
    #[default]
    Failed,
    /// All binds.
    All,
}

/// Answers to searches that are remembered, for each name that is bound. What is changed through the proxy empties it;
/// what is changed elsewhere shows after the time below.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// For how many seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub seconds: u32,
    /// How many bytes of them in all, in MiB.
    #[serde(default = "mebibytes")]
    #[schemars(range(min = 1, max = 65_536))]
    pub mebibytes: u32,
}

fn mebibytes() -> u32 {
    64
}

/// What is written to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessLog {
    /// Nothing.
    Off,
    /// Binds, changes and refusals.
    #[default]
    Binds,
    /// Every operation.
    All,
}

impl Settings {
    /// Where it is watched.
    pub(crate) fn observed(&self) -> Result<Option<ListenAddress>, String> {
        let parse = |text: &String| text.parse();
        self.metrics.as_ref().map(parse).transpose().map_err(|error: model::NotAnAddress| {
            format!("metrics: {error}; write one such as `127.0.0.1:9389`, or `unix:` and a path")
        })
    }

    /// What the types cannot tell. The first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let Listen { ldap, ldaps, tls, client_ca, .. } = &self.listen;
        self.observed()?;
        if ldap.is_none() && ldaps.is_none() {
            return Err("listen: neither `ldap` nor `ldaps` has an address; give one".to_owned());
        }
        if tls.is_none() && (ldaps.is_some() || client_ca.is_some()) {
            return Err("listen.tls: it is missing, and `ldaps` and `client_ca` need it".to_owned());
        }
        if self.policy.require_tls && tls.is_none() {
            return Err("policy.require_tls: nobody could bind, for there is no `listen.tls`".to_owned());
        }
        if !self.policy.attributes.is_empty() && !self.policy.read_only {
            return Err("policy.attributes: changes could read other attributes; set `policy.read_only` too"
                .to_owned());
        }
        for (at, server) in self.servers.iter().enumerate() {
            let place = server.place().map_err(|error| format!("servers[{at}].url: {error}"))?;
            if place.tls && server.start_tls {
                return Err(format!("servers[{at}].start_tls: `ldaps://` has TLS already; remove one"));
            }
        }
        for (field, names) in [("bind_dns", &self.policy.bind_dns), ("bases", &self.policy.bases)] {
            for (at, name) in names.iter().enumerate() {
                if Dn::parse(name).is_none() {
                    return Err(format!(
                        "policy.{field}[{at}]: `{name}` is not a name as in `dc=example,dc=org`"
                    ));
                }
            }
        }
        for mechanism in &self.policy.sasl_mechanisms {
            if ["EXTERNAL", "GSSAPI", "GSS-SPNEGO", "DIGEST-MD5"].contains(&mechanism.as_str()) {
                return Err(format!("policy.sasl_mechanisms: `{mechanism}` cannot pass a proxy; remove it"));
            }
        }
        Ok(())
    }
}
