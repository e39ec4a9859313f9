//! Programs that send to Slack, sending here instead.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::recorder::{Recorder, secret};
use hooks::Delivery;
use hooks::webhook::{Config, Webhook};
use service::{Listener, bind, serve};

/// The service on a port of its own, with an outbox that keeps what it was given.
async fn start(dir: &Path) -> (SocketAddr, Recorder) {
    let yaml = format!(
        "matrix: {{homeserver_url: 'http://127.0.0.1:1', access_token: t}}\n\
         queue: {{store: /nowhere}}\n\
         api_key_file: {}\n\
         rooms:\n  alerts: '!alerts:example.org'\n\
         hooks:\n- name: ci\n  key_file: {}\n  room: '!ci:example.org'\n",
        secret(dir, "api", "api-key").display(),
        secret(dir, "ci", "ci-key").display(),
    );
    let senders: Config = config::document("webhook.yaml", &yaml).expect("it is one");
    let outbox = Recorder::default();
    let webhook = Webhook::new(senders.settings().expect("they are fine"), outbox.clone());
    let address = "127.0.0.1:0".parse().expect("it is an address");
    let listener = bind("listen", &address).await.expect("there is a port");
    let Listener::Tcp(socket) = &listener else { unreachable!("it is of TCP") };
    let address = socket.local_addr().expect("it has one");
    tokio::spawn(serve(listener, webhook.router(), std::future::pending(), Duration::ZERO));
    (address, outbox)
}

/// A Python with Slack's client. It stays where the build's files are; where it cannot be installed, why.
fn python() -> Result<PathBuf, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/scripts");
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slack-sdk");
    let python = venv.join("bin/python");
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{} {arguments:?}: {said}", program.display()))
        }
    };
    if run(&python, &["-c", "import slack_sdk; assert slack_sdk.version.__version__ == '3.48.0'"]).is_err() {
        run(Path::new("python3"), &["-m", "venv", "--clear", &venv.to_string_lossy()])?;
        let lock = here.join("requirements.txt");
        let lock = lock.to_string_lossy();
        run(
            &python,
            &["-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes", "-r", &lock],
        )?;
    }
    Ok(python)
}

#[tokio::test(flavor = "multi_thread")]
async fn slacks_own_client() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: Slack's client cannot be installed: {reason}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let (address, outbox) = start(dir.path()).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/scripts/slack.py");
    let mut script = Command::new(python).arg(script).arg(format!("http://{address}")).spawn().unwrap();
    let status = tokio::task::spawn_blocking(move || script.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");

    let taken = outbox.take();
    let shown: Vec<(&str, &str)> =
        taken.iter().map(|delivery| (delivery.room.as_str(), delivery.message.plain.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("!ci:example.org", "Deployed 🚀\napi is up"),
            ("!ci:example.org", "> ■ t\n> a: b"),
            ("!alerts:example.org", "building\n> 42"),
            ("!alerts:example.org", "a step"),
            ("!alerts:example.org", "built"),
            ("!alerts:example.org", "(deleted)"),
        ]
    );
    let key = taken[2].message.key.as_deref().unwrap();
    let about = |at: usize| (taken[at].message.thread.as_deref(), taken[at].message.edits.as_deref());
    assert_eq!((about(3), about(4), about(5)), ((Some(key), None), (None, Some(key)), (None, Some(key))));
}

/// Ends a process when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alertmanagers_slack_receiver() {
    let Ok(version) = Command::new("prometheus-alertmanager").arg("--version").output() else {
        eprintln!("skipped: there is no prometheus-alertmanager");
        return;
    };
    assert!(version.status.success());
    let dir = tempfile::tempdir().unwrap();
    let (address, outbox) = start(dir.path()).await;
    let config = dir.path().join("alertmanager.yml");
    let text = format!(
        "route: {{receiver: room, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\n\
         receivers:\n\
         - name: room\n  slack_configs:\n  - api_url: http://{address}/services/T0/B0/api-key\n    channel: '#alerts'\n\
         \x20   send_resolved: true\n    text: '{{{{ range .Alerts }}}}*{{{{ .Annotations.summary }}}}*{{{{ end }}}}'\n\
         \x20   fields: [{{title: Severity, value: '{{{{ .CommonLabels.severity }}}}', short: true}}]\n\
         \x20   actions: [{{type: button, text: Runbook, url: 'https://example.org/runbook'}}]\n"
    );
    std::fs::write(&config, text).unwrap();
    // A port that is free now; Alertmanager cannot say which one it would take by itself.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut alertmanager = Running(
        Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let alert = r#"[{"labels":{"alertname":"InstanceDown","severity":"critical"},"annotations":{"summary":"web-1 <is> down"}}]"#;
    until("Alertmanager takes an alert", || {
        assert!(alertmanager.0.try_wait().unwrap().is_none(), "Alertmanager ended");
        post(port, alert)
    });
    let mut firing: Vec<Delivery> = Vec::new();
    until("the alert comes", || {
        firing.extend(outbox.take());
        firing.len() == 1
    });
    assert_eq!(firing[0].room, "!alerts:example.org");
    let plain = &firing[0].message.plain;
    assert!(plain.starts_with("> ■ [FIRING:1] InstanceDown (critical) (http://"), "{plain}");
    assert!(
        plain.ends_with("\n> web-1 <is> down\n> Severity: critical\n> Runbook (https://example.org/runbook)"),
        "{plain}"
    );
    let resolved = alert.replace(
        "\"labels\"",
        "\"endsAt\":\"2020-01-01T00:00:00Z\",\"startsAt\":\"2019-01-01T00:00:00Z\",\"labels\"",
    );
    assert!(post(port, &resolved));
    let mut all = Vec::new();
    until("its end comes", || {
        all.extend(outbox.take());
        all.iter().any(|delivery: &Delivery| delivery.message.plain.contains("[RESOLVED]"))
    });
}

/// Waits until something is so, for half a minute at most.
#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn post(port: u16, alerts: &str) -> bool {
    let send = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let length = alerts.len();
        write!(
            stream,
            "POST /api/v2/alerts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{alerts}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200"))
    };
    send().unwrap_or(false)
}
