//! `compress-state` on a real PostgreSQL with Synapse's real tables: rooms with histories of all kinds, killed at random,
//! beside others that write.
//!
//! One server for all, each test with a database of its own.

mod server;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use server::{Base, Server, run};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests: [(&str, fn()); 9] = [
        ("no_state_changes", no_state_changes),
        ("killed_at_any_moment_it_loses_nothing", killed_at_any_moment_it_loses_nothing),
        ("an_interrupted_run_is_taken_up_again", an_interrupted_run_is_taken_up_again),
        ("others_write_meanwhile", others_write_meanwhile),
        ("another_compressors_progress_counts", another_compressors_progress_counts),
        ("sql_does_the_same", sql_does_the_same),
        ("broken_groups_are_told_and_repaired", broken_groups_are_told_and_repaired),
        ("what_is_not_used_is_found_and_removed", what_is_not_used_is_found_and_removed),
        ("an_estimate_comes_first", an_estimate_comes_first),
    ];
    let trials = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    server::end();
    conclusion.exit_code()
}

/// A small source of numbers that gives the same ones each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn index(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).expect("small")
    }
}

type State = BTreeMap<(String, String), String>;

/// Fills a database with rooms as Synapse stores them: chains of 99 hops, forks, resets, groups without rows.
fn fill(base: &Base, seed: u64, rooms: &[(&str, u64)]) {
    let mut numbers = Numbers(seed);
    let (mut group, mut events) = (0_i64, 0_u64);
    for (room, count) in rooms {
        let mut kept: Vec<(i64, State, u32)> = Vec::new();
        let (mut ids, mut edges, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut event = || {
            events += 1;
            format!("$event{events:040}")
        };
        for _ in 0..*count {
            group += 1;
            let back = if numbers.below(20) == 0 { numbers.index(30) } else { 0 };
            let mut delta = State::new();
            for _ in 0..[1, 1, 1, 1, 1, 2, 0][numbers.index(7)] {
                let key = match numbers.below(30) {
                    0 => ("m.room.name".to_owned(), String::new()),
                    // What has to be quoted.
                    1 => ("it's \\ a \"type\"".to_owned(), "\t\n\\'".to_owned()),
                    _ => ("m.room.member".to_owned(), format!("@user{}:example.org", numbers.below(150))),
                };
                delta.insert(key, event());
            }
            let prev =
                kept.len().checked_sub(1 + back).or(kept.len().checked_sub(1)).map(|at| kept[at].clone());
            let (state, depth, stored) = match prev {
                Some((prev, state, depth)) if depth < 99 && numbers.below(150) != 0 => {
                    let state: State = state.into_iter().chain(delta.clone()).collect();
                    edges.push((group, prev));
                    (state, depth + 1, delta)
                }
                Some((_, mut state, _)) => {
                    if numbers.below(2) == 0 {
                        // A reset takes keys away.
                        state.retain(|_, _| numbers.below(8) != 0);
                    }
                    state.extend(delta);
                    (state.clone(), 0, state)
                }
                None => {
                    let state: State = (0..150)
                        .map(|user| {
                            (("m.room.member".to_owned(), format!("@user{user}:example.org")), event())
                        })
                        .collect();
                    (state.clone(), 0, state)
                }
            };
            ids.push(group);
            rows.extend(stored.into_iter().map(|((kind, key), event)| (group, kind, key, event)));
            kept.push((group, state, depth));
            if kept.len() > 40 {
                kept.remove(0);
            }
        }
        base.insert(room, &ids, &edges, &rows);
    }
}

/// What every group resolves to, by Synapse's own query, and how many hops that takes.
fn states(base: &Base) -> BTreeMap<i64, (String, i64)> {
    // The hops come second: only states must stay.
    base.states()
}

#[track_caller]
fn same(before: &BTreeMap<i64, (String, i64)>, after: &BTreeMap<i64, (String, i64)>) {
    assert_eq!(before.len(), after.len(), "groups");
    for (group, (state, _)) in before {
        assert_eq!(state, &after[group].0, "the state of {group}");
    }
}

#[track_caller]
fn shallow(states: &BTreeMap<i64, (String, i64)>) {
    let deepest = states.values().map(|(_, hops)| *hops).max();
    assert!(deepest <= Some(99), "{deepest:?} hops");
}

fn no_state_changes() {
    for seed in 1..4 {
        let base = Server::get().base();
        fill(&base, seed, &[("!a:x", 900), ("!b:x", 300), ("!c:x", 1)]);
        let (before, rows) = (states(&base), base.rows());
        let report: Value = base.compress(&["--json"]);
        let after = states(&base);
        same(&before, &after);
        shallow(&after);
        let left = base.rows();
        println!("{rows} rows became {left}");
        assert!(left < rows, "{rows} rows became {left}");
        let sum = |field: &str| -> u64 {
            report["rooms"]
                .as_array()
                .expect("rooms")
                .iter()
                .map(|room| room[field].as_u64().expect("a number"))
                .sum()
        };
        assert_eq!((sum("rows_before"), sum("rows_after")), (rows, left));
        // There is nothing new, and then one thing.
        let again = base.compress(&["--json"]);
        assert_eq!(again["rooms"], Value::Array(Vec::new()));
        let all = base.compress(&["--json", "--from-start"]);
        assert_eq!(all["rooms"].as_array().map(Vec::len), Some(3), "all rooms are begun anew");
        assert!(base.rows() <= left);
        same(&before, &states(&base));
    }
}

fn killed_at_any_moment_it_loses_nothing() {
    /// How often it is killed.
    const TIMES: u32 = 12;
    let (base, twin) = (Server::get().base(), Server::get().base());
    for base in [&base, &twin] {
        fill(base, 5, &[("!a:x", 4000), ("!b:x", 4000)]);
    }
    // How long all of it takes depends on the machine.
    let clock = Instant::now();
    twin.compress(&[]);
    let whole = clock.elapsed();
    let (before, rows) = (states(&base), base.rows());
    let mut numbers = Numbers(11);
    let mut killed = 0;
    for _ in 0..TIMES {
        let mut child = base.command(&["--budget", "60s"]).spawn().expect("it starts");
        // Twice its share at most, so that it still has work when it is killed.
        std::thread::sleep(
            whole * u32::try_from(numbers.below(1000)).expect("a small number") / (500 * TIMES),
        );
        killed += u32::from(child.try_wait().expect("own child").is_none());
        child.kill().expect("own child");
        child.wait().expect("own child");
        base.until_nobody_works();
        same(&before, &states(&base));
    }
    println!("killed {killed} times at work");
    assert!(killed > 0, "it was never at work");
    base.compress(&[]);
    let after = states(&base);
    same(&before, &after);
    shallow(&after);
    assert!(base.rows() < rows);
}

fn an_interrupted_run_is_taken_up_again() {
    let base = Server::get().base();
    fill(&base, 6, &[("!a:x", 6000)]);
    let before = states(&base);
    let child = base.command(&["--json"]).stdout(std::process::Stdio::piped()).spawn().expect("it starts");
    // Once it has written something.
    let deadline = Instant::now() + Duration::from_secs(60);
    while base.number("SELECT count(*) FROM pg_class WHERE relname = 'matrix_stack_compress_state'") == 0
        || base.number("SELECT count(*) FROM matrix_stack_compress_state") == 0
    {
        assert!(Instant::now() < deadline, "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("own child");
    let output = child.wait_with_output().expect("own child");
    assert!(output.status.success());
    same(&before, &states(&base));
    let first: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let second = base.compress(&["--json"]);
    let groups = |report: &Value| report["rooms"][0]["groups"].as_u64().unwrap_or(0);
    assert_eq!(groups(&first) + groups(&second), 6000, "each group once: {first} {second}");
    same(&before, &states(&base));
}

fn others_write_meanwhile() {
    let base = Server::get().base();
    fill(&base, 7, &[("!a:x", 5000)]);
    // Some groups are about to be deleted, and are deleted as Synapse does it, while others are added.
    let gone: Vec<i64> = (1..50).map(|n| n * 97).collect();
    base.pending(&gone);
    let before = states(&base);
    let mut child = base.command(&[]).spawn().expect("it starts");
    let mut added = Vec::new();
    let (mut deleted, mut waited) = (0, Duration::ZERO);
    let mut left = gone.iter();
    while child.try_wait().expect("own child").is_none() {
        let started = Instant::now();
        added.push(base.append("!a:x"));
        waited = waited.max(started.elapsed());
        if let Some(group) = left.next() {
            deleted += u64::from(base.delete_as_synapse(*group));
        }
    }
    assert!(child.wait().expect("own child").success());
    for group in left {
        deleted += u64::from(base.delete_as_synapse(*group));
    }
    println!("{} groups were added meanwhile, {deleted} deleted; the longest took {waited:?}", added.len());
    let after = states(&base);
    for (group, (state, _)) in &before {
        match after.get(group) {
            Some((now, _)) => assert_eq!(state, now, "the state of {group}"),
            None => assert!(gone.contains(group), "{group} is gone"),
        }
    }
    assert!(added.iter().all(|group| after.contains_key(group)), "what was added is there");
    let hanging = "SELECT count(*) FROM state_group_edges e WHERE NOT EXISTS (SELECT FROM state_groups g WHERE g.id = \
                   e.prev_state_group) OR NOT EXISTS (SELECT FROM state_groups g WHERE g.id = e.state_group)";
    assert_eq!(base.number(hanging), 0, "edges into nothing");
    base.compress(&[]);
    same(&after, &states(&base));
}

fn another_compressors_progress_counts() {
    let base = Server::get().base();
    fill(&base, 8, &[("!a:x", 1000)]);
    base.execute(
        "CREATE TABLE state_compressor_state (room_id TEXT NOT NULL, level_num INT NOT NULL, max_size INT NOT NULL, \
         current_length INT NOT NULL, current_head BIGINT, UNIQUE (room_id, level_num)); \
         CREATE TABLE state_compressor_progress (room_id TEXT PRIMARY KEY, last_compressed BIGINT NOT NULL); \
         INSERT INTO state_compressor_progress VALUES ('!a:x', 600); \
         INSERT INTO state_compressor_state VALUES ('!a:x', 1, 100, 50, 600), ('!a:x', 2, 50, 5, 500), ('!a:x', 3, 25, 1, 7777777)",
    );
    let (before, first) = (states(&base), base.rows_up_to(600));
    let report = base.compress(&["--json"]);
    assert_eq!(report["rooms"][0]["groups"], 400);
    same(&before, &states(&base));
    assert_eq!(base.rows_up_to(600), first, "what was done stays");
}

fn sql_does_the_same() {
    let (one, two) = (Server::get().base(), Server::get().base());
    for base in [&one, &two] {
        fill(base, 9, &[("!a:x", 1500)]);
    }
    let before = states(&one);
    one.compress(&["--room", "!a:x"]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("out.sql");
    two.compress(&["--room", "!a:x", "--output", file.to_str().expect("text")]);
    same(&before, &states(&two));
    assert!(two.rows() > one.rows(), "nothing is written but the file");
    let text = std::fs::read_to_string(&file).expect("it is there");
    two.execute(&text);
    let after = states(&two);
    same(&before, &after);
    shallow(&after);
    println!("{} rows, and by SQL {}", one.rows(), two.rows());
    assert!(two.rows() < one.rows() * 11 / 10, "about as few");
    // A second time its groups are not what they were, and it does nothing.
    let rows = two.rows();
    assert!(two.try_execute(&text).is_err());
    assert_eq!(two.rows(), rows);
}

fn broken_groups_are_told_and_repaired() {
    let base = Server::get().base();
    fill(&base, 10, &[("!a:x", 600)]);
    // One whose predecessor is gone, one with two, and one whose predecessor is newer.
    base.execute(
        "DELETE FROM state_groups WHERE id = 200; DELETE FROM state_groups_state WHERE state_group = 200; \
         INSERT INTO state_group_edges SELECT 300, 250 WHERE NOT EXISTS \
         (SELECT FROM state_group_edges WHERE state_group = 300 AND prev_state_group = 250); \
         INSERT INTO state_groups VALUES (5000, '!a:x', '$x'); \
         INSERT INTO state_groups_state VALUES (5000, '!a:x', 'm', '', '$x'); \
         UPDATE state_group_edges SET prev_state_group = 5000 WHERE state_group = 400",
    );
    let before = states(&base);
    let report = base.compress(&["--json"]);
    let broken = |report: &Value| report["rooms"][0]["broken"].as_array().expect("a list").len();
    assert!(broken(&report) >= 2, "{report}");
    same(&before, &states(&base));
    let mended = base.compress(&["--json", "--from-start", "--repair", "--room", "!a:x"]);
    assert!(mended["rooms"][0]["broken"][0]["repaired"] == true, "{mended}");
    same(&before, &states(&base));
    let again = base.compress(&["--json", "--from-start", "--room", "!a:x"]);
    assert_eq!(broken(&again), 0, "{again}");
}

fn what_is_not_used_is_found_and_removed() {
    let base = Server::get().base();
    fill(&base, 12, &[("!a:x", 300)]);
    // Events refer to all but the last; two groups are gone, of which rows are left.
    base.execute(
        "INSERT INTO event_to_state_groups SELECT '$e' || id, id FROM state_groups WHERE id < 290; \
         INSERT INTO state_groups_state SELECT 9001, '!a:x', 'm', k::text, '$x' FROM generate_series(1, 10) k; \
         INSERT INTO state_groups_state SELECT 9002, '!a:x', 'm', k::text, '$x' FROM generate_series(1, 10) k; \
         INSERT INTO state_group_edges VALUES (9002, 9001)",
    );
    let found = base.compress(&["--unused", "--json"]);
    assert_eq!(found["orphaned"], serde_json::json!([9002]));
    let unreferenced = found["unreferenced"].as_array().expect("a list").len();
    assert!((1..=11).contains(&unreferenced), "{found}");
    let rows = base.rows();
    let removed = base.compress(&["--unused", "--remove", "--json"]);
    assert_eq!((removed["rows_deleted"].as_u64(), base.rows()), (Some(20), rows - 20));
    assert_eq!(removed["marked"].as_u64(), Some(unreferenced as u64));
    assert_eq!(
        base.number("SELECT count(*) FROM state_groups_pending_deletion"),
        i64::try_from(unreferenced).expect("few")
    );
}

fn an_estimate_comes_first() {
    let base = Server::get().base();
    fill(&base, 13, &[("!a:x", 900), ("!b:x", 500)]);
    let directory = tempfile::tempdir().expect("a directory");
    let (svg, metrics) = (directory.path().join("rooms.svg"), directory.path().join("compress.prom"));
    let estimate = base.compress(&["--dry-run", "--json", "--svg", svg.to_str().expect("text")]);
    assert_eq!(estimate["rooms"][0]["room_id"], "!a:x");
    assert!(std::fs::read_to_string(&svg).expect("a chart").contains("!b:x"));
    let table = run(&mut base.command(&["--dry-run"]));
    assert!(table.contains("ROWS SAVED") && table.contains("!b:x"), "{table}");
    let rows = base.rows();
    let counted = base.compress(&["--count", "--json"]);
    assert_eq!(base.rows(), rows, "nothing is written");
    base.compress(&["--metrics-file", metrics.to_str().expect("text")]);
    let saved = rows - base.rows();
    let exact: u64 = counted["rooms"]
        .as_array()
        .expect("rooms")
        .iter()
        .map(|room| room["rows_before"].as_u64().expect("rows") - room["rows_after"].as_u64().expect("rows"))
        .sum();
    assert_eq!(exact, saved, "the count is exact");
    let guess: u64 = estimate["rooms"]
        .as_array()
        .expect("rooms")
        .iter()
        .filter_map(|room| room["rows_saved"].as_u64())
        .sum();
    println!("{guess} rows were estimated, {saved} saved");
    assert!(guess > 0 && saved > 0);
    let metrics = std::fs::read_to_string(&metrics).expect("metrics");
    assert!(metrics.contains("\nmatrix_stack_compress_state_rooms 2\n"), "{metrics}");
}
