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

#[test]
fn the_image_is_what_the_rest_takes_it_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a file of this repository");
    let image = read("Dockerfile");
    // The Compose file asks the router by this name, and lays files for this user where root renders it.
    for line in ["ENTRYPOINT [\"/matrix-stack\"]", "USER 991:991", "RUN scripts/static-binary /out \\"] {
        assert!(image.lines().any(|known| known == line), "the Dockerfile lacks `{line}`");
    }
    let number = |text: &str| text.split('.').filter_map(|part| part.parse().ok()).collect::<Vec<u32>>();
    let (_, base) = image.split_once("RUST_IMAGE=rust:").expect("a compiler");
    let base = number(base.split('-').next().unwrap_or_default());
    assert!(base >= number(env!("CARGO_PKG_RUST_VERSION")), "the image's compiler is too old");
}
