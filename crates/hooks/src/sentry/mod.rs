//! `serve sentry-webhook`: Sentry's integration platform and its legacy plugin "Webhooks".

mod config;
mod format;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::Value;
use service::Signals;

use crate::message::Message;
use crate::outbox::{Delivery, Outbox};
use crate::run::{self, Kind};
use crate::{MAX_BODY, RunError};

pub use config::{Config, Route, Settings};

/// What the handlers share.
#[derive(Debug)]
pub struct Sentry<O> {
    settings: ArcSwap<Settings>,
    outbox: O,
}

impl<O: Outbox> Sentry<O> {
    /// A service that puts what it takes into an outbox.
    pub fn new(settings: Settings, outbox: O) -> Arc<Self> {
        Arc::new(Self { settings: ArcSwap::from_pointee(settings), outbox })
    }

    /// Takes other settings from the next request on.
    pub fn reload(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// What answers requests. Sentry waits a second, so whatever is taken is only kept here and sent later.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/", get(|| async { "This takes Sentry's webhooks at /receive.\n" }))
            .route("/receive", post(receive::<O>))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self.clone())
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
        let service = Sentry::new(settings, store);
        (service.router(), move |settings| service.reload(settings))
    };
    let kind = Kind { name: "sentry-webhook", prefix: "matrix_stack_sentry_webhook", common: Config::common };
    run::run(kind, &config, signals, make, reload).await
}

async fn receive<O: Outbox>(
    State(service): State<Arc<Sentry<O>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let settings = service.settings.load_full();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !is_allowed(&settings, &uri, header, &body) {
        return answer(
            StatusCode::FORBIDDEN,
            r#"{"error":"neither signed with a client secret nor with one in ?secret="}"#,
        );
    }
    let Ok(payload) = serde_json::from_slice::<Value>(&body) else {
        return answer(StatusCode::BAD_REQUEST, r#"{"error":"not JSON"}"#);
    };
    let format::Formatted { about, messages } =
        format::format(header("sentry-hook-resource"), &payload, &settings.include_tags);
    let rooms = settings.rooms(&about);
    let request = Some(header("request-id")).filter(|id| !id.is_empty() && id.len() <= 255);
    let mut deliveries = Vec::new();
    for room in rooms {
        for (at, message) in messages.iter().enumerate() {
            deliveries.push(Delivery {
                room: room.clone(),
                message: Message { notice: settings.notice, ..message.clone() },
                dedup: request.map(|id| format!("{id} {at}")),
            });
        }
    }
    tracing::debug!(
        resource = about.resource,
        project = about.project,
        messages = deliveries.len(),
        "a webhook"
    );
    if !deliveries.is_empty()
        && let Err(error) = service.outbox.accept(deliveries).await
    {
        tracing::error!(%error, "a message was not taken");
        return answer(StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"the message cannot be kept now"}"#);
    }
    answer(StatusCode::OK, "{}")
}

/// Whether a request is signed with a secret, or shows one as the legacy plugin does. Nothing of the body is read before.
fn is_allowed<'a>(settings: &Settings, uri: &Uri, header: impl Fn(&str) -> &'a str, body: &[u8]) -> bool {
    let signature = header("sentry-hook-signature");
    if !signature.is_empty() {
        return settings.secrets.iter().any(|secret| secret.signed(body, signature));
    }
    let mut query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let shown = query.find(|(name, _)| name == "secret").map(|(_, value)| value).unwrap_or_default();
    settings.secrets.iter().any(|secret| secret.is(&shown))
}

fn answer(status: StatusCode, body: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
