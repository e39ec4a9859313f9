//! What the runtime does to a machine, done for real: processes, installations, PostgreSQL and Valkey.
//!
//! These tests have a `main` of their own, because the children that they start go through [`launch::intercept`], and
//! thus through this very program.

mod install;
mod launching;
mod postgres;
mod valkey;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use runtime::install::{InstallOptions, Packages};
use runtime::launch::{self, Launcher};

fn main() -> ExitCode {
    if let Some(code) = launch::intercept() {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["__parent", signal] => launching::be_parent(signal),
        ["__install", packages_dir] => install::be_installer(Path::new(packages_dir)),
        _ => {
            // Removed when this ends.
            let temporary = open_directory();
            TEMPORARY.set(temporary.path().to_owned()).expect("set once");
            let trials =
                [launching::trials(), install::trials(), postgres::trials(), valkey::trials()].concat_all();
            libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
        }
    }
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Trial>;
}

impl<const N: usize> ConcatAll for [Vec<Trial>; N] {
    fn concat_all(self) -> Vec<Trial> {
        self.into_iter().flatten().collect()
    }
}

/// A test that fails by panicking, like those of the standard harness.
fn trial(name: &str, run: fn()) -> Trial {
    Trial::test(name, move || {
        run();
        Ok(())
    })
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// A directory that every user can enter, and that goes away again.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("ms-").tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).expect("own directory");
    directory
}

static TEMPORARY: OnceLock<PathBuf> = OnceLock::new();

/// Where the tests' packages are kept from one run to the next. Where that directory is another user's, or PostgreSQL's
/// user could not enter it, they are kept for one run only.
fn packages_dir() -> PathBuf {
    let lasting = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let own = lasting.metadata().is_ok_and(|meta| meta.uid() == nix::unistd::Uid::effective().as_raw());
    let open = lasting.ancestors().all(|path| path.metadata().is_ok_and(|meta| meta.mode() & 0o001 != 0));
    if own && (open || !is_root()) {
        lasting.join("packages")
    } else {
        TEMPORARY.get().expect("set in main").join("packages")
    }
}

fn options() -> InstallOptions {
    InstallOptions::new(packages_dir(), Launcher::this_program())
}

/// The packages, installed once.
fn packages() -> &'static Packages {
    static PACKAGES: OnceLock<Packages> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        runtime::install::ensure(&options(), &mut |step| println!("{step}"))
            .unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Waits until something is so, and says how long that took.
fn wait_until(what: &str, limit: Duration, mut so: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    started.elapsed()
}

/// Whether a process runs; one that has ended and waits for its parent does not.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().next())
            .is_some_and(|state| state != "Z" && state != "X")
    })
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}
