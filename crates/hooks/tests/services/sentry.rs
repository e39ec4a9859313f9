//! Sentry.

use std::path::Path;

use crate::recorder::{Recorder, ask, secret, sign};
use axum::Router;
use hooks::Refused;
use hooks::sentry::{Config, Sentry};

const CREATED: &str = include_str!("../fixtures/sentry/issue-created.json");
const ALERT: &str = include_str!("../fixtures/sentry/event_alert-triggered.json");
const LEGACY: &str = include_str!("../fixtures/sentry/legacy-event.json");

fn projects(dir: &Path) -> Config {
    let yaml = format!(
        "matrix: {{homeserver_url: 'http://127.0.0.1:1', access_token: t}}\n\
         queue: {{store: /nowhere}}\n\
         client_secret_files: ['{}', '{}']\n\
         routes:\n\
         - projects: [front-end]\n  environments: [production]\n  levels: [error, fatal]\n  rooms: ['!production:example.org', '!all:example.org']\n\
         - projects: ['1']\n  rooms: ['!front:example.org']\n\
         - resources: [metric_alert]\n  rooms: ['!metrics:example.org']\n\
         include_tags: [browser]\n\
         notice: true\n",
        secret(dir, "new", "new-secret").display(),
        secret(dir, "old", "old-secret").display(),
    );
    config::document("sentry.yaml", &yaml).expect("it is one")
}

fn service() -> (Router, Recorder, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("there is room");
    let outbox = Recorder::default();
    let service = Sentry::new(projects(dir.path()).settings().expect("they are fine"), outbox.clone());
    (service.router(), outbox, dir)
}

async fn send(app: &Router, key: &str, resource: &str, id: &str, body: &str) -> (u16, String) {
    let signature = sign(key, body);
    let headers = [
        ("content-type", "application/json"),
        ("request-id", id),
        ("sentry-hook-resource", resource),
        ("sentry-hook-timestamp", "1711315768"),
        ("sentry-hook-signature", &signature),
    ];
    ask(app, "/receive", &headers, body.to_owned()).await
}

#[tokio::test]
async fn what_is_signed_reaches_its_rooms_once() {
    let (app, outbox, _dir) = service();
    let ok = (200, "{}".to_owned());
    assert_eq!(send(&app, "new-secret", "event_alert", "a", ALERT).await, ok);
    assert_eq!(send(&app, "old-secret", "event_alert", "a", ALERT).await, ok, "the same request again");
    let taken = outbox.take();
    let rooms: Vec<&str> = taken.iter().map(|delivery| delivery.room.as_str()).collect();
    assert_eq!(rooms, ["!production:example.org", "!all:example.org"]);
    assert!(taken[0].message.plain.contains("browser: Chrome 75.0.3770") && taken[0].message.notice);
    // An issue names no environment, so the first route is not its.
    assert_eq!(send(&app, "new-secret", "issue", "b", CREATED).await, ok);
    assert_eq!(outbox.one().room, "!front:example.org");
    let metric = include_str!("../fixtures/sentry/metric_alert-critical.json");
    assert_eq!(send(&app, "new-secret", "metric_alert", "c", metric).await, ok);
    assert_eq!(outbox.one().room, "!metrics:example.org");
    // What has no room, and what is unknown.
    let installation = include_str!("../fixtures/sentry/installation-created.json");
    for (resource, body) in
        [("installation", installation), ("size_analysis", "{}"), ("issue", "[]"), ("", "1")]
    {
        assert_eq!(send(&app, "new-secret", resource, "d", body).await, ok, "{resource}");
    }
    assert_eq!(outbox.take(), []);
    // Where Sentry's header is lost on the way, the payload says it.
    assert_eq!(send(&app, "new-secret", "", "e", CREATED).await, ok);
    assert_eq!(outbox.one().message.key.as_deref(), Some("issue/1170820242"));
}

#[tokio::test]
async fn nothing_is_taken_from_strangers() {
    let (app, outbox, _dir) = service();
    assert_eq!(send(&app, "wrong", "issue", "a", CREATED).await.0, 403);
    let signature = sign("new-secret", CREATED);
    for (path, header, body) in [
        ("/receive", ("sentry-hook-signature", signature.as_str()), format!("{CREATED} ")),
        ("/receive", ("sentry-hook-signature", &signature[1..]), CREATED.to_owned()),
        ("/receive", ("sentry-hook-signature", ""), CREATED.to_owned()),
        ("/receive", ("x-other", "1"), CREATED.to_owned()),
        ("/receive?secret=", ("x-other", "1"), LEGACY.to_owned()),
        ("/receive?secret=wrong", ("x-other", "1"), LEGACY.to_owned()),
        // A wrong signature is wrong, whatever else is right.
        ("/receive?secret=new-secret", ("sentry-hook-signature", "00"), LEGACY.to_owned()),
        // Who nobody knows learns nothing about what would be wrong beside.
        ("/receive", ("x-other", "1"), "{".to_owned()),
    ] {
        assert_eq!(ask(&app, path, &[header], body).await.0, 403, "{path} {header:?}");
    }
    assert_eq!(ask(&app, "/receive?secret=new-secret", &[], "{").await.0, 400);
    assert_eq!(ask(&app, "/receive?secret=new-secret", &[], "x".repeat(hooks::MAX_BODY + 1)).await.0, 413);
    assert_eq!(outbox.take(), []);
    assert_eq!(ask(&app, "/receive?secret=new-secret", &[], CREATED).await.0, 200);
    assert_eq!(outbox.take().len(), 1);
}

#[tokio::test]
async fn the_peers_environment_is_understood() {
    let environment = |name: &str| {
        Some(match name {
            "SENTRY_CLIENT_SECRET" => "s3cret".to_owned(),
            "SENTRY_INCLUDE_TAGS" => "browser.name, level".to_owned(),
            "MATRIX_ROOMS" => "front-end/!front:example.org|back-end/#back:example.org".to_owned(),
            "MATRIX_HOMESERVER_URL" => "http://127.0.0.1:1".to_owned(),
            "MATRIX_TOKEN" => "t".to_owned(),
            _ => return None,
        })
    };
    let outbox = Recorder::default();
    let (config, settings) = Config::from_env(environment).unwrap();
    assert_eq!(config.listen, "0.0.0.0:3000");
    let app = Sentry::new(settings, outbox.clone()).router();
    assert_eq!(ask(&app, "/receive?secret=s3cret", &[], LEGACY).await, (200, "{}".to_owned()));
    let delivery = outbox.one();
    assert_eq!((delivery.room.as_str(), delivery.message.notice), ("!front:example.org", false));
    assert!(
        delivery.message.plain.contains("browser.name: Chrome\nlevel: warning"),
        "{}",
        delivery.message.plain
    );
    assert_eq!(send(&app, "s3cret", "issue", "", CREATED).await.0, 200);
    assert_eq!(outbox.one().dedup, None);
    for broken in ["", "front-end", "front-end/room"] {
        let environment =
            |name: &str| if name == "MATRIX_ROOMS" { Some(broken.to_owned()) } else { environment(name) };
        assert!(Config::from_env(environment).is_err(), "{broken}");
    }
    let no_secret = |name: &str| environment(name).filter(|_| name != "SENTRY_CLIENT_SECRET");
    let error = Config::from_env(no_secret).unwrap_err();
    assert!(error.to_string().starts_with("`SENTRY_CLIENT_SECRET`: there is no secret"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_said_to_be_taken() {
    let (app, outbox, _dir) = service();
    *outbox.refuses.lock().unwrap() = Some(Refused::Full);
    assert_eq!(send(&app, "new-secret", "issue", "a", CREATED).await.0, 503);
}
