//! One Synapse process as the router sees it: how it stands, and what is in flight on it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use model::Address;
use routes::CLASSES;
use serde::Serialize;
use tokio::sync::{Notify, SetOnce};

use crate::balance;
use crate::metrics::Own;
use crate::settings::Settings;

/// The state of an instance, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It takes requests.
    Up,
    /// Nobody listens at its address.
    Down,
    /// It listens, but does not answer; it gets requests only if nobody else can serve them.
    Ejected,
    /// Its requests wait, or go elsewhere, until it is released.
    Held,
    /// It gets no new requests.
    Draining,
}

impl InstanceState {
    /// Its name, as in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Held => "held",
            Self::Draining => "draining",
        }
    }
}

/// What an instance's state means for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It can take it.
    Ready,
    /// It could, if nobody better is there.
    LastResort,
    /// It is about to come back: worth waiting for.
    Returning,
    /// It is not there.
    Away,
}

/// What is known of an instance's health. Pure; the clock is passed in.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    condition: Condition,
    held: Option<Instant>,
    draining: bool,
    /// Requests in a row that ended without a response.
    breaks: u32,
    /// Health checks in a row that got no answer.
    misses: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    Gone { since: Instant },
    Sick { until: Option<Instant> },
}

/// What a request or a health check found out about an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It gave a response to a request.
    Answered,
    /// A request's connection broke, or brought garbage, or no response in time.
    Broke,
    /// Nobody listens.
    Refused,
    /// Its health check is good.
    Healthy,
    /// Its health check is bad or does not end.
    Unhealthy,
}

impl Health {
    /// Until something else is known, an instance is taken to be well: a refused connection tells soon enough.
    fn new() -> Self {
        Self { condition: Condition::Well, held: None, draining: false, breaks: 0, misses: 0 }
    }

    fn note(&mut self, finding: Finding, now: Instant, settings: &Settings) {
        match finding {
            Finding::Answered => self.breaks = 0,
            Finding::Broke => {
                self.breaks += 1;
                if self.breaks >= settings.eject_after && self.condition == Condition::Well {
                    self.condition = Condition::Sick { until: Some(now + settings.eject_for) };
                }
            }
            Finding::Refused => {
                self.misses = 0;
                if !matches!(self.condition, Condition::Gone { .. }) {
                    self.condition = Condition::Gone { since: now };
                }
            }
            Finding::Healthy => {
                self.misses = 0;
                let serving_time =
                    matches!(self.condition, Condition::Sick { until: Some(until) } if now < until);
                if self.condition != Condition::Well && !serving_time {
                    self.condition = Condition::Well;
                    self.breaks = 0;
                }
            }
            Finding::Unhealthy => {
                self.misses += 1;
                if self.misses >= settings.health_failures && self.condition == Condition::Well {
                    self.condition = Condition::Sick { until: None };
                }
            }
        }
    }

    fn standing(&self, now: Instant, grace: Duration) -> Standing {
        let returning = |since: Instant| {
            if now.saturating_duration_since(since) < grace { Standing::Returning } else { Standing::Away }
        };
        match (self.draining, self.held, self.condition) {
            (true, ..) => Standing::Away,
            (_, Some(since), _) | (_, None, Condition::Gone { since }) => returning(since),
            (_, None, Condition::Well) => Standing::Ready,
            (_, None, Condition::Sick { .. }) => Standing::LastResort,
        }
    }

    fn state(&self) -> InstanceState {
        match (self.draining, self.held, self.condition) {
            (true, ..) => InstanceState::Draining,
            (_, Some(_), _) => InstanceState::Held,
            (.., Condition::Well) => InstanceState::Up,
            (.., Condition::Gone { .. }) => InstanceState::Down,
            (.., Condition::Sick { .. }) => InstanceState::Ejected,
        }
    }
}

const READY: u8 = 0;
const NOT_READY: u8 = 1;

/// One Synapse process.
///
/// It lives as long as its name and address do, whatever is reloaded meanwhile.
#[derive(Debug)]
pub(crate) struct Instance {
    /// A number that no other instance of this process has.
    pub id: u64,
    pub name: Arc<str>,
    pub address: Address,
    /// Where to connect, in the order in which it is tried: what its host's name means, for one that has a name. Empty for
    /// a unix socket.
    addresses: ArcSwap<Vec<SocketAddr>>,
    pub seed: u64,
    /// Whether it is [`Standing::Ready`], so that the usual case takes no lock.
    readiness: AtomicU8,
    health: Mutex<Health>,
    in_flight: AtomicU32,
    in_flight_by_class: Box<[AtomicU32]>,
    /// Those of them that would be sent again if this instance ended now.
    replaceable: AtomicU32,
    /// Which connections may be used again: those made since it was last told to forget them.
    epoch: AtomicU64,
    /// Connections that lie ready, of all threads.
    pub idle: AtomicUsize,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    /// Its metrics.
    pub own: Own,
    /// Rings when a request ends.
    pub ended: Notify,
    /// Whether it was checked once.
    pub checked: SetOnce<()>,
    /// Wakes its health checker.
    pub check: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Instance {
    pub(crate) fn new(name: &str, address: Address) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            addresses: ArcSwap::from_pointee(match &address {
                Address::Tcp { host, port } => {
                    host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, *port)).into_iter().collect()
                }
                Address::Unix { .. } => Vec::new(),
            }),
            address,
            seed: balance::seed(name),
            readiness: AtomicU8::new(READY),
            health: Mutex::new(Health::new()),
            in_flight: AtomicU32::new(0),
            in_flight_by_class: CLASSES.iter().map(|_| AtomicU32::new(0)).collect(),
            replaceable: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            idle: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            own: Own::new(),
            ended: Notify::new(),
            checked: SetOnce::new(),
            check: Notify::new(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Health)) -> bool {
        let mut health = lock(&self.health);
        let from = health.state();
        change(&mut health);
        let to = health.state();
        let ready = to == InstanceState::Up;
        let before = self.readiness.swap(if ready { READY } else { NOT_READY }, Ordering::AcqRel);
        drop(health);
        if from != to {
            tracing::info!(
                instance = &*self.name,
                from = from.name(),
                to = to.name(),
                "instance changed state"
            );
        }
        if before == READY && !ready {
            self.check.notify_one();
        }
        before == NOT_READY && ready
    }

    /// Takes note of what was found out. True if the instance became ready by it.
    pub(crate) fn note(&self, finding: Finding, settings: &Settings) -> bool {
        if finding == Finding::Answered && self.readiness.load(Ordering::Acquire) == READY {
            // The usual case. A break before it is forgotten by the next that finds the lock free.
            if let Ok(mut health) = self.health.try_lock() {
                health.breaks = 0;
            }
            return false;
        }
        if finding == Finding::Refused {
            self.forget_connections();
        }
        self.change(|health| health.note(finding, Instant::now(), settings))
    }

    pub(crate) fn hold(&self) {
        self.change(|health| health.held = Some(Instant::now()));
        self.forget_connections();
    }

    pub(crate) fn drain(&self) {
        self.change(|health| health.draining = true);
        self.forget_connections();
    }

    /// Makes it take requests again, whatever was known of it. True if that changes something.
    pub(crate) fn release(&self) -> bool {
        self.forget_connections();
        self.change(|health| *health = Health::new())
    }

    /// Where to connect, in the order in which it is tried.
    pub(crate) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Takes note of what its host's name means now. Requests on their way finish where they are.
    pub(crate) fn set_addresses(&self, addresses: &[SocketAddr]) {
        let before = self.addresses();
        if *before == addresses {
            return;
        }
        self.addresses.store(Arc::new(addresses.to_vec()));
        if !before.iter().all(|address| addresses.contains(address)) {
            self.forget_connections();
        }
        self.check.notify_one();
    }

    /// Waits until no request is in flight on it.
    pub(crate) async fn is_idle(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Whether it is away, or about to go, because somebody wants it so.
    pub(crate) fn is_leaving(&self) -> bool {
        let health = lock(&self.health);
        health.draining || health.held.is_some()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.readiness.load(Ordering::Acquire) == READY
    }

    pub(crate) fn standing(&self, grace: Duration) -> Standing {
        if self.readiness.load(Ordering::Acquire) == READY {
            return Standing::Ready;
        }
        lock(&self.health).standing(Instant::now(), grace)
    }

    pub(crate) fn state(&self) -> InstanceState {
        lock(&self.health).state()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    pub(crate) fn in_flight_of(&self, class: usize) -> u32 {
        self.in_flight_by_class[class].load(Ordering::Acquire)
    }

    /// A place for one request of this class, if there are fewer than `cap`.
    pub(crate) fn lease(self: &Arc<Self>, class: usize, cap: u32) -> Option<Lease> {
        self.in_flight_by_class[class]
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < cap).then_some(n + 1))
            .ok()?;
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Some(Lease { instance: self.clone(), class })
    }

    /// Requests in flight that would be lost if it ended now.
    pub(crate) fn irreplaceable(&self) -> u32 {
        // Read in this order, no request counts as replaceable that is not in flight.
        let replaceable = self.replaceable.load(Ordering::Acquire);
        self.in_flight().saturating_sub(replaceable)
    }

    /// Counts a request as one that would be sent again, as long as the result lives.
    pub(crate) fn replaceable(&self) -> Replaceable<'_> {
        self.replaceable.fetch_add(1, Ordering::AcqRel);
        Replaceable(self)
    }

    /// The epoch in which a connection is made; only in the same one it may be used again.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Has the connections that lie ready closed, for whoever was at the other end is gone.
    pub(crate) fn forget_connections(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// A request in flight that would be sent again if its instance ended.
pub(crate) struct Replaceable<'a>(&'a Instance);

impl Drop for Replaceable<'_> {
    fn drop(&mut self) {
        self.0.replaceable.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request's place on an instance. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    instance: Arc<Instance>,
    class: usize,
}

impl Lease {
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.instance.in_flight_by_class[self.class].fetch_sub(1, Ordering::AcqRel);
        self.instance.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.instance.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> Settings {
        Settings { eject_after: 2, eject_for: 5 * SECOND, health_failures: 2, ..Settings::default() }
    }

    #[test]
    fn a_gone_instance_returns_within_the_grace() {
        let (settings, start) = (settings(), Instant::now());
        let mut health = Health::new();
        health.note(Finding::Refused, start, &settings);
        health.note(Finding::Refused, start + 3 * SECOND, &settings);
        assert_eq!(health.standing(start + 4 * SECOND, 5 * SECOND), Standing::Returning);
        assert_eq!(health.standing(start + 5 * SECOND, 5 * SECOND), Standing::Away);
        assert_eq!(health.state(), InstanceState::Down);
        health.note(Finding::Healthy, start + 6 * SECOND, &settings);
        assert_eq!(health.standing(start + 6 * SECOND, 5 * SECOND), Standing::Ready);
    }

    #[test]
    fn breaks_in_a_row_eject_for_a_time() {
        let (settings, start) = (settings(), Instant::now());
        let mut health = Health::new();
        for finding in [Finding::Broke, Finding::Answered, Finding::Broke] {
            health.note(finding, start, &settings);
        }
        assert_eq!(health.state(), InstanceState::Up);
        health.note(Finding::Broke, start, &settings);
        assert_eq!(health.standing(start, SECOND), Standing::LastResort);
        health.note(Finding::Healthy, start + SECOND, &settings);
        assert_eq!(health.state(), InstanceState::Ejected);
        health.note(Finding::Healthy, start + 5 * SECOND, &settings);
        assert_eq!(health.state(), InstanceState::Up);
    }

    #[test]
    fn a_missed_check_is_not_yet_an_illness() {
        let (settings, start) = (settings(), Instant::now());
        let mut health = Health::new();
        health.note(Finding::Unhealthy, start, &settings);
        assert_eq!(health.state(), InstanceState::Up);
        health.note(Finding::Unhealthy, start, &settings);
        assert_eq!(health.state(), InstanceState::Ejected);
        health.note(Finding::Healthy, start, &settings);
        assert_eq!(health.state(), InstanceState::Up);
    }

    #[test]
    fn held_ones_are_waited_for_and_draining_ones_are_not() {
        let start = Instant::now();
        let mut health = Health::new();
        health.held = Some(start);
        // A good health check does not release it: whoever holds it knows more.
        health.note(Finding::Healthy, start, &settings());
        assert_eq!(health.standing(start, SECOND), Standing::Returning);
        assert_eq!(health.standing(start + SECOND, SECOND), Standing::Away);
        health.draining = true;
        assert_eq!(health.standing(start, SECOND), Standing::Away);
    }

    #[test]
    fn places_are_bounded_by_class() {
        let instance = Arc::new(Instance::new("a", Address::Unix { path: "/nowhere".into() }));
        let first = instance.lease(0, 1).unwrap();
        assert!(instance.lease(0, 1).is_none());
        let other = instance.lease(1, 1).unwrap();
        assert_eq!(instance.in_flight(), 2);
        drop((first, other));
        assert_eq!(instance.in_flight(), 0);
        assert!(instance.lease(0, 1).is_some());
    }
}
