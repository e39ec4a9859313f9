//! Many rooms: which first, on how many connections, until when, and when to wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_postgres::Client;

use crate::connect::{APPLICATION, Database};
use crate::room::{Options, RoomReport, Session, Watch};
use crate::{Error, failed, progress, room};

/// How often the server is asked whether it has other things to do.
const LOOK: Duration = Duration::from_secs(2);
/// How far a replica may lag behind.
const LAG_SECONDS: f64 = 10.0;
/// How often a lost connection is opened again, one after another.
const RECONNECTS: u32 = 8;

/// What a run of many rooms obeys.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How many connections work at once.
    pub jobs: usize,
    /// When it ends.
    pub until: Option<Instant>,
    /// How many queries of others may run on the server; with more, it waits.
    pub most_active: i64,
    /// Told from elsewhere: end at the next piece.
    pub stop: Arc<AtomicBool>,
}

/// What a run did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The rooms that were begun.
    pub rooms: Vec<RoomReport>,
    /// Rooms that another run had, or that failed, with the reason.
    pub skipped: Vec<(String, String)>,
    /// How many rooms are left.
    pub left: usize,
    /// How many seconds it waited for others.
    pub waited: f64,
    /// How many seconds it took.
    pub seconds: f64,
}

impl Report {
    /// The rooms' sums: groups, moved, rows before, rows after, bytes saved.
    pub fn sums(&self) -> (u64, u64, u64, u64, i64) {
        self.rooms.iter().fold((0, 0, 0, 0, 0), |sum, room| {
            (
                sum.0 + room.groups,
                sum.1 + room.moved,
                sum.2 + room.rows_before,
                sum.3 + room.rows_after,
                sum.4 + room.bytes_saved,
            )
        })
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Rows that were looked at.
    pub rows: u64,
    /// Rows that are gone.
    pub saved: u64,
    /// Rooms that are done.
    pub rooms: usize,
    /// Why it waits, if it does.
    pub waiting: Option<&'static str>,
}

struct Shared {
    queue: Mutex<VecDeque<String>>,
    report: Mutex<Report>,
    now: Mutex<Now>,
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compresses rooms, in this order. `tell` is called now and then.
pub async fn run(
    database: &Database,
    rooms: Vec<String>,
    options: &Options,
    limits: &Limits,
    sql: &mut (dyn FnMut(&str) -> std::io::Result<()> + Send),
    tell: &mut (dyn FnMut(Now) + Send),
) -> Result<Report, Error> {
    let started = Instant::now();
    let client = database.connect().await?;
    if options.mode == room::Mode::Apply {
        progress::create(&client).await?;
    }
    drop(client);
    let shared =
        Arc::new(Shared { queue: Mutex::new(rooms.into()), report: Mutex::default(), now: Mutex::default() });
    if options.mode == room::Mode::Sql {
        // One after another, into one file.
        worker(database, options, limits, &shared, sql).await?;
    } else {
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..limits.jobs {
            let (database, options, limits, shared) =
                (database.clone(), options.clone(), limits.clone(), shared.clone());
            workers
                .spawn(async move { worker(&database, &options, &limits, &shared, &mut |_| Ok(())).await });
        }
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let mut error = None;
        loop {
            tokio::select! {
                done = workers.join_next() => match done {
                    None => break,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(failed))) => {
                        limits.stop.store(true, Ordering::Relaxed);
                        error.get_or_insert(failed);
                    }
                    Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                },
                _ = tick.tick() => tell(*held(&shared.now)),
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
    }
    tell(*held(&shared.now));
    let mut report = std::mem::take(&mut *held(&shared.report));
    report.left = held(&shared.queue).len() + report.rooms.iter().filter(|room| !room.finished).count();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

async fn worker(
    database: &Database,
    options: &Options,
    limits: &Limits,
    shared: &Shared,
    sql: &mut (dyn FnMut(&str) -> std::io::Result<()> + Send),
) -> Result<(), Error> {
    let mut session = Session::new(database.connect().await?).await?;
    let mut lost = 0;
    loop {
        if limits.over() {
            return Ok(());
        }
        let Some(room_id) = held(&shared.queue).pop_front() else { return Ok(()) };
        let mut options = options.clone();
        let whole = options.above.is_none() && options.up_to.is_none() && options.most_groups.is_none();
        if options.mode == room::Mode::Apply && whole && options.from_start {
            progress::reset(session.client(), &room_id).await?;
            options.from_start = false;
        }
        // Whether it can stop at any piece, and be taken up again.
        let breaks = options.mode == room::Mode::Apply && whole;
        loop {
            wait(session.client(), limits, shared).await?;
            let mut watch = Told { limits, shared, looked: Instant::now(), look: false, breaks };
            match session.compress(&room_id, &options, sql, &mut watch).await {
                Ok(report) => {
                    let unfinished = !report.finished && watch.look && !limits.over();
                    let mut all = held(&shared.report);
                    match all.rooms.iter_mut().find(|known| known.room_id == room_id) {
                        Some(known) => known.add(report),
                        None => all.rooms.push(report),
                    }
                    lost = 0;
                    if !unfinished {
                        held(&shared.now).rooms += 1;
                        break;
                    }
                    // It goes on where it was, after a look at what else the server does.
                }
                Err(error @ Error::Verification { .. }) => return Err(error),
                Err(Error::Output(error)) => return Err(Error::Output(error)),
                Err(error) if session.client().is_closed() => {
                    // The server restarted, or somebody ended the connection. The last piece was kept whole or not at all.
                    lost += 1;
                    if lost > RECONNECTS || limits.over() {
                        return Err(error);
                    }
                    tracing::warn!(%error, "the connection was lost; connecting again");
                    session = reconnect(database).await?;
                }
                Err(error) => {
                    tracing::warn!(room = room_id, %error, "leave this room for now");
                    held(&shared.report).skipped.push((room_id.clone(), error.to_string()));
                    break;
                }
            }
        }
    }
}

async fn reconnect(database: &Database) -> Result<Session, Error> {
    let mut attempt = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        let session = match database.connect().await {
            Ok(client) => Session::new(client).await,
            Err(error) => Err(error),
        };
        attempt += 1;
        match session {
            Ok(session) => return Ok(session),
            Err(error) if attempt == RECONNECTS => return Err(error),
            Err(_) => {}
        }
    }
}

impl Limits {
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

struct Told<'s> {
    limits: &'s Limits,
    shared: &'s Shared,
    looked: Instant,
    /// Whether it ended to look at what else the server does.
    look: bool,
    breaks: bool,
}

impl Watch for Told<'_> {
    fn piece(&mut self, _: u64, rows: u64, rows_left: u64) -> bool {
        {
            let mut now = held(&self.shared.now);
            now.rows += rows;
            now.saved += rows.saturating_sub(rows_left);
        }
        self.look = self.breaks && self.looked.elapsed() > LOOK * 5;
        !self.limits.over() && !self.look
    }
}

/// Waits while the server has other things to do.
async fn wait(client: &Client, limits: &Limits, shared: &Shared) -> Result<(), Error> {
    let mut slowed = false;
    loop {
        let row = client
            .query_one(
                "SELECT (SELECT max(extract(epoch FROM replay_lag))::float8 FROM pg_stat_replication), \
                 (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' \
                 AND application_name <> $1), \
                 (SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid IN ('state_groups_state'::regclass, \
                 'state_group_edges'::regclass))",
                &[&APPLICATION],
            )
            .await
            .map_err(failed("look at what else it does"))?;
        let (lag, active, vacuums): (Option<f64>, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let why = if lag.is_some_and(|lag| lag > LAG_SECONDS) {
            Some("a replica lags behind")
        } else if active > limits.most_active {
            Some("the database is busy")
        } else if vacuums > 0 && !slowed {
            // It may take hours: give way to it, but go on.
            slowed = true;
            Some("autovacuum is at work")
        } else {
            None
        };
        held(&shared.now).waiting = why;
        if why.is_none() || limits.over() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        held(&shared.report).waited += LOOK.as_secs_f64();
    }
}
