//! Children through the launcher: their rights, their session, and their end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::launch::{self, EXIT_NOT_STARTED, Launcher, Spec, User};

use crate::{alive, is_root, status, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("launch::a_child_dies_with_its_parent", a_child_dies_with_its_parent),
        trial("launch::a_child_gets_the_signal_that_was_chosen", a_child_gets_the_signal_that_was_chosen),
        trial("launch::a_child_has_its_own_session_and_no_way_up", a_child_has_its_own_session_and_no_way_up),
        trial("launch::root_is_given_up", root_is_given_up),
        trial("launch::a_child_of_a_dead_parent_does_not_start", a_child_of_a_dead_parent_does_not_start),
        trial("launch::what_cannot_be_started_says_why", what_cannot_be_started_says_why),
        trial("launch::umask_directory_and_environment_are_set", umask_directory_and_environment_are_set),
    ]
}

/// The parent of the death tests: starts a child that would outlive it, says its process ID, and waits.
pub(crate) fn be_parent(signal: &str) -> ExitCode {
    let signal: Signal = signal.parse().expect("a signal");
    let script = "trap 'echo told; exit 0' QUIT; echo $$; while :; do sleep 0.05; done";
    let spec = Spec::new("/bin/sh").args(["-c", script]).user(user()).death_signal(signal);
    let mut child = launch::command(&Launcher::this_program(), &spec).spawn().expect("a child");
    child.wait().expect("a child");
    ExitCode::SUCCESS
}

fn user() -> Option<User> {
    launch::unprivileged_user().expect("a user")
}

fn sleep() -> Spec {
    Spec::new("/bin/sleep").arg("300")
}

/// Starts it and waits until the launcher has become it.
fn start(spec: &Spec) -> Child {
    let child =
        launch::command(&Launcher::this_program(), spec).stdin(Stdio::null()).spawn().expect("a child");
    let name = spec.program().file_name().expect("a name").to_str().expect("text").to_owned();
    wait_until("the program", Duration::from_secs(10), || status(child.id(), "Name") == name);
    child
}

fn end(mut child: Child) {
    child.kill().expect("own child");
    child.wait().expect("own child");
}

fn start_parent(signal: &str) -> (Child, u32, BufReader<std::process::ChildStdout>) {
    let mut parent = Command::new(std::env::current_exe().expect("own path"))
        .args(["__parent", signal])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a parent");
    let mut lines = BufReader::new(parent.stdout.take().expect("a pipe"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a process ID");
    let child = line.trim().parse().expect("a process ID");
    assert!(alive(child));
    (parent, child, lines)
}

fn a_child_dies_with_its_parent() {
    let (parent, child, _lines) = start_parent("SIGKILL");
    if let Some(user) = user() {
        assert_eq!(status(child, "Uid").split(' ').next(), Some(user.uid.to_string().as_str()));
    }
    end(parent);
    wait_until("the child's end", Duration::from_secs(5), || !alive(child));
}

fn a_child_gets_the_signal_that_was_chosen() {
    let (parent, child, mut lines) = start_parent("SIGQUIT");
    end(parent);
    wait_until("the child's end", Duration::from_secs(5), || !alive(child));
    let mut line = String::new();
    lines.read_line(&mut line).expect("the child's last words");
    assert_eq!(line, "told\n");
}

fn a_child_has_its_own_session_and_no_way_up() {
    let child = start(&sleep());
    let pid = child.id();
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "NSsid").split(' ').next_back(), status(pid, "NSpid").split(' ').next_back());
    assert_eq!(status(pid, "NSpgid"), status(pid, "NSpid"));
    assert_eq!(u64::from_str_radix(&status(pid, "SigBlk"), 16), Ok(0));
    // The group reaches it.
    let group = Pid::from_raw(-i32::try_from(pid).expect("a process ID"));
    kill(group, Signal::SIGTERM).expect("a group");
    wait_until("the child's end", Duration::from_secs(5), || !alive(pid));
    end(child);
}

fn root_is_given_up() {
    let Some(user) = user() else {
        assert!(!is_root());
        return;
    };
    assert_ne!(user.uid, 0);
    let child = start(&sleep().user(Some(user.clone())));
    let (uid, gid) = (user.uid, user.gid);
    assert_eq!(status(child.id(), "Uid"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(status(child.id(), "Gid"), format!("{gid} {gid} {gid} {gid}"));
    assert_eq!(status(child.id(), "Groups"), gid.to_string());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(child.id(), set), 16), Ok(0), "{set}");
    }
    end(child);
}

fn a_child_of_a_dead_parent_does_not_start() {
    // Process 1 is not this process, so to the child it looks as if its parent had ended and it was handed on.
    let output = Command::new(std::env::current_exe().expect("own path"))
        .args(["__exec", "--parent", "1", "--death-signal", "SIGKILL", "--", "/bin/echo", "started"])
        .output()
        .expect("a child");
    assert_eq!(output.status.code(), Some(i32::from(EXIT_NOT_STARTED)));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not starting `/bin/echo`"), "{output:?}");
}

fn what_cannot_be_started_says_why() {
    let output =
        launch::command(&Launcher::this_program(), &Spec::new("/nowhere/program")).output().expect("a child");
    assert_eq!(output.status.code(), Some(i32::from(EXIT_NOT_STARTED)));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot execute `/nowhere/program`: No such file"), "{said}");
    assert!(said.contains("Check that it exists"), "{said}");
}

fn umask_directory_and_environment_are_set() {
    let spec = Spec::new("/bin/sh").args(["-c", "umask; pwd; echo $COLOUR$HOME"]);
    let spec = spec.umask(0o027).directory("/usr").env("COLOUR", "red").env_remove("HOME");
    let output = launch::command(&Launcher::this_program(), &spec).output().expect("a child");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0027\n/usr\nred\n");
}
