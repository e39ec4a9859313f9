//! The matcher, over topologies that the planner made.

use std::collections::BTreeSet;
use std::path::Path;

use model::{Balance, Preset, Role, ServerName, Stack, Topology};
use routes::{
    Class, ClassId, Closed, Decision, Features, Forward, Key, Matcher, Options, Segment, Table, WellKnown,
    hash_room,
};

fn topology(preset: Preset) -> Topology {
    let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
    model::plan(&Stack::new(name), Path::new("/run/x"), preset)
        .unwrap_or_else(|problems| panic!("{problems}"))
}

fn matcher(preset: Preset) -> Matcher {
    let options = Options {
        admin_open: true,
        features: Features::default().with("matrix_authentication_service.enabled"),
    };
    Matcher::compile(Table::newest(), &topology(preset), &options).expect("every endpoint has a target")
}

fn public(preset: Preset) -> Matcher {
    Matcher::compile(Table::newest(), &topology(preset), &Options::default())
        .expect("every endpoint has a target")
}

#[track_caller]
fn forwarded<'m>(matcher: &'m Matcher, method: &str, target: &str) -> Forward<'m> {
    match matcher.decide(method, target) {
        Decision::Forward(forward) => forward,
        other => panic!("{method} {target}: {other:?}"),
    }
}

#[track_caller]
fn class(matcher: &Matcher, method: &str, target: &str) -> &'static Class {
    forwarded(matcher, method, target).route.class
}

#[test]
fn paths_are_read_as_synapse_reads_them() {
    let matcher = public(Preset::Full);
    let known = [
        ("GET", "/_matrix/client/v3/sync?since=s1", ClassId::SyncIncremental),
        ("HEAD", "/_matrix/client/v3/sync?since=s1", ClassId::SyncIncremental),
        // An encoded slash belongs to its segment.
        ("GET", "/_matrix/client/v3/rooms/%21a%2Fb%3Ac/state", ClassId::RoomRead),
        ("GET", "/_matrix/client/v3/rooms/!a:c/state/m.room.name/", ClassId::RoomRead),
        ("GET", "/_matrix/client/v3/rooms/!a:c/state/m.room.member/%40u%3ac", ClassId::RoomRead),
        // A parameter may be empty where Synapse's pattern lets it.
        ("PUT", "/_matrix/client/v3/rooms//send/m.room.message/1", ClassId::RoomSend),
        ("PUT", "/_matrix/client/v3/rooms/!a/send/m.room.message/%F0%9F%8E%89", ClassId::RoomSend),
        // Synapse takes an optional slash at the end of some federation paths.
        ("PUT", "/_matrix/federation/v1/send/123", ClassId::FederationInbound),
        ("PUT", "/_matrix/federation/v1/send/123/", ClassId::FederationInbound),
        ("GET", "/_matrix/client/r0/pushrules/", ClassId::PushRules),
        ("GET", "/_matrix/client/r0/pushrules/global/override/a/b//c", ClassId::PushRules),
        ("GET", "/_matrix/client/v3/room_keys/keys", ClassId::KeyBackup),
        ("GET", "/_matrix/client/v3/room_keys/keys/!a:b/s?version=1", ClassId::KeyBackup),
        ("GET", "/_matrix/media/v3/download/example.org/abc/na%2Fme.png", ClassId::MediaDownload),
    ];
    for (method, target, wanted) in known {
        let forward = forwarded(&matcher, method, target);
        assert!(forward.route.known(), "{method} {target}");
        assert_eq!(forward.route.class.id, wanted, "{method} {target}");
    }
    let unknown = [
        // Synapse compares the path as it was sent: nothing encoded is a literal, and case counts.
        "/_matrix/client/v3/%73ync",
        "/%5Fmatrix/client/v3/sync",
        "/_matrix/client/V3/sync",
        "/_matrix/Client/v3/sync",
        // Slashes are not collapsed, and a slash at the end makes another path.
        "/_matrix//client/v3/sync",
        "/_matrix/client/v3/sync/",
        "/_matrix/client/v3/pushrules",
        "/_matrix/client/v3/room_keys/keys/",
        "/_matrix/client/v3/../v3/sync",
        "/_matrix/client/v9/sync",
        "/_matrix",
        "/_matrix/",
        "/_synapse/client/module/of/ones/own",
    ];
    for target in unknown {
        let forward = forwarded(&matcher, "GET", target);
        assert!(!forward.route.known(), "{target}");
        assert_eq!(&*forward.route.chain, [Role::Main], "{target}");
    }
}

#[test]
fn what_is_closed_is_closed_in_every_spelling() {
    let matcher = public(Preset::Full);
    for (target, wanted) in [
        ("/_synapse/admin/v1/server_version", Closed::Admin),
        ("/_synapse/%61dmin/v1/server_version", Closed::Admin),
        ("/%5Fsynapse/admin", Closed::Admin),
        ("/%5fsynapse/%61%64min/x", Closed::Admin),
        ("/_synapse/replication/send_event/1", Closed::Replication),
        ("/_synapse/replicatio%6E", Closed::Replication),
        ("/_synapse/metrics", Closed::Metrics),
        ("/_synapse/metrics?x=/_matrix", Closed::Metrics),
        ("/_synapse/mas/query_user", Closed::Other),
        ("/_synapse", Closed::Other),
        ("/_synapse/", Closed::Other),
        ("/_synapse//admin", Closed::Other),
        ("/health", Closed::Health),
        ("/he%61lth/x", Closed::Health),
    ] {
        for method in ["GET", "OPTIONS", "HEAD", "TRACE"] {
            match matcher.decide(method, target) {
                Decision::Closed(found) => assert_eq!(found, wanted, "{method} {target}"),
                other => panic!("{method} {target}: {other:?}"),
            }
        }
    }
    for target in [
        "//_synapse/admin",
        "/_synapse%2Fadmin",
        "/_synapsex",
        "/index.html",
        "",
        "*",
        "_matrix/x",
        "/.well-known/x",
    ] {
        assert!(matches!(matcher.decide("GET", target), Decision::NotFound), "{target}");
    }
    let open = self::matcher(Preset::Full);
    assert_eq!(class(&open, "GET", "/_synapse/admin/v1/server_version").id, ClassId::Admin);
    assert_eq!(class(&open, "POST", "/_synapse/mas/upsert_device").id, ClassId::Mas);
}

#[test]
fn the_router_answers_some_things_itself() {
    let matcher = public(Preset::Small);
    assert!(matches!(matcher.decide("GET", "/"), Decision::Landing));
    assert!(matches!(
        matcher.decide("GET", "/.well-known/matrix/client"),
        Decision::WellKnown(WellKnown::Client)
    ));
    assert!(matches!(
        matcher.decide("HEAD", "/.well-known/matrix/server"),
        Decision::WellKnown(WellKnown::Server)
    ));
    assert!(matches!(matcher.decide("POST", "/.well-known/matrix/server"), Decision::NotFound));
    for target in ["/_matrix/client/v3/sync", "/_matrix/new/thing", "/.well-known/matrix/client"] {
        assert!(matches!(matcher.decide("OPTIONS", target), Decision::Preflight), "{target}");
    }
}

#[test]
fn the_query_tells_initial_syncs_from_others() {
    let matcher = public(Preset::Full);
    for (target, wanted) in [
        ("/_matrix/client/v3/sync", ClassId::SyncInitial),
        ("/_matrix/client/v3/sync?", ClassId::SyncInitial),
        ("/_matrix/client/v3/sync?timeout=30000&filter=0", ClassId::SyncInitial),
        ("/_matrix/client/v3/sync?timeout=30000&since=s1_2", ClassId::SyncIncremental),
        ("/_matrix/client/v3/sync?%73ince=s1_2", ClassId::SyncIncremental),
        ("/_matrix/client/v3/sync?a=1;since=s1_2", ClassId::SyncIncremental),
        ("/_matrix/client/v3/sync?sincee=s1_2&xsince=1&since", ClassId::SyncInitial),
        ("/_matrix/client/v3/sync?since=s1_2&full_state=true", ClassId::SyncInitial),
        ("/_matrix/client/v3/sync?since=s1_2&full_state=false", ClassId::SyncIncremental),
        ("/_matrix/client/v3/events", ClassId::SyncInitial),
        ("/_matrix/client/v3/events?from=s1", ClassId::SyncIncremental),
        ("/_matrix/client/v3/rooms/!a:b/initialSync", ClassId::SyncInitial),
        ("/_matrix/client/v3/initialSync?since=x", ClassId::SyncInitial),
    ] {
        assert_eq!(class(&matcher, "GET", target).id, wanted, "{target}");
    }
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    assert_eq!(class(&matcher, "POST", sliding).id, ClassId::SyncSliding);
}

#[test]
fn methods_count() {
    let matcher = matcher(Preset::Full);
    let path = "/_matrix/client/v3/rooms/!a:b/state/m.room.name/";
    assert_eq!(class(&matcher, "PUT", path).id, ClassId::RoomSend);
    assert_eq!(class(&matcher, "GET", path).id, ClassId::RoomRead);
    assert_eq!(class(&matcher, "GET", "/_synapse/admin/v2/users/@a:b").id, ClassId::AdminReader);
    assert_eq!(class(&matcher, "PUT", "/_synapse/admin/v2/users/@a:b").id, ClassId::Admin);
    assert_eq!(class(&matcher, "GET", "/_synapse/admin/v1/media/delete/x").id, ClassId::MediaAdmin);
    assert_eq!(class(&matcher, "POST", "/_synapse/admin/v1/media/quarantine/a/b").id, ClassId::Quarantine);
    // A method that Synapse does not register for a path is answered by who would answer the others: with 405.
    let forward = forwarded(&matcher, "PATCH", "/_matrix/media/v3/upload");
    assert!(!forward.method_registered && forward.route.known());
    assert_eq!(forward.route.primary(), Role::MediaRepository);
    assert!(
        !forwarded(&matcher, "get", "/_matrix/client/v3/sync").method_registered,
        "methods are case-sensitive"
    );
}

#[test]
fn a_room_is_found_in_its_path() {
    let matcher = public(Preset::Full);
    for (method, target, wanted) in [
        ("PUT", "/_matrix/client/v3/rooms/!a:b/send/m.room.message/1?x=/rooms/y", "!a:b"),
        ("PUT", "/_matrix/client/v3/rooms/%21a%3ab/send/m.room.message/1", "%21a%3ab"),
        ("GET", "/_matrix/client/api/v1/rooms/!noDomain/messages?limit=1", "!noDomain"),
        ("POST", "/_matrix/client/v3/join/%23alias%3Ab?via=c", "%23alias%3Ab"),
        ("GET", "/_matrix/client/v1/room_summary/!a:b", "!a:b"),
        ("GET", "/_matrix/client/v1/rooms/!a:b/relations/$e/m.thread", "!a:b"),
        ("POST", "/_matrix/client/v3/rooms//leave", ""),
    ] {
        let forward = forwarded(&matcher, method, target);
        assert_eq!(forward.route.class.key, Key::Room, "{target}");
        assert_eq!(forward.route.class.balance(Role::Room), Balance::HashRoom);
        assert_eq!(&target[forward.room.expect("a room")], wanted);
    }
    let create = forwarded(&matcher, "POST", "/_matrix/client/v3/createRoom");
    assert_eq!((create.route.primary(), create.room.clone()), (Role::Room, None));
    assert_eq!(create.route.class.balance(Role::Room), Balance::HashUser);
    assert_eq!(create.route.class.balance(Role::ClientReader), Balance::LeastConnections);
}

#[test]
fn every_hashed_class_has_its_key() {
    for preset in Preset::LAYOUTS {
        let matcher = matcher(preset);
        for route in matcher.routes() {
            let template = route.template.as_deref().expect("a template");
            if route.class.key == Key::Room {
                let method = route.method.expect("a method").name();
                assert!(
                    forwarded(&matcher, method, &sample(template)).room.is_some(),
                    "{template} has no room ID"
                );
            }
            for role in &route.chain {
                let balance = route.class.balance(*role);
                assert!(!matches!(balance, Balance::BySynapse(_)), "{template}");
                if balance == Balance::HashUser {
                    assert_eq!(route.class.key, Key::User, "{template}");
                }
            }
        }
    }
}

/// A path for a template.
fn sample(template: &str) -> String {
    let segments = Segment::parse_all(template).expect("a template");
    segments
        .iter()
        .map(|segment| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::NonEmpty("room_id") | Segment::Any("room_id") => "/!room%3Aexample.org".to_owned(),
            Segment::NonEmpty(_) | Segment::Any(_) => "/value%2Fx".to_owned(),
            Segment::Rest(_) => "/some/more/".to_owned(),
        })
        .collect()
}

/// The one that answers is a process that registers the endpoint and writes its streams, for every endpoint of every
/// table in every layout; and where a worker can answer, one does, if policy does not say otherwise.
#[test]
fn every_endpoint_goes_to_a_process_that_can_answer_it() {
    for table in Table::all() {
        for preset in Preset::LAYOUTS {
            let topology = topology(preset);
            for features in
                [Features::default(), Features::default().with("matrix_authentication_service.enabled")]
            {
                let options = Options { admin_open: true, features: features.clone() };
                let matcher =
                    Matcher::compile(table, &topology, &options).expect("every endpoint has a target");
                let mut seen = BTreeSet::new();
                for endpoint in table.endpoints() {
                    let place =
                        endpoint.path.starts_with("/_matrix/") || endpoint.path.starts_with("/_synapse/");
                    let mas = endpoint.path.starts_with("/_synapse/mas/") && features == Features::default();
                    let variants = table
                        .endpoints()
                        .iter()
                        .filter(|e| (e.method, &e.path) == (endpoint.method, &endpoint.path))
                        .count();
                    if !place || mas || (variants > 1 && !endpoint.when.holds(&features)) {
                        continue;
                    }
                    let target = sample(&endpoint.path);
                    let forward = forwarded(&matcher, endpoint.method.name(), &target);
                    assert!(forward.method_registered, "{} {target}", endpoint.method);
                    for role in &forward.route.chain {
                        let instances = matcher.instances(*role);
                        assert!(!instances.is_empty());
                        for name in instances {
                            let instance = topology.instance(name).expect("an instance");
                            assert!(endpoint.served_by(instance), "{} {target} at {name}", endpoint.method);
                        }
                    }
                    if preset == Preset::Full
                        && endpoint.worker_capable()
                        && !matches!(forward.route.class.id, ClassId::Sso | ClassId::MainStore)
                    {
                        assert_ne!(forward.route.primary(), Role::Main, "{} {target}", endpoint.method);
                        assert_eq!(
                            forward.route.primary(),
                            forward.route.class.role,
                            "{} {target}",
                            endpoint.method
                        );
                    }
                    seen.insert(forward.route.class.name);
                }
                assert!(seen.len() >= 30, "classes in use: {seen:?}");
            }
        }
    }
}

#[test]
fn a_writer_has_no_stand_in_that_cannot_write() {
    let matcher = matcher(Preset::Full);
    for (method, target, role) in [
        ("PUT", "/_matrix/client/v3/rooms/!a:b/typing/@u:b", Role::Typing),
        ("PUT", "/_matrix/client/v3/sendToDevice/m.x/1", Role::ToDevice),
        ("POST", "/_matrix/client/v3/rooms/!a:b/receipt/m.read/$e", Role::Receipts),
        ("PUT", "/_matrix/client/v3/pushrules/global/room/x", Role::PushRules),
    ] {
        assert_eq!(&*forwarded(&matcher, method, target).route.chain, [role], "{target}");
    }
    // Who asks the writer may stand in.
    let account_data = "/_matrix/client/v3/user/@u:b/account_data/m.x";
    assert_eq!(&*forwarded(&matcher, "PUT", account_data).route.chain, [Role::AccountData, Role::Main]);
    assert_eq!(
        &*forwarded(&matcher, "GET", "/_matrix/client/v3/pushrules/").route.chain,
        [Role::PushRules, Role::Main]
    );
    // Main serves no media once there is a media process.
    assert!(!forwarded(&matcher, "GET", "/_matrix/client/v1/media/config").route.chain.contains(&Role::Main));
}

#[test]
fn alone_main_serves_everything() {
    let matcher = matcher(Preset::Custom);
    for route in matcher.routes() {
        assert_eq!(&*route.chain, [Role::Main]);
    }
    assert_eq!(matcher.explain("GET", "/_matrix/client/v3/sync").instances, ["main"]);
}

#[test]
fn versions_find_their_table() {
    assert_eq!(Table::for_version("1.163.7"), Some(Table::newest()));
    assert_eq!(Table::for_version("1.162").map(|table| table.version().starts_with("1.162.")), Some(true));
    for other in ["1.16", "2.163.0", "1", ""] {
        assert!(Table::for_version(other).is_none(), "{other}");
    }
    assert!(Table::all().iter().all(|table| table.skipped().is_empty()));
}

#[test]
fn encoded_and_plain_rooms_have_one_key() {
    let matcher = public(Preset::Full);
    let key = |target: &str| {
        let forward = forwarded(&matcher, "PUT", target);
        hash_room(&target[forward.room.expect("a room")])
    };
    assert_eq!(
        key("/_matrix/client/v3/rooms/!abc:example.org/send/m.x/1"),
        key("/_matrix/client/r0/rooms/%21abc%3aexample.org/state/m.x/y"),
    );
}

#[test]
fn logins_are_another_services_where_there_is_one() {
    let mut stack = Stack::new(ServerName::try_from("example.org".to_owned()).expect("a server name"));
    stack.auth.mas = Some(model::Mas::new("https://auth.example.org"));
    let topology = model::plan(&stack, Path::new("/run/x"), Preset::Small).expect("a plan");
    let options = Options { admin_open: false, features: Features::of(&stack) };
    let matcher =
        Matcher::compile(Table::newest(), &topology, &options).expect("every endpoint has a target");
    for (method, path) in [
        ("GET", "login"),
        ("POST", "login"),
        ("POST", "logout"),
        ("POST", "logout/all"),
        ("POST", "refresh"),
        ("GET", "login/sso/redirect"),
        ("GET", "login/sso/redirect/oidc-github?redirectUrl=x"),
    ] {
        for version in ["r0", "v3", "unstable"] {
            let target = format!("/_matrix/client/{version}/{path}");
            assert!(matches!(matcher.decide(method, &target), Decision::Auth), "{target}");
            assert!(
                matches!(public(Preset::Small).decide(method, &target), Decision::Forward(_)),
                "{target}"
            );
        }
    }
    assert!(matches!(matcher.decide("OPTIONS", "/_matrix/client/v3/login"), Decision::Preflight));
    // Synapse says where the service is, and is told of its users.
    assert_eq!(class(&matcher, "GET", "/_matrix/client/v1/auth_metadata").id, ClassId::Client);
    assert_eq!(class(&matcher, "POST", "/_synapse/mas/provision_user").id, ClassId::Mas);
    for path in ["login/get_token", "logout/", "login/sso/redirect/a/b", "v3/login", "account/whoami"] {
        forwarded(&matcher, "POST", &format!("/_matrix/client/v3/{path}"));
    }
}
