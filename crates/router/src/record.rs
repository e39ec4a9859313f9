//! The account of one request: filled in on its way, written once at its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, StatusCode};
use model::Role;
use routes::Class;

use crate::access::{Line, timestamp};
use crate::failure::{Blame, Failure};
use crate::headers::TraceId;
use crate::instance::Instance;
use crate::key::KeyKind;
use crate::metrics::Outcome;
use crate::state::{RequestId, State};

/// The account of one request. If it is dropped unfinished, the client went away.
#[derive(Debug)]
pub(crate) struct Record {
    state: Arc<State>,
    started: Instant,
    pub id: RequestId,
    pub method: Method,
    /// Path and query without secrets; empty where nobody will read it.
    pub path: String,
    pub client: Option<IpAddr>,
    pub trace_id: Option<TraceId>,
    pub class: Option<&'static Class>,
    pub role: Option<Role>,
    pub instance: Option<Arc<Instance>>,
    pub status: Option<StatusCode>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub upstream: Option<Duration>,
    pub retried: u32,
    pub key: Option<KeyKind>,
    finished: bool,
}

impl Record {
    pub(crate) fn new(state: Arc<State>, method: Method, path: String, client: Option<IpAddr>) -> Self {
        let id = state.next_request_id();
        state.under_way.fetch_add(1, Ordering::AcqRel);
        Self {
            state,
            started: Instant::now(),
            id,
            method,
            path,
            client,
            trace_id: None,
            class: None,
            role: None,
            instance: None,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            upstream: None,
            retried: 0,
            key: None,
            finished: false,
        }
    }

    /// Writes it down.
    pub(crate) fn finish(&mut self, failure: Option<Failure>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        self.state.under_way.fetch_sub(1, Ordering::AcqRel);
        let duration = self.started.elapsed();
        let metrics = &self.state.metrics;
        metrics.request(
            self.class,
            self.role,
            self.instance.as_deref(),
            outcome(failure, self.status),
            duration,
        );
        if let Some(instance) = &self.instance {
            instance.requests.fetch_add(1, Ordering::Relaxed);
            if failure.is_some_and(|failure| failure.blame() == Blame::Upstream) {
                instance.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !self.state.access.is_on() {
            return;
        }
        let (class, role) = (self.class.map(|class| class.name), self.role.map(Role::name));
        let client = self.client.map(|client| client.to_string());
        let line = Line {
            time: timestamp(SystemTime::now()),
            request_id: self.id.as_str(),
            trace_id: self.trace_id.as_ref().map(TraceId::as_str),
            client: client.as_deref().unwrap_or("unix"),
            method: self.method.as_str(),
            path: &self.path,
            class,
            role,
            instance: self.instance.as_ref().map(|instance| &*instance.name),
            status: self.status.map(|status| status.as_u16()),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration_ms: milliseconds(duration),
            upstream_ms: self.upstream.map(milliseconds),
            failure: failure.map(Failure::label),
            retried: self.retried,
            key: self.key.map(KeyKind::label),
        };
        if !self.state.access.log(&line) {
            metrics.access_log_dropped.inc();
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish(Some(Failure::ClientGone));
    }
}

/// Milliseconds to three places.
fn milliseconds(duration: Duration) -> f64 {
    // Exact up to 2^53 microseconds, 285 years.
    #[expect(clippy::cast_precision_loss, reason = "no request takes centuries")]
    let micros = duration.as_micros() as f64;
    micros / 1000.0
}

fn outcome(failure: Option<Failure>, status: Option<StatusCode>) -> Outcome {
    match (failure, status.map_or(0, |status| status.as_u16() / 100)) {
        (Some(failure), _) => Outcome::Failed(failure),
        (None, hundreds) => Outcome::Answered(hundreds),
    }
}
