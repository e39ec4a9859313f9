//! Formatting and lints are part of the tests, so that one command proves all.

use std::path::Path;
use std::process::Command;

fn cargo(words: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tool = words[0];
    let installed =
        Command::new(env!("CARGO")).args([tool, "--version"]).output().is_ok_and(|out| out.status.success());
    if !installed {
        eprintln!("skipped: `cargo {tool}` is not installed (`rustup component add {tool}`)");
        return;
    }
    let done = Command::new(env!("CARGO"))
        .args(words)
        .current_dir(root)
        // A directory of its own: the tests' own build directory may be locked.
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("hygiene"))
        .output()
        .expect("cargo runs");
    assert!(
        done.status.success(),
        "`cargo {}` found something:\n{}{}",
        words.join(" "),
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn the_code_is_formatted() {
    cargo(&["fmt", "--all", "--check"]);
}

#[test]
fn clippy_finds_nothing() {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "--deny", "warnings"]);
}
