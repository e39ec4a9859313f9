//! `generate-secrets`, against a server that answers as Kubernetes' documentation says it does. It is a stand-in: it shows
//! what is asked for, and not that a real API server accepts it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What was asked, and the one Secret that there may be.
#[derive(Default)]
struct Cluster {
    asked: Vec<String>,
    secret: Option<Value>,
    /// How many writes still fail because somebody else was faster.
    conflicts: usize,
}

impl Cluster {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.asked.push(format!("{method} {path}"));
        let collection = path.split('?').next() == Some("/api/v1/namespaces/chat/secrets");
        let failure = |code: u16, reason: &str| {
            (
                code,
                json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code }),
            )
        };
        match (method, collection, &mut self.secret) {
            ("GET", false, Some(secret)) => (200, secret.clone()),
            ("GET", false, None) => failure(404, "NotFound"),
            ("POST" | "PATCH", ..) if self.conflicts > 0 => {
                self.conflicts -= 1;
                failure(409, "Conflict")
            }
            ("POST", true, there @ None) => {
                let mut secret = body.clone();
                secret["metadata"]["resourceVersion"] = "1".into();
                *there = Some(secret.clone());
                (201, secret)
            }
            ("POST", true, Some(_)) => failure(409, "AlreadyExists"),
            ("PATCH", false, Some(secret))
                if body["metadata"]["resourceVersion"] == secret["metadata"]["resourceVersion"] =>
            {
                for (key, value) in body["data"].as_object().unwrap() {
                    secret["data"][key] = value.clone();
                }
                (200, secret.clone())
            }
            _ => failure(409, "Conflict"),
        }
    }
}

/// The server, and a file that leads to it.
fn serve(directory: &tempfile::TempDir) -> Arc<Mutex<Cluster>> {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{ "name": "test", "cluster": { "server": format!("http://{}", listener.local_addr().unwrap()) } }],
        "users": [{ "name": "test", "user": { "token": "of-a-service-account" } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "chat" } }],
    });
    fs::write(directory.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let shared = cluster.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client may hold several connections, and use them as it likes.
            let (stream, shared) = (BufReader::new(stream.unwrap()), shared.clone());
            std::thread::spawn(move || converse(stream, &shared));
        }
    });
    cluster
}

/// Answers one request after the other, until the client leaves.
fn converse(mut stream: BufReader<TcpStream>, cluster: &Mutex<Cluster>) {
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let line = line.trim().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (status, answer) = cluster.lock().unwrap().answer(method, path, &body);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        stream.get_mut().write_all(format!("{head}{answer}").as_bytes()).unwrap();
    }
}

#[test]
fn secrets_are_made_once_and_stay() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = serve(&directory);
    let generate = |fields: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_matrix-stack"))
            .args(["generate-secrets", "--kubernetes-secret", "own"])
            .args(fields)
            .env("KUBECONFIG", directory.path().join("kubeconfig"))
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success() && done.stdout.is_empty(), "{said}");
        said
    };
    let data = |cluster: &Mutex<Cluster>| cluster.lock().unwrap().secret.clone().unwrap()["data"].clone();

    let said = generate(&["signing_key", "form_secret"]);
    assert_eq!(said, "made form_secret, signing_key in `own`\n");
    let first = data(&cluster);
    assert_eq!(first.as_object().unwrap().len(), 2);
    assert!(first.as_object().unwrap().values().all(|value| !said.contains(value.as_str().unwrap())));

    assert_eq!(generate(&["signing_key", "form_secret"]), "`own` has them all already\n");
    assert_eq!(data(&cluster), first);

    // A field is added, while somebody else writes too.
    cluster.lock().unwrap().conflicts = 2;
    assert_eq!(generate(&["signing_key", "redis_password", "form_secret"]), "made redis_password in `own`\n");
    let mut second = data(&cluster);
    assert!(second.as_object_mut().unwrap().remove("redis_password").is_some());
    assert_eq!(second, first);

    // Nothing but what the job's role allows.
    let asked = cluster.lock().unwrap().asked.clone();
    let allowed = [
        "GET /api/v1/namespaces/chat/secrets/own",
        "POST /api/v1/namespaces/chat/secrets",
        "PATCH /api/v1/namespaces/chat/secrets/own",
    ];
    assert!(asked.iter().all(|request| allowed.contains(&request.split('?').next().unwrap())), "{asked:?}");
}

#[test]
fn without_a_cluster_it_says_what_is_missing() {
    let done = Command::new(env!("CARGO_BIN_EXE_matrix-stack"))
        .args(["generate-secrets", "--kubernetes-secret", "own", "form_secret"])
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).starts_with("error: cannot find the cluster:"));
}
