//! Delivery: in order in each room, rooms beside each other, each message once.
//!
//! A message's transaction ID is settled when the message is taken, so that a homeserver knows a second attempt from a second message.
//! Synapse knows it for half an hour by the device, for a day in its database, and not at all for tokens without a device once it was
//! restarted. Where that may be over, the room itself is asked whether the message has arrived.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use matrix::{Again, Client, Error, Unusable, Whoami};
use prometheus_client::registry::Registry;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore, mpsc};
use tokio::time::sleep;

use crate::event;
use crate::metrics::{Metrics, Room};
use crate::settings::{Matrix, Queue};
use crate::store::{CallError, Store, StoreError, Waiting, now};

/// How many requests to the homeserver run at once.
const AT_ONCE: usize = 16;

/// The first pause after a failure; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// How long a homeserver is trusted to know a transaction ID of a device again.
const KNOWN: Duration = Duration::from_secs(20 * 60);

/// How long what is known of a room is taken for true.
const ROOM_KNOWN: Duration = Duration::from_secs(600);

/// How much the clocks of this machine and the homeserver may differ.
const SKEW: Duration = Duration::from_secs(3600);

/// How many parts of a room's past are searched for a message, of 100 messages of ours each.
const PARTS: usize = 50;

/// How often the store is looked at for changes by others.
const LOOK: Duration = Duration::from_secs(1);

/// How often what is too old is forgotten.
const FORGET: Duration = Duration::from_secs(3600);

/// Why nothing can be delivered at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The URL, the token or the proxy.
    #[error(transparent)]
    Account(#[from] Unusable),
    /// The file of the token.
    #[error(transparent)]
    Secret(#[from] config::secrets::SecretError),
    /// There is no token.
    #[error(
        "the account has no access token: write it into a file of mode 0600 and name that in `access_token_file`"
    )]
    NoToken,
}

/// Delivers what a [`Store`] takes.
#[derive(Clone, Debug)]
pub struct Courier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    account: ArcSwap<Account>,
    at_once: Semaphore,
    rooms: Mutex<HashMap<String, Known>>,
    metrics: Metrics,
    /// Why the homeserver could not be reached the last time.
    trouble: Mutex<Option<String>>,
    store_trouble: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Account {
    client: Client,
    user_id: Option<String>,
    /// Stands for the device where a token has none.
    token: String,
    whoami: OnceCell<Whoami>,
}

/// What is known of a room.
#[derive(Clone, Debug)]
struct Known {
    room_id: String,
    since: Instant,
}

/// Why a message was not delivered.
#[derive(Debug)]
enum Failure {
    Later(Option<Duration>, String),
    Never(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.again() {
            Again::Later(wait) => Self::Later(wait, error.to_string()),
            Again::Never => Self::Never(error.to_string()),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Later(None, error.to_string())
    }
}

impl Account {
    fn new(matrix: &Matrix) -> Result<Self, StartError> {
        let token = match (&matrix.access_token, &matrix.access_token_file) {
            (Some(token), _) if !token.trim().is_empty() => token.trim().to_owned(),
            (_, Some(file)) => config::secrets::read(file)?.expose().trim().to_owned(),
            _ => return Err(StartError::NoToken),
        };
        Ok(Self {
            client: Client::new(&matrix.homeserver_url, &token, matrix.proxy.as_deref())?,
            user_id: matrix.user_id.clone(),
            token: hex::encode(&Sha256::digest(&token)[..8]),
            whoami: OnceCell::new(),
        })
    }

    async fn whoami(&self) -> Result<&Whoami, Error> {
        let ask = || async {
            let whoami = self.client.whoami().await?;
            if let Some(expected) = self.user_id.as_ref().filter(|expected| **expected != whoami.user_id) {
                tracing::warn!(expected, actual = whoami.user_id, "the access token belongs to another user");
            }
            Ok(whoami)
        };
        self.whoami.get_or_try_init(ask).await
    }

    /// Whose transaction IDs those of this token are.
    fn device(&self, whoami: &Whoami) -> String {
        match &whoami.device_id {
            Some(device) => format!("{} {device}", whoami.user_id),
            None => format!("{} token {}", whoami.user_id, self.token),
        }
    }
}

impl Courier {
    /// Opens the store, which is made if it is not there, and begins to deliver what waits in it. The service's name tells its keys from
    /// those of others.
    pub fn start(service: &str, matrix: &Matrix, queue: &Queue) -> Result<Self, StartError> {
        let account = Account::new(matrix)?;
        let metrics = Metrics::default();
        let (store, rooms) = Store::open(service, queue, metrics.clone())?;
        let inner = Arc::new(Inner {
            store,
            account: ArcSwap::from_pointee(account),
            at_once: Semaphore::new(AT_ONCE),
            rooms: Mutex::default(),
            metrics,
            trouble: Mutex::default(),
            store_trouble: Mutex::default(),
        });
        tokio::spawn(dispatch(inner.clone(), rooms));
        tokio::spawn(look_after(inner.clone()));
        Ok(Self { inner })
    }

    /// What takes messages.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Takes another account from the next attempt on.
    ///
    /// # Errors
    /// It cannot be used; the one before stays.
    pub fn reload(&self, matrix: &Matrix) -> Result<(), StartError> {
        self.inner.account.store(Arc::new(Account::new(matrix)?));
        lock(&self.inner.rooms).clear();
        Ok(())
    }

    /// Whether messages can be taken. A homeserver that is away does not prevent that.
    pub fn ready(&self) -> Result<(), String> {
        lock(&self.inner.store_trouble).clone().map_or(Ok(()), Err)
    }

    /// Why the homeserver could not be reached by the last attempt, if it could not.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.inner.trouble).clone()
    }

    /// Adds the metrics `matrix_stack_hooks_…`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps one task for each room that something waits for.
async fn dispatch(inner: Arc<Inner>, mut rooms: mpsc::UnboundedReceiver<String>) {
    let (ended, mut ends) = mpsc::unbounded_channel::<String>();
    let mut busy: HashSet<String> = HashSet::new();
    // Rooms that something came for while their task was busy: it may have looked before.
    let mut again: HashSet<String> = HashSet::new();
    loop {
        let room = tokio::select! {
            Some(room) = rooms.recv() => room,
            Some(room) = ends.recv() => {
                busy.remove(&room);
                if !again.remove(&room) {
                    continue;
                }
                room
            }
            else => return,
        };
        if busy.contains(&room) {
            again.insert(room);
            continue;
        }
        busy.insert(room.clone());
        let (inner, ended) = (inner.clone(), ended.clone());
        tokio::spawn(async move {
            inner.empty(&room).await;
            let _ = ended.send(room);
        });
    }
}

/// Notices what others change in the store, and forgets what is too old.
async fn look_after(inner: Arc<Inner>) {
    let mut version = 0;
    let mut forgotten: Option<Instant> = None;
    loop {
        let looked = inner.store.look(&mut version).await;
        let trouble = match looked {
            // That many calls are a burst, and no trouble.
            Ok(()) | Err(CallError::Full) => None,
            Err(error) => Some(error.to_string()),
        };
        *lock(&inner.store_trouble) = trouble;
        if forgotten.is_none_or(|at| at.elapsed() > FORGET) {
            if let Err(error) = inner.store.forget().await {
                tracing::warn!(%error, "what is old was not forgotten");
            }
            forgotten = Some(Instant::now());
        }
        sleep(LOOK).await;
    }
}

impl Inner {
    /// Delivers what waits for a room until nothing does.
    async fn empty(&self, room: &str) {
        let mut failures = 0;
        loop {
            let account = self.account.load_full();
            let next = match account.whoami().await {
                Ok(whoami) => {
                    self.reached(None);
                    let device = account.device(whoami);
                    self.store.next(room, &device).await.map_err(Failure::from)
                }
                Err(error) => {
                    self.reached(Some(&error.to_string()));
                    let wait = if let Again::Later(wait) = error.again() { wait } else { None };
                    Err(Failure::Later(wait, error.to_string()))
                }
            };
            match next {
                Ok(next) if next.is_empty() => return,
                Ok(next) => {
                    failures = 0;
                    for waiting in next {
                        self.bring(room, waiting).await;
                    }
                }
                Err(failure) => {
                    let (Failure::Later(_, reason) | Failure::Never(reason)) = &failure;
                    let wait = if let Failure::Later(wait, _) = &failure { *wait } else { None };
                    tracing::warn!(room, reason, "nothing can be delivered now");
                    self.metrics.retries.inc();
                    sleep(pause(failures, wait)).await;
                    failures += 1;
                }
            }
        }
    }

    /// Delivers a message, however long that takes, or gives it up where it never can be.
    async fn bring(&self, room: &str, waiting: Waiting) {
        let mut tried = waiting.tried.clone();
        let mut failures = 0;
        loop {
            match self.attempt(room, &waiting, &mut tried).await {
                Ok(()) => {
                    self.metrics.delivered.inc();
                    let took = Duration::from_millis(u64::try_from(now() - waiting.accepted).unwrap_or(0));
                    self.metrics.latency.observe(took.as_secs_f64());
                    return;
                }
                Err(Failure::Later(wait, reason)) => {
                    self.metrics.retries.inc();
                    let attempt = waiting.attempts + failures + 1;
                    tracing::warn!(id = waiting.id, room, reason, attempt, "a delivery is put off");
                    // It is for people who look; without it nothing is lost.
                    let _ = self.store.failed(waiting.id, &reason).await;
                    sleep(pause(failures, wait)).await;
                    failures += 1;
                }
                Err(Failure::Never(reason)) => {
                    if let Err(error) = self.store.bury(&waiting, &reason).await {
                        tracing::error!(id = waiting.id, %error, "a dead letter was not written");
                        sleep(pause(failures, None)).await;
                        failures += 1;
                        continue;
                    }
                    self.metrics.dead.inc();
                    tracing::error!(
                        id = waiting.id,
                        room,
                        reason,
                        "a message cannot be delivered: a dead letter"
                    );
                    return;
                }
            }
        }
    }

    async fn attempt(
        &self,
        room: &str,
        waiting: &Waiting,
        tried: &mut Option<(i64, String)>,
    ) -> Result<(), Failure> {
        // It is never closed.
        let _place = self.at_once.acquire().await;
        let account = self.account.load_full();
        let outcome = self.send(&account, room, waiting, tried).await;
        match &outcome {
            Err(Failure::Later(_, reason)) => self.reached(Some(reason)),
            _ => self.reached(None),
        }
        let (event, relation) = outcome?;
        // Whatever happens to the store: it has arrived, and must not be sent again.
        let mut failures = 0;
        while let Err(error) = self.store.delivered(room, waiting, &event, &relation).await {
            tracing::error!(id = waiting.id, %error, "a delivery was not written down");
            sleep(pause(failures, None)).await;
            failures += 1;
        }
        Ok(())
    }

    /// Sends a message, unless it has arrived already.
    async fn send(
        &self,
        account: &Account,
        room: &str,
        waiting: &Waiting,
        tried: &mut Option<(i64, String)>,
    ) -> Result<(String, event::Relation), Failure> {
        let whoami = account.whoami().await?;
        let device = account.device(whoami);
        let relation = self.store.relation(room, waiting).await?;
        let room_id = self.room(account, room).await?;
        if let Some((at, by)) = tried.as_ref() {
            let known = whoami.device_id.is_some()
                && *by == device
                && now() - at < i64::try_from(KNOWN.as_millis()).unwrap_or(i64::MAX);
            if !known {
                if let Some(event) = look_up(account, whoami, &room_id, waiting).await? {
                    self.metrics.found.inc();
                    return Ok((event, relation));
                }
                *tried = None;
            }
        }
        tried.get_or_insert_with(|| (now(), device));
        let content = Bytes::from(event::content(&waiting.message, &relation, &waiting.txn));
        match account.client.send(&room_id, "m.room.message", &waiting.txn, content).await {
            Ok(event) => Ok((event, relation)),
            Err(error) => {
                // It may have been left, removed or upgraded; what is known of it is no longer true.
                let refused = error.code() == Some("M_FORBIDDEN");
                if lock(&self.rooms).remove(room).is_some_and(|known| known.since.elapsed() > LOOK) && refused
                {
                    return Err(Failure::Later(Some(Duration::ZERO), error.to_string()));
                }
                Err(error.into())
            }
        }
    }

    /// The ID of a room that can be sent to; it is joined if need be.
    async fn room(&self, account: &Account, room: &str) -> Result<String, Failure> {
        let known = lock(&self.rooms).get(room).filter(|known| known.since.elapsed() < ROOM_KNOWN).cloned();
        if let Some(known) = known {
            return Ok(known.room_id);
        }
        let client = &account.client;
        let (room_id, via): (String, Vec<String>) = if room.starts_with('#') {
            let resolved =
                client.resolve(room).await.map_err(|error| explain(error, "its alias leads nowhere"))?;
            (resolved.room_id, resolved.servers.into_iter().take(5).collect())
        } else {
            (room.to_owned(), room.split_once(':').map(|(_, server)| server.to_owned()).into_iter().collect())
        };
        let mut encryption = client.state(&room_id, "m.room.encryption", "").await;
        if encryption.as_ref().is_err_and(|error| error.code() == Some("M_FORBIDDEN")) {
            let label = Room { room: room.to_owned() };
            if let Err(error) = client.join(&room_id, &via).await {
                self.metrics.not_joined.get_or_create(&label).inc();
                return Err(explain(error, "the account is not in the room and cannot join it"));
            }
            self.metrics.joined.get_or_create(&label).inc();
            tracing::info!(room, "joined");
            // Another process of the homeserver may not know of it yet.
            for round in 0..5 {
                encryption = client.state(&room_id, "m.room.encryption", "").await;
                if !encryption.as_ref().is_err_and(|error| error.code() == Some("M_FORBIDDEN")) {
                    break;
                }
                sleep(PAUSE * (round + 1)).await;
            }
        }
        match encryption {
            Ok(None) => {}
            Ok(Some(_)) => {
                return Err(Failure::Never(
                    "the room is encrypted, and messages are not: send to a room without encryption"
                        .to_owned(),
                ));
            }
            Err(error) => return Err(explain(error, "the room cannot be looked at")),
        }
        let known = Known { room_id: room_id.clone(), since: Instant::now() };
        lock(&self.rooms).insert(room.to_owned(), known);
        Ok(room_id)
    }

    fn reached(&self, trouble: Option<&str>) {
        self.metrics.reachable.set(i64::from(trouble.is_none()));
        *lock(&self.trouble) = trouble.map(str::to_owned);
    }
}

/// A failure with what it means.
fn explain(error: Error, meaning: &str) -> Failure {
    match error.into() {
        Failure::Never(reason) => Failure::Never(format!("{meaning}: {reason}")),
        later @ Failure::Later(..) => later,
    }
}

/// The event of a message that may have arrived before.
async fn look_up(
    account: &Account,
    whoami: &Whoami,
    room_id: &str,
    waiting: &Waiting,
) -> Result<Option<String>, Failure> {
    let since = waiting.accepted - i64::try_from(SKEW.as_millis()).unwrap_or(0);
    let mut from = None;
    for _ in 0..PARTS {
        let part = account.client.messages(room_id, from.as_deref(), &whoami.user_id).await?;
        for event in &part.chunk {
            let ours = [&event["content"][event::ID], &event["unsigned"]["transaction_id"]];
            if ours.iter().any(|id| id.as_str() == Some(&waiting.txn)) {
                return Ok(event["event_id"].as_str().map(str::to_owned));
            }
        }
        let older =
            |event: &serde_json::Value| event["origin_server_ts"].as_i64().is_some_and(|at| at < since);
        if part.end.is_none() || part.chunk.last().is_some_and(older) {
            break;
        }
        from = part.end;
    }
    Ok(None)
}

/// How long to wait after so many failures: what the homeserver asks for, or twice as long each time, and never the same for all.
fn pause(failures: u32, asked: Option<Duration>) -> Duration {
    let mut random = [0; 4];
    // Without randomness all wait equally long.
    let _ = getrandom::fill(&mut random);
    let part = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    let base = asked.unwrap_or_else(|| PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE));
    base.mul_f64(if asked.is_some() { 1.0 + part * 0.1 } else { 0.75 + part * 0.5 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        for (failures, least, most) in [(0, 0.375, 0.625), (1, 0.75, 1.25), (3, 3.0, 5.0), (90, 90.0, 150.0)]
        {
            let pause = pause(failures, None).as_secs_f64();
            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
        let asked = pause(9, Some(Duration::from_secs(2))).as_secs_f64();
        assert!((2.0..=2.2).contains(&asked), "{asked}");
        let some: HashSet<Duration> = (0..10).map(|_| pause(5, None)).collect();
        assert!(some.len() > 5);
    }
}
