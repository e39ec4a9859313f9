//! `docs/drift.md`: what published routing tables get wrong, as `matrix-stack routes audit` finds it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PAGE: &str = "docs/drift.md";

/// The directory that holds what the page says how to get.
const PUBLISHED: &str = "MATRIX_STACK_PUBLISHED_TABLES";

/// A published routing table.
struct Published {
    name: &'static str,
    /// What exactly was measured.
    what: &'static str,
    /// How to get it.
    get: &'static str,
    /// The arguments of `routes audit`.
    audit: &'static [&'static str],
}

const ALL: [Published; 4] = [
    Published {
        name: "Synapse's manual",
        what: "`docs/workers.md` of Synapse 1.163.2. The lines left out of the first list are those for GET requests.",
        get: "pip download --no-deps --no-binary matrix-synapse matrix-synapse==1.163.2\n\
              tar xf matrix_synapse-1.163.2.tar.gz",
        audit: &[
            "matrix_synapse-1.163.2/docs/workers.md:1-296",
            "matrix_synapse-1.163.2/docs/workers.md:311-906",
            "--get",
            "matrix_synapse-1.163.2/docs/workers.md:297-310",
        ],
    },
    Published {
        name: "Synapse's worker image",
        what: "`docker/configure_workers_and_start.py` of Synapse's repository, as of 24 July 2026.",
        get: "git clone https://github.com/element-hq/synapse\n\
              git -C synapse checkout a58ad44eb0ce3cc14153f921206f322e17339dc5",
        audit: &["synapse/docker/configure_workers_and_start.py"],
    },
    Published {
        name: "ess-helm",
        what: "what its HAProxy path maps are made of, with every kind of worker enabled, as of 21 August 2026.",
        get: "git clone https://github.com/element-hq/ess-helm\n\
              git -C ess-helm checkout 83c7981703884195d9a67de43883c96978886b79",
        audit: &[
            "ess-helm/charts/matrix-stack/templates/synapse/_synapse_details.tpl",
            "--get",
            "ess-helm/charts/matrix-stack/configs/synapse/path_map_file_get.tpl",
        ],
    },
    Published {
        name: "matrix-docker-ansible-deploy",
        what: "its specialised workers, and what its nginx keeps on main before them, as of 22 August 2026. Some of what it \
               keeps there, such as registration, it keeps on purpose.",
        get: "git clone https://github.com/spantaleev/matrix-docker-ansible-deploy\n\
              git -C matrix-docker-ansible-deploy checkout c0681e4bc2d55df19056f3d3a7b997f9e7335890",
        audit: &[
            "matrix-docker-ansible-deploy/roles/custom/matrix-synapse/vars/main.yml:20-154",
            "matrix-docker-ansible-deploy/roles/custom/matrix-synapse/vars/main.yml:333-358",
            "--main",
            "matrix-docker-ansible-deploy/roles/custom/matrix-synapse/defaults/main.yml:2202-2207",
        ],
    },
];

/// What `routes audit` prints, in a directory that has no stack.
fn audit(directory: &Path, words: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_matrix-stack"))
        .args(["routes", "audit"])
        .args(words)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn this_project_leaves_nothing_on_main() {
    let directory = tempfile::tempdir().unwrap();
    let found: Value = serde_json::from_str(&audit(directory.path(), &["--json"])).unwrap();
    assert!(found["worker_capable"]["stable"].as_u64().unwrap() > 100, "{found}");
    for field in [
        "left_on_main",
        "left_on_main_unstable",
        "left_on_main_media",
        "left_on_main_by_version",
        "sent_to_workers",
    ] {
        assert_eq!(found[field], Value::Array(Vec::new()), "{field}");
    }
    committed::part(PAGE, "ours", &audit(directory.path(), &["--markdown"]));
}

#[test]
fn what_others_leave_on_main() {
    let Some(directory) = std::env::var_os(PUBLISHED) else {
        println!(
            "skipped: {PUBLISHED} names no directory with the published tables; {PAGE} says how to get them"
        );
        return;
    };
    let directory = Path::new(&directory);
    let mut summary = String::from(
        "| table | left on main, stable | unstable | media | wrongly on workers | stale expressions |\n\
         |---|---|---|---|---|---|\n",
    );
    let mut details = String::new();
    for Published { name, what, get, audit: words } in &ALL {
        let found: Value = serde_json::from_str(&audit(directory, &[&["--json"], *words].concat())).unwrap();
        let list = |field: &str| found[field].as_array().unwrap();
        let count = |field: &str| list(field).len();
        // What an option that is off registers is there by default.
        let by_option = |call: &&Value| call["when"].as_str().is_some_and(|when| !when.starts_with('!'));
        let conditional = list("left_on_main").iter().filter(by_option).count();
        writeln!(
            summary,
            "| [{name}](#{}) | {} ({conditional}) | {} | {} | {} | {} |",
            name.to_lowercase().replace(' ', "-").replace('\'', ""),
            count("left_on_main"),
            count("left_on_main_unstable"),
            count("left_on_main_media"),
            count("sent_to_workers"),
            count("stale"),
        )
        .unwrap();
        write!(
            details,
            "\n### {name}\n\nMeasured: {what}\n\n```sh\n{get}\nmatrix-stack routes audit {}\n```\n\n{}",
            words.join(" ").replace(" --", " \\\n  --"),
            audit(directory, &[&["--markdown"], *words].concat()),
        )
        .unwrap();
    }
    committed::part(PAGE, "others", &format!("{summary}{details}"));
}
