//! Each rule that the planner keeps: a stack that would break it is refused, with the field to blame and the mend.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use model::{
    Action, Address, App, Hosts, Lookup, Network, Pool, Pools, Postgres, Preset, Problem, ProxyProtocol,
    RedisServer, Replicas, Role, ServerName, Sources, Stack, Stream, Tcp, Topology, WorkerGroup, compare,
    estimate, plan,
};

fn stack(preset: Preset) -> Stack {
    let mut stack = Stack::new(ServerName::try_from("example.org".to_owned()).unwrap());
    stack.preset = Some(preset);
    stack
}

fn group(roles: &[Role], count: u16) -> WorkerGroup {
    WorkerGroup { roles: Some(roles.to_vec()), count: Some(count), ..WorkerGroup::default() }
}

fn planned(stack: &Stack) -> Result<Topology, Vec<Problem>> {
    plan(stack, Path::new("/data/run"), Preset::Small).map_err(|problems| problems.0)
}

/// Plans a stack that must be refused for exactly one reason, and gives `field: reason; mend`.
#[track_caller]
fn refused(stack: &Stack) -> String {
    let problems = planned(stack).expect_err("the stack should be refused");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    format!("{}: {}; {}", problems[0].field(), problems[0], problems[0].mend())
}

#[test]
fn every_preset_plans_without_a_problem() {
    for preset in [Preset::Custom, Preset::Small, Preset::Medium, Preset::Full] {
        let topology = planned(&stack(preset)).unwrap();
        assert_eq!(topology.violations(), []);
    }
}

#[test]
fn presets() {
    let describe = |preset| {
        let topology = planned(&stack(preset)).unwrap();
        let mut lines = Vec::new();
        for i in topology.instances() {
            let roles: Vec<_> = i.roles.iter().map(|r| r.name()).collect();
            let writes: Vec<_> = i.writes.iter().map(|s| s.name()).collect();
            let mut line = format!("{} [{}]", i.name, roles.join(" "));
            if !writes.is_empty() {
                line = format!("{line} writes {}", writes.join(" "));
            }
            lines.push(format!("{line}{}", if i.client.is_some() { "" } else { " (no client listener)" }));
        }
        lines.join("\n")
    };
    insta::assert_snapshot!("small", describe(Preset::Small));
    insta::assert_snapshot!("medium", describe(Preset::Medium));
    insta::assert_snapshot!("full", describe(Preset::Full));
}

#[test]
fn a_singleton_stream_has_exactly_one_writer() {
    for role in [Role::Typing, Role::ToDevice, Role::AccountData, Role::Presence, Role::PushRules] {
        let mut stack = stack(Preset::Custom);
        stack.workers.insert(role.name().to_owned(), group(&[role], 2));
        let message = refused(&stack);
        assert!(
            message
                .starts_with(&format!("workers.{role}.count: `{role}` can be carried by one process only")),
            "{message}"
        );
        assert!(message.contains("set `count: 1`"), "{message}");
    }
}

#[test]
fn a_singleton_role_in_two_groups_is_refused() {
    let mut stack = stack(Preset::Full);
    stack.workers.insert("mine".to_owned(), group(&[Role::Typing, Role::Presence], 1));
    let problems = planned(&stack).unwrap_err();
    assert_eq!(problems.len(), 2);
    let text = format!("{}: {}; {}", problems[0].field(), problems[0], problems[0].mend());
    insta::assert_snapshot!(text, @"workers.mine.roles: `typing` can be carried by one process only, but 2 would carry it (typing, mine); leave `typing` in one of these groups, with `count: 1`; `count: 0` removes a group of the preset");
}

#[test]
fn roles_that_exist_once_are_refused_twice() {
    for role in [Role::UserDir, Role::Background] {
        let mut stack = stack(Preset::Custom);
        stack.workers.insert(role.name().to_owned(), group(&[role], 3));
        assert!(refused(&stack).contains("3 would carry it"));
    }
}

#[test]
fn scalable_streams_have_at_least_one_writer_and_may_have_many() {
    for role in [Role::Receipts, Role::DeviceLists, Role::ThreadSubscriptions, Role::EventPersister] {
        let mut stack = stack(Preset::Custom);
        let stream = role.stream().unwrap();
        let topology = planned(&stack).unwrap();
        assert_eq!(
            topology.writers(stream).map(model::Instance::writer_name).collect::<Vec<_>>(),
            ["master"]
        );
        stack.workers.insert(role.name().to_owned(), group(&[role], 3));
        assert_eq!(planned(&stack).unwrap().writers(stream).count(), 3);
    }
}

#[test]
fn main_is_called_main_and_writes_as_master() {
    let topology = planned(&stack(Preset::Custom)).unwrap();
    assert_eq!((topology.main().name.as_str(), topology.main().writer_name()), ("main", "master"));
    for name in ["main", "master"] {
        let mut stack = stack(Preset::Custom);
        stack.workers.insert(name.to_owned(), group(&[Role::Sync], 1));
        assert!(
            refused(&stack).starts_with(&format!("workers.{name}: `{name}` is the main process's own name"))
        );
    }
    let mut stack = stack(Preset::Custom);
    stack.workers.insert("boss".to_owned(), group(&[Role::Main], 1));
    assert!(refused(&stack).starts_with("workers.boss.roles: `main` cannot be given to a group"));
}

#[test]
fn every_writer_serves_replication_and_options_that_would_bypass_it_are_refused() {
    let topology = planned(&stack(Preset::Full)).unwrap();
    for stream in Stream::ALL {
        assert!(topology.writers(stream).all(|i| i.replication), "{stream}");
    }
    for option in
        ["instance_map", "stream_writers", "worker_replication_secret", "enable_media_repo", "listeners"]
    {
        let mut stack = stack(Preset::Small);
        stack.synapse.extra.insert(option.to_owned(), serde_json::json!({}));
        assert!(
            refused(&stack)
                .starts_with(&format!("synapse.extra.{option}: matrix-stack sets Synapse's option"))
        );
        let mut stack = self::stack(Preset::Small);
        stack.workers.entry("reader".to_owned()).or_default().extra.insert(option.to_owned(), 1.into());
        assert!(refused(&stack).starts_with(&format!("workers.reader.extra.{option}: ")));
    }
}

#[test]
fn quarantine_writers_are_media_processes() {
    let topology = planned(&stack(Preset::Full)).unwrap();
    assert!(
        topology.writers(Stream::QuarantinedMediaChanges).all(|i| i.app == App::Media && i.enable_media_repo)
    );
    // Without the role, the media processes write; without those, main.
    let mut stack = stack(Preset::Custom);
    let writers = |stack: &Stack| {
        let topology = planned(stack).unwrap();
        topology.writers(Stream::QuarantinedMediaChanges).map(|i| i.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(writers(&stack), ["main"]);
    stack.workers.insert("media_repository".to_owned(), WorkerGroup::default());
    assert_eq!(writers(&stack), ["media_repository_1"]);
}

#[test]
fn a_media_process_does_nothing_else() {
    for (media, other) in [
        (Role::MediaRepository, Role::Typing),
        (Role::MediaRepository, Role::Room),
        (Role::QuarantinedMediaChanges, Role::ClientReader),
        (Role::MediaBackground, Role::FederationSender),
    ] {
        let mut stack = stack(Preset::Custom);
        stack.workers.insert("media_repository".to_owned(), WorkerGroup::default());
        stack.workers.insert("mixed".to_owned(), group(&[media, other], 1));
        let message = refused(&stack);
        assert!(
            message.starts_with("workers.mixed.roles: the group `mixed` is a media process because of"),
            "{message}"
        );
        assert!(
            message.ends_with(&format!("put `{media}` and `{other}` in groups of their own")),
            "{message}"
        );
    }
}

#[test]
fn the_media_repository_runs_on_media_processes_or_on_main() {
    for preset in [Preset::Custom, Preset::Small] {
        let topology = planned(&stack(preset)).unwrap();
        assert!(topology.instances().iter().all(|i| i.enable_media_repo == i.is_main()));
    }
    for preset in [Preset::Medium, Preset::Full] {
        let topology = planned(&stack(preset)).unwrap();
        assert!(topology.instances().iter().all(|i| i.enable_media_repo == (i.app == App::Media)));
    }
    let mut stack = stack(Preset::Custom);
    stack.workers.insert("media_background".to_owned(), WorkerGroup::default());
    assert!(
        refused(&stack).starts_with("workers.media_background: `media_background` makes a media process")
    );
}

#[test]
fn roles_without_requests_open_no_client_listener() {
    let topology = planned(&stack(Preset::Full)).unwrap();
    for role in [Role::Background, Role::Pusher, Role::FederationSender, Role::MediaBackground] {
        assert!(topology.with_role(role).all(|i| i.client.is_none()), "{role}");
    }
}

#[test]
fn media_processes_on_several_hosts_share_storage() {
    let mut stack = on_hosts();
    let message = refused(&stack);
    assert!(message.starts_with("media.shared_storage: 5 media processes run on hosts"), "{message}");
    stack.media.shared_storage = true;
    assert!(planned(&stack).is_ok());
}

/// The full preset with each process on a host of its own, and nothing wrong but that media is not shared.
fn on_hosts() -> Stack {
    let mut stack = stack(Preset::Full);
    stack.network = Network::Hosts(Hosts::default());
    let external =
        Postgres { host: "db".into(), port: 5432, user: "s".into(), database: "s".into(), sslmode: None };
    stack.database.external = Some(external);
    stack.database.max_connections = Some(200);
    stack.redis.external = Some(RedisServer { host: "valkey".into(), port: 6379, dbid: 0 });
    stack
}

#[test]
fn processes_on_several_hosts_need_servers_that_all_of_them_reach() {
    let mut stack = on_hosts();
    stack.media.shared_storage = true;
    stack.redis.external = None;
    insta::assert_snapshot!(refused(&stack), @"redis.external: processes on hosts of their own cannot reach the Valkey that matrix-stack runs, which has only a unix socket; set `redis.external` to a server that all hosts reach");
    let mut stack = on_hosts();
    stack.media.shared_storage = true;
    stack.database.external = None;
    assert!(refused(&stack).starts_with("database.external: processes on hosts of their own cannot reach"));
}

/// The same with pools, and media that is shared.
fn with_pools() -> Stack {
    let mut stack = on_hosts();
    stack.media.shared_storage = true;
    let pools = Pools { suffix: ".pools.svc".to_owned(), lookup: Lookup::Address };
    stack.network =
        Network::Hosts(Hosts { suffix: ".svc".to_owned(), pools: Some(pools), ..Hosts::default() });
    stack
}

#[test]
fn groups_that_nobody_knows_by_name_are_pools() {
    let topology = planned(&with_pools()).unwrap();
    for instance in topology.instances() {
        let elastic = instance.roles.iter().all(|role| role.spec().elastic);
        assert_eq!(instance.is_pool(), elastic, "{}", instance.name);
    }
    let sync = topology.instance("initial_sync").unwrap();
    let host = || "synapse-initial-sync.pools.svc".to_owned();
    assert_eq!(sync.client, Some(Address::Tcp { host: host(), port: 8008 }));
    assert_eq!(sync.private, Address::Tcp { host: host(), port: 9093 });
    assert_eq!(sync.replicas, Some(Replicas { count: 2, max: 2, lookup: Lookup::Address }));
    // As many processes as without pools, and spread in the same way.
    assert_eq!((topology.processes(), estimate(&topology).processes), (37, 37));
    assert_eq!(topology.balance(Role::Sync), Role::Sync.spec().balance);
    assert_eq!(topology.named("sync").len(), 1);
    let writer = topology.instance("event_persister_2").unwrap();
    assert_eq!(
        writer.client,
        Some(Address::Tcp { host: "synapse-event-persister-2.svc".to_owned(), port: 8008 })
    );
}

#[test]
fn a_media_process_is_in_no_pool_while_it_does_what_is_done_by_name() {
    for missing in ["media_background", "quarantined_media_changes"] {
        let mut stack = with_pools();
        stack.workers.insert(missing.to_owned(), WorkerGroup { count: Some(0), ..WorkerGroup::default() });
        let topology = planned(&stack).unwrap();
        assert!(topology.instance("media_repository_2").is_some(), "{missing}");
        stack.workers.entry("media_repository".to_owned()).or_default().max_count = Some(3);
        let message = refused(&stack);
        let why = format!("`{missing}` makes other processes know it by name");
        assert!(message.contains(&why), "{message}");
    }
}

#[test]
fn the_largest_pool_is_planned_for() {
    let mut stack = with_pools();
    let group = WorkerGroup { max_count: Some(6), ..WorkerGroup::default() };
    stack.workers.insert("sync".to_owned(), group);
    assert!(refused(&stack).starts_with(
        "database.max_connections: 41 Synapse processes may open 220 database connections (with 15 kept"
    ));
    stack.database.max_connections = Some(220);
    let topology = planned(&stack).unwrap();
    assert_eq!(topology.instance("sync").unwrap().replicas.unwrap().max, 6);
    assert_eq!((estimate(&topology).processes, estimate(&topology).connections), (41, 220));
    // One media process is one too many for storage of its own if there may be more.
    let mut stack = with_pools();
    stack.media.shared_storage = false;
    stack.workers.insert("media_background".to_owned(), WorkerGroup::default());
    assert!(refused(&stack).starts_with("media.shared_storage: 5 media processes"));
}

#[test]
fn a_largest_count_is_for_pools_and_no_smaller_than_the_first() {
    let with = |name: &str, mut stack: Stack, group: WorkerGroup| {
        stack.workers.insert(name.to_owned(), group);
        refused(&stack)
    };
    let most = |max: u16| WorkerGroup { max_count: Some(max), ..WorkerGroup::default() };
    insta::assert_snapshot!(with("sync", with_pools(), most(1)), @"workers.sync.max_count: the group `sync` may have 1 instances at most, but begins with 2; set a `max_count` of at least 2");
    assert!(
        with("sync", with_pools(), most(65)).starts_with("workers.sync.max_count: the group `sync` has 65")
    );
    insta::assert_snapshot!(with("receipts", with_pools(), most(3)), @"workers.receipts.max_count: `max_count` is for pools, and the group `receipts` is none: `receipts` makes other processes know it by name; set `count` instead, or give the group only roles that can be in a pool");
    let mut stack = on_hosts();
    stack.media.shared_storage = true;
    insta::assert_snapshot!(with("sync", stack, most(3)), @"workers.sync.max_count: `max_count` is for pools, and the group `sync` is none: each of its processes has a name of its own; set `count` instead, or set `network.hosts.pools`");
    // A process of the one would be called like the other.
    let message =
        with("receipts_1", with_pools_and(300), WorkerGroup { roles: Some(vec![Role::Sync]), ..most(1) });
    assert!(
        message.starts_with("workers.receipts_1: the pool `receipts_1` and a process of another group"),
        "{message}"
    );
}

#[test]
fn nobody_restarts_when_a_pool_is_resized_or_named_otherwise() {
    let mut old = with_pools_and(300);
    let plan = |stack: &Stack| planned(stack).unwrap();
    let mut new = old.clone();
    new.workers.insert(
        "sync".to_owned(),
        WorkerGroup { count: Some(3), max_count: Some(8), ..WorkerGroup::default() },
    );
    let comparison = compare(&plan(&old), &plan(&new));
    assert!(comparison.changes.iter().all(|c| c.action == Action::Keep), "{comparison:#?}");
    assert!(!comparison.router);

    let Network::Hosts(hosts) = &mut new.network else { unreachable!("they are on hosts") };
    hosts.pools = Some(Pools { suffix: ".elsewhere".to_owned(), lookup: Lookup::Srv });
    let comparison = compare(&plan(&old), &plan(&new));
    assert!(comparison.changes.iter().all(|c| c.action == Action::Keep), "{comparison:#?}");
    assert!(comparison.router);

    // Without pools, other processes take their place, and those with names stay as they are.
    let Network::Hosts(hosts) = &mut old.network else { unreachable!("they are on hosts") };
    hosts.pools = None;
    old.workers.clear();
    let comparison = compare(&plan(&old), &plan(&with_pools_and(300)));
    for change in &comparison.changes {
        let name = &change.instance;
        let elastic =
            |t: &Topology| t.instance(name).is_some_and(|i| i.roles.iter().all(|role| role.spec().elastic));
        let expected = match (elastic(&plan(&old)), elastic(&plan(&with_pools_and(300)))) {
            (true, _) => Action::Stop,
            (_, true) => Action::Start,
            _ => Action::Keep,
        };
        assert_eq!(change.action, expected, "{name}");
        if expected != Action::Keep {
            assert_eq!(change.because, ["network.hosts.pools"], "{name}");
        }
    }
}

fn with_pools_and(max_connections: u32) -> Stack {
    let mut stack = with_pools();
    stack.database.max_connections = Some(max_connections);
    stack
}

#[test]
fn a_factor_for_all_caches_stands_in_one_place() {
    let mut stack = stack(Preset::Small);
    let caches = serde_json::json!({"global_factor": 2, "expire_caches": true});
    stack.synapse.extra.insert("caches".to_owned(), caches);
    assert!(refused(&stack).starts_with("synapse.extra.caches.global_factor: matrix-stack sets"));
    stack.synapse.extra.insert("caches".to_owned(), serde_json::json!({"expire_caches": true}));
    assert!(planned(&stack).is_ok());
}

#[test]
fn database_pools_fit_the_server() {
    let mut stack = stack(Preset::Full);
    stack.database.max_connections = Some(100);
    insta::assert_snapshot!(refused(&stack), @"database.max_connections: 37 Synapse processes may open 200 database connections (with 15 kept for administration), but the server allows 100; raise `max_connections` of the server and here to at least 200, or lower `database.pool.max` to 2");
    stack.database.pool.max = 2;
    assert!(planned(&stack).is_ok());

    // A server of the user's own is taken to allow what PostgreSQL allows by default.
    let mut stack = self::stack(Preset::Full);
    let external =
        Postgres { host: "db".into(), port: 5432, user: "s".into(), database: "s".into(), sslmode: None };
    stack.database.external = Some(external);
    assert!(refused(&stack).starts_with("database.max_connections: "));

    // The one that matrix-stack runs gets what the stack needs.
    assert_eq!(planned(&self::stack(Preset::Full)).unwrap().max_connections(), 200);
}

#[test]
fn a_pool_is_the_right_way_round() {
    let mut stack = stack(Preset::Small);
    stack.workers.insert(
        "reader".to_owned(),
        WorkerGroup { pool: Some(Pool { min: 9, max: 3 }), ..Default::default() },
    );
    assert!(refused(&stack).starts_with("workers.reader.pool: the smallest number of connections, 9"));
}

#[test]
fn no_two_listeners_share_an_address() {
    let mut stack = stack(Preset::Small);
    stack.network = Network::Tcp(Tcp { base_port: 8007, ..Tcp::default() });
    insta::assert_snapshot!(refused(&stack), @"listen.address: `listen.address` and `main` would both listen on 127.0.0.1:8008; give one of them another port");
    stack.network = Network::default();
    stack.listen.metrics = Some("0.0.0.0:8008".to_owned());
    assert!(
        refused(&stack)
            .starts_with("listen.metrics: `listen.address` and `listen.metrics` would both listen")
    );
    stack.listen.metrics = Some("nowhere".to_owned());
    assert!(refused(&stack).starts_with("listen.metrics: `nowhere` is not an address and a port"));
}

#[test]
fn the_router_may_listen_on_a_unix_socket() {
    let mut stack = stack(Preset::Small);
    stack.listen.address = "unix:/run/matrix.sock".to_owned();
    insta::assert_snapshot!(refused(&stack), @"public_base_url: `unix:/run/matrix.sock` does not say under which URL clients reach the homeserver; set it to the URL of the proxy in front, such as `https://matrix.example.org`");
    stack.public_base_url = Some("https://matrix.example.org".to_owned());
    planned(&stack).unwrap();
    for nowhere in ["unix:", "unix:matrix.sock", "unix:/run/", "/run/matrix.sock", "localhost:8008"] {
        stack.listen.address = nowhere.to_owned();
        let start = format!("listen.address: `{nowhere}` is not an address and a port");
        assert!(refused(&stack).starts_with(&start), "{}", refused(&stack));
    }
    stack.listen.address = format!("unix:/{}", "x".repeat(107));
    assert!(refused(&stack).starts_with("listen.address: the socket path "));
    // Prometheus asks over TCP.
    (stack.listen.address, stack.listen.metrics) = ("[::]:1".to_owned(), Some("unix:/run/m.sock".to_owned()));
    assert!(refused(&stack).starts_with("listen.metrics: "));
}

#[test]
fn load_balancers_are_known_by_their_networks() {
    let from = |networks: &[&str]| ProxyProtocol {
        from: networks.iter().map(|network| (*network).to_owned().try_into().unwrap()).collect(),
    };
    let some = from(&["10.0.0.0/8", "2001:db8::1"]);
    for (address, allowed) in [
        ("10.9.9.9", true),
        ("11.0.0.1", false),
        ("2001:db8::1", true),
        ("2001:db8::2", false),
        ("::ffff:10.0.0.1", false),
    ] {
        assert_eq!(some.allows(address.parse().unwrap()), allowed, "{address}");
    }
    assert!(from(&[]).allows("192.0.2.1".parse().unwrap()));
    for bad in ["", "10.0.0.0/33", "load-balancer.example", "10.0.0.0/8,::/0"] {
        assert!(Sources::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

#[test]
fn ports_and_socket_paths_fit() {
    let mut stack = stack(Preset::Full);
    stack.network = Network::Tcp(Tcp { base_port: 65500, ..Tcp::default() });
    insta::assert_snapshot!(refused(&stack), @"network.tcp.base_port: 37 processes take two ports each, and counted up from 65500 they pass 65535; set a `base_port` of at most 65462");
    stack.network = Network::Tcp(Tcp { base_port: 65462, ..Tcp::default() });
    assert!(planned(&stack).is_ok());
    stack.network = Network::Unix;
    let deep = format!("/{}", "d".repeat(100));
    let problems = plan(&stack, Path::new(&deep), Preset::Small).unwrap_err().0;
    assert!(matches!(problems[..], [Problem::SocketPathTooLong { .. }]), "{problems:?}");
}

#[test]
fn groups_have_usable_names_roles_and_counts() {
    let with = |name: &str, group: WorkerGroup| {
        let mut stack = stack(Preset::Custom);
        stack.workers.insert(name.to_owned(), group);
        refused(&stack)
    };
    assert!(
        with("Sync", group(&[Role::Sync], 1)).starts_with("workers.Sync: `Sync` cannot be a group's name")
    );
    assert!(with("a/b", group(&[Role::Sync], 1)).contains("use lower-case letters"));
    assert!(
        with("readers", WorkerGroup::default())
            .starts_with("workers.readers: the group `readers` has no roles")
    );
    assert!(with("sync", group(&[Role::Sync, Role::Sync], 1)).contains("remove one `sync`"));
    assert!(with("sync", group(&[Role::Sync], 65)).contains("at most 64 are possible"));
}

#[test]
fn all_problems_are_told_at_once() {
    let mut stack = stack(Preset::Full);
    stack.workers.insert("typing".to_owned(), group(&[Role::Typing], 2));
    stack.workers.insert("main".to_owned(), WorkerGroup::default());
    stack.synapse.extra.insert("redis".to_owned(), serde_json::json!({}));
    stack.media.max_upload_size = "0".to_owned();
    stack.database.max_connections = Some(50);
    let mut fields: Vec<_> = planned(&stack).unwrap_err().iter().map(Problem::field).collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "database.max_connections",
            "media.max_upload_size",
            "synapse.extra.redis",
            "workers.main",
            "workers.typing.count"
        ]
    );
}

#[test]
fn absent_roles_fall_back() {
    let topology = planned(&stack(Preset::Custom)).unwrap();
    for spec in &model::ROLES {
        assert_eq!(topology.serving(spec.role).0, Role::Main);
    }
    let mut stack = stack(Preset::Custom);
    stack.workers.insert("sync".to_owned(), WorkerGroup { count: Some(2), ..Default::default() });
    let topology = planned(&stack).unwrap();
    let (role, instances) = topology.serving(Role::InitialSync);
    assert_eq!((role, instances.len()), (Role::Sync, 2));
    assert_eq!(topology.serving(Role::Room).0, Role::Main);
}

#[test]
fn workers_change_the_groups_of_the_preset() {
    let mut stack = stack(Preset::Full);
    stack.workers.insert("sync".to_owned(), WorkerGroup { count: Some(4), ..Default::default() });
    stack.workers.insert("presence".to_owned(), WorkerGroup { count: Some(0), ..Default::default() });
    stack.workers.insert("presence_typing".to_owned(), group(&[Role::Presence], 1));
    let topology = planned(&stack).unwrap();
    assert_eq!(topology.named("sync").len(), 4);
    assert_eq!(
        topology.writers(Stream::Presence).map(|i| i.name.as_str()).collect::<Vec<_>>(),
        ["presence_typing_1"]
    );
}
