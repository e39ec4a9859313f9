//! Every rendered configuration is loaded with the real Synapse's own parser, which must understand it as the topology
//! means it and must have asked for every option in it (Synapse ignores what it does not know).
//!
//! Synapse is found through `MATRIX_STACK_PYTHON`, the Python of an environment with
//! `matrix-synapse[postgres,redis,url-preview]`; without it these tests say so and pass.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::stacks::{Case, case, hosts, pools};
use model::{Address, App, Instance, Network, Role, Stream};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use render::{config_args, synapse, synapse_instance};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The Python to run, or none with a word on why.
fn python(test: &str) -> Option<PathBuf> {
    let python = std::env::var_os("MATRIX_STACK_PYTHON").filter(|path| !path.is_empty());
    if python.is_none() {
        // Straight to stderr: what a passing test prints is otherwise not shown.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: MATRIX_STACK_PYTHON is not set; give it the Python of an environment with Synapse in it"
        );
    }
    python.map(PathBuf::from)
}

/// Runs `load_synapse.py`.
fn ask(python: &Path, request: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/load_synapse.py");
    let mut command = Command::new(python);
    // A proxy in the environment turns off the list of addresses that URL previews must not reach.
    for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env_remove(variable);
    }
    let mut child = command
        .args(["-I", "-B"])
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("MATRIX_STACK_PYTHON={}: {e}", python.display()));
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "load_synapse.py failed ({}); see its stderr above", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

const SIGNING_KEY: &str = "ed25519 a_test AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";

/// The name of a process: of a pool's, that of a pod.
fn process(instance: &Instance) -> String {
    if instance.is_pool() { format!("{}-5d4f-x7k2p", instance.name) } else { instance.name.clone() }
}

/// Writes a case's files and secrets below its data directory.
fn write(case: &Case) {
    let config = case.layout.config();
    std::fs::create_dir_all(&config).unwrap();
    std::fs::create_dir_all(case.layout.secrets()).unwrap();
    for file in synapse(&case.topology, &case.layout) {
        std::fs::write(config.join(file.path), file.contents).unwrap();
    }
    for pool in case.topology.instances().iter().filter(|instance| instance.is_pool()) {
        let files = synapse_instance(&case.topology, &case.layout, &pool.name, Some(&process(pool))).unwrap();
        for file in files {
            std::fs::write(config.join(file.path), file.contents).unwrap();
        }
    }
    let paths = case.layout.secret_paths(case.topology.stack());
    std::fs::write(&paths.signing_key.path, SIGNING_KEY).unwrap();
    for (path, secret) in [
        (&paths.macaroon_secret_key.path, "macaroon"),
        (&paths.form_secret.path, "form"),
        (&paths.registration_shared_secret.path, "registration"),
        (&paths.worker_replication_secret.path, "replication"),
    ] {
        std::fs::write(path, format!("{secret}\n")).unwrap();
    }
    if let Some(path) = &paths.redis_password {
        std::fs::write(path, "hush\n").unwrap();
    }
}

fn cases(dir: &Path) -> Vec<Case> {
    let at = |name: &'static str, stack: Value| case(name, &dir.join(name), stack);
    let media = dir.join("media");
    let secret = |name: &str| json!({ "file": dir.join(name) });
    let mut on_hosts = hosts();
    on_hosts["media"]["store_path"] = json!(media);
    let mut in_pools = pools("address");
    in_pools["media"]["store_path"] = json!(media);
    vec![
        at("small", json!({ "preset": "small" })),
        at("medium", json!({ "preset": "medium" })),
        at("full", json!({ "preset": "full" })),
        at("main-alone", json!({ "preset": "custom" })),
        at("tcp", json!({ "preset": "full", "network": { "tcp": {} } })),
        at("tcp6", json!({ "preset": "small", "network": { "tcp": { "host": "::1", "base_port": 30000 } } })),
        at("hosts", on_hosts),
        at("pools", in_pools),
        at(
            "external",
            json!({
                "preset": "small",
                "public_base_url": "https://matrix.example.org/",
                "database": {
                    "external": { "host": "db.example.org", "port": 5433, "user": "u", "database": "d", "sslmode": "require" },
                    "pool": { "min": 2, "max": 9 },
                },
                "redis": { "external": { "host": "redis.example.org", "port": 6380 } },
                "secrets": { "redis_password": secret("redis_password") },
            }),
        ),
        at(
            "external-socket",
            json!({ "preset": "small", "database": { "external": { "host": "/run/postgresql" } } }),
        ),
        at(
            "own-secrets",
            json!({
                "preset": "custom",
                "secrets": {
                    "signing_key": secret("k"),
                    "macaroon_secret_key": secret("m"),
                    "form_secret": secret("f"),
                    "registration_shared_secret": secret("r"),
                    "worker_replication_secret": secret("w"),
                },
            }),
        ),
        at("closed", json!({ "preset": "medium", "federation": { "enabled": false } })),
        at(
            "previews",
            json!({ "preset": "medium", "media": { "url_previews": true, "max_upload_size": "1G" } }),
        ),
        at(
            "previews-main",
            json!({ "preset": "small", "media": { "url_previews": true, "store_path": media } }),
        ),
        at(
            "pieces",
            json!({
                "preset": "custom",
                "workers": {
                    "typing": {},
                    "mixed": { "roles": ["receipts", "room", "device_lists", "event_persister"], "count": 3 },
                    "user_dir": {},
                    "quarantine": { "roles": ["quarantined_media_changes"], "count": 2 },
                    "media_background": {},
                    "pusher": { "count": 3 },
                    "quiet": { "roles": ["background", "federation_sender"] },
                },
            }),
        ),
        at("media-only", json!({ "preset": "custom", "workers": { "media_repository": { "count": 2 } } })),
        at(
            "passed-through",
            json!({
                "preset": "small",
                "registration": { "open": true },
                "caches": { "global_factor": 2.0 },
                "workers": {
                    "reader": {
                        "pool": { "min": 1, "max": 12 },
                        "cache_factor": 0.25,
                        "extra": {
                            "caches": { "per_cache_factors": { "get_event": 4.5 } },
                            "experimental_features": { "msc2815_enabled": true },
                            "rc_message": { "per_second": 7, "burst_count": 70 },
                        },
                    },
                },
                "synapse": {
                    "extra": {
                        "caches": { "per_cache_factors": { "get_room": 3 } },
                        "experimental_features": { "msc4140_max_delayed_events_per_user": 5 },
                        "report_stats": true,
                        "trusted_key_servers": [{ "server_name": "keys.example.org" }],
                        "presence": { "enabled": true },
                    },
                },
            }),
        ),
    ]
}

/// What Synapse must say of one process.
fn expected(case: &Case, instance: &Instance) -> Value {
    let (topology, layout, stack) = (&case.topology, &case.layout, case.topology.stack());
    let names =
        |instances: Vec<&Instance>| instances.iter().map(|i| i.writer_name().to_owned()).collect::<Vec<_>>();
    let or_main = |role: Role| {
        let carriers: Vec<_> = topology.with_role(role).collect();
        names(if carriers.is_empty() { vec![topology.main()] } else { carriers })
    };
    let own_name = if instance.is_pool() { process(instance) } else { instance.writer_name().to_owned() };
    let duties: Vec<&str> = [
        ("background", Role::Background),
        ("appservices", Role::Background),
        ("user_directory", Role::UserDir),
        ("pusher", Role::Pusher),
        ("federation_sender", Role::FederationSender),
    ]
    .into_iter()
    .filter(|(_, role)| or_main(*role).contains(&own_name))
    .map(|(duty, _)| duty)
    .collect();

    let writers: Map<_, _> = Stream::ALL
        .iter()
        .map(|s| (s.name().to_owned(), json!(names(topology.writers(*s).collect()))))
        .collect();
    let instance_map: Map<_, _> = topology
        .instances()
        .iter()
        .filter(|i| i.replication)
        .map(|i| (i.name.clone(), serde_json::to_value(&i.private).unwrap()))
        .collect();
    let media = instance.enable_media_repo.then(|| {
        let mut media = json!({
            "background": topology.serving(Role::MediaBackground).1[0].writer_name(),
            "store": layout.media(stack),
            "max_upload_size": stack.media.max_upload_bytes(),
        });
        if stack.media.url_previews {
            media["reachable"] = json!(["1.1.1.1", "2606:4700::1111"]);
        }
        media
    });
    let (extra, own_extra) = (&stack.synapse.extra, &instance.extra);
    let mut cache_factors = Map::new();
    for extra in [extra, own_extra] {
        if let Some(factors) = extra.get("caches").and_then(|caches| caches["per_cache_factors"].as_object())
        {
            cache_factors.extend(factors.clone());
        }
    }
    json!({
        "app": if instance.is_main() { None } else { Some(instance.app.module()) },
        "name": own_name,
        "writers": writers,
        "instance_map": instance_map,
        "duties": duties,
        "pushers": or_main(Role::Pusher),
        "federation_senders": or_main(Role::FederationSender),
        "listeners": listeners(case, instance),
        "other_listeners": 0,
        "database": database(case, instance),
        "redis": redis(case),
        "server_name": "example.org",
        "public_baseurl": format!("{}/", stack.base_url()),
        "report_stats": extra.get("report_stats").unwrap_or(&json!(false)),
        "enable_metrics": true,
        "whitelist": if stack.federation.enabled { Value::Null } else { json!({}) },
        "key_servers": match extra.get("trusted_key_servers") {
            Some(servers) => json!([servers[0]["server_name"]]),
            None if stack.federation.enabled => json!(["matrix.org"]),
            None => json!([]),
        },
        "registration": [stack.registration.open, stack.registration.open],
        "secrets": {
            "signing_key": ["ed25519:a_test"],
            "macaroon": "macaroon",
            "form": "form",
            "registration": "registration",
            "replication": "replication",
        },
        "global_factor": instance.cache_factor.unwrap_or(stack.caches.global_factor),
        "cache_factors": cache_factors,
        "msc4306": topology.with_role(Role::ThreadSubscriptions).next().is_some(),
        "url_previews": stack.media.url_previews,
        "media": media,
    })
}

fn listeners(case: &Case, instance: &Instance) -> Value {
    let stack = case.topology.stack();
    let place = |address: &Address| match address {
        Address::Unix { path } => json!({ "path": path, "mode": 0o600 }),
        Address::Tcp { host, port } => {
            let bind = if matches!(stack.network, Network::Hosts(_)) {
                json!(["::", "0.0.0.0"])
            } else {
                json!([host])
            };
            json!({ "port": port, "bind_addresses": bind })
        }
    };
    let mut listeners = Vec::new();
    if let Some(address) = &instance.client {
        let mut listener = place(address);
        listener["resources"] = match (instance.app, stack.federation.enabled) {
            (App::Media, _) => json!(["media"]),
            (_, true) => json!(["client", "federation"]),
            (_, false) => json!(["client"]),
        };
        listener["x_forwarded"] = json!(true);
        listener["request_id_header"] = json!("X-Request-ID");
        listeners.push(listener);
    }
    let mut listener = place(&instance.private);
    let mut resources = vec!["health", "metrics"];
    if instance.replication {
        resources.push("replication");
    }
    if instance.app == App::Media && instance.client.is_none() {
        resources.push("media");
    }
    listener["resources"] = json!(resources);
    // Synapse's default: what comes through a unix socket says by a header where it came from.
    listener["x_forwarded"] = json!(matches!(instance.private, Address::Unix { .. }));
    listener["request_id_header"] = Value::Null;
    listeners.push(listener);
    for listener in &mut listeners {
        listener["type"] = json!("http");
    }
    listeners.into()
}

fn database(case: &Case, instance: &Instance) -> Value {
    let (layout, stack) = (&case.layout, case.topology.stack());
    let mut args = match &stack.database.external {
        None => {
            json!({ "host": layout.postgres_socket_dir(), "port": 5432, "user": "synapse", "dbname": "synapse" })
        }
        Some(server) => {
            let mut args = json!({ "host": server.host, "port": server.port, "user": server.user, "dbname": server.database });
            if let Some(sslmode) = &server.sslmode {
                args["sslmode"] = json!(sslmode);
            }
            if !server.host.starts_with('/') {
                args["keepalives_idle"] = json!(10);
                args["keepalives_interval"] = json!(10);
                args["keepalives_count"] = json!(3);
            }
            args
        }
    };
    args["passfile"] = json!(layout.secret_paths(stack).pgpass);
    args["application_name"] = json!(format!("synapse {}", process(instance)));
    args["cp_min"] = json!(instance.pool.min);
    args["cp_max"] = json!(instance.pool.max);
    json!({ "engine": "psycopg2", "args": args })
}

fn redis(case: &Case) -> Value {
    let stack = case.topology.stack();
    match &stack.redis.external {
        None => json!({
            "enabled": true, "path": case.layout.valkey_socket(),
            // Synapse's defaults, which it does not look at when there is a path.
            "host": "localhost", "port": 6379, "dbid": null, "password": null,
        }),
        Some(server) => json!({
            "enabled": true, "path": null, "host": server.host, "port": server.port, "dbid": server.dbid,
            "password": stack.secrets.redis_password.as_ref().map(|_| "hush"),
        }),
    }
}

#[test]
fn synapse_understands_every_file() {
    let Some(python) = python("synapse_understands_every_file") else { return };
    let dir = TempDir::new().unwrap();
    let cases = cases(dir.path());
    let mut jobs = Vec::new();
    for case in &cases {
        write(case);
        for instance in case.topology.instances() {
            jobs.push(json!({
                "module": instance.app.module(),
                "args": config_args(&case.layout, instance),
                "directory": case.layout.config(),
            }));
        }
    }
    let answer = ask(&python, &json!({ "jobs": jobs }));
    let mut results = answer["jobs"].as_array().unwrap().iter();
    let mut wrong = Vec::new();
    for case in &cases {
        let mut loaded = Vec::new();
        for instance in case.topology.instances() {
            let place = format!("{}, {}", case.name, instance.name);
            let result = results.next().unwrap();
            if let Some(error) = result["error"].as_str() {
                wrong.push(format!("{place}: {error}"));
                continue;
            }
            wrong.extend(differences(&place, &expected(case, instance), &result["facts"]));
            for key in result["own_unread"].as_array().unwrap() {
                wrong.push(format!("{place}: Synapse never asks for {key} of {}.yaml", instance.name));
            }
            loaded.push((instance, result));
        }
        // What holds between processes can be judged where all of them load.
        if loaded.len() == case.topology.instances().len() {
            wrong.extend(never_read(case, &loaded));
            wrong.extend(disagreements(case, &loaded));
        }
    }
    assert!(results.next().is_none());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differences(place: &str, expected: &Value, facts: &Value) -> Vec<String> {
    let (expected, facts) = (expected.as_object().unwrap(), facts.as_object().unwrap());
    let keys: BTreeSet<_> = expected.keys().chain(facts.keys()).collect();
    keys.into_iter()
        .filter(|key| expected.get(*key) != facts.get(*key))
        .map(|key| {
            format!("{place}: {key}: expected {:?}, Synapse says {:?}", expected.get(key), facts.get(key))
        })
        .collect()
}

/// The keys of `shared.yaml` that no process asks for.
fn never_read(case: &Case, loaded: &[(&Instance, &Value)]) -> Vec<String> {
    let mut unread = loaded.iter().map(|(_, result)| {
        result["shared_unread"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key.as_str().unwrap())
            .collect::<BTreeSet<_>>()
    });
    let first = unread.next().unwrap_or_default();
    let never = unread.fold(first, |all, one| &all & &one);
    never.iter().map(|key| format!("{}: no process asks for {key} of shared.yaml", case.name)).collect()
}

/// Rules between processes, judged by what Synapse says alone.
fn disagreements(case: &Case, loaded: &[(&Instance, &Value)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut duties: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let by_name: BTreeMap<&str, &Value> = loaded
        .iter()
        .map(|(_, result)| (result["facts"]["name"].as_str().unwrap(), &result["facts"]))
        .collect();
    let main = by_name["master"];
    for (name, facts) in &by_name {
        for agreed in ["writers", "instance_map", "pushers", "federation_senders"] {
            if facts[agreed] != main[agreed] {
                wrong.push(format!("{}: {name} and main differ in {agreed}", case.name));
            }
        }
        for duty in facts["duties"].as_array().unwrap() {
            duties.entry(duty.as_str().unwrap()).or_default().push(name);
        }
    }
    let serves = |facts: &Value, resource: &str| {
        facts["listeners"]
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["resources"].as_array().unwrap().contains(&json!(resource)))
            .cloned()
    };
    for (stream, writers) in main["writers"].as_object().unwrap() {
        for writer in writers.as_array().unwrap() {
            let name = writer.as_str().unwrap();
            let facts = by_name[name];
            let Some(listener) = serves(facts, "replication") else {
                wrong.push(format!("{}: {name} writes {stream} without a replication listener", case.name));
                continue;
            };
            let place = &main["instance_map"][if name == "master" { "main" } else { name }];
            if place["path"] != listener["path"] || place["port"] != listener["port"] {
                wrong.push(format!(
                    "{}: {name} listens on {listener}, others look for it at {place}",
                    case.name
                ));
            }
            if stream == "quarantined_media_changes" && facts["media"].is_null() {
                wrong.push(format!("{}: {name} writes {stream} without a media repository", case.name));
            }
        }
    }
    for duty in ["background", "appservices", "user_directory"] {
        if duties.get(duty).map_or(0, Vec::len) != 1 {
            wrong.push(format!("{}: {duty} is done by {:?}", case.name, duties.get(duty)));
        }
    }
    for (duty, list) in [("pusher", "pushers"), ("federation_sender", "federation_senders")] {
        let listed: BTreeSet<_> =
            main[list].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let doing: BTreeSet<_> = duties.get(duty).into_iter().flatten().copied().collect();
        if doing.is_empty() || listed != doing {
            wrong.push(format!("{}: {list} are {listed:?}, and {doing:?} do it", case.name));
        }
    }
    // The media repository is loaded, its background jobs included, where it is enabled and a listener serves it.
    let media: Vec<_> = by_name.values().filter(|facts| !facts["media"].is_null()).collect();
    let background = media.iter().filter(|facts| facts["media"]["background"] == facts["name"]).count();
    if background != 1 {
        wrong.push(format!(
            "{}: {background} processes run the media repository's background jobs",
            case.name
        ));
    }
    for facts in media {
        if serves(facts, "media").is_none() && facts["name"] != "master" {
            wrong.push(format!("{}: {} loads no media repository", case.name, facts["name"]));
        }
    }
    wrong
}

/// Values that parsers like to take for something else.
const AWKWARD: &[&str] = &[
    "on",
    "Off",
    "yes",
    "y",
    "N",
    "true",
    "NULL",
    "~",
    "",
    " ",
    "1",
    "-1",
    "1.5",
    "1e3",
    "0x10",
    "010",
    "0o17",
    "1_000",
    "1:30",
    "12:30:45",
    ".inf",
    "-.INF",
    ".nan",
    "=",
    "<<",
    "2001-01-01",
    "2001-01-01T00:00:00Z",
    "a: b",
    "a:b",
    "a #b",
    "#a",
    "- a",
    "-",
    "?",
    "? a",
    ":",
    "*a",
    "&a",
    "!!str a",
    "%TAG",
    "@a",
    "`a",
    "[a]",
    "{a: b}",
    "|",
    ">",
    "'",
    "\"",
    "\\",
    "---",
    "...",
    " a",
    "a ",
    "a\nb",
    "a\r\nb",
    "\t",
    "\u{0}",
    "\u{1b}",
    "\u{7f}",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{feff}",
    "\u{ffff}",
    "é",
    "😀",
];

fn awkward_value() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![prop::sample::select(AWKWARD).prop_map(str::to_owned), any::<String>()];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Exact in both directions, whatever parses them.
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
        Just(json!(1e22)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..8)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

#[test]
fn what_is_passed_through_arrives_unchanged() {
    let Some(python) = python("what_is_passed_through_arrives_unchanged") else { return };
    let mut runner = TestRunner::deterministic();
    let mut values: Vec<Value> =
        (0..300).map(|_| awkward_value().new_tree(&mut runner).unwrap().current()).collect();
    values.push(
        AWKWARD.iter().map(|text| ((*text).to_owned(), Value::from(*text))).collect::<Map<_, _>>().into(),
    );
    let values = Value::from(values);
    let dir = TempDir::new().unwrap();
    let case = case(
        "awkward",
        dir.path(),
        json!({ "preset": "custom", "synapse": { "extra": { "x_values": values } } }),
    );
    write(&case);
    let answer = ask(&python, &json!({ "yaml": case.layout.config().join("shared.yaml") }));
    for loaded in answer["yaml"].as_array().unwrap() {
        for (sent, got) in values.as_array().unwrap().iter().zip(loaded["x_values"].as_array().unwrap()) {
            assert_eq!(sent, got);
        }
        assert_eq!(values.as_array().unwrap().len(), loaded["x_values"].as_array().unwrap().len());
    }
}
