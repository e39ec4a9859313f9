//! Who answers when processes are away, and what is never sent twice.

use model::Role;

use crate::bench::Bench;
use crate::stub::DROP;

/// A process takes a request and goes away: it may have done it.
pub(crate) fn nothing_is_done_twice(bench: &Bench) {
    for (method, target) in [
        ("POST", "/_matrix/client/v3/search"),
        ("POST", "/_matrix/client/v3/rooms/!a:b/leave"),
        ("POST", "/_matrix/client/v3/createRoom"),
        ("PUT", "/_matrix/client/v3/rooms/!a:b/send/m.room.message/1"),
    ] {
        if method == "PUT" && bench.name == "nginx" {
            // nginx holds that a PUT may be sent again.
            continue;
        }
        bench.seen();
        let response = bench.client().send(method, target, &[(DROP, "1")]);
        assert!(matches!(response.status, 502 | 503), "{}: {response:?}", bench.name);
        assert_eq!(response.errcode(), "M_UNKNOWN", "{}: {response:?}", bench.name);
        let seen: Vec<_> = bench.seen().into_iter().filter(|seen| seen.target == target).collect();
        assert_eq!(seen.len(), 1, "{}: {method} {target} was sent to {seen:?}", bench.name);
        // Whoever dropped it may be left out for a moment.
        bench.wait("the process counts as well again", || {
            (0..4).all(|_| {
                let response = bench.client().send("GET", "/_matrix/client/v3/capabilities", &[]);
                bench.instances(Role::ClientReader).iter().any(|name| name == response.instance())
            })
        });
    }
}

/// The next roles of the chain answer while a role has nobody, and nobody outside the chain ever does.
pub(crate) fn others_stand_in(bench: &mut Bench) {
    let capabilities = ("GET", "/_matrix/client/v3/capabilities");
    let sync = ("GET", "/_matrix/client/v3/sync?since=s1");
    // One of two: the other takes all.
    let one = vec![bench.instances(Role::Sync)[0].clone()];
    let other = vec![bench.instances(Role::Sync)[1].clone()];
    bench.stop(&one);
    settles(bench, sync, &other, Role::Sync);
    bench.start_again(&one);
    for role in
        [Role::ClientReader, Role::UserDir, Role::Room, Role::Sync, Role::FederationInbound, Role::Presence]
    {
        let (method, target) = match role {
            Role::ClientReader => ("POST", "/_matrix/client/v3/search"),
            Role::UserDir => ("POST", "/_matrix/client/v3/user_directory/search"),
            Role::Room => ("PUT", "/_matrix/client/v3/rooms/!a:b/send/m.room.message/1"),
            Role::FederationInbound => ("PUT", "/_matrix/federation/v1/send/1"),
            Role::Presence => ("PUT", "/_matrix/client/v3/presence/@u:b/status"),
            _ => sync,
        };
        let route = match bench.matcher.decide(method, target) {
            routes::Decision::Forward(forward) => forward.route.chain.clone(),
            other => panic!("{other:?}"),
        };
        assert!(route[0] == role && route.len() > 1, "{route:?}");
        let mut stopped = Vec::new();
        for pair in route.windows(2) {
            let names = bench.instances(pair[0]);
            bench.stop(&names);
            stopped.extend(names);
            settles(bench, (method, target), &bench.instances(pair[1]), role);
        }
        bench.start_again(&stopped);
        settles(bench, (method, target), &bench.instances(role), role);
    }
    settles(bench, capabilities, &bench.instances(Role::ClientReader), Role::ClientReader);
    // Nobody may stand in for a stream's writer.
    let typing = ("PUT", "/_matrix/client/v3/rooms/!a:b/typing/@u:b");
    let names = bench.instances(Role::Typing);
    bench.stop(&names);
    for _ in 0..10 {
        let response = bench.client().send(typing.0, typing.1, &[]);
        assert!(matches!(response.status, 502..=504), "{}: {response:?}", bench.name);
        assert_eq!(
            (response.instance(), &*response.errcode()),
            ("", "M_UNKNOWN"),
            "{}: {response:?}",
            bench.name
        );
        assert_eq!(response.header("access-control-allow-origin"), "*", "{}: {response:?}", bench.name);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    bench.start_again(&names);
    settles(bench, typing, &names, Role::Typing);
}

/// Waits until only these answer; meanwhile there may be errors, but nobody outside the role's chain.
fn settles(bench: &Bench, (method, target): (&str, &str), wanted: &[String], role: Role) {
    let chain: Vec<String> = std::iter::once(role)
        .chain(role.spec().fallback.iter().copied())
        .flat_map(|role| bench.instances(role))
        .collect();
    let mut client = bench.client();
    let mut last = Vec::new();
    bench.wait(&format!("{target} is answered by one of {wanted:?}"), || {
        last.clear();
        for number in 0..8 {
            let authorization = format!("Bearer token{number}");
            let response = client.send(method, target, &[("Authorization", &authorization)]);
            if response.instance().is_empty() {
                assert!(matches!(response.status, 502..=504), "{}: {response:?}", bench.name);
            } else {
                assert!(chain.iter().any(|name| name == response.instance()), "{}: {response:?}", bench.name);
            }
            last.push(response.instance().to_owned());
        }
        last.iter().all(|name| wanted.contains(name))
    });
}
