//! A stack whose logins and tokens are another service's: the Matrix Authentication Service, for which `e2e/mas.py` stands in
//! wherever MAS itself cannot be had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::stack::{Stack, client_file, is_healthy, password, synapse_python};
use crate::system::{ask, free_port, run, until};

/// How long a token lives: so little that each device has many.
const TOKEN_SECONDS: u64 = 3;
const USERS: usize = 8;
/// So many messages does each user send, with a pause behind each: for several lives of a token.
const MESSAGES: usize = 25;
const PAUSE: Duration = Duration::from_millis(500);
/// Until everybody has everything, on a busy machine.
const ALL: Duration = Duration::from_secs(180);
/// A logout that reaches every process, lines of the access log.
const SOON: Duration = Duration::from_secs(20);

/// A small stack with two sync workers, and the stand-in as its `mas-cli`.
fn with_stand_in() -> Stack {
    let stack = Stack::new("small");
    let program = stack.directory.join("mas-cli");
    let script = format!(
        "#!/bin/sh\nTOKEN_SECONDS={TOKEN_SECONDS} PYTHONDONTWRITEBYTECODE=1 exec '{}' '{}' \"$@\"\n",
        synapse_python().display(),
        client_file("mas.py").display()
    );
    fs::write(&program, script).expect("own directory");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("own file");
    configure(&stack, &program);
    stack
}

/// Gives the stack this program as its MAS.
fn configure(stack: &Stack, program: &Path) {
    stack.configure(|file| {
        file["registration"] = json!({});
        file["workers"] = json!({ "sync": { "count": 2 } });
        let extra = file["synapse"]["extra"].as_object_mut().expect("options");
        extra.remove("refreshable_access_token_lifetime");
        file["auth"] = json!({ "mas": {
            "public_base_url": format!("{}/auth", stack.url()),
            "address": format!("127.0.0.1:{}", free_port()),
            "program": program,
        }});
    });
}

/// A device that is logged in, with the token of the moment.
struct Device<'s> {
    stack: &'s Stack,
    name: String,
    /// Access token and refresh token.
    tokens: Mutex<(String, String)>,
    refreshed: &'s AtomicU64,
}

impl<'s> Device<'s> {
    fn log_in(stack: &'s Stack, name: &str, refreshed: &'s AtomicU64) -> Self {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": password(name),
            "refresh_token": true,
        });
        let (status, text) = ask(stack.port, "POST", "/_matrix/client/v3/login", None, Some(&body));
        assert_eq!(status, 200, "{text}");
        Self { stack, name: name.to_owned(), tokens: Mutex::new(tokens(&text)), refreshed }
    }

    fn token(&self) -> String {
        self.tokens.lock().expect("nobody panicked").0.clone()
    }

    /// A request as a client makes it: when its token is not taken any more, it gets another one and asks again.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        loop {
            let token = self.token();
            let (status, text) = ask(self.stack.port, method, path, Some(&token), body);
            match status {
                200 => return serde_json::from_str(&text).expect("JSON"),
                401 if text.contains("M_UNKNOWN_TOKEN") => self.refresh(&token),
                _ => panic!("{method} {path}: {status} {text}"),
            }
        }
    }

    fn refresh(&self, old: &str) {
        let mut held = self.tokens.lock().expect("nobody panicked");
        // The other thread may have been faster.
        if held.0 == old {
            let body = json!({ "refresh_token": held.1 });
            let (status, text) =
                ask(self.stack.port, "POST", "/_matrix/client/v3/refresh", None, Some(&body));
            assert_eq!(status, 200, "{text}");
            *held = tokens(&text);
            self.refreshed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, room: &str) -> BTreeSet<String> {
        let mut sent = BTreeSet::new();
        for n in 0..MESSAGES {
            let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{n}");
            let body = json!({ "msgtype": "m.text", "body": format!("{n} of {}", self.name) });
            let answer = self.ask("PUT", &path, Some(&body));
            sent.insert(answer["event_id"].as_str().expect("an event").to_owned());
            thread::sleep(PAUSE);
        }
        sent
    }

    /// Syncs until so many messages have come.
    fn read(&self, room: &str, count: usize) -> BTreeSet<String> {
        const FILTER: &str = "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A1000%7D%7D%7D";
        let end = Instant::now() + ALL;
        let mut found = BTreeSet::new();
        let mut since = String::new();
        while found.len() < count {
            assert!(Instant::now() < end, "{} has {} of {count} messages", self.name, found.len());
            let path =
                format!("/_matrix/client/v3/sync?timeout=2000&filter={FILTER}{since}&probe={}", self.name);
            let answer = self.ask("GET", &path, None);
            since = format!("&since={}", answer["next_batch"].as_str().expect("a place"));
            let events = &answer["rooms"]["join"][room]["timeline"]["events"];
            let messages = events.as_array().into_iter().flatten().filter(|e| e["type"] == "m.room.message");
            found.extend(messages.filter_map(|e| e["event_id"].as_str()).map(str::to_owned));
        }
        found
    }
}

/// Access token and refresh token of an answer.
fn tokens(text: &str) -> (String, String) {
    let answer: Value = serde_json::from_str(text).expect("JSON");
    let word = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {text}")).to_owned();
    (word("access_token"), word("refresh_token"))
}

/// Logins, refreshes, logouts and the account's pages reach the service, Synapse asks it whose tokens are, and while
/// tokens change every few seconds under load, each user's syncs stay with one process and no message is lost.
pub(crate) fn tokens_of_another_service() {
    let stack = with_stand_in();
    let done = stack.up().good();
    assert!(!done.stdout.contains("password"), "Synapse has no administrator to create:\n{}", done.stdout);
    let status = stack.status();
    assert!(is_healthy(&status), "{status:?}");
    assert!(status.processes.iter().any(|process| process.name == "mas"), "{status:?}");
    documents(&stack);
    let message = stack.ask(&["user", "add", "zoe", "--password-file", "/dev/null"]).code;
    assert_ne!(message, Some(0), "Synapse creates no accounts");

    let refreshed = AtomicU64::new(0);
    let names: Vec<String> = (0..USERS).map(|n| format!("user{n}")).collect();
    let devices: Vec<Device<'_>> =
        names.iter().map(|name| Device::log_in(&stack, name, &refreshed)).collect();
    let room =
        devices[0].ask("POST", "/_matrix/client/v3/createRoom", Some(&json!({ "preset": "public_chat" })));
    let room = room["room_id"].as_str().expect("a room").to_owned();
    for device in &devices[1..] {
        device.ask("POST", &format!("/_matrix/client/v3/join/{room}"), Some(&json!({})));
    }
    let (sent, read) = thread::scope(|scope| {
        let readers: Vec<_> =
            devices.iter().map(|device| scope.spawn(|| device.read(&room, USERS * MESSAGES))).collect();
        let senders: Vec<_> = devices.iter().map(|device| scope.spawn(|| device.send(&room))).collect();
        let sent: BTreeSet<String> =
            senders.into_iter().flat_map(|sender| sender.join().expect("it sends")).collect();
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("it reads")).collect();
        (sent, read)
    });
    assert_eq!(sent.len(), USERS * MESSAGES);
    for (device, read) in devices.iter().zip(&read) {
        assert_eq!(*read, sent, "{} lacks some, or has others", device.name);
    }
    let refreshed = refreshed.load(Ordering::Relaxed);
    assert!(refreshed >= 2 * USERS as u64, "tokens changed only {refreshed} times");
    let syncs = homes(&stack, &names);
    logged_out(&stack, &devices[0]);
    stack.down().good();
    // Nobody could log in if the accounts were silently Synapse's again.
    stack.configure(|file| drop(file.as_object_mut().expect("a mapping").remove("auth")));
    let message = stack.up().bad();
    assert!(message.contains("auth.mas") && message.contains("--change-auth"), "{message}");
    println!("    {USERS} users, {syncs} syncs, {} messages, {refreshed} refreshes", sent.len());
}

/// What is said where.
fn documents(stack: &Stack) {
    let get = |path: &str| {
        let (status, text) = ask(stack.port, "GET", path, None, None);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let base = format!("{}/auth/", stack.url());
    let account = format!("{base}account/");
    assert_eq!(get("/auth/account/sessions?x=1")["page"], "/account/sessions");
    assert_eq!(get("/auth/.well-known/openid-configuration")["issuer"], base);
    let known = &get("/.well-known/matrix/client")["org.matrix.msc2965.authentication"];
    assert_eq!(*known, json!({ "issuer": base, "account": account }));
    let metadata = get("/_matrix/client/v1/auth_metadata");
    assert_eq!((&metadata["issuer"], &metadata["account_management_uri"]), (&json!(base), &json!(account)));
    assert_eq!(get("/_matrix/client/v3/login")["flows"][0]["type"], "m.login.password");
    // Who does not know the secret learns nothing of tokens, and does nothing to users.
    for path in ["/auth/oauth2/introspect", "/_synapse/mas/provision_user"] {
        assert_eq!(ask(stack.port, "POST", path, Some("guess"), Some(&json!({}))).0 / 100, 4, "{path}");
    }
}

/// Each user was with one sync process all the time, and not all with the same. How many syncs there were.
#[track_caller]
fn homes(stack: &Stack, names: &[String]) -> usize {
    let mut homes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut syncs = 0;
    let log = stack.access_log();
    for name in names {
        let mark = format!("probe={name}");
        let of = |line: &&Value| {
            // A device's first sync is another role's, and one that carried a token of yesterday was refused.
            let path = line["path"].as_str().unwrap_or_default();
            line["status"] == 200 && line["role"] == "sync" && path.split(['?', '&']).any(|part| part == mark)
        };
        for line in log.iter().filter(of) {
            syncs += 1;
            let instance = line["instance"].as_str().expect("an instance").to_owned();
            assert_eq!(line["key"], "user_whoami", "{line}");
            homes.entry(name).or_default().insert(instance);
        }
    }
    assert_eq!(homes.len(), names.len(), "who synced: {homes:?}");
    let moved: Vec<_> = homes.iter().filter(|(_, homes)| homes.len() != 1).collect();
    assert!(moved.is_empty(), "users with more than one process: {moved:?}");
    let all: BTreeSet<_> = homes.values().flatten().collect();
    assert!(all.len() > 1, "all users are at one process");
    syncs
}

/// A device that has logged out there is refused here.
fn logged_out(stack: &Stack, device: &Device<'_>) {
    device.ask("GET", "/_matrix/client/v3/account/whoami", None);
    let token = device.token();
    let (status, text) = ask(stack.port, "POST", "/_matrix/client/v3/logout", Some(&token), Some(&json!({})));
    assert_eq!(status, 200, "{text}");
    until("the token is refused", SOON, || {
        (ask(stack.port, "GET", "/_matrix/client/v3/account/whoami", Some(&token), None).0 == 401)
            .then_some(())
    });
}

/// MAS itself runs in the stack, wherever its program can be had: somebody who was registered there logs in, uses Synapse,
/// refreshes the token and logs out.
pub(crate) fn mas_itself() {
    let Some(program) = std::env::var_os("MAS_CLI").map(PathBuf::from) else {
        println!(
            "    SKIPPED: MAS_CLI is not set; give it the path of a `mas-cli` program with its `share` beside it"
        );
        return;
    };
    let stack = Stack::new("small");
    configure(&stack, &program);
    stack.up().good();
    assert!(is_healthy(&stack.status()));
    let mut register = Command::new(&program);
    register.args(["manage", "register-user", "--yes", "--ignore-password-complexity", "--password"]);
    register.args([&password("kim"), "kim", "--config"]).arg(stack.data().join("config/mas.yaml"));
    run(&mut register, SOON).good();
    let base = format!("{}/auth/", stack.url());
    let metadata = ask(stack.port, "GET", "/_matrix/client/v1/auth_metadata", None, None).1;
    assert!(metadata.contains(&base), "{metadata}");
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "kim" },
        "password": password("kim"),
        "refresh_token": true,
    });
    // It tells Synapse of a new user after its own answer.
    let answer = until("the user logs in", SOON, || {
        let (status, text) = ask(stack.port, "POST", "/_matrix/client/v3/login", None, Some(&body));
        (status == 200).then_some(text)
    });
    let refreshed = AtomicU64::new(0);
    let device = Device {
        stack: &stack,
        name: "kim".to_owned(),
        tokens: Mutex::new(tokens(&answer)),
        refreshed: &refreshed,
    };
    let whoami = device.ask("GET", "/_matrix/client/v3/account/whoami", None);
    assert_eq!(whoami["user_id"], "@kim:e2e.test");
    device.refresh(&device.token());
    logged_out(&stack, &device);
    stack.down().good();
}
