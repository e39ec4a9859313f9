//! The bundled PostgreSQL, from an empty directory on, and each way in which it can fail.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use model::Layout;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use runtime::launch::{self, Launcher};
use runtime::postgres::{self, Cluster, PostgresError, Settings};
use tokio_postgres::NoTls;

use crate::{alive, is_root, open_directory, packages, status, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("postgres::a_life", a_life),
        trial("postgres::a_killed_server_is_started_again", a_killed_server_is_started_again),
        trial("postgres::a_server_left_running_is_ended", a_server_left_running_is_ended),
        trial("postgres::a_reused_process_id_does_not_matter", a_reused_process_id_does_not_matter),
        trial("postgres::an_interrupted_initdb_leaves_nothing", an_interrupted_initdb_leaves_nothing),
        trial("postgres::data_of_another_version_is_left_alone", data_of_another_version_is_left_alone),
        trial("postgres::a_foreign_directory_is_left_alone", a_foreign_directory_is_left_alone),
        trial("postgres::a_closed_directory_is_named", a_closed_directory_is_named),
        trial("postgres::a_full_disk_is_named", a_full_disk_is_named),
    ]
}

const SETTINGS: Settings = Settings { max_connections: 60, memory_bytes: 2 << 30 };

struct Place {
    directory: tempfile::TempDir,
    layout: Layout,
    cluster: Cluster,
}

impl Place {
    fn new() -> Self {
        let directory = open_directory();
        let layout = Layout::new(directory.path());
        let user = launch::unprivileged_user().expect("a user");
        let cluster = Cluster::new(packages(), &layout, user, Launcher::this_program());
        // As the supervisor makes it.
        fs::create_dir(layout.sockets()).expect("own directory");
        fs::set_permissions(layout.sockets(), Permissions::from_mode(0o711)).expect("own directory");
        Self { directory, layout, cluster }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let log = File::create(self.directory.path().join("log")).expect("own directory");
        let mut command = launch::command(&Launcher::this_program(), &self.cluster.spec());
        command.stdout(log.try_clone().expect("a file")).stderr(log).spawn().expect("a server")
    }

    /// Starts the server and waits until it answers.
    fn start(&self) -> Child {
        let mut server = self.spawn();
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = run(self.cluster.ready()) {
            let ended = server.try_wait().expect("own child");
            assert!(ended.is_none() && Instant::now() < deadline, "{error}: {ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Logs in as Synapse does, and asks one thing.
    fn ask(&self, password: &str, question: &str) -> Result<String, String> {
        run(async {
            let mut config = tokio_postgres::Config::new();
            config
                .host_path(self.layout.postgres_socket_dir())
                .user("synapse")
                .dbname("synapse")
                .password(password);
            let said = |error: tokio_postgres::Error| {
                error.as_db_error().map_or(error.to_string(), |e| e.message().to_owned())
            };
            let (client, connection) = config.connect(NoTls).await.map_err(said)?;
            tokio::spawn(connection);
            let rows = client.simple_query(question).await.map_err(said)?;
            Ok(rows
                .into_iter()
                .find_map(|row| match row {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                })
                .unwrap_or_default())
        })
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// Stops the server as the supervisor does, and says how long that took.
fn stop(mut server: Child) -> Duration {
    let started = Instant::now();
    let pid = Pid::from_raw(i32::try_from(server.id()).expect("a process ID"));
    for (signal, patience) in postgres::STOP {
        kill(pid, *signal).expect("own child");
        let deadline = Instant::now() + *patience;
        while Instant::now() < deadline {
            if server.try_wait().expect("own child").is_some() {
                return started.elapsed();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("the server does not stop");
}

fn a_life() {
    let place = Place::new();
    let started = Instant::now();
    let prepared = place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    println!("prepare (initdb): {:?}", started.elapsed());
    assert!(prepared.created);
    let started = Instant::now();
    let server = place.start();
    println!("start: {:?}", started.elapsed());
    if is_root() {
        let user = launch::unprivileged_user().expect("a user").expect("root has one");
        assert!(status(server.id(), "Uid").starts_with(&format!("{} ", user.uid)));
        assert_eq!(fs::metadata(place.layout.postgres()).expect("data").uid(), user.uid);
    }
    for directory in [place.layout.postgres(), place.layout.postgres_socket_dir()] {
        assert_eq!(
            fs::metadata(&directory).expect("a directory").mode() & 0o777,
            0o700,
            "{}",
            directory.display()
        );
    }

    // Role and database: made, made again, and with another password.
    let started = Instant::now();
    run(place.cluster.provision("it's \\ one", false)).unwrap_or_else(|error| panic!("{error}"));
    println!("provision: {:?}", started.elapsed());
    assert_eq!(place.ask("it's \\ one", "SELECT current_user").as_deref(), Ok("synapse"));
    run(place.cluster.provision("another", false)).unwrap_or_else(|error| panic!("{error}"));
    let refused = place.ask("it's \\ one", "SELECT 1").expect_err("the old password");
    assert!(refused.contains("password authentication failed"), "{refused}");
    assert!(matches!(run(place.cluster.provision("", false)), Err(PostgresError::Password)));
    let database = "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate || ' ' || datctype FROM pg_database WHERE datname = 'synapse'";
    assert_eq!(place.ask("another", database).as_deref(), Ok("UTF8 C C"));
    assert_eq!(
        place.ask("another", "SELECT rolsuper::text FROM pg_roles WHERE rolname = 'synapse'").as_deref(),
        Ok("false")
    );
    for (setting, value) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("listen_addresses", ""),
        ("max_connections", "60"),
        ("jit", "off"),
    ] {
        assert_eq!(place.ask("another", &format!("SHOW {setting}")).as_deref(), Ok(value), "{setting}");
    }
    assert!(!place.log().contains("another"), "{}", place.log());
    place.ask("another", "CREATE TABLE kept AS SELECT 7 AS n").expect("own database");

    // A second start keeps everything, with a client that stays connected through the stop.
    println!("stop: {:?}", stop(server));
    let started = Instant::now();
    let prepared = place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    println!("prepare again: {:?}", started.elapsed());
    assert!(!prepared.created);
    let server = place.start();
    run(place.cluster.provision("another", false)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(place.ask("another", "SELECT n FROM kept").as_deref(), Ok("7"));
    stop(server);
    assert!(matches!(run(place.cluster.ready()), Err(PostgresError::NotReady { .. })));
}

fn a_killed_server_is_started_again() {
    let place = Place::new();
    place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    let mut server = place.start();
    run(place.cluster.provision("secret", false)).unwrap_or_else(|error| panic!("{error}"));
    place.ask("secret", "CREATE TABLE kept AS SELECT 7 AS n").expect("own database");
    server.kill().expect("own child");
    server.wait().expect("own child");
    // Its socket and its pid file are still there, and some of its children too.
    assert!(place.layout.postgres().join("postmaster.pid").exists());
    place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    let server = place.start();
    assert_eq!(place.ask("secret", "SELECT n FROM kept").as_deref(), Ok("7"));
    stop(server);
}

fn a_server_left_running_is_ended() {
    let place = Place::new();
    place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    let mut left = place.start();
    let pid = left.id();
    let waiting = std::thread::spawn(move || left.wait());
    place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    assert!(!alive(pid));
    waiting.join().expect("no panic").expect("own child");
    stop(place.start());
}

fn a_reused_process_id_does_not_matter() {
    let place = Place::new();
    place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    let file = place.layout.postgres().join("postmaster.pid");
    // A process of the server's own user, so that the server takes it for another server.
    let spec =
        runtime::launch::Spec::new("/bin/sleep").arg("60").user(launch::unprivileged_user().expect("a user"));
    let mut other = launch::command(&Launcher::this_program(), &spec).spawn().expect("a child");
    let text = format!("{}\n{}\n1600000000\n5432\n\n\n\n", other.id(), place.layout.postgres().display());
    fs::write(&file, text).expect("a file");
    let meta = fs::metadata(place.layout.postgres()).expect("a directory");
    std::os::unix::fs::chown(&file, Some(meta.uid()), Some(meta.gid())).expect("own file");

    // Without the clearing up the server refuses.
    let ended = place.spawn().wait().expect("own child");
    assert!(!ended.success());
    let explained = place.cluster.explain(&place.log());
    assert!(matches!(explained, Some(PostgresError::InUse { .. })), "{}", place.log());

    place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    stop(place.start());
    assert!(alive(other.id()), "a stranger was ended");
    other.kill().expect("own child");
    other.wait().expect("own child");
}

fn an_interrupted_initdb_leaves_nothing() {
    let place = Place::new();
    let half = place.directory.path().join("postgres.new");
    fs::create_dir(&half).expect("own directory");
    fs::write(half.join("PG_VERSION"), "17\n").expect("own directory");
    assert!(place.cluster.prepare(&SETTINGS).unwrap_or_else(|error| panic!("{error}")).created);
    assert!(!half.exists());
    stop(place.start());
}

fn data_of_another_version_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.layout.postgres()).expect("own directory");
    fs::write(place.layout.postgres().join("PG_VERSION"), "16\n").expect("own directory");
    let error = place.cluster.prepare(&SETTINGS).expect_err("another version");
    assert!(matches!(&error, PostgresError::Version { found, .. } if found == "16"), "{error}");
    assert!(error.to_string().contains("pg_dump"), "{error}");
}

fn a_foreign_directory_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.layout.postgres()).expect("own directory");
    fs::write(place.layout.postgres().join("letters.txt"), "dear").expect("own directory");
    let error = place.cluster.prepare(&SETTINGS).expect_err("something else");
    assert!(matches!(error, PostgresError::Foreign { .. }), "{error}");
    assert!(place.layout.postgres().join("letters.txt").exists());
}

fn a_closed_directory_is_named() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.directory.path(), Permissions::from_mode(0o700)).expect("own directory");
    let error = place.cluster.prepare(&SETTINGS).expect_err("a closed directory");
    assert!(
        matches!(&error, PostgresError::Closed { directory, .. } if directory == place.directory.path()),
        "{error}"
    );
    assert!(error.to_string().contains("chmod o+x"), "{error}");
}

fn a_full_disk_is_named() {
    let place = Place::new();
    let mount = |args: &[&str], at: &Path| {
        Command::new(args[0]).args(&args[1..]).arg(at).status().is_ok_and(|s| s.success())
    };
    if !is_root()
        || !mount(&["mount", "-t", "tmpfs", "-o", "size=20m,mode=0711", "small"], place.directory.path())
    {
        println!("not done: only root may mount a small disk");
        return;
    }
    let prepared = place.cluster.prepare(&SETTINGS);
    let left = fs::read_dir(place.directory.path())
        .expect("a directory")
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .count();
    let unmounted = mount(&["umount"], place.directory.path());
    let error = prepared.expect_err("too small a disk");
    assert!(matches!(error, PostgresError::DiskFull { .. }), "{error}");
    // The socket directory's parent, and no half-made data directory.
    assert_eq!(left, 1);
    assert!(unmounted);
}
