//! The delayed leaves that are looked after: a task for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use crate::homeserver::Homeservers;
use crate::job::{Action, End, Event, Job, Params, State};
use crate::metrics::Metrics;
use crate::sfus::Sfus;
use crate::store::{Store, StoreError};
use crate::valkey::RENEWED;
use crate::{Millis, now};

/// How many there may be at once.
const MOST: usize = 50_000;
/// How many events may wait for one.
const WAITING: usize = 16;

type Name = (String, String);

/// All of them.
#[derive(Debug)]
pub(crate) struct Jobs {
    pub homeservers: Arc<Homeservers>,
    pub sfus: Arc<Sfus>,
    pub metrics: Arc<Metrics>,
    pub store: Store,
    /// How often an SFU is asked about a member that is there. 0: never.
    pub check_every: Millis,
    /// Turns true when the service stops.
    pub closing: watch::Receiver<bool>,
    pub running: Mutex<HashMap<Name, Handle>>,
}

/// One that runs.
#[derive(Debug)]
pub(crate) struct Handle {
    params: Params,
    number: u64,
    events: mpsc::Sender<Event>,
    /// Beside the events, which may be full.
    replaced: Arc<Notify>,
}

/// There are too many.
#[derive(Debug)]
pub(crate) struct TooMany;

impl Jobs {
    /// Goes on with what is stored, and forgets what is over.
    pub(crate) async fn resume(self: &Arc<Self>) {
        let running = |job: &Params| {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.contains_key(&(job.room.clone(), job.identity.clone()))
        };
        let jobs = match self.store.all(running).await {
            Ok(jobs) => jobs,
            Err(error) => {
                self.metrics.store_failures.inc();
                tracing::error!(%error, "delayed leaves from before are not looked after; their homeservers send them when their time is over");
                return;
            }
        };
        let (mut on, mut over) = (0, 0);
        for (params, restarted) in jobs {
            let job = Job::restored(params.clone(), restarted, now(), self.check_every);
            if job.is_some_and(|job| self.start(job).is_ok()) {
                on += 1;
            } else {
                over += 1;
                self.forget(&params).await;
            }
        }
        if on + over > 0 {
            tracing::info!(
                on,
                over,
                "delayed leaves from before: so many are looked after again, so many are over"
            );
        }
    }

    /// Looks after a delayed leave from now on, in place of another of the same member.
    pub(crate) async fn add(self: &Arc<Self>, params: Params) -> Result<(), TooMany> {
        let job = Job::new(params, now(), self.check_every);
        let (params, restarted) = (job.params.clone(), job.restarted());
        // Before it runs: should it end at once, it is forgotten after that.
        if let Err(error) = self.store.add(&params, restarted).await {
            self.not_kept(&error);
        }
        self.start(job)
    }

    /// Shares the work with other processes, where the store is shared, until the service stops; then leaves all to them.
    pub(crate) async fn share(self: &Arc<Self>) {
        let Some(valkey) = self.store.shared() else { return };
        let mut closing = self.closing.clone();
        let hearing = tokio::spawn(self.clone().hear());
        while !*closing.borrow() {
            tokio::select! {
                _ = closing.wait_for(|closing| *closing) => break,
                () = sleep(RENEWED) => {}
            }
            for (params, replaced) in self.all_running() {
                match valkey.renew(&params).await {
                    Ok(true) => {}
                    // The member's next job is another's.
                    Ok(false) => replaced.notify_one(),
                    Err(error) => {
                        self.metrics.store_failures.inc();
                        tracing::warn!(%error, "delayed leaves are not shared at the moment");
                        break;
                    }
                }
            }
            self.resume().await;
        }
        hearing.abort();
        for (params, _) in self.all_running() {
            if valkey.release(&params, false).await.is_err() {
                // Others find out when the leases are over.
                break;
            }
        }
    }

    fn all_running(&self) -> Vec<(Params, Arc<Notify>)> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().map(|handle| (handle.params.clone(), handle.replaced.clone())).collect()
    }

    /// Takes note of what SFUs have told other processes.
    async fn hear(self: Arc<Self>) {
        let Some(valkey) = self.store.shared() else { return };
        loop {
            let hear = |text: &str| {
                if let Ok((room, identity, event)) = serde_json::from_str::<(String, String, Event)>(text) {
                    self.tell(&room, &identity, event);
                }
            };
            if let Err(error) = valkey.listen(hear).await {
                tracing::warn!(%error, "what SFUs tell other processes is not heard at the moment");
            }
            sleep(RENEWED).await;
        }
    }

    /// Tells other processes what an SFU says, if there may be any.
    pub(crate) fn pass_on(self: &Arc<Self>, room: &str, identity: &str, event: Event) -> bool {
        if self.store.shared().is_none() {
            return false;
        }
        let Ok(text) = serde_json::to_string(&(room, identity, event)) else { return false };
        let all = self.clone();
        tokio::spawn(async move {
            if let Some(valkey) = all.store.shared()
                && let Err(error) = valkey.publish(&text).await
            {
                all.metrics.store_failures.inc();
                tracing::warn!(%error, "other processes are not told what an SFU says");
            }
        });
        true
    }

    fn start(self: &Arc<Self>, job: Job) -> Result<(), TooMany> {
        let name = (job.params.room.clone(), job.params.identity.clone());
        let (events, mut receiver) = mpsc::channel(WAITING);
        let replaced = Arc::new(Notify::new());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let number = running.get(&name).map_or(0, |handle| handle.number + 1);
        if number == 0 && running.len() >= MOST {
            return Err(TooMany);
        }
        let handle = Handle { params: job.params.clone(), number, events, replaced: replaced.clone() };
        if let Some(old) = running.insert(name.clone(), handle) {
            old.replaced.notify_one();
        }
        self.metrics.jobs.set(i64::try_from(running.len()).unwrap_or(i64::MAX));
        drop(running);
        let all = self.clone();
        tokio::spawn(async move {
            let mut closing = all.closing.clone();
            let ended = tokio::select! {
                // It goes on with the next start.
                _ = closing.wait_for(|closing| *closing) => return,
                ended = all.run(job, &mut receiver, &replaced) => ended,
            };
            let Some((params, end)) = ended else { return };
            all.metrics.job_ended(end.name());
            tracing::info!(
                room = params.room,
                identity = params.identity,
                end = end.name(),
                "a delayed leave is looked after no more"
            );
            // Where the next one runs here, it has the name now; where it runs elsewhere, the store is that one's.
            let own = {
                let mut running = all.running.lock().unwrap_or_else(PoisonError::into_inner);
                let own = running.get(&name).is_some_and(|handle| handle.number == number);
                if own {
                    running.remove(&name);
                }
                all.metrics.jobs.set(i64::try_from(running.len()).unwrap_or(i64::MAX));
                own
            };
            // Otherwise it is another's by now.
            if own && end != End::Replaced {
                all.forget(&params).await;
            }
        });
        Ok(())
    }

    async fn run(
        &self,
        mut job: Job,
        events: &mut mpsc::Receiver<Event>,
        replaced: &Notify,
    ) -> Option<(Params, End)> {
        loop {
            if let State::Ended(end) = job.state() {
                return Some((job.params, end));
            }
            let (at, action) = job.next()?;
            let before = job.restarted();
            tokio::select! {
                biased;
                () = replaced.notified() => job.on(Event::Replaced, now()),
                Some(event) = events.recv() => job.on(event, now()),
                () = sleep(Duration::from_millis(at.saturating_sub(now()))) => {
                    let event = self.perform(&job.params, action).await;
                    job.on(event, now());
                }
            }
            if job.restarted() != before {
                self.keep(&job.params, job.restarted()).await;
            }
        }
    }

    async fn perform(&self, params: &Params, action: Action) -> Event {
        match action {
            Action::Tick => Event::Tick,
            Action::Restart => Event::Answered(self.homeservers.delayed(params, "restart").await),
            Action::Send => Event::Answered(self.homeservers.delayed(params, "send").await),
            Action::LookUp => {
                let sfu = self.sfus.of(&params.sfu);
                let there =
                    sfu.has(self.homeservers.discovery.client(), &params.room, &params.identity).await;
                Event::LookedUp(match there {
                    Ok(there) => Some(there),
                    Err(error) => {
                        self.metrics.sfu_failed(&sfu.api);
                        tracing::warn!(sfu = sfu.api, %error, "an SFU does not say whether a member is there");
                        None
                    }
                })
            }
        }
    }

    /// Tells what an SFU says to whom it concerns. False if it concerns nobody.
    pub(crate) fn tell(&self, room: &str, identity: &str, event: Event) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = running.get(&(room.to_owned(), identity.to_owned())) else { return false };
        if handle.events.try_send(event).is_err() {
            tracing::warn!(room, identity, "more happens to a delayed leave than can be kept up with");
        }
        true
    }

    async fn keep(&self, params: &Params, restarted: Millis) {
        if let Err(error) = self.store.save(params, restarted).await {
            self.not_kept(&error);
        }
    }

    fn not_kept(&self, error: &StoreError) {
        self.metrics.store_failures.inc();
        tracing::error!(%error, "a delayed leave is not stored; it is forgotten when the service stops");
    }

    async fn forget(&self, params: &Params) {
        if let Err(error) = self.store.remove(params).await {
            self.metrics.store_failures.inc();
            tracing::error!(%error, "a delayed leave that is over stays stored");
        }
    }
}
