//! Deciding alone, by class of request: `cargo bench -p matrix-stack-router --bench decide`.
//!
//! `route` is the matcher alone: method and target to class, role chain and room. `decide` is the whole decision for a
//! request's head: class, role, the user's, room's or server's key, and a place on the instance, of the preset `full`. `read` is what
//! comes before it: the head's bytes to the head. With `--features count-allocations` the memory that each allocates is shown,
//! which slows them a little; `route` and `decide` allocate none.

extern crate matrix_stack_router as router;

use std::path::Path;

use bytes::Bytes;
use model::{Preset, ServerName, Stack, Topology};
use router::{Options, Router, Settings, Snapshot};
use routes::{Matcher, Table};

/// Counts what is allocated, where that is asked for.
#[cfg(feature = "count-allocations")]
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

/// What a client and a server send with their requests.
const CLIENT: &str = "host: matrix.example.org\r\n\
    user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Element/1.12.5 Safari/537.36\r\n\
    accept: application/json\r\naccept-encoding: gzip, deflate, br, zstd\r\naccept-language: en-GB,en;q=0.9\r\n\
    origin: https://app.element.io\r\nreferer: https://app.element.io/\r\n\
    authorization: Bearer syt_YWxpY2U_QhyZlmJtKfyEdNqYUdSb_1Sx9Wp\r\n";
const SERVER: &str = "host: matrix.example.org\r\nuser-agent: Synapse/1.163.2\r\naccept: application/json\r\n\
    authorization: X-Matrix origin=\"s1.example\",destination=\"example.org\",key=\"ed25519:a_b\",sig=\"c2ln\"\r\n";

const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/_matrix/client/v3/sync?since=s12_0_1&timeout=30000&filter=0", CLIENT),
    ("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=12&timeout=30000", CLIENT),
    ("PUT", "/_matrix/client/v3/rooms/%21abcdefghijkl%3Aexample.org/send/m.room.encrypted/m1.1", CLIENT),
    ("PUT", "/_matrix/client/v3/rooms/!abcdefghijkl:example.org/typing/@alice:example.org", CLIENT),
    ("POST", "/_matrix/client/v3/rooms/!abcdefghijkl:example.org/receipt/m.read/$event", CLIENT),
    ("GET", "/_matrix/client/v3/rooms/!abcdefghijkl:example.org/messages?dir=b&limit=30", CLIENT),
    ("POST", "/_matrix/client/v3/keys/query", CLIENT),
    ("GET", "/_matrix/client/v1/media/thumbnail/example.org/abc?width=64&height=64", CLIENT),
    ("POST", "/_matrix/client/v3/pushers/set", CLIENT),
    ("GET", "/_matrix/client/v9/of/tomorrow", CLIENT),
    ("PUT", "/_matrix/federation/v1/send/1234", SERVER),
    ("GET", "/_matrix/federation/v1/state_ids/!abcdefghijkl:example.org?event_id=$event", SERVER),
];

fn topology() -> Topology {
    let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
    model::plan(&Stack::new(name), Path::new("/run/x"), Preset::Full).expect("a plan")
}

/// How many times each is done between two looks at the clock, which takes some 30 ns itself.
const TIMES: u32 = 1000;

fn main() {
    divan::main();
}

#[divan::bench(sample_size = TIMES, args = REQUESTS.iter().map(|(method, target, _)| format!("{method} {target}")))]
fn route(bencher: divan::Bencher<'_, '_>, request: &str) {
    let matcher =
        Matcher::compile(Table::newest(), &topology(), &routes::Options::default()).expect("a matcher");
    let (method, target) = request.split_once(' ').expect("a request");
    bencher.bench_local(|| {
        let decision = divan::black_box(&matcher).decide(divan::black_box(method), divan::black_box(target));
        matches!(decision, routes::Decision::Forward(_))
    });
}

/// A router in front of the preset `full`, and the head of a request.
fn router(number: usize) -> (Router, Bytes) {
    let (method, target, headers) = REQUESTS[number];
    let head = Bytes::from(format!("{method} {target} HTTP/1.1\r\n{headers}\r\n"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let router = runtime.block_on(async {
        let snapshot = Snapshot::new(&topology(), Settings::default()).expect("a snapshot");
        Router::start(snapshot, Options { threads: Some(1), ..Options::default() }).expect("a router")
    });
    (router, head)
}

#[divan::bench(sample_size = TIMES, args = 0..REQUESTS.len())]
fn decide(bencher: divan::Bencher<'_, '_>, number: usize) {
    let (router, head) = router(number);
    let head = router.read_head(&head).expect("a head");
    bencher.bench_local(|| router.decide(divan::black_box(&head)).expect("it is forwarded"));
}

#[divan::bench(sample_size = TIMES, args = 0..REQUESTS.len())]
fn read(bencher: divan::Bencher<'_, '_>, number: usize) {
    let (router, head) = router(number);
    bencher.bench_local(|| router.read_head(divan::black_box(&head)).expect("a head"));
}
