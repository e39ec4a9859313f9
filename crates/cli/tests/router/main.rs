//! `matrix-stack router`: the router alone, in front of a process that runs elsewhere.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

mod front;
mod handover;
mod top;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(20);

/// How long a sync is held.
const POLL: Duration = Duration::from_millis(700);

/// Answers every request with 200, and syncs after a while, for as long as the test runs.
fn main_process() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
                let mut line = String::new();
                let mut polls = false;
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    polls |= line.contains("/sync?");
                    if line == "\r\n" {
                        if std::mem::take(&mut polls) {
                            std::thread::sleep(POLL);
                        }
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                        if (&stream).write_all(answer).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

fn write_stack(dir: &Path, main: SocketAddr, more: &str) {
    // Every process takes two ports, main the first.
    let text = format!(
        "server_name: router.test\npreset: custom\ndata_dir: data\nnetwork:\n  tcp: {{base_port: {}}}\n{more}",
        main.port()
    );
    std::fs::write(dir.join("stack.yaml"), text).expect("own directory");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// The status of the answer to a request on a connection of its own.
fn status(port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program, killed if the test ends before it does.
struct Program(Child);

impl Program {
    fn router(dir: &Path, port: u16, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_matrix-stack"));
        command.args(["router", "--threads", "2"]).args(more);
        if port > 0 {
            command.arg("--listen").arg(format!("127.0.0.1:{port}"));
        }
        command.arg("--config").arg(dir.join("stack.yaml")).stderr(Stdio::piped());
        command
    }

    /// Starts one, and waits until it takes requests.
    fn start(command: &mut Command) -> Self {
        let mut router = Self(command.spawn().expect("it starts"));
        let mut said = String::new();
        let mut stderr = BufReader::new(router.0.stderr.take().expect("it is piped"));
        while !said.contains("routing at") {
            let length = stderr.read_line(&mut said).expect("text");
            assert!(length > 0, "the router ended: {said}");
        }
        // It shall never wait for somebody to read.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        router
    }

    /// The memory that is its own, in KiB.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.0.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("a child of ours");
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        until("it has ended", || {
            status = self.0.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Nothing to do if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_router_alone_routes_reloads_and_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port) = (main_process(), free_port());
    write_stack(dir.path(), main, "");
    for transport in ["auto", "epoll"] {
        let mut router = Program::start(&mut Program::router(dir.path(), port, &["--transport", transport]));
        assert_eq!(status(port, "/_matrix/client/versions"), Some(200));
        assert_eq!(status(port, "/_synapse/admin/v1/server_version"), Some(404));

        // A file that is no good changes nothing, one that is changes what it says.
        write_stack(dir.path(), main, "nonsense: true\n");
        router.signal(Signal::SIGHUP);
        assert_eq!(status(port, "/_synapse/admin/v1/server_version"), Some(404));
        write_stack(dir.path(), main, "listen: {admin_api: true}\n");
        router.signal(Signal::SIGHUP);
        until("the admin API is open", || status(port, "/_synapse/admin/v1/server_version") == Some(200));
        write_stack(dir.path(), main, "");

        router.signal(Signal::SIGTERM);
        assert!(router.end().success());
        assert_eq!(status(port, "/"), None, "nobody listens any more");
    }
}

/// Clients that begin a request and go no further take a bounded amount of memory each, and what they took serves the next
/// ones: however many come and go, the router does not grow, and others are served meanwhile.
#[test]
fn slow_clients_take_little_memory_and_give_it_back() {
    /// As many as a process may have files open where the limit is the usual 1024.
    const CLIENTS: usize = 800;
    const WAVES: usize = 5;
    /// For each client, in KiB: what it sent, its connection, and room for a debug build.
    const EACH: u64 = 40;
    let (dir, port) = (tempfile::tempdir().expect("a directory"), free_port());
    write_stack(dir.path(), main_process(), "");
    let router = Program::start(&mut Program::router(dir.path(), port, &[]));
    let before = router.memory();
    // Half a head, and half a body that is small enough to be taken in before anybody is asked.
    let head = format!("GET /_matrix/client/versions HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(8 << 10));
    let body = format!(
        "POST /_matrix/client/v3/keys/query HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\n{}",
        "x".repeat(8 << 10)
    );
    let mut after = Vec::new();
    for _ in 0..WAVES {
        let clients: Vec<TcpStream> = (0..CLIENTS)
            .map(|n| {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
                stream.write_all(if n % 2 == 0 { &head } else { &body }.as_bytes()).expect("it reads");
                stream
            })
            .collect();
        assert_eq!(status(port, "/_matrix/client/versions"), Some(200), "others are served");
        after.push(router.memory());
        drop(clients);
        assert_eq!(status(port, "/_matrix/client/versions"), Some(200));
    }
    println!("{before} KiB, with {CLIENTS} clients {after:?} KiB");
    let bound = before + EACH * CLIENTS as u64;
    assert!(after.iter().all(|after| *after < bound), "from {before} to {after:?} KiB");
    // The first two waves find out how much memory there is to be had.
    let (early, late) = after.split_at(2);
    let most = early.iter().max().expect("waves") + EACH * CLIENTS as u64 / 4;
    assert!(late.iter().all(|late| *late <= most), "it grows: {after:?} KiB");
}
