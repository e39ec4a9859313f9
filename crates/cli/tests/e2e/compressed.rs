//! Rooms whose members come and go by thousands, compressed while they do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::stack::{Stack, password};
use crate::system::{ask, run};

/// Who comes and goes.
const USERS: usize = 8;
/// How many changes each makes at least before the room is compressed, and how many at most, for as long as there is time.
const CHANGES: std::ops::RangeInclusive<u32> = 40..=400;
const TIME: Duration = Duration::from_secs(10);
/// How many other keys the room's state has.
const KEYS: u32 = 150;
/// Compressing takes seconds; the machine may be busy.
const COMPRESSED: Duration = Duration::from_secs(120);
#[track_caller]
fn need(port: u16, method: &str, path: &str, token: &str, body: Option<&Value>) -> Value {
    let (status, text) = ask(port, method, path, Some(token), body);
    assert_eq!(status, 200, "{method} {path}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

struct User {
    id: String,
    token: String,
}

fn register(port: u16, name: &str) -> User {
    let body = json!({ "username": name, "password": password(name), "auth": { "type": "m.login.dummy" } });
    let (status, text) = ask(port, "POST", "/_matrix/client/v3/register", None, Some(&body));
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    let text = |name: &str| answer[name].as_str().expect("a string").to_owned();
    User { id: text("user_id"), token: text("access_token") }
}

/// One change of a member: mostly of a name, now and then away and back.
fn change(port: u16, room: &str, user: &User, number: u32) {
    if number.is_multiple_of(10) {
        need(port, "POST", &format!("/_matrix/client/v3/rooms/{room}/leave"), &user.token, Some(&json!({})));
        need(port, "POST", &format!("/_matrix/client/v3/rooms/{room}/join"), &user.token, Some(&json!({})));
    } else {
        let path = format!("/_matrix/client/v3/rooms/{room}/state/m.room.member/{}", user.id);
        let body = json!({ "membership": "join", "displayname": format!("{number}") });
        need(port, "PUT", &path, &user.token, Some(&body));
    }
}

/// Asks the stack's own database.
fn database<T>(stack: &Stack, work: impl AsyncFnOnce(tokio_postgres::Client) -> T) -> T {
    let sockets = model::Layout::new(stack.data()).postgres_socket_dir();
    let asking = async {
        let mut config = tokio_postgres::Config::new();
        config.host_path(sockets).user("postgres").dbname("synapse");
        let (client, connection) = config.connect(NoTls).await.expect("the superuser gets in");
        tokio::spawn(connection);
        work(client).await
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(asking)
}

/// What each group of a room resolves to, by Synapse's own query; and how many rows they have in all.
fn groups(stack: &Stack, room: &str) -> (BTreeMap<i64, String>, i64) {
    database(stack, async |client| {
        let rows = client
            .query(
                "SELECT g.id, s.digest FROM state_groups g, LATERAL (WITH RECURSIVE sgs(state_group) AS (VALUES (g.id) UNION ALL \
                 SELECT prev_state_group FROM state_group_edges e, sgs s WHERE s.state_group = e.state_group) \
                 SELECT coalesce(md5(string_agg(type || state_key || event_id, ',' ORDER BY type, state_key)), '') AS digest \
                 FROM (SELECT DISTINCT ON (type, state_key) type, state_key, event_id FROM state_groups_state WHERE state_group \
                 IN (SELECT state_group FROM sgs) ORDER BY type, state_key, state_group DESC) t) s WHERE g.room_id = $1",
                &[&room],
            )
            .await
            .expect("states");
        let count = client
            .query_one("SELECT count(*) FROM state_groups_state WHERE room_id = $1", &[&room])
            .await
            .expect("a count");
        (rows.iter().map(|row| (row.get(0), row.get(1))).collect(), count.get(0))
    })
}

/// Who is in the room, by the client-server API.
fn members(stack: &Stack, room: &str, user: &User) -> Value {
    need(stack.port, "GET", &format!("/_matrix/client/v3/rooms/{room}/joined_members"), &user.token, None)
}

pub(crate) fn a_room_is_compressed_while_its_members_come_and_go() {
    let stack = Stack::new("small");
    stack.up().good();
    let users: Vec<User> = (0..USERS).map(|number| register(stack.port, &format!("mover{number}"))).collect();
    let owner = &users[0];
    let keys: Vec<Value> = (0..KEYS)
        .map(|key| json!({ "type": "test.key", "state_key": key.to_string(), "content": {} }))
        .collect();
    let create = json!({ "preset": "public_chat", "name": "crowd", "initial_state": keys });
    let created = need(stack.port, "POST", "/_matrix/client/v3/createRoom", &owner.token, Some(&create));
    let room = created["room_id"].as_str().expect("an ID");
    for user in &users[1..] {
        need(
            stack.port,
            "POST",
            &format!("/_matrix/client/v3/rooms/{room}/join"),
            &user.token,
            Some(&json!({})),
        );
    }
    std::thread::scope(|scope| {
        for user in &users[1..] {
            let started = Instant::now();
            let more = move |number: &u32| number <= CHANGES.start() || started.elapsed() < TIME;
            let port = stack.port;
            scope.spawn(move || {
                (1..=*CHANGES.end()).take_while(more).for_each(|number| change(port, room, user, number));
            });
        }
    });
    let (before, rows) = groups(&stack, room);

    // They go on while it is compressed.
    let (done, meanwhile) = (AtomicBool::new(false), AtomicU32::new(0));
    let report = std::thread::scope(|scope| {
        for user in &users[1..] {
            scope.spawn(|| {
                let mut number = *CHANGES.end();
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    change(stack.port, room, user, number);
                    meanwhile.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut reports = Vec::new();
        for _ in 0..3 {
            let mut command = stack.command(&["compress-state", "--json", "--from-start", "--room", room]);
            reports.push(run(&mut command, COMPRESSED));
        }
        done.store(true, Ordering::Relaxed);
        let report: Value = serde_json::from_str(&reports.remove(0).good().stdout).expect("JSON");
        for done in reports {
            done.good();
        }
        report
    });
    let (after, left) = groups(&stack, room);
    println!(
        "    {} groups in {rows} rows; {left} rows with {} changes meanwhile; locks for {} s at most",
        before.len(),
        meanwhile.load(Ordering::Relaxed),
        report["rooms"][0]["longest_hold"]
    );
    for (group, state) in &before {
        assert_eq!(after.get(group), Some(state), "the state of group {group}");
    }
    assert!(meanwhile.load(Ordering::Relaxed) > 0, "nobody moved meanwhile");
    assert!(report["rooms"][0]["moved"].as_u64() > Some(0), "{report}");

    // Synapse reads it anew.
    let present = members(&stack, room, owner);
    stack.down().good();
    stack.up().good();
    assert_eq!(members(&stack, room, owner), present, "who is in the room");
    let (again, _) = groups(&stack, room);
    assert!(after.iter().all(|(group, state)| again.get(group) == Some(state)));
    change(stack.port, room, &users[1], 1);
    stack.down().good();
}
