//! `serve alertmanager`: notifications of Alertmanager's as messages, in place of matrix-alertmanager-receiver.

mod config;
mod data;
mod template;
mod time;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use sha2::{Digest as _, Sha256};

use crate::courier::Courier;
use crate::html::Html;
use crate::message::Message;
use crate::metrics::Room;
use crate::outbox::{Delivery, Refused};
use crate::store::Store;
use data::{Alert, Payload, Shown};

use config::Settings;
pub use config::{
    Account, ComputedValue, Config, Delivery as DeliveryOptions, Error, Http, Messages, Resolved, Templating,
};

/// The largest notification that is taken, in bytes. Alertmanager loses what is refused as too large, and a group can be large.
const MAX_BODY: usize = 4 << 20;

/// The most alerts in one notification.
const MAX_ALERTS: usize = 10_000;

/// The method of a request that was none of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    method: String,
}

/// What is counted, by the names that matrix-alertmanager-receiver has for it.
#[derive(Clone, Debug, Default)]
struct Counted {
    requests: Counter,
    unauthorized: Counter,
    methods: Family<OfMethod, Counter>,
    invalid: Counter,
    alerts: Family<Room, Counter>,
    rendered: Counter,
    not_rendered: Counter,
}

/// What answers Alertmanager.
#[derive(Debug)]
pub struct Alertmanager {
    settings: ArcSwap<Settings>,
    store: Store,
    counted: Counted,
}

impl Alertmanager {
    /// A service that puts what it takes into a courier's store.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(config: &Config, courier: &Courier) -> Result<Arc<Self>, Error> {
        let settings = ArcSwap::from_pointee(config.settings("the configuration", "")?);
        Ok(Arc::new(Self { settings, store: courier.store().clone(), counted: Counted::default() }))
    }

    /// Takes another configuration from the next request on.
    ///
    /// # Errors
    /// It cannot be used; the one before stays.
    pub fn reload(&self, config: &Config) -> Result<(), Error> {
        self.settings.store(Arc::new(config.settings("the configuration", "")?));
        Ok(())
    }

    /// Adds the metrics `matrix_alertmanager_receiver_…`.
    pub fn register(&self, courier: &Courier, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("matrix_alertmanager_receiver");
        let (c, m) = (&self.counted, courier.metrics());
        registry.register("http_requests", "Requests", c.requests.clone());
        registry.register(
            "unauthorized_http_requests",
            "Requests without the right password",
            c.unauthorized.clone(),
        );
        registry.register(
            "unsupported_http_method",
            "Requests with another method than POST",
            c.methods.clone(),
        );
        registry.register("invalid_payload", "Requests that are no notification", c.invalid.clone());
        registry.register("alerts", "Alerts", c.alerts.clone());
        registry.register("templating_success", "Messages made by a template", c.rendered.clone());
        registry.register(
            "templating_failure",
            "Messages that a template could not make",
            c.not_rendered.clone(),
        );
        registry.register("join_room_success", "Rooms joined", m.joined.clone());
        registry.register("join_room_failure", "Attempts to join a room that failed", m.not_joined.clone());
        registry.register("send_success", "Messages that the homeserver has", m.delivered.clone());
        registry.register("send_failure", "Attempts to send that failed", m.retries.clone());
    }

    /// What answers requests; what is none of Alertmanager's goes to `others`.
    pub fn router(
        self: &Arc<Self>,
        metrics: impl Fn() -> Response + Clone + Send + Sync + 'static,
    ) -> Router {
        let state = self.clone();
        Router::new()
            .fallback(move |State(service): State<Arc<Self>>, request: Request| {
                let metrics = metrics.clone();
                async move { service.answer(request, metrics).await }
            })
            .with_state(state)
    }

    async fn answer(&self, request: Request, metrics: impl Fn() -> Response) -> Response {
        let settings = self.settings.load_full();
        let path = request.uri().path();
        if settings.metrics_path.as_deref() == Some(path) && request.method() == Method::GET {
            return metrics();
        }
        let Some(room) = path.strip_prefix(&settings.prefix) else {
            return (StatusCode::NOT_FOUND, format!("rooms are below {}\n", settings.prefix)).into_response();
        };
        let room = percent_decode_str(room).decode_utf8().map(std::borrow::Cow::into_owned);
        self.counted.requests.inc();
        if !settings.allows(request.headers()) {
            self.counted.unauthorized.inc();
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"alertmanager\"")];
            return (StatusCode::UNAUTHORIZED, challenge).into_response();
        }
        if request.method() != Method::POST {
            let known =
                [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
            let method = if known.contains(request.method()) { request.method().as_str() } else { "other" };
            self.counted.methods.get_or_create(&OfMethod { method: method.to_owned() }).inc();
            return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response();
        }
        let Some(room) = room.ok().and_then(|name| settings.room(&name)) else {
            tracing::warn!(
                "a notification for a room that is neither in room-mapping nor a room's ID or alias"
            );
            let text =
                "no such room: write its ID, its alias (with %23 for #) or a name of matrix.room-mapping\n";
            return (StatusCode::NOT_FOUND, text).into_response();
        };
        let Ok(body) = axum::body::to_bytes(Body::new(request.into_body()), MAX_BODY).await else {
            self.counted.invalid.inc();
            return (StatusCode::PAYLOAD_TOO_LARGE, "larger than 4 MiB, or broken off\n").into_response();
        };
        // A list would be taken for a notification's fields in their order.
        let body = body.trim_ascii();
        let parsed =
            if body.starts_with(b"[") { serde_json::from_slice(b"") } else { serde_json::from_slice(body) };
        let payload: Payload = match parsed {
            Ok(payload) => payload,
            Err(error) => {
                self.counted.invalid.inc();
                tracing::warn!(%error, "a request is no notification of Alertmanager's");
                return (StatusCode::BAD_REQUEST, format!("no notification of Alertmanager's: {error}\n"))
                    .into_response();
            }
        };
        if payload.alerts.len() > MAX_ALERTS {
            self.counted.invalid.inc();
            return (StatusCode::PAYLOAD_TOO_LARGE, "more than 10000 alerts: set max_alerts\n")
                .into_response();
        }
        let alerts = u64::try_from(payload.alerts.len()).unwrap_or(u64::MAX);
        self.counted.alerts.get_or_create(&Room { room: room.clone() }).inc_by(alerts);
        let deliveries = self.deliveries(&settings, &payload, &room);
        let doubles = Duration::from_secs(settings.delivery.doubles_within.into());
        match self.store.take(deliveries, doubles).await {
            Ok(accepted) => {
                tracing::info!(room, alerts, messages = accepted.len(), "accepted");
                StatusCode::OK.into_response()
            }
            // Alertmanager sends again after a status from 500 on, and after no other.
            Err(refused) => {
                let wait = if refused == Refused::Full { "30" } else { "5" };
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, wait)], format!("{refused}\n"))
                    .into_response()
            }
        }
    }

    fn deliveries(&self, settings: &Settings, payload: &Payload, room: &str) -> Vec<Delivery> {
        let shown = Shown { payload, templating: &settings.templating };
        match settings.delivery.messages {
            Messages::PerAlert => payload
                .alerts
                .iter()
                .filter_map(|alert| {
                    let key =
                        digest(&[&payload.receiver, &payload.group_key, &alert.identity(), &alert.starts_at]);
                    let dedup = digest(&[&key, &alert.status, alert.end()]);
                    let message = self.message(settings, shown, &alert.status, Some(alert), key)?;
                    Some(Delivery { room: room.to_owned(), message, dedup: Some(dedup) })
                })
                .collect(),
            Messages::PerGroup => {
                let oldest =
                    payload.alerts.iter().map(|alert| alert.starts_at.as_str()).min().unwrap_or_default();
                let key = digest(&[&payload.receiver, &payload.group_key, oldest]);
                let mut parts = vec![key.clone(), payload.status.clone()];
                for alert in &payload.alerts {
                    parts.extend([alert.identity(), alert.status.clone(), alert.starts_at.clone()]);
                    parts.push(alert.end().to_owned());
                }
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                let dedup = digest(&parts);
                let message = self.message(settings, shown, &payload.status, payload.alerts.first(), key);
                message
                    .map(|message| Delivery { room: room.to_owned(), message, dedup: Some(dedup) })
                    .into_iter()
                    .collect()
            }
        }
    }

    /// The message of an alert; none if its template makes nothing of it.
    fn message(
        &self,
        settings: &Settings,
        shown: Shown<'_>,
        status: &str,
        alert: Option<&Alert>,
        key: String,
    ) -> Option<Message> {
        let template = if status == "resolved" { settings.resolved.as_ref() } else { None };
        let rendered = template.unwrap_or(&settings.firing).render(&shown.data(alert));
        let mut html = Html::default();
        match rendered {
            Ok(rendered) => {
                self.counted.rendered.inc();
                html.foreign(&rendered);
            }
            // What a template cannot show is still worth knowing.
            Err(wrong) => {
                self.counted.not_rendered.inc();
                tracing::error!(line = wrong.line, reason = wrong.reason, "a template failed");
                let name =
                    alert.and_then(|alert| alert.labels.get("alertname")).map_or("an alert", String::as_str);
                html.strong(&status.to_uppercase())
                    .text(&format!(" {name} (its template failed: {})", wrong.reason));
            }
        }
        let mut message = html.message();
        if message.plain.trim().is_empty() {
            return None;
        }
        message.notice = settings.delivery.notice;
        match settings.delivery.resolved {
            Resolved::Message => {}
            Resolved::Edit => {
                message.edits = Some(key.clone());
                message.key = Some(key);
            }
            // The first has nothing to answer to, and begins the thread.
            Resolved::Thread => {
                message.thread = Some(key.clone());
                message.key = Some(key);
            }
        }
        Some(message)
    }
}

impl Alert {
    /// What tells it from others.
    fn identity(&self) -> String {
        if !self.fingerprint.is_empty() {
            return self.fingerprint.clone();
        }
        let parts: Vec<&str> =
            self.labels.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]).collect();
        digest(&parts)
    }

    /// When it ended. Before, Alertmanager says when it would end, which changes.
    fn end(&self) -> &str {
        if self.status == "resolved" { &self.ends_at } else { "" }
    }
}

fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..16])
}

impl Settings {
    fn allows(&self, headers: &HeaderMap) -> bool {
        if self.basic.is_none() && self.bearer.is_none() {
            return true;
        }
        let shown =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some((scheme, shown)) = shown.split_once(' ') else { return false };
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.bearer.as_ref().is_some_and(|token| token.is(shown.trim()));
        }
        let (Some((user, password)), true) = (&self.basic, scheme.eq_ignore_ascii_case("basic")) else {
            return false;
        };
        let shown = STANDARD.decode(shown.trim()).ok().and_then(|shown| String::from_utf8(shown).ok());
        let Some((name, word)) = shown.as_deref().and_then(|shown| shown.split_once(':')) else {
            return false;
        };
        // Both are compared, so that time tells nothing of either.
        let (name, word) = (user.is(name), password.is(word));
        name & word
    }

    /// The room that a URL names.
    fn room(&self, name: &str) -> Option<String> {
        let is_room = name.starts_with(['!', '#'])
            && (2..=255).contains(&name.len())
            && !name.contains(char::is_control);
        self.rooms.get(name).cloned().or_else(|| is_room.then(|| name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
