//! The same key goes to the same instance, and many keys to all of them.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::bench::Bench;
use crate::client::Client;

/// Requests that ought to go to one instance: method, target, `Authorization`.
type Alike = Vec<(&'static str, String, String)>;

fn check(bench: &Bench, client: &mut Client, what: &str, keys: &[Alike]) {
    let mut used = BTreeSet::new();
    for alike in keys {
        let mut answered = BTreeSet::new();
        for (method, target, authorization) in alike {
            let headers: &[(&str, &str)] =
                if authorization.is_empty() { &[] } else { &[("Authorization", authorization)] };
            let response = client.send(method, target, headers);
            assert_eq!(response.status, 200, "{}: {target}: {response:?}", bench.name);
            answered.insert(response.instance().to_owned());
        }
        assert_eq!(answered.len(), 1, "{}: one {what} on {answered:?}: {alike:?}", bench.name);
        used.extend(answered);
    }
    assert!(used.len() > 1, "{}: every {what} is on {used:?}", bench.name);
}

pub(crate) fn keys_stick(bench: &Bench) {
    let mut client = bench.client();
    let sync = "/_matrix/client/v3/sync?since=s1";
    let users: Vec<Alike> = (0..40)
        .map(|number| {
            let name = STANDARD_NO_PAD.encode(format!("user{number}"));
            let token = |device: &str| format!("syt_{name}_{device}_1a2b3c");
            vec![
                ("GET", sync.to_owned(), format!("Bearer {}", token("firstdevice"))),
                ("GET", sync.to_owned(), format!("bearer {}", token("seconddevice"))),
                ("GET", sync.to_owned(), format!("Bearer {}", token("firstdevice"))),
            ]
        })
        .collect();
    check(bench, &mut client, "user", &users);
    let tokens: Vec<Alike> = (0..40)
        .map(|number| {
            let header = ("GET", sync.to_owned(), format!("Bearer mat_{number}_token_{number}"));
            vec![header.clone(), header]
        })
        .collect();
    check(bench, &mut client, "token", &tokens);
    let in_query: Vec<Alike> = (0..40)
        .map(|number| {
            let request = ("GET", format!("{sync}&access_token=mat_token{number}"), String::new());
            vec![request.clone(), request]
        })
        .collect();
    check(bench, &mut client, "token in the query", &in_query);
    let rooms: Vec<Alike> = (0..40)
        .map(|number| {
            let prefix = "/_matrix/client/v3/rooms";
            vec![
                ("PUT", format!("{prefix}/!room{number}:example.org/send/m.room.message/1"), String::new()),
                (
                    "PUT",
                    format!("{prefix}/%21room{number}%3Aexample.org/send/m.room.message/2?x=1"),
                    String::new(),
                ),
                (
                    "GET",
                    format!("{prefix}/!room{number}%3aexample.org/messages"),
                    "Bearer syt_x_y_z".to_owned(),
                ),
                (
                    "GET",
                    format!("/_matrix/client/api/v1/rooms/%21room{number}:example.org/state"),
                    "Bearer other".to_owned(),
                ),
                ("POST", format!("/_matrix/client/v3/join/!room{number}:example.org?via=x"), String::new()),
            ]
        })
        .collect();
    check(bench, &mut client, "room", &rooms);
    // Room version 12: no domain.
    let short: Vec<Alike> = (0..40)
        .map(|number| {
            vec![
                (
                    "GET",
                    format!("/_matrix/client/v3/rooms/!{number}bmEoPvSBnMcHfNuuhQaFBVJ/state"),
                    String::new(),
                ),
                (
                    "GET",
                    format!("/_matrix/client/v3/rooms/%21{number}bmEoPvSBnMcHfNuuhQaFBVJ/members"),
                    String::new(),
                ),
            ]
        })
        .collect();
    check(bench, &mut client, "room without a domain", &short);
    let origins: Vec<Alike> = (0..40)
        .map(|number| {
            let send = |id: u32| format!("/_matrix/federation/v1/send/{id}");
            vec![
                (
                    "PUT",
                    send(1),
                    format!("X-Matrix origin=\"s{number}.example\",destination=\"example.org\",key=\"ed25519:k\",sig=\"s\""),
                ),
                ("PUT", send(2), format!("X-Matrix key=\"ed25519:k\", origin=s{number}.example,sig=\"zz\"")),
            ]
        })
        .collect();
    check(bench, &mut client, "origin", &origins);
    // Without a key requests are spread all the same.
    let mut used = BTreeSet::new();
    for _ in 0..40 {
        used.insert(client.send("GET", "/_matrix/client/v3/capabilities", &[]).instance().to_owned());
    }
    assert!(used.len() > 1, "{}: all on {used:?}", bench.name);
}
