//! `matrix-stack router`: the router alone, in front of a process that runs elsewhere.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(20);

/// Answers every request with 200, for as long as the test runs.
fn main_process() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
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

/// The router, killed if the test ends before it does.
struct Router(Child);

impl Router {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("a child of ours");
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        until("the router has ended", || {
            status = self.0.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Router {
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_matrix-stack"));
        command.args(["router", "--threads", "2", "--transport", transport]);
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
        command.arg("--config").arg(dir.path().join("stack.yaml")).stderr(Stdio::null());
        let mut router = Router(command.spawn().expect("it starts"));
        until("requests are taken", || status(port, "/_matrix/client/versions") == Some(200));
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
