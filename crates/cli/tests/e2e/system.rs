//! The machine below the stacks: commands with a time limit, and processes as `/proc` has them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its exit code; nothing if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Done {
    /// Itself, if it succeeded.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "it failed:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Its error message, if it failed as commands do: exit code 1 and a message on stderr.
    #[track_caller]
    pub(crate) fn bad(self) -> String {
        assert_eq!(self.code, Some(1), "it should have failed:\n{}\n{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// Runs a command to its end, or kills it and panics once `limit` is over.
///
/// Its output goes through files: what it leaves running in the background may hold them open for as long as it likes.
#[track_caller]
pub(crate) fn run(command: &mut Command, limit: Duration) -> Done {
    let started = Instant::now();
    let file = || tempfile::tempfile().expect("a temporary file");
    let (mut out, mut err) = (file(), file());
    let twin = |file: &fs::File| Stdio::from(file.try_clone().expect("a file can be opened twice"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(twin(&out))
        .stderr(twin(&err))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let status = wait(&mut child, limit);
    let text = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("own file");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(&mut out), text(&mut err));
    let Some(status) = status else {
        panic!("{command:?} has not ended within {limit:?}:\n{stdout}\n{stderr}")
    };
    Done { code: status.code(), stdout, stderr, took: started.elapsed() }
}

/// Waits for the end of a child, or kills it once `limit` is over.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status);
        }
        if Instant::now() > deadline {
            // It may end at this very moment; either way it is gone then.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks again until there is an answer, and panics with `what` once `limit` is over.
#[track_caller]
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One process, told apart from a later one with the same number by the time of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    started: u64,
}

impl Process {
    /// The running process with this number; one that has ended and waits for its parent does not run.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (!matches!(stat.state, 'Z' | 'X')).then_some(Self { pid, started: stat.started })
    }

    pub(crate) fn runs(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    pub(crate) fn kill(self) {
        if self.runs() {
            // It may have ended in between.
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last parenthesis may hold anything. proc_pid_stat(5): 3 is the state, 4 the parent,
        // 22 the start time.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Every process and what it is called.
fn all() -> BTreeMap<u32, Stat> {
    let pids = fs::read_dir("/proc").expect("a mounted /proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::read(pid)?)))
        .collect()
}

/// The process and everything that descends from it.
pub(crate) fn tree(root: u32) -> Vec<Process> {
    let all = all();
    let below = |pid: u32| {
        std::iter::successors(Some(pid), |pid| all.get(pid).map(|stat| stat.parent))
            .take(64)
            .any(|pid| pid == root)
    };
    all.keys().copied().filter(|pid| below(*pid)).filter_map(Process::find).collect()
}

/// The processes that name a directory in their command line or work in it: for a directory that nobody else knows,
/// these are its stack's.
pub(crate) fn working_in(directory: &Path) -> Vec<Process> {
    let name = directory.as_os_str().as_encoded_bytes();
    let own = std::process::id();
    let does = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(name.len()).any(|part| part == name)
            || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
    };
    all().into_keys().filter(|pid| *pid != own && does(*pid)).filter_map(Process::find).collect()
}

/// What these processes are, for a message.
pub(crate) fn describe(processes: &[Process]) -> String {
    let line = |process: &Process| {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        format!("{} {}", process.pid, line.replace('\0', " "))
    };
    processes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A TCP port of this machine that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket").port()
}

/// The status of a GET, by the plainest of clients.
#[track_caller]
pub(crate) fn get(port: u16, path: &str) -> u16 {
    ask(port, "GET", path, None, None).0
}

/// The same, or nothing while nobody listens.
pub(crate) fn get_status(port: u16, path: &str) -> Option<u16> {
    TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    Some(get(port, path))
}

/// The status and the body of a request's answer, by the plainest of clients.
#[track_caller]
pub(crate) fn ask(
    port: u16,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> (u16, String) {
    Asked::send(port, method, path, token, body).answer()
}

/// A request that was sent, on a connection of its own.
pub(crate) struct Asked {
    stream: TcpStream,
    what: String,
}

impl Asked {
    #[track_caller]
    pub(crate) fn send(
        port: u16,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("somebody listens");
        // Longer than a long poll.
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a socket");
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let body = body.map(Value::to_string).unwrap_or_default();
        // Of HTTP/1.0, so that the answer ends with the connection and is not in chunks.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{token}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("a connection");
        Self { stream, what: format!("{method} {path}") }
    }

    /// Waits for the answer: its status and its body.
    #[track_caller]
    pub(crate) fn answer(mut self) -> (u16, String) {
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let (Some(status), Some((_, body))) = (status, answer.split_once("\r\n\r\n")) else {
            panic!("{}: {answer:?} is no answer", self.what)
        };
        (status, body.to_owned())
    }
}
