//! Pictures of scenes that are written here, as terminals of two sizes show them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use runtime::client::{Phase, ProcessStatus, State, Status};

use super::screen::{Picture, Screen, Sort, Then, plain};
use super::{Sample, Scrape, Seen, View};

const MIB: u64 = 1 << 20;

fn process(name: &str, state: State, cpu_ms: u64) -> ProcessStatus {
    let role = name.trim_end_matches(|c: char| c == '_' || c.is_ascii_digit()).to_owned();
    ProcessStatus {
        name: name.to_owned(),
        roles: vec![role.clone()],
        role,
        group: "workers".to_owned(),
        pid: (state != State::Restarting).then_some(100),
        state,
        address: None,
        rss_bytes: Some(200 * MIB),
        pss_bytes: Some(name.len() as u64 * 9 * MIB),
        cpu_ms: Some(cpu_ms),
        restarts: 0,
        uptime_seconds: Some(100),
        last_exit: None,
    }
}

fn status(processes: Vec<ProcessStatus>) -> Status {
    Status {
        version: "0.1.0".to_owned(),
        server_name: "example.org".to_owned(),
        url: "http://127.0.0.1:8008".to_owned(),
        preset: "medium".to_owned(),
        phase: Phase::Running,
        pid: 1,
        data_dir: "/data".into(),
        uptime_seconds: 7384,
        pss_bytes: Some(1300 * MIB),
        processes,
    }
}

/// The text of `/metrics` with these lines.
fn metrics(lines: &[(&str, f64)]) -> String {
    let mut text = "# HELP matrix_stack_router_x X.\n# TYPE matrix_stack_router_x counter\n".to_owned();
    for (key, value) in lines {
        writeln!(text, "matrix_stack_router_{key} {value}").unwrap();
    }
    text + "# EOF\n"
}

fn sample(at: Instant, status: Option<Status>, lines: &[(&str, f64)]) -> Sample {
    Sample { at, status, scrape: Scrape::parse(&metrics(lines)).unwrap() }
}

/// What a router says that has served `n` times as much as after its first moment.
fn lines(n: f64) -> Vec<(&'static str, f64)> {
    let mut lines = vec![
        (r#"requests_total{class="sync_incremental",role="sync",instance="sync_1",outcome="2xx"}"#, 40.0 * n),
        (r#"requests_total{class="sync_incremental",role="sync",instance="sync_2",outcome="2xx"}"#, 20.0 * n),
        (
            r#"requests_total{class="sync_incremental",role="sync",instance="sync_2",outcome="upstream_reset"}"#,
            n,
        ),
        (r#"requests_total{class="room_send",role="room",instance="room_1",outcome="2xx"}"#, 300.0 * n),
        (r#"requests_total{class="room_send",role="",instance="",outcome="router_shed"}"#, 30.0 * n),
        (r#"requests_total{class="login",role="main",instance="main",outcome="4xx"}"#, 2.0 * n),
        (r#"requests_total{class="router",role="",instance="",outcome="2xx"}"#, 4.0 * n),
        (r#"upstream_failures_total{instance="sync_2",failure="upstream_reset"}"#, n),
        (r#"upstream_failures_total{instance="room_1",failure="upstream_connect"}"#, 3.0),
        (r#"retries_total{instance="sync_2",failure="upstream_reset"}"#, n),
        (r#"whoami_total{result="remembered"}"#, 50.0 * n),
        (r#"whoami_total{result="asked"}"#, 5.0 * n),
        (r#"in_flight{instance="sync_1",class="sync_incremental"}"#, 1203.0),
        (r#"in_flight{instance="sync_2",class="sync_incremental"}"#, 411.0),
        (r#"in_flight{instance="room_1",class="room_send"}"#, 100.0),
        (r#"queued{class="room_send",role="room"}"#, 17.0),
        (r#"waiting{role="sync"}"#, 3.0),
        ("connections", 2048.0),
    ];
    for (instance, state) in
        [("main", "up"), ("room_1", "up"), ("sync_1", "up"), ("sync_2", "held"), ("typing_1", "ejected")]
    {
        lines.push((leak(format!(r#"instance_state{{instance="{instance}",state="{state}"}}"#)), 1.0));
        let role = instance.trim_end_matches(|c: char| c == '_' || c.is_ascii_digit());
        lines.push((leak(format!(r#"instance_role{{instance="{instance}",role="{role}"}}"#)), 1.0));
    }
    for (class, role, instance, [fast, slow, all]) in [
        ("room_send", "room", "room_1", [290.0, 299.0, 300.0]),
        ("sync_incremental", "sync", "sync_1", [0.0, 10.0, 40.0]),
        ("login", "main", "main", [0.0, 2.0, 2.0]),
    ] {
        for (le, count) in [("0.001", 0.0), ("0.025", fast), ("0.25", slow), ("60.0", slow), ("+Inf", all)] {
            let key = format!(
                r#"upstream_duration_seconds_bucket{{class="{class}",role="{role}",instance="{instance}",le="{le}"}}"#
            );
            lines.push((leak(key), count * n));
        }
    }
    lines
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn processes(cpu: u64) -> Vec<ProcessStatus> {
    let mut all: Vec<_> =
        ["postgres", "valkey", "forkserver", "main", "room_1", "sync_1", "sync_2", "typing_1", "router"]
            .map(|name| process(name, State::Healthy, cpu * name.len() as u64))
            .into();
    all[2].state = State::Stopped;
    let sync = &mut all[6];
    (sync.state, sync.pid, sync.restarts, sync.cpu_ms) = (State::Restarting, None, 2, None);
    (sync.pss_bytes, sync.rss_bytes, sync.uptime_seconds) = (None, None, None);
    sync.last_exit = Some("killed by SIGKILL".to_owned());
    all
}

/// Two samples, two seconds apart, and what failed in between.
fn scene(before: (Option<Status>, &[(&str, f64)]), after: (Option<Status>, &[(&str, f64)])) -> View {
    let start = Instant::now();
    let before = sample(start, before.0, before.1);
    let after = sample(start + Duration::from_secs(2), after.0, after.1);
    let mut seen = Seen::default();
    seen.note(&before, &after);
    View::of(&before, &after, &seen)
}

/// A stack of which one process is being restarted and another has been ejected.
fn busy() -> View {
    scene((Some(status(processes(0))), &lines(1.0)), (Some(status(processes(150))), &lines(3.0)))
}

fn drawn(screen: &mut Screen, picture: Picture<'_>, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame, picture)).unwrap();
    terminal.backend().to_string()
}

fn screen() -> Screen {
    Screen::new(Sort::Requests, "")
}

fn of(view: &View) -> Picture<'_> {
    Picture { view: Some(view), trouble: None }
}

fn press(screen: &mut Screen, keys: &str) -> Then {
    let keys = keys.chars().map(|key| match key {
        '\t' => KeyCode::Tab,
        '\n' => KeyCode::Enter,
        other => KeyCode::Char(other),
    });
    keys.map(|code| screen.key(KeyEvent::new(code, KeyModifiers::NONE))).last().unwrap()
}

#[test]
fn a_busy_stack_with_a_process_that_restarts() {
    let view = busy();
    insta::assert_snapshot!("busy_80x24", drawn(&mut screen(), of(&view), 80, 24));
    insta::assert_snapshot!("busy_140x40", drawn(&mut screen(), of(&view), 140, 40));
}

#[test]
fn an_empty_stack_that_starts() {
    let starting = || {
        let mut status = status(vec![process("router", State::Starting, 0)]);
        status.phase = Phase::Starting;
        Sample { at: Instant::now(), status: Some(status), scrape: Scrape::default() }
    };
    let (before, mut after) = (starting(), starting());
    after.at = before.at + Duration::from_secs(2);
    let view = View::of(&before, &after, &Seen::default());
    insta::assert_snapshot!("empty_80x24", drawn(&mut screen(), of(&view), 80, 24));
}

#[test]
fn a_router_alone() {
    let view = scene((None, &lines(1.0)), (None, &lines(2.0)));
    insta::assert_snapshot!("alone_140x40", drawn(&mut screen(), of(&view), 140, 40));
}

#[test]
fn counters_that_shrank_began_anew() {
    let view = scene((None, &lines(5.0)), (None, &lines(1.0)));
    assert!(view.router_restarted);
    // 397 requests since, in two seconds.
    assert!((view.totals.requests_per_second - 198.5).abs() < 1e-9, "{:?}", view.totals);
    let picture = drawn(&mut screen(), of(&view), 80, 24);
    assert!(picture.contains("! the router was restarted"), "{picture}");
    // One that says nothing yet has begun anew too.
    assert!(scene((None, &lines(5.0)), (None, &[("connections", 0.0)])).router_restarted);
    assert!(!scene((None, &lines(1.0)), (None, &lines(1.0))).router_restarted);
}

#[test]
fn a_terminal_of_any_size_will_do() {
    let view = busy();
    for (width, height) in [(0, 0), (1, 1), (10, 3), (79, 5), (500, 200)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut screen = screen();
        for _ in 0..4 {
            terminal.draw(|frame| screen.draw(frame, of(&view))).unwrap();
            press(&mut screen, "\t");
        }
    }
}

#[test]
fn text_holds_every_row() {
    let view = busy();
    let text = plain(&screen(), &view, 120);
    insta::assert_snapshot!("plain", text);
    for row in &view.instances {
        assert!(text.contains(&row.name), "{} is missing", row.name);
    }
}

#[test]
fn keys_sort_filter_and_leaf() {
    let view = busy();
    let mut screen = screen();
    let first = |screen: &mut Screen| {
        let picture = drawn(screen, of(&view), 80, 24);
        picture.lines().nth(5).unwrap().trim_matches(['"', ' ', '!']).split(' ').next().unwrap().to_owned()
    };
    assert_eq!(first(&mut screen), "room_1");
    for (key, name) in
        [("l", "sync_1"), ("e", "sync_2"), ("m", "forkserver"), ("c", "forkserver"), ("n", "forkserver")]
    {
        press(&mut screen, key);
        assert_eq!(first(&mut screen), name, "sorted by `{key}`");
    }
    press(&mut screen, "/sync");
    let picture = drawn(&mut screen, of(&view), 80, 24);
    assert!(picture.contains("filter: sync_") && !picture.contains("room_1 "), "{picture}");
    press(&mut screen, "q\n");
    assert!(drawn(&mut screen, of(&view), 80, 24).contains("filter: syncq"));
    let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
    assert_eq!(screen.key(key(KeyCode::Esc)), Then::Stay);
    press(&mut screen, "p\t");
    assert!(screen.paused);
    let picture = drawn(&mut screen, of(&view), 80, 8);
    assert!(picture.contains("PAUSED") && picture.contains("INSTANCE▼ 1-2 of 9"), "{picture}");
    screen.key(key(KeyCode::End));
    assert!(drawn(&mut screen, of(&view), 80, 8).contains("INSTANCE▼ 8-9 of 9"));
    screen.key(key(KeyCode::Up));
    assert!(drawn(&mut screen, of(&view), 80, 8).contains("INSTANCE▼ 7-8 of 9"));
    assert_eq!(screen.key(key(KeyCode::Esc)), Then::Quit);
    assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Then::Quit);
}

#[test]
fn no_news_is_said() {
    let view = busy();
    let trouble = Some("no stack runs");
    let picture = drawn(&mut screen(), Picture { view: Some(&view), trouble }, 80, 24);
    assert!(picture.contains("! no news: no stack runs"), "{picture}");
    assert!(drawn(&mut screen(), Picture { view: None, trouble }, 80, 24).contains("no stack runs"));
    assert!(drawn(&mut screen(), Picture { view: None, trouble: None }, 80, 24).contains("Measuring"));
}

#[test]
fn what_is_no_routers_text_is_no_scrape() {
    for text in ["", "<html>", "up 1\n", "matrix_stack_router_requests_total{class=\"a 1\n"] {
        assert!(Scrape::parse(text).is_none(), "{text}");
    }
    let text = "matrix_stack_router_x{a=\"q\\\"b\\\\c,}\",b=\"\"} 2.5 1700000000\n";
    let scrape = Scrape::parse(text).unwrap();
    let series = scrape.all("x").next().unwrap();
    assert_eq!((series.label("a"), series.label("b"), series.label("c")), ("q\"b\\c,}", "", ""));
    assert!((series.value - 2.5).abs() < f64::EPSILON);
}
