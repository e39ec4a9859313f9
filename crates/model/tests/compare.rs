//! What restarts when a stack changes, and because of which field.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use model::{Comparison, Preset, Role, ServerName, Stack, WorkerGroup, compare, plan};

fn stack(preset: Preset) -> Stack {
    let mut stack = Stack::new(ServerName::try_from("example.org".to_owned()).unwrap());
    stack.preset = Some(preset);
    stack
}

fn set_count(stack: &mut Stack, group: &str, count: u16) {
    stack.workers.entry(group.to_owned()).or_default().count = Some(count);
}

fn between(old: &Stack, new: &Stack) -> Comparison {
    let topology = |stack| plan(stack, Path::new("/data/run"), Preset::Small).unwrap();
    compare(&topology(old), &topology(new))
}

fn told(comparison: &Comparison) -> String {
    let mut out = String::new();
    for change in &comparison.changes {
        let _ = writeln!(out, "{}: {} {:?}", change.instance, change.action.describe(), change.because);
    }
    let _ = writeln!(out, "router: {}", comparison.router);
    out
}

#[test]
fn one_more_reader_touches_nobody_else() {
    let mut new = stack(Preset::Medium);
    set_count(&mut new, "sync", 3);
    insta::assert_snapshot!(told(&between(&stack(Preset::Medium), &new)));
}

#[test]
fn one_more_event_persister_stops_them_together_and_restarts_the_rest() {
    let mut new = stack(Preset::Medium);
    set_count(&mut new, "event_persister", 2);
    insta::assert_snapshot!(told(&between(&stack(Preset::Medium), &new)));
}

#[test]
fn writers_that_go_end_before_the_others_start_and_readers_that_go_need_not() {
    let mut old = stack(Preset::Custom);
    for (group, count) in [("event_persister", 2), ("sync", 2)] {
        set_count(&mut old, group, count);
    }
    let mut new = old.clone();
    for group in ["event_persister", "sync"] {
        set_count(&mut new, group, 1);
    }
    let comparison = between(&old, &new);
    assert_eq!(comparison.end_first, ["event_persister_1", "event_persister_2"].map(str::to_owned).into());
    assert!(comparison.changes.iter().filter(|c| c.action == model::Action::Stop).count() == 2);
}

#[test]
fn moving_a_stream_from_main_stops_main_too() {
    let old = stack(Preset::Custom);
    let mut new = old.clone();
    new.workers.insert("typing".to_owned(), WorkerGroup::default());
    insta::assert_snapshot!(told(&between(&old, &new)));
}

#[test]
fn shared_options_roll_and_own_options_touch_their_group() {
    let old = stack(Preset::Medium);
    let mut new = old.clone();
    new.caches.global_factor = 2.0;
    insta::assert_snapshot!("shared", told(&between(&old, &new)));
    let mut new = old.clone();
    new.workers.insert("sync".to_owned(), WorkerGroup { cache_factor: Some(3.0), ..WorkerGroup::default() });
    insta::assert_snapshot!("own", told(&between(&old, &new)));
}

#[test]
fn what_the_router_alone_reads_restarts_nobody() {
    let mut old = stack(Preset::Medium);
    old.public_base_url = Some("https://matrix.example.org".to_owned());
    let mut new = old.clone();
    new.listen.admin_api = true;
    let comparison = between(&old, &new);
    assert!(comparison.router);
    assert!(comparison.changes.iter().all(|c| c.action == model::Action::Keep), "{}", told(&comparison));
}

#[test]
fn another_preset_names_the_preset() {
    insta::assert_snapshot!(told(&between(&stack(Preset::Small), &stack(Preset::Medium))));
}

#[test]
fn pushers_stop_together() {
    let mut old = stack(Preset::Custom);
    old.workers.insert("pusher".to_owned(), WorkerGroup { count: Some(2), ..WorkerGroup::default() });
    old.workers.insert("sync".to_owned(), WorkerGroup::default());
    let mut new = old.clone();
    set_count(&mut new, "pusher", 3);
    insta::assert_snapshot!(told(&between(&old, &new)));
}

#[test]
fn the_server_name_cannot_change() {
    let old = stack(Preset::Small);
    let mut new = old.clone();
    new.server_name = ServerName::try_from("other.org".to_owned()).unwrap();
    assert_eq!(between(&old, &new).refused.len(), 1);
}

#[test]
fn roles_that_move_within_a_group_are_named() {
    let mut old = stack(Preset::Custom);
    let group = |roles: &[Role]| WorkerGroup { roles: Some(roles.to_vec()), ..WorkerGroup::default() };
    old.workers.insert("readers".to_owned(), group(&[Role::Sync]));
    let mut new = old.clone();
    new.workers.insert("readers".to_owned(), group(&[Role::Sync, Role::Room]));
    insta::assert_snapshot!(told(&between(&old, &new)));
}
