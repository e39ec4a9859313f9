//! The command line as people see it: what each command prints, where, and its exit code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs the command in a directory and gives exit code, stdout and stderr in one text.
fn run(directory: &Path, words: &[&str]) -> String {
    let done = command(directory, words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&directory.display().to_string(), "DIR");
    format!(
        "$ matrix-stack {}\nexit: {}\n--- stdout\n{}--- stderr\n{}",
        words.join(" ").replace(&directory.display().to_string(), "DIR"),
        done.status.code().unwrap(),
        text(&done.stdout),
        text(&done.stderr)
    )
}

fn command(directory: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix-stack"));
    command
        .args(words)
        .current_dir(directory)
        .env("HOME", directory)
        .env("COLUMNS", "110")
        .env_remove("XDG_DATA_HOME");
    command
}

fn json(directory: &Path, words: &[&str]) -> Value {
    let done = command(directory, words).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn with_stack(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("stack.yaml"), text).unwrap();
    directory
}

const GOOD: &str = "server_name: example.org\npreset: medium\n";

#[test]
fn help_lists_every_command() {
    let directory = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(run(directory.path(), &["--help"]));
    insta::assert_snapshot!("up_help", run(directory.path(), &["up", "--help"]));
}

#[test]
fn what_init_writes_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let wrote = run(directory.path(), &["init", "--server-name", "example.org", "--preset", "small"]);
    assert!(wrote.contains("exit: 0"), "{wrote}");
    insta::assert_snapshot!(run(directory.path(), &["check"]));
    // A second time it changes nothing.
    insta::assert_snapshot!("init_again", run(directory.path(), &["init"]));
}

#[test]
fn check_tells_all_problems_at_once_with_their_places() {
    let directory = with_stack(
        "server_name: Example.org\n\
         prest: full\n\
         listen:\n  address: 8008\n\
         workers:\n  sync: {count: lots}\n",
    );
    insta::assert_snapshot!(run(directory.path(), &["check"]));
}

#[test]
fn check_points_at_what_cannot_be_planned() {
    let directory = with_stack(
        "server_name: example.org\n\
         preset: full\n\
         workers:\n  typing:\n    count: 2\n\
         synapse:\n  extra:\n    stream_writers: {}\n",
    );
    insta::assert_snapshot!(run(directory.path(), &["check"]));
}

#[test]
fn a_missing_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(run(directory.path(), &["check", "--config", "nowhere.yaml"]));
}

#[test]
fn plan_shows_the_processes() {
    insta::assert_snapshot!(run(with_stack(GOOD).path(), &["plan"]));
    let plan = json(with_stack(GOOD).path(), &["plan", "--json", "--preset", "full"]);
    assert_eq!(plan["instances"].as_array().unwrap().len(), 37);
}

#[test]
fn plan_recommends_for_a_number_of_users() {
    let directory = tempfile::tempdir().unwrap();
    for users in ["20", "1500", "20000"] {
        insta::assert_snapshot!(format!("users_{users}"), run(directory.path(), &["plan", "--users", users]));
    }
    assert_eq!(json(directory.path(), &["plan", "--users", "20", "--json"])["preset"], "small");
}

#[test]
fn plan_compares_two_stacks() {
    let directory = with_stack(GOOD);
    let new = format!(
        "{GOOD}workers: {{event_persister: {{count: 2}}, sync: {{count: 3}}}}\nlisten: {{admin_api: true}}\n"
    );
    std::fs::write(directory.path().join("new.yaml"), new).unwrap();
    insta::assert_snapshot!(run(directory.path(), &["plan", "--against", "new.yaml"]));
    let comparison = json(directory.path(), &["plan", "--against", "new.yaml", "--json"]);
    assert_eq!(comparison["router"], true);
    insta::assert_snapshot!("same", run(directory.path(), &["plan", "--against", "stack.yaml"]));
    std::fs::write(directory.path().join("other.yaml"), "server_name: other.org\npreset: medium\n").unwrap();
    insta::assert_snapshot!("renamed", run(directory.path(), &["plan", "--against", "other.yaml"]));
}

#[test]
fn routes_are_explained_without_a_stack_file_for_every_role() {
    let directory = tempfile::tempdir().unwrap();
    let room = "/_matrix/client/v3/rooms/!a:example.org/send/m.room.message/1";
    let explained = json(directory.path(), &["routes", "explain", "PUT", room, "--json"]);
    for field in ["role", "roles", "balance", "key", "instances", "timeout_seconds", "reason"] {
        assert!(!explained[field].is_null(), "`{field}` is missing in {explained}");
    }
    assert_eq!(explained["role"], "room");
    assert_eq!(explained["instances"], serde_json::json!(["room_1", "room_2"]));
    insta::assert_snapshot!(run(
        directory.path(),
        &["routes", "explain", "GET", "/_matrix/client/v3/sync?since=s1"]
    ));
}

#[test]
fn versions_of_the_endpoint_table_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(run(directory.path(), &["routes", "diff", "1.162", "1.163"]));
    insta::assert_snapshot!("no_such_table", run(directory.path(), &["routes", "diff", "1.1", "1.163"]));
    let list = json(directory.path(), &["routes", "list", "--json"]);
    assert!(list.as_array().unwrap().len() > 500, "every endpoint of a full stack is listed");
}

#[test]
fn synapse_files_are_rendered_for_all_or_for_one() {
    let directory = with_stack(GOOD);
    let all = directory.path().join("all");
    let done = run(directory.path(), &["render", "synapse", "--out", "all", "--data-dir", "/data"]);
    assert!(done.contains("exit: 0"), "{done}");
    let count = std::fs::read_dir(&all).unwrap().count();
    assert_eq!(count, 1 + 10, "shared.yaml, and one file for each of ten processes");
    let done =
        run(directory.path(), &["configure", "--instance", "sync_2", "--out", "one", "--data-dir", "/data"]);
    assert!(done.contains("exit: 0"), "{done}");
    for file in ["shared.yaml", "sync_2.yaml"] {
        let read = |sub: &str| std::fs::read_to_string(directory.path().join(sub).join(file)).unwrap();
        assert_eq!(read("all"), read("one"), "{file}");
    }
    insta::assert_snapshot!(run(directory.path(), &["configure", "--instance", "sync_9", "--out", "one"]));
}

#[test]
fn pools_are_told_and_configured_process_by_process() {
    const POOLS: &str = "server_name: example.org\npreset: medium\nnetwork: {hosts: {pools: {suffix: .pools}}}\n\
                         database: {external: {host: db}}\nredis: {external: {host: valkey}}\n\
                         workers: {sync: {max_count: 4}}\n";
    let directory = with_stack(POOLS);
    insta::assert_snapshot!("pools_plan", run(directory.path(), &["plan"]));
    insta::assert_snapshot!("pools_check", run(directory.path(), &["check"]));
    let path = "/_matrix/client/v3/sync?since=s1";
    insta::assert_snapshot!("pools_explain", run(directory.path(), &["routes", "explain", "GET", path]));
    insta::assert_snapshot!("pools_render", run(directory.path(), &["render", "synapse", "--out", "all"]));
    let mut words = vec!["configure", "--instance", "sync", "--out", "one"];
    insta::assert_snapshot!("pools_nameless", run(directory.path(), &words));
    words.extend(["--name", "sync-7f9c-abcde"]);
    insta::assert_snapshot!("pools_named", run(directory.path(), &words));
    let own = std::fs::read_to_string(directory.path().join("one/sync.yaml")).unwrap();
    assert!(own.contains("worker_name: sync-7f9c-abcde\n"), "{own}");
    insta::assert_snapshot!("pools_nginx", run(directory.path(), &["render", "nginx"]));
}

#[test]
fn commands_for_a_running_stack_say_that_none_runs() {
    let directory = with_stack(GOOD);
    for words in [&["status"][..], &["down"], &["reload"], &["restart", "sync_1"], &["user", "add", "alice"]]
    {
        let mut words = words.to_vec();
        words.extend(["--data-dir", "data"]);
        insta::assert_snapshot!(format!("not_running_{}", words[0]), run(directory.path(), &words));
    }
    insta::assert_snapshot!(
        "logs_of_nobody",
        run(directory.path(), &["logs", "nobody", "--data-dir", "data"])
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(command(directory.path(), &["dance"]).output().unwrap().status.code(), Some(2));
    assert_eq!(command(directory.path(), &["plan", "--users", "0"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn the_schema_is_json_schema() {
    let directory = tempfile::tempdir().unwrap();
    let schema = json(directory.path(), &["schema"]);
    assert_eq!(schema["type"], "object");
    assert!(schema["properties"]["server_name"].is_object());
}

/// `docs/cli.md` is what the commands say of themselves.
#[test]
fn the_manual_of_commands_is_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    let help = |words: &[&str]| {
        let words: Vec<_> = words.iter().copied().chain(["--help"]).collect();
        let done = command(directory.path(), &words).output().unwrap();
        format!("```text\n{}```\n", String::from_utf8(done.stdout).unwrap())
    };
    let mut page = format!(
        "# Commands\n\nData goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.\n\n{}",
        help(&[])
    );
    for words in [
        &["init"][..],
        &["check"],
        &["plan"],
        &["up"],
        &["status"],
        &["top"],
        &["logs"],
        &["restart"],
        &["down"],
        &["router"],
        &["user", "add"],
        &["render", "synapse"],
        &["render", "nginx"],
        &["render", "haproxy"],
        &["render", "envoy"],
        &["configure"],
        &["routes", "explain"],
        &["routes", "list"],
        &["routes", "extract"],
        &["routes", "diff"],
        &["routes", "audit"],
        &["schema"],
    ] {
        write!(page, "\n## `{}`\n\n{}", words.join(" "), help(words)).unwrap();
    }
    committed::file("docs/cli.md", &page);
}
