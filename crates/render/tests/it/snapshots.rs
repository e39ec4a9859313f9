//! The rendered files of ordinary stacks, for people to read.

use std::fmt::Write as _;
use std::path::Path;

use crate::stacks::{Case, case, hosts};
use render::{config_args, envoy, haproxy, nginx, synapse, synapse_instance};
use routes::{Matcher, Options, Table};
use serde_json::json;

/// All files in one text.
fn files(case: &Case) -> String {
    let mut out = String::new();
    for file in synapse(&case.topology, &case.layout) {
        write!(out, "=== {}\n{}\n", file.path.display(), file.contents).unwrap();
    }
    out
}

#[test]
fn presets() {
    for preset in ["small", "medium", "full"] {
        let case = case(preset, Path::new("/var/lib/matrix-stack/example.org"), json!({ "preset": preset }));
        insta::assert_snapshot!(preset, files(&case));
    }
}

#[test]
fn each_process_on_a_host_of_its_own() {
    insta::assert_snapshot!(files(&case("hosts", Path::new("/data"), hosts())));
}

#[test]
fn everything_said() {
    let stack = json!({
        "preset": "small",
        "public_base_url": "https://matrix.example.org/",
        "network": { "tcp": { "host": "127.0.0.2", "base_port": 20000 } },
        "workers": {
            "reader": {
                "pool": { "min": 2, "max": 8 },
                "cache_factor": 2.5,
                "extra": {
                    "caches": { "per_cache_factors": { "get_users_in_room": 4 } },
                    "experimental_features": { "msc2815_enabled": true },
                    "rc_message": { "per_second": 5, "burst_count": 50 },
                },
            },
        },
        "registration": { "open": true },
        "caches": { "global_factor": 1.0 },
        "media": { "max_upload_size": "1G", "url_previews": true },
        "federation": { "enabled": false },
        "secrets": { "signing_key": { "file": "/run/secrets/signing.key" } },
        "synapse": {
            "extra": {
                "caches": { "per_cache_factors": { "get_event": 2 } },
                "experimental_features": { "msc4140_max_delayed_events_per_user": 5 },
                "report_stats": true,
                "federation_domain_whitelist": ["elsewhere.example"],
            },
        },
    });
    insta::assert_snapshot!(files(&case("everything", Path::new("/data"), stack)));
}

#[test]
fn other_proxies() {
    let case = case("small", Path::new("/var/lib/matrix-stack/example.org"), json!({ "preset": "small" }));
    let matcher = Matcher::compile(Table::newest(), &case.topology, &Options::default()).unwrap();
    insta::assert_snapshot!("nginx", nginx(&case.topology, &matcher));
    insta::assert_snapshot!("haproxy", haproxy(&case.topology, &matcher));
    insta::assert_snapshot!("envoy", envoy(&case.topology, &matcher));
}

#[test]
fn one_process_gets_the_same_files() {
    let case = case("full", Path::new("/data"), json!({ "preset": "full" }));
    let all = synapse(&case.topology, &case.layout);
    assert_eq!(all.len(), 1 + case.topology.instances().len());
    for instance in case.topology.instances() {
        let files = synapse_instance(&case.topology, &case.layout, &instance.name).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.path.to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["shared.yaml".to_owned(), format!("{}.yaml", instance.name)]);
        assert!(files.iter().all(|file| all.contains(file)));
    }
    assert_eq!(synapse_instance(&case.topology, &case.layout, "nobody"), None);
}

#[test]
fn a_process_reads_what_is_shared_and_then_its_own() {
    let case = case("small", Path::new("/data"), json!({ "preset": "small" }));
    let args = config_args(&case.layout, case.topology.instance("reader_1").unwrap());
    assert_eq!(args, ["-c", "/data/config/shared.yaml", "-c", "/data/config/reader_1.yaml"]);
}
