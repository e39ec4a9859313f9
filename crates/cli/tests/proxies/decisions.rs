//! The proxy decides as the matcher does.

use routes::{Decision, Segment, Table, well_known, well_known_caching};

use crate::bench::Bench;
use crate::client::{Client, Response};

/// Asks, and compares the answer with the matcher's decision.
fn check(bench: &Bench, client: &mut Client, method: &str, target: &str) {
    let decision = bench.matcher.decide(method, target);
    let response = client.send(method, target, &[]);
    let said = || format!("{}: {method} {target} should be {decision:?}, but is {response:?}", bench.name);
    match &decision {
        Decision::Forward(forward) => {
            let instances = bench.instances(forward.route.primary());
            assert!(instances.iter().any(|name| name == response.instance()), "{}", said());
            assert_eq!(response.header("x-stub-target"), target, "{}", said());
        }
        Decision::Preflight => {
            assert_eq!(
                (response.status, response.header("access-control-max-age")),
                (204, "86400"),
                "{}",
                said()
            );
            cors(bench, &response);
        }
        Decision::Landing => {
            assert_eq!(response.status, 200, "{}", said());
            assert!(response.header("content-type").starts_with("text/html"), "{}", said());
        }
        Decision::WellKnown(which) => {
            let stack = bench.topology.stack();
            let Some(wanted) = well_known(stack).get(which).map(ToString::to_string) else {
                return unrecognized(bench, method, target, &response);
            };
            assert_eq!(response.header("cache-control"), well_known_caching(stack), "{}", said());
            let wanted = if method == "HEAD" { "" } else { &wanted };
            assert_eq!((response.status, &*response.body), (200, wanted), "{}", said());
            assert_eq!(response.header("content-type"), "application/json", "{}", said());
            cors(bench, &response);
        }
        Decision::Closed(_) | Decision::NotFound | Decision::Auth => {
            unrecognized(bench, method, target, &response);
        }
    }
}

fn unrecognized(bench: &Bench, method: &str, target: &str, response: &Response) {
    assert_eq!(response.status, 404, "{}: {method} {target}: {response:?}", bench.name);
    assert_eq!(response.instance(), "", "{}: {method} {target}: {response:?}", bench.name);
    if method != "HEAD" {
        assert_eq!(response.errcode(), "M_UNRECOGNIZED", "{}: {method} {target}: {response:?}", bench.name);
    }
    cors(bench, response);
}

fn cors(bench: &Bench, response: &Response) {
    for (name, value) in routes::answers::CORS {
        assert_eq!(response.header(name), value, "{}: {response:?}", bench.name);
    }
}

/// A path for a template.
pub(crate) fn sample(template: &str) -> String {
    Segment::parse_all(template)
        .expect("a template")
        .iter()
        .map(|segment| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::NonEmpty(name) | Segment::Any(name) if name.contains("room") => {
                "/!room%3Aexample.org".to_owned()
            }
            Segment::NonEmpty(_) | Segment::Any(_) => "/val%2fue+x".to_owned(),
            Segment::Rest(_) => "/some/more//".to_owned(),
        })
        .collect()
}

/// Every path of the newest table with every method.
pub(crate) fn every_endpoint(bench: &Bench) {
    let mut client = bench.client();
    let mut paths: Vec<String> = Table::newest().endpoints().iter().map(|e| sample(&e.path)).collect();
    paths.dedup();
    assert!(paths.len() > 500);
    for path in &paths {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            check(bench, &mut client, method, path);
        }
        for query in ["?", "?since=s1_2&timeout=0", "?x=1?y&z=%2F/../a;b=c"] {
            check(bench, &mut client, "GET", &format!("{path}{query}"));
        }
    }
}

/// Paths that are no one's, or that are spelt in ways that programs like to mend.
pub(crate) fn odd_paths(bench: &Bench) {
    let mut client = bench.client();
    for target in [
        "/",
        "/?x",
        "/.well-known/matrix/client",
        "/.well-known/matrix/client/x",
        "/.well-known/m%61trix/server?x",
        "/.well-known/matrix/support",
        "/.well-known/",
        "/index.html",
        "/_matrix",
        "/_matrix/",
        "/_matrixx/client/versions",
        "/%5Fmatrix/client/v3/sync",
        "/%5fmatri%78/client/v3/sync",
        "/_MATRIX/client/v3/sync",
        "//_matrix/client/v3/sync",
        "/_matrix//client/v3/sync",
        "/_matrix/client/v3//sync",
        "/_matrix/client/v3/sync/",
        "/_matrix/client/v3/%73ync",
        "/_matrix/client/V3/sync",
        "/_matrix/client/v9/sync",
        "/_matrix/client/v3/../v3/sync",
        "/_matrix/client/./v3/sync",
        "/_matrix/client/v3/%2e%2E/v3/sync",
        "/_matrix/client/v3/rooms/..%2F../state",
        "/_matrix/client/v3/rooms/!a:b/state/m.type/.",
        "/_matrix/client/v3/rooms/%21a%2Fb%3Ac/state",
        "/_matrix/client/v3/rooms/%21a%2fb%3ac/state/m.room.member/%40u%3ac",
        "/_matrix/client/v3/rooms//state",
        "/_matrix/client/v3/rooms/!a/send/m.room.message/%F0%9F%8E%89",
        "/_matrix/client/v3/rooms/!a:b/state/m.room.name/",
        "/_matrix/client/v3/rooms/!a:b/state/m.room.name",
        "/_matrix/client/r0/pushrules/global/override/a/b//c",
        "/_matrix/client/v3/pushrules",
        "/_matrix/client/v3/pushrules/",
        "/_matrix/client/v3/room_keys/keys/",
        "/_matrix/client/v3/room_keys/keys//",
        "/_matrix/federation/v1/send/123/",
        "/_matrix/federation/v1/backfill/!a:b/?v=$e",
        "/_matrix/media/v3/download/example.org/abc/na%2Fme.png?x=a%20b+c&d=;'()*",
        "/_matrix/client/v3/profile/@u:b/avatar_url",
        "/_matrix/client/v3/profile/@u:b/avatar_ur%6C",
        "/_matrix/static/a/b/c.js",
        "/_matrix/static",
        "/_synapse/client/pick_idp?redirectUrl=x",
        "/_synapse/%63lient/pick_idp",
        "/_synapse/client/module/of/ones/own",
        "/_synapse/client",
        "/_synapse/admin/v1/no/such/thing",
        "/_matrix/client/v3/sync?a~b!c$d&e|f\\g^h`i{j}k",
        "/_matrix/client/v3/search?next_batch=x/_synapse/admin",
    ] {
        for method in ["GET", "HEAD", "PUT", "POST", "OPTIONS"] {
            check(bench, &mut client, method, target);
        }
    }
    for query in [
        "",
        "?",
        "?timeout=30000&filter=0",
        "?timeout=30000&since=s1_2",
        "?%73ince=s1_2",
        "?a=1;since=s1_2",
        "?sincee=s1_2&xsince=1&since",
        "?since=",
        "?since=s1_2&full_state=true",
        "?since=s1_2&full_stat%65=%74rue",
        "?since=s1_2&full_state=false",
        "?since=s1_2&full_state=trueish",
        "?from=s1",
    ] {
        for path in ["/_matrix/client/v3/sync", "/_matrix/client/r0/events", "/_matrix/client/v3/initialSync"]
        {
            check(bench, &mut client, "GET", &format!("{path}{query}"));
        }
    }
}

/// What is private is closed in every spelling, and the admin API by default.
pub(crate) fn closed_paths(bench: &Bench) {
    let mut client = bench.client();
    for target in [
        "/_synapse/admin/v1/server_version",
        "/_synapse/%61dmin/v1/server_version",
        "/%5Fsynapse/admin",
        "/%5fsynapse/%61%64min/x",
        "/_synapse/replication/send_event/1",
        "/_synapse/replicatio%6E",
        "/_synapse/metrics",
        "/_synapse/metrics?x=/_matrix/",
        "/_synapse/mas/query_user",
        "/_synapse",
        "/_synapse/",
        "/_synapse//admin",
        "/_synapse//client/pick_idp",
        "/_synapse%2Fadmin/v1/x",
        "//_synapse/admin",
        "/health",
        "/health?x",
        "/he%61lth/x",
        "/matrix-stack/main",
        "/matrix-stack/room_send",
    ] {
        for method in ["GET", "POST", "OPTIONS", "HEAD"] {
            check(bench, &mut client, method, target);
        }
    }
    // The matcher takes a path as it is; the router closes these all the same, in case somebody resolves them later.
    for target in [
        "/_matrix/../_synapse/admin/v1/x",
        "/_synapse/client/../admin/v1/x",
        "/_matrix/%2e%2E/_synapse/./admin/v1/x",
        "/_matrix%2f..%2F_synaps%65/admin/v1/x",
        "/_matrix/client/../../health",
    ] {
        let response = client.send("GET", target, &[]);
        unrecognized(bench, "GET", target, &response);
    }
    assert!(bench.seen().iter().all(|seen| seen.target == "/_matrix/client/versions"));
}

/// What Synapse gets to see besides.
pub(crate) fn what_the_proxy_adds(bench: &Bench) {
    let mut client = bench.client();
    bench.seen();
    let claims = [("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-Proto", "https"), ("Accept", "x/y")];
    client.send("GET", "/_matrix/client/versions", &claims);
    let seen = bench.seen();
    let headers = &seen[0].headers;
    let header = |name: &str| headers.get(name).map_or("", String::as_str);
    assert_eq!(header("x-forwarded-for"), "127.0.0.1", "{}: {headers:?}", bench.name);
    assert_eq!(header("x-forwarded-proto"), "http", "{}: {headers:?}", bench.name);
    assert_eq!(header("host"), "matrix.example.org", "{}: {headers:?}", bench.name);
    assert_eq!(header("accept"), "x/y", "{}: {headers:?}", bench.name);
    assert!(header("x-request-id").len() >= 16, "{}: {headers:?}", bench.name);
}

/// Only what one's own proxies in front have added says whose a request is.
pub(crate) fn whom_the_proxy_believes(bench: &Bench) {
    let mut client = bench.client();
    let mut told = |claims: &str| {
        bench.seen();
        client.send("GET", "/_matrix/client/versions", &[("X-Forwarded-For", claims)]);
        bench.seen()[0].headers.get("x-forwarded-for").cloned().unwrap_or_default()
    };
    assert_eq!(told("203.0.113.66, 198.51.100.7,10.0.0.1"), "198.51.100.7", "{}", bench.name);
    assert_eq!(told("198.51.100.7, 10.0.0.1"), "198.51.100.7", "{}", bench.name);
    // Envoy wants them all.
    let fewer = if bench.name == "envoy" { "127.0.0.1" } else { "198.51.100.7" };
    assert_eq!(told("198.51.100.7"), fewer, "{}", bench.name);
}

/// Bodies up to the limits pass, larger ones do not.
pub(crate) fn bodies(bench: &Bench) {
    let mut client = bench.client();
    bench.seen();
    let mut send = |target: &str, size: usize| {
        let response = client.send_body("POST", target, &[], &vec![b'x'; size]);
        let seen = bench.seen();
        (response.status, seen.first().map(|seen| seen.body), response.errcode())
    };
    let most = usize::try_from(routes::answers::MAX_REQUEST_BYTES).expect("a size");
    let upload = "/_matrix/media/v3/upload?filename=x";
    let search = "/_matrix/client/v3/search";
    assert_eq!(send(search, most - 1), (200, Some(most - 1), String::new()), "{}", bench.name);
    assert_eq!(send(upload, 50 << 20), (200, Some(50 << 20), String::new()), "{}", bench.name);
    assert_eq!(send(search, most + 1), (413, None, "M_TOO_LARGE".to_owned()), "{}", bench.name);
    assert_eq!(send(upload, (50 << 20) + 1), (413, None, "M_TOO_LARGE".to_owned()), "{}", bench.name);
    // Synapse wants to know the length. HAProxy cannot take a body in whole.
    if bench.name != "haproxy" {
        let message =
            b"POST /_matrix/client/v3/search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                        3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let response = bench.client().exchange(false, message).expect("an answer");
        let seen = bench.seen();
        assert_eq!((response.status, seen[0].body), (200, 5), "{}", bench.name);
        assert_eq!(seen[0].headers.get("content-length").map(String::as_str), Some("5"), "{}", bench.name);
    }
}
