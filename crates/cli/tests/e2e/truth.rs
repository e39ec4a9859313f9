//! The routing table and the rendered configuration, held against Synapse itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::stack::{Stack, packages, password, python};
use crate::system::run;
use runtime::install::{self, InstallOptions};
use runtime::launch::Launcher;

/// Every endpoint once, on a debug build and a busy machine.
const ALL_ENDPOINTS: Duration = Duration::from_secs(300);
/// Reading the endpoints out of Synapse takes it some 40 s of processor time.
const EXTRACTION: Duration = Duration::from_secs(900);

/// Runs the tests that need a Python with Synapse in it, which skip themselves where nobody names one.
pub(crate) fn synapse_agrees_with_table_and_configuration() {
    let options = InstallOptions::new(packages(), Launcher::at(crate::stack::PROGRAM));
    let packages = install::ensure(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
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
            .env("MATRIX_STACK_PYTHON", &packages.python),
        EXTRACTION,
    )
    .good();
    let said = format!("{}{}", done.stdout, done.stderr);
    assert!(!said.to_lowercase().contains("skipped"), "a test that needs Synapse was skipped:\n{said}");
    println!("    {} tests", said.matches("... ok").count());
}

/// Calls every endpoint of a stack with all roles and of one without workers: the promised process answers each, and
/// status and error code are the same.
pub(crate) fn every_endpoint_is_answered_as_promised_and_as_by_one_process() {
    let many = probed("full");
    let one = probed("custom");
    let done = run(endpoints().arg("compare").arg(&many).arg(&one), ALL_ENDPOINTS).good();
    println!("    {}", done.stdout.trim_end());
}

fn endpoints() -> Command {
    let mut command = Command::new(python());
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/endpoints.py"));
    command
}

/// What each endpoint of a stack of its own answered.
fn probed(preset: &'static str) -> PathBuf {
    let stack = Stack::new(preset);
    // The admin API is part of the table, and so are URL previews.
    let path = stack.directory.join("stack.yaml");
    let mut file: Value =
        serde_json::from_str(&fs::read_to_string(&path).expect("own file")).expect("own JSON");
    file["listen"]["admin_api"] = true.into();
    file["media"] = json!({ "url_previews": true });
    fs::write(&path, file.to_string()).expect("own directory");
    stack.up().good();

    let secret = stack.directory.join("password");
    fs::write(&secret, password("probe")).expect("own directory");
    let mut add = stack.command(&["user", "add", "probe", "--admin", "--password-file"]);
    run(add.arg(&secret), ALL_ENDPOINTS).good();
    let routes = stack.directory.join("routes.json");
    fs::write(&routes, stack.ask(&["routes", "list", "--json"]).good().stdout).expect("own directory");

    let out = stack.directory.join("answers.json");
    let mut probe = endpoints();
    probe.args(["probe", "--user", "probe", "--url", &stack.url(), "--password-file"]).arg(&secret);
    probe.arg("--routes").arg(&routes).arg("--access-log").arg(stack.log("access")).arg("--out").arg(&out);
    let done = run(&mut probe, ALL_ENDPOINTS);
    println!("    {preset}: {}", done.stdout.lines().last().unwrap_or_default());
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    stack.down().good();
    out
}
