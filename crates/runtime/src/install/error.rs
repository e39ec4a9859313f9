//! What can go wrong with an installation, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::python::Interpreter;
use crate::launch::{Finished, LaunchError, last_lines};

/// Why an installation failed. Nothing half-installed stays behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// There is no Python.
    #[error(
        "no Python found ({tried}): Synapse needs Python 3.10 to 3.14 with venv; on Debian and Ubuntu, `apt install python3 python3-venv`"
    )]
    NoPython {
        /// Where it was looked for.
        tried: String,
    },
    /// There are only Pythons that will not do.
    #[error(
        "no Python that will do: {found}. Synapse needs CPython 3.10 to 3.14; install one beside it (`python3.12`, say), and it will be found on PATH"
    )]
    UnsuitablePython {
        /// Which, and what about them.
        found: String,
    },
    /// The Python cannot make virtual environments.
    #[error("Python {version} at `{}` cannot make virtual environments: on Debian and Ubuntu, `apt install python3-venv`", .python.display())]
    NoVenv {
        /// The interpreter.
        python: PathBuf,
        /// Its version.
        version: String,
    },
    /// The package index cannot be reached.
    #[error(
        "cannot download {what}: the package index cannot be reached. The first start needs the network: check it, or set a \
         proxy (HTTPS_PROXY) or an index of yours (PIP_INDEX_URL), and start again\n{detail}"
    )]
    Network {
        /// What was being installed.
        what: String,
        /// What the installer said.
        detail: String,
    },
    /// A file is not the one that the lock names.
    #[error(
        "a downloaded package of {what} is not the one that this matrix-stack was made with, and was not installed: the package \
         index or a proxy serves another file. Clear its cache, or use another index (PIP_INDEX_URL)\n{detail}"
    )]
    HashMismatch {
        /// What was being installed.
        what: String,
        /// What the installer said.
        detail: String,
    },
    /// The index has no file for this platform.
    #[error(
        "{what} cannot be installed on this machine: there is no ready-made package for Python {python} here. They exist for Python \
         3.10 to 3.14 on Linux with glibc 2.34 or later (Debian 12, Ubuntu 22.04), x86-64 and ARM64\n{detail}"
    )]
    NoPackage {
        /// What was being installed.
        what: String,
        /// The version of Python.
        python: String,
        /// What the installer said.
        detail: String,
    },
    /// There is too little disk space.
    #[error("the disk of `{}` is too full: {free_mib} MiB are free, and installing takes {needed_mib} MiB. Free some, or choose another packages directory", .path.display())]
    DiskFull {
        /// The packages directory.
        path: PathBuf,
        /// What is free, in MiB.
        free_mib: u64,
        /// What is needed, in MiB.
        needed_mib: u64,
    },
    /// The disk filled up, or the user's quota.
    #[error("the disk of `{}` is full, or your quota on it. Free some space, or choose another packages directory", .path.display())]
    OutOfSpace {
        /// The packages directory.
        path: PathBuf,
    },
    /// The packages directory cannot be written.
    #[error("cannot write `{}`: {source}. Let this user write there, or choose another packages directory", .path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The user that runs PostgreSQL cannot reach the packages.
    #[error(
        "the user `{user}`, which runs PostgreSQL, may not enter `{}`: choose a packages directory elsewhere than `{}`, or let it \
         pass (`chmod o+x {}`)", .directory.display(), .packages_dir.display(), .directory.display()
    )]
    Closed {
        /// The directory that stops it.
        directory: PathBuf,
        /// The user.
        user: String,
        /// The packages directory.
        packages_dir: PathBuf,
    },
    /// An installer took too long.
    #[error("{what}: {command} was stopped after {} minutes. Check the network, and start again\n{detail}", .limit.as_secs() / 60)]
    TimedOut {
        /// What was being installed.
        what: String,
        /// The command.
        command: String,
        /// Its bound.
        limit: Duration,
        /// What it said.
        detail: String,
    },
    /// An installer failed for another reason.
    #[error("cannot install {what}: {command} {ending}. What it said may tell what to do\n{detail}")]
    Failed {
        /// What was being installed.
        what: String,
        /// The command.
        command: String,
        /// How it ended.
        ending: String,
        /// What it said.
        detail: String,
    },
    /// What was installed does not work.
    #[error(
        "{what} was downloaded but does not work on this machine, and was removed again: {detail}\nIf the message does not help, use packages of your own: `synapse.python`, `database.external` and `redis.external` in stack.yaml"
    )]
    Broken {
        /// What was installed.
        what: String,
        /// What failed.
        detail: String,
    },
    /// Another process has been installing for very long.
    #[error("another process has held `{}` for an hour: see which (`fuser {}`), end it, and start again", .path.display(), .path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The installation was asked to end.
    #[error("the installation was interrupted; start again to do it anew")]
    Cancelled,
    /// The user's own Python cannot run a stack.
    #[error("`synapse.python` in stack.yaml is `{}`: {reason}. Install matrix-synapse[redis] 1.157 or later and psycopg2 for it, or remove the setting", .python.display())]
    OwnPython {
        /// The interpreter.
        python: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A child could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl InstallError {
    /// An error of the file system, at this path.
    pub(super) fn from_io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::OutOfSpace { path: path.to_owned() }
            }
            _ => Self::NotWritable { path: path.to_owned(), source },
        }
    }
}

/// An installer that failed, with what it takes to say why.
pub(super) struct Failure<'a> {
    pub(super) what: &'a str,
    pub(super) command: &'a str,
    pub(super) limit: Duration,
    pub(super) interpreter: &'a Interpreter,
    pub(super) dir: &'a Path,
    pub(super) done: &'a Finished,
}

/// What `pip` and `uv` write when the disk is full: the C library's words, and the number in Rust's.
const FULL: &[&str] = &["No space left on device", "Disk quota exceeded", "(os error 28)", "(os error 122)"];
/// When a file has another hash than the lock says.
const HASH: &[&str] = &["DO NOT MATCH THE HASHES", "Hash mismatch for"];
/// When the index does not answer. `pip`'s last words are then that it found no version at all.
const NETWORK: &[&str] = &[
    "(from versions: none)",
    "Failed to establish a new connection",
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Read timed out",
    "ProxyError",
    "SSLError",
    "Connection refused",
    "Connection reset",
    "error sending request",
    "client error (Connect)",
    "dns error",
    "operation timed out",
    "Failed to download",
    "Failed to fetch",
    "Network is unreachable",
];
/// When there is no wheel for this platform.
const PLATFORM: &[&str] = &[
    "no usable wheels",
    "no wheels with a matching",
    "No matching distribution found",
    "has no usable wheel",
];
/// When Debian's Python lacks its `python3-venv` package.
const VENV: &[&str] = &[
    "ensurepip is not available",
    "No module named venv",
    "No module named ensurepip",
    "'ensurepip', '--upgrade'",
];

impl Failure<'_> {
    /// What the user should hear.
    pub(super) fn classify(&self) -> InstallError {
        let output = &self.done.output;
        let said = |signs: &[&str]| signs.iter().any(|sign| output.contains(sign));
        let what = self.what.to_owned();
        let detail = last_lines(output, 12);
        if said(FULL) {
            InstallError::OutOfSpace { path: self.dir.to_owned() }
        } else if said(HASH) {
            InstallError::HashMismatch { what, detail }
        } else if said(VENV) {
            InstallError::NoVenv {
                python: self.interpreter.path.clone(),
                version: self.interpreter.version(),
            }
        } else if said(NETWORK) {
            InstallError::Network { what, detail }
        } else if said(PLATFORM) {
            InstallError::NoPackage { what, python: self.interpreter.version(), detail }
        } else if self.done.status.is_none() {
            InstallError::TimedOut { what, command: self.command.to_owned(), limit: self.limit, detail }
        } else {
            InstallError::Failed {
                what,
                command: self.command.to_owned(),
                ending: self.done.ending(),
                detail,
            }
        }
    }
}
