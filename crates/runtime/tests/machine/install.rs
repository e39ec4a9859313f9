//! Installing for real, and each way in which it can fail.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use runtime::install::{self, BOOTSTRAP, E2E, InstallError, InstallOptions, Lock, SYNAPSE, Step};
use runtime::launch::Launcher;

use crate::{alive, is_root, open_directory, options, packages, packages_dir, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "install::a_killed_installation_is_cleared_up_and_done_again",
            a_killed_installation_is_cleared_up_and_done_again,
        ),
        trial("install::the_second_start_needs_nothing", the_second_start_needs_nothing),
        trial("install::two_at_once_install_once", two_at_once_install_once),
        trial("install::a_cancelled_installation_ends_at_once", a_cancelled_installation_ends_at_once),
        trial("install::a_python_of_ones_own_is_checked", a_python_of_ones_own_is_checked),
        trial("install::no_python", no_python),
        trial("install::too_old_a_python", too_old_a_python),
        trial("install::a_python_without_venv", a_python_without_venv),
        trial("install::no_network_for_the_installer", no_network_for_the_installer),
        trial("install::no_network_for_the_packages", no_network_for_the_packages),
        trial("install::a_wrong_hash_of_the_installer", a_wrong_hash_of_the_installer),
        trial("install::a_wrong_hash_of_a_package", a_wrong_hash_of_a_package),
        trial("install::no_package_for_this_machine", no_package_for_this_machine),
        trial("install::a_full_disk", a_full_disk),
        trial("install::a_directory_that_cannot_be_written", a_directory_that_cannot_be_written),
        trial("install::a_directory_that_cannot_be_entered", a_directory_that_cannot_be_entered),
    ]
}

/// The installer of the killing test.
pub(crate) fn be_installer(packages_dir: &Path) -> ExitCode {
    let options = InstallOptions::new(packages_dir, Launcher::this_program());
    let done = install::ensure(&options, &mut |step| println!("{step}"));
    if let Err(error) = &done {
        println!("{error}");
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A place that nothing listens on.
const NOWHERE: &str = "http://127.0.0.1:9/simple";

fn at(directory: &Path) -> InstallOptions {
    InstallOptions::new(directory, Launcher::this_program())
}

fn with(mut options: InstallOptions, variables: &[(&str, &str)]) -> InstallOptions {
    options.environment.extend(variables.iter().map(|(name, value)| (name.into(), value.into())));
    options
}

fn ensure(options: &InstallOptions) -> Result<install::Packages, InstallError> {
    install::ensure(options, &mut |_| ())
}

/// The names in a packages directory, but for the lock file.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    names.filter(|name| name != ".lock").collect()
}

/// A lock in which every hash of one package is another.
fn tampered(lock: Lock, package: &str) -> Lock {
    let mut inside = false;
    let lines = lock.text.lines().map(|line| {
        if !line.starts_with(' ') {
            inside = line.starts_with(package);
        }
        match line.split_once("--hash=sha256:") {
            Some((before, hash)) if inside => {
                let digit = if hash.starts_with('0') { '1' } else { '0' };
                format!("{before}--hash=sha256:{digit}{}\n", &hash[1..])
            }
            _ => format!("{line}\n"),
        }
    });
    Lock { text: lines.collect::<String>().leak(), ..lock }
}

fn processes_below(directory: &Path) -> usize {
    let needle = directory.to_str().expect("text").to_owned();
    let entries = fs::read_dir("/proc").expect("proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id() && alive(*pid))
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
        })
        .count()
}

fn a_killed_installation_is_cleared_up_and_done_again() {
    let directory = open_directory();
    let dir = directory.path().join("packages");
    let mut installer = Command::new(std::env::current_exe().expect("own path"));
    let mut installer =
        installer.arg("__install").arg(&dir).stdout(Stdio::piped()).spawn().expect("an installer");
    let lines = BufReader::new(installer.stdout.take().expect("a pipe")).lines();
    let unpacking =
        lines.map_while(Result::ok).find(|line| line.contains(" of ") && line.contains("packages"));
    assert!(unpacking.is_some(), "the installation ended before it could be killed");
    installer.kill().expect("own child");
    installer.wait().expect("own child");
    wait_until("the end of all installers", Duration::from_secs(5), || processes_below(&dir) == 0);
    let half = names(&dir).into_iter().find(|name| name.starts_with("synapse-")).expect("a half-made tree");
    assert!(!dir.join(&half).join("complete.json").exists());
    fs::write(dir.join(&half).join("leftover"), "").expect("own directory");
    fs::write(dir.join("notes.txt"), "not ours to remove").expect("own directory");

    // The packages must be readable for PostgreSQL's user whatever the umask says.
    let mut steps = Vec::new();
    let found =
        install::ensure(&at(&dir), &mut |step| steps.push(step)).unwrap_or_else(|error| panic!("{error}"));
    assert!(!dir.join(&half).join("leftover").exists());
    assert!(!dir.join(".cache").exists());
    assert!(dir.join("notes.txt").exists());
    assert_eq!(found.synapse_version, SYNAPSE.version("matrix-synapse").expect("a version"));
    assert!(found.postgres_version.starts_with("17."), "{found:?}");
    assert!(matches!(steps.first(), Some(Step::Python { .. })), "{steps:?}");
    assert!(matches!(steps.last(), Some(Step::Installed { .. })), "{steps:?}");
    assert_all_can_read(&dir);
    let compiled = found.python.parent().and_then(Path::parent).expect("a tree").join("lib");
    assert!(contains_bytecode(&compiled), "no bytecode in {}", compiled.display());
}

fn assert_all_can_read(path: &Path) {
    let meta = fs::symlink_metadata(path).expect("a file");
    if meta.is_dir() {
        assert_eq!(meta.mode() & 0o555, 0o555, "{}", path.display());
        for entry in fs::read_dir(path).expect("a directory") {
            assert_all_can_read(&entry.expect("an entry").path());
        }
    } else if meta.is_file() && path.file_name().is_some_and(|name| name != ".lock") {
        assert_eq!(meta.mode() & 0o444, 0o444, "{}", path.display());
    }
}

fn contains_bytecode(lib: &Path) -> bool {
    let pythons = fs::read_dir(lib).expect("a directory").filter_map(Result::ok);
    pythons.map(|python| python.path().join("site-packages/synapse/__pycache__")).any(|cache| {
        fs::read_dir(cache).is_ok_and(|mut files| {
            files.any(|file| file.is_ok_and(|f| f.path().extension().is_some_and(|e| e == "pyc")))
        })
    })
}

fn the_second_start_needs_nothing() {
    let first = packages();
    // Neither a program to run nor an index to ask.
    let offline =
        with(options(), &[("PATH", "/nowhere"), ("PIP_INDEX_URL", NOWHERE), ("UV_DEFAULT_INDEX", NOWHERE)]);
    let started = Instant::now();
    let mut steps = Vec::new();
    let second = install::ensure(&offline, &mut |step| steps.push(step)).expect("what is there");
    let took = started.elapsed();
    assert_eq!(&second, first);
    assert!(steps.is_empty(), "{steps:?}");
    assert!(took < Duration::from_millis(200), "{took:?}");
}

fn two_at_once_install_once() {
    packages();
    let directory = open_directory();
    // A small lock, in a directory that already has the installer.
    copy_installer(directory.path());
    let options = at(directory.path());
    let steps = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut note = |step| steps.lock().expect("no panic").push(step);
                let python = install::ensure_extra(&options, &E2E, &mut note)
                    .unwrap_or_else(|error| panic!("{error}"));
                assert!(python.exists());
            });
        }
    });
    let steps = steps.into_inner().expect("no panic");
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Installed { .. })).count(), 1, "{steps:?}");
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Waiting)).count(), 1, "{steps:?}");
}

fn a_cancelled_installation_ends_at_once() {
    let directory = open_directory();
    let options = at(directory.path());
    let started = Mutex::new(None);
    // Cancelled once `pip` is at work.
    let mut note = |step| {
        if matches!(step, Step::Installing { .. }) {
            *started.lock().expect("no panic") = Some(Instant::now());
            drop(options.cancel_on_drop());
        }
    };
    let error = install::ensure(&options, &mut note).expect_err("cancelled");
    assert!(matches!(error, InstallError::Cancelled), "{error}");
    let took = started.into_inner().expect("no panic").expect("it was started").elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(names(directory.path()), [""; 0]);
    assert_eq!(processes_below(directory.path()), 0);
}

/// Gives a packages directory the installer of the shared one. It works from there: `uv` is one program that knows
/// nothing of its place.
fn copy_installer(directory: &Path) {
    packages();
    let name =
        names(&packages_dir()).into_iter().find(|name| name.starts_with("bootstrap-")).expect("an installer");
    let copied =
        Command::new("cp").arg("-a").arg(packages_dir().join(name)).arg(directory).status().expect("cp");
    assert!(copied.success());
}

fn a_python_of_ones_own_is_checked() {
    let launcher = Launcher::this_program();
    let version = install::check_python(&packages().python, &launcher).expect("the installed one");
    assert_eq!(version, packages().synapse_version);
    let error = install::check_python(Path::new("/bin/false"), &launcher).expect_err("not a Python");
    assert!(matches!(error, InstallError::OwnPython { .. }), "{error}");
    let error = install::check_python(Path::new("/nowhere/python"), &launcher).expect_err("not there");
    assert!(error.to_string().contains("/nowhere/python"), "{error}");
}

fn no_python() {
    let directory = open_directory();
    let error = ensure(&with(at(directory.path()), &[("PATH", "/nowhere")])).expect_err("no Python");
    assert!(matches!(error, InstallError::NoPython { .. }), "{error}");
    assert!(error.to_string().contains("apt install python3"), "{error}");
    assert_eq!(names(directory.path()), [""; 0]);
}

/// A directory with a `python3` that is this script.
fn fake_python(directory: &Path, script: &str) -> String {
    let bin = directory.join("bin");
    fs::create_dir(&bin).expect("a directory");
    let file = bin.join("python3");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("a file");
    fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("own file");
    bin.to_str().expect("text").to_owned()
}

fn too_old_a_python() {
    let directory = open_directory();
    let answer = r#"{"version": [3, 9, 2], "implementation": "cpython", "free_threaded": false, "bits": 64, "venv": true}"#;
    let bin = fake_python(directory.path(), &format!("echo '{answer}'"));
    let packages = directory.path().join("packages");
    let error = ensure(&with(at(&packages), &[("PATH", &bin)])).expect_err("too old");
    assert!(
        matches!(&error, InstallError::UnsuitablePython { found } if found.contains("(3.9.2) is too old")),
        "{error}"
    );
    assert_eq!(names(&packages), [""; 0]);
}

fn a_python_without_venv() {
    let directory = open_directory();
    // The installed Python, but with `ensurepip` hidden, as it is where Debian's python3-venv is not installed.
    let python = packages().python.display();
    let hide = "import sys, importlib.util as u; f = u.find_spec; \
                u.find_spec = lambda n: None if n == \"ensurepip\" else f(n); exec(sys.argv[-1])";
    let bin = fake_python(directory.path(), &format!("exec {python} -c '{hide}' \"$@\""));
    let packages = directory.path().join("packages");
    let error = ensure(&with(at(&packages), &[("PATH", &bin)])).expect_err("no venv");
    assert!(matches!(&error, InstallError::NoVenv { .. }), "{error}");
    assert!(error.to_string().contains("apt install python3-venv"), "{error}");
    assert_eq!(names(&packages), [""; 0]);
}

/// Neither a cache nor local files: everything must come from the index.
fn only(index: &str) -> [(&str, &str); 5] {
    [
        ("PIP_INDEX_URL", index),
        ("PIP_FIND_LINKS", ""),
        ("PIP_NO_CACHE_DIR", "1"),
        ("PIP_RETRIES", "0"),
        ("UV_HTTP_RETRIES", "0"),
    ]
}

fn no_network_for_the_installer() {
    let directory = open_directory();
    let error = ensure(&with(at(directory.path()), &only(NOWHERE))).expect_err("no network");
    assert!(matches!(error, InstallError::Network { .. }), "{error}");
    assert!(error.to_string().contains("needs the network"), "{error}");
    assert_eq!(names(directory.path()), [""; 0]);
}

fn no_network_for_the_packages() {
    let directory = open_directory();
    copy_installer(directory.path());
    // Said to pip alone: uv gets to hear of it.
    let error = ensure(&with(at(directory.path()), &only("http://bob:s3cret@127.0.0.1:9/simple")))
        .expect_err("no network");
    assert!(matches!(error, InstallError::Network { .. }), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    assert!(names(directory.path()).iter().all(|name| name.starts_with("bootstrap-")));
}

fn a_wrong_hash_of_the_installer() {
    let directory = open_directory();
    let mut options = at(directory.path());
    options.installer = tampered(BOOTSTRAP, "uv==");
    let error = ensure(&options).expect_err("a wrong hash");
    assert!(matches!(error, InstallError::HashMismatch { .. }), "{error}");
    assert_eq!(names(directory.path()), [""; 0]);
}

fn a_wrong_hash_of_a_package() {
    let directory = open_directory();
    copy_installer(directory.path());
    let lock = tampered(E2E, "unpaddedbase64==");
    let error = install::ensure_extra(&at(directory.path()), &lock, &mut |_| ()).expect_err("a wrong hash");
    assert!(
        matches!(&error, InstallError::HashMismatch { detail, .. } if detail.contains("unpaddedbase64")),
        "{error}"
    );
    assert!(names(directory.path()).iter().all(|name| name.starts_with("bootstrap-")));
}

fn no_package_for_this_machine() {
    let directory = open_directory();
    copy_installer(directory.path());
    // A package that exists for Windows alone.
    let text =
        "pywin32==310 --hash=sha256:96867217335559ac619f00ad70e513c0fcf84b8a3af9fc2bba3b59b97da70475\n";
    let lock = Lock { text, ..E2E };
    let error = install::ensure_extra(&at(directory.path()), &lock, &mut |_| ()).expect_err("no package");
    assert!(matches!(error, InstallError::NoPackage { .. }), "{error}");
}

/// A small file system, where one may be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: u32) -> Option<Self> {
        let directory = open_directory();
        let size = format!("size={mib}m,mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "small"]).arg(directory.path()).status();
        (is_root() && mounted.is_ok_and(|status| status.success())).then(|| Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What stays mounted shows when the directory cannot be removed.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn a_full_disk() {
    let Some(disk) = SmallDisk::new(150) else {
        println!("not done: only root may mount a small disk");
        return;
    };
    let options = at(disk.0.path());
    let error = ensure(&options).expect_err("too small a disk");
    assert!(matches!(error, InstallError::DiskFull { needed_mib: 500, .. }), "{error}");
    assert_eq!(names(disk.0.path()), [""; 0]);
    // And where it fills up on the way.
    copy_installer(disk.0.path());
    let lock = Lock { space_mib: 0, ..SYNAPSE };
    let error = install::ensure_extra(&options, &lock, &mut |_| ()).expect_err("too small a disk");
    assert!(matches!(error, InstallError::OutOfSpace { .. }), "{error}");
    assert!(names(disk.0.path()).iter().all(|name| name.starts_with("bootstrap-")));
}

fn a_directory_that_cannot_be_written() {
    let directory = open_directory();
    fs::write(directory.path().join("file"), "").expect("own directory");
    let error = ensure(&at(&directory.path().join("file/packages"))).expect_err("not a directory");
    assert!(matches!(error, InstallError::NotWritable { .. }), "{error}");
    let error = ensure(&at(Path::new("/proc/packages"))).expect_err("not to be written");
    assert!(error.to_string().contains("choose another packages directory"), "{error}");
}

fn a_directory_that_cannot_be_entered() {
    if !is_root() {
        return;
    }
    let directory = open_directory();
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("own directory");
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).expect("own directory");
    let error = ensure(&at(&closed.join("packages"))).expect_err("closed to PostgreSQL's user");
    assert!(matches!(&error, InstallError::Closed { directory, .. } if directory == &closed), "{error}");
}
