//! Upstreams that misbehave: each way has its own outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use model::Role;
use router::{InstanceState, Settings};

use crate::lab::{Behaviour, Client, Lab, Pieces, Raw, Workers, answer, get, post, quick, request, until};

const READERS: Workers<'_> = &[("client_reader", &[Role::ClientReader], 2)];
/// A path that both readers can serve, in turns.
const READ: &str = "/_matrix/client/versions";
/// The same with a method that must not be sent twice.
const QUERY: &str = "/_matrix/client/v3/keys/query";

fn impatient() -> Settings {
    Settings {
        max_response_time: Duration::from_millis(150),
        patience: Duration::from_millis(100),
        fallback_patience: Duration::from_millis(100),
        ..quick()
    }
}

async fn lab_with(raw: Raw, settings: Settings) -> Lab {
    let lab = Lab::with(READERS, settings).await;
    lab.run("client_reader_1", Behaviour::Raw(raw));
    lab
}

#[tokio::test]
async fn a_refused_connection_costs_nothing() {
    let lab = Lab::new(READERS).await;
    lab.stop("client_reader_1");
    for _ in 0..4 {
        assert_eq!(lab.send(post(QUERY, "{}")).await.instance(), "client_reader_2");
    }
    assert_eq!(lab.state("client_reader_1"), InstanceState::Down);
    let log = lab.log(4).await;
    assert!(log.iter().all(|line| line["failure"].is_null()));
}

#[tokio::test]
async fn a_reset_is_sent_elsewhere_only_if_it_is_safe_to() {
    for raw in [Raw::Reset, Raw::HalfHead] {
        let lab = lab_with(raw, quick()).await;
        for _ in 0..2 {
            assert_eq!(lab.get(READ).await.instance(), "client_reader_2");
        }
        assert!(lab.log(2).await.iter().any(|line| line["retried"] == 1), "{raw:?}");

        let before = lab.seen("client_reader_1") + lab.seen("client_reader_2");
        let (mut failed, mut served) = (0, 0);
        for _ in 0..2 {
            let reply = lab.send(post(QUERY, "{}")).await;
            if reply.status == StatusCode::OK {
                served += 1;
            } else {
                assert_eq!(reply.error(), (502, "M_UNKNOWN".into()));
                assert_eq!(reply.headers["access-control-allow-origin"], "*");
                failed += 1;
            }
        }
        assert_eq!((failed, served), (1, 1), "{raw:?}");
        assert_eq!(
            lab.seen("client_reader_1") + lab.seen("client_reader_2") - before,
            2,
            "each was sent once"
        );
        let log = lab.log(4).await;
        assert_eq!(log.iter().filter(|line| line["failure"] == "upstream_reset").count(), 1);
        assert!(lab.metric("matrix_stack_router_upstream_failures_total{") >= 2.0);
    }
}

/// Status, error code, how often each kind of request was sent, and what the metrics and the log call it.
#[tokio::test]
async fn each_way_of_failing_has_its_own_outcome() {
    for (raw, failure, status, times) in [
        (Raw::Reset, "upstream_reset", 502, 3),
        (Raw::HalfClose, "upstream_reset", 502, 3),
        (Raw::HalfHead, "upstream_reset", 502, 3),
        (Raw::Garbage, "upstream_garbage", 502, 1),
        (Raw::LongHead, "upstream_garbage", 502, 1),
        (Raw::Switching, "upstream_garbage", 502, 1),
        (Raw::Hang, "upstream_timeout", 504, 1),
        (Raw::Truncated, "upstream_truncated", 200, 1),
        (Raw::TruncatedChunks, "upstream_truncated", 200, 1),
        (Raw::BadChunks, "upstream_truncated", 200, 1),
    ] {
        // There is nobody else who could answer, and it is asked again at once.
        let settings = Settings { eject_after: 100, ..impatient() };
        let lab = Lab::with(&[], settings).await;
        lab.run("main", Behaviour::Raw(raw));
        for (request, seen) in [(get(READ), times), (post(QUERY, "{}"), times + 1)] {
            let reply = lab.send(request).await;
            assert_eq!(reply.status, status, "{raw:?}");
            if status == 200 {
                assert!(!reply.whole && &reply.body[..] == b"ten bytes.", "{raw:?}: {reply:?}");
            } else {
                assert_eq!(reply.error(), (status, "M_UNKNOWN".into()), "{raw:?}");
                assert_eq!(reply.headers["access-control-allow-origin"], "*");
            }
            assert_eq!(lab.seen("main"), seen, "{raw:?}: a POST is sent once, a GET again if nothing came");
        }
        let lines = lab.log(2).await;
        let retried = [&lines[0]["retried"], &lines[1]["retried"]];
        assert!(lines.iter().all(|line| line["failure"] == failure), "{raw:?}: {lines:?}");
        assert_eq!(retried, [times - 1, 0], "{raw:?}");

        let count = |name: &str, labels: &str| {
            let text = lab.router.metrics();
            let lines =
                text.lines().filter(|line| line.starts_with(&format!("matrix_stack_router_{name}{{")));
            let of = lines.filter(|line| line.contains("instance=\"main\"") && line.contains(labels));
            of.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>()
        };
        assert_eq!(count("requests_total", &format!("outcome=\"{failure}\"")), 2, "{raw:?}");
        assert_eq!(count("retries_total", &format!("failure=\"{failure}\"")), times - 1, "{raw:?}");
        // What breaks off in the midst of a body was no failed attempt: the response had begun.
        let attempts = if status == 200 { 0 } else { times + 1 };
        assert_eq!(count("upstream_failures_total", &format!("failure=\"{failure}\"")), attempts, "{raw:?}");
    }
}

#[tokio::test]
async fn garbage_is_a_bad_gateway() {
    let lab = lab_with(Raw::Garbage, quick()).await;
    let mut statuses = [lab.get(READ).await.status.as_u16(), lab.get(READ).await.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502]);
    assert_eq!(lab.log(2).await.iter().filter(|line| line["failure"] == "upstream_garbage").count(), 1);
}

#[tokio::test]
async fn a_truncated_body_is_seen_as_such() {
    let lab = lab_with(Raw::Truncated, quick()).await;
    let mut replies = [lab.get(READ).await, lab.get(READ).await];
    replies.sort_by_key(|reply| reply.whole);
    assert_eq!(&replies[0].body[..], b"ten bytes.");
    assert!(!replies[0].whole && replies[1].whole);
    let log = lab.log(2).await;
    let line = log.iter().find(|line| line["failure"] == "upstream_truncated").unwrap();
    assert_eq!((line["status"].as_u64(), line["bytes_out"].as_u64()), (Some(200), Some(10)));
}

#[tokio::test]
async fn a_hanging_instance_times_out_and_is_not_asked_twice() {
    let lab = lab_with(Raw::Hang, impatient()).await;
    let mut replies = [lab.get(READ).await, lab.get(READ).await];
    replies.sort_by_key(|reply| reply.status);
    assert_eq!(replies[1].error(), (504, "M_UNKNOWN".into()));
    assert_eq!(replies[0].instance(), "client_reader_2");
    assert_eq!(lab.seen("client_reader_1"), 1);
    assert_eq!(lab.log(2).await.iter().filter(|line| line["failure"] == "upstream_timeout").count(), 1);
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let lab = Lab::with(&[], quick()).await;
    lab.run("main", Behaviour::Raw(Raw::Early));
    let upload = vec![0; 4 << 20];
    let reply = lab.send(post("/_matrix/media/v3/upload", upload)).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert_eq!(lab.seen("main"), 1);
    let line = &lab.log(1).await[0];
    assert!(line["status"] == 403 && line["failure"].is_null() && line["instance"] == "main", "{line}");
}

#[tokio::test]
async fn connections_that_were_closed_while_idle_fail_nothing() {
    let lab = Lab::with(&[], quick()).await;
    lab.run("main", Behaviour::Raw(Raw::Fickle));
    let mut client = lab.connect().await;
    for n in 0..50 {
        assert_eq!(client.send(post(QUERY, "{}")).await.status, StatusCode::OK, "request {n}");
    }
    assert_eq!(lab.seen("main"), 50);
}

#[tokio::test]
async fn requests_wait_for_the_only_instance_to_come_back() {
    let lab = Lab::new(&[("typing", &[Role::Typing], 1)]).await;
    let typing = "/_matrix/client/v3/rooms/!r:test.example/typing/@a:test.example";
    let send = || request(&Method::PUT, typing).body(Full::<Bytes>::from("{}")).unwrap();
    assert_eq!(lab.send(send()).await.instance(), "typing_1");
    lab.stop("typing_1");
    let address = lab.address;
    let waiting: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { Client::connect(address).await.send(send()).await }))
        .collect();
    until("ten requests wait", || lab.metric("matrix_stack_router_waiting{role=\"typing\"}") >= 10.0).await;
    lab.run("typing_1", Behaviour::Echo);
    for reply in waiting {
        assert_eq!(reply.await.unwrap().instance(), "typing_1");
    }
    assert_eq!(lab.seen("typing_1"), 10);
}

#[tokio::test]
async fn nobody_waits_for_ever_nor_in_any_number() {
    let settings = Settings { max_waiting: 1, ..impatient() };
    let lab = Lab::with(&[("typing", &[Role::Typing], 1)], settings).await;
    lab.stop("typing_1");
    let typing = "/_matrix/client/v3/rooms/!r:test.example/typing/@a:test.example";
    let send = || lab.send(request(&Method::PUT, typing).body(Full::from("{}")).unwrap());
    let (one, other) = tokio::join!(send(), send());
    for reply in [one, other] {
        assert_eq!(reply.error(), (503, "M_UNKNOWN".into()));
        assert!(reply.headers.contains_key("retry-after"));
    }
    // No process but the writer may take it, main neither.
    assert_eq!(lab.seen("main"), 0);
    assert_eq!(lab.router.ready(), Err(vec!["typing".to_owned()]));
}

#[tokio::test]
async fn a_role_that_is_away_is_stood_in_for() {
    let settings = Settings { fallback_patience: Duration::from_millis(50), ..quick() };
    let lab =
        Lab::with(&[("room", &[Role::Room], 1), ("client_reader", &[Role::ClientReader], 1)], settings).await;
    let room = "/_matrix/client/v3/rooms/!r:test.example/state";
    lab.stop("room_1");
    assert_eq!(lab.get(room).await.instance(), "client_reader_1");
    lab.stop("client_reader_1");
    assert_eq!(lab.get(room).await.instance(), "main");
    assert_eq!(lab.router.ready(), Ok(()));
    assert_eq!(lab.log(2).await[1]["role"], "main");
}

#[tokio::test]
async fn an_instance_that_only_breaks_is_ejected_and_comes_back() {
    let settings = Settings { eject_after: 2, eject_for: Duration::from_millis(100), ..quick() };
    let lab = Lab::with(READERS, settings).await;
    lab.run("client_reader_1", Behaviour::Raw(Raw::Reset));
    while lab.state("client_reader_1") != InstanceState::Ejected {
        assert_eq!(lab.get(READ).await.instance(), "client_reader_2");
    }
    let seen = lab.seen("client_reader_1");
    assert_eq!(lab.get(READ).await.instance(), "client_reader_2");
    assert_eq!(lab.get(READ).await.instance(), "client_reader_2");
    assert_eq!(lab.seen("client_reader_1"), seen, "it is left alone");
    until("it has served its time", || lab.state("client_reader_1") == InstanceState::Up).await;
}

#[tokio::test]
async fn a_full_class_queues_shortly_and_then_sheds_and_others_go_on() {
    let settings = Settings { queue_length: 1, queue_timeout: Duration::from_millis(300), ..quick() };
    let lab = Lab::with(&[("sync", &[Role::Sync, Role::InitialSync], 1)], settings).await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (opened, held) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = held.clone();
    let sync = answer(move |request| {
        let (opened, counted) = (opened.clone(), counted.clone());
        async move {
            if !request.uri().query().unwrap_or_default().contains("since") {
                counted.fetch_add(1, Ordering::SeqCst);
                opened.acquire().await.unwrap().forget();
            }
            Response::new(Full::from("{}"))
        }
    });
    lab.run("sync_1", sync);
    let cap = routes::ClassId::SyncInitial.class().cap as usize;
    let initial = "/_matrix/client/v3/sync";
    let address = lab.address;
    let send = || tokio::spawn(async move { Client::connect(address).await.send(get(initial)).await });
    let mut flood: Vec<_> = (0..cap).map(|_| send()).collect();
    until("the class is full", || held.load(Ordering::SeqCst) == cap).await;

    // One queues and gets the place that becomes free; the next finds the queue full.
    flood.push(send());
    until("one queues", || lab.metric("matrix_stack_router_queued{class=\"sync_initial\"") >= 1.0).await;
    let shed = lab.get(initial).await;
    assert_eq!(shed.error(), (429, "M_LIMIT_EXCEEDED".into()));
    assert_eq!(shed.headers["retry-after"], "1");
    assert_eq!(shed.json()["retry_after_ms"], 1000);
    // Incremental syncs of the same instance do not notice.
    assert_eq!(lab.get("/_matrix/client/v3/sync?since=s1").await.status, StatusCode::OK);
    gate.add_permits(1);
    until("the place was taken", || held.load(Ordering::SeqCst) == cap + 1).await;
    // Who queues too long is shed as well.
    assert_eq!(lab.get(initial).await.status, StatusCode::TOO_MANY_REQUESTS);
    gate.add_permits(cap);
    for reply in flood {
        assert_eq!(reply.await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_read_holds_the_client_back() {
    use tokio::io::AsyncWriteExt as _;
    let lab = Lab::with(&[], quick()).await;
    lab.run("main", Behaviour::Raw(Raw::Hang));
    let mut stream = tokio::net::TcpStream::connect(lab.address).await.unwrap();
    let head = "POST /_matrix/media/v3/upload HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![0; 64 << 10];
    let mut written = 0;
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(200), stream.write(&chunk)).await {
        written += n;
        assert!(written < 30 << 20, "the router takes in whatever comes");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_instance() {
    let lab = Lab::with(&[], quick()).await;
    lab.run("main", Behaviour::Raw(Raw::Hang));
    let mut client = lab.connect().await;
    let gone =
        tokio::time::timeout(Duration::from_millis(50), client.send(get("/_matrix/client/v3/sync"))).await;
    assert!(gone.is_err());
    drop(client);
    until("nothing is in flight", || lab.router.stats().instances[0].in_flight == 0).await;
    let log = lab.log(1).await;
    assert_eq!(log[0]["failure"], "client_gone");
    assert!(log[0]["status"].is_null());
}

#[tokio::test]
async fn a_spooled_body_survives_a_retry() {
    let settings = Settings { buffer_bytes: 1024, ..quick() };
    let lab = Lab::with(&[], settings).await;
    lab.stop("main");
    let body = Pieces::new(40, 1000);
    let sum = crate::lab::checksum(&body.concat());
    let mut client = Client::<Pieces>::connect(lab.address).await;
    let sending = tokio::spawn(async move {
        client.send(request(&Method::POST, "/_matrix/media/v3/upload").body(body).unwrap()).await
    });
    until("it waits", || lab.metric("matrix_stack_router_waiting{role=\"main\"}") >= 1.0).await;
    lab.run("main", Behaviour::Echo);
    let echoed = sending.await.unwrap().json();
    assert_eq!((echoed["length"].as_u64(), echoed["sum"].as_u64()), (Some(40_000), Some(sum)));
}
