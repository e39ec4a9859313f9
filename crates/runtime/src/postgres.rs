//! The PostgreSQL server that a stack brings with it.
//!
//! It listens on a unix socket alone. Synapse logs in with a password (SCRAM). This program logs in as the superuser
//! without one, because the kernel vouches for who is at the other end of the socket (`peer`); so does the operating
//! system user that the server runs as. Nobody else gets in.
//!
//! Order of use: [`Cluster::prepare`], start [`Cluster::spec`], poll [`Cluster::ready`], [`Cluster::provision`]. The
//! caller sees to it that no two do so for the same data directory at once.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::Layout;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::install::Packages;
use crate::launch::{self, LaunchError, Launcher, Spec, User};

/// The database's name, and that of the role that owns it.
pub const NAME: &str = "synapse";
/// The database of the Matrix Authentication Service, of the same role.
const MAS: &str = "mas";

/// How to stop the server: each signal with how long to wait for it. To the process itself, not to its group.
///
/// SIGINT is the fast shutdown, which ends clients' sessions and writes everything out; SIGTERM would wait for the
/// clients to leave. After SIGQUIT or SIGKILL the next start replays the log; nothing committed is lost.
pub const STOP: &[(Signal, Duration)] = &[
    (Signal::SIGINT, Duration::from_secs(30)),
    (Signal::SIGQUIT, Duration::from_secs(6)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// The port is part of the socket's file name, and nothing else here.
const PORT: u16 = 5432;

/// The longest path of a unix socket in bytes (`sun_path` in unix(7) has 108, one of them the closing zero).
const SOCKET_PATH_MAX: usize = 107;

/// initdb takes under a second; a slow disk may take a minute.
const INITDB_LIMIT: Duration = Duration::from_secs(120);

/// How long a connection and each command on it may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const PROVISION_LIMIT: Duration = Duration::from_secs(30);

/// What can go wrong with the bundled PostgreSQL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The socket's path does not fit.
    #[error(
        "the path of PostgreSQL's socket, `{}`, is longer than the {SOCKET_PATH_MAX} bytes that the system allows: choose a \
         shorter `data_dir` in stack.yaml", .path.display()
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// This process's user has no name.
    #[error(
        "PostgreSQL needs its user to have a name, and user ID {uid} has none: add it to /etc/passwd, or run as another user"
    )]
    NamelessUser {
        /// The user ID.
        uid: u32,
    },
    /// The server's user cannot reach its data.
    #[error(
        "the user `{user}`, which runs PostgreSQL, may not enter `{}`: let it pass (`chmod o+x {}`), or choose another \
         `data_dir` in stack.yaml", .directory.display(), .directory.display()
    )]
    Closed {
        /// The directory that stops it.
        directory: PathBuf,
        /// The user.
        user: String,
    },
    /// The data belongs to someone else.
    #[error(
        "the database in `{}` belongs to user ID {owner}, but PostgreSQL would run as `{user}`: start matrix-stack as the user \
         that made it, or hand it over (`chown -R {user} {}`)", .path.display(), .path.display()
    )]
    Owner {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who would run the server.
        user: String,
    },
    /// The directory holds something else.
    #[error("`{}` is not empty and not a PostgreSQL data directory: move what is in it away, or choose another `data_dir` in stack.yaml", .path.display())]
    Foreign {
        /// The data directory.
        path: PathBuf,
    },
    /// The data was made by another major version.
    #[error(
        "the database in `{}` was made by PostgreSQL {found}, and this matrix-stack brings PostgreSQL {bundled}, which cannot read \
         it: dump it with the matrix-stack that made it and `pg_dump`, move the directory away, start, and load the dump", .path.display()
    )]
    Version {
        /// The data directory.
        path: PathBuf,
        /// The major version that made it.
        found: String,
        /// The version of the bundled server.
        bundled: String,
    },
    /// A server is running on the data and does not stop.
    #[error("another PostgreSQL, process {pid}, runs on `{}` and does not stop: end it (`kill -INT {pid}`), and start again", .path.display())]
    Running {
        /// The process.
        pid: i32,
        /// The data directory.
        path: PathBuf,
    },
    /// The server says that its files are in use.
    #[error("PostgreSQL finds `{}` in use by another server: stop that one, and start again\n{detail}", .path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
    /// The disk is full.
    #[error("the disk of `{}` is full: free some space, and start again; nothing that was committed is lost\n{detail}", .path.display())]
    DiskFull {
        /// The data directory.
        path: PathBuf,
        /// What was said.
        detail: String,
    },
    /// The system gives no memory.
    #[error(
        "PostgreSQL cannot get the memory it needs: stop other programs, or raise the limit of the container\n{detail}"
    )]
    Memory {
        /// What it said.
        detail: String,
    },
    /// The server may not use its files.
    #[error("PostgreSQL may not use its files in `{}`: give them back to the user that runs it (`chown -R`, and `chmod 700` for the directory)\n{detail}", .path.display())]
    Permission {
        /// The data directory.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
    /// The data is damaged.
    #[error("the database in `{}` is damaged: keep a copy of it, check the disk, and restore a backup\n{detail}", .path.display())]
    Damaged {
        /// The data directory.
        path: PathBuf,
        /// What the server said.
        detail: String,
    },
    /// initdb or the server failed for another reason.
    #[error("PostgreSQL: {what}. Its own words may tell what to do\n{detail}")]
    Failed {
        /// What failed.
        what: String,
        /// What it said.
        detail: String,
    },
    /// A file could not be used.
    #[error("cannot use `{}`: {source}. Check its owner and mode, and the disk", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server does not answer, or not yet.
    #[error("PostgreSQL does not answer on `{}` ({reason}): look at its log (`matrix-stack logs postgres`)", .socket.display())]
    NotReady {
        /// The socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The database is there, but not one that Synapse can use.
    #[error(
        "the database `{NAME}` has encoding {encoding} and collation {collation}, and Synapse needs UTF8 and C: dump it, drop it, start, and load the dump"
    )]
    Collation {
        /// Its encoding.
        encoding: String,
        /// Its collation.
        collation: String,
    },
    /// The password cannot be one.
    #[error(
        "the database password is empty or has a zero byte in it: write another to its file (`secrets.database_password`)"
    )]
    Password,
    /// The server refused a command.
    #[error("PostgreSQL refused to {what}: {reason}. Look at its log (`matrix-stack logs postgres`)")]
    Refused {
        /// What it should do.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// A child could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// What the server's settings depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many connections to allow: those of the plan, with what the plan keeps for others.
    pub max_connections: u32,
    /// The memory of the machine (or the limit of the container), in bytes. The server takes its share of it.
    pub memory_bytes: u64,
}

/// What [`Cluster::prepare`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Whether the data directory was made just now.
    pub created: bool,
}

/// A PostgreSQL data directory and the server for it.
#[derive(Clone, Debug)]
pub struct Cluster {
    bin: PathBuf,
    version: String,
    data: PathBuf,
    sockets: PathBuf,
    user: Option<User>,
    launcher: Launcher,
}

impl Cluster {
    /// The cluster of a stack. `user` is who runs the server: [`launch::unprivileged_user`].
    pub fn new(packages: &Packages, layout: &Layout, user: Option<User>, launcher: Launcher) -> Self {
        Self {
            bin: packages.postgres_bin.clone(),
            version: packages.postgres_version.clone(),
            data: layout.postgres(),
            sockets: layout.postgres_socket_dir(),
            user,
            launcher,
        }
    }

    /// Makes everything ready for the server to start: data directory, configuration, socket directory; and clears
    /// away what a killed server left. Blocks: for a second where the data directory is made, else some milliseconds.
    ///
    /// The data directory is made elsewhere and moved into place, so that it is there whole or not at all.
    pub fn prepare(&self, settings: &Settings) -> Result<Prepared, PostgresError> {
        let socket = self.socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(PostgresError::SocketPath { path: socket });
        }
        let owner = self.owner()?;
        for directory in [&self.data, &self.sockets] {
            let parent = directory.parent().unwrap_or(directory);
            fs::create_dir_all(parent).map_err(|source| self.io(parent, source))?;
            if let Some(user) = &self.user
                && let Some(closed) = launch::closed_to(&self.launcher, directory, user)?
            {
                return Err(PostgresError::Closed { directory: closed, user: user.name.clone() });
            }
        }
        let created = match fs::read_to_string(self.data.join("PG_VERSION")) {
            Ok(found) => {
                self.check(found.trim(), &owner)?;
                self.end_leftovers()?;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create(&owner)?;
                true
            }
            Err(source) => return Err(self.io(&self.data, source)),
        };
        self.own_directory(&self.sockets, &owner)?;
        for stale in [socket.clone(), beside(&socket, ".lock")] {
            match fs::remove_file(&stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io(&stale, error)),
                _ => {}
            }
        }
        let who =
            if Uid::effective().is_root() { vec!["root", &owner.name] } else { vec![owner.name.as_str()] };
        self.write("postgresql.conf", &configuration(settings, &self.sockets), &owner)?;
        self.write("pg_hba.conf", ACCESS, &owner)?;
        self.write("pg_ident.conf", &identities(&who), &owner)?;
        Ok(Prepared { created })
    }

    /// How to start the server. It writes its log to stderr.
    ///
    /// When this program dies, the kernel sends SIGQUIT, on which the server ends itself and all its processes at once.
    pub fn spec(&self) -> Spec {
        self.program("postgres").arg("-D").arg(&self.data).directory(&self.data).death_signal(Signal::SIGQUIT)
    }

    /// Whether the server takes connections: one try, of at most a second. Poll it, every 20 ms say.
    pub async fn ready(&self) -> Result<(), PostgresError> {
        self.connect(PROBE_LIMIT).await.map(drop)
    }

    /// Makes the role and the database for Synapse, or brings them up to date: the role's password becomes `password`. `mas`:
    /// makes that of the Matrix Authentication Service too, for the same role.
    pub async fn provision(&self, password: &str, mas: bool) -> Result<(), PostgresError> {
        if password.is_empty() || password.contains('\0') {
            return Err(PostgresError::Password);
        }
        let work = async {
            let client = self.connect(PROVISION_LIMIT).await?;
            provision_role(&client, password).await?;
            provision_database(&client, NAME).await?;
            if mas { provision_database(&client, MAS).await } else { Ok(()) }
        };
        tokio::time::timeout(PROVISION_LIMIT, work).await.unwrap_or_else(|_| {
            Err(PostgresError::NotReady { socket: self.socket(), reason: "it took too long".to_owned() })
        })
    }

    /// Why the server ended, from the last lines of its log, where they say so in words that are known.
    pub fn explain(&self, log: &str) -> Option<PostgresError> {
        let said = |signs: &[&str]| signs.iter().any(|sign| log.contains(sign));
        let path = self.data.clone();
        let fatal: Vec<&str> = log
            .lines()
            .filter(|line| ["FATAL", "PANIC", "DETAIL", "HINT"].iter().any(|word| line.contains(word)))
            .collect();
        let detail = launch::last_lines(&fatal.join("\n"), 6);
        if said(&["No space left on device", "Disk quota exceeded"]) {
            Some(PostgresError::DiskFull { path, detail })
        } else if said(&[
            "could not map anonymous shared memory",
            "could not create shared memory segment",
            "Cannot allocate memory",
        ]) {
            Some(PostgresError::Memory { detail })
        } else if said(&["database files are incompatible with server"]) {
            let found =
                fs::read_to_string(self.data.join("PG_VERSION")).unwrap_or_default().trim().to_owned();
            Some(PostgresError::Version { path, found, bundled: self.version.clone() })
        } else if said(&["lock file", "pre-existing shared memory block", "could not bind Unix address"]) {
            Some(PostgresError::InUse { path, detail })
        } else if said(&["has wrong ownership", "has invalid permissions", "Permission denied"]) {
            Some(PostgresError::Permission { path, detail })
        } else if said(&[
            "could not locate a valid checkpoint record",
            "invalid checkpoint record",
            "incorrect checksum in control file",
        ]) {
            Some(PostgresError::Damaged { path, detail })
        } else if said(&["FATAL:  could not", "PANIC:"]) {
            Some(PostgresError::Failed { what: "the server could not run".to_owned(), detail })
        } else {
            None
        }
    }

    fn socket(&self) -> PathBuf {
        self.sockets.join(format!(".s.PGSQL.{PORT}"))
    }

    /// Who runs the server.
    fn owner(&self) -> Result<User, PostgresError> {
        if let Some(user) = &self.user {
            return Ok(user.clone());
        }
        let uid = Uid::effective();
        match nix::unistd::User::from_uid(uid) {
            Ok(Some(user)) => Ok(User { name: user.name, uid: uid.as_raw(), gid: user.gid.as_raw() }),
            _ => Err(PostgresError::NamelessUser { uid: uid.as_raw() }),
        }
    }

    /// One of PostgreSQL's programs, in an environment that holds nothing of this one's.
    fn program(&self, name: &str) -> Spec {
        // TZ spares initdb a search through all time zones.
        let spec = Spec::new(self.bin.join(name)).user(self.user.clone()).umask(0o077).env_clear();
        spec.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC")
    }

    fn create(&self, owner: &User) -> Result<(), PostgresError> {
        if fs::read_dir(&self.data).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(PostgresError::Foreign { path: self.data.clone() });
        }
        let new = beside(&self.data, ".new");
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io(&new, error)),
            _ => self.own_directory(&new, owner)?,
        }
        let initdb = self.program("initdb").directory(&new).arg("-D").arg(&new);
        let initdb = initdb.args([
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--auth=peer",
            "--data-checksums",
        ]);
        // One flush of the file system instead of a thousand of files.
        let done = launch::run(
            &self.launcher,
            &initdb.args(["--sync-method=syncfs", "--no-instructions"]),
            INITDB_LIMIT,
            || true,
        )?;
        let moved = if done.success() {
            fs::rename(&new, &self.data).map_err(|source| self.io(&self.data, source))
        } else {
            let what = format!("initdb {}", done.ending());
            let detail = launch::last_lines(&done.output, 8);
            Err(self.explain(&done.output).unwrap_or(PostgresError::Failed { what, detail }))
        };
        if moved.is_err() {
            // The next start would remove it too.
            let _ = fs::remove_dir_all(&new);
        }
        moved?;
        let parent = self.data.parent().unwrap_or(&self.data);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|source| self.io(parent, source))
    }

    fn check(&self, found: &str, owner: &User) -> Result<(), PostgresError> {
        let path = self.data.clone();
        if self.version.split('.').next() != Some(found) {
            return Err(PostgresError::Version {
                path,
                found: found.to_owned(),
                bundled: self.version.clone(),
            });
        }
        let meta = fs::metadata(&path).map_err(|source| self.io(&path, source))?;
        if meta.uid() != owner.uid {
            return Err(PostgresError::Owner { path, owner: meta.uid(), user: owner.name.clone() });
        }
        Ok(())
    }

    /// Makes sure that no process of an earlier server is left on the data directory.
    ///
    /// A server whose supervisor was killed is ending itself; it gets a moment. `PostgreSQL` copes with its own stale
    /// `postmaster.pid` but for one case: the process ID in it is another process's by now, as is common in containers.
    fn end_leftovers(&self) -> Result<(), PostgresError> {
        let data = self.data.canonicalize().map_err(|source| self.io(&self.data, source))?;
        let postmaster = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let postmaster: Option<i32> =
            postmaster.lines().next().and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 1);
        let mut left = processes_in(&data);
        for (signal, patience) in [(None, 3), (Some(Signal::SIGINT), 10), (Some(Signal::SIGQUIT), 7)] {
            if left.is_empty() {
                break;
            }
            if let Some(signal) = signal {
                // The postmaster ends its own children; without one, each child has to be told.
                let told: Vec<i32> = match postmaster.filter(|pid| left.contains(pid)) {
                    Some(pid) => vec![pid],
                    None => left.clone(),
                };
                tracing::warn!(?told, %signal, "ending a PostgreSQL that was left running");
                for pid in told {
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            let deadline = Instant::now() + Duration::from_secs(patience);
            while !left.is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
                left = processes_in(&data);
            }
        }
        if let Some(pid) = left.first() {
            return Err(PostgresError::Running { pid: *pid, path: self.data.clone() });
        }
        if postmaster.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_ok()) {
            let file = data.join("postmaster.pid");
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io(&file, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the directory, if need be, and its owner's alone.
    fn own_directory(&self, path: &Path, owner: &User) -> Result<(), PostgresError> {
        let make = || -> io::Result<()> {
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if fs::metadata(path)?.uid() != owner.uid {
                chown(path, Some(owner.uid), Some(owner.gid))?;
            }
            fs::set_permissions(path, Permissions::from_mode(0o700))
        };
        make().map_err(|source| self.io(path, source))
    }

    /// Replaces a file in the data directory. This process may be root and the directory is another's, so nothing is
    /// opened there that could be a link.
    fn write(&self, name: &str, text: &str, owner: &User) -> Result<(), PostgresError> {
        let path = self.data.join(name);
        let new = beside(&path, ".new");
        let replace = || -> io::Result<()> {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::create_new(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            if file.metadata()?.uid() != owner.uid {
                fchown(&file, Some(owner.uid), Some(owner.gid))?;
            }
            fs::rename(&new, &path)
        };
        replace().map_err(|source| self.io(&path, source))
    }

    fn io(&self, path: &Path, source: io::Error) -> PostgresError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                PostgresError::DiskFull { path: self.data.clone(), detail: source.to_string() }
            }
            _ => PostgresError::Io { path: path.to_owned(), source },
        }
    }

    /// A connection as the superuser.
    async fn connect(&self, limit: Duration) -> Result<Client, PostgresError> {
        let not_ready = |reason: String| PostgresError::NotReady { socket: self.socket(), reason };
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.sockets)
            .port(PORT)
            .user("postgres")
            .dbname("postgres")
            .application_name("matrix-stack");
        let (client, connection) = tokio::time::timeout(limit, config.connect(NoTls))
            .await
            .map_err(|_| not_ready("no answer in time".to_owned()))?
            .map_err(|error| not_ready(reason(&error)))?;
        // Ends when the client is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the administrative connection to PostgreSQL ended");
            }
        });
        Ok(client)
    }
}

async fn provision_role(client: &Client, password: &str) -> Result<(), PostgresError> {
    let exists = client
        .query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&NAME])
        .await
        .map_err(refused("look up the role"))?
        .is_some();
    let verb = if exists { "ALTER" } else { "CREATE" };
    // Should the command fail, the log must not quote it.
    let quoted = password.replace('\'', "''");
    let script = format!(
        "SET log_min_error_statement = 'panic'; SET log_statement = 'none'; SET standard_conforming_strings = on; \
         {verb} ROLE {NAME} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{quoted}'"
    );
    client.batch_execute(&script).await.map_err(refused("set up the role"))
}

async fn provision_database(client: &Client, name: &str) -> Result<(), PostgresError> {
    let row = client
        .query_opt("SELECT pg_encoding_to_char(encoding)::text, datcollate::text FROM pg_database WHERE datname = $1", &[&name])
        .await
        .map_err(refused("look up the database"))?;
    let Some(row) = row else {
        let create =
            format!("CREATE DATABASE {name} OWNER {NAME} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'");
        return client.batch_execute(&create).await.map_err(refused("create the database"));
    };
    let (encoding, collation): (String, String) = (row.get(0), row.get(1));
    if encoding != "UTF8" || collation != "C" {
        return Err(PostgresError::Collation { encoding, collation });
    }
    Ok(())
}

fn refused(what: &'static str) -> impl Fn(tokio_postgres::Error) -> PostgresError {
    move |error| PostgresError::Refused { what, reason: reason(&error) }
}

/// What the server or the system said, without what the client library puts around it.
fn reason(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(database), _) if *database.code() == SqlState::CANNOT_CONNECT_NOW => {
            "it is still starting".to_owned()
        }
        (Some(database), _) => database.message().to_owned(),
        (None, Some(source)) => source.to_string(),
        (None, None) => error.to_string(),
    }
}

/// The path with something added to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The processes whose working directory is this one: a PostgreSQL server and all its children have theirs in the
/// data directory. Processes of other users are seen by root alone.
fn processes_in(directory: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let inside = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory);
            // A shell that someone left there is no server.
            let server = inside
                && fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "postgres");
            server.then_some(pid)
        })
        .collect()
}

/// `pg_hba.conf`.
const ACCESS: &str = "\
# Written by matrix-stack at each start; changes are lost.
# TYPE  DATABASE     USER      METHOD
local   all          postgres  peer map=admin
local   replication  postgres  peer map=admin
local   synapse,mas  synapse   scram-sha-256
";

/// `pg_ident.conf`: the users of this machine who may be the superuser.
fn identities(users: &[&str]) -> String {
    let mut text = "# Written by matrix-stack at each start; changes are lost.\n".to_owned();
    for user in users {
        let _ = writeln!(text, "admin  \"{}\"  postgres", user.replace('"', "\"\""));
    }
    text
}

/// `postgresql.conf`.
///
/// The server shares the machine with Synapse's processes, so it takes less than the half of the memory that one
/// machine for PostgreSQL alone would give it. What is committed is on the disk: `fsync` and `synchronous_commit` stay on.
fn configuration(settings: &Settings, sockets: &Path) -> String {
    let memory_mib = settings.memory_bytes >> 20;
    let share = |divisor: u64, least: u64, most: u64| (memory_mib / divisor).clamp(least, most);
    let shared_buffers = share(16, 64, 4096);
    let cache = share(4, 256, 65_536);
    let maintenance = share(64, 32, 512);
    let wal = share(8, 512, 4096);
    let connections = settings.max_connections;
    // A list of directories in a string: quotes for the list inside quotes for the string.
    let sockets = sockets.display().to_string().replace('"', "\"\"").replace('\'', "''");
    format!(
        "\
# Written by matrix-stack at each start; changes are lost. For settings of your own use ALTER SYSTEM, which
# writes postgresql.auto.conf and overrides this file.

# Reached through the unix socket alone.
listen_addresses = ''
unix_socket_directories = '\"{sockets}\"'
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
max_connections = {connections}
superuser_reserved_connections = 3

# What is committed stays.
fsync = on
synchronous_commit = on
full_page_writes = on

# Memory, of {memory_mib} MiB that the machine has.
shared_buffers = {shared_buffers}MB
effective_cache_size = {cache}MB
work_mem = 8MB
maintenance_work_mem = {maintenance}MB
autovacuum_work_mem = {maintenance}MB
# Shared memory for the server's own use comes from the main segment: /dev/shm is tiny in many containers, and
# is emptied when a user logs out of some systems.
min_dynamic_shared_memory = 16MB

# Fewer and gentler checkpoints, a smaller log.
wal_compression = lz4
max_wal_size = {wal}MB
min_wal_size = 128MB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
max_wal_senders = 2

# Many short queries, on a solid-state disk as likely as not.
jit = off
random_page_cost = 1.1
effective_io_concurrency = 64
autovacuum_vacuum_scale_factor = 0.05
autovacuum_analyze_scale_factor = 0.02

# The log goes to stderr, and from there to the stack's logs.
logging_collector = off
log_line_prefix = '%m [%p] '
log_timezone = 'UTC'
timezone = 'UTC'
log_checkpoints = off
cluster_name = 'matrix-stack'

lc_messages = 'C'
default_text_search_config = 'pg_catalog.english'
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        Cluster {
            bin: "/nowhere/bin".into(),
            version: "17.10".to_owned(),
            data: "/nowhere/postgres".into(),
            sockets: "/nowhere/run/postgres".into(),
            user: None,
            launcher: Launcher::this_program(),
        }
    }

    #[test]
    fn memory_settings_follow_the_machine() {
        let lines = |gib: u64| {
            let settings = Settings { max_connections: 200, memory_bytes: gib << 30 };
            let text = configuration(&settings, Path::new("/data/run/postgres"));
            let wanted = [
                "shared_buffers",
                "effective_cache_size",
                "maintenance_work_mem",
                "max_wal_size",
                "max_connections",
            ];
            text.lines()
                .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lines(8),
            [
                "max_connections = 200",
                "shared_buffers = 512MB",
                "effective_cache_size = 2048MB",
                "maintenance_work_mem = 128MB",
                "max_wal_size = 1024MB"
            ]
        );
        assert_eq!(lines(0)[1], "shared_buffers = 64MB");
        assert_eq!(lines(1024)[1], "shared_buffers = 4096MB");
    }

    #[test]
    fn odd_paths_and_names_are_quoted() {
        let settings = Settings { max_connections: 100, memory_bytes: 1 << 30 };
        let text = configuration(&settings, Path::new("/da,ta/it's \"x\"/run"));
        assert!(text.contains(r#"unix_socket_directories = '"/da,ta/it''s ""x""/run"'"#), "{text}");
        assert!(
            identities(&["root", "a b"]).ends_with("admin  \"root\"  postgres\nadmin  \"a b\"  postgres\n")
        );
    }

    #[test]
    fn what_is_committed_stays() {
        let text = configuration(&Settings { max_connections: 100, memory_bytes: 1 << 30 }, Path::new("/x"));
        assert!(text.contains("\nfsync = on\n") && text.contains("\nsynchronous_commit = on\n"));
        assert!(text.contains("\nlisten_addresses = ''\n"));
    }

    #[test]
    fn a_log_is_explained() {
        let explain = |log: &str| cluster().explain(log);
        assert!(matches!(
            explain("[7] PANIC:  could not write to file \"pg_wal/xlogtemp.7\": No space left on device"),
            Some(PostgresError::DiskFull { .. })
        ));
        assert!(matches!(
            explain("[7] FATAL:  could not map anonymous shared memory: Cannot allocate memory\n[7] HINT:  less"),
            Some(PostgresError::Memory { detail }) if detail.ends_with("less")
        ));
        assert!(matches!(
            explain("[7] FATAL:  lock file \"postmaster.pid\" already exists"),
            Some(PostgresError::InUse { .. })
        ));
        assert!(matches!(
            explain("[7] FATAL:  data directory \"/x\" has wrong ownership"),
            Some(PostgresError::Permission { .. })
        ));
        assert!(matches!(
            explain("[7] PANIC:  could not locate a valid checkpoint record"),
            Some(PostgresError::Damaged { .. })
        ));
        assert!(matches!(explain("[7] FATAL:  could not open file"), Some(PostgresError::Failed { .. })));
        assert!(explain("[7] LOG:  database system is shut down").is_none());
        assert!(explain("[7] FATAL:  terminating connection due to administrator command").is_none());
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let mut cluster = cluster();
        cluster.sockets = PathBuf::from(format!("/{}", "x".repeat(120)));
        let settings = Settings { max_connections: 100, memory_bytes: 1 << 30 };
        assert!(matches!(cluster.prepare(&settings), Err(PostgresError::SocketPath { .. })));
    }
}
