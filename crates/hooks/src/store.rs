//! Where messages wait: an `SQLite` file that one thread writes.
//!
//! What comes while a transaction is written waits for the next, all of it together: one `fsync` answers for many messages.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::Message;
use crate::event::Relation;
use crate::metrics::Metrics;
use crate::outbox::{Accepted, Delivery, Outbox, Refused};
use crate::settings::Queue;

/// How many calls may wait for the writer; more are refused.
const CALLS: usize = 4096;

/// How many calls share a transaction at most.
const TOGETHER: usize = 1024;

/// How long a delivery is remembered by its `dedup`, unless its sender chooses otherwise.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// How long keys of messages are remembered, to edit them or to answer in their threads.
const KEYS: Duration = Duration::from_secs(90 * 24 * 3600);

/// How many dead letters are kept.
const DEAD: i64 = 10_000;

/// How long another process may hold the file.
const BUSY: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        service TEXT NOT NULL,
        room TEXT NOT NULL,
        message TEXT NOT NULL,
        txn TEXT NOT NULL,
        -- Times are in milliseconds since 1970.
        accepted INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        -- When it was first given to a homeserver, and by which device.
        tried INTEGER,
        tried_by TEXT,
        -- Why the last attempt failed.
        failure TEXT,
        -- When it was given up, if it was.
        died INTEGER
    );
    CREATE INDEX IF NOT EXISTS waiting ON messages (room, id) WHERE died IS NULL;
    CREATE INDEX IF NOT EXISTS dead ON messages (id) WHERE died IS NOT NULL;
    CREATE TABLE IF NOT EXISTS seen (
        service TEXT NOT NULL, room TEXT NOT NULL, dedup TEXT NOT NULL,
        id INTEGER NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (service, room, dedup)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS seen_at ON seen (at);
    -- `thread` is the root of the thread that the event is in, or the event itself.
    CREATE TABLE IF NOT EXISTS keys (
        service TEXT NOT NULL, room TEXT NOT NULL, key TEXT NOT NULL,
        event TEXT NOT NULL, thread TEXT NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (service, room, key)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS keys_at ON keys (at);
";

/// The version of [`SCHEMA`], as `user_version` has it.
const VERSION: i64 = 1;

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be opened.
    #[error("cannot open the store `{}`: {reason}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another service has it.
    #[error("the store `{}` is another process's: stop that, or name a store of this one's own", .0.display())]
    Taken(PathBuf),
    /// It is not there.
    #[error("there is no store `{}`: give the file that the service's `store` names", .0.display())]
    Missing(PathBuf),
    /// It failed.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The store of one service: an [`Outbox`] that is durable.
#[derive(Clone, Debug)]
pub struct Store {
    calls: SyncSender<Box<dyn Call>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    service: String,
    most_messages: i64,
    most_bytes: i64,
    messages: AtomicI64,
    bytes: AtomicI64,
    /// Told of each room that something came for.
    woken: mpsc::UnboundedSender<String>,
    /// A transaction failed, so that what is counted beside it may be wrong.
    miscounted: AtomicBool,
    metrics: Metrics,
    /// Held as long as the store is used.
    _lock: File,
}

/// A message that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) service: String,
    pub(crate) message: Message,
    pub(crate) bytes: i64,
    pub(crate) txn: String,
    pub(crate) accepted: i64,
    pub(crate) attempts: u32,
    /// When it was first given to a homeserver, and by which device, if it may have been.
    pub(crate) tried: Option<(i64, String)>,
}

/// A message that cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its number.
    pub id: i64,
    /// The service that took it.
    pub service: String,
    /// Where it should have gone.
    pub room: String,
    /// Why it cannot.
    pub reason: String,
    /// When it was taken, in milliseconds since 1970.
    pub accepted_ms: i64,
    /// When it was given up, in milliseconds since 1970.
    pub died_ms: i64,
    /// Its text.
    pub text: String,
}

/// What the writer does for somebody.
trait Call: Send {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
    /// Tells who waits how the transaction ended.
    fn end(self: Box<Self>, outcome: Result<(), &str>);
}

struct Job<T, F> {
    work: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, String>>,
}

impl<T: Send, F: FnOnce(&Connection) -> rusqlite::Result<T> + Send> Call for Job<T, F> {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.result = Some(work(db)?);
        }
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<(), &str>) {
        let outcome = match (outcome, self.result) {
            (Ok(()), Some(result)) => Ok(result),
            (Err(error), _) => Err(error.to_owned()),
            (Ok(()), None) => Err("it was not carried out".to_owned()),
        };
        // Who asked may be gone.
        let _ = self.reply.send(outcome);
    }
}

pub(crate) fn now() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Opens a store, which is made if it is not there, and says which rooms something waits for or comes for.
    pub(crate) fn open(
        service: &str,
        queue: &Queue,
        metrics: Metrics,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>), StoreError> {
        let path = &queue.store;
        let open = |reason: &dyn std::fmt::Display| StoreError::Open {
            path: path.clone(),
            reason: reason.to_string(),
        };
        let lock = prepare(path).map_err(|error| open(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Taken(path.clone())),
            Err(TryLockError::Error(error)) => return Err(open(&error)),
        }
        let db = connect(path).map_err(|error| open(&error))?;
        let prefix = set_up(&db).map_err(|error| open(&error))?;
        let (messages, bytes) = count(&db).map_err(|error| open(&error))?;
        let (woken, rooms) = mpsc::unbounded_channel();
        for room in waiting_rooms(&db).map_err(|error| open(&error))? {
            let _ = woken.send(room);
        }
        metrics.waiting.set(messages);
        metrics.waiting_bytes.set(bytes);
        let shared = Arc::new(Shared {
            service: service.to_owned(),
            most_messages: i64::from(queue.most_messages),
            most_bytes: i64::try_from(queue.most_bytes).unwrap_or(i64::MAX),
            messages: messages.into(),
            bytes: bytes.into(),
            woken,
            miscounted: false.into(),
            metrics,
            _lock: lock,
        });
        let (calls, jobs) = sync_channel(CALLS);
        db.execute("INSERT OR IGNORE INTO meta VALUES ('prefix', ?)", [&prefix])
            .map_err(|error| open(&error))?;
        let writer = shared.clone();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write(db, &jobs, &writer))
            .map_err(|error| open(&error))?;
        Ok((Self { calls, shared }, rooms))
    }

    /// Lets the writer do something, and waits until it is durable.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { work: Some(work), result: None, reply };
        self.calls.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) => CallError::Full,
            TrySendError::Disconnected(_) => CallError::Failed("its thread ended".to_owned()),
        })?;
        match answer.await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(reason)) => Err(CallError::Failed(reason)),
            Err(_) => Err(CallError::Failed("its thread ended".to_owned())),
        }
    }

    /// Takes all of these, or none; each `dedup` is remembered so long.
    pub(crate) async fn take(
        &self,
        deliveries: Vec<Delivery>,
        remembered: Duration,
    ) -> Result<Vec<Accepted>, Refused> {
        let shared = self.shared.clone();
        let count = u64::try_from(deliveries.len()).unwrap_or(u64::MAX);
        let outcome = self.call(move |db| accept(db, &shared, &deliveries, millis(remembered))).await;
        let taken = match outcome {
            Ok(taken) => taken,
            Err(CallError::Full) => Err(Refused::Full),
            Err(CallError::Failed(reason)) => Err(Refused::Store(reason)),
        };
        let metrics = &self.shared.metrics;
        match taken {
            Ok(taken) => {
                let duplicates = taken.accepted.iter().filter(|accepted| accepted.duplicate).count();
                let duplicates = u64::try_from(duplicates).unwrap_or(u64::MAX);
                metrics.duplicates.inc_by(duplicates);
                metrics.accepted.inc_by(count - duplicates);
                for room in taken.rooms {
                    // Nobody listens once the service ends.
                    let _ = self.shared.woken.send(room);
                }
                Ok(taken.accepted)
            }
            Err(refused) => {
                metrics.refused.inc_by(count);
                Err(refused)
            }
        }
    }

    /// The next messages of a room, which are from now on taken for given to a homeserver by this device.
    pub(crate) async fn next(&self, room: &str, device: &str) -> Result<Vec<Waiting>, CallError> {
        let (room, device) = (room.to_owned(), device.to_owned());
        self.call(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT id, service, message, txn, accepted, attempts, tried, tried_by FROM messages
                 WHERE room = ? AND died IS NULL ORDER BY id LIMIT 32",
            )?;
            let next: Vec<Waiting> = statement
                .query_map([&room], |row| {
                    let message: String = row.get(2)?;
                    let tried: Option<i64> = row.get(6)?;
                    let by: Option<String> = row.get(7)?;
                    Ok(Waiting {
                        id: row.get(0)?,
                        service: row.get(1)?,
                        bytes: i64::try_from(message.len()).unwrap_or(i64::MAX),
                        message: serde_json::from_str(&message).unwrap_or_default(),
                        txn: row.get(3)?,
                        accepted: row.get(4)?,
                        attempts: row.get(5)?,
                        tried: tried.map(|at| (at, by.unwrap_or_default())),
                    })
                })?
                .collect::<Result<_, _>>()?;
            let mut mark = db.prepare_cached(
                "UPDATE messages SET tried = ?, tried_by = ? WHERE id = ? AND tried IS NULL",
            )?;
            for waiting in next.iter().filter(|waiting| waiting.tried.is_none()) {
                mark.execute(params![now(), device, waiting.id])?;
            }
            Ok(next)
        })
        .await
    }

    /// What a message belongs to.
    pub(crate) async fn relation(&self, room: &str, waiting: &Waiting) -> Result<Relation, CallError> {
        let Message { edits, thread, .. } = &waiting.message;
        if edits.is_none() && thread.is_none() {
            return Ok(Relation::default());
        }
        let (service, room) = (waiting.service.clone(), room.to_owned());
        let (edits, thread) = (edits.clone(), thread.clone());
        self.call(move |db| {
            let event = |key: Option<String>, column: &str| match key {
                Some(key) => db
                    .prepare_cached(&format!(
                        "SELECT {column} FROM keys WHERE service = ? AND room = ? AND key = ?"
                    ))?
                    .query_row([&service, &room, &key], |row| row.get(0))
                    .optional(),
                None => Ok(None),
            };
            Ok(Relation { edits: event(edits, "event")?, thread: event(thread, "thread")? })
        })
        .await
    }

    /// A message has arrived as an event.
    pub(crate) async fn delivered(
        &self,
        room: &str,
        waiting: &Waiting,
        event: &str,
        relation: &Relation,
    ) -> Result<(), CallError> {
        let id = waiting.id;
        // Who answers in the thread of its own key leaves that to the message that began it, which is the one to edit.
        let began = waiting.message.key != waiting.message.thread || relation.thread.is_none();
        let key = waiting.message.key.clone().filter(|_| began).map(|key| {
            // Edits of an edit are those of what it edits.
            let named = relation.edits.as_deref().unwrap_or(event).to_owned();
            let thread = relation.thread.clone().unwrap_or_else(|| named.clone());
            [waiting.service.clone(), room.to_owned(), key, named, thread]
        });
        let (shared, bytes) = (self.shared.clone(), waiting.bytes);
        self.call(move |db| {
            db.prepare_cached("DELETE FROM messages WHERE id = ?")?.execute([id])?;
            if let Some([service, room, key, event, thread]) = key {
                db.prepare_cached(
                    "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                     thread = iif(keys.event = excluded.event, keys.thread, excluded.thread), event = excluded.event,
                     at = excluded.at",
                )?
                .execute(params![service, room, key, event, thread, now()])?;
            }
            shared.leave(bytes);
            Ok(())
        })
        .await
    }

    /// A message is given up.
    pub(crate) async fn bury(&self, waiting: &Waiting, reason: &str) -> Result<(), CallError> {
        let (id, reason) = (waiting.id, reason.to_owned());
        let (shared, bytes) = (self.shared.clone(), waiting.bytes);
        self.call(move |db| {
            db.prepare_cached(
                "UPDATE messages SET died = ?, failure = ?, attempts = attempts + 1 WHERE id = ?",
            )?
            .execute(params![now(), reason, id])?;
            shared.leave(bytes);
            Ok(())
        })
        .await
    }

    /// An attempt failed.
    pub(crate) async fn failed(&self, id: i64, reason: &str) -> Result<(), CallError> {
        let reason = reason.to_owned();
        self.call(move |db| {
            db.prepare_cached("UPDATE messages SET attempts = attempts + 1, failure = ? WHERE id = ?")?
                .execute(params![reason, id])?;
            Ok(())
        })
        .await
    }

    /// Looks at the store as others may have changed it: which rooms something waits for, and how much.
    pub(crate) async fn look(&self, version: &mut i64) -> Result<(), CallError> {
        // No version is negative. What counts of the counters is right within a transaction: calls run one after the other.
        let known = if self.shared.miscounted.swap(false, Ordering::Relaxed) { -1 } else { *version };
        let shared = self.shared.clone();
        let (now_version, rooms) = self
            .call(move |db| {
                let version: i64 = db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
                let oldest: Option<i64> = db
                    .prepare_cached("SELECT accepted FROM messages WHERE died IS NULL ORDER BY id LIMIT 1")?
                    .query_row([], |row| row.get(0))
                    .optional()?;
                let dead = db
                    .prepare_cached("SELECT count(*) FROM messages WHERE died IS NOT NULL")?
                    .query_row([], |row| row.get(0))?;
                shared.metrics.oldest.set(oldest.map_or(0, |at| (now() - at).max(0) / 1000));
                shared.metrics.dead_letters.set(dead);
                if version == known {
                    return Ok((version, Vec::new()));
                }
                let (messages, bytes) = count(db)?;
                shared.messages.store(messages, Ordering::Relaxed);
                shared.bytes.store(bytes, Ordering::Relaxed);
                shared.show();
                Ok((version, waiting_rooms(db)?))
            })
            .await?;
        *version = now_version;
        for room in rooms {
            let _ = self.shared.woken.send(room);
        }
        Ok(())
    }

    /// Forgets what is too old to matter.
    pub(crate) async fn forget(&self) -> Result<(), CallError> {
        self.call(|db| {
            db.execute("DELETE FROM seen WHERE at < ?", [now() - millis(REMEMBERED)])?;
            db.execute("DELETE FROM keys WHERE at < ?", [now() - millis(KEYS)])?;
            db.execute(
                "DELETE FROM messages WHERE died IS NOT NULL AND id <=
                 (SELECT id FROM messages WHERE died IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?)",
                [DEAD],
            )?;
            Ok(())
        })
        .await
    }
}

impl Shared {
    /// A message no longer waits; called within the transaction that says so.
    fn leave(&self, bytes: i64) {
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.show();
    }

    fn show(&self) {
        self.metrics.waiting.set(self.messages.load(Ordering::Relaxed));
        self.metrics.waiting_bytes.set(self.bytes.load(Ordering::Relaxed));
    }
}

impl Outbox for Store {
    async fn accept(&self, deliveries: Vec<Delivery>) -> Result<Vec<Accepted>, Refused> {
        self.take(deliveries, REMEMBERED).await
    }
}

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    #[error("too many calls wait for the store")]
    Full,
    #[error("the store failed: {0}")]
    Failed(String),
}

struct Taken {
    accepted: Vec<Accepted>,
    rooms: Vec<String>,
}

fn accept(
    db: &Connection,
    shared: &Shared,
    deliveries: &[Delivery],
    remembered: i64,
) -> rusqlite::Result<Result<Taken, Refused>> {
    let now = now();
    let mut taken = Taken { accepted: Vec::with_capacity(deliveries.len()), rooms: Vec::new() };
    let messages: Vec<String> = deliveries
        .iter()
        .map(|delivery| serde_json::to_string(&delivery.message))
        .collect::<Result<_, _>>()
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let count = i64::try_from(messages.len()).unwrap_or(i64::MAX);
    let bytes = i64::try_from(messages.iter().map(String::len).sum::<usize>()).unwrap_or(i64::MAX);
    if shared.messages.load(Ordering::Relaxed) + count > shared.most_messages
        || shared.bytes.load(Ordering::Relaxed).saturating_add(bytes) > shared.most_bytes
    {
        return Ok(Err(Refused::Full));
    }
    let mut seen =
        db.prepare_cached("SELECT id FROM seen WHERE service = ? AND room = ? AND dedup = ? AND at > ?")?;
    let mut see = db.prepare_cached("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)")?;
    let mut insert = db.prepare_cached(
        "INSERT INTO messages (service, room, message, txn, accepted)
         VALUES (?1, ?2, ?3, (SELECT value FROM meta WHERE name = 'prefix') ||
             (SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0) + 1), ?4)",
    )?;
    for (delivery, message) in deliveries.iter().zip(&messages) {
        if let Some(dedup) = &delivery.dedup {
            let before: Option<i64> = seen
                .query_row(params![shared.service, delivery.room, dedup, now - remembered], |row| row.get(0))
                .optional()?;
            if let Some(id) = before {
                taken.accepted.push(Accepted { id, duplicate: true });
                continue;
            }
        }
        insert.execute(params![shared.service, delivery.room, message, now])?;
        let id = db.last_insert_rowid();
        if let Some(dedup) = &delivery.dedup {
            see.execute(params![shared.service, delivery.room, dedup, id, now])?;
        }
        shared.messages.fetch_add(1, Ordering::Relaxed);
        shared.bytes.fetch_add(i64::try_from(message.len()).unwrap_or(i64::MAX), Ordering::Relaxed);
        taken.accepted.push(Accepted { id, duplicate: false });
        if !taken.rooms.contains(&delivery.room) {
            taken.rooms.push(delivery.room.clone());
        }
    }
    shared.show();
    Ok(Ok(taken))
}

/// The writer: whatever has come is one transaction.
fn write(mut db: Connection, jobs: &Receiver<Box<dyn Call>>, shared: &Shared) {
    while let Ok(first) = jobs.recv() {
        let mut calls = vec![first];
        calls.extend(jobs.try_iter().take(TOGETHER - 1));
        let outcome = transaction(&mut db, &mut calls).map_err(|error| error.to_string());
        if let Err(error) = &outcome {
            tracing::error!(%error, "the store failed");
            shared.miscounted.store(true, Ordering::Relaxed);
        }
        for call in calls {
            call.end(outcome.as_ref().copied().map_err(String::as_str));
        }
    }
}

fn transaction(db: &mut Connection, calls: &mut [Box<dyn Call>]) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for call in calls {
        call.run(&transaction)?;
    }
    transaction.commit()
}

/// How many messages wait, and their bytes.
fn count(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    db.query_row(
        "SELECT count(*), coalesce(sum(length(CAST(message AS BLOB))), 0) FROM messages WHERE died IS NULL",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

fn waiting_rooms(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare("SELECT DISTINCT room FROM messages WHERE died IS NULL")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Makes the file, which only its owner can read, and the directory that it is in; and gives the file that is locked.
fn prepare(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let own = || {
        let mut options = fs::OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        options
    };
    own().open(path)?;
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    own().open(lock)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // 4 MiB of pages, and a log that is cut back when it is written over.
    db.pragma_update(None, "cache_size", -4096)?;
    db.pragma_update(None, "journal_size_limit", 64 << 20)?;
    Ok(db)
}

/// Makes the tables, and says what transaction IDs of this store begin with.
fn set_up(db: &Connection) -> rusqlite::Result<String> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > VERSION {
        return Err(rusqlite::Error::InvalidParameterName(format!(
            "it is of a newer version ({version}) than this program knows ({VERSION})"
        )));
    }
    db.execute_batch(SCHEMA)?;
    db.pragma_update(None, "user_version", VERSION)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| rusqlite::Error::InvalidParameterName(format!("no randomness: {error}")))?;
    Ok(format!("ms{}.", hex::encode(random)))
}

/// The dead letters of a store, the oldest first, whether its service runs or not.
///
/// # Errors
/// The store is not there or cannot be read.
pub fn dead_letters(store: &Path) -> Result<Vec<DeadLetter>, StoreError> {
    let db = existing(store)?;
    let mut statement = db.prepare(
        "SELECT id, service, room, coalesce(failure, ''), accepted, died, coalesce(json_extract(message, '$.plain'), '')
         FROM messages WHERE died IS NOT NULL ORDER BY id",
    )?;
    let letters = statement.query_map([], |row| {
        Ok(DeadLetter {
            id: row.get(0)?,
            service: row.get(1)?,
            room: row.get(2)?,
            reason: row.get(3)?,
            accepted_ms: row.get(4)?,
            died_ms: row.get(5)?,
            text: row.get(6)?,
        })
    })?;
    Ok(letters.collect::<Result<_, _>>()?)
}

/// Lets the service try dead letters again, this one or all, and says how many those are.
///
/// # Errors
/// The store is not there or cannot be written.
pub fn retry(store: &Path, id: Option<i64>) -> Result<usize, StoreError> {
    let db = existing(store)?;
    let count = db.execute(
        "UPDATE messages SET died = NULL, failure = NULL, attempts = 0 WHERE died IS NOT NULL AND (?1 IS NULL OR id = ?1)",
        [id],
    )?;
    Ok(count)
}

fn existing(store: &Path) -> Result<Connection, StoreError> {
    if !store.is_file() {
        return Err(StoreError::Missing(store.to_owned()));
    }
    let open =
        |reason: rusqlite::Error| StoreError::Open { path: store.to_owned(), reason: reason.to_string() };
    connect(store).map_err(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: &str = "!r:x";

    fn delivery(text: &str, dedup: Option<&str>) -> Delivery {
        let message = Message { plain: text.to_owned(), ..Message::default() };
        Delivery { room: ROOM.to_owned(), message, dedup: dedup.map(str::to_owned) }
    }

    fn open(directory: &Path) -> (Store, mpsc::UnboundedReceiver<String>) {
        Store::open("test", &Queue::at(directory.join("deep/hooks.sqlite")), Metrics::default()).unwrap()
    }

    async fn texts(store: &Store) -> Vec<String> {
        let next = store.next(ROOM, "d").await.unwrap();
        next.into_iter().map(|waiting| waiting.message.plain).collect()
    }

    #[tokio::test]
    async fn what_is_taken_waits_in_order_and_outlives_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let txns = {
            let (store, mut rooms) = open(directory.path());
            let again = Store::open(
                "test",
                &Queue::at(directory.path().join("deep/hooks.sqlite")),
                Metrics::default(),
            );
            assert!(matches!(again, Err(StoreError::Taken(_))));
            let many = (0..40).map(|at| {
                let store = store.clone();
                async move { store.accept(vec![delivery(&format!("{at}"), None)]).await.unwrap() }
            });
            for each in many {
                assert!(!each.await[0].duplicate);
            }
            assert_eq!(rooms.recv().await.as_deref(), Some(ROOM));
            let next = store.next(ROOM, "d").await.unwrap();
            assert_eq!(next.len(), 32);
            assert!(next.iter().all(|waiting| waiting.tried.is_none()));
            store.delivered(ROOM, &next[0], "$0", &Relation::default()).await.unwrap();
            store.failed(next[1].id, "away").await.unwrap();
            next.into_iter().map(|waiting| waiting.txn).collect::<Vec<_>>()
        };
        // The writer ends with the last handle, and then the lock is free.
        let (store, mut rooms) = loop {
            match Store::open(
                "test",
                &Queue::at(directory.path().join("deep/hooks.sqlite")),
                Metrics::default(),
            ) {
                Ok(opened) => break opened,
                Err(error) => assert!(matches!(error, StoreError::Taken(_)), "{error}"),
            }
        };
        assert_eq!(rooms.recv().await.as_deref(), Some(ROOM));
        let next = store.next(ROOM, "other").await.unwrap();
        assert_eq!(next[0].message.plain, "1");
        assert_eq!((next[0].txn.as_str(), next[0].attempts), (txns[1].as_str(), 1));
        assert_eq!(next[0].tried.as_ref().unwrap().1, "d");
        assert_eq!(store.shared.messages.load(Ordering::Relaxed), 39);
        let all: std::collections::HashSet<_> = txns.iter().collect();
        assert_eq!(all.len(), 32);
    }

    #[tokio::test]
    async fn the_same_again_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _rooms) = open(directory.path());
        let first = store.accept(vec![delivery("a", Some("x")), delivery("b", Some("y"))]).await.unwrap();
        let second = store.accept(vec![delivery("a", Some("x")), delivery("c", Some("z"))]).await.unwrap();
        assert_eq!(second[0], Accepted { id: first[0].id, duplicate: true });
        assert!(!second[1].duplicate);
        // Beyond the time that it is remembered it is another.
        let third = store.take(vec![delivery("a", Some("x"))], Duration::ZERO).await.unwrap();
        assert!(!third[0].duplicate);
        assert_eq!(texts(&store).await, ["a", "b", "c", "a"]);
        assert_eq!(store.shared.metrics.duplicates.get(), 1);
    }

    #[tokio::test]
    async fn more_than_may_wait_is_refused_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue { most_messages: 3, ..Queue::at(directory.path().join("hooks.sqlite")) };
        let (store, _rooms) = Store::open("test", &queue, Metrics::default()).unwrap();
        store.accept(vec![delivery("a", None), delivery("b", None)]).await.unwrap();
        let refused = store.accept(vec![delivery("c", None), delivery("d", None)]).await;
        assert_eq!(refused, Err(Refused::Full));
        store.accept(vec![delivery("e", None)]).await.unwrap();
        assert_eq!(texts(&store).await, ["a", "b", "e"]);
        let next = store.next(ROOM, "d").await.unwrap();
        store.delivered(ROOM, &next[0], "$a", &Relation::default()).await.unwrap();
        store.accept(vec![delivery("f", None)]).await.unwrap();
        let long = Queue { most_bytes: 1 << 20, ..Queue::at(directory.path().join("other.sqlite")) };
        let (store, _rooms) = Store::open("test", &long, Metrics::default()).unwrap();
        store.accept(vec![delivery(&"x".repeat(700_000), None)]).await.unwrap();
        let refused = store.accept(vec![delivery(&"x".repeat(700_000), None)]).await;
        assert_eq!(refused, Err(Refused::Full));
    }

    #[tokio::test]
    async fn keys_lead_to_events_and_to_threads() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _rooms) = open(directory.path());
        let keyed = |text: &str, key: &str, edits: Option<&str>, thread: Option<&str>| {
            let mut delivery = delivery(text, None);
            delivery.message.key = Some(key.to_owned());
            delivery.message.edits = edits.map(str::to_owned);
            delivery.message.thread = thread.map(str::to_owned);
            delivery
        };
        store
            .accept(vec![
                keyed("root", "k", None, None),
                keyed("edit", "k", Some("k"), None),
                keyed("reply", "r", None, Some("k")),
                keyed("reply to the reply", "s", None, Some("r")),
                keyed("unknown", "u", Some("?"), Some("?")),
                keyed("reply with the root's key", "k", None, Some("k")),
                keyed("edit of the root", "k", Some("k"), None),
            ])
            .await
            .unwrap();
        let mut relations = Vec::new();
        for (at, waiting) in store.next(ROOM, "d").await.unwrap().iter().enumerate() {
            let relation = store.relation(ROOM, waiting).await.unwrap();
            store.delivered(ROOM, waiting, &format!("${at}"), &relation).await.unwrap();
            relations.push((relation.edits, relation.thread));
        }
        let root = || Some("$0".to_owned());
        let first = [(None, None), (root(), None), (None, root()), (None, root()), (None, None)];
        assert_eq!(relations[..5], first);
        assert_eq!(relations[5..], [(None, root()), (root(), None)]);
    }

    #[tokio::test]
    async fn dead_letters_are_listed_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/hooks.sqlite");
        assert!(matches!(dead_letters(&path), Err(StoreError::Missing(_))));
        let (store, mut rooms) = open(directory.path());
        store.accept(vec![delivery("a", None), delivery("b", None), delivery("c", None)]).await.unwrap();
        let next = store.next(ROOM, "d").await.unwrap();
        store.bury(&next[0], "no such room").await.unwrap();
        store.bury(&next[2], "no such room").await.unwrap();
        assert_eq!(texts(&store).await, ["b"]);
        let letters = dead_letters(&path).unwrap();
        assert_eq!(letters.len(), 2);
        assert_eq!((letters[0].text.as_str(), letters[0].reason.as_str()), ("a", "no such room"));
        let mut version = 0;
        store.look(&mut version).await.unwrap();
        assert_eq!(store.shared.metrics.dead_letters.get(), 2);
        while rooms.try_recv().is_ok() {}
        assert_eq!(retry(&path, Some(letters[1].id)).unwrap(), 1);
        assert_eq!(retry(&path, Some(letters[1].id)).unwrap(), 0);
        assert_eq!(retry(&path, None).unwrap(), 1);
        store.look(&mut version).await.unwrap();
        assert_eq!(rooms.try_recv().as_deref(), Ok(ROOM));
        assert_eq!(texts(&store).await, ["a", "b", "c"]);
        assert_eq!(store.shared.messages.load(Ordering::Relaxed), 3);
        store.forget().await.unwrap();
    }
}
