//! Where a Matrix server is, as other servers and clients find it, and requests to it.
//!
//! Other servers find it by the server-server specification, "Resolving server names": an address, a port, the document at
//! `/.well-known/matrix/server`, SRV records, port 8448. Clients find it by `/.well-known/matrix/client`. Each step is kept, to be
//! shown to people ([`Step`]). Since strangers name servers, nothing is connected to that is not of the public internet, unless
//! [`Settings::allowed_networks`] says so.

pub mod check;
mod client;
mod dns;
mod guard;
mod name;
mod tls;
mod well_known;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use quick_cache::sync::Cache;
use serde::Serialize;

pub use client::{Answer, Client, Limits, RequestError, Settings};
pub use tls::SetupError;

use client::Place;
use name::{Host, Name};

/// The port of servers that say nothing else.
pub const DEFAULT_PORT: u16 = 8448;
/// How many servers are remembered.
const REMEMBERED: usize = 10_000;
/// How long the way to a server is remembered at least, and at most where SRV records say for how long they hold.
const LEAST: Duration = Duration::from_secs(60);

/// One step on the way to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was looked at: a URL, a name of the DNS, or the server's name itself.
    pub asked: String,
    /// What it said, or why it said nothing.
    pub found: String,
    /// Whether it led on. That it did not is no fault: the next step is taken.
    pub used: bool,
}

/// By which rule of the specification a server was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The name is an address.
    Address,
    /// The name has a port.
    Port,
    /// There are SRV records of `_matrix-fed._tcp`.
    Srv,
    /// There are SRV records of `_matrix._tcp`, which is deprecated.
    DeprecatedSrv,
    /// Nothing else is said.
    DefaultPort,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// The host to look up, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The way to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// What `/.well-known/matrix/server` made of the name, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegated: Option<String>,
    /// The rule that applies to that.
    pub rule: Rule,
    /// The `Host` header of requests to it.
    pub host: String,
    /// Whose certificate it has to have: a name, which is also the one that TLS asks for (SNI), or an address.
    pub certificate: String,
    /// Where it is, in the order in which to try.
    pub endpoints: Vec<Endpoint>,
    /// How it was found.
    pub steps: Vec<Step>,
}

/// Where a server's client-server API is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Homeserver {
    /// The server's name.
    pub name: String,
    /// The URL below which `/_matrix/client` is, without a slash at its end. None where that is not said.
    pub base_url: Option<String>,
    /// The whole document.
    pub document: Option<serde_json::Value>,
    /// How it was found.
    pub steps: Vec<Step>,
}

/// The text is no server name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

/// Why a server does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FederationError {
    /// It is no server.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// It cannot be asked.
    #[error("{name}: {error}")]
    Request {
        /// The server's name.
        name: String,
        /// Why not.
        error: RequestError,
    },
}

/// Finds servers, and remembers for a while where they are.
#[derive(Debug)]
pub struct Discovery {
    client: Client,
    servers: Cache<String, (Instant, Arc<Server>)>,
    homeservers: Cache<String, (Instant, Arc<Homeserver>)>,
}

impl Discovery {
    /// Finds servers with these settings.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        let client = Client::new(settings)?;
        Ok(Self { client, servers: Cache::new(REMEMBERED), homeservers: Cache::new(REMEMBERED) })
    }

    /// For requests to elsewhere.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where other servers find this one.
    pub async fn server(&self, name: &str) -> Result<Arc<Server>, InvalidName> {
        let name = Name::parse(name).map_err(InvalidName)?;
        if let Some((until, known)) = self.servers.get(&name.text)
            && Instant::now() < until
        {
            return Ok(known);
        }
        let (server, valid) = self.find(&name).await;
        let server = Arc::new(server);
        self.servers.insert(name.text, (Instant::now() + valid, server.clone()));
        Ok(server)
    }

    /// Where clients find the homeserver of this name. The answer holds as long as the document says, from 5 minutes to 4 hours;
    /// where there is none, for 5 minutes.
    pub async fn homeserver(&self, name: &str) -> Result<Arc<Homeserver>, InvalidName> {
        const LONGEST: Duration = Duration::from_secs(4 * 3600);
        let name = Name::parse(name).map_err(InvalidName)?;
        if let Some((until, known)) = self.homeservers.get(&name.text)
            && Instant::now() < until
        {
            return Ok(known);
        }
        let mut steps = Vec::new();
        let (document, valid) = well_known::client(&self.client, &name.text, &mut steps).await;
        let base_url = document.as_ref().and_then(well_known::base_url);
        let homeserver = Arc::new(Homeserver { name: name.text.clone(), base_url, document, steps });
        self.homeservers.insert(name.text, (Instant::now() + valid.min(LONGEST), homeserver.clone()));
        Ok(homeserver)
    }

    /// Sends a GET without a signature to a server, wherever it is. The path has its query.
    pub async fn federation(
        &self,
        name: &str,
        path: &str,
        limits: Limits,
    ) -> Result<Answer, FederationError> {
        let server = self.server(name).await?;
        let places: Vec<Place<'_>> = server
            .endpoints
            .iter()
            .map(|endpoint| Place {
                host: &endpoint.host,
                port: endpoint.port,
                certificate: Some(&server.certificate),
                guarded: true,
            })
            .collect();
        let sent = self.client.send(
            &places,
            &server.host,
            Method::GET,
            path,
            HeaderMap::new(),
            Bytes::new(),
            limits,
        );
        sent.await.map_err(|error| FederationError::Request { name: server.name.clone(), error })
    }

    /// Finds a server, and says for how long that holds.
    async fn find(&self, name: &Name) -> (Server, Duration) {
        let mut steps = Vec::new();
        if matches!(name.host, Host::Ip(_)) || name.port.is_some() {
            let (server, _) = self.resolve(name, name, steps).await;
            return (server, Duration::from_secs(3600));
        }
        let (delegated, valid) = well_known::server(&self.client, &name.text, &mut steps).await;
        let (mut server, srv_valid) = self.resolve(delegated.as_ref().unwrap_or(name), name, steps).await;
        server.delegated = delegated.map(|name| name.text);
        (server, valid.min(srv_valid).max(LEAST))
    }

    /// Finds where a name leads that needs no document any more.
    async fn resolve(&self, at: &Name, name: &Name, mut steps: Vec<Step>) -> (Server, Duration) {
        let host = at.host();
        let mut valid = Duration::MAX;
        let direct = |port| vec![Endpoint { host: host.clone(), port }];
        let (rule, endpoints) = match (&at.host, at.port) {
            (Host::Ip(_), port) => (Rule::Address, direct(port.unwrap_or(DEFAULT_PORT))),
            (Host::Dns(_), Some(port)) => (Rule::Port, direct(port)),
            (Host::Dns(_), None) => {
                let mut found = None;
                for (rule, service) in
                    [(Rule::Srv, "_matrix-fed._tcp"), (Rule::DeprecatedSrv, "_matrix._tcp")]
                {
                    let asked = format!("{service}.{host}");
                    let step = |found, used| Step { asked: format!("SRV {asked}"), found, used };
                    match self.client.resolver.services(&asked).await {
                        Ok((services, ttl)) if !services.is_empty() => {
                            let endpoints: Vec<_> = services
                                .into_iter()
                                .map(|service| Endpoint { host: service.target, port: service.port })
                                .collect();
                            let list: Vec<_> = endpoints
                                .iter()
                                .map(|place| format!("{}:{}", place.host, place.port))
                                .collect();
                            steps.push(step(list.join(", "), true));
                            valid = ttl;
                            found = Some((rule, endpoints));
                            break;
                        }
                        Ok(_) => steps.push(step("no records".to_owned(), false)),
                        Err(error) => {
                            steps.push(step(error, false));
                            valid = LEAST;
                        }
                    }
                }
                found.unwrap_or_else(|| (Rule::DefaultPort, direct(DEFAULT_PORT)))
            }
        };
        let found = match rule {
            Rule::Address => "an address",
            Rule::Port => "a host with a port",
            Rule::Srv | Rule::DeprecatedSrv => "a host with SRV records",
            Rule::DefaultPort => "a host, on the default port",
        };
        steps.push(Step { asked: at.text.clone(), found: found.to_owned(), used: true });
        let server = Server {
            name: name.text.clone(),
            delegated: None,
            rule,
            host: at.text.clone(),
            certificate: host,
            endpoints,
            steps,
        };
        (server, valid)
    }
}
