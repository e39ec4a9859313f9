//! Slack's senders and others.

use std::sync::Arc;

use crate::recorder::{Recorder, ask, secret, sign};
use axum::Router;
use hooks::Refused;
use hooks::webhook::{Config, Webhook};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

const OUTBOX: &str =
    "matrix: {homeserver_url: 'http://127.0.0.1:1', access_token: t}\nqueue: {store: /nowhere}\n";

struct Service {
    app: Router,
    outbox: Recorder,
    webhook: Arc<Webhook<Recorder>>,
    dir: tempfile::TempDir,
}

fn service() -> Service {
    let dir = tempfile::tempdir().expect("there is room");
    let outbox = Recorder::default();
    let webhook = Webhook::new(senders(dir.path()).settings().expect("they are fine"), outbox.clone());
    Service { app: webhook.router(), outbox, webhook, dir }
}

fn senders(dir: &std::path::Path) -> Config {
    let yaml = format!(
        "matrix: {{homeserver_url: 'http://127.0.0.1:1', access_token: t}}\n\
         queue: {{store: /nowhere}}\n\
         api_key_file: {}\n\
         rooms:\n  alerts: '!alerts:example.org'\n\
         users:\n  U024BE7LH: '@bob:example.org'\n\
         hooks:\n\
         - name: ci\n  key_file: {}\n  room: '!ci:example.org'\n  notice: true\n  mention_room: true\n\
         - name: any\n  key_file: {}\n  format: github\n",
        secret(dir, "api", "api-key").display(),
        secret(dir, "ci", "ci-key").display(),
        secret(dir, "any", "any-key").display(),
    );
    config::document("webhook.yaml", &yaml).expect("it is one")
}

fn body(text: &str) -> String {
    json!({ "text": text }).to_string()
}

#[tokio::test]
async fn incoming_webhooks_are_answered_as_slack_answers() {
    let Service { app, outbox, .. } = service();
    let ok = (200, "ok".to_owned());
    assert_eq!(ask(&app, "/services/T0/B0/ci-key", &[JSON], body("*a*")).await, ok);
    let delivery = outbox.one();
    assert_eq!((delivery.room.as_str(), delivery.message.plain.as_str()), ("!ci:example.org", "a"));
    assert_eq!(delivery.message.html.as_deref(), Some("<strong>a</strong>"));
    assert!(delivery.message.notice);
    // The room is the hook's, whatever the channel is; another key goes where its sender says.
    let channel = r##"{"text":"<!here>","channel":"#alerts"}"##;
    assert_eq!(ask(&app, "/services/T0/B0/ci-key", &[JSON], channel).await, ok);
    let delivery = outbox.one();
    assert_eq!((delivery.room.as_str(), delivery.message.mentions_room), ("!ci:example.org", true));
    assert_eq!(ask(&app, "/services/T0/B0/api-key", &[JSON], channel).await, ok);
    let delivery = outbox.one();
    assert_eq!((delivery.room.as_str(), delivery.message.mentions_room), ("!alerts:example.org", false));
    assert_eq!(
        ask(&app, "/services/alerts/api-key", &[FORM], "payload=%7B%22text%22%3A%22a%20b%22%7D").await,
        ok
    );
    assert_eq!(outbox.one().message.plain, "a b");
    // Edits and threads.
    assert_eq!(
        ask(&app, "/services/a/b/ci-key", &[JSON], r#"{"text":"x","ts":"1.2","thread_ts":"1.1"}"#).await,
        ok
    );
    let message = outbox.one().message;
    assert_eq!((message.edits.as_deref(), message.thread.as_deref()), (Some("1.2"), Some("1.1")));

    for (path, sent, status, word) in [
        ("/services/T0/B0/wrong", "{}", 404, "no_service"),
        ("/services/T0/B0/ci-key", "{", 400, "invalid_payload"),
        ("/services/T0/B0/ci-key", "[]", 400, "invalid_payload"),
        ("/services/T0/B0/ci-key", "", 400, "invalid_payload"),
        ("/services/T0/B0/ci-key", "{}", 400, "no_text"),
        ("/services/T0/B0/api-key", r#"{"text":"x","channel":"nowhere"}"#, 404, "channel_not_found"),
    ] {
        assert_eq!(ask(&app, path, &[JSON], sent).await, (status, word.to_owned()), "{path} {sent}");
    }
    let large = "x".repeat(hooks::MAX_BODY + 1);
    assert_eq!(ask(&app, "/services/T0/B0/ci-key", &[JSON], large).await.0, 413);
    *outbox.refuses.lock().unwrap() = Some(Refused::Full);
    let answer = ask(&app, "/services/T0/B0/ci-key", &[JSON], body("x")).await;
    assert_eq!(answer, (503, "service_unavailable".to_owned()));
    *outbox.refuses.lock().unwrap() = Some(Refused::Store("disk".to_owned()));
    let answer = ask(&app, "/services/T0/B0/ci-key", &[JSON], body("x")).await;
    assert_eq!(answer, (500, "rollup_error".to_owned()));
    assert_eq!(outbox.take(), []);
}

async fn call(
    app: &Router,
    method: &str,
    headers: &[(&str, &str)],
    body: impl Into<axum::body::Body>,
) -> Value {
    let (status, answer) = ask(app, &format!("/api/{method}"), headers, body).await;
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).expect("it is JSON")
}

#[tokio::test]
async fn the_web_api_posts_edits_and_answers_in_threads() {
    let Service { app, outbox, .. } = service();
    let bearer = ("authorization", "Bearer api-key");
    let test = call(&app, "auth.test", &[bearer], "").await;
    assert_eq!((&test["ok"], &test["user"]), (&json!(true), &json!("api_key")));

    let post = json!({"channel": "alerts", "text": "one", "attachments": [{"text": "*two*"}]}).to_string();
    let first = call(&app, "chat.postMessage", &[JSON, bearer], post.clone()).await;
    let second = call(&app, "chat.postMessage", &[JSON, bearer], post).await;
    let (ts, channel) = (first["ts"].as_str().unwrap(), &first["channel"]);
    assert_eq!((&first["ok"], channel), (&json!(true), &json!("!alerts:example.org")));
    assert!(ts < second["ts"].as_str().unwrap(), "{first} {second}");
    let taken = outbox.take();
    assert_eq!(taken[0].message.key.as_deref(), Some(ts));
    assert_eq!(taken[0].message.plain, "one\n> two");

    // As a form, with the token in it, a part in JSON, and the channel as it was answered.
    let form = format!(
        "token=api-key&channel=!alerts%3Aexample.org&thread_ts={ts}&text=reply&blocks=%5B%7B%22type%22%3A%22divider%22%7D%5D"
    );
    assert_eq!(call(&app, "chat.postMessage", &[FORM], form).await["ok"], true);
    let message = outbox.one().message;
    assert_eq!((message.thread.as_deref(), message.html.as_deref()), (Some(ts), Some("<hr>")));
    let update = json!({"channel": channel, "ts": ts, "text": "edited"}).to_string();
    let updated = call(&app, "chat.update", &[JSON, bearer], update).await;
    assert_eq!((&updated["ok"], &updated["ts"]), (&json!(true), &json!(ts)));
    let message = outbox.one().message;
    assert_eq!((message.edits.as_deref(), message.plain.as_str(), message.key), (Some(ts), "edited", None));
    // As Alertmanager edits.
    let again = json!({"channel": channel, "ts": ts, "attachments": [{"text": "resolved"}]}).to_string();
    assert_eq!(call(&app, "chat.postMessage", &[JSON, bearer], again).await["ts"], ts);
    assert_eq!(outbox.one().message.edits.as_deref(), Some(ts));
    let delete = json!({"channel": channel, "ts": ts}).to_string();
    assert_eq!(call(&app, "chat.delete", &[JSON, bearer], delete).await["ok"], true);
    assert_eq!(outbox.one().message.edits.as_deref(), Some(ts));

    for (method, headers, body, error) in [
        ("chat.postMessage", &[JSON][..], "{}", "not_authed"),
        ("chat.postMessage", &[JSON, ("authorization", "Bearer x")], "{}", "invalid_auth"),
        ("chat.postMessage", &[JSON, bearer], r#"{"text":"x"}"#, "channel_not_found"),
        ("chat.postMessage", &[JSON, bearer], r#"{"channel":"alerts"}"#, "no_text"),
        ("chat.postMessage", &[JSON, bearer], "[]", "invalid_json"),
        ("chat.postMessage", &[FORM, bearer], "blocks=%5B", "invalid_blocks_format"),
        ("chat.postMessage", &[FORM, bearer], "attachments=%5B", "invalid_attachments"),
        ("chat.update", &[JSON, bearer], r#"{"channel":"alerts","text":"x"}"#, "message_not_found"),
        ("users.list", &[JSON, bearer], "{}", "unknown_method"),
    ] {
        assert_eq!(
            call(&app, method, headers, body).await,
            json!({"ok": false, "error": error}),
            "{method} {body}"
        );
    }
    *outbox.refuses.lock().unwrap() = Some(Refused::Full);
    let answer =
        ask(&app, "/api/chat.postMessage", &[JSON, bearer], r#"{"channel":"alerts","text":"x"}"#).await;
    assert_eq!(answer, (503, r#"{"ok":false,"error":"service_unavailable"}"#.to_owned()));
}

#[tokio::test]
async fn matrix_webhooks_senders_need_no_change() {
    let Service { app, outbox, .. } = service();
    let ok = (200, r#"{"status":200,"ret":"OK"}"#.to_owned());
    let room = "!x:example.org";
    for (path, sent) in [
        ("/", json!({"body": "**hi**", "key": "api-key", "room_id": room})),
        ("/%21x%3Aexample.org", json!({"text": "**hi**", "key": "api-key"})),
        ("/webhook/!x:example.org", json!({"body": "**hi**", "key": "api-key"})),
        ("/?key=api-key&room_id=%21x%3Aexample.org", json!({"body": "**hi**"})),
        ("/webhook/!x:example.org/api-key", json!({"body": "**hi**"})),
        (
            "/!other:example.org",
            json!({"body": "hi", "formatted_body": "<strong>hi</strong>", "key": "api-key", "room_id": room}),
        ),
    ] {
        assert_eq!(ask(&app, path, &[JSON], sent.to_string()).await, ok, "{path}");
        let delivery = outbox.one();
        assert_eq!((delivery.room.as_str(), delivery.message.plain.as_str()), (room, "hi"), "{path}");
        assert_eq!(delivery.message.html.as_deref(), Some("<strong>hi</strong>"), "{path}");
        assert!(!delivery.message.notice);
    }
    let slack = json!({"attachments": [{"title": "t", "title_link": "https://example.org/"}]});
    let answer = ask(&app, "/!x:example.org?formatter=slack&key=api-key", &[JSON], slack.to_string()).await;
    assert_eq!(answer, (200, r#"{"ok":true,"error":"OK"}"#.to_owned()));
    assert!(outbox.one().message.html.unwrap().contains("<a href=\"https://example.org/\">t</a>"));

    for (path, sent, status, ret) in [
        ("/", "", 400, "Invalid JSON"),
        ("/", "{", 400, "Invalid JSON"),
        ("/", "{}", 400, "Missing body, key, room_id"),
        ("/", r#"{"body":"x","key":"api-key"}"#, 400, "Missing room_id"),
        ("/!x:example.org", r#"{"key":"api-key"}"#, 400, "Missing body"),
        ("/!x:example.org", r#"{"body":"x"}"#, 400, "Missing key"),
        ("/!x:example.org", r#"{"body":"x","key":"wrong"}"#, 401, "Invalid API key"),
        ("/?formatter=re", "{}", 400, "Unknown formatter"),
    ] {
        let expected = json!({"status": status, "ret": ret}).to_string();
        assert_eq!(ask(&app, path, &[JSON], sent).await, (status, expected), "{path} {sent}");
    }
    assert_eq!(outbox.take(), []);
    let health = axum::http::Request::get("/health").body(axum::body::Body::empty()).unwrap();
    assert_eq!(tower::ServiceExt::oneshot(app, health).await.unwrap().status(), 200);
}

#[tokio::test]
async fn other_senders_are_known_by_what_they_send() {
    let Service { app, outbox, .. } = service();
    let push = include_str!("../fixtures/formats/github-push.json");
    let signature = format!("sha256={}", sign("any-key", push));
    let headers = [
        JSON,
        ("x-github-event", "push"),
        ("x-github-delivery", "1-2-3"),
        ("x-hub-signature-256", &signature),
    ];
    // Sent again, it is the same.
    for _ in 0..2 {
        assert_eq!(ask(&app, "/!x:example.org", &headers, push).await.0, 200);
    }
    assert!(outbox.one().message.plain.starts_with("Codertocat/Hello-World"));
    let (status, answer) = ask(&app, "/!x:example.org", &headers, format!("{push} ")).await;
    assert_eq!((status, answer.contains("Invalid SHA-256 HMAC digest")), (401, true));

    let gitlab = [JSON, ("x-gitlab-event", "Pipeline Hook"), ("x-gitlab-token", "ci-key")];
    for (sent, messages) in [
        (include_str!("../fixtures/formats/gitlab-pipeline.json"), 1),
        (include_str!("../fixtures/formats/gitlab-pipeline-running.json"), 0),
    ] {
        assert_eq!(ask(&app, "/", &gitlab, sent).await.0, 200);
        assert_eq!(outbox.take().len(), messages);
    }
    let grafana = include_str!("../fixtures/formats/grafana.json");
    assert_eq!(ask(&app, "/webhook/alerts?key=api-key", &[JSON], grafana).await.0, 200);
    assert_eq!(outbox.one().room, "!alerts:example.org");

    for (content_type, sent, plain) in [
        ("text/plain", "<b>a</b> & b", "<b>a</b> & b"),
        ("text/markdown", "**a** <script>b", "a <script>b"),
        ("text/html", "<b>a</b><script>b</script>", "a"),
        ("application/xml", "<a>\n  b</a>", "<a>\n  b</a>"),
        (
            "application/json",
            r#"{"x":{"y":[1,"<b>"]},"key":"ci-key"}"#,
            "{\n  \"x\": {\n    \"y\": [\n      1,\n      \"<b>\"\n    ]\n  }\n}",
        ),
    ] {
        assert_eq!(
            ask(&app, "/webhook/ci-key", &[("content-type", content_type)], sent).await.0,
            200,
            "{content_type}"
        );
        assert_eq!(outbox.one().message.plain, plain, "{content_type}");
    }
}

#[tokio::test]
async fn settings_change_while_it_runs() {
    let Service { app, outbox, webhook, dir } = service();
    let mut senders = senders(&tempfile::tempdir_in(dir.path()).unwrap().keep());
    senders.hooks.remove(0);
    senders.requests_per_minute = 2;
    webhook.reload(senders.settings().unwrap());
    assert_eq!(ask(&app, "/services/T0/B0/ci-key", &[JSON], body("x")).await.0, 404);
    for status in [200, 200, 429] {
        assert_eq!(ask(&app, "/services/alerts/api-key", &[JSON], body("x")).await.0, status);
    }
    assert_eq!(ask(&app, "/webhook/alerts/api-key", &[JSON], body("x")).await.0, 429);
    assert_eq!(outbox.take().len(), 2);
}

#[tokio::test]
async fn requests_are_counted_by_their_route() {
    let Service { app, .. } = service();
    let (requests, mut registry) =
        (hooks::Requests::default(), Registry::with_prefix("matrix_stack_webhook"));
    requests.register(&mut registry);
    let app = requests.count(app);
    for path in
        ["/services/T0/B0/ci-key", "/services/T0/B0/wrong", "/api/auth.test", "/webhook/ci-key", "/a/b"]
    {
        ask(&app, path, &[JSON], body("x")).await;
    }
    let mut shown = String::new();
    prometheus_client::encoding::text::encode(&mut shown, &registry).unwrap();
    for line in [
        r#"matrix_stack_webhook_requests_total{path="/services/{*path}",status="200"} 1"#,
        r#"matrix_stack_webhook_requests_total{path="/services/{*path}",status="404"} 1"#,
        r#"matrix_stack_webhook_requests_total{path="/api/{method}",status="200"} 1"#,
        r#"matrix_stack_webhook_requests_total{path="*",status="200"} 1"#,
        r#"matrix_stack_webhook_requests_total{path="*",status="400"} 1"#,
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let key = secret(dir.path(), "key", "a");
    let empty = secret(dir.path(), "empty", "\n");
    let hook = |room: &str, key: &std::path::Path| {
        format!("- name: x\n  key_file: {}\n  room: '{room}'\n", key.display())
    };
    for (yaml, setting) in [
        ("notice: true\n".to_owned(), "`api_key_file`: there is no key"),
        (format!("api_key_file: {}\n", empty.display()), "`api_key_file`: "),
        (format!("hooks:\n{}", hook("ops", &key)), "`hooks[0].room`: `ops` is no room"),
        (
            format!("hooks:\n{}{}", hook("!a:b", &key), hook("!a:b", &key)),
            "`hooks[1].key_file`: another sender",
        ),
        (format!("api_key_file: {}\nrooms: {{a: b}}\n", key.display()), "`rooms.a`: "),
    ] {
        let senders: Config = config::document("webhook.yaml", &format!("{OUTBOX}{yaml}")).unwrap();
        let error = senders.settings().unwrap_err().to_string();
        assert!(error.starts_with(setting), "{error}");
    }
    assert!(Config::from_env(|_| None).is_err());
    let environment = |name: &str| match name {
        "API_KEY" => Some("k".to_owned()),
        "HOST" => Some("::1".to_owned()),
        "MATRIX_URL" => Some("http://127.0.0.1:1".to_owned()),
        "MATRIX_TOKEN" => Some("t".to_owned()),
        _ => None,
    };
    assert_eq!(Config::from_env(environment).unwrap().0.listen, "[::1]:4785");
}
