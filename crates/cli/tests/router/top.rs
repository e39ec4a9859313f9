//! `matrix-stack top`, in front of a router alone.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::Value;

use crate::{Program, SOON, free_port, main_process, status, until, write_stack};

/// What `top` prints about the router at a URL.
fn top(url: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix-stack"));
    command.args(["top", "--interval", "0.5", "--url", url]).args(words).output().expect("it starts")
}

#[test]
fn top_shows_what_passes_through_a_router_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port, metrics) = (main_process(), free_port(), free_port());
    write_stack(dir.path(), main, &format!("listen: {{metrics: '127.0.0.1:{metrics}'}}\n"));
    let router = Program::start(&mut Program::router(dir.path(), port, &[]));
    let url = format!("http://127.0.0.1:{metrics}");
    // Somebody who asks as long as one looks.
    let looked = AtomicBool::new(false);
    let (json, text) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + 3 * SOON;
            while !looked.load(Ordering::Relaxed) && Instant::now() < deadline {
                status(port, "/_matrix/client/versions");
            }
        });
        let both = (top(&url, &["--json"]), top(&url, &["--once"]));
        looked.store(true, Ordering::Relaxed);
        both
    });
    assert!(json.status.success() && text.status.success(), "{json:?} {text:?}");
    let view: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let is_more = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    let instance = &view["instances"][0];
    let figures = [
        &view["totals"]["requests_per_second"],
        &instance["traffic"]["requests_per_second"],
        &instance["traffic"]["p50"]["seconds"],
        &instance["traffic"]["p99"]["seconds"],
    ];
    assert!(figures.into_iter().all(is_more), "{view:#}");
    assert_eq!(instance["name"], "main");
    assert_eq!((&instance["roles"][0], &instance["state"]), (&"main".into(), &"up".into()), "{view:#}");
    let classes = view["classes"].as_array().expect("a list");
    assert!(classes.iter().any(|class| is_more(&class["traffic"]["requests_per_second"])), "{view:#}");
    let text = String::from_utf8(text.stdout).expect("text");
    assert!(["REQ/S", "all is well", "  main "].iter().all(|part| text.contains(part)), "{text}");

    drop(router);
    let gone = top(&url, &["--once"]);
    let said = String::from_utf8_lossy(&gone.stderr);
    assert!(
        gone.status.code() == Some(1) && said.contains(&url) && said.contains("listen.metrics"),
        "{said}"
    );
}

/// How somebody makes `top` end.
#[derive(Debug)]
enum End {
    Key(&'static str),
    Signal(Signal),
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port, metrics) = (main_process(), free_port(), free_port());
    write_stack(dir.path(), main, &format!("listen: {{metrics: '127.0.0.1:{metrics}'}}\n"));
    let _router = Program::start(&mut Program::router(dir.path(), port, &[]));
    let url = format!("http://127.0.0.1:{metrics}");
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    for (end, size) in [
        (End::Key("q"), Some(&size)),
        (End::Key("\x03"), Some(&size)),
        (End::Signal(Signal::SIGTERM), Some(&size)),
        // A terminal that does not tell its size.
        (End::Signal(Signal::SIGHUP), None),
    ] {
        let OpenptyResult { master, slave } = openpty(size, None).expect("a terminal");
        let before = tcgetattr(&slave).expect("a terminal");
        let twin = || Stdio::from(slave.try_clone().expect("a file can be opened twice"));
        // A session of its own, so that this terminal is its, and not that of whoever runs the test.
        let mut command = Command::new("setsid");
        command.args([
            "--ctty",
            env!("CARGO_BIN_EXE_matrix-stack"),
            "top",
            "--interval",
            "0.2",
            "--url",
            &url,
        ]);
        let mut top = Program(
            command
                .env("TERM", "xterm")
                .stdin(twin())
                .stdout(twin())
                .stderr(twin())
                .spawn()
                .expect("it starts"),
        );
        drop(command);
        let mut master = File::from(master);
        let mut reader = master.try_clone().expect("a file can be opened twice");
        let (told, heard) = mpsc::channel::<Vec<u8>>();
        // It ends, with an error, when nobody has the terminal open any more.
        let reading = std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(length) = reader.read(&mut some) {
                if told.send(some[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut shown = Vec::new();
        let has = |shown: &[u8], text: &str| shown.windows(text.len()).any(|part| part == text.as_bytes());
        until("it draws", || {
            shown.extend(heard.try_iter().flatten());
            has(&shown, "INSTANCE") && has(&shown, "q quit")
        });
        assert!(!tcgetattr(&slave).expect("a terminal").local_flags.contains(LocalFlags::ICANON), "{end:?}");
        match &end {
            End::Key(key) => master.write_all(key.as_bytes()).expect("somebody reads"),
            End::Signal(signal) => top.signal(*signal),
        }
        assert!(top.end().success(), "{end:?}");
        let after = tcgetattr(&slave).expect("a terminal");
        assert_eq!(after.local_flags, before.local_flags, "{end:?}");
        drop(slave);
        reading.join().expect("it reads");
        shown.extend(heard.try_iter().flatten());
        // The other screen is left, and the cursor is seen again.
        assert!(has(&shown, "\x1b[?1049l") && shown.ends_with(b"\x1b[?25h"), "{end:?}");
    }
}
