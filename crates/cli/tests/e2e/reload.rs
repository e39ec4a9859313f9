//! A running stack becomes another one under load: no request fails, nothing acknowledged is lost, long polls go on.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::stack::{Stack, is_healthy, password};
use crate::system::{Asked, ask, until};
use crate::trials::{Senders, add_people, pid_of, pids, unhealthy, verify};

/// People who send, all the time.
const PEOPLE: [&str; 3] = ["ria", "sam", "tom"];
/// Somebody who shares no room with them, so that nothing of theirs answers a poll.
const HERMIT: &str = "uwe";
/// How long what a signal asks for may take.
const SOON: Duration = Duration::from_secs(60);

/// A stack whose workers change.
struct Changing {
    stack: Stack,
    senders: Senders,
}

impl Changing {
    /// Changes the workers in the stack file.
    fn write(&self, change: impl FnOnce(&mut Value)) {
        self.stack.configure(|file| change(&mut file["workers"]));
    }

    /// Makes the running stack what the file says now; returns who restarted, came or went. All are healthy then, and
    /// people can send.
    #[track_caller]
    fn reload(&mut self) -> (BTreeSet<String>, String) {
        let before = self.stack.status();
        let done = self.stack.ask(&["reload"]).good();
        let after = self.stack.status();
        assert!(is_healthy(&after), "{}\n{}", unhealthy(&after), done.stderr);
        assert_eq!(after.pid, before.pid);
        self.senders.more(3);
        let (before, after) = (pids(&before), pids(&after));
        let names = before.keys().chain(after.keys());
        let changed = names.filter(|name| before.get(*name) != after.get(*name));
        (changed.map(ToString::to_string).collect(), done.stderr)
    }

    /// Changes the workers; these restart, come or go, and nobody else.
    #[track_caller]
    fn change(&mut self, names: &[&str], change: impl FnOnce(&mut Value)) -> String {
        self.write(change);
        let (changed, said) = self.reload();
        assert_eq!(changed, names.iter().map(ToString::to_string).collect(), "{said}");
        println!("    {}", said.lines().last().unwrap_or_default().trim_start());
        said
    }
}

/// Somebody with a room, who waits for what happens in it.
struct Listener {
    port: u16,
    token: String,
    room: String,
    /// Up to where it knows what happened.
    since: String,
    sent: usize,
}

impl Listener {
    #[track_caller]
    fn ask(port: u16, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Value {
        let (status, answer) = ask(port, method, path, token, body);
        assert_eq!(status, 200, "{method} {path}: {answer}");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{method} {path}: {error} in {answer}"))
    }

    fn new(port: u16, name: &str) -> Self {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let login = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": password(name),
        });
        let path = "/_matrix/client/v3/login";
        let token = text(&Self::ask(port, "POST", path, None, Some(&login))["access_token"]);
        let path = "/_matrix/client/v3/createRoom";
        let room = text(&Self::ask(port, "POST", path, Some(&token), Some(&json!({})))["room_id"]);
        let first = Self::ask(port, "GET", "/_matrix/client/v3/sync", Some(&token), None);
        Self { port, token, room, since: text(&first["next_batch"]), sent: 0 }
    }

    /// Begins to wait for the next message in the room.
    fn poll(&self) -> Asked {
        let filter = json!({ "room": { "rooms": [self.room] }, "presence": { "types": [] } }).to_string();
        let filter = filter.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let path = format!(
            "/_matrix/client/v3/sync?set_presence=offline&timeout=80000&filter={filter}&since={}",
            self.since
        );
        Asked::send(self.port, "GET", &path, Some(&self.token), None)
    }

    /// Sends a message, which answers the poll.
    #[track_caller]
    fn is_answered(&mut self, poll: Asked) {
        self.sent += 1;
        let body = format!("number {}", self.sent);
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{}", self.room, self.sent);
        let message = json!({ "msgtype": "m.text", "body": body });
        Self::ask(self.port, "PUT", &path, Some(&self.token), Some(&message));
        let (status, answer) = poll.answer();
        assert!(status == 200 && answer.contains(&body), "{status} {answer} without {body}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["next_batch"].as_str().expect("a position").clone_into(&mut self.since);
    }
}

pub(crate) fn a_stack_changes_while_it_runs() {
    let stack = Stack::new("custom");
    stack.configure(|file| {
        file["workers"] = json!({
            "sync": { "count": 1 },
            "room": { "count": 1 },
            "client_reader": { "count": 1 },
            "event_persister": { "count": 1 },
            "typing": { "count": 1 },
        });
    });
    stack.up().good();
    let people = add_people(&stack, &PEOPLE);
    add_people(&stack, &[HERMIT]);
    let mut listener = Listener::new(stack.port, HERMIT);
    let mut senders = Senders::start(&stack, &people, "0.1");
    until("the first messages", SOON, || (senders.acknowledged() >= 10).then_some(()));
    let mut stack = Changing { stack, senders };

    // One more, and one fewer again. The process that answers the poll is not touched.
    let poll = listener.poll();
    let said = stack.change(&["sync_2"], |workers| workers["sync"]["count"] = 2.into());
    assert!(said.contains("sync_2: appears, because of workers.sync.count"), "{said}");
    stack.change(&["sync_2"], |workers| workers["sync"]["count"] = 1.into());
    for left in ["config/sync_2.yaml", "run/sync_2.sock", "run/sync_2.private.sock"] {
        assert!(!stack.stack.data().join(left).exists(), "{left}");
    }
    // One restarts with a configuration of its own, then another: its poll is asked again, and answered all the same.
    stack.change(&["room_1"], |workers| workers["room"]["cache_factor"] = json!(2.0));
    listener.is_answered(poll);
    let poll = listener.poll();
    stack.change(&["sync_1"], |workers| workers["sync"]["cache_factor"] = json!(2.0));
    listener.is_answered(poll);

    // Everything that runs Synapse, one after the other.
    let all = ["main", "sync_1", "room_1", "client_reader_1", "event_persister_1", "typing_1"];
    let poll = listener.poll();
    stack.stack.configure(|file| file["caches"] = json!({ "global_factor": 0.7 }));
    let said = stack.change(&all, |_| ());
    assert!(said.contains("one at a time") && said.contains("caches.global_factor"), "{said}");
    listener.is_answered(poll);

    // Another layout, with which all have to agree.
    let poll = listener.poll();
    let with_new = [&all[..], &["event_persister_2"]].concat();
    let said = stack.change(&with_new, |workers| workers["event_persister"]["count"] = 2.into());
    assert!(said.contains("event_persister_1: stops together"), "{said}");
    listener.is_answered(poll);

    // What is wrong changes nothing, nor does what has not changed.
    let before = stack.stack.status();
    let good = fs::read_to_string(stack.stack.directory.join("stack.yaml")).expect("own file");
    let file = stack.stack.directory.join("stack.yaml");
    let restore = || fs::write(&file, &good).expect("own directory");
    stack.write(|workers| workers["typing"]["count"] = 2.into());
    let message = stack.stack.ask(&["reload"]).bad();
    assert!(message.contains("stack.yaml:") && message.contains("typing"), "{message}");
    restore();
    stack.stack.configure(|file| file["network"] = json!({ "tcp": {} }));
    let message = stack.stack.ask(&["reload"]).bad();
    assert!(message.contains("`network`") && message.contains("matrix-stack down"), "{message}");
    restore();
    assert_eq!(pids(&stack.stack.status()), pids(&before));
    stack.change(&[], |_| ());

    // What Synapse does not take stops at the first process, and is mended by the next reload.
    stack.write(|workers| workers["client_reader"]["extra"] = json!({ "rc_message": "much" }));
    let message = stack.stack.ask(&["reload"]).bad();
    assert!(message.contains("client_reader_1 does not start"), "{message}");
    assert!(!is_healthy(&stack.stack.status()));
    restore();
    stack.change(&["client_reader_1"], |_| ());

    // By a signal.
    stack.write(|workers| workers["sync"]["count"] = 2.into());
    kill(Pid::from_raw(before.pid.cast_signed()), Signal::SIGHUP).expect("the supervisor");
    until("another process", SOON, || {
        let status = stack.stack.status();
        (status.processes.len() == before.processes.len() + 1 && is_healthy(&status)).then_some(())
    });

    // Again and again.
    let poll = listener.poll();
    for round in 0..20 {
        stack.write(|workers| {
            workers["sync"]["count"] = (1 + round % 2).into();
            workers["room"]["cache_factor"] = json!(1.0 + f64::from(round / 5));
            workers["event_persister"]["count"] = (1 + u32::from(round >= 10)).into();
        });
        // It is good only if all are healthy.
        stack.stack.ask(&["reload"]).good();
    }
    stack.senders.more(10);
    listener.is_answered(poll);
    assert_eq!(pid_of(&stack.stack.status(), "postgres"), pid_of(&before, "postgres"));

    let Changing { stack, senders } = stack;
    let said = senders.stop();
    println!("    {}", said.lines().last().unwrap_or_default());
    assert!(said.contains(" 0 retries") && said.contains("no trouble"), "{said}");
    nothing_failed(&stack);
    verify(&stack, &people);
    stack.down().good();
}

/// What the router says of it: no request failed, and of the polls only those were asked again whose process restarted.
#[track_caller]
fn nothing_failed(stack: &Stack) {
    let failed: Vec<Value> = stack
        .access_log()
        .into_iter()
        .filter(|line| {
            // Who stops listening has no status.
            let gone = line["failure"] == "client_gone";
            !gone
                && (!line["failure"].is_null() || line["status"].as_u64().is_none_or(|status| status >= 500))
        })
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let polls: Vec<(Value, bool)> = stack
        .access_log()
        .into_iter()
        .filter(|line| line["path"].as_str().is_some_and(|path| path.contains("timeout=80000")))
        .map(|line| (line["instance"].clone(), line["retried"] != 0))
        .collect();
    let sync = json!("sync_1");
    assert_eq!(polls[..2], [(sync.clone(), false), (sync, true)], "{polls:?}");
}
