//! Restarts, reloads and the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use model::Role;
use router::{InstanceState, Settings, Shutdown, Snapshot};
use tokio::sync::Semaphore;

use crate::lab::{Behaviour, Client, Lab, answer, get, post, quick, request, stack, topology, until};

const SOON: Duration = Duration::from_secs(20);

const TYPING: &str = "/_matrix/client/v3/rooms/!r:test.example/typing/@a:test.example";

fn typing() -> http::Request<Full<Bytes>> {
    request(&Method::PUT, TYPING).body(Full::from("{}")).unwrap()
}

/// An upstream that answers only when the gate lets it, and how many requests wait there.
fn gated() -> (Behaviour, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (gate, held) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, counted) = (gate.clone(), held.clone());
    let behaviour = answer(move |_| {
        let (opened, counted) = (opened.clone(), counted.clone());
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            opened.acquire().await.unwrap().forget();
            Response::new(Full::from("{}"))
        }
    });
    (behaviour, gate, held)
}

#[tokio::test]
async fn a_held_instance_gets_nothing_until_it_is_released() {
    let lab = Lab::new(&[("typing", &[Role::Typing], 1), ("client_reader", &[Role::ClientReader], 2)]).await;
    assert!(lab.router.hold("typing_1") && !lab.router.hold("nobody") && !lab.router.release("nobody"));
    assert_eq!(lab.state("typing_1"), InstanceState::Held);
    let address = lab.address;
    let waiting = tokio::spawn(async move { Client::connect(address).await.send(typing()).await });
    until("it waits", || lab.metric("matrix_stack_router_waiting{role=\"typing\"}") >= 1.0).await;
    assert_eq!(lab.seen("typing_1"), 0, "although it runs");
    lab.router.release("typing_1");
    assert_eq!(waiting.await.unwrap().instance(), "typing_1");
    assert_eq!(lab.state("typing_1"), InstanceState::Up);

    // Where there is another, nobody waits.
    lab.router.hold("client_reader_1");
    for _ in 0..4 {
        assert_eq!(lab.get("/_matrix/client/versions").await.instance(), "client_reader_2");
    }
    lab.router.release("client_reader_1");
    lab.router.drain("client_reader_2");
    assert_eq!(lab.get("/_matrix/client/versions").await.instance(), "client_reader_1");
    assert_eq!(lab.router.settled("client_reader_2", Duration::from_secs(1)).await, 0);
}

#[tokio::test]
async fn restarts_under_load_fail_nothing() {
    let lab = Lab::new(&[("typing", &[Role::Typing], 1), ("sync", &[Role::Sync], 2)]).await;
    let (address, stop) = (lab.address, Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut client, mut count) = (Client::connect(address).await, 0);
                while !stop.load(Ordering::Relaxed) {
                    // Some must not be sent twice, others may.
                    let request = if n % 2 == 0 { typing() } else { get("/_matrix/client/v3/sync?since=s") };
                    let reply = client.send(request).await;
                    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for _ in 0..5 {
        for name in ["typing_1", "sync_1", "sync_2"] {
            lab.router.hold(name);
            assert_eq!(lab.router.settled(name, Duration::from_secs(1)).await, 0);
            lab.stop(name);
            tokio::time::sleep(Duration::from_millis(10)).await;
            lab.run(name, Behaviour::Echo);
            lab.router.release(name);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for client in clients {
        total += client.await.unwrap();
    }
    assert!(total > 50, "only {total} requests were made");
}

#[tokio::test]
async fn a_reload_keeps_what_stays_and_lets_the_rest_finish() {
    let lab = Lab::new(&[("typing", &[Role::Typing], 1), ("sync", &[Role::Sync], 1)]).await;
    let (behaviour, gate, held) = gated();
    lab.run("sync_1", behaviour);
    let address = lab.address;
    let sync = || get("/_matrix/client/v3/sync?since=s");
    let long_poll = tokio::spawn(async move { Client::connect(address).await.send(sync()).await });
    until("the poll is held", || held.load(Ordering::SeqCst) == 1).await;
    lab.router.hold("typing_1");
    let waiting = tokio::spawn(async move { Client::connect(address).await.send(typing()).await });
    until("a request waits", || lab.metric("matrix_stack_router_waiting{role=\"typing\"}") >= 1.0).await;

    // Without sync and typing; what they did is main's now, what waits included.
    let smaller = topology(&stack(&[]), lab.dir.path());
    lab.router.reload(Snapshot::new(&smaller, quick()).unwrap());
    assert_eq!(waiting.await.unwrap().instance(), "main");
    assert_eq!(lab.send(sync()).await.instance(), "main");
    gate.add_permits(1);
    assert_eq!(long_poll.await.unwrap().status, StatusCode::OK);
    assert_eq!(lab.router.stats().instances.len(), 1);

    // A storm of reloads under load loses nothing.
    let load = tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        for _ in 0..50 {
            assert_eq!(client.send(post("/_matrix/client/v3/keys/query", "{}")).await.status, StatusCode::OK);
        }
    });
    // Made beforehand: compiling the table takes longer than swapping it.
    let snapshots: Vec<_> = (0..4).map(|_| Snapshot::new(&smaller, quick()).unwrap()).collect();
    for snapshot in snapshots {
        lab.router.reload(snapshot);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.await.unwrap();
    assert_eq!(lab.state("main"), InstanceState::Up);
}

#[tokio::test]
async fn the_end_lets_requests_finish() {
    let lab = Lab::new(&[("sync", &[Role::Sync], 1)]).await;
    let (behaviour, gate, held) = gated();
    lab.run("sync_1", behaviour);
    let address = lab.address;
    let long_poll = tokio::spawn(async move {
        Client::connect(address).await.send(get("/_matrix/client/v3/sync?since=s")).await
    });
    until("the poll is held", || held.load(Ordering::SeqCst) == 1).await;
    let mut idle = lab.connect().await;
    assert_eq!(idle.send(get("/_matrix/client/versions")).await.status, StatusCode::OK);

    let router = lab.router.clone();
    let ending = tokio::spawn(async move { router.shutdown(Duration::from_secs(10)).await });
    until("nobody listens", || std::net::TcpStream::connect(address).is_err()).await;
    assert!(idle.try_send(get("/_matrix/client/versions")).await.is_err(), "idle connections are closed");
    assert!(lab.router.ready().is_err() && lab.router.stats().draining);
    gate.add_permits(1);
    let reply = long_poll.await.unwrap();
    assert_eq!((reply.status, reply.headers["connection"].as_bytes()), (StatusCode::OK, &b"close"[..]));
    assert_eq!(ending.await.unwrap(), Shutdown { finished: 1, cut: 0 });
}

#[tokio::test]
async fn at_the_deadline_what_still_waits_is_answered() {
    let lab = Lab::with(&[("sync", &[Role::Sync], 1)], Settings { ..quick() }).await;
    let (behaviour, _gate, held) = gated();
    lab.run("sync_1", behaviour);
    let address = lab.address;
    let long_poll = tokio::spawn(async move {
        Client::connect(address).await.send(get("/_matrix/client/v3/sync?since=s")).await
    });
    until("the poll is held", || held.load(Ordering::SeqCst) == 1).await;
    assert_eq!(lab.router.shutdown(Duration::from_millis(50)).await, Shutdown { finished: 0, cut: 1 });
    let reply = long_poll.await.unwrap();
    assert_eq!(reply.error(), (503, "M_UNKNOWN".into()));
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(lab.log(1).await[0]["failure"], "router_stopping");
}

#[tokio::test]
async fn the_end_loses_no_request_that_had_connected() {
    let lab = Lab::new(&[]).await;
    let address = lab.address;
    // They connect, and are accepted or wait in the backlog when the end begins.
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(std::net::TcpStream::connect(address).unwrap());
    }
    let requests: Vec<_> = clients
        .into_iter()
        .map(|stream| {
            use std::io::Write as _;
            (&stream).write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            tokio::spawn(async move {
                crate::lab::read_all(&mut tokio::net::TcpStream::from_std(stream).unwrap()).await
            })
        })
        .collect();
    lab.router.shutdown(Duration::from_secs(5)).await;
    for answer in requests {
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
}

#[tokio::test]
async fn who_leaves_answers_once_more_where_nothing_is_asked_yet() {
    const PATH: &str = "/_matrix/client/versions";
    let lab = Lab::new(&[]).await;
    let (mut idle, mut silent) = (lab.connect().await, lab.connect().await);
    assert_eq!(idle.send(get(PATH)).await.status, StatusCode::OK);
    until("both are accepted", || lab.router.stats().connections == 2).await;
    let router = lab.router.clone();
    let leaving = tokio::spawn(async move { router.leave(SOON, 2 * SOON).await });
    until("it leaves", || lab.router.stats().draining).await;
    // Longer than a router that stops would wait.
    tokio::time::sleep(Duration::from_millis(400)).await;
    for client in [&mut idle, &mut silent] {
        let reply = client.send(get(PATH)).await;
        assert_eq!((reply.status, reply.headers["connection"].as_bytes()), (StatusCode::OK, &b"close"[..]));
    }
    // Then there is nothing to wait for.
    assert_eq!(leaving.await.unwrap(), Shutdown { finished: 0, cut: 0 });

    // Who never asks again is not waited for beyond the time set.
    let lab = Lab::new(&[]).await;
    let mut idle = lab.connect().await;
    assert_eq!(idle.send(get(PATH)).await.status, StatusCode::OK);
    lab.router.leave(Duration::from_millis(50), SOON).await;
    assert!(idle.try_send(get(PATH)).await.is_err());
    assert_eq!(lab.router.stats().connections, 0);
}

#[tokio::test]
async fn long_polls_outlive_their_instance_however_often_it_restarts() {
    let lab = Lab::new(&[("sync", &[Role::Sync], 1)]).await;
    let address = lab.address;
    let (behaviour, _gate, held) = gated();
    lab.run("sync_1", behaviour);
    let sync = || get("/_matrix/client/v3/sync?since=s");
    let poll = tokio::spawn(async move { Client::connect(address).await.send(sync()).await });
    until("the poll is held", || held.load(Ordering::SeqCst) == 1).await;
    // More often than a request is sent again that fails.
    for _ in 0..8 {
        lab.router.hold("sync_1");
        assert_eq!(lab.router.settled("sync_1", Duration::from_secs(5)).await, 0, "nobody waits for a poll");
        lab.stop("sync_1");
        until("the poll waits", || lab.metric("matrix_stack_router_waiting{role=\"sync\"}") >= 1.0).await;
        let (behaviour, _gate, held) = gated();
        lab.run("sync_1", behaviour);
        lab.router.release("sync_1");
        until("the poll is held again", || held.load(Ordering::SeqCst) == 1).await;
    }
    // It goes for good, and who stands in for it answers.
    lab.router.reload(Snapshot::new(&topology(&stack(&[]), lab.dir.path()), quick()).unwrap());
    assert_eq!(lab.router.settled("sync_1", Duration::from_secs(5)).await, 0);
    lab.stop("sync_1");
    assert_eq!(poll.await.unwrap().instance(), "main");
}

#[tokio::test]
async fn what_cannot_be_sent_again_is_waited_for_and_a_pause_keeps_the_rest() {
    let lab = Lab::new(&[("typing", &[Role::Typing], 1)]).await;
    let (behaviour, gate, held) = gated();
    lab.run("typing_1", behaviour);
    let address = lab.address;
    let first = tokio::spawn(async move { Client::connect(address).await.send(typing()).await });
    until("it is under way", || held.load(Ordering::SeqCst) == 1).await;
    let pause = lab.router.pause();
    assert_eq!(lab.router.all_settled(Duration::from_millis(20)).await, 1);
    let second = tokio::spawn(async move { Client::connect(address).await.send(typing()).await });
    until("it waits", || lab.metric("matrix_stack_router_waiting{role=\"typing\"}") >= 1.0).await;
    gate.add_permits(2);
    assert_eq!(lab.router.all_settled(Duration::from_secs(5)).await, 0);
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert_eq!(held.load(Ordering::SeqCst), 1);
    drop(pause);
    assert_eq!(second.await.unwrap().status, StatusCode::OK);

    // It is a bounded time.
    let settings = Settings { pause_patience: Duration::from_millis(20), ..quick() };
    lab.router.reload(Snapshot::new(&lab.topology, settings).unwrap());
    let _pause = lab.router.pause();
    assert_eq!(lab.get("/_matrix/client/versions").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_listener_may_end_before_the_router() {
    let lab = Lab::new(&[]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = listener.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(lab.router.serve_until(listener, async { drop(ended.await) }));
    let mut client = Client::connect(other).await;
    let ask = || get("/_matrix/client/versions");
    assert_eq!(client.send(ask()).await.status, StatusCode::OK);
    drop(end);
    serving.await.unwrap();
    assert!(tokio::net::TcpStream::connect(other).await.is_err());
    // Who is connected stays so, and the other listener goes on.
    assert_eq!(client.send(ask()).await.status, StatusCode::OK);
    assert_eq!(lab.get("/_matrix/client/versions").await.status, StatusCode::OK);
}
