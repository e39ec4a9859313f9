//! The threads that move the bytes: as many as there are cores, each with a runtime, an `io_uring` where the kernel
//! gives one, and connections of its own.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use service::proxied::{self, Refused};
use slab::Slab;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use uring::Ring;

use crate::http2;
use crate::proxy;
use crate::state::{Open, Phase, Shared, State};
use crate::stream::Stream;
use crate::tls::H2;
use crate::upstream::{Loose, Pools, Socket};

/// How bytes are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// By `io_uring(7)` where the kernel (6.1 or newer) lets this process have it, else by `epoll(7)`.
    #[default]
    Auto,
    /// By `epoll(7)`.
    Epoll,
}

/// Who is at the other end of a client's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// A unix socket has none.
    pub address: Option<IpAddr>,
    /// Whether the connection has yet to say whose it is, by the PROXY protocol.
    pub proxied: bool,
    /// `http`, or `https` where the router ends TLS.
    pub proto: &'static str,
}

/// A connection on its way to the thread that will serve it.
struct Job {
    open: Open,
    socket: Loose,
    peer: Peer,
    tls: Option<TlsAcceptor>,
    count: Load,
}

/// Counts a thread's connections.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Thread {
    jobs: mpsc::UnboundedSender<Job>,
    connections: Arc<AtomicUsize>,
}

/// The threads. They end when this is dropped and their connections have ended.
#[derive(Debug)]
pub(crate) struct Engine {
    threads: Vec<Thread>,
}

impl Engine {
    pub(crate) fn start(
        threads: usize,
        transport: Transport,
        phase: &watch::Sender<Phase>,
    ) -> io::Result<Self> {
        let threads = (0..threads.max(1)).map(|number| {
            let (jobs, received) = mpsc::unbounded_channel();
            let phase = phase.subscribe();
            std::thread::Builder::new()
                .name(format!("router-{number}"))
                .spawn(move || run(transport, phase, received))?;
            Ok(Thread { jobs, connections: Arc::default() })
        });
        Ok(Self { threads: threads.collect::<io::Result<_>>()? })
    }

    /// Has a connection served by the thread that has the fewest. It is closed if that thread is gone.
    pub(crate) fn serve(&self, open: Open, socket: Loose, peer: Peer, tls: Option<TlsAcceptor>) {
        let connections = |thread: &&Thread| thread.connections.load(Ordering::Relaxed);
        let Some(thread) = self.threads.iter().min_by_key(connections) else { return };
        thread.connections.fetch_add(1, Ordering::Relaxed);
        let count = Load(thread.connections.clone());
        let _ = thread.jobs.send(Job { open, socket, peer, tls, count });
    }
}

/// The life of a thread.
fn run(transport: Transport, phase: watch::Receiver<Phase>, jobs: mpsc::UnboundedReceiver<Job>) {
    let ring = match transport {
        Transport::Epoll => None,
        Transport::Auto => Ring::new()
            .inspect_err(|error| tracing::info!(%error, "no io_uring for this process: going by epoll"))
            .ok(),
    };
    let runtime = match &ring {
        Some(ring) => uring::runtime(ring),
        None => Builder::new_current_thread().enable_all().build_local(LocalOptions::default()),
    };
    match runtime {
        Ok(runtime) => runtime.block_on(work(ring, phase, jobs)),
        Err(error) => {
            tracing::error!(%error, "a thread of the router cannot start; if files have run out, raise the limit (ulimit -n)");
        }
    }
}

async fn work(ring: Option<Ring>, phase: watch::Receiver<Phase>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let worker = Rc::new(Worker {
        ring,
        pools: Pools::default(),
        phase: Cell::new(*phase.borrow()),
        stopping_since: Cell::new(Instant::now()),
        wakers: RefCell::default(),
    });
    tokio::task::spawn_local(follow(worker.clone(), phase));
    let mut sweeping = None;
    let mut connections = tokio::task::JoinSet::new();
    while let Some(job) = jobs.recv().await {
        sweeping.get_or_insert_with(|| {
            tokio::task::spawn_local(sweep(Rc::downgrade(&worker), Arc::downgrade(job.open.state())))
        });
        // Those that have ended.
        while connections.try_join_next().is_some() {}
        connections.spawn_local(connection(worker.clone(), job));
    }
    while connections.join_next().await.is_some() {}
}

/// Tells a thread's connections how far the end has come.
async fn follow(worker: Rc<Worker>, mut phase: watch::Receiver<Phase>) {
    while phase.changed().await.is_ok() {
        worker.stopping_since.set(Instant::now());
        worker.phase.set(*phase.borrow_and_update());
        worker.wakers.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}

/// Closes connections to instances that lie idle.
async fn sweep(worker: std::rc::Weak<Worker>, state: Weak<State>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        let (Some(worker), Some(state)) = (worker.upgrade(), state.upgrade()) else { return };
        worker.pools.sweep(state.active.load().settings().upstream_idle);
    }
}

/// What the connections of a thread share.
pub(crate) struct Worker {
    pub ring: Option<Ring>,
    pub pools: Pools,
    phase: Cell<Phase>,
    stopping_since: Cell<Instant>,
    /// Who must hear of a new phase.
    wakers: RefCell<Slab<Waker>>,
}

impl Worker {
    /// How far the end has come. Every connection is woken when that changes.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// When the phase changed last.
    pub(crate) fn stopping_since(&self) -> Instant {
        self.stopping_since.get()
    }

    /// What the future comes to, unless the end comes so far first. (It is pinned by the caller, because a future that is
    /// passed by value takes its place in memory twice.)
    pub(crate) async fn until<F: Future>(&self, phase: Phase, mut future: Pin<&mut F>) -> Option<F::Output> {
        poll_fn(|cx| {
            if self.phase() >= phase {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// A place among those who are woken.
struct Enlisted<'a>(&'a Worker, usize);

impl Drop for Enlisted<'_> {
    fn drop(&mut self) {
        self.0.wakers.borrow_mut().remove(self.1);
    }
}

async fn plain(worker: &Worker, state: &Shared, socket: Loose, peer: Peer) {
    if let Ok(stream) = socket.bind(worker.ring.as_ref()) {
        proxy::serve(worker, state, stream, peer).await;
    }
}

/// A connection with TLS, which the client may use for HTTP/2.
async fn encrypted(worker: &Rc<Worker>, state: &Shared, socket: Loose, tls: TlsAcceptor, peer: Peer) {
    let within = state.active.load().settings().head_timeout;
    let Ok(io) = socket.polled() else { return };
    // Whoever does not get so far has not asked for anything.
    let Ok(Ok(io)) = timeout(within, tls.accept(io)).await else {
        state.metrics.malformed.inc();
        return;
    };
    if io.get_ref().1.alpn_protocol() == Some(H2) {
        http2::serve(worker, state, io, peer).await;
    } else {
        proxy::serve(worker, state, Stream::polled(io), peer).await;
    }
}

/// Has a connection say whose it is. None if it does not: then it is of no use.
async fn introduced(state: &Shared, socket: Loose, peer: Peer) -> Option<(Loose, Peer)> {
    let within = state.active.load().settings().head_timeout;
    let socket = socket.tighten().ok()?;
    let reason = match timeout(within, introduce(&socket, peer.address)).await {
        Ok(Ok(address)) => return Some((socket.loosen().ok()?, Peer { address, proxied: false, ..peer })),
        // A load balancer that looks whether the port is open.
        Ok(Err(Refused::Gone)) => return None,
        Ok(Err(Refused::Malformed)) => "malformed",
        Err(_) => "slow",
    };
    state.metrics.unproxied(reason);
    None
}

async fn introduce(socket: &Socket, peer: Option<IpAddr>) -> Result<Option<IpAddr>, Refused> {
    match socket {
        Socket::Tcp(stream) => proxied::take(stream, peer).await,
        Socket::Unix(stream) => proxied::take(stream, peer).await,
    }
}

/// The life of a connection on its thread.
async fn connection(worker: Rc<Worker>, job: Job) {
    // Both end with it, however it ends.
    let Job { open, mut socket, mut peer, tls, count: _count } = job;
    let state = open.state();
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let _enlisted = Enlisted(&worker, worker.wakers.borrow_mut().insert(waker));
    if peer.proxied {
        let mut introduced = Box::pin(introduced(state, socket, peer));
        let Some(Some(known)) = worker.until(Phase::Ending, introduced.as_mut()).await else { return };
        (socket, peer) = known;
    }
    // A connection that is cut leaves its request's account to say so.
    let _ = match tls {
        Some(tls) => {
            worker.until(Phase::Cut, Box::pin(encrypted(&worker, state, socket, tls, peer)).as_mut()).await
        }
        None => worker.until(Phase::Cut, pin!(plain(&worker, state, socket, peer))).await,
    };
}
