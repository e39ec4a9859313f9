//! The bundled Valkey.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use libtest_mimic::Trial;
use model::Layout;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use runtime::launch::{self, Launcher};
use runtime::valkey::{STOP, Valkey, ValkeyError};

use crate::{alive, is_root, open_directory, packages, status, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("valkey::a_life", a_life),
        trial("valkey::a_killed_server_is_started_again", a_killed_server_is_started_again),
        trial("valkey::a_socket_that_cannot_be_made_is_named", a_socket_that_cannot_be_made_is_named),
    ]
}

fn valkey(directory: &Path) -> (Layout, Valkey) {
    let layout = Layout::new(directory);
    let user = launch::unprivileged_user().expect("a user");
    fs::create_dir_all(layout.sockets()).expect("own directory");
    fs::set_permissions(layout.sockets(), Permissions::from_mode(0o711)).expect("own directory");
    let valkey = Valkey::new(packages(), &layout, user, Launcher::this_program());
    (layout, valkey)
}

fn spawn(directory: &Path, valkey: &Valkey) -> Child {
    let log = File::create(directory.join("log")).expect("own directory");
    let mut command = launch::command(&Launcher::this_program(), &valkey.spec());
    command.stdout(log.try_clone().expect("a file")).stderr(log).spawn().expect("a server")
}

fn start(directory: &Path, valkey: &Valkey) -> Child {
    let server = spawn(directory, valkey);
    let took = wait_until("valkey", Duration::from_secs(10), || ready(valkey).is_ok());
    println!("start: {took:?}");
    server
}

fn ready(valkey: &Valkey) -> Result<(), ValkeyError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(valkey.ready())
}

fn ask(layout: &Layout, command: &str) -> String {
    let mut stream = UnixStream::connect(layout.valkey_socket()).expect("a server");
    write!(stream, "{command}\r\nQUIT\r\n").expect("a server");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn a_life() {
    let directory = open_directory();
    let (layout, valkey) = valkey(directory.path());
    assert!(matches!(ready(&valkey), Err(ValkeyError::NotReady { .. })));
    valkey.prepare().unwrap_or_else(|error| panic!("{error}"));
    let mut server = start(directory.path(), &valkey);
    if is_root() {
        let user = launch::unprivileged_user().expect("a user").expect("root has one");
        assert!(status(server.id(), "Uid").starts_with(&format!("{} ", user.uid)));
    }
    assert_eq!(fs::metadata(layout.valkey_socket_dir()).expect("a directory").mode() & 0o777, 0o700);
    for (setting, value) in [
        ("port", "0"),
        ("save", ""),
        ("appendonly", "no"),
        ("maxmemory", "134217728"),
        ("maxmemory-policy", "allkeys-lru"),
    ] {
        let answer = ask(&layout, &format!("CONFIG GET {setting}"));
        assert!(answer.contains(&format!("\r\n{value}\r\n")), "{setting}: {answer}");
    }
    let pid = Pid::from_raw(i32::try_from(server.id()).expect("a process ID"));
    kill(pid, STOP[0].0).expect("own child");
    wait_until("the end", STOP[0].1, || server.try_wait().expect("own child").is_some());
    // Nothing is kept.
    let left: Vec<_> =
        fs::read_dir(layout.valkey_socket_dir()).expect("a directory").filter_map(Result::ok).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn a_killed_server_is_started_again() {
    let directory = open_directory();
    let (layout, valkey) = valkey(directory.path());
    valkey.prepare().unwrap_or_else(|error| panic!("{error}"));
    let mut server = start(directory.path(), &valkey);
    server.kill().expect("own child");
    server.wait().expect("own child");
    assert!(layout.valkey_socket().exists());
    valkey.prepare().unwrap_or_else(|error| panic!("{error}"));
    let mut server = start(directory.path(), &valkey);
    assert!(alive(server.id()));
    server.kill().expect("own child");
    server.wait().expect("own child");
}

fn a_socket_that_cannot_be_made_is_named() {
    let directory = open_directory();
    let (layout, valkey) = valkey(directory.path());
    valkey.prepare().unwrap_or_else(|error| panic!("{error}"));
    // Something is in its place that the server cannot remove.
    fs::create_dir(layout.valkey_socket()).expect("own directory");
    let ended = spawn(directory.path(), &valkey).wait().expect("own child");
    assert!(!ended.success());
    let log = fs::read_to_string(directory.path().join("log")).expect("a log");
    assert!(matches!(valkey.explain(&log), Some(ValkeyError::Socket { .. })), "{log}");
}
