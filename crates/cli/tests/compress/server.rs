//! A PostgreSQL server with Synapse's tables.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use runtime::install::{InstallOptions, ensure};
use runtime::launch::Launcher;
use serde_json::Value;
use tokio_postgres::{Client, NoTls};

const PROGRAM: &str = env!("CARGO_BIN_EXE_matrix-stack");
/// The user `nobody`, since PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

pub(crate) struct Server {
    directory: PathBuf,
}

static SERVER: OnceLock<Server> = OnceLock::new();
static CHILD: Mutex<Option<Child>> = Mutex::new(None);
static BASES: AtomicU32 = AtomicU32::new(0);

/// Ends the server.
pub(crate) fn end() {
    if let Some(mut child) = CHILD.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("own child");
        child.wait().expect("own child");
    }
    if let Some(server) = SERVER.get() {
        fs::remove_dir_all(&server.directory).expect("own directory");
    }
}

/// Runs a command that must succeed, and gives what it says.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// As the user that it runs as.
fn become_nobody(command: &mut Command) -> &mut Command {
    if nix::unistd::geteuid().is_root() { command.uid(NOBODY).gid(NOBODY) } else { command }
}

impl Server {
    pub(crate) fn get() -> &'static Self {
        SERVER.get_or_init(Self::start)
    }

    fn start() -> Self {
        let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let options = InstallOptions::new(packages, Launcher::at(PROGRAM));
        let packages = ensure(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
        let directory =
            tempfile::Builder::new().prefix("ms-compress-").tempdir_in("/tmp").expect("a directory").keep();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("own directory");
        if nix::unistd::geteuid().is_root() {
            chown(&directory, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        let data = directory.join("data");
        let mut initdb = Command::new(packages.postgres_bin.join("initdb"));
        initdb.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        run(become_nobody(&mut initdb));
        let log = fs::File::create(directory.join("log")).expect("own directory");
        let mut postgres = Command::new(packages.postgres_bin.join("postgres"));
        postgres.arg("-D").arg(&data).arg("-k").arg(&directory);
        postgres.args([
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "unix_socket_permissions=0777",
            "-c",
            "jit=off",
            "-c",
            "enable_seqscan=off",
        ]);
        postgres.stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
        let child = become_nobody(&mut postgres).spawn().expect("it starts");
        *CHILD.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let server = Self { directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while block_on(server.connect("postgres")).is_err() {
            let log = || fs::read_to_string(server.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "it does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let version = packages.python.ancestors().nth(2).expect("bin/python in a tree");
        let schema = fs::read_dir(version.join("lib"))
            .expect("a tree")
            .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/synapse/storage/schema")))
            .find(|path| path.exists())
            .expect("Synapse's schema");
        server.template(&schema);
        server
    }

    async fn connect(&self, base: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.directory).user("postgres").dbname(base);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A database with Synapse's tables: its last full schema, and what came to the state's part of it afterwards.
    fn template(&self, schema: &Path) {
        let mut script = String::new();
        for part in ["main", "state"] {
            let mut full: Vec<PathBuf> = files(&schema.join(part).join("full_schemas"));
            full.sort();
            let newest = full.last().expect("a full schema").join("full.sql.postgres");
            script += &fs::read_to_string(newest).expect("a schema");
        }
        let mut deltas = files(&schema.join("state/delta"));
        deltas.retain(|path| path.file_name().and_then(|name| name.to_str()?.parse().ok()) > Some(72_u32));
        deltas.sort();
        for file in deltas.iter().flat_map(|delta| files(delta)) {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let text = fs::read_to_string(&file).unwrap_or_default();
            if [".sql", ".sql.postgres"].iter().any(|end| name.ends_with(end))
                && !text.contains("background_updates")
            {
                script += &text;
            }
        }
        let script = script
            .replace("$%AUTO_INCREMENT_PRIMARY_KEY%$", "BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY");
        block_on(async {
            let client = self.connect("postgres").await.expect("it answers");
            client.batch_execute("CREATE DATABASE synapse").await.expect("a database");
            let client = self.connect("synapse").await.expect("it answers");
            client.batch_execute(&script).await.unwrap_or_else(|error| panic!("Synapse's schema: {error:?}"));
        });
    }

    /// A database of one's own.
    pub(crate) fn base(&'static self) -> Base {
        // One after another: PostgreSQL copies no database that somebody copies.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("base{}", BASES.fetch_add(1, Ordering::Relaxed));
        block_on(async {
            let client = self.connect("postgres").await.expect("it answers");
            let create = format!("CREATE DATABASE {name} TEMPLATE synapse");
            client.batch_execute(&create).await.expect("a database");
        });
        Base { server: self, name }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).expect("a directory").filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
}

pub(crate) struct Base {
    server: &'static Server,
    name: String,
}

impl Base {
    /// Does something with a connection.
    fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, tokio_postgres::Error> {
        block_on(async {
            let mut client = self.server.connect(&self.name).await?;
            work(&mut client).await
        })
    }

    #[track_caller]
    pub(crate) fn execute(&self, sql: &str) {
        self.try_execute(sql).unwrap_or_else(|error| panic!("{error:?}"));
    }

    pub(crate) fn try_execute(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.with(async |client| client.batch_execute(sql).await)
    }

    #[track_caller]
    pub(crate) fn number(&self, sql: &str) -> i64 {
        self.with(async |client| Ok(client.query_one(sql, &[]).await?.get(0))).expect("a number")
    }

    pub(crate) fn rows(&self) -> u64 {
        self.number("SELECT count(*) FROM state_groups_state").unsigned_abs()
    }

    pub(crate) fn rows_up_to(&self, group: i64) -> i64 {
        self.number(&format!("SELECT count(*) FROM state_groups_state WHERE state_group <= {group}"))
    }

    pub(crate) fn insert(
        &self,
        room: &str,
        ids: &[i64],
        edges: &[(i64, i64)],
        rows: &[(i64, String, String, String)],
    ) {
        self.with(async |client| {
            let (children, parents): (Vec<i64>, Vec<i64>) = edges.iter().copied().unzip();
            client
                .execute(
                    "INSERT INTO state_groups SELECT g, $2, '$e' || g FROM unnest($1::bigint[]) g",
                    &[&ids, &room],
                )
                .await?;
            client
                .execute(
                    "INSERT INTO state_group_edges SELECT * FROM unnest($1::bigint[], $2::bigint[])",
                    &[&children, &parents],
                )
                .await?;
            let groups: Vec<i64> = rows.iter().map(|row| row.0).collect();
            let column =
                |at: fn(&(i64, String, String, String)) -> &String| rows.iter().map(at).collect::<Vec<_>>();
            client
                .execute(
                    "INSERT INTO state_groups_state SELECT g, $5, t, k, e FROM \
                     unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) u(g, t, k, e)",
                    &[&groups, &column(|row| &row.1), &column(|row| &row.2), &column(|row| &row.3), &room],
                )
                .await?;
            client
                .execute("SELECT setval('state_group_id_seq', (SELECT max(id) FROM state_groups))", &[])
                .await
        })
        .unwrap_or_else(|error| panic!("{error:?}"));
        self.execute("ANALYZE state_groups, state_group_edges, state_groups_state");
    }

    /// Every group as Synapse resolves it, as a digest, and the hops of that.
    pub(crate) fn states(&self) -> BTreeMap<i64, (String, i64)> {
        self.with(async |client| {
            let rows = client
                .query(
                    "SELECT g.id, s.digest, s.hops FROM state_groups g, LATERAL (\
                     WITH RECURSIVE sgs(state_group, hops) AS (VALUES (g.id, 0) UNION \
                     SELECT prev_state_group, hops + 1 FROM state_group_edges e, sgs s WHERE s.state_group = e.state_group) \
                     SELECT coalesce(md5(string_agg(type || '|' || state_key || '|' || event_id, ',' ORDER BY type, state_key)), '') \
                     AS digest, (SELECT max(hops)::bigint FROM sgs) AS hops FROM (SELECT DISTINCT ON (type, state_key) type, \
                     state_key, event_id FROM state_groups_state WHERE state_group IN (SELECT state_group FROM sgs) \
                     ORDER BY type, state_key, state_group DESC) t) s",
                    &[],
                )
                .await?;
            Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
        })
        .unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// The program, about this database.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        let host = self.server.directory.display().to_string().replace('/', "%2F");
        let url = format!("postgresql://postgres@/{}?host={host}", self.name);
        command.args(["compress-state", "--database-url", &url]).args(words);
        command
    }

    /// Runs it to its end; with `--json`, what it says.
    #[track_caller]
    pub(crate) fn compress(&self, words: &[&str]) -> Value {
        let text = run(&mut self.command(words));
        println!("{}", text.lines().take(3).collect::<Vec<_>>().join(" "));
        if words.contains(&"--json") { serde_json::from_str(&text).expect("JSON") } else { Value::Null }
    }

    /// Waits until the server has noticed that a program is gone.
    pub(crate) fn until_nobody_works(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let question = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid() \
             AND application_name LIKE 'matrix-stack%'",
            self.name
        );
        while self.number(&question) > 0 {
            assert!(Instant::now() < deadline, "it still works");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Marks groups as those that Synapse is about to delete, long ago.
    pub(crate) fn pending(&self, groups: &[i64]) {
        self.with(async |client| {
            let insert = "INSERT INTO state_groups_pending_deletion (state_group, insertion_ts) SELECT g, 0 FROM unnest($1::bigint[]) g";
            client.execute(insert, &[&groups]).await
        })
        .expect("it is marked");
    }

    /// Adds a group upon the newest of a room, as Synapse does it.
    pub(crate) fn append(&self, room: &str) -> i64 {
        self.with(async |client| {
            let tx = client.transaction().await?;
            let prev: i64 =
                tx.query_one("SELECT max(id) FROM state_groups WHERE room_id = $1", &[&room]).await?.get(0);
            tx.execute("SELECT id FROM state_groups WHERE id = $1 FOR KEY SHARE", &[&prev]).await?;
            let id: i64 = tx.query_one("SELECT nextval('state_group_id_seq')", &[]).await?.get(0);
            tx.execute("INSERT INTO state_groups VALUES ($1, $2, '$new')", &[&id, &room]).await?;
            tx.execute("INSERT INTO state_group_edges VALUES ($1, $2)", &[&id, &prev]).await?;
            tx.execute(
                "INSERT INTO state_groups_state VALUES ($1::bigint, $2, 'm.room.topic', '', '$topic' || $1::bigint::text)",
                &[&id, &room],
            )
            .await?;
            tx.commit().await?;
            Ok(id)
        })
        .unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Deletes a group as Synapse does it (`_purge_unreferenced_state_groups`): in a transaction that can be refused, after
    /// making whole what lies upon it. Whether it was deleted.
    pub(crate) fn delete_as_synapse(&self, group: i64) -> bool {
        let deleted = self.with(async |client| {
            let tx = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead).start().await?;
            tx.execute("SELECT id FROM state_groups WHERE id = $1 FOR UPDATE", &[&group]).await?;
            let old = tx
                .query_opt("SELECT 1 FROM state_groups_pending_deletion WHERE state_group = $1 AND insertion_ts = 0", &[&group])
                .await?;
            if old.is_none() {
                return Ok(false);
            }
            let upon: Vec<i64> = tx
                .query("SELECT state_group FROM state_group_edges WHERE prev_state_group = $1", &[&group])
                .await?
                .iter()
                .map(|row| row.get(0))
                .collect();
            for child in upon {
                tx.batch_execute(&format!(
                    "CREATE TEMP TABLE whole ON COMMIT DROP AS \
                     WITH RECURSIVE sgs(state_group) AS (VALUES ({child}::bigint) UNION ALL \
                     SELECT prev_state_group FROM state_group_edges e, sgs s WHERE s.state_group = e.state_group) \
                     SELECT DISTINCT ON (type, state_key) room_id, type, state_key, event_id FROM state_groups_state \
                     WHERE state_group IN (SELECT state_group FROM sgs) ORDER BY type, state_key, state_group DESC; \
                     DELETE FROM state_groups_state WHERE state_group = {child}; \
                     DELETE FROM state_group_edges WHERE state_group = {child}; \
                     INSERT INTO state_groups_state SELECT {child}, room_id, type, state_key, event_id FROM whole; \
                     DROP TABLE whole"
                ))
                .await?;
            }
            for table in ["state_groups_state WHERE state_group", "state_group_edges WHERE state_group",
                "state_groups WHERE id", "state_groups_pending_deletion WHERE state_group"] {
                tx.execute(&format!("DELETE FROM {table} = $1"), &[&group]).await?;
            }
            tx.commit().await?;
            Ok(true)
        });
        // As Synapse would, it may be refused, and tries again later.
        deleted.unwrap_or(false)
    }
}
