//! The units for systemd, started in their order by an init that is small but does what systemd does with them: it runs
//! their commands, waits for those that notify, and stops them by their signals.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::stack::{PROGRAM, Stack, packages};
use crate::system::{run, until, wait, working_in};

const RENDER: Duration = Duration::from_secs(60);
/// Installing, if nothing is yet; or all of a debug build's processes starting at once on a busy machine.
const START: Duration = Duration::from_secs(300);
const STOP: Duration = Duration::from_secs(60);
const TARGET: &str = "matrix-stack.target";

pub(crate) fn units_run_without_up() {
    let stack = Stack::new("small");
    let etc = stack.directory.join("etc");
    let mut render = stack.command(&["render", "systemd", "--out"]);
    run(render.arg(&etc).arg("--packages-dir").arg(packages()), RENDER).good();

    let mut init = Init::new(&etc.join("systemd/system"), &stack.directory);
    init.start();
    let names: Vec<_> = init.running.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"matrix-stack-worker@reader_1.service"), "{names:?}");

    until("the router reaches main", START, || {
        let (status, answer) = request(stack.port, "GET", "/_matrix/client/versions", "")?;
        (status == 200 && answer["versions"].is_array()).then_some(())
    });
    // There is no supervisor of ours, and main is asked all the same.
    let password = "correct horse battery staple";
    fs::write(stack.directory.join("password"), password).expect("own directory");
    let mut add = stack.command(&["user", "add", "alice", "--password-file"]);
    let added = run(add.arg(stack.directory.join("password")), RENDER).good();
    assert_eq!(added.stdout.trim(), "@alice:e2e.test");
    let login = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": password,
    });
    let (status, answer) =
        request(stack.port, "POST", "/_matrix/client/v3/login", &login.to_string()).expect("an answer");
    assert_eq!((status, &answer["user_id"]), (200, &json!("@alice:e2e.test")), "{answer}");

    // The two ways of running a stack keep out of each other's way.
    let refused = run(&mut stack.up_command(), RENDER).bad();
    assert!(refused.contains("a stack runs on") || refused.contains("is in use"), "{refused}");

    init.stop();
    let left = working_in(&stack.directory);
    assert!(left.is_empty(), "{left:?} are left");
}

/// One request to the router: status and answer, or nothing while nobody is there.
fn request(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(RENDER)).expect("not zero");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: e2e.test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    // With a length or in one chunk, it is from the first brace to the last.
    let json = answer.find('{').zip(answer.rfind('}')).map_or("null", |(from, to)| &answer[from..=to]);
    Some((status, serde_json::from_str(json).unwrap_or(Value::Null)))
}

/// What this init understands of a service.
struct Unit {
    words: Vec<String>,
    kind: String,
    kill: Signal,
    directory: PathBuf,
    after: BTreeSet<String>,
}

struct Init {
    units: BTreeMap<String, Unit>,
    /// Sockets and output.
    place: PathBuf,
    /// In the order in which they were started.
    running: Vec<(String, Child)>,
}

impl Init {
    /// The services that the target wants, and what they require.
    fn new(system: &Path, place: &Path) -> Self {
        let mut units = BTreeMap::new();
        let target = settings(system, TARGET);
        let mut wanted: Vec<String> = all(&target, "Wants");
        while let Some(name) = wanted.pop() {
            if units.contains_key(&name) || name == "network-online.target" {
                continue;
            }
            let settings = settings(system, &name);
            let one = |key: &str| all(&settings, key).pop();
            wanted.extend(all(&settings, "Requires"));
            let unit = Unit {
                words: one("ExecStart").expect("a command").split(' ').map(str::to_owned).collect(),
                kind: one("Type").expect("a type"),
                kill: one("KillSignal")
                    .map_or(Signal::SIGTERM, |name| Signal::from_str(&name).expect("a signal")),
                directory: one("WorkingDirectory").expect("a directory").into(),
                after: all(&settings, "After").into_iter().collect(),
            };
            units.insert(name, unit);
        }
        Self { units, place: place.to_owned(), running: Vec::new() }
    }

    /// Starts everything, at once what waits for nothing else.
    fn start(&mut self) {
        let mut waiting: BTreeSet<String> = self.units.keys().cloned().collect();
        while !waiting.is_empty() {
            let (later, now): (BTreeSet<_>, BTreeSet<_>) =
                waiting.iter().cloned().partition(|name| !self.units[name].after.is_disjoint(&waiting));
            assert!(!now.is_empty(), "{later:?} wait for each other");
            let started: Vec<_> = now.into_iter().map(|name| self.spawn(name)).collect();
            for (name, child, socket) in started {
                self.await_start(name, child, socket.as_ref());
            }
            waiting = later;
        }
    }

    fn spawn(&self, name: String) -> (String, Child, Option<UnixDatagram>) {
        let unit = &self.units[&name];
        let mut command = Command::new(&unit.words[0]);
        command.args(&unit.words[1..]);
        // As the directories' file says.
        fs::create_dir_all(&unit.directory).expect("own directory");
        let log = fs::File::create(self.place.join(format!("{name}.log"))).expect("own directory");
        command.current_dir(&unit.directory).stdout(log.try_clone().expect("a file")).stderr(log);
        let socket = (unit.kind == "notify").then(|| {
            let path = self.place.join(format!("{name}.sock"));
            command.env("NOTIFY_SOCKET", &path);
            let socket = UnixDatagram::bind(path).expect("own directory");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
            socket
        });
        let child = command.spawn().unwrap_or_else(|error| panic!("{PROGRAM} does not start: {error}"));
        (name, child, socket)
    }

    fn await_start(&mut self, name: String, mut child: Child, socket: Option<&UnixDatagram>) {
        if self.units[&name].kind == "oneshot" {
            let status = wait(&mut child, START);
            assert!(status.is_some_and(|status| status.success()), "{name}: {status:?}\n{}", self.log(&name));
            return;
        }
        let deadline = Instant::now() + START;
        while let Some(socket) = socket {
            let mut message = [0; 4096];
            let length = socket.recv(&mut message).unwrap_or(0);
            if String::from_utf8_lossy(&message[..length]).lines().any(|line| line == "READY=1") {
                break;
            }
            let ended = child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "{name} ended: {ended:?}\n{}", self.log(&name));
            assert!(Instant::now() < deadline, "{name} is not ready\n{}", self.log(&name));
        }
        self.running.push((name, child));
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.place.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Stops everything, last things first.
    fn stop(&mut self) {
        while let Some((name, mut child)) = self.running.pop() {
            kill(Pid::from_raw(child.id().cast_signed()), self.units[&name].kill).expect("a child of ours");
            let status = wait(&mut child, STOP);
            let good = status.is_some_and(|status| status.success());
            assert!(good, "{name} ended so: {status:?}\n{}", self.log(&name));
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            // What is gone already is no matter.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The lines of a unit, which may be an instance of a template.
fn settings(system: &Path, name: &str) -> Vec<(String, String)> {
    let (file, instance) = match name.split_once('@') {
        Some((prefix, rest)) => (format!("{prefix}@.service"), rest.trim_end_matches(".service")),
        None => (name.to_owned(), ""),
    };
    let text = fs::read_to_string(system.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.replace("%i", instance))).collect()
}

fn all(settings: &[(String, String)], key: &str) -> Vec<String> {
    settings.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
}
