//! Services beside Synapse: `up` starts them, the router leads to them, `reload` changes them alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::stack::{Stack, is_healthy};
use crate::system::{ask, until};
use crate::trials::{pid_of, pids, unhealthy};

const SOON: Duration = Duration::from_secs(60);
/// The key that senders show.
const KEY: &str = "a-key-of-the-senders";

pub(crate) fn companions_run_beside_synapse() {
    let stack = Stack::new("small");
    stack.up().good();
    let need = |method: &str, path: &str, token: Option<&str>, body: &Value| -> Value {
        let (status, text) = ask(stack.port, method, path, token, Some(body));
        assert_eq!(status, 200, "{method} {path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    };
    let register =
        json!({ "username": "bot", "password": "of the bot", "auth": { "type": "m.login.dummy" } });
    let bot = need("POST", "/_matrix/client/v3/register", None, &register);
    let token = bot["access_token"].as_str().expect("a token");
    let room = need("POST", "/_matrix/client/v3/createRoom", Some(token), &json!({}));
    let room = room["room_id"].as_str().expect("a room");
    for (file, secret) in [("bot-token", token), ("sender-key", KEY), ("livekit", "key: secret-of-livekit")] {
        let file = stack.directory.join(file);
        fs::write(&file, secret).expect("own directory");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("own file");
    }

    let before = stack.status();
    // What is wrong is said at its place, and nothing changes.
    let webhook = |settings: &Value| {
        stack.configure(|file| file["companions"]["webhook"] = json!({ "settings": settings }));
    };
    webhook(&json!({ "matrix": { "homeserver_url": stack.url() }, "rooms": 7 }));
    let refused = stack.ask(&["check"]).bad();
    assert!(refused.contains("companions.webhook.settings.rooms"), "{refused}");

    let settings = json!({
        "matrix": { "homeserver_url": stack.url(), "access_token_file": "bot-token" },
        "api_key_file": "sender-key",
        "default_room": room,
    });
    webhook(&settings);
    stack.configure(|file| {
        file["companions"]["livekit_jwt"] = json!({ "settings": {
            "sfus": [{ "url": "wss://livekit.example.org", "keys_file": "livekit" }],
            "full_access_homeservers": ["e2e.test"],
        }});
    });
    stack.ask(&["reload"]).good();
    let after = stack.status();
    assert!(is_healthy(&after), "{}", unhealthy(&after));
    let synapse = pids(&before);
    assert!(synapse.iter().all(|(name, pid)| pids(&after).get(name) == Some(pid)), "nobody else restarted");

    // Through the router, and into the room.
    let send = |text: &str| {
        let body = json!({ "text": text });
        let (status, answer) =
            ask(stack.port, "POST", &format!("/webhook/services/T0/B0/{KEY}"), None, Some(&body));
        assert_eq!((status, answer.as_str()), (200, "ok"));
    };
    let arrives = |text: &str| {
        until("the message arrives", SOON, || {
            let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=20");
            let found = need("GET", &path, Some(token), &Value::Null);
            let mut bodies =
                found["chunk"].as_array()?.iter().filter_map(|event| event["content"]["body"].as_str());
            bodies.any(|body| body == text).then_some(())
        });
    };
    send("the first");
    arrives("the first");
    assert_eq!(ask(stack.port, "POST", "/webhook/services/T0/B0/other", None, Some(&json!({}))).0, 404);
    let (status, _) = ask(stack.port, "GET", "/livekit/jwt/healthz", None, None);
    assert_eq!(status, 200);
    let (_, client) = ask(stack.port, "GET", "/.well-known/matrix/client", None, None);
    let client: Value = serde_json::from_str(&client).expect("JSON");
    let focus = &client["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"];
    assert_eq!(*focus, format!("{}/livekit/jwt", stack.url()));

    // Killed, it comes back, and what is sent meanwhile waits for it.
    let killed = pid_of(&stack.status(), "webhook").expect("it runs");
    kill(Pid::from_raw(killed.cast_signed()), Signal::SIGKILL).expect("it is ours");
    // What it has taken dies with it, and whether it had is anybody's guess.
    until("it has ended", SOON, || (pid_of(&stack.status(), "webhook") != Some(killed)).then_some(()));
    send("while it is away");
    arrives("while it is away");

    // A change of its settings restarts it alone; without it in the file it goes.
    let before = stack.status();
    let mut changed = settings.clone();
    changed["notice"] = true.into();
    webhook(&changed);
    stack.ask(&["reload"]).good();
    let after = stack.status();
    let (was, is) = (pids(&before), pids(&after));
    let moved: Vec<_> =
        is.iter().filter(|(name, pid)| was.get(*name) != Some(pid)).map(|(name, _)| *name).collect();
    assert_eq!(moved, ["webhook"], "{}", unhealthy(&after));
    stack.configure(|file| {
        file.as_object_mut().expect("a mapping").remove("companions");
    });
    stack.ask(&["reload"]).good();
    assert!(!pids(&stack.status()).contains_key("webhook"));
    assert_eq!(ask(stack.port, "POST", "/webhook/x", None, Some(&json!({}))).0, 404);
    stack.down().good();
}
