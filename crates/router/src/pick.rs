//! Which instance a request goes to, and what it waits for until one can take it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::Role;
use routes::Class;
use smallvec::SmallVec;
use tokio::time::timeout;

use crate::balance::{Candidate, choose};
use crate::failure::Failure;
use crate::instance::{Instance, Standing};
use crate::settings::Settings;
use crate::snapshot::Active;
use crate::state::{Counted, Place, Shared};

/// What picking an instance came to.
pub(crate) enum Pick {
    /// A place on an instance of this role.
    Got(Place, Role),
    /// The instances of this role have no place left for this class.
    Full(Role),
    /// An instance of this role is about to come back; for how long to wait for it, and whether somebody else could
    /// serve the request.
    Returning { role: Role, limit: Duration, elsewhere: bool },
    /// Nobody can serve it, and nobody is about to.
    Nobody,
}

/// Among whom to pick.
pub(crate) struct Choice<'a> {
    pub active: &'a Active,
    pub chain: &'a [Role],
    pub class: &'a Class,
    pub key: Option<u64>,
    /// Not these.
    pub tried: &'a [Arc<Instance>],
}

impl Choice<'_> {
    pub(crate) fn pick(&self, state: &Shared, impatient: bool) -> Pick {
        let settings = self.active.settings();
        let grace = settings.restart_grace;
        if !impatient
            && state.pauses.load(Ordering::Acquire) > 0
            && let Some(role) = self.chain.first()
        {
            return Pick::Returning { role: *role, limit: settings.pause_patience, elsewhere: false };
        }
        for (position, role) in self.chain.iter().enumerate() {
            let pool = self.active.pool(*role);
            match self.pick_among(state, *role, pool, Standing::Ready, grace) {
                Ok(Some(place)) => return Pick::Got(place, *role),
                // A role that is full keeps its work: spilling it over would drown the next one too.
                Err(Crowded) => return Pick::Full(*role),
                Ok(None) => {}
            }
            if !impatient && pool.iter().any(|instance| instance.standing(grace) == Standing::Returning) {
                let able = |instance: &Arc<Instance>| {
                    matches!(instance.standing(grace), Standing::Ready | Standing::LastResort)
                        && !self.is_tried(instance)
                };
                let elsewhere =
                    self.chain[position..].iter().any(|role| self.active.pool(*role).iter().any(able));
                let limit = if elsewhere { settings.fallback_patience } else { settings.patience };
                return Pick::Returning { role: *role, limit, elsewhere };
            }
        }
        for role in self.chain {
            match self.pick_among(state, *role, self.active.pool(*role), Standing::LastResort, grace) {
                Ok(Some(place)) => return Pick::Got(place, *role),
                Err(Crowded) => return Pick::Full(*role),
                Ok(None) => {}
            }
        }
        Pick::Nobody
    }

    fn is_tried(&self, instance: &Arc<Instance>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, instance))
    }

    fn pick_among(
        &self,
        state: &Shared,
        role: Role,
        pool: &[Arc<Instance>],
        standing: Standing,
        grace: Duration,
    ) -> Result<Option<Place>, Crowded> {
        let class = self.class.id.index();
        if let [instance] = pool {
            // Nothing to choose.
            if instance.standing(grace) != standing || self.is_tried(instance) {
                return Ok(None);
            }
            let lease = instance.lease(class, self.class.cap).ok_or(Crowded)?;
            return Ok(Some(Place::new(lease, state.clone(), class, Some(role))));
        }
        let mut crowded = false;
        let mut candidates: SmallVec<[Candidate; 16]> = pool
            .iter()
            .map(|instance| {
                let standing = instance.standing(grace) == standing && !self.is_tried(instance);
                let room = instance.in_flight_of(class) < self.class.cap;
                crowded |= standing && !room;
                Candidate { seed: instance.seed, in_flight: instance.in_flight(), eligible: standing && room }
            })
            .collect();
        let balance = self.class.balance(role);
        let turn = state.next_turn();
        while let Some(index) = choose(balance, &candidates, self.key, turn) {
            if let Some(lease) = pool[index].lease(class, self.class.cap) {
                return Ok(Some(Place::new(lease, state.clone(), class, Some(role))));
            }
            // Somebody was faster.
            candidates[index].eligible = false;
            crowded = true;
        }
        if crowded { Err(Crowded) } else { Ok(None) }
    }
}

/// Every instance that could take the request is at its cap.
struct Crowded;

/// What a request has waited for so far.
#[derive(Default)]
pub(crate) struct Waits<'a> {
    place: Option<(Counted<'a>, Instant)>,
    back: Option<(Counted<'a>, Role, tokio::sync::watch::Receiver<u64>)>,
    /// The time spent waiting for instances to come back.
    waited: Duration,
    /// Whether it waits no more for instances to come back.
    pub impatient: bool,
}

impl<'a> Waits<'a> {
    /// An instance was found.
    pub(crate) fn got(&mut self) {
        self.place = None;
        self.back = None;
    }

    /// Waits until a place may have become free. The first call only joins the queue: the place may have become free
    /// before that, and then nobody would tell.
    pub(crate) async fn for_place(
        &mut self,
        state: &'a Shared,
        settings: &Settings,
        class: &Class,
        role: Role,
    ) -> Result<(), Failure> {
        let queue = state.queue(class.id.index(), role);
        let Some((_, until)) = &self.place else {
            let place = queue.join(settings.queue_length).ok_or(Failure::Shed)?;
            self.place = Some((place, Instant::now() + settings.queue_timeout));
            return Ok(());
        };
        tokio::time::timeout_at((*until).into(), queue.freed.notified()).await.map_err(|_| Failure::Shed)
    }

    /// Waits until an instance may have come back. The first call only begins to listen.
    pub(crate) async fn for_return(
        &mut self,
        state: &'a Shared,
        settings: &Settings,
        role: Role,
        limit: Duration,
        elsewhere: bool,
    ) -> Result<(), Failure> {
        /// An instance may also cease to be about to come back, of which nobody tells.
        const LOOK_AGAIN: Duration = Duration::from_millis(500);
        match &mut self.back {
            Some((_, waiting_for, available)) if *waiting_for == role => {
                let left = limit.saturating_sub(self.waited);
                if left.is_zero() {
                    self.impatient = true;
                    self.back = None;
                    return Ok(());
                }
                let started = Instant::now();
                let _ = timeout(left.min(LOOK_AGAIN), available.changed()).await;
                self.waited += started.elapsed();
            }
            _ => match state.wait_for(role, settings.max_waiting) {
                Some(counted) => self.back = Some((counted, role, state.availability.subscribe())),
                None if elsewhere => self.impatient = true,
                None => return Err(Failure::NoInstance),
            },
        }
        Ok(())
    }
}
