//! Requests that belong together reach one instance.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use model::Role;

use crate::lab::{Behaviour, Lab, Workers, answer, echo, get, request, with_token};

const WORKERS: Workers<'_> = &[
    ("room", &[Role::Room], 3),
    ("sync", &[Role::Sync], 3),
    ("federation", &[Role::FederationInbound], 3),
    ("client_reader", &[Role::ClientReader], 2),
];

const SYNC: &str = "/_matrix/client/v3/sync?since=s1";

#[tokio::test]
async fn a_room_stays_on_one_instance_however_it_is_written() {
    let lab = Lab::new(WORKERS).await;
    let mut seen = HashSet::new();
    for n in 0..12 {
        let plain = lab.get(&format!("/_matrix/client/v3/rooms/!r{n}:test.example/state")).await.instance();
        let encoded = lab
            .get(&format!("/_matrix/client/v3/rooms/%21r{n}%3atest.example/messages?dir=b"))
            .await
            .instance();
        assert_eq!(plain, encoded);
        let without_domain = format!("/_matrix/client/v3/rooms/!v12room{n}/state");
        assert_eq!(lab.get(&without_domain).await.instance(), lab.get(&without_domain).await.instance());
        seen.insert(plain);
    }
    assert_eq!(seen.len(), 3, "twelve rooms are spread over three instances: {seen:?}");
    let log = lab.log(12).await;
    assert_eq!(log[0]["key"], "room");
    assert_eq!(log[0]["role"], "room");
}

#[tokio::test]
async fn a_user_stays_on_one_instance_across_tokens_devices_and_routers() {
    let lab = Lab::new(WORKERS).await;
    // alice, twice; the second as an old client sends it.
    let first = lab.send(with_token(SYNC, "syt_YWxpY2U_aaaaaaaaaaaaaaaaaaaa_0a1b2c")).await.instance();
    let second =
        lab.get(&format!("{SYNC}&access_token=syt_YWxpY2U_bbbbbbbbbbbbbbbbbbbb_3d4e5f")).await.instance();
    assert_eq!(first, second);
    let other_router = Lab::new(WORKERS).await;
    assert_eq!(
        other_router.send(with_token(SYNC, "syt_YWxpY2U_cccccccccccccccccccc_3d4e5f")).await.instance(),
        first
    );
    let log = lab.log(2).await;
    assert_eq!(log[0]["key"], "user_token");
    let text = std::fs::read_to_string(lab.dir.path().join("access.log")).unwrap();
    assert!(!text.contains("syt_"), "a token is in the log: {text}");
}

/// Tokens `mat_USER_…` are USER's; each question is counted.
fn main_that_knows(asked: Arc<AtomicUsize>) -> Behaviour {
    answer(move |request| {
        let asked = asked.clone();
        async move {
            if request.uri().path() != "/_matrix/client/v3/account/whoami" {
                return echo("client_reader", request).await.unwrap();
            }
            asked.fetch_add(1, Ordering::SeqCst);
            let token = request.headers()["authorization"].to_str().unwrap().to_owned();
            assert_eq!(request.headers()["x-forwarded-for"], "127.0.0.1");
            assert_eq!(request.headers()["user-agent"], "test");
            if let Some((user, _)) = token.strip_prefix("Bearer mat_").and_then(|rest| rest.split_once('_')) {
                return Response::new(Full::from(format!(r#"{{"user_id":"@{user}:test.example"}}"#)));
            }
            let mut refused = Response::new(Full::from(r#"{"errcode":"M_UNKNOWN_TOKEN"}"#));
            *refused.status_mut() = StatusCode::UNAUTHORIZED;
            refused
        }
    })
}

#[tokio::test]
async fn tokens_of_another_kind_are_asked_about_once() {
    let lab = Lab::new(WORKERS).await;
    let asked = Arc::new(AtomicUsize::new(0));
    for name in ["client_reader_1", "client_reader_2"] {
        lab.run(name, main_that_knows(asked.clone()));
    }
    let sync = |token: &str| {
        let request = request(&Method::GET, SYNC)
            .header("authorization", format!("Bearer {token}"))
            .header("user-agent", "test");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let lab = &lab;
        async move { lab.send(request).await.instance() }
    };
    // What a token of Synapse's own says and what Synapse says of another token mean the same user.
    let home = lab.send(with_token(SYNC, "syt_YWxpY2U_aaaaaaaaaaaaaaaaaaaa_0a1b2c")).await.instance();
    for refreshed in 0..4 {
        let token = format!("mat_alice_{refreshed}");
        assert_eq!(sync(&token).await, home);
        assert_eq!(sync(&token).await, home);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4, "each token is asked about once");

    // Nobody's token keeps to one instance too, and is asked about once.
    assert_eq!(sync("unknown").await, sync("unknown").await);
    assert_eq!(asked.load(Ordering::SeqCst), 5);
    // Many at once ask once.
    let many: Vec<_> = (0..8).map(|_| sync("mat_bob_x")).collect();
    let mut homes = HashSet::new();
    for instance in join_all(many).await {
        homes.insert(instance);
    }
    assert_eq!(homes.len(), 1);
    assert_eq!(asked.load(Ordering::SeqCst), 6);
    assert_eq!(lab.log(9).await[1]["key"], "user_whoami");
    assert!(lab.metric("matrix_stack_router_whoami_entries") >= 6.0);
}

async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn without_an_answer_the_token_is_the_key() {
    let lab = Lab::new(WORKERS).await;
    for name in ["client_reader_1", "client_reader_2", "main"] {
        lab.stop(name);
    }
    let first = lab.send(with_token(SYNC, "mat_carol_1")).await.instance();
    assert_eq!(lab.send(with_token(SYNC, "mat_carol_1")).await.instance(), first);
    assert_eq!(lab.log(2).await[1]["key"], "token_hash");
}

#[tokio::test]
async fn an_origin_stays_on_one_instance() {
    let lab = Lab::new(WORKERS).await;
    let mut seen = HashSet::new();
    for n in 0..12 {
        let send = |authorization: String, txn: &str| {
            let request = request(&Method::PUT, &format!("/_matrix/federation/v1/send/{txn}"));
            let request =
                request.header("authorization", authorization).body(Full::<Bytes>::from("{}")).unwrap();
            let lab = &lab;
            async move { lab.send(request).await.instance() }
        };
        let quoted =
            send(format!(r#"X-Matrix origin="o{n}.example",destination="t",key="k",sig="s""#), "1").await;
        let bare = send(format!("x-matrix key=k,sig=s, origin=o{n}.example"), "2").await;
        assert_eq!(quoted, bare);
        seen.insert(quoted);
    }
    assert_eq!(seen.len(), 3);
    // Without one, the address counts.
    let path = "/_matrix/federation/v1/send/3";
    let send = || lab.send(request(&Method::PUT, path).body(Full::from("{}")).unwrap());
    assert_eq!(send().await.instance(), send().await.instance());
    let log = lab.log(26).await;
    assert_eq!(log[0]["key"], "origin");
    assert_eq!(log[25]["key"], "address");
}

#[tokio::test]
async fn the_idle_take_turns_and_the_busy_are_spared() {
    let lab = Lab::new(WORKERS).await;
    let turns: Vec<_> =
        [lab.get("/_matrix/client/versions").await, lab.get("/_matrix/client/versions").await]
            .iter()
            .map(crate::lab::Reply::instance)
            .collect();
    assert_ne!(turns[0], turns[1]);
}

#[tokio::test]
async fn an_instance_that_goes_takes_only_its_own_keys_along() {
    let lab = Lab::new(WORKERS).await;
    let room = |n: usize| get(&format!("/_matrix/client/v3/rooms/!r{n}:test.example/state"));
    let mut before = Vec::new();
    for n in 0..20 {
        before.push(lab.send(room(n)).await.instance());
    }
    lab.stop("room_2");
    for (n, before) in before.iter().enumerate() {
        let after = lab.send(room(n)).await.instance();
        assert!(after != "room_2" && (before == "room_2" || *before == after), "{n}: {before} → {after}");
    }
}
