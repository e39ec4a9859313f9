//! The routing table and the rendered configuration, held against Synapse itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::servers::{self, Server};
use crate::stack::{script, synapse_python};
use crate::system::run;

/// Every endpoint once, on a debug build and a busy machine.
const ALL_ENDPOINTS: Duration = Duration::from_secs(300);
/// Reading the endpoints out of Synapse takes it some 40 s of processor time.
const EXTRACTION: Duration = Duration::from_secs(900);

/// Runs the tests that need a Python with Synapse in it, which skip themselves where nobody names one.
pub(crate) fn synapse_agrees_with_table_and_configuration() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let done = run(
        Command::new(env!("CARGO"))
            // The same packages and features as in this run, so that nothing is built anew.
            .args([
                "test",
                "--workspace",
                "--locked",
                "--test",
                "it",
                "--test",
                "extraction",
                "--",
                "--nocapture",
            ])
            .current_dir(root)
            .env("MATRIX_STACK_PYTHON", synapse_python()),
        EXTRACTION,
    )
    .good();
    let said = format!("{}{}", done.stdout, done.stderr);
    // The Matrix Authentication Service is not Synapse, and where its program is not named, nobody can ask it.
    let mut skipped =
        said.lines().filter(|line| line.to_lowercase().contains("skipped") && !line.contains("MAS_CLI"));
    assert_eq!(skipped.next(), None, "a test that needs Synapse was skipped:\n{said}");
    println!("    {} tests", said.matches("... ok").count());
}

/// Calls every endpoint of a stack with all roles and of one without workers: the promised process answers each, and
/// status and error code are the same. What servers ask is asked by each in the other's name.
pub(crate) fn every_endpoint_is_answered_as_promised_and_as_by_one_process() {
    let (Some(full), Some(one)) = (servers::full(), servers::one()) else { return };
    let many = probed(full, one);
    let one = probed(one, full);
    let done = run(script("endpoints.py").arg("compare").arg(&many).arg(&one), ALL_ENDPOINTS).good();
    println!("    {}", done.stdout.trim_end());
}

/// What each endpoint of a stack answered.
fn probed(server: &Server, peer: &Server) -> PathBuf {
    let stack = &server.stack;
    let routes = stack.directory.join("routes.json");
    fs::write(&routes, stack.ask(&["routes", "list", "--json"]).good().stdout).expect("own directory");
    let out = stack.directory.join("answers.json");
    let mut probe = script("endpoints.py");
    probe
        .args(["probe", "--user", servers::ADMIN, "--url", &stack.url(), "--password-file"])
        .arg(server.password_file())
        .arg("--routes")
        .arg(&routes)
        .arg("--access-log")
        .arg(stack.log("access"))
        .arg("--out")
        .arg(&out)
        .args(["--peer-url", &peer.stack.url(), "--peer-key"])
        .arg(peer.stack.data().join("secrets/signing.key"));
    let done = run(&mut probe, ALL_ENDPOINTS);
    println!("    {}", done.stdout.lines().last().unwrap_or_default());
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    out
}

/// Asks for paths in odd spellings through the routers of a stack with all roles and of one without workers, and of the
/// latter's main itself.
pub(crate) fn odd_spellings_are_understood_as_by_synapse() {
    let (Some(full), Some(one)) = (servers::full(), servers::one()) else { return };
    let status = one.stack.status();
    let main = status.processes.iter().find(|process| process.name == "main").expect("a main process");
    let socket = main.address.as_deref().and_then(|address| address.strip_prefix("unix:")).expect("a socket");
    let place = |server: &Server| format!("127.0.0.1:{}", server.stack.port);
    let mut ask = script("spellings.py");
    ask.args(["--full", &place(full), "--one", &place(one), "--main", socket])
        .args(["--user", servers::ADMIN, "--password-file"])
        .arg(full.password_file());
    let done = run(&mut ask, ALL_ENDPOINTS).good();
    println!("    {}", done.stdout.trim_end());
}
