//! What is answered to clients and SFUs.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use axum::routing::any;
use serde_json::{Value, json};

use crate::job::{Event, Params};
use crate::jwt::{Key, Video, verify_webhook};
use crate::request::{Asked, Kind, Refusal, parse};
use crate::sfu::Sfu;
use crate::{Millis, Service, now};

/// How large a client's request may be, and an SFU's message.
const BODY: usize = 1 << 20;
const WEBHOOK: usize = 8 << 20;
/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// What every answer to a client has. Browsers ask from anywhere, and nothing here is told to who has no token.
const CORS: [(HeaderName, HeaderValue); 3] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST")),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token"),
    ),
];

/// The routes.
pub(crate) fn app(service: Arc<Service>) -> Router {
    let mut app = Router::new();
    for kind in [Kind::Legacy, Kind::Token, Kind::Delegate] {
        app = app.route(
            kind.path(),
            any(move |State(service): State<Arc<Service>>, request| client(service, kind, request)),
        );
    }
    app.route("/sfu_webhook", any(webhook)).route("/healthz", any(healthz)).with_state(service)
}

async fn healthz(method: Method) -> StatusCode {
    if method == Method::GET || method == Method::HEAD {
        StatusCode::OK
    } else {
        StatusCode::METHOD_NOT_ALLOWED
    }
}

fn answer(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().extend(CORS.into_iter().chain([json]));
    response
}

async fn client(service: Arc<Service>, kind: Kind, request: Request) -> Response {
    let response = match *request.method() {
        Method::OPTIONS => return answer(200, Body::empty()),
        Method::POST => match post(&service, kind, request.into_body()).await {
            Ok(value) => answer(200, value.to_string()),
            Err(refusal) => refused(&refusal),
        },
        _ => answer(405, Body::empty()),
    };
    service.metrics.request(kind.path(), response.status().as_u16());
    response
}

fn refused(refusal: &Refusal) -> Response {
    let mut body = json!({ "errcode": refusal.errcode, "error": refusal.error });
    if let Some(after) = refusal.retry_after {
        body["retry_after_ms"] = Millis::try_from(after.as_millis()).unwrap_or(Millis::MAX).into();
    }
    let mut response = answer(refusal.status, body.to_string());
    if let Some(after) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs() + 1));
    }
    response
}

async fn body_of(body: Body, most: usize) -> Option<axum::body::Bytes> {
    tokio::time::timeout(PATIENCE, to_bytes(body, most)).await.ok()?.ok()
}

fn closing() -> Refusal {
    Refusal::new(503, "M_UNKNOWN", "Service is shutting down")
}

async fn post(service: &Arc<Service>, kind: Kind, body: Body) -> Result<Value, Refusal> {
    if *service.closing.borrow() {
        return Err(closing());
    }
    let body =
        body_of(body, BODY).await.ok_or_else(|| Refusal::new(400, "M_NOT_JSON", "Error reading request"))?;
    let asked = parse(kind, &body, service.config.strict_requests)?;
    let full = service.has_full_access(&asked.server);
    let user = who(service, &asked, full).await?;
    if asked.delay.is_some() && !full {
        let (status, errcode) =
            if kind == Kind::Delegate { (403, "M_FORBIDDEN") } else { (400, "M_BAD_JSON") };
        let error = "Delegation of delayed events is only supported for full access users";
        return Err(Refusal::new(status, errcode, error));
    }
    let formula = service.config.formula;
    let (room, identity) = (asked.livekit_room(formula), asked.identity(formula, &user));
    if asked.delay.is_some() && service.homeservers.client_url(&asked.server).await.is_none() {
        return Err(Refusal::new(400, "M_BAD_JSON", "Unable to resolve client-server API"));
    }
    let no_room = || Refusal::new(500, "M_UNKNOWN", "Unable to create room on SFU");
    let client = service.homeservers.discovery.client();
    let sfu = service.sfus.choose(&service.homeservers.discovery, &service.metrics, &room).await.map_err(
        |error| {
            tracing::error!(%error, "a call has no SFU");
            no_room()
        },
    )?;
    if full && kind != Kind::Delegate {
        sfu.create_room(client, &room).await.map_err(|error| {
            service.metrics.sfu_failed(&sfu.api);
            tracing::error!(sfu = sfu.api, %error, "an SFU makes no room");
            no_room()
        })?;
    }
    if let Some(delay) = asked.delay {
        if *service.closing.borrow() {
            return Err(closing());
        }
        let params = Params {
            room: room.clone(),
            identity: identity.clone(),
            server: asked.server,
            delay_id: delay.id,
            timeout: Millis::try_from(delay.timeout.as_millis()).unwrap_or(Millis::MAX).min(YEAR),
            sfu: sfu.api.clone(),
        };
        let added = service.jobs.add(params).await;
        added.map_err(|_| {
            Refusal::new(503, "M_UNKNOWN", "Too many delayed events are looked after already")
        })?;
    }
    tracing::info!(path = kind.path(), user, room, identity, full, "granted");
    if kind == Kind::Delegate {
        return Ok(json!({}));
    }
    service.metrics.token(full);
    Ok(json!({ "url": sfu.url, "jwt": token(service, sfu, &room, &identity, full) }))
}

/// No delay is longer than this.
const YEAR: Millis = 365 * 24 * 3600 * 1000;

fn token(service: &Service, sfu: &Sfu, room: &str, identity: &str, full: bool) -> String {
    let config = &service.config;
    let video = Video {
        room: Some(room),
        room_create: Some(false),
        room_join: Some(true),
        can_publish: Some(full || config.restricted_users_publish),
        can_subscribe: Some(true),
        can_update_own_metadata: Some(config.update_own_metadata),
        hidden: Some(false),
        ..Video::default()
    };
    sfu.keys[0].token(Some(identity), &video, now(), config.token_seconds)
}

/// Who asks, as their homeserver says.
async fn who(service: &Service, asked: &Asked, full: bool) -> Result<String, Refusal> {
    let unauthorised = || Refusal::new(401, "M_UNAUTHORIZED", "The request could not be authorised.");
    let limited = |after: Duration| Refusal {
        retry_after: Some(after),
        ..Refusal::new(429, "M_LIMIT_EXCEEDED", "Too many requests; come back later")
    };
    if !service.is_served(&asked.server) {
        return Err(Refusal::new(403, "M_FORBIDDEN", "Users of this homeserver get no tokens here"));
    }
    if !full {
        service.servers.ask(&asked.server, now()).map_err(limited)?;
    }
    let user = service.homeservers.user(&asked.server, &asked.access_token).await.map_err(|error| {
        tracing::warn!(server = asked.server, error, "it is not known who asks");
        unauthorised()
    })?;
    if asked.user_id.as_ref().is_some_and(|claimed| *claimed != user) {
        tracing::warn!(user, claimed = asked.user_id, "somebody says to be somebody else");
        return Err(unauthorised());
    }
    service.users.ask(&user, now()).map_err(limited)?;
    Ok(user)
}

/// A message of an SFU, which is answered 200 whatever it is: the SFU would send it again and again otherwise.
async fn webhook(
    State(service): State<Arc<Service>>,
    method: Method,
    headers: HeaderMap,
    request: Body,
) -> StatusCode {
    if method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let outcome = match body_of(request, WEBHOOK).await {
        Some(body) => take(&service, &headers, &body),
        None => "unreadable",
    };
    service.metrics.webhook(outcome);
    StatusCode::OK
}

fn take(service: &Service, headers: &HeaderMap, body: &[u8]) -> &'static str {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let keys: Vec<Key> = service.sfus.all().iter().flat_map(|sfu| sfu.keys.clone()).collect();
    if let Err(error) = verify_webhook(&keys, token, body, now()) {
        tracing::warn!(%error, "a message that is said to be of an SFU is not believed");
        return "refused";
    }
    let Ok(message) = serde_json::from_slice::<Value>(body) else { return "unreadable" };
    let Some((room, identity, event)) = meaning(&message) else { return "ignored" };
    // It may concern another process, even where there is a job here: that one may have been replaced elsewhere a moment ago.
    let passed_on = service.jobs.pass_on(room, identity, event);
    match (service.jobs.tell(room, identity, event), passed_on) {
        (true, _) => "taken",
        (false, true) => "passed_on",
        (false, false) => "ignored",
    }
}

/// What a message of an SFU says: about which room and whom, and what.
fn meaning(message: &Value) -> Option<(&str, &str, Event)> {
    let participant = &message["participant"];
    let reason = participant.get("disconnectReason").or_else(|| participant.get("disconnect_reason"));
    let on_purpose = reason.is_some_and(|reason| reason == "CLIENT_INITIATED" || reason == 1);
    let event = match message["event"].as_str()? {
        "participant_joined" => Event::Connected,
        "participant_left" | "participant_connection_aborted" if on_purpose => Event::Left,
        "participant_left" | "participant_connection_aborted" => Event::Aborted,
        _ => return None,
    };
    Some((message["room"]["name"].as_str()?, participant["identity"].as_str()?, event))
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use discovery::{Answer, Client, Limits, Settings};
    use service::{Listener, Observed as _, bind, serve};

    use super::*;
    use crate::jwt::tests::webhook_header;
    use crate::{Config, Rate, Setup};

    /// A service that listens, and whom nobody told where a homeserver or an SFU is.
    struct Running {
        service: Arc<Service>,
        client: Client,
        url: String,
    }

    fn key() -> Key {
        Key::new("devkey", "a secret that nobody knows").unwrap()
    }

    async fn start(change: impl FnOnce(&mut Config)) -> Running {
        let text = "sfus: [{url: 'ws://127.0.0.1:1', keys_file: x}]\nfull_access_homeservers: [full.test]\n";
        let mut config: Config = config::document("test", text).unwrap();
        change(&mut config);
        let service = Service::new(Setup { config, keys: vec![vec![key()]] }).await.unwrap();
        let listener = bind("listen", &"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let Listener::Tcp(socket) = &listener else { unreachable!("it is of TCP") };
        let url = format!("http://{}", socket.local_addr().unwrap());
        tokio::spawn(serve(listener, app(service.clone()), std::future::pending(), Duration::ZERO));
        Running { service, client: Client::new(&Settings::default()).unwrap(), url }
    }

    impl Running {
        async fn ask(
            &self,
            method: Method,
            path: &str,
            headers: HeaderMap,
            body: impl Into<Bytes>,
        ) -> Answer {
            let limits = Limits { time: Duration::from_secs(30), bytes: 1 << 20 };
            let url = format!("{}{path}", self.url);
            self.client.ask_own(method, &url, headers, body.into(), limits).await.unwrap()
        }

        /// Status, code and text of a refusal, which has all headers that browsers need to read it.
        async fn refused(&self, path: &str, body: &str) -> (u16, String) {
            let answer = self.ask(Method::POST, path, HeaderMap::new(), body.to_owned()).await;
            cors(&answer);
            let json: Value = answer.json().unwrap();
            let text = |key: &str| json[key].as_str().unwrap().to_owned();
            (answer.status.as_u16(), format!("{}: {}", text("errcode"), text("error")))
        }
    }

    fn cors(answer: &Answer) {
        for (name, value) in CORS {
            assert_eq!(answer.headers[&name], value);
        }
        assert_eq!(answer.headers["content-type"], "application/json");
    }

    const PATHS: [&str; 3] = ["/sfu/get", "/get_token", "/delegate_delayed_leave"];

    fn body(server: &str) -> String {
        let token = json!({ "access_token": "t", "matrix_server_name": server });
        json!({ "room": "!r:a", "openid_token": token, "device_id": "D" }).to_string()
    }

    #[tokio::test]
    async fn every_answer_can_be_read_by_browsers() {
        let running = start(|_| {}).await;
        for path in PATHS {
            let answer = running.ask(Method::OPTIONS, path, HeaderMap::new(), "").await;
            cors(&answer);
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
            for method in [Method::GET, Method::PUT, Method::DELETE, Method::HEAD] {
                let answer = running.ask(method, path, HeaderMap::new(), "").await;
                cors(&answer);
                assert_eq!(answer.status.as_u16(), 405);
            }
            let not_json = (400, "M_NOT_JSON: Error reading request".to_owned());
            assert_eq!(running.refused(path, "{").await, not_json);
            assert_eq!(running.refused(path, &format!("\"{}\"", "x".repeat(BODY))).await, not_json);
        }
        let missing = (400, "M_BAD_JSON: Missing room parameter".to_owned());
        assert_eq!(running.refused("/sfu/get", "{}").await, missing);
        for (method, status) in [(Method::GET, 200), (Method::HEAD, 200), (Method::POST, 405)] {
            assert_eq!(running.ask(method, "/healthz", HeaderMap::new(), "").await.status.as_u16(), status);
        }
        assert_eq!(running.ask(Method::GET, "/", HeaderMap::new(), "").await.status.as_u16(), 404);
        let metrics = running.service.metrics();
        assert!(metrics.contains(r#"requests_total{path="/sfu/get",status="405"} 4"#), "{metrics}");
    }

    #[tokio::test]
    async fn who_is_not_known_gets_nothing() {
        let limits = |config: &mut Config| {
            config.denied_homeservers = vec!["bad.test".to_owned()];
            config.limits.homeserver = Rate { per_minute: 1, burst: 2 };
        };
        let running = start(limits).await;
        let unknown = (401, "M_UNAUTHORIZED: The request could not be authorised.".to_owned());
        let forbidden = (403, "M_FORBIDDEN: Users of this homeserver get no tokens here".to_owned());
        assert_eq!(running.refused("/sfu/get", &body("bad.test")).await, forbidden);
        // A homeserver within the own network is not asked.
        for server in ["127.0.0.1:1", "[::1]:1", "no name"] {
            assert_eq!(running.refused("/sfu/get", &body(server)).await, unknown, "{server}");
        }
        running.refused("/sfu/get", &body("127.0.0.1:1")).await;
        let answer = running.ask(Method::POST, "/sfu/get", HeaderMap::new(), body("127.0.0.1:1")).await;
        cors(&answer);
        let json: Value = answer.json().unwrap();
        assert_eq!((answer.status.as_u16(), json["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")));
        assert!(json["retry_after_ms"].as_u64().unwrap() > 50_000 && answer.headers["retry-after"] != "0");

        running.service.stopping();
        let closing = (503, "M_UNKNOWN: Service is shutting down".to_owned());
        assert_eq!(running.refused("/sfu/get", &body("full.test")).await, closing);
        assert!(running.service.ready().is_err());
    }

    #[tokio::test]
    async fn sfus_are_answered_whatever_they_say() {
        let running = start(|_| {}).await;
        let message = r#"{"event":"participant_joined","room":{"name":"r"},"participant":{"identity":"i"}}"#;
        let header = webhook_header(&key(), message.as_bytes(), now());
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, header.parse().unwrap())]);
        for (headers, body) in [(headers.clone(), message), (headers, "{}"), (HeaderMap::new(), message)] {
            assert_eq!(running.ask(Method::POST, "/sfu_webhook", headers, body).await.status.as_u16(), 200);
        }
        let metrics = running.service.metrics();
        for line in [r#"webhooks_total{outcome="ignored"} 1"#, r#"webhooks_total{outcome="refused"} 2"#] {
            assert!(metrics.contains(line), "{metrics}");
        }
    }

    #[tokio::test]
    async fn a_job_gives_way_to_the_next_however_much_happens() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("jobs.sqlite");
        let running = start(|config| config.delayed_leaves.store = Some(store.clone())).await;
        let jobs = &running.service.jobs;
        let params = |delay: &str| Params {
            room: "r".into(),
            identity: "i".into(),
            server: "127.0.0.1:1".into(),
            delay_id: delay.into(),
            timeout: 3_600_000,
            sfu: String::new(),
        };
        for number in 0..20 {
            jobs.add(params(&format!("d{number}"))).await.unwrap();
            for _ in 0..100 {
                assert!(jobs.tell("r", "i", Event::LookedUp(None)));
            }
        }
        assert!(!jobs.tell("r", "j", Event::Connected));
        let ended = || running.service.metrics().contains(r#"leaves_ended_total{how="replaced"} 19"#);
        for _ in 0..500 {
            if ended() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(ended(), "{}", running.service.metrics());
        assert_eq!(jobs.running.lock().unwrap().len(), 1);
        let stored = jobs.store.all(|_| false).await.unwrap();
        assert_eq!(stored.iter().map(|(job, _)| job.delay_id.as_str()).collect::<Vec<_>>(), ["d19"]);

        // Another process goes on with it, and with none that is over.
        jobs.store.save(&Params { identity: "over".into(), ..params("old") }, 1).await.unwrap();
        running.service.stopping();
        let next = start(|config| config.delayed_leaves.store = Some(store)).await;
        next.service.jobs.resume().await;
        assert!(next.service.jobs.tell("r", "i", Event::Left));
        assert!(!next.service.jobs.tell("r", "over", Event::Left));
        assert_eq!(next.service.jobs.store.all(|_| false).await.unwrap().len(), 1);
    }

    #[test]
    fn messages_of_sfus_mean_something_to_members() {
        let message = |event: &str, reason: Value| {
            json!({
                "event": event, "room": { "name": "r" },
                "participant": { "identity": "i", "disconnectReason": reason },
            })
        };
        for (event, reason, expected) in [
            ("participant_joined", json!(null), Some(Event::Connected)),
            ("participant_left", json!("CLIENT_INITIATED"), Some(Event::Left)),
            ("participant_left", json!(1), Some(Event::Left)),
            ("participant_left", json!("DUPLICATE_IDENTITY"), Some(Event::Aborted)),
            ("participant_left", json!(null), Some(Event::Aborted)),
            ("participant_connection_aborted", json!("JOIN_FAILURE"), Some(Event::Aborted)),
            ("participant_connection_aborted", json!("CLIENT_INITIATED"), Some(Event::Left)),
            ("room_started", json!(null), None),
        ] {
            let message = message(event, reason);
            assert_eq!(meaning(&message), expected.map(|event| ("r", "i", event)), "{message}");
        }
        assert_eq!(meaning(&json!({ "event": "participant_joined" })), None);
        assert_eq!(meaning(&json!([])), None);
    }
}
