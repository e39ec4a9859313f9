//! Tokens for calls: `serve livekit-jwt` between two real homeservers and LiveKit's own library (`e2e/calls.py`), and what `doctor`
//! and `serve well-known` say of the same stacks.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use runtime::install::{InstallOptions, LIVEKIT, ensure_extra};
use runtime::launch::Launcher;
use serde_json::{Value, json};

use crate::servers::{self, Server};
use crate::stack::{PROGRAM, client_file, packages};
use crate::system::{Done, ask, free_port, run, until};

const CALLS: Duration = Duration::from_secs(300);
const SHORTLY: Duration = Duration::from_secs(60);

pub(crate) fn users_of_two_stacks_get_tokens_for_calls() {
    let (Some(a), Some(b)) = (servers::full(), servers::small()) else { return };
    let options = InstallOptions::new(packages(), Launcher::at(PROGRAM));
    let python = ensure_extra(&options, &LIVEKIT, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let ca = servers::authority().expect("the servers have one").join("ca.pem");
    let directory = a.stack.directory.join("calls");
    fs::create_dir_all(&directory).expect("own directory");
    let facts = json!({
        "program": PROGRAM,
        "directory": directory,
        "ca_file": ca,
        "port": a.livekit,
        "other_port": free_port(),
        // The stack's own, which has room for more.
        "valkey": format!("redis+unix://{}", a.stack.data().join("run/valkey/valkey.sock").display()),
        "a": { "name": a.name, "url": a.stack.url() },
        "b": { "name": b.name, "url": b.stack.url() },
        // While the service runs.
        "doctor": ["doctor", a.name, "--json", "--allow", "127.0.0.0/8", "--ca-file", ca],
    });
    fs::write(directory.join("facts.json"), facts.to_string()).expect("own directory");
    let mut calls = Command::new(python);
    calls.env("PYTHONDONTWRITEBYTECODE", "1").arg(client_file("calls.py")).arg(directory.join("facts.json"));
    let done = run(&mut calls, CALLS).good();
    println!("    {}", done.stdout.lines().last().unwrap_or_default());

    check_doctor(a, &fs::read_to_string(directory.join("doctor.json")).expect("the script wrote it"));
    well_known_alone(a);
}

fn doctor(words: &[&str]) -> Done {
    let ca = servers::authority().expect("the servers have one").join("ca.pem");
    run(Command::new(PROGRAM).arg("doctor").args(words).arg("--ca-file").arg(ca), SHORTLY)
}

/// What is good while all runs, and what is not once the service for calls has stopped, or where nobody is.
fn check_doctor(server: &Server, good: &str) {
    let good: Value = serde_json::from_str(good).expect("JSON");
    let statuses = |report: &Value| -> Vec<(String, String)> {
        let findings = report["findings"].as_array().expect("findings").iter();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        findings.map(|finding| (text(&finding["check"]), text(&finding["status"]))).collect()
    };
    let seen = statuses(&good);
    for check in [
        "discovery",
        "certificate",
        "federation",
        "keys",
        "client_well_known",
        "client_well_known_cors",
        "versions",
        "versions_cors",
        "livekit",
        "livekit_cors",
    ] {
        assert!(seen.contains(&(check.to_owned(), "good".to_owned())), "{check}: {good:#}");
    }
    // Between these stacks clients speak plain HTTP.
    assert!(seen.contains(&("base_url".to_owned(), "warning".to_owned())), "{good:#}");

    let done = doctor(&[&server.name, "--allow", "127.0.0.0/8", "--json"]);
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    let report: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let failed: Vec<_> = statuses(&report).into_iter().filter(|(_, status)| status == "failure").collect();
    assert_eq!(failed, [("livekit".to_owned(), "failure".to_owned())], "{report:#}");

    // For people.
    let closed = doctor(&[&server.name]);
    assert_eq!(closed.code, Some(1));
    assert!(
        closed
            .stdout
            .contains("FAILURE  federation: 127.0.0.1 is at 127.0.0.1, which is not of the public internet"),
        "{}",
        closed.stdout
    );
    assert!(closed.stdout.contains("mend: give the name a public address"), "{}", closed.stdout);
    let nobody = doctor(&[&format!("127.0.0.1:{}", free_port()), "--allow", "127.0.0.1"]);
    assert!(nobody.stdout.contains("FAILURE  federation: cannot connect to 127.0.0.1"), "{}", nobody.stdout);
    assert!(doctor(&["no name"]).bad().contains("is not a Matrix server name"));
}

/// The router and `serve well-known` say the same.
fn well_known_alone(server: &Server) {
    let port = free_port();
    server.stack.configure(|file| file["well_known"]["listen"] = format!("127.0.0.1:{port}").into());
    let mut serve = server.stack.command(&["serve", "well-known"]);
    let mut child = serve.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
    until("serve well-known listens", SHORTLY, listens);
    let get = |port: u16, which: &str| ask(port, "GET", &format!("/.well-known/matrix/{which}"), None, None);
    for (which, status) in [("client", 200), ("server", 200), ("support", 200), ("openid-configuration", 404)]
    {
        let (alone, routed) = (get(port, which), get(server.stack.port, which));
        assert_eq!((alone.0, routed.0), (status, status), "{which}");
        if status == 200 {
            assert_eq!(alone.1, routed.1, "{which}");
        }
    }
    let support: Value = serde_json::from_str(&get(port, "support").1).expect("JSON");
    assert_eq!(support["contacts"][0]["role"], "m.role.admin");
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
}
