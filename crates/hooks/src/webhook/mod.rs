//! `serve webhook`: Slack's incoming webhooks and Web API, matrix-webhook's URLs, and whatever else sends JSON, text or HTML.

mod body;
mod config;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use serde_json::{Value, json};
use service::Signals;

use crate::formats::{self, Events, Format, Formatted};
use crate::json::Look as _;
use crate::message::Message;
use crate::outbox::{Delivery, Outbox, Refused};
use crate::run::{self, Kind};
use crate::{MAX_BODY, RunError, slack};
use body::Body;

pub(crate) use config::is_room;
pub use config::{Config, ConfigError, Hook, Settings};

/// What the handlers share.
#[derive(Debug)]
pub struct Webhook<O> {
    settings: ArcSwap<Settings>,
    outbox: O,
    /// The newest `ts` in microseconds since 1970.
    newest: AtomicI64,
}

impl<O: Outbox> Webhook<O> {
    /// A service that puts what it takes into an outbox.
    pub fn new(settings: Settings, outbox: O) -> Arc<Self> {
        Arc::new(Self { settings: ArcSwap::from_pointee(settings), outbox, newest: AtomicI64::new(0) })
    }

    /// Takes other settings from the next request on.
    pub fn reload(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// What answers requests.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/health", get(|| async { reply(StatusCode::OK, "OK") }))
            .route("/services/{*path}", any(services::<O>))
            .route("/api/{method}", any(api::<O>))
            .fallback(webhook::<O>)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self.clone())
    }

    /// A name for a message as Slack's are: seconds since 1970 with six decimals, and greater than any before.
    fn timestamp(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_micros());
        let now = i64::try_from(now).unwrap_or(i64::MAX - 1);
        let before = self.newest.fetch_max(now, Ordering::Relaxed);
        let micros = if before < now { now } else { self.newest.fetch_add(1, Ordering::Relaxed) + 1 };
        format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
    }

    async fn accept(&self, room: String, message: Message, dedup: Option<String>) -> Result<(), Refused> {
        let delivery = Delivery { room, message, dedup };
        self.outbox.accept(vec![delivery]).await.map(|_| ()).inspect_err(|error| {
            tracing::error!(%error, "a message was not taken");
        })
    }
}

/// Runs the service until a signal ends it. `reload` reads its configuration again.
pub async fn run(
    config: Config,
    settings: Settings,
    signals: Signals,
    reload: impl FnMut() -> Result<(Config, Settings), String>,
) -> Result<(), RunError> {
    let make = |store| {
        let service = Webhook::new(settings, store);
        (service.router(), move |settings| service.reload(settings))
    };
    let kind = Kind { name: "webhook", prefix: "matrix_stack_webhook", common: Config::common };
    run::run(kind, &config, signals, make, reload).await
}

/// What a request says beside its body.
struct Asked<'a> {
    query: Vec<(String, String)>,
    headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    fn new(uri: &Uri, headers: &'a HeaderMap) -> Self {
        let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Self { query: query.into_owned().take(100).collect(), headers }
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn header(&self, name: &str) -> &'a str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn body(&self, bytes: &[u8]) -> Body {
        body::read(self.header("content-type"), bytes)
    }

    fn bearer(&self) -> Option<&'a str> {
        let (scheme, token) = self.header("authorization").split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    fn events(&self) -> Events<'a> {
        Events { github: self.header("x-github-event"), gitlab: self.header("x-gitlab-event") }
    }

    /// A signature of the body: GitHub's, or that of Gitea and Forgejo, or Grafana's.
    fn signature(&self) -> Option<&'a str> {
        let github = self.header("x-hub-signature-256");
        let plain = ["x-gitea-signature", "x-forgejo-signature", "x-grafana-alerting-signature"];
        std::iter::once(github.strip_prefix("sha256=").unwrap_or(github))
            .chain(plain.iter().map(|name| self.header(name)))
            .find(|signature| !signature.is_empty())
    }

    /// What tells this request from another, where its sender says so.
    fn dedup(&self) -> Option<String> {
        ["idempotency-key", "x-github-delivery", "x-gitea-delivery"]
            .iter()
            .map(|name| (name, self.header(name)))
            .find(|(_, id)| !id.is_empty() && id.len() <= 255)
            .map(|(name, id)| format!("{name} {id}"))
    }
}

/// `/services/…/KEY`: Slack's incoming webhooks.
async fn services<O: Outbox>(
    State(service): State<Arc<Webhook<O>>>,
    Path(path): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let settings = service.settings.load_full();
    let asked = Asked::new(&uri, &headers);
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).take(16).collect();
    let mut shown = segments.iter().copied().chain(asked.bearer());
    let Some(grant) = shown.find_map(|shown| settings.grant(shown)) else {
        return plain(StatusCode::NOT_FOUND, "no_service");
    };
    if let Err(wait) = grant.take(Instant::now()) {
        return slow_down(wait, plain(StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
    }
    let payload = match asked.body(&body) {
        Body::Json(json) => json,
        Body::Form(form) => form,
        Body::Text(_, text) => json!({ "text": text }),
        Body::Invalid => return plain(StatusCode::BAD_REQUEST, "invalid_payload"),
    };
    if !payload.is_object() {
        return plain(StatusCode::BAD_REQUEST, "invalid_payload");
    }
    let format = if grant.format == Format::Auto { Format::Slack } else { grant.format };
    let message = match formats::format(format, &payload, asked.events(), &grant.names) {
        Formatted::Message(message) => *message,
        Formatted::Quiet => return plain(StatusCode::OK, "ok"),
        Formatted::Empty => return plain(StatusCode::BAD_REQUEST, "no_text"),
    };
    let channel = payload.text("/channel");
    let room = grant
        .room
        .clone()
        .or_else(|| settings.room_or_id(&channel))
        .or_else(|| segments.iter().find_map(|segment| settings.room_or_id(segment)))
        .or_else(|| settings.default_room.clone());
    let Some(room) = room else { return plain(StatusCode::NOT_FOUND, "channel_not_found") };
    let message = threaded(Message { notice: grant.notice, ..message }, &payload);
    let dedup = asked.dedup();
    tracing::debug!(sender = grant.name, room, "a message of Slack's kind");
    match service.accept(room, message, dedup).await {
        Ok(()) => plain(StatusCode::OK, "ok"),
        // Unlike 429, senders try again after this.
        Err(Refused::Full) => slow_down(30, plain(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable")),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "rollup_error"),
    }
}

/// Puts a message into a thread, or in the place of an earlier one, as a payload asks.
fn threaded(mut message: Message, payload: &Value) -> Message {
    let named =
        |place| Some(payload.text(place).into_owned()).filter(|name| !name.is_empty() && name.len() <= 255);
    message.thread = named("/thread_ts");
    if message.edits.is_none() {
        message.edits = named("/ts");
    }
    message
}

/// `/api/METHOD`: what bots send to Slack's Web API.
async fn api<O: Outbox>(
    State(service): State<Arc<Webhook<O>>>,
    Path(method): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match call(&service, &method, &Asked::new(&uri, &headers), &body).await {
        Ok(answer) => json_response(StatusCode::OK, &answer),
        Err(Failed::Word(error)) => json_response(StatusCode::OK, &json!({ "ok": false, "error": error })),
        Err(Failed::Wait(seconds)) => {
            let answer = json!({ "ok": false, "error": "ratelimited" });
            slow_down(seconds, json_response(StatusCode::TOO_MANY_REQUESTS, &answer))
        }
        Err(Failed::Refused(Refused::Full)) => {
            let answer = json!({ "ok": false, "error": "service_unavailable" });
            slow_down(30, json_response(StatusCode::SERVICE_UNAVAILABLE, &answer))
        }
        Err(Failed::Refused(_)) => {
            let answer = json!({ "ok": false, "error": "internal_error" });
            json_response(StatusCode::INTERNAL_SERVER_ERROR, &answer)
        }
    }
}

/// Why a call failed.
enum Failed {
    /// The word that Slack has for it.
    Word(&'static str),
    /// Too often: the seconds to wait.
    Wait(u64),
    /// The message was not taken.
    Refused(Refused),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

async fn call<O: Outbox>(
    service: &Webhook<O>,
    method: &str,
    asked: &Asked<'_>,
    body: &[u8],
) -> Result<Value, Failed> {
    let settings = service.settings.load_full();
    let arguments = body::arguments(asked.body(body)).map_err(|wrong| {
        Failed::Word(match wrong {
            "blocks" => "invalid_blocks_format",
            "attachments" => "invalid_attachments",
            _ => "invalid_json",
        })
    })?;
    if method == "api.test" {
        return Ok(json!({ "ok": true }));
    }
    let argument = |name: &str| {
        let text = arguments.text(&format!("/{name}")).into_owned();
        if text.is_empty() { asked.query(name).unwrap_or_default().to_owned() } else { text }
    };
    let token = asked.bearer().map_or_else(|| argument("token"), str::to_owned);
    if token.is_empty() {
        return Err(Failed::Word("not_authed"));
    }
    let grant = settings.grant(&token).ok_or(Failed::Word("invalid_auth"))?;
    grant.take(Instant::now()).map_err(Failed::Wait)?;
    if method == "auth.test" {
        return Ok(json!({
            "ok": true, "url": "https://matrix.to/", "team": "Matrix", "user": grant.name,
            "team_id": "T00000000", "user_id": "U00000000", "bot_id": "B00000000",
        }));
    }
    if !matches!(method, "chat.postMessage" | "chat.update" | "chat.delete") {
        return Err(Failed::Word("unknown_method"));
    }
    let room = grant
        .room
        .clone()
        .or_else(|| settings.room_or_id(&argument("channel")))
        .or_else(|| settings.default_room.clone())
        .ok_or(Failed::Word("channel_not_found"))?;
    let earlier = argument("ts");
    if method != "chat.postMessage" && earlier.is_empty() {
        return Err(Failed::Word("message_not_found"));
    }
    if method == "chat.delete" {
        let message = Message {
            plain: "(deleted)".to_owned(),
            html: Some("<em>(deleted)</em>".to_owned()),
            edits: Some(earlier.clone()),
            notice: grant.notice,
            ..Message::default()
        };
        service.accept(room.clone(), message, None).await?;
        return Ok(json!({ "ok": true, "channel": room, "ts": earlier }));
    }
    let mut payload = arguments.clone();
    if let Some(fields) = payload.as_object_mut()
        && !fields.contains_key("text")
    {
        fields.insert("text".to_owned(), argument("text").into());
    }
    let message = slack::message(&payload, &grant.names).ok_or(Failed::Word("no_text"))?;
    let mut message = Message { notice: grant.notice, ..message };
    let ts = if earlier.is_empty() {
        message.thread = Some(argument("thread_ts")).filter(|thread| !thread.is_empty());
        let ts = service.timestamp();
        message.key = Some(ts.clone());
        ts
    } else {
        // `chat.update`, or Alertmanager, which posts again with the `ts` that it was answered with.
        message.edits = Some(earlier.clone());
        earlier
    };
    let text = argument("text");
    service.accept(room.clone(), message, asked.dedup()).await?;
    tracing::debug!(sender = grant.name, room, method, "a call of Slack's kind");
    Ok(json!({
        "ok": true, "channel": room, "ts": ts, "text": text,
        "message": { "type": "message", "subtype": "bot_message", "text": text, "ts": ts },
    }))
}

/// Any other path: matrix-webhook's, with the room in the body, the query or the path.
async fn webhook<O: Outbox>(
    State(service): State<Arc<Webhook<O>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked = Asked::new(&uri, &headers);
    let (status, ret) = take(&service, &uri, &asked, &body).await;
    let response = if asked.query("formatter") == Some("slack") {
        // What the formatter of this name answered in the chart that had it.
        json_response(status, &json!({ "ok": status.is_success(), "error": ret }))
    } else {
        reply(status, &ret)
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => slow_down(30, response),
        _ => response,
    }
}

async fn take<O: Outbox>(
    service: &Webhook<O>,
    uri: &Uri,
    asked: &Asked<'_>,
    body: &[u8],
) -> (StatusCode, String) {
    let settings = service.settings.load_full();
    let wrong = |ret: &str| (StatusCode::BAD_REQUEST, ret.to_owned());
    let read = asked.body(body);
    let payload = match &read {
        Body::Json(value) | Body::Form(value) => value.clone(),
        Body::Text(..) => Value::Null,
        Body::Invalid => return wrong("Invalid JSON"),
    };
    let path = percent_encoding::percent_decode_str(uri.path()).decode_utf8_lossy().into_owned();
    let path: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).take(16).collect();
    let path = path.strip_prefix(&["webhook"]).unwrap_or(&path);
    let format = match asked.query("formatter").map(str::parse::<Format>) {
        Some(Err(())) => return wrong("Unknown formatter"),
        Some(Ok(format)) => format,
        None => Format::Auto,
    };
    let in_body = payload.any(&["/key", "/token"]);
    let shown = [
        in_body.as_ref(),
        asked.query("key").unwrap_or_default(),
        asked.header("x-api-key"),
        asked.header("x-gitlab-token"),
    ];
    let shown: Vec<&str> =
        shown.into_iter().chain(asked.bearer()).filter(|shown| !shown.is_empty()).collect();
    let signature = asked.signature();
    let grant = shown
        .iter()
        .chain(path)
        .find_map(|shown| settings.grant(shown))
        .or_else(|| settings.signed(body, signature?));
    if grant.is_none() {
        if signature.is_some() {
            return (StatusCode::UNAUTHORIZED, "Invalid SHA-256 HMAC digest".to_owned());
        }
        if !shown.is_empty() {
            return (StatusCode::UNAUTHORIZED, "Invalid API key".to_owned());
        }
    }
    let named = [payload.text("/room_id"), asked.query("room_id").unwrap_or_default().into()];
    let named = named.iter().map(AsRef::as_ref).chain(path.iter().copied());
    let room = grant
        .and_then(|grant| grant.room.clone())
        .or_else(|| named.filter(|name| !name.is_empty()).find_map(|name| settings.room_or_id(name)))
        .or_else(|| settings.default_room.clone());
    let default = crate::slack::Names::default();
    let formatted = if let Body::Text(kind, text) = read {
        kind.format(&text)
    } else {
        let own = grant.map_or(Format::Auto, |grant| grant.format);
        let format = if format == Format::Auto { own } else { format };
        let payload = without(payload, &["key", "room_id", "token"]);
        formats::format(format, &payload, asked.events(), grant.map_or(&default, |grant| &grant.names))
    };
    let (Some(grant), Some(room), Formatted::Message(_) | Formatted::Quiet) = (grant, &room, &formatted)
    else {
        let missing =
            [("body", formatted == Formatted::Empty), ("key", grant.is_none()), ("room_id", room.is_none())];
        let missing: Vec<&str> =
            missing.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
        return wrong(&format!("Missing {}", missing.join(", ")));
    };
    if grant.take(Instant::now()).is_err() {
        return (StatusCode::TOO_MANY_REQUESTS, "Too many requests".to_owned());
    }
    let Formatted::Message(message) = formatted else { return (StatusCode::OK, "OK".to_owned()) };
    tracing::debug!(sender = grant.name, room, "a webhook");
    match service.accept(room.clone(), Message { notice: grant.notice, ..*message }, asked.dedup()).await {
        Ok(()) => (StatusCode::OK, "OK".to_owned()),
        Err(error @ Refused::Full) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "The message cannot be kept".to_owned()),
    }
}

/// A payload less what is meant for this service: no key is ever shown in a room.
fn without(mut payload: Value, fields: &[&str]) -> Value {
    if let Some(object) = payload.as_object_mut() {
        object.retain(|name, _| !fields.contains(&name.as_str()));
    }
    payload
}

/// matrix-webhook's answer.
fn reply(status: StatusCode, ret: &str) -> Response {
    json_response(status, &json!({ "status": status.as_u16(), "ret": ret }))
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn plain(status: StatusCode, word: &'static str) -> Response {
    (status, word).into_response()
}

fn slow_down(seconds: u64, response: Response) -> Response {
    ([(header::RETRY_AFTER, seconds.to_string())], response).into_response()
}
