//! The rendered files of ordinary stacks, for people to read.

use std::fmt::Write as _;
use std::path::Path;

use crate::stacks::{Case, case, hosts, pools};
use render::{InstanceError, config_args, envoy, haproxy, nginx, synapse, synapse_instance};
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
    insta::assert_snapshot!("nginx", nginx(&case.topology, &matcher).unwrap());
    insta::assert_snapshot!("haproxy", haproxy(&case.topology, &matcher).unwrap());
    insta::assert_snapshot!("envoy", envoy(&case.topology, &matcher).unwrap());
}

#[test]
fn one_process_gets_the_same_files() {
    let case = case("full", Path::new("/data"), json!({ "preset": "full" }));
    let all = synapse(&case.topology, &case.layout);
    assert_eq!(all.len(), 1 + case.topology.instances().len());
    for instance in case.topology.instances() {
        let files = synapse_instance(&case.topology, &case.layout, &instance.name, None).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.path.to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["shared.yaml".to_owned(), format!("{}.yaml", instance.name)]);
        assert!(files.iter().all(|file| all.contains(file)));
    }
    let nobody = synapse_instance(&case.topology, &case.layout, "nobody", None);
    assert!(matches!(nobody, Err(InstanceError::Unknown { .. })), "{nobody:?}");
}

#[test]
fn a_process_of_a_pool_has_its_own_name_and_the_files_of_the_pool() {
    let case = case("pools", Path::new("/data"), pools("address"));
    let all = synapse(&case.topology, &case.layout);
    assert!(!all.iter().any(|file| file.path == Path::new("sync.yaml")), "it would have no name");
    let configure = |instance, name| synapse_instance(&case.topology, &case.layout, instance, name);
    let files = configure("sync", Some("synapse-sync-5d4f-x7k2p")).unwrap();
    assert_eq!(files[0], all[0]);
    insta::assert_snapshot!("pool", format!("{}: {}", files[1].path.display(), files[1].contents));
    let args = config_args(&case.layout, case.topology.instance("sync").unwrap());
    assert_eq!(args[3], "/data/config/sync.yaml");

    let refused = |instance, name| configure(instance, name).unwrap_err().to_string();
    let told = [
        refused("sync", None),
        refused("main", Some("main")),
        refused("sync", Some("event_persister_1")),
        refused("sync", Some("room")),
        refused("sync", Some("master")),
        refused("sync", Some("../main")),
        refused("sync", Some("")),
    ];
    insta::assert_snapshot!("pool_names", told.join("\n"));
}

#[test]
fn proxies_follow_a_pool_or_say_that_they_cannot() {
    const HOST: &str = "synapse-sync.matrix.svc.cluster.local";
    let files = |lookup| {
        let case = case("pools", Path::new("/data"), pools(lookup));
        let matcher = Matcher::compile(Table::newest(), &case.topology, &Options::default()).unwrap();
        let topology = &case.topology;
        (haproxy(topology, &matcher).unwrap(), envoy(topology, &matcher), nginx(topology, &matcher))
    };
    let by_name = |text: &str, name: &str| -> String {
        text.split("\n\n")
            .flat_map(|part| part.split("\n  - "))
            .find(|part| part.starts_with(name))
            .unwrap()
            .into()
    };
    let (by_address, envoy, nginx) = files("address");
    let backend = by_name(&by_address, "backend sync_by_user\n");
    assert!(
        backend.contains(&format!("\n    server-template sync_ 1-6 {HOST}:8008 init-addr none")),
        "{backend}"
    );
    assert!(backend.contains("\n    balance hash var(txn.key)\n"), "{backend}");
    let cluster = by_name(&envoy.unwrap(), "name: sync_by_user\n");
    for part in [
        "type: STRICT_DNS\n    respect_dns_ttl: true\n",
        "lb_policy: RING_HASH",
        &format!("address: \"{HOST}\", port_value: 8008"),
        // Of six processes.
        "max_requests: 12000,",
    ] {
        assert!(cluster.contains(part), "no {part} in {cluster}");
    }
    insta::assert_snapshot!(nginx.unwrap_err().to_string(), @"nginx looks up the names of its upstreams only when it starts, so it would not see the processes of the pool `room` come and go; use `render haproxy`, `render envoy` or `matrix-stack router`, or remove `network.hosts.pools`");

    let (by_srv, envoy, _) = files("srv");
    let backend = by_name(&by_srv, "backend sync_by_user\n");
    assert!(
        backend.contains(&format!("\n    server-template sync_ 1-6 _http._tcp.{HOST} init-addr none")),
        "{backend}"
    );
    insta::assert_snapshot!(envoy.unwrap_err().to_string(), @"Envoy looks up addresses and not SRV records, by which the pool `room` is found; set `network.hosts.pools.lookup: address`, or use `render haproxy` or `matrix-stack router`");
}

#[test]
fn a_process_reads_what_is_shared_and_then_its_own() {
    let case = case("small", Path::new("/data"), json!({ "preset": "small" }));
    let args = config_args(&case.layout, case.topology.instance("reader_1").unwrap());
    assert_eq!(args, ["-c", "/data/config/shared.yaml", "-c", "/data/config/reader_1.yaml"]);
}
