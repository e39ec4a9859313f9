//! `compress-state`.

use std::fmt::Write as _;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use compress_state::connect::{Database, Parts};
use compress_state::estimate::{Estimate, bytes, count};
use compress_state::room::{Mode, Options};
use compress_state::run::{Limits, Now, Report};
use compress_state::{estimate, run, unused};
use serde_json::json;

use crate::args::{CompressState, StackArguments};
use crate::place::Place;

/// How many rooms a table shows.
const SHOWN: usize = 30;

pub(crate) fn compress(arguments: &CompressState, stack: &StackArguments) -> anyhow::Result<ExitCode> {
    let database = database(arguments, stack)?;
    super::block_on(async {
        if arguments.unused {
            return unused_groups(arguments, &database).await;
        }
        if arguments.dry_run {
            return dry_run(arguments, &database).await;
        }
        work(arguments, &database).await
    })
}

/// The database: the one that is named, that of the environment, or the stack's.
fn database(arguments: &CompressState, stack: &StackArguments) -> anyhow::Result<Database> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(url) = &arguments.database_url {
        return Ok(Database::from_text(url)?.with_password(variable("PGPASSWORD")));
    }
    if variable("PGHOST").is_some() {
        return Ok(Database::from_environment(variable)?);
    }
    let place = Place::find(stack)?;
    let password = place.layout.secret_paths(&place.loaded.stack).database_password;
    let read = config::secrets::read(&password.path);
    let parts = match &place.loaded.stack.database.external {
        Some(server) => Parts {
            host: server.host.clone(),
            port: server.port,
            user: server.user.clone(),
            database: server.database.clone(),
            // A server of one's own may ask for none.
            password: match read {
                Ok(secret) => Some(secret.expose().to_owned()),
                Err(_) if password.generated => None,
                Err(error) => return Err(error.into()),
            },
            sslmode: server.sslmode.clone(),
        },
        None => Parts {
            host: place.layout.postgres_socket_dir().display().to_string(),
            port: 5432,
            user: "synapse".to_owned(),
            database: "synapse".to_owned(),
            password: Some(
                read.context("start the stack once, or name a database with `--database-url`")?
                    .expose()
                    .to_owned(),
            ),
            sslmode: Some("disable".to_owned()),
        },
    };
    Ok(Database::from_parts(&parts)?)
}

async fn dry_run(arguments: &CompressState, database: &Database) -> anyhow::Result<ExitCode> {
    let client = database.connect().await?;
    let mut estimate = estimate::estimate(&client, arguments.from_start).await?;
    if !arguments.room.is_empty() {
        estimate.rooms.retain(|room| arguments.room.contains(&room.room_id));
    }
    if let Some(file) = &arguments.svg {
        std::fs::write(file, estimate.chart())
            .with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    if arguments.json {
        super::print_json(&estimate)?;
    } else {
        super::print(&estimate.table(SHOWN))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn unused_groups(arguments: &CompressState, database: &Database) -> anyhow::Result<ExitCode> {
    let mut client = database.connect().await?;
    let mut found = unused::find(&client).await?;
    if arguments.remove {
        unused::remove(&mut client, &mut found).await?;
    }
    if arguments.json {
        super::print_json(&found)?;
    } else {
        let list = |groups: &[i64]| {
            let shown: Vec<String> = groups.iter().take(20).map(i64::to_string).collect();
            let more = if groups.len() > 20 { ", …" } else { "" };
            format!("{}{}{more}", if groups.is_empty() { "" } else { ": " }, shown.join(", "))
        };
        let mut out = format!(
            "{} groups that nothing refers to{}\n{} groups that are gone, with rows left{}\n",
            found.unreferenced.len(),
            list(&found.unreferenced),
            found.orphaned.len(),
            list(&found.orphaned)
        );
        if arguments.remove {
            let _ = writeln!(
                out,
                "{} groups are marked, and Synapse deletes them from ten minutes on; {} rows were deleted",
                found.marked, found.rows_deleted
            );
        }
        super::print(&out)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn work(arguments: &CompressState, database: &Database) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(stop.clone())?;
    let mut until = arguments.budget.map(|budget| Instant::now() + budget);
    if let Some(night) = arguments.night {
        let (wait, length) = night.from_now();
        let begins = Instant::now() + wait;
        if wait > Duration::ZERO {
            eprintln!("waiting {} for the night", super::duration(wait.as_secs()));
        }
        while Instant::now() < begins && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let ends = begins + length;
        let budget = arguments.budget.map(|budget| begins.max(Instant::now()) + budget);
        until = Some(budget.map_or(ends, |budget| budget.min(ends)));
    }
    let client = database.connect().await?;
    let before = table_bytes(&client).await;
    let (rooms, plan) = if arguments.room.is_empty() {
        let plan = estimate::estimate(&client, arguments.from_start).await?;
        (plan.order().iter().map(|room| room.room_id.clone()).collect(), Some(plan))
    } else {
        (arguments.room.clone(), None)
    };
    drop(client);
    let options = Options {
        mode: match (&arguments.output, arguments.count) {
            (Some(_), _) => Mode::Sql,
            (None, true) => Mode::Count,
            (None, false) => Mode::Apply,
        },
        levels: arguments.levels.clone(),
        verify: !arguments.no_verify,
        repair: arguments.repair,
        from_start: arguments.from_start,
        above: arguments.above,
        up_to: arguments.up_to,
        most_groups: arguments.groups,
    };
    let limits =
        Limits { jobs: arguments.jobs.into(), until, most_active: arguments.max_active.into(), stop };
    let mut file = match &arguments.output {
        Some(path) => {
            let file =
                std::fs::File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
            Some(BufWriter::new(file))
        }
        None => None,
    };
    let mut sql = |text: &str| file.as_mut().map_or(Ok(()), |file| file.write_all(text.as_bytes()));
    let mut bar = Bar::new(plan.as_ref());
    let report = run::run(database, rooms, &options, &limits, &mut sql, &mut |now| bar.show(now)).await?;
    bar.clear();
    if let Some(mut file) = file {
        file.flush().context("cannot write the SQL")?;
    }
    let after = match database.connect().await {
        Ok(client) => table_bytes(&client).await,
        Err(_) => None,
    };
    if let Some(path) = &arguments.metrics_file {
        write_metrics(path, &report).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if arguments.json {
        let mut value = serde_json::to_value(&report)?;
        value["table_bytes"] = json!({ "before": before, "after": after });
        super::print_json(&value)?;
    } else {
        super::print(&describe(&report, options.mode, after))?;
    }
    Ok(if report.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first signal ends it at the next piece.
fn watch_signals(stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("ending after this piece; the next run goes on from there");
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// The table with its indices. Nothing depends on it.
async fn table_bytes(client: &compress_state::Client) -> Option<u64> {
    let row = client.query_one("SELECT pg_total_relation_size('state_groups_state')", &[]).await.ok()?;
    u64::try_from(row.get::<_, i64>(0)).ok()
}

/// One line on a terminal; now and then a line elsewhere.
struct Bar {
    rows: u64,
    rooms: usize,
    started: Instant,
    terminal: bool,
    shown: Option<Instant>,
}

impl Bar {
    fn new(plan: Option<&Estimate>) -> Self {
        Self {
            rows: plan.map_or(0, |plan| plan.rooms.iter().map(|room| room.rows).sum()),
            rooms: plan.map_or(0, |plan| plan.rooms.len()),
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            shown: None,
        }
    }

    fn show(&mut self, now: Now) {
        let pause = if self.terminal { Duration::from_millis(400) } else { Duration::from_secs(30) };
        if self.shown.get_or_insert_with(Instant::now).elapsed() < pause {
            return;
        }
        self.shown = Some(Instant::now());
        let mut line = format!("{} rows read, {} saved", count(now.rows), count(now.saved));
        #[expect(clippy::cast_precision_loss, reason = "a part of a whole")]
        let part = if self.rows == 0 { 0.0 } else { (now.rows as f64 / self.rows as f64).min(1.0) };
        if part > 0.0 {
            let elapsed = self.started.elapsed().as_secs_f64();
            let left = Duration::try_from_secs_f64(elapsed * (1.0 - part) / part).unwrap_or_default();
            let _ = write!(
                line,
                ", room {} of {}, {:.0} %, {} left",
                now.rooms,
                self.rooms,
                part * 100.0,
                super::duration(left.as_secs())
            );
        }
        if let Some(why) = now.waiting {
            let _ = write!(line, ", waiting: {why}");
        }
        if self.terminal {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn clear(&self) {
        if self.terminal && self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn describe(report: &Report, mode: Mode, table: Option<u64>) -> String {
    let (groups, moved, before, after, saved) = report.sums();
    let mut out = String::new();
    let would = if mode == Mode::Apply { "were" } else { "would be" };
    let _ = writeln!(
        out,
        "{} rooms, {} groups in {:.1} s: {} rows {would} {} rows, {} groups {would} moved",
        report.rooms.len(),
        count(groups),
        report.seconds,
        count(before),
        count(after),
        count(moved)
    );
    for room in report.rooms.iter().filter(|room| !room.broken.is_empty()) {
        let first = &room.broken[0];
        let repaired = if first.repaired { "repaired" } else { "left as they are; `--repair` mends them" };
        let _ = writeln!(
            out,
            "{}: {} groups hang in the air, such as {} ({}); {repaired}",
            room.room_id,
            room.broken.len(),
            first.group,
            first.why
        );
    }
    for (room, reason) in &report.skipped {
        let _ = writeln!(out, "{room} was left out: {reason}");
    }
    if report.left > 0 {
        let _ = writeln!(out, "{} rooms are left; the next run goes on from there", report.left);
    }
    if saved > 0 && mode == Mode::Apply {
        let saved = u64::try_from(saved).unwrap_or(0);
        let _ = writeln!(
            out,
            "{} of rows are dead. (auto)vacuum makes that room free for new rows, and the file stays as large as it is{}; \
             pg_repack or VACUUM FULL would give about so much back to the system",
            bytes(saved),
            table.map(|table| format!(" ({} with indices)", bytes(table))).unwrap_or_default()
        );
    }
    out
}

/// What `node_exporter`'s textfile collector reads; it must never see half a file.
fn write_metrics(path: &Path, report: &Report) -> std::io::Result<()> {
    let (groups, moved, before, after, saved) = report.sums();
    let broken: usize = report.rooms.iter().map(|room| room.broken.len()).sum();
    let hold = report.rooms.iter().map(|room| room.longest_hold).fold(0.0, f64::max);
    let mut text = String::new();
    for (name, help, value) in [
        ("rooms", "Rooms of the last run.", report.rooms.len().to_string()),
        ("rooms_left", "Rooms that the last run left.", report.left.to_string()),
        ("rooms_failed", "Rooms that the last run could not deal with.", report.skipped.len().to_string()),
        ("groups", "Groups that the last run looked at.", groups.to_string()),
        ("groups_moved", "Groups that the last run wrote.", moved.to_string()),
        ("groups_broken", "Groups without a predecessor that should have one.", broken.to_string()),
        ("rows_read", "Rows that the groups had before the last run.", before.to_string()),
        ("rows_left", "Rows that they have now.", after.to_string()),
        ("saved_bytes", "Bytes of rows that the last run removed.", saved.to_string()),
        ("longest_lock_seconds", "The longest time for which the last run held locks.", format!("{hold:.6}")),
        ("duration_seconds", "How long the last run took.", format!("{:.3}", report.seconds)),
        ("end_timestamp_seconds", "When the last run ended.", unix_time().to_string()),
    ] {
        let name = format!("matrix_stack_compress_state_{name}");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
