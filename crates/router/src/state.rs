//! What all requests of a router share.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::{ROLES, Role};
use routes::CLASSES;
use tokio::sync::{Notify, Semaphore, watch};

use crate::access::Writer;
use crate::dns::Resolver;
use crate::engine::Engine;
use crate::instance::{Instance, Lease, Standing};
use crate::metrics::Metrics;
use crate::names::Names;
use crate::snapshot::Active;
use crate::whoami::Whoami;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are taken.
    Serving,
    /// Another router takes new connections; those that lie idle here may bring one more request.
    Leaving,
    /// No new connections; requests under way may finish.
    Draining,
    /// Requests that still wait are answered now.
    Ending,
    /// Connections that are still open are closed now.
    Cut,
}

/// How many request bodies without a length may be spooled to files at once.
const MAX_SPOOLED: usize = 64;

/// What all requests of a router share.
#[derive(Debug)]
pub(crate) struct State {
    pub active: ArcSwap<Active>,
    pub metrics: Metrics,
    pub access: Writer,
    pub whoami: Whoami,
    pub spools: Semaphore,
    pub phase: watch::Sender<Phase>,
    pub engine: Engine,
    pub resolver: Resolver,
    /// What is known of the instances' names. Whoever replaces what is active holds it.
    pub names: Mutex<Names>,
    /// Changes whenever an instance becomes ready, the snapshot is replaced, or a name was looked up.
    pub availability: watch::Sender<u64>,
    queues: Vec<Queue>,
    waiting: Vec<AtomicUsize>,
    turn: AtomicUsize,
    /// How many want that no request goes to any instance.
    pub pauses: AtomicUsize,
    /// Requests under way.
    pub under_way: AtomicUsize,
    /// Client connections open.
    pub connections: AtomicUsize,
    /// Public listeners that may still accept connections.
    pub listening: AtomicUsize,
    /// Rings when a client connection closes, or a listener.
    pub closed: Notify,
    request_prefix: u32,
    request_number: AtomicU32,
}

/// A client's connection, counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Open(Shared);

impl Open {
    pub(crate) fn new(state: Shared) -> Self {
        state.connections.fetch_add(1, Ordering::AcqRel);
        Self(state)
    }

    pub(crate) fn state(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
        self.0.closed.notify_waiters();
    }
}

/// A request's ID: 16 hexadecimal digits, of which the first eight are the router's own since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId([u8; 16]);

impl RequestId {
    fn new(prefix: u32, number: u32) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let (prefix, number) = (prefix.to_be_bytes(), number.to_be_bytes());
        Self(std::array::from_fn(|place| {
            let half = if place < 8 { prefix } else { number };
            let byte = half[place % 8 / 2];
            DIGITS[usize::from(if place % 2 == 0 { byte >> 4 } else { byte & 15 })]
        }))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Those who wait for a place.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Rings once for each place that becomes free.
    pub freed: Notify,
    length: AtomicUsize,
}

/// A number that is one higher while this lives.
#[derive(Debug)]
pub(crate) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    /// Counts up, unless that would exceed `max`.
    fn up_to(number: &'a AtomicUsize, max: usize) -> Option<Self> {
        number.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < max).then_some(n + 1)).ok()?;
        Some(Self(number))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A place on an instance, for which others may be queueing.
#[derive(Debug)]
pub(crate) struct Place {
    /// None only while it is dropped.
    lease: Option<Lease>,
    instance: Arc<Instance>,
    state: Shared,
    class: usize,
    /// None at a service beside Synapse, for which nobody waits in a queue.
    role: Option<Role>,
}

impl Place {
    pub(crate) fn new(lease: Lease, state: Shared, class: usize, role: Option<Role>) -> Self {
        Self { instance: lease.instance().clone(), lease: Some(lease), state, class, role }
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.lease.take());
        let Some(role) = self.role else { return };
        let queue = self.state.queue(self.class, role);
        if queue.length() > 0 {
            queue.freed.notify_one();
        }
    }
}

impl Queue {
    pub(crate) fn join(&self, max: usize) -> Option<Counted<'_>> {
        Counted::up_to(&self.length, max)
    }

    pub(crate) fn length(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }
}

impl State {
    pub(crate) fn new(
        active: Active,
        access: Writer,
        phase: watch::Sender<Phase>,
        engine: Engine,
        resolver: Resolver,
    ) -> Self {
        // Seeded by the system: request IDs of one run are unlike those of another.
        let prefix = RandomState::new().hash_one(0_u8);
        let whoami = Whoami::new(active.settings());
        Self {
            active: ArcSwap::from_pointee(active),
            metrics: Metrics::new(),
            access,
            whoami,
            spools: Semaphore::new(MAX_SPOOLED),
            phase,
            engine,
            resolver,
            names: Mutex::default(),
            availability: watch::Sender::new(0),
            queues: (0..CLASSES.len() * ROLES.len()).map(|_| Queue::default()).collect(),
            waiting: ROLES.iter().map(|_| AtomicUsize::new(0)).collect(),
            turn: AtomicUsize::new(0),
            pauses: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            listening: AtomicUsize::new(0),
            closed: Notify::new(),
            request_prefix: (prefix >> 32) as u32,
            request_number: AtomicU32::new(0),
        }
    }

    pub(crate) fn next_request_id(&self) -> RequestId {
        let number = self.request_number.fetch_add(1, Ordering::Relaxed);
        RequestId::new(self.request_prefix, number)
    }

    pub(crate) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Those who wait for a place for requests of this class on this role's instances.
    pub(crate) fn queue(&self, class: usize, role: Role) -> &Queue {
        &self.queues[class * ROLES.len() + role as usize]
    }

    /// Joins those who wait for an instance of this role to come back.
    pub(crate) fn wait_for(&self, role: Role, max: usize) -> Option<Counted<'_>> {
        Counted::up_to(&self.waiting[role as usize], max)
    }

    pub(crate) fn waiting(&self, role: Role) -> usize {
        self.waiting[role as usize].load(Ordering::Acquire)
    }

    /// Tells those who wait that something became available.
    pub(crate) fn available(&self) {
        self.availability.send_modify(|generation| *generation += 1);
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics_text(&self) -> String {
        let look = &self.metrics.look;
        let active = self.active.load();
        look.clear();
        for (instance, roles) in &active.instances {
            let idle = instance.idle.load(Ordering::Relaxed);
            look.instance(&instance.name, roles, instance.state().name(), idle);
            for class in &CLASSES {
                let in_flight = instance.in_flight_of(class.id.index());
                if in_flight > 0 {
                    look.in_flight(&instance.name, class.name, in_flight);
                }
            }
        }
        for (pool, members) in &active.pools {
            look.pool(pool, *members);
        }
        for spec in &ROLES {
            if spec.serves_http {
                look.waiting(spec.name, self.waiting(spec.role));
            }
            for class in &CLASSES {
                let length = self.queue(class.id.index(), spec.role).length();
                if length > 0 {
                    look.queued(class.name, spec.name, length);
                }
            }
        }
        look.connections.set(crate::metrics::count(self.connections.load(Ordering::Acquire)));
        look.whoami_entries.set(crate::metrics::count(self.whoami.len()));
        self.metrics.encode()
    }

    /// Goes on to a phase, from which there is no way back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.send_modify(|now| *now = phase.max(*now));
    }

    /// Whether requests of every kind can be served; else the roles that nobody can stand in for.
    pub(crate) fn ready(&self) -> Result<(), Vec<String>> {
        if *self.phase.borrow() > Phase::Serving {
            return Err(vec!["the router is stopping".to_owned()]);
        }
        let active = self.active.load();
        let able = |role: &Role| {
            let standings = active.pool(*role).iter().map(|instance| instance.standing(Duration::ZERO));
            standings.into_iter().any(|standing| matches!(standing, Standing::Ready | Standing::LastResort))
        };
        let routes = active.snapshot.matcher.routes().iter();
        let roles: BTreeSet<_> = routes
            .filter(|route| !route.chain.iter().any(able))
            .map(|route| route.primary().name())
            .collect();
        if roles.is_empty() { Ok(()) } else { Err(roles.into_iter().map(str::to_owned).collect()) }
    }
}

/// The state, as everything that belongs to a router holds it.
pub(crate) type Shared = Arc<State>;
