//! One room: read, placed, written and verified, piece by piece.
//!
//! A piece is one transaction with one snapshot (`REPEATABLE READ`). It reads some groups, chooses their bases, locks what it
//! is about to use as Synapse does (`FOR KEY SHARE`), writes, reads back what it wrote, and commits only if every touched group
//! still resolves to what it did. PostgreSQL refuses it if another transaction has changed one of the rows meanwhile; then
//! it begins anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use futures_util::future::try_join5;
use futures_util::{TryStreamExt as _, pin_mut};
use serde::Serialize;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, IsolationLevel, Statement, Transaction};

use crate::names::{Pair, Strings};
use crate::progress::{self, Progress};
use crate::state::State;
use crate::tree::{Base, Group, Levels, MAX_HOPS, Placed, Tree};
use crate::{Error, failed};

/// How long locks may be held: nothing of Synapse's waits longer for this program.
pub const HOLD: Duration = Duration::from_millis(100);
/// How long they should be held.
const HOLD_GOAL: Duration = Duration::from_millis(50);
/// How many groups a piece has at most.
const GROUPS: usize = 2000;
/// How many rows a piece reads at most, unless its first group has more.
const ROWS_READ: u64 = 200_000;
/// How many rows a piece writes and deletes, at least and at most: as many as the server does in the time of `HOLD_GOAL`.
const ROWS_WRITTEN: std::ops::RangeInclusive<usize> = 500..=40_000;
/// How many rows come from the server at once.
const FETCH: i32 = 4096;
/// How many IDs of groups are held at once.
const IDS: i64 = 100_000;
/// How often a piece is begun anew.
const TRIES: u32 = 12;
/// Of how many unused events the strings are thrown away.
const SWEEP: usize = 1 << 16;

/// What is done with what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is written to the database.
    Apply,
    /// It is written as SQL.
    Sql,
    /// It is counted.
    Count,
}

/// How one room is compressed.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is done with what was found.
    pub mode: Mode,
    /// The levels.
    pub levels: Levels,
    /// Whether what was written is read back and compared before it is committed.
    pub verify: bool,
    /// Whether groups whose predecessor is missing get a base that is there.
    pub repair: bool,
    /// Whether to begin with the oldest group, whatever was done before.
    pub from_start: bool,
    /// Only groups above this.
    pub above: Option<i64>,
    /// Only groups up to this.
    pub up_to: Option<i64>,
    /// How many groups, at most.
    pub most_groups: Option<u64>,
}

/// What was done to one room.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RoomReport {
    /// The room.
    pub room_id: String,
    /// How many groups were looked at.
    pub groups: u64,
    /// How many of them got another base or other rows.
    pub moved: u64,
    /// How many rows those that were looked at had.
    pub rows_before: u64,
    /// How many they have now.
    pub rows_after: u64,
    /// How many bytes the rows' own data shrank by.
    pub bytes_saved: i64,
    /// Groups that hang in the air: their predecessor is missing, newer than they are, or one of several.
    pub broken: Vec<Broken>,
    /// The longest time in seconds that locks were held.
    pub longest_hold: f64,
    /// How many pieces were begun anew.
    pub retries: u64,
    /// Whether all groups were looked at.
    pub finished: bool,
    /// How many seconds it took.
    pub seconds: f64,
}

impl RoomReport {
    /// Adds what was done to the same room afterwards.
    pub(crate) fn add(&mut self, later: Self) {
        self.groups += later.groups;
        self.moved += later.moved;
        self.rows_before += later.rows_before;
        self.rows_after += later.rows_after;
        self.bytes_saved += later.bytes_saved;
        self.broken.extend(later.broken);
        self.longest_hold = self.longest_hold.max(later.longest_hold);
        self.retries += later.retries;
        self.finished = later.finished;
        self.seconds += later.seconds;
    }
}

/// A group that hangs in the air.
#[derive(Clone, Debug, Serialize)]
pub struct Broken {
    /// The group.
    pub group: i64,
    /// What is wrong with it.
    pub why: &'static str,
    /// Whether it was mended.
    pub repaired: bool,
}

/// What is told while it goes on.
pub trait Watch: Send {
    /// So many more groups were looked at, of so many rows, of which so many are left. Whether to go on.
    fn piece(&mut self, groups: u64, rows: u64, rows_left: u64) -> bool;
}

struct Statements {
    ids: Statement,
    groups: Statement,
    rows: Statement,
    resolve: Statement,
    depth: Statement,
    lock: Statement,
    bump: Option<Statement>,
    delete_edges: Statement,
    insert_edges: Statement,
    delete_rows: Statement,
    edges: Statement,
}

/// A connection that is ready for rooms.
pub struct Session {
    client: Client,
    statements: Statements,
    /// How many rows a piece writes, which follows what the server does in the time.
    batch: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("batch", &self.batch).finish_non_exhaustive()
    }
}

impl Session {
    /// Prepares a connection. Needs Synapse's tables.
    pub async fn new(client: Client) -> Result<Self, Error> {
        let tables = client
            .query_one(
                "SELECT to_regclass('state_groups_state') IS NOT NULL, to_regclass('state_groups_pending_deletion') IS NOT NULL",
                &[],
            )
            .await
            .map_err(failed("look for Synapse's tables"))?;
        if !tables.get::<_, bool>(0) {
            return Err(Error::NotSynapse);
        }
        let pending: bool = tables.get(1);
        client
            .batch_execute("SET statement_timeout = '10min'; SET idle_in_transaction_session_timeout = '60s'; SET jit = off")
            .await
            .map_err(failed("set up the connection"))?;
        let prepare = async |text: &str| client.prepare(text).await.map_err(failed("prepare"));
        let groups = format!(
            "SELECT g.id, e.prev_state_group, p.id IS NOT NULL, {} FROM state_groups g \
             LEFT JOIN state_group_edges e ON e.state_group = g.id \
             LEFT JOIN state_groups p ON p.id = e.prev_state_group {} \
             WHERE g.id = ANY($1) ORDER BY g.id, e.prev_state_group",
            if pending { "d.state_group IS NOT NULL" } else { "false" },
            if pending { "LEFT JOIN state_groups_pending_deletion d ON d.state_group = g.id" } else { "" },
        );
        // As Synapse reads them (`_get_state_groups_from_groups_txn`), except that a ring of edges comes to an end.
        let way = "WITH RECURSIVE way(state_group, hops) AS (VALUES ($1::bigint, 0) UNION \
                   SELECT e.prev_state_group, hops + 1 FROM state_group_edges e JOIN way w ON e.state_group = w.state_group \
                   WHERE hops < 10000)";
        let statements = Statements {
            ids: prepare("SELECT id FROM state_groups WHERE room_id = $1 AND id > $2 AND id <= $3 ORDER BY id LIMIT $4").await?,
            groups: prepare(&groups).await?,
            // The inner OFFSET keeps the order of the groups: PostgreSQL cannot join it in any other way.
            rows: prepare(
                "SELECT g.n, s.type, s.state_key, s.event_id FROM unnest($1::bigint[]) WITH ORDINALITY g(id, n), \
                 LATERAL (SELECT type, state_key, event_id FROM state_groups_state WHERE state_group = g.id OFFSET 0) s",
            )
            .await?,
            resolve: prepare(&format!(
                "{way} SELECT DISTINCT ON (type, state_key) type, state_key, event_id FROM state_groups_state \
                 WHERE state_group IN (SELECT state_group FROM way) ORDER BY type, state_key, state_group DESC"
            ))
            .await?,
            depth: prepare(&format!("{way} SELECT max(hops)::bigint FROM way")).await?,
            lock: prepare("SELECT id FROM state_groups WHERE id = ANY($1) ORDER BY id FOR KEY SHARE").await?,
            bump: if pending {
                Some(
                    prepare(
                        "UPDATE state_groups_pending_deletion SET sequence_number = DEFAULT, \
                         insertion_ts = (extract(epoch FROM clock_timestamp()) * 1000)::bigint WHERE state_group = ANY($1)",
                    )
                    .await?,
                )
            } else {
                None
            },
            delete_edges: prepare("DELETE FROM state_group_edges WHERE state_group = ANY($1)").await?,
            insert_edges: prepare(
                "INSERT INTO state_group_edges (state_group, prev_state_group) SELECT * FROM unnest($1::bigint[], $2::bigint[])",
            )
            .await?,
            delete_rows: prepare("DELETE FROM state_groups_state WHERE state_group = ANY($1)").await?,
            edges: prepare("SELECT state_group, prev_state_group FROM state_group_edges WHERE state_group = ANY($1)").await?,
        };
        Ok(Self { client, statements, batch: 5000 })
    }

    /// The connection, for other questions between two rooms.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Compresses one room. `sql` gets what [`Mode::Sql`] writes.
    pub async fn compress(
        &mut self,
        room_id: &str,
        options: &Options,
        sql: &mut (dyn FnMut(&str) -> std::io::Result<()> + Send),
        watch: &mut dyn Watch,
    ) -> Result<RoomReport, Error> {
        let started = Instant::now();
        let locked = progress::lock(&self.client, room_id).await?;
        if !locked {
            return Err(Error::Taken { room_id: room_id.to_owned() });
        }
        let mut report = RoomReport { room_id: room_id.to_owned(), ..RoomReport::default() };
        let result = self.run(room_id, options, sql, watch, &mut report).await;
        // The lock is the connection's: it ends with it if this cannot be said.
        let unlocked = progress::unlock(&self.client, room_id).await;
        report.seconds = started.elapsed().as_secs_f64();
        result.and(unlocked).map(|()| report)
    }

    async fn run(
        &mut self,
        room_id: &str,
        options: &Options,
        sql: &mut (dyn FnMut(&str) -> std::io::Result<()> + Send),
        watch: &mut dyn Watch,
        report: &mut RoomReport,
    ) -> Result<(), Error> {
        let progress = if options.from_start {
            Progress::default()
        } else {
            progress::read(&self.client, room_id).await?
        };
        let mut tree = Tree::new(&options.levels);
        let mut work =
            Work { room_id, options, strings: Strings::default(), depths: HashMap::new(), swept: 0 };
        work.resume(self, &mut tree, &progress).await?;
        let mut after = options.above.unwrap_or(i64::MIN).max(progress.last_group.unwrap_or(i64::MIN));
        let up_to = options.up_to.unwrap_or(i64::MAX);
        let mut removed = progress.rows_removed;
        loop {
            let ids: Vec<i64> = self
                .client
                .query(&self.statements.ids, &[&room_id, &after, &up_to, &IDS])
                .await
                .map_err(failed("list the room's groups"))?
                .iter()
                .map(|row| row.get(0))
                .collect();
            let last_page = i64::try_from(ids.len()).is_ok_and(|count| count < IDS);
            let mut rest = &ids[..];
            while !rest.is_empty() {
                let left = options.most_groups.map_or(u64::MAX, |most| most.saturating_sub(report.groups));
                if left == 0 {
                    return Ok(());
                }
                let count = rest.len().min(GROUPS).min(usize::try_from(left).unwrap_or(usize::MAX));
                let newest = (last_page && options.up_to.is_none()).then(|| ids[ids.len() - 1]);
                let piece = work.piece(self, &mut tree, &rest[..count], newest, removed, report).await?;
                if !piece.sql.is_empty() {
                    sql(&piece.sql).map_err(Error::Output)?;
                }
                removed += piece.rows_before.cast_signed() - piece.rows_after.cast_signed();
                report.groups += piece.groups;
                report.moved += piece.moved;
                report.rows_before += piece.rows_before;
                report.rows_after += piece.rows_after;
                report.bytes_saved += piece.bytes_saved;
                report.broken.extend(piece.broken);
                rest = &rest[piece.taken..];
                after = piece.last;
                work.sweep(&tree);
                let more = !rest.is_empty() || !last_page;
                if !watch.piece(piece.groups, piece.rows_before, piece.rows_after) && more {
                    return Ok(());
                }
            }
            if last_page {
                report.finished = true;
                return Ok(());
            }
        }
    }
}

/// The work on one room.
struct Work<'r> {
    room_id: &'r str,
    options: &'r Options,
    strings: Strings,
    /// Where nothing is written, the database does not know how deep a group would lie.
    depths: HashMap<i64, u32>,
    /// How many events were left by the last sweep.
    swept: usize,
}

/// One transaction's worth.
#[derive(Default)]
struct Piece {
    /// How many of the IDs were dealt with, and the last of them.
    taken: usize,
    last: i64,
    groups: u64,
    moved: u64,
    rows_before: u64,
    rows_after: u64,
    bytes_saved: i64,
    broken: Vec<Broken>,
    sql: String,
}

/// A group that gets other rows.
struct Change {
    id: i64,
    had_prev: bool,
    old_rows: usize,
    base: Option<Base>,
    rows: Vec<Pair>,
    state: State,
}

/// A group as the database has it.
struct Stored {
    id: i64,
    prevs: Vec<(i64, bool)>,
    pending: bool,
}

impl Work<'_> {
    /// Gives the tree the heads of an earlier run.
    async fn resume(
        &mut self,
        session: &mut Session,
        tree: &mut Tree,
        progress: &Progress,
    ) -> Result<(), Error> {
        if progress.heads.is_empty() {
            return Ok(());
        }
        let statements = &session.statements;
        let tx = begin(&mut session.client).await?;
        let heads: Vec<i64> = progress.heads.iter().copied().flatten().collect();
        let there: Vec<i64> = tx
            .query(
                "SELECT id FROM state_groups WHERE id = ANY($1) AND room_id = $2",
                &[&heads, &self.room_id],
            )
            .await
            .map_err(failed("look for the last run's groups"))?
            .iter()
            .map(|row| row.get(0))
            .collect();
        let mut bases: Vec<Option<Base>> = Vec::new();
        for head in &progress.heads {
            bases.push(match head {
                Some(group) if there.contains(group) => {
                    let near = bases
                        .iter()
                        .rev()
                        .flatten()
                        .next()
                        .map(|base| base.state.clone())
                        .unwrap_or_default();
                    Some(self.resolve(&tx, statements, *group, &near).await?)
                }
                _ => None,
            });
        }
        tree.resume(bases);
        tx.commit().await.map_err(failed("end reading"))
    }

    /// A group as Synapse resolves it.
    async fn resolve(
        &mut self,
        tx: &Transaction<'_>,
        statements: &Statements,
        group: i64,
        near: &State,
    ) -> Result<Base, Error> {
        let rows = tx.query_raw(&statements.resolve, [group]).await.map_err(failed("resolve a group"))?;
        pin_mut!(rows);
        let mut pairs = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(failed("resolve a group"))? {
            pairs.push(self.strings.pair(row.get(0), row.get(1), row.get(2)));
        }
        let depth = tx.query_one(&statements.depth, &[&group]).await.map_err(failed("resolve a group"))?;
        let depth = u32::try_from(depth.get::<_, i64>(0)).unwrap_or(u32::MAX);
        let depth = self.depths.get(&group).copied().unwrap_or(depth);
        Ok(Base { group, depth, state: State::like(near, &pairs) })
    }

    /// Throws away strings that nothing uses any more, now and then.
    fn sweep(&mut self, tree: &Tree) {
        if self.strings.events.len() > 2 * self.swept + SWEEP {
            self.strings.events.sweep(&tree.events());
            self.swept = self.strings.events.len();
        }
    }

    /// Deals with some of these groups, however often that has to be begun anew.
    async fn piece(
        &mut self,
        session: &mut Session,
        tree: &mut Tree,
        ids: &[i64],
        newest: Option<i64>,
        removed: i64,
        report: &mut RoomReport,
    ) -> Result<Piece, Error> {
        let mark = tree.mark();
        for attempt in 1.. {
            let error = match self.attempt(session, tree, ids, newest, removed, report).await {
                Ok(piece) => return Ok(piece),
                Err(error) => error,
            };
            tree.restore(mark.clone(), ids[0]);
            if !error.is_passing() || attempt == TRIES || session.client.is_closed() {
                return Err(error);
            }
            tracing::debug!(room = self.room_id, %error, attempt, "begin a piece anew");
            report.retries += 1;
            session.batch = (session.batch / 2).max(*ROWS_WRITTEN.start());
            if !matches!(error, Error::TooSlow) {
                tokio::time::sleep(Duration::from_millis(5 << attempt.min(5))).await;
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn attempt(
        &mut self,
        session: &mut Session,
        tree: &mut Tree,
        ids: &[i64],
        newest: Option<i64>,
        removed: i64,
        report: &mut RoomReport,
    ) -> Result<Piece, Error> {
        let Session { client, statements, batch } = session;
        let tx = begin(client).await?;
        let stored = self.stored(&tx, statements, ids).await?;
        let (mut piece, changes) = self.read(&tx, statements, tree, &stored, newest, *batch).await?;
        // Groups that are gone were the last ones' neighbours: they are dealt with too.
        piece.taken = ids.iter().take_while(|id| **id <= piece.last).count();
        if piece.groups == stored.len() as u64 {
            (piece.taken, piece.last) = (ids.len(), ids[ids.len() - 1]);
        }
        match self.options.mode {
            Mode::Apply => {
                let held = Instant::now();
                self.apply(&tx, statements, &changes).await?;
                let now = Progress {
                    last_group: Some(piece.last),
                    heads: tree.heads(),
                    rows_removed: removed + piece.rows_before.cast_signed() - piece.rows_after.cast_signed(),
                };
                // A run over a part says nothing about the room.
                if self.options.above.is_none() && self.options.up_to.is_none() {
                    progress::write(&tx, self.room_id, &now).await?;
                }
                let size: usize = changes.iter().map(|change| change.old_rows + change.rows.len()).sum();
                // The smallest piece is one group, however long that takes.
                if held.elapsed() > HOLD && changes.len() > 1 && *batch > *ROWS_WRITTEN.start() {
                    return Err(Error::TooSlow);
                }
                tx.commit().await.map_err(failed("commit"))?;
                if !changes.is_empty() {
                    let held = held.elapsed();
                    report.longest_hold = report.longest_hold.max(held.as_secs_f64());
                    // As many rows as would have taken the wished time, but no leaps.
                    let ratio = (HOLD_GOAL.as_secs_f64() / held.as_secs_f64().max(0.001)).clamp(0.25, 1.5);
                    if size * 2 > *batch || ratio < 1.0 {
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            clippy::cast_precision_loss,
                            reason = "a number of rows that is clamped"
                        )]
                        let next = (*batch as f64 * ratio) as usize;
                        *batch = next.clamp(*ROWS_WRITTEN.start(), *ROWS_WRITTEN.end());
                    }
                }
            }
            Mode::Sql => {
                piece.sql = self.sql(&changes);
                tx.rollback().await.map_err(failed("end reading"))?;
            }
            Mode::Count => tx.rollback().await.map_err(failed("end reading"))?,
        }
        Ok(piece)
    }

    async fn stored(
        &self,
        tx: &Transaction<'_>,
        statements: &Statements,
        ids: &[i64],
    ) -> Result<Vec<Stored>, Error> {
        let rows = tx.query(&statements.groups, &[&ids]).await.map_err(failed("read the groups' edges"))?;
        let mut stored: Vec<Stored> = Vec::with_capacity(ids.len());
        for row in rows {
            let (id, prev): (i64, Option<i64>) = (row.get(0), row.get(1));
            let prev = prev.map(|prev| (prev, row.get(2)));
            match stored.last_mut() {
                Some(last) if last.id == id => last.prevs.extend(prev),
                _ => stored.push(Stored { id, prevs: prev.into_iter().collect(), pending: row.get(3) }),
            }
        }
        Ok(stored)
    }

    /// Reads groups and places them, until there is enough to write.
    async fn read(
        &mut self,
        tx: &Transaction<'_>,
        statements: &Statements,
        tree: &mut Tree,
        stored: &[Stored],
        newest: Option<i64>,
        batch: usize,
    ) -> Result<(Piece, Vec<Change>), Error> {
        let ids: Vec<i64> = stored.iter().map(|group| group.id).collect();
        let portal = tx.bind(&statements.rows, &[&ids]).await.map_err(failed("read rows"))?;
        let (mut piece, mut changes) = (Piece::default(), Vec::new());
        let (mut pairs, mut bytes, mut size) = (Vec::new(), 0_usize, 0_usize);
        let mut at = 0;
        let mut ended = false;
        while at < stored.len() {
            let rows = tx.query_portal(&portal, FETCH).await.map_err(failed("read rows"))?;
            ended |= rows.len() < usize::try_from(FETCH).unwrap_or(0);
            // Behind the last row all groups come to an end.
            for row in rows.iter().map(Some).chain(ended.then_some(None)) {
                let number = row.map_or(stored.len(), |row| {
                    usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX)
                });
                if number < at || (row.is_some() && number >= stored.len()) {
                    return Err(Error::Order);
                }
                // Groups without rows come to an end here as well.
                while at < number {
                    let took = (std::mem::take(&mut pairs), std::mem::take(&mut bytes));
                    self.group(
                        tx,
                        statements,
                        tree,
                        &stored[at],
                        took,
                        newest,
                        &mut piece,
                        &mut changes,
                        &mut size,
                    )
                    .await?;
                    at += 1;
                    if size >= batch || (row.is_some() && piece.rows_before >= ROWS_READ) {
                        return Ok((piece, changes));
                    }
                }
                let Some(row) = row else { continue };
                let (kind, key, event): (&str, &str, &str) = (row.get(1), row.get(2), row.get(3));
                bytes += row_bytes(self.room_id, kind, key, event);
                pairs.push(self.strings.pair(kind, key, event));
            }
        }
        Ok((piece, changes))
    }

    /// One group whose rows are read.
    #[expect(clippy::too_many_arguments, reason = "the state of one loop")]
    async fn group(
        &mut self,
        tx: &Transaction<'_>,
        statements: &Statements,
        tree: &mut Tree,
        stored: &Stored,
        (pairs, bytes): (Vec<Pair>, usize),
        newest: Option<i64>,
        piece: &mut Piece,
        changes: &mut Vec<Change>,
        size: &mut usize,
    ) -> Result<(), Error> {
        let id = stored.id;
        let why = match stored.prevs[..] {
            [(_, false)] => Some("its predecessor is missing"),
            [(prev, true)] if prev >= id => Some("its predecessor is not older"),
            [] | [_] => None,
            _ => Some("it has several predecessors"),
        };
        let prev = stored.prevs.first().map(|(prev, _)| *prev);
        let state = match prev {
            None => State::like(&tree.relative(), &pairs),
            Some(prev) if why.is_none() => {
                if tree.known(prev).is_none() {
                    let near = tree.relative();
                    let base = self.resolve(tx, statements, prev, &near).await?;
                    tree.know(base);
                }
                tree.known(prev).map(|base| base.state.with(&pairs)).ok_or(Error::Order)?
            }
            Some(_) => {
                let near = tree.relative();
                self.resolve(tx, statements, id, &near).await?.state
            }
        };
        let repair = why.is_some() && self.options.repair;
        if let Some(why) = why {
            piece.broken.push(Broken {
                group: id,
                why,
                repaired: repair && self.options.mode == Mode::Apply,
            });
        }
        let group = Group {
            id,
            state: state.clone(),
            prev: prev.filter(|_| why.is_none()),
            // What hangs in the air has to get other rows.
            rows: if repair { usize::MAX } else { pairs.len() },
            pinned: stored.pending || (why.is_some() && !repair),
        };
        piece.groups += 1;
        piece.last = id;
        piece.rows_before += pairs.len() as u64;
        let placed = tree.place(&group, newest == Some(id));
        let rows = match placed {
            Placed::Kept if repair => Some((None, state.pairs())),
            Placed::Kept => None,
            Placed::Moved { base, rows } => Some((base, rows)),
        };
        if self.options.mode != Mode::Apply
            && let Some(base) = tree.known(id)
        {
            self.depths.insert(id, base.depth);
        }
        match rows {
            None => piece.rows_after += pairs.len() as u64,
            Some((base, rows)) => {
                piece.moved += 1;
                piece.rows_after += rows.len() as u64;
                let new_bytes: usize = rows
                    .iter()
                    .map(|pair| {
                        let (kind, key, event) = self.strings.row(*pair);
                        row_bytes(self.room_id, kind, key, event)
                    })
                    .sum();
                piece.bytes_saved +=
                    i64::try_from(bytes).unwrap_or(0) - i64::try_from(new_bytes).unwrap_or(0);
                *size += pairs.len() + rows.len();
                changes.push(Change {
                    id,
                    had_prev: !stored.prevs.is_empty(),
                    old_rows: pairs.len(),
                    base,
                    rows,
                    state,
                });
            }
        }
        Ok(())
    }

    /// Writes changes, and reads them back.
    async fn apply(
        &mut self,
        tx: &Transaction<'_>,
        statements: &Statements,
        changes: &[Change],
    ) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = changes.iter().map(|change| change.id).collect();
        let mut bases: Vec<i64> =
            changes.iter().filter_map(|change| Some(change.base.as_ref()?.group)).collect();
        bases.sort_unstable();
        bases.dedup();
        let mut locked: Vec<i64> = ids.iter().chain(&bases).copied().collect();
        locked.sort_unstable();
        locked.dedup();
        let with_edge = changes.iter().filter(|change| change.had_prev).count() as u64;
        let (children, parents): (Vec<i64>, Vec<i64>) =
            changes.iter().filter_map(|change| Some((change.id, change.base.as_ref()?.group))).unzip();
        // They go out one behind the other, and the answers come back together: locks are not held for the time of messages.
        let bump = async {
            match &statements.bump {
                // These are in use from now on: Synapse looks again before it deletes them.
                Some(bump) => tx.execute(bump, &[&bases]).await,
                None => Ok(0),
            }
        };
        let (found, _, edges, _, rows) = try_join5(
            async { tx.query(&statements.lock, &[&locked]).await },
            bump,
            async { tx.execute(&statements.delete_edges, &[&ids]).await },
            async { tx.execute(&statements.insert_edges, &[&children, &parents]).await },
            async { tx.execute(&statements.delete_rows, &[&ids]).await },
        )
        .await
        .map_err(failed("lock and delete"))?;
        if found.len() != locked.len() {
            return Err(Error::Changed { what: "groups were deleted" });
        }
        if edges < with_edge {
            return Err(Error::Changed { what: "edges were deleted" });
        }
        if rows != changes.iter().map(|change| change.old_rows as u64).sum::<u64>() {
            return Err(Error::Changed { what: "rows were changed" });
        }
        let sink = tx
            .copy_in("COPY state_groups_state (state_group, room_id, type, state_key, event_id) FROM STDIN (FORMAT binary)")
            .await
            .map_err(failed("write rows"))?;
        let writer =
            BinaryCopyInWriter::new(sink, &[Type::INT8, Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT]);
        pin_mut!(writer);
        for change in changes {
            for &pair in &change.rows {
                let (kind, state_key, event_id) = self.strings.row(pair);
                let row: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                    [&change.id, &self.room_id, &kind, &state_key, &event_id];
                writer.as_mut().write(&row).await.map_err(failed("write rows"))?;
            }
        }
        writer.finish().await.map_err(failed("write rows"))?;
        if self.options.verify {
            self.verify(tx, statements, changes, &ids).await?;
        }
        Ok(())
    }

    /// Reads back every group that was touched, and compares what it resolves to now with what it did. A group is its base
    /// and its own rows; the bases that were not touched are what they were. One group is resolved by Synapse's own query.
    async fn verify(
        &mut self,
        tx: &Transaction<'_>,
        statements: &Statements,
        changes: &[Change],
        ids: &[i64],
    ) -> Result<(), Error> {
        let edges: HashMap<i64, i64> = tx
            .query(&statements.edges, &[&ids])
            .await
            .map_err(failed("verify"))?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let rows = tx.query_raw(&statements.rows, [ids]).await.map_err(failed("verify"))?;
        pin_mut!(rows);
        let mut written: Vec<Vec<Pair>> = vec![Vec::new(); ids.len()];
        while let Some(row) = rows.try_next().await.map_err(failed("verify"))? {
            let number = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            let pair = self.strings.pair(row.get(1), row.get(2), row.get(3));
            written.get_mut(number).ok_or(Error::Order)?.push(pair);
        }
        let mut verified: HashMap<i64, State> = HashMap::new();
        for (change, pairs) in changes.iter().zip(&written) {
            let wrong = || Error::Verification { group: change.id };
            let state = match (edges.get(&change.id), &change.base) {
                (None, None) => State::like(&change.state, pairs),
                (Some(prev), Some(base)) if *prev == base.group && *prev < change.id => {
                    verified.get(prev).unwrap_or(&base.state).with(pairs)
                }
                _ => return Err(wrong()),
            };
            if !state.same(&change.state) || change.base.as_ref().is_some_and(|base| base.depth >= MAX_HOPS) {
                return Err(wrong());
            }
            verified.insert(change.id, state);
        }
        if let Some(change) = changes.last() {
            let resolved = self.resolve(tx, statements, change.id, &change.state).await?;
            if !resolved.state.same(&change.state) || resolved.depth > MAX_HOPS {
                return Err(Error::Verification { group: change.id });
            }
        }
        Ok(())
    }

    /// Changes as a transaction in SQL, which does nothing if a group has changed since.
    fn sql(&self, changes: &[Change]) -> String {
        let mut out = String::new();
        if changes.is_empty() {
            return out;
        }
        let list = |ids: &[i64]| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let ids: Vec<i64> = changes.iter().map(|change| change.id).collect();
        let mut locked: Vec<i64> = ids
            .iter()
            .copied()
            .chain(changes.iter().filter_map(|change| Some(change.base.as_ref()?.group)))
            .collect();
        locked.sort_unstable();
        locked.dedup();
        let rows: usize = changes.iter().map(|change| change.old_rows).sum();
        let (ids, all) = (list(&ids), list(&locked));
        let _ = writeln!(out, "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSET LOCAL lock_timeout = '100ms';");
        // A division by zero ends the transaction, and with it all that follows up to COMMIT.
        let _ = writeln!(
            out,
            "SELECT 1 / (count(*) = {})::int FROM (SELECT id FROM state_groups WHERE id IN ({all}) ORDER BY id FOR KEY SHARE) g;",
            locked.len()
        );
        let _ = writeln!(
            out,
            "SELECT 1 / (count(*) = {rows})::int FROM state_groups_state WHERE state_group IN ({ids});\n\
             DELETE FROM state_group_edges WHERE state_group IN ({ids});\n\
             DELETE FROM state_groups_state WHERE state_group IN ({ids});"
        );
        let text = |text: &str| {
            if text.contains('\\') {
                format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
            } else {
                format!("'{}'", text.replace('\'', "''"))
            }
        };
        let edges: Vec<String> = changes
            .iter()
            .filter_map(|change| Some(format!("({},{})", change.id, change.base.as_ref()?.group)))
            .collect();
        if !edges.is_empty() {
            let _ = writeln!(
                out,
                "INSERT INTO state_group_edges (state_group, prev_state_group) VALUES {};",
                edges.join(",")
            );
        }
        let mut separator =
            "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id) VALUES\n";
        for change in changes {
            for &pair in &change.rows {
                let (kind, state_key, event_id) = self.strings.row(pair);
                let _ = write!(
                    out,
                    "{separator}({},{},{},{},{})",
                    change.id,
                    text(self.room_id),
                    text(kind),
                    text(state_key),
                    text(event_id)
                );
                separator = ",\n";
            }
        }
        if separator == ",\n" {
            out.push_str(";\n");
        }
        out.push_str("COMMIT;\n");
        out
    }
}

/// How many bytes a row takes in the table, with its header and its entry in the index (`state_group, type, state_key`).
fn row_bytes(room_id: &str, kind: &str, state_key: &str, event_id: &str) -> usize {
    let index = 8 + 8 + kind.len() + state_key.len() + 4;
    28 + 8 + room_id.len() + kind.len() + state_key.len() + event_id.len() + 4 + index
}

async fn begin(client: &mut Client) -> Result<Transaction<'_>, Error> {
    let tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()
        .await
        .map_err(failed("begin"))?;
    // What a crash of the server takes away of the last transactions is only done again: nothing has to wait for the disk.
    tx.batch_execute(
        "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '60s'; SET LOCAL synchronous_commit = off; \
         SET LOCAL enable_seqscan = off",
    )
    .await
    .map_err(failed("begin"))?;
    Ok(tx)
}

impl Error {
    /// Whether it may go away by itself.
    fn is_passing(&self) -> bool {
        match self {
            Self::Changed { .. } | Self::TooSlow => true,
            Self::Database { code, .. } => code.as_ref().is_some_and(|code| {
                [
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                    SqlState::LOCK_NOT_AVAILABLE,
                    SqlState::QUERY_CANCELED,
                    SqlState::UNIQUE_VIOLATION,
                ]
                .contains(code)
            }),
            _ => false,
        }
    }
}
