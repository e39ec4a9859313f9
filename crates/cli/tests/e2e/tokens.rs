//! Access tokens that say nothing of their user, such as those of the Matrix Authentication Service and the macaroons of old:
//! only Synapse can tell whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::stack::{Stack, password};
use crate::system::{ask, free_port, get, until, wait};

/// A line of the access log, a router that starts or stops, a logout that reaches every process.
const SOON: Duration = Duration::from_secs(20);

/// A second router in front of a stack's processes, as `matrix-stack router` runs it.
struct Second<'s> {
    stack: &'s Stack,
    port: u16,
    metrics: u16,
    child: Child,
}

impl<'s> Second<'s> {
    fn start(stack: &'s Stack) -> Self {
        let (port, metrics) = (free_port(), free_port());
        let text = fs::read_to_string(stack.directory.join("stack.yaml")).expect("own file");
        let mut file: Value = serde_json::from_str(&text).expect("own JSON");
        file["listen"] = json!({
            "address": format!("127.0.0.1:{port}"),
            "metrics": format!("127.0.0.1:{metrics}"),
        });
        let config = stack.directory.join("second.yaml");
        fs::write(&config, file.to_string()).expect("own directory");
        let said = File::create(stack.directory.join("second.said")).expect("own directory");
        let mut command = stack.command(&["router", "--access-log"]);
        command.arg(Self::log(stack)).arg("--config").arg(config);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn();
        let second = Self { stack, port, metrics, child: child.expect("it starts") };
        until("the second router routes", SOON, || {
            let listens = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            (listens && get(port, "/_matrix/client/versions") == 200).then_some(())
        });
        second
    }

    fn log(stack: &Stack) -> PathBuf {
        stack.directory.join("second.log")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("a child of ours");
    }

    fn restart(mut self) -> Self {
        self.signal(Signal::SIGTERM);
        let status = wait(&mut self.child, SOON).expect("it stops");
        assert!(status.success(), "{status}");
        Self::start(self.stack)
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> u64 {
        let text = ask(self.metrics, "GET", "/metrics", None, None).1;
        let line = format!("matrix_stack_router_{name} ");
        let value = text.lines().find_map(|other| other.strip_prefix(&line));
        value.map_or(0, |value| value.parse().expect("a count"))
    }

    /// How often it asked Synapse whose a token is, and how often it remembered.
    fn questions(&self) -> [u64; 2] {
        ["asked", "remembered"].map(|result| self.metric(&format!("whoami_total{{result=\"{result}\"}}")))
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        // Nothing to do if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request's answer, of which the status is to be 200.
#[track_caller]
fn need(port: u16, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Value {
    let (status, text) = ask(port, method, path, token, body);
    assert_eq!(status, 200, "{method} {path}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// A device that is logged in.
struct Device {
    user: String,
    token: String,
    refresh: String,
}

impl Device {
    fn log_in(port: u16, user: &str) -> Self {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": user },
            "password": password(user),
            "refresh_token": true,
        });
        Self::of(user, &need(port, "POST", "/_matrix/client/v3/login", None, Some(&body)))
    }

    fn of(user: &str, answer: &Value) -> Self {
        let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
        Self { user: user.to_owned(), token: text("access_token"), refresh: text("refresh_token") }
    }

    fn refreshed(&self, port: u16) -> Self {
        let body = json!({ "refresh_token": self.refresh });
        Self::of(&self.user, &need(port, "POST", "/_matrix/client/v3/refresh", None, Some(&body)))
    }
}

/// Gives tokens that nobody has used yet other names, as another authentication service would have.
fn rename<'d>(stack: &Stack, devices: impl IntoIterator<Item = (&'d mut Device, String)>) {
    let sockets = model::Layout::new(stack.data()).postgres_socket_dir();
    let renaming = async {
        let mut config = tokio_postgres::Config::new();
        config.host_path(sockets).user("postgres").dbname("synapse");
        let (client, connection) = config.connect(NoTls).await.expect("the superuser gets in");
        tokio::spawn(connection);
        for (device, name) in devices {
            let change = "UPDATE access_tokens SET token = $1 WHERE token = $2";
            let changed = client.execute(change, &[&name, &device.token]).await.expect("it is changed");
            assert_eq!(changed, 1, "tokens");
            device.token = name;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(renaming);
}

/// Who answers whom.
struct Homes<'s> {
    stack: &'s Stack,
    asked: usize,
    of: BTreeMap<String, BTreeSet<String>>,
}

impl Homes<'_> {
    /// Syncs in both ways through a router, and notes which process answered. How many requests that took.
    fn sync(&mut self, port: u16, log: &PathBuf, device: &Device) -> u64 {
        const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
        let token = Some(device.token.as_str());
        self.asked += 1;
        let mark = format!("probe={}", self.asked);
        let first = need(port, "GET", "/_matrix/client/v3/sync?timeout=0", token, None);
        let since = first["next_batch"].as_str().expect("a token");
        let sync = format!("/_matrix/client/v3/sync?timeout=0&since={since}&{mark}");
        need(port, "GET", &sync, token, None);
        need(port, "POST", &format!("{SLIDING}?timeout=0&{mark}"), token, Some(&json!({})));
        for line in lines(log, &mark, 2) {
            assert_eq!(line["role"], "sync", "{line}");
            let instance = line["instance"].as_str().expect("an instance").to_owned();
            self.of.entry(device.user.clone()).or_default().insert(instance);
        }
        3
    }

    /// Through the stack's own router.
    fn sync_first(&mut self, device: &Device) {
        self.sync(self.stack.port, &self.stack.log("access"), device);
    }

    /// Through the second router.
    fn sync_second(&mut self, second: &Second<'_>, device: &Device) -> u64 {
        self.sync(second.port, &Second::log(self.stack), device)
    }

    #[track_caller]
    fn check(&self) {
        let moved: Vec<_> = self.of.iter().filter(|(_, homes)| homes.len() != 1).collect();
        assert!(moved.is_empty(), "users with more than one process: {moved:?}");
        let all: BTreeSet<_> = self.of.values().flatten().collect();
        assert_eq!(all.len(), 2, "all users are at one process");
    }
}

/// The lines of an access log whose path holds a mark, once there are so many.
fn lines(log: &PathBuf, mark: &str, count: usize) -> Vec<Value> {
    until("the access log is written", SOON, || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let with_mark = |line: &Value| {
            line["path"].as_str().is_some_and(|path| path.split(['?', '&']).any(|part| part == mark))
        };
        let found: Vec<Value> = lines.into_iter().filter(with_mark).collect();
        (found.len() >= count).then_some(found)
    })
}

/// All devices of a user reach one sync process, whatever their tokens look like, refreshed or not, through either of two
/// routers, before and after one of them restarts; each router asks once for each token; nobody's tokens are refused
/// by Synapse, and so is one that has logged out.
pub(crate) fn opaque_tokens(stack: &Stack, users: &[&str]) {
    let mut homes = Homes { stack, asked: 0, of: BTreeMap::new() };
    // What a token of Synapse's own says decides where its user belongs.
    for user in users {
        homes.sync_first(&Device::log_in(stack.port, user));
    }
    let mut devices: Vec<Device> =
        users.iter().flat_map(|user| [user, user]).map(|user| Device::log_in(stack.port, user)).collect();
    let named = devices.iter_mut().enumerate().map(|(n, device)| {
        // The second is shaped like a macaroon: base64 of `location e2e.test` and what follows.
        let shape = if n % 2 == 0 { "mat_" } else { "MDAxN2xvY2F0aW9uIGUyZS50ZXN0CjAwMTNpZGVudGlmaWVy" };
        let name = format!("{shape}{}", &device.token[device.token.len() - 27..]);
        (device, name)
    });
    rename(stack, named);

    let second = Second::start(stack);
    for device in &devices {
        homes.sync_first(device);
    }
    let requests: u64 = devices.iter().map(|device| homes.sync_second(&second, device)).sum();
    let tokens = devices.len() as u64;
    assert_eq!(second.questions(), [tokens, requests - tokens], "each token is asked about once");
    homes.check();

    // Their successors belong to the same users; the second router is told of a new snapshot meanwhile.
    second.signal(Signal::SIGHUP);
    for (n, device) in devices.iter_mut().enumerate() {
        let mut next = device.refreshed(second.port);
        rename(stack, [(&mut next, format!("mat_refreshed_{n}"))]);
        *device = next;
    }
    for device in &devices {
        homes.sync_second(&second, device);
        homes.sync_first(device);
    }
    assert_eq!(second.questions()[0], 2 * tokens, "each successor is asked about once");
    homes.check();

    // A router that knows nothing yet comes to the same.
    let second = second.restart();
    for device in &devices {
        homes.sync_second(&second, device);
    }
    assert_eq!(second.questions()[0], tokens);
    homes.check();
    nobodys(&second);
    logged_out(&second, &devices[0], &devices[1]);
    let text = fs::read_to_string(Second::log(stack)).expect("own log");
    assert!(!text.contains("mat_") && !text.contains("MDAxN2"), "a token is in the access log");
    println!("    {} users, {} syncs, {tokens} tokens and their successors", users.len(), homes.asked);
}

/// Nobody's token is Synapse's to refuse, each time; the router asks about it once, and keeps no more of it than of others.
fn nobodys(second: &Second<'_>) {
    const NOBODYS: u64 = 20;
    let (asked, entries) = (second.questions()[0], second.metric("whoami_entries"));
    for _ in 0..2 {
        for n in 0..NOBODYS {
            let path = "/_matrix/client/v3/sync?timeout=0&since=s1&probe=nobody";
            let (status, text) = ask(second.port, "GET", path, Some(&format!("mat_nobody_{n}")), None);
            assert!(status == 401 && text.contains("M_UNKNOWN_TOKEN"), "{status} {text}");
        }
    }
    assert_eq!(second.questions()[0], asked + NOBODYS);
    assert!(second.metric("whoami_entries") <= entries + NOBODYS);
    for line in lines(&Second::log(second.stack), "probe=nobody", 40) {
        assert!(line["instance"].is_string() && line["key"] == "token_hash", "{line}");
    }
}

/// A token that logged out is refused although the router remembers whose it was; its user's other device goes on.
fn logged_out(second: &Second<'_>, gone: &Device, other: &Device) {
    let path = "/_matrix/client/v3/sync?timeout=0&since=s1&probe=gone";
    need(second.port, "POST", "/_matrix/client/v3/logout", Some(&gone.token), Some(&json!({})));
    let asked = second.questions()[0];
    for port in [second.port, second.stack.port] {
        // Synapse tells its other processes at once, but does not wait for them.
        let text = until("the token is refused", SOON, || {
            let (status, text) = ask(port, "GET", path, Some(&gone.token), None);
            (status == 401).then_some(text)
        });
        assert!(text.contains("M_UNKNOWN_TOKEN"), "{text}");
        need(port, "GET", "/_matrix/client/v3/sync?timeout=0", Some(&other.token), None);
    }
    assert_eq!(second.questions()[0], asked, "the answer was remembered");
    let line = lines(&Second::log(second.stack), "probe=gone", 1).pop().expect("a line");
    assert!(line["instance"].is_string() && line["key"] == "user_whoami", "{line}");
}
