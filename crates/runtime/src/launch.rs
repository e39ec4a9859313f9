//! How a child process is started, so that it never outlives this program and never keeps root's rights by accident.
//!
//! Between `fork` and `exec` a child must give up root, ask the kernel for a signal on its parent's death, and lead a
//! session of its own. Rust offers that moment to unsafe code alone. So a child first runs *this program* again, with
//! the hidden subcommand [`SUBCOMMAND`], which does those things from safe code and then becomes the wanted program.
//! The process id stays the same all along.
//!
//! # The thread matters
//!
//! The kernel sends the death signal when the *thread* that started the child ends, not when the process does
//! (`PR_SET_PDEATHSIG` in prctl(2)). Spawn from a thread that lives as long as the process: the main thread, say
//! inside `block_on`. Never from `spawn_blocking`, nor from a worker of a runtime, unless that thread itself waits for
//! the child.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, getppid, setgroups, setresgid, setresuid, setsid};

/// The hidden subcommand that [`intercept`] answers to.
pub const SUBCOMMAND: &str = "__exec";

/// The exit code of a child that [`intercept`] could not turn into the wanted program; its stderr says why.
pub const EXIT_NOT_STARTED: u8 = 126;

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Running as root, and there is no user to run PostgreSQL and Valkey as.
    #[error(
        "PostgreSQL refuses to run as root, and neither a user `postgres` nor `nobody` exists on this machine: \
         create one (`useradd --system postgres`), or run matrix-stack as an ordinary user"
    )]
    NoUnprivilegedUser,
    /// The user database could not be read.
    #[error("cannot look up the user `{name}`: {source}. Check /etc/passwd and /etc/nsswitch.conf")]
    Lookup {
        /// The user.
        name: String,
        /// What the system said.
        source: Errno,
    },
    /// The kernel refused one of the steps before the program starts.
    #[error(
        "cannot {step} before starting `{program}`: {source}. Check what confines matrix-stack (container, seccomp, AppArmor)"
    )]
    Setup {
        /// What was to be done.
        step: &'static str,
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// The program could not be executed.
    #[error(
        "cannot execute `{program}`: {source}. Check that it exists, and that its user may read it and enter its parent directories"
    )]
    Exec {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process that asked for the child is gone.
    #[error("not starting `{program}`: the process that asked for it has ended. Start the stack again")]
    ParentGone {
        /// The program.
        program: PathBuf,
    },
    /// The arguments of [`SUBCOMMAND`] are not those that [`command`] writes.
    #[error(
        "`{SUBCOMMAND}` is how matrix-stack starts its own children, not a command to use: {0}. See `matrix-stack help`"
    )]
    Usage(String),
}

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its user ID.
    pub uid: u32,
    /// Its primary group's ID.
    pub gid: u32,
}

/// The user that PostgreSQL and Valkey run as when this process is root: `postgres` where that exists, else `nobody`.
///
/// `None` when this process is not root; there is nothing to give up then, and nothing that could be given up.
/// `PostgreSQL` wants its user to have a name, so a bare number would not do.
pub fn unprivileged_user() -> Result<Option<User>, LaunchError> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        match nix::unistd::User::from_name(name) {
            Ok(Some(user)) if !user.uid.is_root() => {
                return Ok(Some(User { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
            Ok(_) => {}
            Err(source) => return Err(LaunchError::Lookup { name: name.to_owned(), source }),
        }
    }
    Err(LaunchError::NoUnprivilegedUser)
}

/// The program through which children are started: one whose `main` begins with [`intercept`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher(PathBuf);

impl Launcher {
    /// This very program, even if its file was replaced or removed since it was started.
    pub fn this_program() -> Self {
        Self(PathBuf::from("/proc/self/exe"))
    }

    /// Another program that calls [`intercept`].
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self(program.into())
    }
}

/// What to start, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    program: PathBuf,
    args: Vec<OsString>,
    user: Option<User>,
    directory: Option<PathBuf>,
    umask: Option<u32>,
    death_signal: Signal,
    clear_environment: bool,
    environment: Vec<(OsString, Option<OsString>)>,
}

impl Spec {
    /// A program without arguments that runs as this process's user, and is killed when this process ends.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            user: None,
            directory: None,
            umask: None,
            death_signal: Signal::SIGKILL,
            clear_environment: false,
            environment: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The user to become, with its primary group alone. `None` stays who this process is.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// The working directory. Default: this process's, or `/` for another user, who may not enter this process's.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// The file mode creation mask. Default: this process's.
    #[must_use]
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = Some(mask);
        self
    }

    /// The signal that the kernel sends when this process ends. Default: SIGKILL.
    #[must_use]
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.death_signal = signal;
        self
    }

    /// Starts from an empty environment instead of this process's.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.clear_environment = true;
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), Some(value.into())));
        self
    }

    /// Takes an environment variable away.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), None));
        self
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// The command that starts `spec` through `launcher`. Its standard streams are still to be set.
///
/// The child leads a session and a process group of its own (signal `-pid` to reach what it starts in turn), has no
/// blocked signal, and can gain no privileges (`no_new_privs`). Mind [the thread](self#the-thread-matters).
pub fn command(launcher: &Launcher, spec: &Spec) -> Command {
    command_below(launcher, spec, std::process::id().to_string())
}

/// Turns this process into `spec`, for the supervisor that started it: its end is the process's too. Returns only if that
/// fails.
pub fn become_program(spec: &Spec) -> LaunchError {
    let mut command = command_below(&Launcher::this_program(), spec, getppid().to_string());
    LaunchError::Exec { program: spec.program.clone(), source: command.exec() }
}

fn command_below(launcher: &Launcher, spec: &Spec, parent: String) -> Command {
    let mut command = Command::new(&launcher.0);
    command.arg0("matrix-stack").arg(SUBCOMMAND);
    command.arg("--parent").arg(parent);
    command.arg("--death-signal").arg(spec.death_signal.as_str());
    if let Some(user) = &spec.user {
        command.arg("--user").arg(format!("{}:{}", user.uid, user.gid));
    }
    if let Some(mask) = spec.umask {
        command.arg("--umask").arg(format!("{mask:o}"));
    }
    command.arg("--").arg(&spec.program).args(&spec.args);
    match (&spec.directory, &spec.user) {
        (Some(directory), _) => {
            command.current_dir(directory);
        }
        (None, Some(_)) => {
            command.current_dir("/");
        }
        (None, None) => {}
    }
    if spec.clear_environment {
        command.env_clear();
    }
    for (name, value) in &spec.environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Turns this process into the wanted program if it was started by [`command`].
///
/// To be called first in `main`, before any thread exists. Returns `None` in a process that was started otherwise, and
/// an exit code to return from `main` where the program could not be started. On success it does not return.
pub fn intercept() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != SUBCOMMAND {
        return None;
    }
    let error = match Request::parse(args) {
        Ok(request) => request.become_program(),
        Err(error) => error,
    };
    eprintln!("matrix-stack: {error}");
    Some(ExitCode::from(EXIT_NOT_STARTED))
}

/// The arguments of [`SUBCOMMAND`].
#[derive(Debug, PartialEq, Eq)]
struct Request {
    parent: i32,
    death_signal: Signal,
    user: Option<(u32, u32)>,
    umask: Option<u32>,
    program: PathBuf,
    args: Vec<OsString>,
}

impl Request {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, LaunchError> {
        let (mut parent, mut death_signal, mut user, mut umask) = (None, None, None, None);
        loop {
            let name = args.next().ok_or_else(|| LaunchError::Usage("`--` is missing".to_owned()))?;
            if name == "--" {
                break;
            }
            let value = args.next().unwrap_or_default();
            let bad = || LaunchError::Usage(format!("cannot use `{} {}`", name.display(), value.display()));
            let text = value.to_str().ok_or_else(bad)?;
            match name.to_str() {
                Some("--parent") => parent = Some(text.parse().map_err(|_| bad())?),
                Some("--death-signal") => death_signal = Some(Signal::from_str(text).map_err(|_| bad())?),
                Some("--user") => {
                    let (uid, gid) = text.split_once(':').ok_or_else(bad)?;
                    user = Some((uid.parse().map_err(|_| bad())?, gid.parse().map_err(|_| bad())?));
                }
                Some("--umask") => umask = Some(u32::from_str_radix(text, 8).map_err(|_| bad())?),
                _ => return Err(bad()),
            }
        }
        let missing = |what: &str| LaunchError::Usage(format!("{what} is missing"));
        Ok(Self {
            parent: parent.ok_or_else(|| missing("`--parent`"))?,
            death_signal: death_signal.ok_or_else(|| missing("`--death-signal`"))?,
            user,
            umask,
            program: args.next().ok_or_else(|| missing("the program"))?.into(),
            args: args.collect(),
        })
    }

    fn become_program(self) -> LaunchError {
        if let Err((step, source)) = self.set_up() {
            return LaunchError::Setup { step, program: self.program, source };
        }
        // Checked after the death signal was asked for: a parent that ended earlier would never trigger it.
        if getppid() != Pid::from_raw(self.parent) {
            return LaunchError::ParentGone { program: self.program };
        }
        let source = Command::new(&self.program).args(&self.args).exec();
        LaunchError::Exec { program: self.program, source }
    }

    fn set_up(&self) -> Result<(), (&'static str, Errno)> {
        if let Some(mask) = self.umask {
            umask(Mode::from_bits_truncate(mask));
        }
        match setsid() {
            // Already the leader of its group: someone else put it there.
            Ok(_) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(("start a session", errno)),
        }
        SigSet::empty().thread_set_mask().map_err(|e| ("unblock signals", e))?;
        if let Some((uid, gid)) = self.user {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            // Groups first: afterwards there is no right left to change them.
            setgroups(&[gid]).map_err(|e| ("give up root's groups", e))?;
            setresgid(gid, gid, gid).map_err(|e| ("change the group", e))?;
            setresuid(uid, uid, uid).map_err(|e| ("change the user", e))?;
        }
        prctl::set_no_new_privs().map_err(|e| ("give up gaining privileges", e))?;
        // After the change of user, which would clear it.
        prctl::set_pdeathsig(self.death_signal).map_err(|e| ("ask to die with the parent", e))
    }
}

/// The first directory on the way to `path` that `user` may not enter, judged by modes alone (access lists may say more).
fn closed_directory(path: &Path, user: &User) -> Option<PathBuf> {
    let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    parents.reverse();
    parents
        .into_iter()
        .find(|parent| {
            parent.metadata().is_ok_and(|meta| {
                let bit = match () {
                    () if meta.uid() == user.uid => 0o100,
                    () if meta.gid() == user.gid => 0o010,
                    () => 0o001,
                };
                meta.mode() & bit == 0
            })
        })
        .map(Path::to_owned)
}

/// The directory on the way to `path` that `user` cannot enter, if there is one. Where modes say no, access lists may
/// yet say yes, so a process of that user has a try.
pub(crate) fn closed_to(
    launcher: &Launcher,
    path: &Path,
    user: &User,
) -> Result<Option<PathBuf>, LaunchError> {
    let Some(directory) = closed_directory(path, user) else { return Ok(None) };
    let enter = Spec::new("/bin/sh").args(["-c", "cd \"$0\""]).arg(&directory).user(Some(user.clone()));
    Ok((!run(launcher, &enter, Duration::from_secs(10), || true)?.success()).then_some(directory))
}

/// What came of a program that [`run`] ran to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended; `None` if it was killed here, before its end.
    pub(crate) status: Option<ExitStatus>,
    /// The end of what it wrote to stdout and stderr, without the credentials in URLs.
    pub(crate) output: String,
}

impl Finished {
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it ended, in words.
    pub(crate) fn ending(&self) -> String {
        match self.status {
            None => "did not end in time".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with code {code}"),
                (_, Some(signal)) => format!("was ended by signal {signal}"),
                _ => "ended".to_owned(),
            },
        }
    }
}

/// How much of a program's output is kept: enough for any error message, and for the warnings before it.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// How often [`run`] looks whether the program has ended, and tells `tick`.
const TICK: Duration = Duration::from_millis(100);

/// Runs a program to its end, for `limit` at most, without input. `tick` is called about ten times a second, and says
/// whether to go on.
pub(crate) fn run(
    launcher: &Launcher,
    spec: &Spec,
    limit: Duration,
    mut tick: impl FnMut() -> bool,
) -> Result<Finished, LaunchError> {
    let failed = |source| LaunchError::Exec { program: spec.program.clone(), source };
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    let mut command = command(launcher, spec);
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    let mut child = command.spawn().map_err(failed)?;
    // The command holds the writing ends; without this the reader would never see the end.
    drop(command);

    let (chunks, received) = mpsc::channel::<Vec<u8>>();
    // Detached on purpose: a grandchild that keeps the pipe open must not keep us.
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(size) = reader.read(&mut buffer) {
            if size == 0 || chunks.send(buffer[..size].to_vec()).is_err() {
                break;
            }
        }
    });

    let deadline = Instant::now() + limit;
    let mut output = Vec::new();
    let mut open = true;
    let status = loop {
        if open {
            match received.recv_timeout(TICK) {
                Ok(chunk) => append(&mut output, &chunk),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => open = false,
            }
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        let wanted = tick();
        if let Some(status) = child.try_wait().map_err(failed)? {
            break Some(status);
        }
        if !wanted || Instant::now() >= deadline {
            stop(child.id());
            child.wait().map_err(failed)?;
            break None;
        }
    };
    // What is still on its way; not waited for longer than this, see above.
    while open {
        match received.recv_timeout(TICK) {
            Ok(chunk) => append(&mut output, &chunk),
            Err(_) => open = false,
        }
    }
    Ok(Finished { status, output: without_credentials(&String::from_utf8_lossy(&output)) })
}

/// Kills a child with everything that it started.
fn stop(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let pid = Pid::from_raw(pid);
        if killpg(pid, Signal::SIGKILL).is_err() {
            // It did not get as far as having its own group; an error here means that it is gone already.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn append(output: &mut Vec<u8>, chunk: &[u8]) {
    output.extend_from_slice(chunk);
    if output.len() > 2 * OUTPUT_LIMIT {
        output.drain(..output.len() - OUTPUT_LIMIT);
    }
}

/// The text with `user:password@` taken out of every URL.
fn without_credentials(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let authority = after
            .find(|c: char| c == '/' || c.is_whitespace() || c == '"' || c == '\'')
            .unwrap_or(after.len());
        rest = match after[..authority].rfind('@') {
            Some(end) => {
                clean.push_str("***@");
                &after[end + 1..]
            }
            None => after,
        };
    }
    clean.push_str(rest);
    clean
}

/// The last lines of a text, for an error message.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Finds a program as the shell would.
pub(crate) fn find_programs(name: &str, path: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .filter(|file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Request, LaunchError> {
        Request::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn a_command_is_read_back_as_it_was_written() {
        let user = User { name: "postgres".to_owned(), uid: 101, gid: 104 };
        let spec = Spec::new("/bin/true")
            .args(["--user", "--"])
            .user(Some(user))
            .umask(0o022)
            .death_signal(Signal::SIGQUIT);
        let command = command(&Launcher::this_program(), &spec);
        let args: Vec<OsString> = command.get_args().map(OsStr::to_owned).collect();
        assert_eq!(args[0], SUBCOMMAND);
        assert_eq!(
            Request::parse(args.into_iter().skip(1)).expect("its own arguments"),
            Request {
                parent: i32::try_from(std::process::id()).expect("a process id"),
                death_signal: Signal::SIGQUIT,
                user: Some((101, 104)),
                umask: Some(0o022),
                program: "/bin/true".into(),
                args: vec!["--user".into(), "--".into()],
            }
        );
        assert_eq!(command.get_current_dir(), Some(Path::new("/")));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for args in [
            &["--parent", "1"][..],
            &["--parent", "1", "--death-signal", "SIGKILL", "--"],
            &["--parent", "x", "--death-signal", "SIGKILL", "--", "true"],
            &["--parent", "1", "--death-signal", "SIGNOT", "--", "true"],
            &["--parent", "1", "--death-signal", "SIGKILL", "--user", "0", "--", "true"],
            &["--parent", "1", "--death-signal", "SIGKILL", "--colour", "red", "--", "true"],
            &["--death-signal", "SIGKILL", "--", "true"],
        ] {
            assert!(matches!(parse(args), Err(LaunchError::Usage(_))), "{args:?}");
        }
    }

    #[test]
    fn credentials_are_taken_out_of_urls() {
        assert_eq!(
            without_credentials("get https://bob:s3c@ret@host/simple, then http://host/a@b and ://"),
            "get https://***@host/simple, then http://host/a@b and ://"
        );
    }

    #[test]
    fn the_last_lines_are_the_last_that_say_something() {
        assert_eq!(last_lines("a\n\nb\nc\n\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn a_closed_directory_is_found() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("inner");
        std::fs::create_dir(&inner).expect("a directory");
        let stranger = User { name: "stranger".to_owned(), uid: 4_000_000, gid: 4_000_000 };
        for (mode, closed) in [(0o700, true), (0o711, false)] {
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(mode))
                .expect("own directory");
            let found = closed_directory(&inner.join("file"), &stranger);
            assert_eq!(found.as_deref() == Some(root.path()), closed, "{mode:o}: {found:?}");
            std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o755)).expect("own directory");
        }
    }
}
