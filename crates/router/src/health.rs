//! Active health checks: each instance is asked for `/health` again and again, on the listener that takes the requests.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use tokio::time::{sleep, timeout};

use crate::body::Outgoing;
use crate::instance::{Finding, Instance};
use crate::settings::Settings;
use crate::state::{Phase, Shared, State};
use crate::upstream::Connection;

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
            instance.prune_idle(settings.upstream_idle);
            let finding = probe(&mut connection, &instance, settings).await;
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

async fn probe(connection: &mut Option<Connection>, instance: &Instance, settings: &Settings) -> Finding {
    let kept = match connection.take() {
        Some(mut kept) => kept.ready().await.then_some(kept),
        None => None,
    };
    let mut open = match kept {
        Some(kept) => kept,
        None => match Connection::open(&instance.address, settings.connect_timeout).await {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Finding::Unhealthy,
            Err(_) => return Finding::Refused,
        },
    };
    let mut request = Request::new(Outgoing::Full(Full::default()));
    *request.uri_mut() = Uri::from_static("/health");
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let answer = async {
        let response = open.send(request).await.ok()?;
        let status = response.status();
        Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok()?;
        Some(status)
    };
    match timeout(settings.health_timeout, answer).await {
        Ok(Some(StatusCode::OK)) => {
            *connection = Some(open);
            Finding::Healthy
        }
        // Its connection broke: whether it is gone shows when connecting anew.
        Ok(None) => match Connection::open(&instance.address, settings.connect_timeout).await {
            Ok(_) => Finding::Unhealthy,
            Err(_) => Finding::Refused,
        },
        Ok(Some(_)) | Err(_) => Finding::Unhealthy,
    }
}
