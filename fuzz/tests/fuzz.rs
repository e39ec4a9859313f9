//! Runs the fuzz targets, each for some seconds, from the committed seeds and what earlier runs found worth keeping.
//!
//! `MATRIX_STACK_FUZZ_SECONDS` says for how long; what makes a target fail is printed and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGETS: [&str; 4] = ["request", "response", "matcher", "ldap"];

/// What a target is run on, however little time there is.
fn seeds(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target)
}

/// What has the compiler count which code an input reaches, and note what it compares with: what `cargo fuzz` asks of it
/// too. No sanitizer is needed, for nothing here is unsafe, and so any compiler will do.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The platform that this test was built for.
fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let told = String::from_utf8(told.stdout).expect("text");
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

/// Builds the targets; where they lie.
fn build(directory: &Path) -> PathBuf {
    let host = host();
    let done = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--bins", "--profile", "fuzz", "--target", &host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // With a target platform, build scripts and macros stay as they are. The tests' own build directory may be locked.
        .env("CARGO_TARGET_DIR", directory)
        .env("RUSTFLAGS", COVERAGE)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("cargo runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    directory.join(host).join("fuzz")
}

#[test]
fn nothing_that_a_fuzzer_finds_breaks_what_reads_it() {
    if !Command::new("c++").arg("--version").output().is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: no C++ compiler, in which the fuzzing engine is written (`apt install g++`)");
        return;
    }
    let seconds = std::env::var("MATRIX_STACK_FUZZ_SECONDS").unwrap_or_else(|_| "10".to_owned());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let programs = build(&directory);
    let running = TARGETS.map(|target| {
        let found = directory.join("corpus").join(target);
        let failures = directory.join("failures").join(target);
        for directory in [&found, &failures] {
            fs::create_dir_all(directory).expect("own directory");
        }
        let child = Command::new(programs.join(target))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-max_len=4096", "-timeout=20", "-print_final_stats=1"])
            .arg(format!("-artifact_prefix={}/", failures.display()))
            .args([found, seeds(target)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the target starts");
        (target, child)
    });
    let mut broken = Vec::new();
    for (target, child) in running {
        let done = child.wait_with_output().expect("a child of ours");
        let said = String::from_utf8_lossy(&done.stderr);
        let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("{target}: {} inputs", runs.unwrap_or_default().trim());
        if !done.status.success() {
            // What libFuzzer prints while it goes on begins with `#`.
            let said: Vec<_> = said.lines().filter(|line| !line.starts_with('#')).collect();
            broken.push(format!("{target} ({}):\n{}", done.status, said.join("\n")));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// Every seed, quickly and in any case.
#[test]
fn seeds_hold() {
    let targets: [fn(&[u8]); 4] = [
        matrix_stack_fuzz::request,
        matrix_stack_fuzz::response,
        matrix_stack_fuzz::matcher,
        matrix_stack_fuzz::ldap,
    ];
    for (name, target) in TARGETS.iter().zip(targets) {
        let files: Vec<_> = fs::read_dir(seeds(name)).expect("its seeds").flatten().collect();
        assert!(files.len() > 5, "{name}");
        for file in files {
            println!("{}", file.path().display());
            target(&fs::read(file.path()).expect("a seed"));
        }
    }
}
