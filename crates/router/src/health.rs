//! Active health checks: each instance is asked for `/health` again and again, on the listener that takes the requests.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

use crate::instance::{Finding, Instance};
use crate::settings::Settings;
use crate::state::{Phase, Shared, State};
use crate::upstream::{Socket, connect};

/// Begins to check an instance, until the router has no use for it any more.
pub(crate) fn start(state: &Shared, instance: &Arc<Instance>) {
    tokio::spawn(check(Arc::downgrade(state), instance.clone()));
}

async fn check(state: Weak<State>, instance: Arc<Instance>) {
    let mut connection = None;
    // So that not all are asked at the same moment.
    let mut spread = f64::from(u8::try_from(instance.seed % 100).unwrap_or(0)) / 100.0;
    loop {
        let pause = {
            let Some(state) = state.upgrade() else { return };
            let active = state.active.load_full();
            let wanted = active.instance(&instance.name).is_some_and(|known| Arc::ptr_eq(known, &instance));
            if !wanted || *state.phase.borrow() >= Phase::Ending {
                instance.forget_connections();
                return;
            }
            let settings = active.settings();
            let finding = probe(&mut connection, &instance, settings).await;
            // It may have been before.
            let _ = instance.checked.set(());
            if instance.note(finding, settings) {
                state.available();
            }
            if finding == Finding::Healthy && instance.is_ready() {
                settings.health_interval.mul_f64(1.0 - std::mem::take(&mut spread))
            } else {
                settings.health_interval_down
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            // It has just gone: no need to hurry, as it takes a while to come back.
            () = instance.check.notified() => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The largest answer to a health check that is read, in bytes.
const MAX_ANSWER: usize = 4096;

type Connection = SendRequest<Empty<Bytes>>;

/// Connects, or finds out what keeps it from that.
async fn open(instance: &Instance, settings: &Settings) -> Result<Connection, Finding> {
    let socket = match timeout(settings.connect_timeout, connect(instance, settings.connect_timeout)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(_)) => return Err(Finding::Refused),
        Err(_) => return Err(Finding::Unhealthy),
    };
    let connected = match socket {
        Socket::Tcp(stream) => attend(handshake(TokioIo::new(stream)).await),
        Socket::Unix(stream) => attend(handshake(TokioIo::new(stream)).await),
    };
    connected.ok_or(Finding::Unhealthy)
}

/// Has a connection's bytes moved; what goes wrong there is reported to whoever sent the request.
fn attend<C>(connected: hyper::Result<(Connection, C)>) -> Option<Connection>
where
    C: Future + Send + 'static,
    C::Output: Send,
{
    let (sender, connection) = connected.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

async fn probe(connection: &mut Option<Connection>, instance: &Instance, settings: &Settings) -> Finding {
    let kept = match connection.take() {
        Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
        None => None,
    };
    let mut open_one = match kept {
        Some(kept) => kept,
        None => match open(instance, settings).await {
            Ok(open) => open,
            Err(finding) => return finding,
        },
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from_static("/health");
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let answer = async {
        let response = open_one.send_request(request).await.ok()?;
        let status = response.status();
        Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok()?;
        Some(status)
    };
    match timeout(settings.health_timeout, answer).await {
        Ok(Some(StatusCode::OK)) => {
            *connection = Some(open_one);
            Finding::Healthy
        }
        // Its connection broke: whether it is gone shows when connecting anew.
        Ok(None) => open(instance, settings).await.map_or_else(|finding| finding, |_| Finding::Unhealthy),
        Ok(Some(_)) | Err(_) => Finding::Unhealthy,
    }
}
