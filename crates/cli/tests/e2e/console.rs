//! The admin console, used by a real browser.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scenarios::{javascript, node};
use crate::stack::{Stack, client_file, password};
use crate::system::{free_port, get_status, run, until, wait};

/// It takes a minute by itself on two cores.
const SCENARIO: Duration = Duration::from_secs(300);
/// What Debian's package, and others, call the browser.
const BROWSERS: [&str; 3] = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/// A browser uses each page of the console of a stack, in which both people have an account, and the first is an administrator.
pub(crate) fn a_browser_uses_each_page(stack: &Stack, admin: &str, other: &str) {
    let Some(browser) = BROWSERS.iter().find(|browser| Path::new(browser).exists()) else {
        println!("    skipped: there is no browser (`apt install chromium`)");
        return;
    };
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let log = fs::File::create(stack.log("console")).expect("own directory");
    let mut console = stack
        .command(&["console", "--listen", &listen])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the program");
    until("the console listens", Duration::from_secs(30), || {
        (get_status(port, "/sign-in") == Some(200)).then_some(())
    });
    let directory = javascript();
    fs::copy(client_file("js/console.mjs"), directory.join("console.mjs")).expect("own directory");
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
    let mut flow = Command::new(node().join("bin/node"));
    flow.current_dir(directory)
        .arg("console.mjs")
        .args(["--console", &format!("http://{listen}"), "--homeserver", &stack.url()])
        .args(["--admin", admin, "--password", &password(admin)])
        .args(["--other", other, "--other-password", &password(other)])
        .args(["--browser", browser, "--pictures"])
        .arg(&pictures);
    let done = run(&mut flow, SCENARIO);
    kill(Pid::from_raw(console.id().cast_signed()), Signal::SIGTERM).expect("a child of ours");
    let ended = wait(&mut console, Duration::from_secs(30));
    let done = done.good();
    println!("    {}; pictures are in {}", done.stdout.trim_end(), pictures.display());
    assert!(ended.is_some_and(|status| status.success()), "the console did not end as asked: {ended:?}");
    let audit = stack.data().join("console-audit.jsonl");
    let mode = audit.metadata().expect("an audit log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others can read the audit log");
    let (audit, log) = (fs::read_to_string(&audit), fs::read_to_string(stack.log("console")));
    for text in [audit, log] {
        let text = text.expect("text");
        for secret in [&password(admin), "first password", "second password"] {
            assert!(!text.contains(secret), "a password is written down");
        }
    }
}
