//! A router that takes over from another, and what it tells the service manager.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Program, SOON, free_port, main_process, status, until, write_stack};

const PATH: &str = "/_matrix/client/versions";

/// Clients that ask all the time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Result<usize, String>>>,
}

/// What a client asks for.
#[derive(Clone, Copy)]
struct Habit {
    path: &'static str,
    /// Whether it keeps its connection until it is told to close it.
    keeps: bool,
    /// How long it thinks before it asks again.
    pause: Duration,
}

/// A connection, and what reads from it.
struct Connection(TcpStream, BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(SOON))?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self(stream, reader))
    }

    /// One request. Whether the connection may be used again.
    fn ask(&mut self, habit: Habit) -> std::io::Result<bool> {
        let connection = if habit.keeps { "keep-alive" } else { "close" };
        write!(self.0, "GET {} HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\n\r\n", habit.path)?;
        let (mut status, mut line, mut keeps) = (String::new(), String::new(), true);
        self.1.read_line(&mut status)?;
        if !status.starts_with("HTTP/1.1 200 ") {
            return Err(std::io::Error::other(format!("answered {status:?}")));
        }
        while line != "\r\n" {
            line.clear();
            if self.1.read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("the head breaks off"));
            }
            keeps &= !line.to_ascii_lowercase().starts_with("connection: close");
        }
        self.1.read_exact(&mut [0; 2])?;
        Ok(keeps)
    }
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let busy = Habit { path: PATH, keeps: true, pause: Duration::from_millis(1) };
        let fresh = Habit { keeps: false, ..busy };
        let slow = Habit { pause: Duration::from_millis(300), ..busy };
        let poll = Habit { path: "/_matrix/client/v3/sync?since=s", ..busy };
        let habits = [busy, busy, fresh, fresh, slow, slow, poll, poll, Habit { keeps: false, ..poll }];
        let clients = habits.map(|habit| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut connection = None;
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let told =
                        |error| format!("{} (keeps: {}), after {count}: {error}", habit.path, habit.keeps);
                    let mut open = match connection.take() {
                        Some(open) => open,
                        None => Connection::open(port).map_err(told)?,
                    };
                    if open.ask(habit).map_err(told)? && habit.keeps {
                        connection = Some(open);
                    }
                    count += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(habit.pause);
                }
                Ok(count)
            })
        });
        Self { stop, answered, clients: clients.into() }
    }

    /// Waits until this many more requests were answered.
    fn goes_on(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        let failed = || self.clients.iter().any(JoinHandle::is_finished);
        until("requests are answered", || self.answered.load(Ordering::Relaxed) >= goal || failed());
    }

    /// Stops, and sees that each client had all its answers.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let count =
                client.join().expect("a client").unwrap_or_else(|error| panic!("a request failed: {error}"));
            assert!(count > 0);
        }
    }
}

/// The arguments for a handover by this socket.
fn by(socket: &Path) -> [&str; 2] {
    ["--handover", socket.to_str().expect("text")]
}

#[test]
fn a_router_is_replaced_under_load_and_no_request_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port, metrics) = (main_process(), free_port(), free_port());
    let socket = dir.path().join("handover.sock");
    write_stack(dir.path(), main, &format!("listen: {{metrics: '127.0.0.1:{metrics}'}}\n"));
    for transport in ["auto", "epoll"] {
        let mut arguments = vec!["--transport", transport];
        arguments.extend(by(&socket));
        let start = || Program::start(&mut Program::router(dir.path(), port, &arguments));
        let mut routers = vec![start()];
        assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);
        let load = Load::start(port);
        for _ in 0..5 {
            load.goes_on(200);
            routers.push(start());
            // The new one has all the sockets.
            assert_eq!(status(metrics, "/ready"), Some(200));
        }
        load.goes_on(200);
        let mut last = routers.pop().expect("the last");
        // Each ends by itself: its connections are closed when they were answered.
        for router in &mut routers {
            assert!(router.end().success());
        }
        load.goes_on(200);
        load.end();
        last.signal(Signal::SIGTERM);
        assert!(last.end().success());
        assert_eq!(status(port, "/"), None, "nobody listens any more");
    }
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port) = (main_process(), free_port());
    let socket = dir.path().join("handover.sock");
    write_stack(dir.path(), main, "");
    let mut router = Program::start(&mut Program::router(dir.path(), port, &by(&socket)));
    let load = Load::start(port);

    // It has the sockets, and cannot begin.
    write_stack(dir.path(), main, "listen: {tls: {certificate: none.pem, private_key: none.pem}}\n");
    let failed = Program::router(dir.path(), port, &by(&socket)).output().expect("it runs");
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("none.pem"), "{said}");
    // It goes away, or says something else.
    for words in [&b""[..], b"steady"] {
        let mut stream = UnixStream::connect(&socket).expect("the handover socket");
        stream.read_exact(&mut [0; 10]).expect("the sockets");
        stream.write_all(words).expect("a stream");
    }
    load.goes_on(200);

    // One that is ready counts, even if others wait.
    let waiting = UnixStream::connect(&socket).expect("the handover socket");
    (&waiting).read_exact(&mut [0; 10]).expect("the sockets");
    write_stack(dir.path(), main, "");
    let next = Program::start(&mut Program::router(dir.path(), port, &by(&socket)));
    assert!(router.end().success());
    load.goes_on(200);

    // If one is killed, the next takes the place of what it left.
    load.end();
    drop(next);
    let _last = Program::start(&mut Program::router(dir.path(), port, &by(&socket)));
    assert_eq!(status(port, PATH), Some(200));
    // Nobody takes anything from a file or from another program.
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").expect("own directory");
    let refused = Program::router(dir.path(), free_port(), &by(&file)).output().expect("it runs");
    assert!(!refused.status.success());
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
}

#[test]
fn a_storm_of_reloads_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port) = (main_process(), free_port());
    write_stack(dir.path(), main, "");
    let router = Program::start(&mut Program::router(dir.path(), port, &[]));
    let load = Load::start(port);
    for number in 0..50 {
        let admin_api = number % 2 == 0;
        write_stack(dir.path(), main, &format!("listen: {{admin_api: {admin_api}}}\n"));
        router.signal(Signal::SIGHUP);
        load.goes_on(10);
    }
    until("the last file counts", || status(port, "/_synapse/admin/v1/server_version") == Some(404));
    load.end();
}

#[test]
fn a_watched_file_is_reloaded_when_it_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, port) = (main_process(), free_port());
    // As Kubernetes mounts it: `stack.yaml` is a link into a link to a directory, which is swapped.
    let (link, file) = (dir.path().join("..data"), dir.path().join("stack.yaml"));
    let publish = |version: &str, more: &str| {
        let target = dir.path().join(version);
        std::fs::create_dir(&target).expect("own directory");
        write_stack(&target, main, more);
        let new = dir.path().join("..new");
        std::os::unix::fs::symlink(&target, &new).expect("a link");
        std::fs::rename(&new, &link).expect("a link");
    };
    publish("1", "");
    std::os::unix::fs::symlink("..data/stack.yaml", &file).expect("a link");
    let _router = Program::start(&mut Program::router(dir.path(), port, &["--watch"]));
    let admin = || status(port, "/_synapse/admin/v1/server_version");
    assert_eq!(admin(), Some(404));
    publish("2", "listen: {admin_api: true}\n");
    until("the admin API is open", || admin() == Some(200));
    publish("3", "nonsense: true\n");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(admin(), Some(200), "a file that is no good changes nothing");
    publish("4", "");
    until("the admin API is closed", || admin() == Some(404));
}

/// Kills a process that is no child of ours at the end.
struct Orphan(i32);

impl Drop for Orphan {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

#[test]
fn the_service_manager_gives_the_socket_and_hears_what_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let main = main_process();
    let socket = dir.path().join("handover.sock");
    let notify = UnixDatagram::bind(dir.path().join("notify.sock")).expect("a socket");
    notify.set_read_timeout(Some(SOON)).expect("a timeout");
    let hear = || {
        let mut text = [0; 512];
        let length = notify.recv(&mut text).expect("it says something");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };

    // A socket that is there before the router, as number 3, and a connection that waits in it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let mut early = TcpStream::connect(("127.0.0.1", port)).expect("the socket listens");
    write!(early, "GET {PATH} HTTP/1.0\r\nhost: a\r\n\r\n").expect("it is open");
    write_stack(dir.path(), main, &format!("listen: {{address: '127.0.0.1:{port}'}}\n"));
    let mut activated = Command::new("sh");
    activated.args(["-c", r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&0 </dev/null"#]);
    activated.arg(env!("CARGO_BIN_EXE_matrix-stack")).arg("router").args(by(&socket));
    activated.arg("--config").arg(dir.path().join("stack.yaml")).stdin(OwnedFd::from(listener));
    activated.env("NOTIFY_SOCKET", dir.path().join("notify.sock")).stderr(Stdio::piped());
    let mut router = Program::start(&mut activated);
    // It holds the socket as well.
    drop(activated);
    assert_eq!(hear().trim(), "READY=1");
    let mut answer = String::new();
    early.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains(" 200 OK\r\n"), "{answer}");

    router.signal(Signal::SIGHUP);
    let reloading = hear();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(hear().trim(), "READY=1");

    // It starts its successor itself.
    let load = Load::start(port);
    load.goes_on(100);
    router.signal(Signal::SIGUSR2);
    let main_pid = hear();
    let pid = main_pid.trim().strip_prefix("MAINPID=").and_then(|pid| pid.parse().ok());
    let successor = Orphan(pid.unwrap_or_else(|| panic!("no process: {main_pid}")));
    assert_eq!(hear().trim(), "READY=1");
    assert!(router.end().success());
    load.goes_on(100);
    load.end();
    kill(Pid::from_raw(successor.0), Signal::SIGTERM).expect("it runs");
    assert_eq!(hear().trim(), "STOPPING=1");
    until("nobody listens", || status(port, "/").is_none());
}
