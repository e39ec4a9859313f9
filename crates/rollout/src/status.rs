//! How a rollout is, for those who watch it: `/health`, `/ready` and `/metrics` on a private port.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::cluster::News;
use crate::next::{Next, Step};

/// After so long without a look at the cluster that worked, a rollout is not ready.
const STALE: Duration = Duration::from_secs(60);

/// How many may ask at the same time, and how long each may take.
const CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// How a rollout is. Clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    steps: Family<[(&'static str, &'static str); 1], Counter>,
    failures: Counter,
    complete: Gauge,
    refused: Gauge,
    waiting: Gauge,
    active: Gauge,
    seen: Mutex<Option<Instant>>,
    told: Mutex<Option<(News, String)>>,
}

impl Default for Inner {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("matrix_stack_rollout");
        let steps = Family::default();
        registry.register("steps", "Steps taken, by kind", steps.clone());
        let failures = Counter::default();
        registry.register("failures", "Rounds that ended with a request that failed", failures.clone());
        let mut gauge = |name, help| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            complete: gauge("complete", "1 while the desired stack is applied and all of its pods are ready"),
            refused: gauge("refused", "1 while the desired stack is refused"),
            waiting: gauge("waiting", "How many things are waited for"),
            active: gauge("active", "1 while this is the rollout that acts"),
            registry,
            steps,
            failures,
            seen: Mutex::default(),
            told: Mutex::default(),
        }
    }
}

impl Status {
    pub(crate) fn failed(&self) {
        self.0.failures.inc();
    }

    pub(crate) fn holds(&self, holds: bool) {
        self.0.active.set(holds.into());
        // Whoever waits for its turn is well.
        self.look();
    }

    pub(crate) fn saw(&self, next: &Next) {
        self.0.complete.set(next.is_done().into());
        self.0.refused.set(next.refused.is_some().into());
        self.0.waiting.set(i64::try_from(next.waiting.len()).unwrap_or(i64::MAX));
        self.look();
    }

    fn look(&self) {
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(crate) fn did(&self, step: &Step) {
        let kind = match step {
            Step::Mark { held: Some(_), .. } => "hold",
            Step::Mark { held: None, .. } => "configure",
            Step::Scale { .. } => "scale",
            Step::Release { .. } => "release",
            Step::Apply { .. } => "apply",
        };
        self.0.steps.get_or_create_owned(&[("step", kind)]).inc();
    }

    /// Whether this is not what was said last.
    pub(crate) fn is_new(&self, news: News, note: &str) -> bool {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Some((news, note.to_owned()));
        let differs = *told != new;
        *told = new;
        differs
    }

    fn is_ready(&self) -> bool {
        let seen = *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|seen| seen.elapsed() < STALE)
    }

    /// Answers whoever asks, for ever.
    pub async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let status = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| std::future::ready(status.answer(&request)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(PATIENCE * 6, connection).await;
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (status, kind, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/health") => (StatusCode::OK, "text/plain", "OK\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/ready") if self.is_ready() => {
                (StatusCode::OK, "text/plain", "OK\n".to_owned())
            }
            (&Method::GET | &Method::HEAD, "/ready") => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                "the cluster could not be looked at lately; the log says why\n".to_owned(),
            ),
            (&Method::GET | &Method::HEAD, "/metrics") => {
                let mut text = String::new();
                encode(&mut text, &self.0.registry).map_err(io::Error::other)?;
                (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            _ => (StatusCode::NOT_FOUND, "text/plain", "there are /health, /ready and /metrics\n".to_owned()),
        };
        Response::builder()
            .status(status)
            .header(CONTENT_TYPE, kind)
            .body(Full::new(body.into()))
            .map_err(io::Error::other)
    }
}
