//! The units for systemd: for people to read, and for systemd's own tools to judge.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::stacks::{Case, case};
use render::{RenderedFile, SystemdOptions, systemd};
use serde_json::{Value, json};
use tempfile::TempDir;

fn options(program: &str, whole: bool) -> SystemdOptions {
    SystemdOptions {
        name: "matrix-stack".to_owned(),
        user: "matrix-stack".to_owned(),
        program: program.into(),
        config: "/etc/matrix-stack/stack.yaml".into(),
        packages: "/var/lib/matrix-stack/packages".into(),
        whole,
    }
}

fn example(stack: Value) -> Case {
    case("systemd", Path::new("/var/lib/matrix-stack/example.org"), stack)
}

fn files(case: &Case, options: &SystemdOptions) -> String {
    let mut out = String::new();
    for file in systemd(&case.topology, &case.layout, options) {
        write!(out, "=== {}\n{}\n", file.path.display(), file.contents).unwrap();
    }
    out
}

/// Everything that makes units differ.
fn unlike() -> Value {
    json!({
        "preset": "full",
        "listen": { "address": "[::]:443", "metrics": "127.0.0.1:9090" },
        "database": { "external": { "host": "/run/postgresql" }, "max_connections": 500 },
        "redis": { "external": { "host": "127.0.0.1" } },
        "media": { "store_path": "/srv/100% media" },
        "synapse": { "python": "/home/synapse/env/bin/python" },
    })
}

#[test]
fn units_of_presets() {
    let small = example(json!({ "preset": "small" }));
    insta::assert_snapshot!("units", files(&small, &options("/usr/local/bin/matrix-stack", false)));
    insta::assert_snapshot!("units_whole", files(&small, &options("/usr/local/bin/matrix-stack", true)));
    // The others differ in what their targets want.
    for preset in ["medium", "full"] {
        let case = example(json!({ "preset": preset }));
        let all = systemd(&case.topology, &case.layout, &options("/usr/local/bin/matrix-stack", false));
        let target = |file: &&RenderedFile| file.path.extension().is_some_and(|ending| ending == "target");
        let (own, common): (Vec<_>, Vec<_>) = all.iter().partition(target);
        insta::assert_snapshot!(format!("units_target_{preset}"), own[0].contents);
        let units = files(&small, &options("/usr/local/bin/matrix-stack", false));
        for file in common {
            let text = file.contents.replace(&format!("--preset {preset}"), "--preset small");
            assert!(units.contains(&text), "{}", file.path.display());
        }
    }
    insta::assert_snapshot!(
        "units_unlike",
        files(&example(unlike()), &options("/opt/$x/matrix stack", false))
    );
}

#[test]
fn every_process_has_a_unit() {
    for preset in ["custom", "small", "medium", "full"] {
        let case = example(json!({ "preset": preset }));
        let files = systemd(&case.topology, &case.layout, &options("/bin/true", false));
        let target = files.iter().find(|file| file.path.ends_with("matrix-stack.target")).unwrap();
        let wanted: Vec<&str> =
            target.contents.lines().filter_map(|line| line.strip_prefix("Wants=matrix-stack-")).collect();
        for instance in case.topology.instances() {
            let unit = if instance.is_main() {
                "main.service".to_owned()
            } else {
                format!("worker@{}.service", instance.name)
            };
            assert!(wanted.contains(&unit.as_str()), "{unit}");
        }
        // And each that is wanted, required or waited for is there.
        for file in &files {
            let lines = file.contents.lines().filter_map(|line| line.split_once('='));
            for (_, unit) in lines.filter(|(key, _)| ["Wants", "Requires", "After"].contains(key)) {
                let name = match unit.split_once('@') {
                    Some((name, _)) => format!("{name}@.service"),
                    None => unit.to_owned(),
                };
                let there = files.iter().any(|file| file.path.ends_with(&name));
                assert!(there || unit == "network-online.target", "{unit}");
            }
        }
    }
}

/// Runs systemd's tool, or says why not.
fn analyze(test: &str, arguments: &[&str], units: &[PathBuf]) -> Option<Output> {
    let done = Command::new("systemd-analyze").args(arguments).args(units).output();
    match done {
        Ok(done) => Some(done),
        Err(error) => {
            // Straight to stderr: what a passing test prints is otherwise not shown.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: systemd-analyze cannot be run ({error})");
            None
        }
    }
}

#[test]
fn systemd_understands_the_units_and_finds_them_closed() {
    let test = "systemd_understands_the_units_and_finds_them_closed";
    for whole in [false, true] {
        // The highest exposure that a unit may have, in tenths: 0 is none, 100 is all there is. A low port and a Python
        // in a home cost a little.
        for (stack, exposure) in [(json!({ "preset": "small" }), "15"), (unlike(), "20")] {
            let case = example(stack);
            let directory = TempDir::new().unwrap();
            // The tool looks for the program.
            let mut units = Vec::new();
            for file in systemd(&case.topology, &case.layout, &options("/bin/true", whole)) {
                if let Ok(name) = file.path.strip_prefix("systemd/system") {
                    let path = directory.path().join(name);
                    std::fs::write(&path, file.contents).unwrap();
                    units.push(path);
                }
            }
            let Some(done) = analyze(test, &["verify", "--man=no"], &units) else { return };
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            let ours = said.lines().filter(|line| line.contains("matrix-stack")).collect::<Vec<_>>();
            assert!(done.status.success() && ours.is_empty(), "{said}");
            units.retain(|unit| unit.extension().is_some_and(|ending| ending == "service"));
            for unit in units {
                let arguments = ["security", "--offline=true", "--no-pager", "--threshold", exposure];
                let Some(done) = analyze(test, &arguments, std::slice::from_ref(&unit)) else { return };
                assert!(
                    done.status.success(),
                    "{}:\n{}{}",
                    unit.display(),
                    String::from_utf8_lossy(&done.stdout),
                    String::from_utf8_lossy(&done.stderr)
                );
            }
        }
    }
}
