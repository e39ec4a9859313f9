//! An LDAP proxy: connections and searches balanced over servers, with limits against abuse.
//!
//! A `Session` decides what becomes of each message, without I/O; a task for each client moves bytes by what it says. Messages
//! are framed and, apart from what a policy has to know, passed as they are.

pub mod ber;
mod cache;
mod client;
mod dn;
mod limiter;
pub mod message;
mod metrics;
mod policy;
mod pool;
mod session;
pub mod settings;
mod shared;
mod tls;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::ListenAddress;
use service::{Asked, Listener, Observed, Signals};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use client::Phase;
use metrics::Metrics;
use pool::{Identity, Pool};
use session::Rules;
pub use settings::Settings;
use wire::Stream;

/// The proxy cannot run with these settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They contradict themselves.
    #[error("{0}")]
    Settings(String),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] service::tls::TlsError),
    /// The service's password cannot be read.
    #[error("service.password_file: {0}")]
    Secret(#[from] config::secrets::SecretError),
    /// Nobody can listen there.
    #[error(transparent)]
    Bind(#[from] service::BindError),
}

/// The settings that count now, with what was made of them. A connection keeps those that it began with.
struct Active {
    settings: Settings,
    rules: Rules,
    pool: Arc<Pool>,
    shared: Vec<shared::Connections>,
    acceptor: Option<TlsAcceptor>,
    service: Option<Arc<(String, config::secrets::Secret)>>,
    metrics: Arc<Metrics>,
    /// Those who look at the servers.
    watchers: Vec<AbortHandle>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.watchers.iter().for_each(AbortHandle::abort);
    }
}

fn identity(service: Option<&(String, config::secrets::Secret)>) -> Identity<'_> {
    service.map(|(dn, secret)| (dn.as_str(), secret))
}

impl Active {
    fn new(settings: Settings, before: Option<&Self>, metrics: &Arc<Metrics>) -> Result<Self, Error> {
        settings.check().map_err(Error::Settings)?;
        let acceptor = tls::acceptor(&settings.listen)?;
        let encrypted =
            settings.servers.iter().any(|server| server.start_tls || server.url.starts_with("ldaps"));
        let connector = tls::connector(&settings.upstream, encrypted)?;
        let service = match &settings.service {
            Some(service) => {
                Some(Arc::new((service.dn.clone(), config::secrets::read(&service.password_file)?)))
            }
            None => None,
        };
        let known = before.map(|before| before.pool.servers.as_slice()).unwrap_or_default();
        let pool = Pool::new(&settings, connector, known, metrics.clone()).map_err(Error::Settings)?;
        let pool = Arc::new(pool);
        let known_limits = before.filter(|before| {
            let (now, then) = (&settings.limits, &before.settings.limits);
            (now.binds_per_client, now.binds_per_dn) == (then.binds_per_client, then.binds_per_dn)
        });
        let rules = Rules {
            policy: policy::Policy::new(&settings),
            pending: settings.limits.pending as usize,
            attempts: settings.servers.len() + 1,
            tls_offered: acceptor.is_some(),
            service: match service.as_deref() {
                Some((dn, secret)) => {
                    let parsed = dn::Dn::parse(dn).filter(|_| !dn.is_empty());
                    let wrong = || Error::Settings(format!("service.dn: `{dn}` is not a name"));
                    Some((parsed.ok_or_else(wrong)?, secret.clone()))
                }
                None => None,
            },
            // Who was guessing goes on where he was.
            limiter: known_limits.map_or_else(
                || Arc::new(limiter::Limiter::new(&settings.limits)),
                |before| before.rules.limiter.clone(),
            ),
            cache: settings.cache.as_ref().map(cache::Cache::new),
            access_log: settings.access_log,
        };
        Ok(Self {
            rules,
            pool,
            shared: Vec::new(),
            acceptor,
            service,
            metrics: metrics.clone(),
            watchers: Vec::new(),
            settings,
        })
    }

    /// Begins to look at the servers, and to take what goes over shared connections.
    fn start(mut self) -> Self {
        for index in 0..self.pool.servers.len() {
            let (pool, service) = (self.pool.clone(), self.service.clone());
            let watching = tokio::spawn(async move {
                pool.watch(index, identity(service.as_deref())).await;
            });
            self.watchers.push(watching.abort_handle());
            let Some(service) = &self.settings.service else { continue };
            let response = self.settings.upstream.response_seconds;
            let response = (response > 0).then(|| Duration::from_secs(response.into()));
            let largest = self.settings.limits.response_bytes as usize;
            self.shared.push(shared::Connections::new(service.connections, |asked| {
                let (pool, service) = (self.pool.clone(), self.service.clone());
                // It ends with the last who can ask it.
                tokio::spawn(async move {
                    let identity = identity(service.as_deref());
                    shared::run(&pool, index, identity, asked, response, largest).await;
                });
            }));
        }
        self
    }

    fn identity(&self) -> Identity<'_> {
        identity(self.service.as_deref())
    }
}

/// How many connections each address has.
type Counts = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// One connection of an address.
struct Counted {
    counts: Counts,
    address: IpAddr,
}

impl Counted {
    fn new(counts: &Counts, address: IpAddr, most: u32) -> Option<Self> {
        let mut map = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { counts: counts.clone(), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut map = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = map.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.address);
            }
        }
    }
}

struct Watched {
    active: ArcSwap<Active>,
    metrics: Arc<Metrics>,
}

impl Observed for Watched {
    fn ready(&self) -> Result<(), String> {
        if self.active.load().pool.is_ready() { Ok(()) } else { Err("no LDAP server is up".to_owned()) }
    }

    fn metrics(&self) -> String {
        self.metrics.text()
    }
}

/// A proxy that runs.
pub struct Proxy {
    watched: Arc<Watched>,
    phase: watch::Sender<Phase>,
    accepting: Vec<JoinHandle<JoinSet<()>>>,
    observing: Option<JoinHandle<()>>,
    /// Where it listens for LDAP, and within TLS.
    addresses: [Option<SocketAddr>; 2],
}

impl Proxy {
    /// Listens and serves.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new());
        let active = Active::new(settings, None, &metrics)?;
        let listen = &active.settings.listen;
        let mut listeners = Vec::new();
        let mut addresses = [None; 2];
        for (field, address, ldaps) in
            [("listen.ldap", listen.ldap, false), ("listen.ldaps", listen.ldaps, true)]
        {
            let Some(address) = address else { continue };
            if let Listener::Tcp(listener) = service::bind(field, &ListenAddress::Tcp(address)).await? {
                addresses[usize::from(ldaps)] = listener.local_addr().ok();
                listeners.push((listener, ldaps));
            }
        }
        let observing = match active.settings.observed().map_err(Error::Settings)? {
            Some(address) => Some(service::bind("metrics", &address).await?),
            None => None,
        };
        let room = Arc::new(Semaphore::new(active.settings.limits.connections as usize));
        let watched = Arc::new(Watched { active: ArcSwap::from_pointee(active.start()), metrics });
        let (phase, phases) = watch::channel(Phase::Running);
        let counts = Counts::default();
        let accepting = listeners
            .into_iter()
            .map(|(listener, ldaps)| {
                let accepting = Accepting {
                    watched: watched.clone(),
                    room: room.clone(),
                    counts: counts.clone(),
                    phases: phases.clone(),
                    ldaps,
                };
                tokio::spawn(accepting.run(listener))
            })
            .collect();
        let observing = observing.map(|listener| service::observe(listener, watched.clone()));
        Ok(Self { watched, phase, accepting, observing, addresses })
    }

    /// Where it listens for LDAP, and for LDAP within TLS.
    pub fn addresses(&self) -> [Option<SocketAddr>; 2] {
        self.addresses
    }

    /// What it tells those who watch it.
    pub fn observed(&self) -> &dyn Observed {
        &*self.watched
    }

    /// Takes new settings, for connections that come. Addresses and the number of connections stay.
    pub fn reload(&self, settings: Settings) -> Result<(), Error> {
        let before = self.watched.active.load_full();
        let active = Active::new(settings, Some(&before), &self.watched.metrics)?;
        let (old, new) = (&before.settings, &active.settings);
        if (old.listen.ldap, old.listen.ldaps, &old.metrics)
            != (new.listen.ldap, new.listen.ldaps, &new.metrics)
        {
            tracing::warn!("the addresses of `listen` and `metrics` stay as they are until a restart");
        }
        self.watched.active.store(Arc::new(active.start()));
        Ok(())
    }

    /// Takes no more connections, lets operations finish, and tells clients to go.
    pub async fn stop(self) {
        let limits = &self.watched.active.load().settings.limits;
        let drain = Duration::from_secs(limits.drain_seconds.into());
        self.phase.send_replace(Phase::Draining);
        let mut left = JoinSet::new();
        for accepting in self.accepting {
            if let Ok(mut connections) = accepting.await {
                left.spawn(async move { while connections.join_next().await.is_some() {} });
            }
        }
        let mut gone = async || while left.join_next().await.is_some() {};
        if timeout(drain, gone()).await.is_err() {
            self.phase.send_replace(Phase::Cut);
            // As long as a goodbye takes.
            let _ = timeout(Duration::from_secs(3), gone()).await;
        }
        if let Some(observing) = self.observing {
            observing.abort();
        }
    }
}

/// Serves until SIGINT or SIGTERM, then [stops](Proxy::stop). SIGHUP takes what `reload` reads.
pub async fn run(
    settings: Settings,
    mut signals: Signals,
    mut reload: impl FnMut() -> Result<Settings, String>,
) -> Result<(), Error> {
    let proxy = Proxy::start(settings).await?;
    service::ready();
    loop {
        match signals.next().await {
            Asked::Reload => {
                let renewed =
                    reload().and_then(|settings| proxy.reload(settings).map_err(|error| error.to_string()));
                match renewed {
                    Ok(()) => tracing::info!("reloaded"),
                    Err(error) => {
                        tracing::error!(%error, "the new configuration is refused; the old one stays");
                    }
                }
            }
            Asked::End(signal) => {
                tracing::info!(signal, "stopping");
                break;
            }
        }
    }
    service::stopping();
    proxy.stop().await;
    Ok(())
}

struct Accepting {
    watched: Arc<Watched>,
    room: Arc<Semaphore>,
    counts: Counts,
    phases: watch::Receiver<Phase>,
    ldaps: bool,
}

impl Accepting {
    /// Takes connections until the end; those that are open then.
    async fn run(self, listener: TcpListener) -> JoinSet<()> {
        /// Nothing that a client does may make accepting spin.
        const PAUSE: Duration = Duration::from_millis(50);
        let mut connections = JoinSet::new();
        let mut phase = self.phases.clone();
        loop {
            let accept = async {
                let place = self.room.clone().acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, (socket, peer)) = tokio::select! {
                // Anything but `Running` is the end.
                _ = phase.changed() => return connections,
                Some(_) = connections.join_next() => continue,
                (place, accepted) = accept => match accepted {
                    Ok(accepted) => (place, accepted),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            let active = self.watched.active.load_full();
            let (counts, phases, ldaps) = (self.counts.clone(), self.phases.clone(), self.ldaps);
            connections.spawn(async move {
                active.metrics.opened.inc();
                active.metrics.open.inc();
                let metrics = active.metrics.clone();
                if let Err(error) = begin(active, socket, peer, counts, phases, ldaps).await {
                    tracing::debug!(%peer, %error, "a connection failed");
                }
                metrics.open.dec();
                drop(place);
            });
        }
    }
}

async fn begin(
    active: Arc<Active>,
    socket: TcpStream,
    peer: SocketAddr,
    counts: Counts,
    phases: watch::Receiver<Phase>,
    ldaps: bool,
) -> io::Result<()> {
    wire::prepare(&socket)?;
    let within = Duration::from_secs(active.settings.limits.io_seconds.into());
    let closed = |reason, error: &str| {
        active.metrics.closed(reason);
        Err(io::Error::other(error.to_owned()))
    };
    let mut address = peer.ip().to_canonical();
    if let Some(protocol) = &active.settings.listen.proxy_protocol {
        if !protocol.allows(address) {
            return closed("proxy_protocol", "it may not speak for others");
        }
        match timeout(within, service::proxied::take(&socket, Some(address))).await {
            Ok(Ok(source)) => address = source.unwrap_or(address),
            Ok(Err(_)) => return closed("proxy_protocol", "it does not say whose it is"),
            Err(_) => return closed("slow", "it does not say in time whose it is"),
        }
    }
    let Some(_counted) = Counted::new(&counts, address, active.settings.limits.connections_per_client) else {
        return closed("connections", "the client has too many");
    };
    let mut stream = Stream::Plain(socket);
    if ldaps && let Some(acceptor) = &active.acceptor {
        stream = match timeout(within, client::encrypt(acceptor, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return closed("tls", &error.to_string()),
            Err(_) => return closed("slow", "TLS took too long"),
        };
    }
    client::serve(active, stream, address, phases).await;
    Ok(())
}
