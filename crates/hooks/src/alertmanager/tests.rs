//! The service as Alertmanager sees it, in front of a store that nobody empties.

use axum::body::Body;
use tower::ServiceExt as _;

use super::*;
use crate::metrics::Metrics;
use crate::settings::Queue;
use crate::store::Waiting;

const ROOM: &str = "!ops:example.org";

/// A configuration as matrix-alertmanager-receiver has it, with its chart's kind of template.
const CONFIG: &str = r##"
http:
  address: 127.0.0.1
  port: 12345
  alerts-path-prefix: /alerts
  metrics-enabled: true
  basic-username: alertmanager
  basic-password: ${PASSWORD}
matrix:
  homeserver-url: https://matrix.example.org
  user-id: "@bot:example.org"
  access-token: ${TOKEN}
  room-mapping:
    ops: "!ops:example.org"
    team/db: "#db:example.org"
templating:
  external-url-mapping:
    "http://alertmanager:9093": https://alerts.example.org
  generator-url-mapping:
    "http://prometheus:9090/graph": https://prometheus.example.org/graph
  computed-values:
    - values: {color: yellow}
    - values: {color: orange}
      when-matching-labels: {severity: warning}
    - values: {color: red}
      when-matching-labels: {severity: critical}
    - values: {color: limegreen}
      when-matching-status: resolved
  firing-template: |
    <p>
      <strong><font color="{{ .ComputedValues.color }}">{{ .Alert.Status | ToUpper }}</font></strong>
      {{ if .Alert.Labels.name }}
        {{ .Alert.Labels.name }}
      {{ else if .Alert.Labels.alertname }}
        {{ .Alert.Labels.alertname }}
      {{ end }}
      >>
      {{ if .Alert.Labels.severity }}{{ .Alert.Labels.severity | ToUpper }}: {{ end }}
      {{ if .Alert.Annotations.summary }}{{ .Alert.Annotations.summary }}{{ end }}
      [<a href="{{ .GeneratorURL }}">source</a>] [<a href="{{ .SilenceURL }}">silence</a>]
    </p>
  resolved-template: |
    <strong><font color="{{ .ComputedValues.color }}">{{ .Alert.Status | ToUpper }}</font></strong>{{ .Alert.Labels.alertname }}
"##;

fn variables(name: &str) -> Option<String> {
    match name {
        "PASSWORD" => Some("some-password".to_owned()),
        "TOKEN" => Some("sesame".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse("config.yaml", text, variables)
}

fn without(part: &str) -> String {
    assert!(CONFIG.contains(part), "{part}");
    CONFIG.replace(part, "")
}

struct Lab {
    service: Arc<Alertmanager>,
    store: Store,
    _directory: tempfile::TempDir,
}

fn lab(config: &str) -> Lab {
    lab_with(config, u32::MAX)
}

fn lab_with(config: &str, most_messages: u32) -> Lab {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue { most_messages, ..Queue::at(directory.path().join("hooks.sqlite")) };
    let (store, _) = Store::open("alertmanager", &queue, Metrics::default()).unwrap();
    let settings = parse(config).unwrap().settings("config.yaml", config).unwrap();
    let service = Arc::new(Alertmanager {
        settings: ArcSwap::from_pointee(settings),
        store: store.clone(),
        counted: Counted::default(),
    });
    Lab { service, store, _directory: directory }
}

impl Lab {
    async fn ask(&self, method: &str, path: &str, authorization: &str, body: &str) -> StatusCode {
        let mut request = Request::builder().method(method).uri(path);
        if !authorization.is_empty() {
            request = request.header("authorization", authorization);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let app = self.service.router(|| StatusCode::OK.into_response());
        app.oneshot(request).await.unwrap().status()
    }

    async fn post(&self, path: &str, body: &str) -> StatusCode {
        self.ask("POST", path, &basic("alertmanager", "some-password"), body).await
    }

    async fn waiting(&self, room: &str) -> Vec<Waiting> {
        self.store.next(room, "d").await.unwrap()
    }

    async fn texts(&self, room: &str) -> Vec<String> {
        self.waiting(room).await.into_iter().map(|waiting| waiting.message.plain).collect()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn notification(status: &str, name: &str, starts: &str) -> String {
    let alert = serde_json::json!({
        "status": status,
        "labels": { "alertname": name, "severity": "critical" },
        "annotations": { "summary": "<b>it is down</b>" },
        "startsAt": starts,
        "endsAt": if status == "resolved" { "2026-01-01T01:00:00Z" } else { "0001-01-01T00:00:00Z" },
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": format!("f-{name}"),
    });
    serde_json::json!({
        "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": status, "receiver": "matrix",
        "groupLabels": {}, "commonLabels": { "alertname": name }, "commonAnnotations": null,
        "externalURL": "http://alertmanager:9093", "alerts": [alert],
    })
    .to_string()
}

#[tokio::test]
async fn an_alert_becomes_the_message_that_its_template_makes() {
    let lab = lab(CONFIG);
    assert_eq!(lab.post("/alerts/ops", &notification("firing", "Down", "2026-01-01T00:00:00Z")).await, 200);
    assert_eq!(lab.post("/alerts/ops", &notification("resolved", "Down", "2026-01-01T00:00:00Z")).await, 200);
    let waiting = lab.waiting(ROOM).await;
    let html = waiting[0].message.html.clone().unwrap();
    for part in [
        "FIRING</font></strong>",
        "CRITICAL: ",
        "&lt;b&gt;it is down&lt;/b&gt;",
        r#"<a href="https://prometheus.example.org/graph">source</a>"#,
        "https://alerts.example.org/#/silences/new?filter=%7Balertname%3D%22Down%22%2C%20severity%3D%22critical%22%7D",
    ] {
        assert!(html.contains(part), "no {part} in {html}");
    }
    assert!(waiting[0].message.plain.contains("FIRING Down"), "{}", waiting[0].message.plain);
    assert!(waiting[1].message.plain.contains("RESOLVED"), "{}", waiting[1].message.plain);
    assert_eq!(lab.service.counted.rendered.get(), 2);
}

#[tokio::test]
async fn rooms_are_named_mapped_and_encoded() {
    let lab = lab(CONFIG);
    let body = notification("firing", "Down", "2026-01-01T00:00:00Z");
    for (path, room) in [
        ("/alerts/ops", ROOM),
        ("/alerts/!other:example.org", "!other:example.org"),
        ("/alerts/%21third%3Aexample.org", "!third:example.org"),
        ("/alerts/%23alias:example.org", "#alias:example.org"),
        ("/alerts/team/db", "#db:example.org"),
        ("/alerts/team%2Fdb", "#db:example.org"),
        ("/alerts/%23a%2Fb:example.org", "#a/b:example.org"),
    ] {
        assert_eq!(lab.post(path, &body).await, 200, "{path}");
        assert_eq!(lab.waiting(room).await.len(), 1, "{path}");
    }
    for path in ["/alerts/unknown", "/alerts/", "/alerts", "/other/ops", "/alerts/%ff"] {
        assert_eq!(lab.post(path, &body).await, 404, "{path}");
    }
}

#[tokio::test]
async fn only_who_may_is_heard_and_only_notifications_are_taken() {
    let lab = lab(CONFIG);
    let body = notification("firing", "Down", "2026-01-01T00:00:00Z");
    for (authorization, status) in [
        (basic("alertmanager", "some-password"), 200),
        (basic("someone", "some-password"), 401),
        (basic("alertmanager", "something"), 401),
        (String::new(), 401),
        ("Basic !".to_owned(), 401),
        ("Bearer some-password".to_owned(), 401),
    ] {
        assert_eq!(lab.ask("POST", "/alerts/ops", &authorization, &body).await, status, "{authorization}");
    }
    let right = basic("alertmanager", "some-password");
    assert_eq!(lab.ask("GET", "/alerts/ops", &right, "").await, 405);
    for bad in ["", "x", "[]", r#"{"alerts": 1}"#, &"[".repeat(1000)] {
        assert_eq!(lab.post("/alerts/ops", bad).await, 400, "{bad}");
    }
    assert_eq!(lab.post("/alerts/ops", &" ".repeat(MAX_BODY + 1)).await, 413);
    assert_eq!(lab.ask("GET", "/metrics", "", "").await, 200);
    // Without a password everybody may.
    let open = self::lab(&without("  basic-password: ${PASSWORD}\n"));
    assert_eq!(open.ask("POST", "/alerts/ops", "", &body).await, 200);
    let counted = &lab.service.counted;
    assert_eq!((counted.unauthorized.get(), counted.invalid.get()), (5, 6));
}

#[tokio::test]
async fn doubles_are_sent_once_and_reminders_again() {
    let body = notification("firing", "Down", "2026-01-01T00:00:00Z");
    let other = notification("firing", "Down", "2026-01-02T00:00:00Z");
    let first = lab(CONFIG);
    for body in [&body, &body, &other] {
        assert_eq!(first.post("/alerts/ops", body).await, 200);
    }
    assert_eq!(first.texts(ROOM).await.len(), 2);
    let reminded = lab(&format!("{CONFIG}delivery:\n  doubles-within: 0\n"));
    for _ in 0..2 {
        assert_eq!(reminded.post("/alerts/ops", &body).await, 200);
    }
    assert_eq!(reminded.texts(ROOM).await.len(), 2);
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again() {
    let lab = lab_with(CONFIG, 1);
    assert_eq!(lab.post("/alerts/ops", &notification("firing", "A", "2026-01-01T00:00:00Z")).await, 200);
    assert_eq!(lab.post("/alerts/ops", &notification("firing", "B", "2026-01-01T00:00:00Z")).await, 503);
}

#[tokio::test]
async fn the_end_of_an_alert_can_be_an_edit_or_in_a_thread() {
    for (how, edits, thread) in [("edit", true, false), ("thread", false, true)] {
        let lab = lab(&format!("{CONFIG}delivery:\n  resolved: {how}\n  notice: true\n"));
        for status in ["firing", "resolved"] {
            assert_eq!(
                lab.post("/alerts/ops", &notification(status, "A", "2026-01-01T00:00:00Z")).await,
                200
            );
        }
        let waiting = lab.waiting(ROOM).await;
        let [first, second] = &waiting[..] else { panic!("{waiting:?}") };
        assert_eq!(first.message.key, second.message.key);
        assert!(first.message.notice);
        assert_eq!(second.message.edits.is_some(), edits, "{how}");
        assert_eq!(second.message.thread.is_some(), thread, "{how}");
    }
}

#[tokio::test]
async fn a_group_can_be_one_message() {
    let template = "firing-template: '{{len .Alerts.Firing}} of {{len .Alerts}}: {{range .Alerts}}{{.Labels.alertname}} {{end}}'";
    let base = CONFIG.split("  firing-template").next().unwrap();
    let lab = lab(&format!("{base}  {template}\ndelivery:\n  messages: per-group\n"));
    let mut body: serde_json::Value =
        serde_json::from_str(&notification("firing", "A", "2026-01-01T00:00:00Z")).unwrap();
    let mut second = body["alerts"][0].clone();
    second["labels"]["alertname"] = "B".into();
    second["status"] = "resolved".into();
    body["alerts"].as_array_mut().unwrap().push(second);
    assert_eq!(lab.post("/alerts/ops", &body.to_string()).await, 200);
    assert_eq!(lab.texts(ROOM).await, ["1 of 2: A B"]);
}

#[test]
fn a_configuration_of_the_receiver_is_read() {
    let config = parse(CONFIG).unwrap();
    assert_eq!(config.matrix.access_token.as_deref(), Some("sesame"));
    assert_eq!(config.listen().unwrap().to_string(), "127.0.0.1:12345");
    let settings = config.settings("config.yaml", CONFIG).unwrap();
    assert_eq!(settings.prefix, "/alerts/");
    assert!(!format!("{config:?}{settings:?}").contains("sesame"));
    // Names of variables that are not set stay, and keys may be written in other letters.
    let shouted = CONFIG
        .replace("homeserver-url:", "Homeserver-URL:")
        .replace("templating:", "Templating:")
        .replace("${TOKEN}", "${NOT_SET}");
    assert_eq!(parse(&shouted).unwrap().matrix.access_token.as_deref(), Some("${NOT_SET}"));
    for (prefix, is) in [("''", "/alerts/"), ("hooks", "/hooks/"), ("/a/b/", "/a/b/")] {
        let text = CONFIG.replace("alerts-path-prefix: /alerts", &format!("alerts-path-prefix: {prefix}"));
        assert_eq!(parse(&text).unwrap().settings("", &text).unwrap().prefix, is);
    }
    let every = CONFIG.replace("  address: 127.0.0.1\n", "");
    assert_eq!(parse(&every).unwrap().listen().unwrap().to_string(), "0.0.0.0:12345");
    // Without templates there is one.
    let text = CONFIG.split("  firing-template").next().unwrap();
    parse(text).unwrap();
}

#[test]
fn what_is_wrong_is_said() {
    for (text, part) in [
        (without("  port: 12345\n"), "http.port"),
        (CONFIG.replace("12345", "0"), "port"),
        (CONFIG.replace("12345", "65536"), "port"),
        (CONFIG.replace("https://matrix.example.org", "''"), "matrix.homeserver-url"),
        (CONFIG.replace("\"@bot:example.org\"", "bot"), "matrix.user-id"),
        (CONFIG.replace("${TOKEN}", "''"), "matrix.access-token"),
        (CONFIG.replace("ops: \"!ops:example.org\"", "ops: ''"), "matrix.room-mapping.ops"),
        (
            CONFIG.replace("when-matching-status: resolved", "when-matching-status: done"),
            "computed-values[3]",
        ),
        (CONFIG.replace("metrics-enabled", "metrics-on"), "metrics-on"),
        (CONFIG.replace("{{ .SilenceURL }}", "{{ .SilenceUrl }}"), "config.yaml:40:63:"),
        (CONFIG.replace("{{ if .Alert.Labels.severity }}", "{{ if }}"), "firing-template"),
        (CONFIG.replace("<strong><font", "<a href='{{if true}}'>{{else}}x{{end}}<font"), "firing-template"),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "no {part} in {error}");
        assert!(!error.contains("sesame"), "{error}");
    }
}
