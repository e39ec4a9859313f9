//! The data plane: requests to the Synapse process that can serve them.
//!
//! A [`Router`] takes HTTP/1.1 requests on its listeners and forwards each to an instance of the role that the
//! endpoint table names, over TCP or a unix socket. What it works by is an immutable [`Snapshot`] that [`Router::reload`]
//! replaces whole. `docs/router.md` says what clients, operators and dashboards may rely on.
//!
//! Deciding (`key`, `balance`, `failure`, `headers`, and the crate `routes`) and reading HTTP (`http1`) is
//! pure. `engine` runs a thread for each core, each with its own connections (`client`, `upstream`) over `stream`s that
//! `io_uring` or epoll moves; `proxy` is the life of a request. `front` accepts connections and hands them to the threads.
//! `dns` looks names up, and `names` puts into effect what was found.

mod access;
mod answer;
mod attempt;
mod balance;
mod client;
mod dns;
mod engine;
mod failure;
mod front;
mod headers;
mod health;
mod http1;
mod http2;
mod instance;
mod key;
mod metrics;
mod names;
mod payload;
mod pick;
mod proxy;
mod record;
mod reply;
mod settings;
mod snapshot;
mod state;
mod stream;
mod timer;
mod tls;
mod upstream;
mod whoami;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use model::{Address, Role};
use routes::{CLASSES, Class, Decision};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

pub use access::{AccessLog, timestamp};
pub use engine::Transport;
pub use failure::{Blame, Failure};
pub use front::Listener;
pub use instance::InstanceState;
pub use service::tls::TlsError;
pub use settings::Settings;
pub use snapshot::{Snapshot, SnapshotError};

use dns::Resolver;
use engine::Engine;
use front::Purpose;
use http1::{HeadLimits, RequestHead};
use key::Known;
use names::Names;
use pick::{Choice, Pick};
use snapshot::Active;
use state::{Phase, Shared, State};

/// What is settled once, when a router starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Where the access log goes.
    pub access_log: AccessLog,
    /// How many threads move bytes. Default: one for each core.
    pub threads: Option<usize>,
    /// How they do it.
    pub transport: Transport,
    /// The DNS server that is asked for the names of hosts, as they stand. Default: what `/etc/resolv.conf` says.
    pub dns_server: Option<SocketAddr>,
}

/// The router could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The access log cannot be written.
    #[error("cannot open the access log {log:?}: {source}; give another path or mend the directory's mode")]
    AccessLog {
        /// Where it should have gone.
        log: AccessLog,
        /// Why it cannot.
        source: io::Error,
    },
    /// The system gives no more threads.
    #[error("cannot start a thread: {0}; raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
}

/// Looks for renewed certificates as long as the router lives.
async fn renew_certificates(state: Weak<State>) {
    loop {
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
        let Some(state) = state.upgrade() else { return };
        if let Some(tls) = &state.active.load().snapshot.tls {
            tls.refresh();
        }
    }
}

/// How often the files of a certificate are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(60);

/// A router. Clones are handles of the same one; it ends when the last is dropped and its listeners have stopped.
#[derive(Clone, Debug)]
pub struct Router {
    state: Shared,
}

/// A pause of a router, which ends when this is dropped.
#[derive(Debug)]
pub struct Pause(Router);

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.state.pauses.fetch_sub(1, Ordering::AcqRel);
        self.0.state.available();
    }
}

/// The head of a request, for [`Router::decide`].
#[derive(Debug)]
pub struct Head(RequestHead);

/// An instance, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceStats {
    /// Its name.
    pub name: String,
    /// Its roles.
    pub roles: Vec<Role>,
    /// Where it takes requests.
    pub address: Address,
    /// Its state.
    pub state: InstanceState,
    /// Requests in flight on it.
    pub in_flight: usize,
    /// Requests that it ended, since the router started.
    pub requests: u64,
    /// Those of them that it failed.
    pub failures: u64,
}

/// A class of requests, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassStats {
    /// Its name.
    pub class: &'static str,
    /// Its requests in flight.
    pub in_flight: usize,
    /// Its requests that wait for a place.
    pub queued: usize,
    /// The most that may be in flight on each instance.
    pub cap: usize,
}

/// How a router is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// The instances that take requests, main first.
    pub instances: Vec<InstanceStats>,
    /// The classes of requests.
    pub classes: Vec<ClassStats>,
    /// Client connections open.
    pub connections: usize,
    /// Whether it is stopping.
    pub draining: bool,
}

/// How a router ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shutdown {
    /// The requests that were under way and finished.
    pub finished: usize,
    /// Those that did not finish before the deadline.
    pub cut: usize,
}

impl Router {
    /// Starts a router, and its health checks. It must be called within a tokio runtime.
    pub fn start(snapshot: Snapshot, options: Options) -> Result<Self, StartError> {
        let writer = access::Writer::start(&options.access_log)
            .map_err(|source| StartError::AccessLog { log: options.access_log, source })?;
        let phase = watch::Sender::new(Phase::Serving);
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = options.threads.unwrap_or_else(cores);
        let engine = Engine::start(threads, options.transport, &phase).map_err(StartError::Thread)?;
        let active = Active::new(Arc::new(snapshot), None, &Names::new());
        let resolver = Resolver::new(options.dns_server);
        let state = State::new(active, writer, phase, engine, resolver);
        let router = Self { state: Arc::new(state) };
        for (instance, _) in &router.state.active.load().instances {
            health::start(&router.state, instance);
        }
        names::follow(&router.state, &mut names::lock(&router.state));
        tokio::spawn(renew_certificates(Arc::downgrade(&router.state)));
        Ok(router)
    }

    /// Serves clients and other servers on a listener, until [`Router::shutdown`]. May be called for several.
    pub fn serve(&self, listener: impl Into<Listener>) -> impl Future<Output = ()> + Send + 'static {
        self.serve_until(listener, std::future::pending())
    }

    /// The same until `end` comes, if that is earlier. Connections that were accepted go on.
    pub fn serve_until(
        &self,
        listener: impl Into<Listener>,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        // Counted from now on, not from when the future first runs, so that the end waits for it.
        front::serve_public(front::Listening::new(self.state.clone()), listener.into(), end)
    }

    /// Serves `/metrics`, `/health` and `/ready` on a listener, until the end of [`Router::shutdown`].
    pub fn serve_private(&self, listener: impl Into<Listener>) -> impl Future<Output = ()> + Send + 'static {
        self.serve_private_until(listener, std::future::pending())
    }

    /// The same until `end` comes, if that is earlier.
    pub fn serve_private_until(
        &self,
        listener: impl Into<Listener>,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        front::serve(self.state.clone(), listener.into(), Purpose::Private, end)
    }

    /// Replaces table, instances and settings. Instances with the same name and address go on with their health, their
    /// connections and their requests; requests on others finish, as on drained ones. What waits is decided anew. Opens the access log
    /// anew. The sizes of the whoami cache stay as they were at the start.
    pub fn reload(&self, snapshot: Snapshot) {
        let mut names = names::lock(&self.state);
        names::activate(&self.state, Arc::new(snapshot), &names);
        names::follow(&self.state, &mut names);
        drop(names);
        self.state.access.reopen();
    }

    /// Waits until the name of every instance was looked up once, for at most this long: before that, those that are reached
    /// by a name count as away. Whether it was in time.
    pub async fn resolved(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut news = self.state.availability.subscribe();
        while !names::all_asked(&self.state) {
            if !matches!(timeout_at(until, news.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }

    /// Keeps requests from an instance that is about to be restarted: they go to another of its role, or wait for
    /// [`Router::release`] for a bounded time. Requests in flight stay. False if there is no instance of this name.
    pub fn hold(&self, instance: &str) -> bool {
        self.with(instance, |instance| instance.hold())
    }

    /// Lets an instance take requests again, after [`Router::hold`] or [`Router::drain`]; those that wait go at once.
    /// False if there is no instance of this name.
    pub fn release(&self, instance: &str) -> bool {
        let known = self.with(instance, |instance| {
            instance.release();
        });
        self.state.available();
        known
    }

    /// Keeps new requests from an instance that is to go for good; nobody waits for it. False if there is no instance of
    /// this name.
    pub fn drain(&self, instance: &str) -> bool {
        self.with(instance, |instance| instance.drain())
    }

    /// Waits until an instance may end without a loss, for at most this long; returns how many requests would still be
    /// lost. Those that the router would send again, long polls above all, are none of them.
    pub async fn settled(&self, instance: &str, within: Duration) -> usize {
        self.settle(within, |name| name == instance).await
    }

    /// The same for all instances together.
    pub async fn all_settled(&self, within: Duration) -> usize {
        self.settle(within, |_| true).await
    }

    async fn settle(&self, within: Duration, which: impl Fn(&str) -> bool) -> usize {
        /// Who has just been given an instance may not have been counted yet.
        const LOOK_AGAIN: Duration = Duration::from_millis(5);
        let until = Instant::now() + within;
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let active = self.state.active.load();
            let busy = active.busy().filter(|instance| which(&instance.name));
            let lost: u32 = busy.map(|instance| instance.irreplaceable()).sum();
            if lost == 0 || Instant::now() >= until {
                return lost as usize;
            }
        }
    }

    /// Keeps new requests from every instance until the result is dropped: they wait, for
    /// [`Settings::pause_patience`] at most. Requests in flight go on.
    #[must_use]
    pub fn pause(&self) -> Pause {
        self.state.pauses.fetch_add(1, Ordering::AcqRel);
        Pause(self.clone())
    }

    fn with(&self, name: &str, act: impl FnOnce(&Arc<instance::Instance>)) -> bool {
        let active = self.state.active.load();
        let instance = active.instance(name);
        if let Some(instance) = instance {
            act(instance);
        }
        instance.is_some()
    }

    /// Waits until it is known of every instance how it stands, for at most this long.
    pub async fn checked(&self, within: Duration) {
        let until = Instant::now() + within;
        for (instance, _) in &self.state.active.load_full().instances {
            if timeout_at(until, instance.checked.wait()).await.is_err() {
                return;
            }
        }
    }

    /// How it is doing.
    pub fn stats(&self) -> Stats {
        let active = self.state.active.load();
        let instances = active.instances.iter().map(|(instance, roles)| InstanceStats {
            name: instance.name.to_string(),
            roles: roles.clone(),
            address: instance.address.clone(),
            state: instance.state(),
            in_flight: instance.in_flight() as usize,
            requests: instance.requests.load(Ordering::Relaxed),
            failures: instance.failures.load(Ordering::Relaxed),
        });
        let classes = CLASSES.iter().map(|class| {
            let index = class.id.index();
            ClassStats {
                class: class.name,
                in_flight: active.instances.iter().map(|(i, _)| i.in_flight_of(index) as usize).sum(),
                queued: model::ROLES.iter().map(|spec| self.state.queue(index, spec.role).length()).sum(),
                cap: class.cap as usize,
            }
        });
        Stats {
            instances: instances.collect(),
            classes: classes.collect(),
            connections: self.state.connections.load(Ordering::Acquire),
            draining: *self.state.phase.borrow() > Phase::Serving,
        }
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        self.state.metrics_text()
    }

    /// Reads the head of a request: its lines, and the empty one behind them. None if it breaks HTTP or is incomplete.
    pub fn read_head(&self, head: &Bytes) -> Option<Head> {
        let active = self.state.active.load();
        let settings = active.settings();
        let limits = HeadLimits { bytes: settings.max_head_bytes, headers: settings.max_headers };
        RequestHead::parse(&mut head.clone(), limits).ok()?.map(Head)
    }

    /// Where a request would go now: its class, the role and the instance. None where it would not be forwarded, or
    /// nobody could take it. A user whom only Synapse could name counts as unknown.
    pub fn decide(&self, Head(head): &Head) -> Option<(&'static Class, Role, Arc<str>)> {
        let active = &*self.state.active.load();
        let decision = headers::decide(&active.snapshot.matcher, head.method.as_str(), head.target());
        let Decision::Forward(forward) = decision else { return None };
        let (chain, class) = (&forward.route.chain, forward.route.class);
        let key = active.is_hashed(forward.route).then(|| key::of(head, &forward, None));
        let key = if let Some(Known::Key(hash, _)) = key { Some(hash) } else { None };
        let choice = Choice { active, chain, class, key, tried: &[] };
        let Pick::Got(place, role) = choice.pick(&self.state, true) else { return None };
        Some((class, role, place.instance().name.clone()))
    }

    /// Whether every kind of request can be served now; else the roles that nobody can stand in for.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        self.state.ready()
    }

    /// Stops: accepts no more, closes connections that lie idle, lets requests finish until the deadline, then answers
    /// those that still wait for a response with 503 and cuts those that are in the midst of one.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        /// For the answers to what still waited to reach the clients.
        const FAREWELL: Duration = Duration::from_millis(500);
        let state = &self.state;
        let under_way = state.under_way.load(Ordering::Acquire);
        state.advance(Phase::Draining);
        self.connections_closed(deadline).await;
        let cut = state.under_way.load(Ordering::Acquire);
        state.advance(Phase::Ending);
        if cut > 0 {
            self.connections_closed(FAREWELL).await;
        }
        state.advance(Phase::Cut);
        self.connections_closed(FAREWELL).await;
        Shutdown { finished: under_way.saturating_sub(cut), cut }
    }

    /// Stops where another router listens on the same sockets: nobody may serve them here any more. Connections that lie
    /// idle are kept for `linger`, so that no client finds one closed that it is about to use; the next answer on each is its
    /// last. Then it stops as [`Router::shutdown`] does, by the same deadline.
    pub async fn leave(&self, linger: Duration, deadline: Duration) -> Shutdown {
        let under_way = self.state.under_way.load(Ordering::Acquire);
        self.state.advance(Phase::Leaving);
        self.connections_closed(linger.min(deadline)).await;
        let end = self.shutdown(deadline.saturating_sub(linger)).await;
        Shutdown { finished: under_way.saturating_sub(end.cut), ..end }
    }

    async fn connections_closed(&self, within: Duration) {
        let until = Instant::now() + within;
        loop {
            let mut closed = std::pin::pin!(self.state.closed.notified());
            closed.as_mut().enable();
            let open =
                self.state.listening.load(Ordering::Acquire) + self.state.connections.load(Ordering::Acquire);
            if open == 0 || timeout_at(until, closed).await.is_err() {
                return;
            }
        }
    }
}
