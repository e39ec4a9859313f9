//! What a stack's data directory remembers: who runs it, what was applied last, and what a killed supervisor left behind.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::{Address, Instance, Layout, Role, Stream, Topology};
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::proc::{self, ProcessId};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another `up` runs on it.
    #[error(
        "a stack runs on {} already{}: see `matrix-stack status`, stop it with `matrix-stack down`, or use another `data_dir`",
        .data_dir.display(),
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Running {
        /// The data directory.
        data_dir: PathBuf,
        /// The supervisor's process, if it left its number.
        pid: Option<u32>,
    },
    /// A file or directory cannot be made, read or written.
    #[error("cannot {action} {}: {source}; {}", .path.display(), mend(.source))]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The data directory belongs to somebody else.
    #[error("{} belongs to user {owner}, and this is user {own}: run matrix-stack as that user, or use another `data_dir`", .path.display())]
    Owner {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// The data directory was made by a newer matrix-stack.
    #[error(
        "{} was written by a newer matrix-stack (format {found}, this one knows {known}): use that version or a newer one",
        .path.display()
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// A process of a stack that was killed does not go away.
    #[error(
        "process {pid} ({name}) of an earlier run does not end: end it with `kill -9 {pid}`, then start again"
    )]
    Leftover {
        /// The process's number.
        pid: u32,
        /// Its name in the stack.
        name: String,
    },
}

fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: free some space, then start again"
        }
        io::ErrorKind::PermissionDenied => "make it writable for this user, or use another `data_dir`",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: use another `data_dir`",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "something else has that name: move it away"
        }
        _ => "check the path, or use another `data_dir`",
    }
}

pub(crate) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::File { action, path: path.to_owned(), source }
}

/// Makes the directories. Those that PostgreSQL's and Valkey's unprivileged user passes through are open for passing
/// if we are root; all else is for us alone.
pub(crate) fn prepare_directories(layout: &Layout, media: &Path) -> Result<(), StateError> {
    let own = nix::unistd::geteuid().as_raw();
    let pass = if own == 0 { 0o711 } else { 0o700 };
    let data_dir = layout.data_dir();
    make_directory(data_dir, pass)?;
    let owner = fs::metadata(data_dir).map_err(file_error("look at", data_dir))?.uid();
    if owner != own {
        return Err(StateError::Owner { path: data_dir.to_owned(), owner, own });
    }
    make_directory(&layout.sockets(), pass)?;
    for private in [layout.config(), layout.logs(), layout.companions()] {
        make_directory(&private, 0o700)?;
    }
    // A media store elsewhere may be shared with others on purpose: its mode is theirs.
    if media.starts_with(data_dir) {
        make_directory(media, 0o700)
    } else {
        fs::create_dir_all(media).map_err(file_error("make", media))
    }
}

pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), StateError> {
    if let Some(parent) = path.parent() {
        // Parents are everybody's way: they get the usual mode.
        fs::create_dir_all(parent).map_err(file_error("make", parent))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        result => result.map_err(file_error("make", path))?,
    }
    // The umask had its say above, and an older directory may be open wider than it should.
    let metadata = fs::metadata(path).map_err(file_error("look at", path))?;
    if metadata.permissions().mode() & 0o777 != mode && metadata.uid() == nix::unistd::geteuid().as_raw() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(file_error("set the mode of", path))?;
    }
    Ok(())
}

/// The exclusive right to run the stack in a data directory, until it is dropped or this process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

fn lock_path(layout: &Layout) -> PathBuf {
    layout.data_dir().join("lock")
}

impl Lock {
    /// Takes it, or says who has it.
    pub(crate) fn acquire(layout: &Layout) -> Result<Self, StateError> {
        let path = lock_path(layout);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(file_error("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let write = |file: &mut File| {
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())
                };
                write(&mut lock).map_err(file_error("write", &path))?;
                Ok(Self(lock))
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                Err(StateError::Running { data_dir: layout.data_dir().to_owned(), pid })
            }
            Err((_, errno)) => Err(file_error("lock", &path)(errno.into())),
        }
    }

    /// Takes a share of it, for this process and what it becomes: as long as one of those runs, nobody can take the
    /// whole.
    pub(crate) fn share(layout: &Layout) -> Result<(), StateError> {
        let path = lock_path(layout);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(file_error("open", &path))?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => {
                fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::empty()))
                    .map_err(|errno| file_error("lock", &path)(errno.into()))?;
                // It ends with the process.
                std::mem::forget(lock);
                Ok(())
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(StateError::Running { data_dir: layout.data_dir().to_owned(), pid: None })
            }
            Err((_, errno)) => Err(file_error("lock", &path)(errno.into())),
        }
    }

    /// Whether a stack runs in the data directory.
    pub(crate) fn is_held(layout: &Layout) -> bool {
        let Ok(file) = File::open(lock_path(layout)) else { return false };
        // The lock that this takes for a moment, if nobody has it, is shared: it disturbs no other such look.
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
    }
}

/// The path with something added at its very end.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Writes a file that is for us alone, whole or not at all; leaves it untouched where it holds this already.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> Result<(), StateError> {
    write_file(path, contents, 0o600)
}

/// Writes a file, whole or not at all; leaves it untouched where it holds this already. Processes that write the same file
/// at once do not come in each other's way.
pub fn write_file(path: &Path, contents: &[u8], mode: u32) -> Result<(), StateError> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    let new = with_suffix(path, &format!(".new-{}", std::process::id()));
    let write = || {
        // One that a killed process of the same number left.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(contents)?;
        fs::rename(&new, path)
    };
    write().map_err(file_error("write", path))
}

/// The part of `state.json` that every format has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The format of `state.json`.
const FORMAT: u32 = 1;

/// What was applied when all was healthy the last time: `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    format: u32,
    /// The version of Synapse, whose main process migrates the database.
    pub(crate) synapse: String,
    /// The lists of processes that every process must agree on.
    pub(crate) agreement: Agreement,
    /// Whether the first admin user exists.
    pub(crate) admin: bool,
    /// Whether accounts are those of the Matrix Authentication Service.
    #[serde(default)]
    pub(crate) mas: bool,
}

/// Who shares which work: stream writers, and the other lists that all processes must agree on.
pub(crate) type Agreement = BTreeMap<String, Vec<String>>;

/// The agreement of a topology.
pub(crate) fn agreement(topology: &Topology) -> Agreement {
    let names = |instances: Vec<&model::Instance>| instances.iter().map(|i| i.name.clone()).collect();
    let streams =
        Stream::ALL.into_iter().map(|s| (format!("stream {s}"), names(topology.writers(s).collect())));
    let others =
        [Role::Pusher, Role::FederationSender, Role::Background, Role::UserDir, Role::MediaBackground]
            .into_iter()
            .map(|role| (role.to_string(), names(topology.serving(role).1)));
    streams.chain(others).collect()
}

impl Applied {
    /// What is applied now.
    pub(crate) fn new(synapse: String, agreement: Agreement, admin: bool, mas: bool) -> Self {
        Self { format: FORMAT, synapse, agreement, admin, mas }
    }

    fn path(layout: &Layout) -> PathBuf {
        layout.data_dir().join("state.json")
    }

    /// What was applied last; nothing if no start was ever finished, or the file is unreadable (which only costs time).
    pub(crate) fn load(layout: &Layout) -> Result<Self, StateError> {
        let path = Self::path(layout);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(file_error("read", &path)(error)),
        };
        match serde_json::from_slice::<Format>(&text) {
            Ok(Format { format: found }) if found > FORMAT => {
                Err(StateError::Newer { path, found, known: FORMAT })
            }
            _ => Ok(serde_json::from_slice(&text).unwrap_or_default()),
        }
    }

    /// Remembers it.
    pub(crate) fn save(&self, layout: &Layout) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_private(&Self::path(layout), &text)
    }
}

/// The processes that run, so that a later `up` can end what a killed supervisor left: `processes.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Records {
    /// Process numbers mean nothing after the machine was started anew.
    boot: String,
    processes: Vec<Record>,
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its name in the stack.
    pub(crate) name: String,
    /// Its number and start.
    pub(crate) id: ProcessId,
    /// Texts of which its command line holds at least one.
    pub(crate) marks: Vec<String>,
    /// The number of the signal that asks it to stop.
    pub(crate) stop: i32,
}

impl Record {
    /// Whether the process lives, and is without doubt the one that was recorded.
    fn is_ours(&self) -> bool {
        self.id.command_line().is_some_and(|line| self.marks.iter().any(|mark| line.contains(mark.as_str())))
    }
}

impl Records {
    fn path(layout: &Layout) -> PathBuf {
        layout.data_dir().join("processes.json")
    }

    /// The records of what runs now.
    pub(crate) fn new(processes: Vec<Record>) -> Self {
        Self { boot: proc::boot_id(), processes }
    }

    /// Writes them.
    pub(crate) fn save(&self, layout: &Layout) -> Result<(), StateError> {
        write_private(&Self::path(layout), &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads those that an earlier run left.
    pub(crate) fn load(layout: &Layout) -> Self {
        fs::read(Self::path(layout))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Ends every recorded process that still lives and is ours: asks first, then kills. Blocks for as long as that
    /// takes. Returns the names of those that it ended.
    pub(crate) fn sweep(&self, patience: Duration) -> Result<Vec<String>, StateError> {
        if self.boot != proc::boot_id() {
            return Ok(Vec::new());
        }
        let mut left: Vec<&Record> = self.processes.iter().filter(|record| record.is_ours()).collect();
        let names = left.iter().map(|record| record.name.clone()).collect();
        for record in &left {
            record.id.signal(Signal::try_from(record.stop).unwrap_or(Signal::SIGTERM));
        }
        for kill in [false, true] {
            let deadline = Instant::now() + patience;
            while !left.is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
                left.retain(|record| record.id.alive());
            }
            if !kill {
                for record in &left {
                    record.id.signal(Signal::SIGKILL);
                }
            }
        }
        match left.first() {
            Some(record) => Err(StateError::Leftover { pid: record.id.pid, name: record.name.clone() }),
            None => Ok(names),
        }
    }
}

/// Removes the sockets that a process which was killed left, for Twisted does not listen on those that are there.
pub(crate) fn remove_own_sockets(instance: &Instance) {
    instance.client.iter().chain([&instance.private]).for_each(remove_socket);
}

/// Removes what an earlier run left at an address.
pub(crate) fn remove_socket(address: &Address) {
    if let Address::Unix { path } = address {
        // What cannot be removed is in the way of the bind, whose error is in the process's log.
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(with_suffix(path, ".lock"));
    }
}

/// Removes the sockets, and Twisted's lock files beside them, that an earlier run left.
pub(crate) fn remove_sockets(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if is_socket || path.to_string_lossy().ends_with(".sock.lock") {
            // What cannot be removed is in the way of a bind, whose error says so.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Preset, Stack};
    use std::os::unix::net::UnixListener;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("stack"));
        (dir, layout)
    }

    #[test]
    fn directories_are_private_and_made_so_again() {
        let (_dir, layout) = layout();
        let media = layout.data_dir().join("media");
        prepare_directories(&layout, &media).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&layout.logs()), 0o700);
        assert_eq!(mode(layout.data_dir()) & 0o066, 0);
        fs::set_permissions(layout.config(), fs::Permissions::from_mode(0o755)).unwrap();
        prepare_directories(&layout, &media).unwrap();
        assert_eq!(mode(&layout.config()), 0o700);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let (_dir, layout) = layout();
        fs::write(layout.data_dir(), "x").unwrap();
        let error = prepare_directories(&layout, &layout.data_dir().join("media")).unwrap_err().to_string();
        assert!(error.contains("stack") && error.contains("move it away"), "{error}");
    }

    #[test]
    fn only_one_has_the_lock() {
        let (_dir, layout) = layout();
        fs::create_dir_all(layout.data_dir()).unwrap();
        assert!(!Lock::is_held(&layout));
        let lock = Lock::acquire(&layout).unwrap();
        assert!(Lock::is_held(&layout));
        let error = Lock::acquire(&layout).unwrap_err();
        assert!(
            matches!(&error, StateError::Running { pid: Some(pid), .. } if *pid == std::process::id()),
            "{error}"
        );
        drop(lock);
        assert!(!Lock::is_held(&layout));
        drop(Lock::acquire(&layout).unwrap());
    }

    #[test]
    fn what_was_applied_is_remembered() {
        let (_dir, layout) = layout();
        fs::create_dir_all(layout.data_dir()).unwrap();
        assert_eq!(Applied::load(&layout).unwrap(), Applied::default());
        let topology = model::plan(
            &Stack::new("example.org".to_owned().try_into().unwrap()),
            Path::new("/run/x"),
            Preset::Full,
        )
        .unwrap();
        let applied = Applied::new("1.163.2".into(), agreement(&topology), true, false);
        applied.save(&layout).unwrap();
        assert_eq!(Applied::load(&layout).unwrap(), applied);
        assert_eq!(applied.agreement["stream events"], ["event_persister_1", "event_persister_2"]);
        fs::write(Applied::path(&layout), r#"{"format": 99}"#).unwrap();
        assert!(matches!(Applied::load(&layout), Err(StateError::Newer { found: 99, .. })));
        fs::write(Applied::path(&layout), "torn").unwrap();
        assert_eq!(Applied::load(&layout).unwrap(), Applied::default());
    }

    #[test]
    fn only_what_is_ours_is_ended() {
        let mut child = std::process::Command::new("sleep").arg("300").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        // The kernel sets the arguments a moment after it lets the parent go on.
        while !id.command_line().is_some_and(|line| line.contains("sleep 300")) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let record = |id, mark: &str| Record {
            name: "x".into(),
            id,
            marks: vec![mark.into()],
            stop: Signal::SIGTERM as i32,
        };
        let patience = Duration::from_secs(5);
        let strangers = [
            record(ProcessId { started: id.started + 1, ..id }, "sleep 300"), // the number was given away again
            record(id, "postgres"),                                           // another program
        ];
        assert!(Records::new(strangers.to_vec()).sweep(patience).unwrap().is_empty());
        let other_boot = Records { boot: "another".into(), processes: vec![record(id, "sleep 300")] };
        assert!(other_boot.sweep(patience).unwrap().is_empty());
        assert!(id.alive());
        assert_eq!(Records::new(vec![record(id, "sleep 300")]).sweep(patience).unwrap(), ["x"]);
        assert!(!id.alive());
        child.wait().unwrap();
    }

    #[test]
    fn records_survive_the_disk() {
        let (_dir, layout) = layout();
        fs::create_dir_all(layout.data_dir()).unwrap();
        assert_eq!(Records::load(&layout), Records::default());
        let id = ProcessId::of(std::process::id()).unwrap();
        let records = Records::new(vec![Record { name: "x".into(), id, marks: vec!["y".into()], stop: 15 }]);
        records.save(&layout).unwrap();
        assert_eq!(Records::load(&layout), records);
    }

    #[test]
    fn stale_sockets_and_their_locks_go() {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join("a.sock")).unwrap());
        std::os::unix::fs::symlink("123", dir.path().join("a.sock.lock")).unwrap();
        fs::write(dir.path().join("keep"), "").unwrap();
        remove_sockets(dir.path());
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["keep"]);
    }
}
