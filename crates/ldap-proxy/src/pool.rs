//! The servers: which one is next, how it is reached, whether it is well.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use config::secrets::Secret;
use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapDerefAliases, LdapExtendedRequest, LdapFilter, LdapMsg, LdapOp,
    LdapResultCode, LdapSearchRequest, LdapSearchScope,
};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::message;
use crate::metrics::Metrics;
use crate::settings::{self, Balance, Health, Place};
use crate::wire::{Stream, Wire, prepare};

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: Arc<str>,
    settings: settings::Server,
    place: Place,
    up: AtomicBool,
    streak: Mutex<Streak>,
    connections: AtomicU32,
    /// Requests over shared connections that are under way.
    pub(crate) outstanding: AtomicU32,
}

#[derive(Debug, Default)]
struct Streak {
    successes: u32,
    failures: u32,
    /// When it came back.
    back: Option<Instant>,
}

/// What choosing goes by.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    up: bool,
    full: bool,
    tier: u32,
    weight: f64,
    load: u32,
}

/// Why a server is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no connection within the time allowed")]
    Slow,
    #[error("it answers StartTLS with {0:?}")]
    StartTls(LdapResultCode),
    #[error("it answers the service's bind with {0:?}")]
    Bind(LdapResultCode),
    #[error("it does not show its root entry ({0})")]
    Root(&'static str),
    #[error("it answers with something else")]
    Unexpected,
}

/// All servers.
pub(crate) struct Pool {
    pub(crate) servers: Vec<Arc<Server>>,
    balance: Balance,
    health: Health,
    connect: Duration,
    response_bytes: usize,
    connector: Option<TlsConnector>,
    next: AtomicUsize,
    /// How much each server has a lead over its share (smooth weighted round robin).
    leads: Mutex<Vec<f64>>,
    metrics: Arc<Metrics>,
}

/// Who the proxy is to a server.
pub(crate) type Identity<'s> = Option<(&'s str, &'s Secret)>;

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) wire: Wire,
    pub(crate) server: Arc<Server>,
    pub(crate) index: usize,
    pub(crate) read: Instant,
    metrics: Arc<Metrics>,
}

impl Drop for Leg {
    fn drop(&mut self) {
        // Said if it can be said at once.
        self.wire.output.extend_from_slice(&message::unbind(i32::MAX));
        let _ = self.wire.poll_drain(&mut Context::from_waker(Waker::noop()));
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connected(&self.server.name, -1);
    }
}

impl Server {
    fn new(settings: &settings::Server) -> Result<Self, String> {
        Ok(Self {
            name: settings.url.as_str().into(),
            settings: settings.clone(),
            place: settings.place()?,
            up: AtomicBool::new(true),
            streak: Mutex::default(),
            connections: AtomicU32::new(0),
            outstanding: AtomicU32::new(0),
        })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn candidate(&self, health: &Health, shared: bool, now: Instant) -> Candidate {
        let connections = self.connections.load(Ordering::Relaxed);
        let slow = f64::from(health.slow_start_seconds);
        let back = self.streak.lock().unwrap_or_else(PoisonError::into_inner).back;
        let age = back.map_or(f64::INFINITY, |back| now.saturating_duration_since(back).as_secs_f64());
        let part = if slow > 0.0 { (age / slow).clamp(0.05, 1.0) } else { 1.0 };
        Candidate {
            up: self.is_up(),
            full: !shared && self.settings.max_connections.is_some_and(|most| connections >= most),
            tier: self.settings.tier,
            weight: f64::from(self.settings.weight) * part,
            load: if shared { self.outstanding.load(Ordering::Relaxed) } else { connections },
        }
    }
}

impl Pool {
    /// Servers that were there before keep what is known of them.
    pub(crate) fn new(
        settings: &settings::Settings,
        connector: Option<TlsConnector>,
        before: &[Arc<Server>],
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let servers: Vec<_> = settings
            .servers
            .iter()
            .map(|server| match before.iter().find(|known| known.settings == *server) {
                Some(known) => Ok(known.clone()),
                None => Server::new(server).map(Arc::new),
            })
            .collect::<Result<_, _>>()?;
        for server in &servers {
            metrics.up(&server.name, server.is_up());
        }
        let upstream = &settings.upstream;
        Ok(Self {
            leads: Mutex::new(vec![0.0; servers.len()]),
            servers,
            balance: upstream.balance,
            health: upstream.health.clone(),
            connect: Duration::from_secs(upstream.connect_seconds.into()),
            response_bytes: settings.limits.response_bytes as usize,
            connector,
            next: AtomicUsize::new(0),
            metrics,
        })
    }

    /// The servers in the order in which they are to be tried; `shared` for one search rather than a connection.
    pub(crate) fn order(&self, shared: bool) -> Vec<usize> {
        let now = Instant::now();
        let candidates: Vec<_> =
            self.servers.iter().map(|server| server.candidate(&self.health, shared, now)).collect();
        let mut leads = self.leads.lock().unwrap_or_else(PoisonError::into_inner);
        order(self.balance, &candidates, self.next.fetch_add(1, Ordering::Relaxed), &mut leads)
    }

    /// A connection to one of the servers, but not to the one that has just failed, if there is another.
    pub(crate) async fn connect(&self, identity: Identity<'_>, failed: Option<usize>) -> Option<Leg> {
        let mut order = self.order(false);
        if let Some(at) = failed.and_then(|failed| order.iter().position(|index| *index == failed)) {
            let failed = order.remove(at);
            order.push(failed);
        }
        for index in order {
            match self.reach(index, identity).await {
                Ok(leg) => return Some(leg),
                Err(error) => self.failed(index, &error),
            }
        }
        None
    }

    /// A connection to this server.
    pub(crate) async fn reach(&self, index: usize, identity: Identity<'_>) -> Result<Leg, Failure> {
        let server = &self.servers[index];
        let wire = timeout(self.connect, self.dial(server, identity)).await.map_err(|_| Failure::Slow)??;
        server.connections.fetch_add(1, Ordering::Relaxed);
        self.metrics.connected(&server.name, 1);
        Ok(Leg { wire, server: server.clone(), index, read: Instant::now(), metrics: self.metrics.clone() })
    }

    async fn dial(&self, server: &Server, identity: Identity<'_>) -> Result<Wire, Failure> {
        let Place { host, port, tls } = &server.place;
        let socket = TcpStream::connect((host.as_str(), *port)).await?;
        prepare(&socket)?;
        let mut wire = Wire::new(Stream::Plain(socket));
        if server.settings.start_tls {
            let name = String::from_utf8_lossy(message::oid::START_TLS).into_owned();
            let request = LdapOp::ExtendedRequest(LdapExtendedRequest { name, value: None });
            match self.ask(&mut wire, 1, request).await?.as_slice() {
                [LdapOp::ExtendedResponse(answer)] if answer.res.code == LdapResultCode::Success => {}
                [LdapOp::ExtendedResponse(answer)] => {
                    return Err(Failure::StartTls(answer.res.code.clone()));
                }
                _ => return Err(Failure::Unexpected),
            }
            // Whatever came in the clear behind the answer is not of the server's.
            if !wire.input.is_empty() {
                return Err(Failure::Unexpected);
            }
        }
        if let (true, Some(connector)) = (*tls || server.settings.start_tls, &self.connector) {
            let name = ServerName::try_from(host.clone())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let Stream::Plain(socket) = wire.stream else { return Err(Failure::Unexpected) };
            let stream = connector.connect(name, socket).await?;
            wire = Wire::new(Stream::Tls(Box::new(stream.into())));
        }
        if let Some((dn, secret)) = identity {
            let request = LdapOp::BindRequest(LdapBindRequest {
                version: 3,
                dn: dn.to_owned(),
                cred: LdapBindCred::Simple(secret.expose().to_owned()),
            });
            match self.ask(&mut wire, 2, request).await?.as_slice() {
                [LdapOp::BindResponse(answer)] if answer.res.code == LdapResultCode::Success => {}
                [LdapOp::BindResponse(answer)] => return Err(Failure::Bind(answer.res.code.clone())),
                _ => return Err(Failure::Unexpected),
            }
        }
        Ok(wire)
    }

    /// The answer to a request on a connection of its own: entries, and what ends it.
    async fn ask(&self, wire: &mut Wire, id: i32, op: LdapOp) -> Result<Vec<LdapOp>, Failure> {
        let mut codec = LdapCodec::new(Some(self.response_bytes), None);
        let mut text = BytesMut::new();
        codec.encode(LdapMsg { msgid: id, op, ctrl: Vec::new() }, &mut text)?;
        wire.output.extend_from_slice(&text);
        wire.drain().await?;
        let mut answer = Vec::new();
        loop {
            while let Some(LdapMsg { msgid, op, .. }) = codec.decode(&mut wire.input)? {
                if msgid != id {
                    return Err(Failure::Unexpected);
                }
                let more = matches!(op, LdapOp::SearchResultEntry(_) | LdapOp::SearchResultReference(_));
                answer.push(op);
                if !more {
                    return Ok(answer);
                }
                if answer.len() > 16 {
                    return Err(Failure::Unexpected);
                }
            }
            wire.fill().await?;
        }
    }

    /// Looks at a server from time to time, for ever.
    pub(crate) async fn watch(&self, index: usize, identity: Identity<'_>) {
        loop {
            match self.look(index, identity).await {
                Ok(()) => self.worked(index),
                Err(error) => self.failed(index, &error),
            }
            sleep(Duration::from_secs(self.health.interval_seconds.into())).await;
        }
    }

    async fn look(&self, index: usize, identity: Identity<'_>) -> Result<(), Failure> {
        let mut leg = self.reach(index, identity).await?;
        let request = LdapOp::SearchRequest(LdapSearchRequest {
            base: String::new(),
            scope: LdapSearchScope::Base,
            aliases: LdapDerefAliases::Never,
            sizelimit: 1,
            timelimit: 0,
            typesonly: false,
            filter: LdapFilter::Present("objectClass".to_owned()),
            attrs: vec!["supportedLDAPVersion".to_owned(), "namingContexts".to_owned()],
        });
        let answer = timeout(self.connect, self.ask(&mut leg.wire, 3, request)).await;
        match answer.map_err(|_| Failure::Slow)??.as_slice() {
            [LdapOp::SearchResultEntry(_), LdapOp::SearchResultDone(done)]
                if done.code == LdapResultCode::Success =>
            {
                Ok(())
            }
            [LdapOp::SearchResultDone(_)] => Err(Failure::Root("it is refused")),
            _ => Err(Failure::Root("the answer is another one")),
        }
    }

    /// A look succeeded.
    fn worked(&self, index: usize) {
        let server = &self.servers[index];
        let mut streak = server.streak.lock().unwrap_or_else(PoisonError::into_inner);
        streak.failures = 0;
        streak.successes = streak.successes.saturating_add(1);
        if !server.is_up() && streak.successes >= self.health.rise {
            streak.back = Some(Instant::now());
            server.up.store(true, Ordering::Relaxed);
            self.metrics.up(&server.name, true);
            tracing::info!(server = %server.name, "the server is back");
        }
    }

    /// A look failed, or a connection.
    pub(crate) fn failed(&self, index: usize, error: &Failure) {
        let server = &self.servers[index];
        self.metrics.failed(&server.name);
        let mut streak = server.streak.lock().unwrap_or_else(PoisonError::into_inner);
        streak.successes = 0;
        streak.failures = streak.failures.saturating_add(1);
        if server.is_up() && streak.failures >= self.health.fall {
            server.up.store(false, Ordering::Relaxed);
            self.metrics.up(&server.name, false);
            tracing::warn!(server = %server.name, %error, "the server is down");
        } else {
            tracing::debug!(server = %server.name, %error, "the server failed");
        }
    }

    /// Whether there is a server to send to.
    pub(crate) fn is_ready(&self) -> bool {
        self.servers.iter().any(|server| server.is_up())
    }
}

/// Who is tried in which order: those that are up before those that are down, lower tiers first.
fn order(balance: Balance, candidates: &[Candidate], turn: usize, leads: &mut [f64]) -> Vec<usize> {
    let mut order: Vec<_> = (0..candidates.len()).filter(|index| !candidates[*index].full).collect();
    let class = |index: usize| (!candidates[index].up, candidates[index].tier);
    let spread =
        |index: usize| f64::from(candidates[index].load) / candidates[index].weight.max(f64::EPSILON);
    // A stable sort keeps the list's order within a class.
    order.sort_by_key(|index| class(*index));
    for group in order.chunk_by_mut(|a, b| class(*a) == class(*b)) {
        match balance {
            Balance::FirstAvailable => {}
            Balance::RoundRobin | Balance::Weighted => group.rotate_left(turn % group.len()),
            Balance::LeastConnections => {
                // Among equals, one after another.
                group.rotate_left(turn % group.len());
                group.sort_by(|a, b| spread(*a).total_cmp(&spread(*b)));
            }
        }
    }
    if balance == Balance::Weighted
        && let Some(group) = order.chunk_by_mut(|a, b| class(*a) == class(*b)).next()
    {
        let whole: f64 = group.iter().map(|index| candidates[*index].weight).sum();
        for index in group.iter() {
            leads[*index] += candidates[*index].weight;
        }
        group.sort_by(|a, b| leads[*b].total_cmp(&leads[*a]));
        leads[group[0]] -= whole;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Candidate = Candidate { up: true, full: false, tier: 0, weight: 1.0, load: 0 };

    fn firsts(balance: Balance, candidates: &[Candidate], turns: usize) -> Vec<usize> {
        let mut leads = vec![0.0; candidates.len()];
        (0..turns).map(|turn| order(balance, candidates, turn, &mut leads)[0]).collect()
    }

    #[test]
    fn each_way_of_balancing_takes_whom_it_says() {
        assert_eq!(firsts(Balance::RoundRobin, &[ONE; 3], 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(firsts(Balance::FirstAvailable, &[ONE; 3], 3), [0, 0, 0]);
        let heavy = Candidate { weight: 3.0, ..ONE };
        let turns = firsts(Balance::Weighted, &[heavy, ONE], 8);
        assert_eq!(turns.iter().filter(|index| **index == 0).count(), 6, "{turns:?}");
        let busy = |load| Candidate { load, ..ONE };
        assert_eq!(firsts(Balance::LeastConnections, &[busy(3), busy(1), busy(2)], 2), [1, 1]);
        let busy_but_heavy = Candidate { load: 3, weight: 4.0, ..ONE };
        assert_eq!(firsts(Balance::LeastConnections, &[busy_but_heavy, busy(1)], 2), [0, 0]);
    }

    #[test]
    fn who_is_down_comes_last_and_who_is_full_not_at_all() {
        let down = Candidate { up: false, ..ONE };
        let spare = Candidate { tier: 1, ..ONE };
        let full = Candidate { full: true, ..ONE };
        for balance in
            [Balance::RoundRobin, Balance::FirstAvailable, Balance::LeastConnections, Balance::Weighted]
        {
            for turn in 0..4 {
                assert_eq!(order(balance, &[down, spare, full, ONE], turn, &mut [0.0; 4]), [3, 1, 0]);
            }
        }
    }
}
