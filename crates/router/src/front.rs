//! The client's side: listeners, connections, and what bounds them.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{Instant, sleep, timeout};

use crate::engine::Peer;
use crate::state::{Open, Phase, Shared};
use crate::tls::Tls;
use crate::upstream::Socket;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket. Whoever connects has no address of its own, so `X-Forwarded-For` is the only one there is.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Listener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Option<IpAddr>)>> {
        match self {
            Self::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, peer)| {
                // Without it small answers would wait for the client's acknowledgements.
                let _ = stream.set_nodelay(true);
                (Socket::Tcp(stream), Some(peer.ip().to_canonical()))
            }),
            Self::Unix(listener) => {
                listener.poll_accept(cx).map_ok(|(stream, _)| (Socket::Unix(stream), None))
            }
        }
    }

    async fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

/// What is done with the requests of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// They are forwarded.
    Public,
    /// They are about the router: metrics, health.
    Private,
}

/// Counts a public listener as long as it may accept connections.
#[derive(Debug)]
pub(crate) struct Listening(Shared);

impl Listening {
    pub(crate) fn new(state: Shared) -> Self {
        state.listening.fetch_add(1, Ordering::AcqRel);
        Self(state)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.fetch_sub(1, Ordering::AcqRel);
        self.0.closed.notify_waiters();
    }
}

/// Serves clients until the router stops, or `end` comes.
pub(crate) async fn serve_public(listening: Listening, listener: Listener, end: impl Future<Output = ()>) {
    serve(listening.0.clone(), listener, Purpose::Public, end).await;
}

/// Accepts connections until the router stops, or `end` comes.
pub(crate) async fn serve(
    state: Shared,
    listener: Listener,
    purpose: Purpose,
    end: impl Future<Output = ()>,
) {
    let mut end = pin!(end);
    // People want to see how the end goes, so the private listener stays until it has come.
    let last = if purpose == Purpose::Public { Phase::Serving } else { Phase::Ending };
    let mut phase = state.phase.subscribe();
    loop {
        if *phase.borrow_and_update() > last {
            break;
        }
        if purpose == Purpose::Public {
            let closed = state.closed.notified();
            let max = state.active.load().settings().max_connections.max(1);
            if state.connections.load(Ordering::Acquire) >= max {
                // The rest waits in the backlog.
                tokio::select! {
                    () = closed => {}
                    () = sleep(Duration::from_millis(100)) => {}
                    _ = phase.changed() => {}
                    () = &mut end => break,
                }
                continue;
            }
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => spawn_connection(&state, socket, peer, purpose),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; if files have run out, raise the limit (ulimit -n)");
                    // It would fail again at once, and accepting is not all there is to do.
                    sleep(Duration::from_millis(50)).await;
                }
            },
            _ = phase.changed() => {}
            () = &mut end => break,
        }
    }
    // Who had connected before the end shall not be cut off: what waits in the backlog is taken in. A moment's wait,
    // because the runtime learns of what waits only when it looks.
    let until = Instant::now() + CLOSING_TIME;
    while let Ok(Ok((socket, peer))) = timeout(LAST_CALL, listener.accept()).await
        && Instant::now() < until
    {
        spawn_connection(&state, socket, peer, purpose);
    }
}

/// How long nobody new may come before a listener closes for good.
const LAST_CALL: Duration = Duration::from_millis(10);

/// When it closes however many still come.
const CLOSING_TIME: Duration = Duration::from_millis(500);

fn spawn_connection(state: &Shared, socket: Socket, peer: Option<IpAddr>, purpose: Purpose) {
    if purpose == Purpose::Private {
        tokio::spawn(serve_private(state.clone(), socket));
        return;
    }
    state.metrics.connections_opened.inc();
    let active = state.active.load();
    let proxied = active.settings().proxy_protocol.as_ref();
    // A unix socket lets in whom its directory does.
    if let (Some(protocol), Some(address)) = (proxied, peer)
        && !protocol.allows(address)
    {
        state.metrics.unproxied("untrusted");
        return;
    }
    // Counted before it is served, so that the limit holds and the end waits for it.
    let open = Open::new(state.clone());
    let tls = active.snapshot.tls.as_ref().map(Tls::acceptor);
    let proto = if tls.is_some() { "https" } else { "http" };
    let peer = Peer { address: peer, proto, proxied: proxied.is_some() };
    // It fails where files or threads have run out; then the connection is closed.
    if let Ok(socket) = socket.loosen() {
        state.engine.serve(open, socket, peer, tls);
    }
}

/// Serves a connection of the private listener.
async fn serve_private(state: Shared, socket: Socket) {
    let settings = state.active.load().settings().clone();
    let service = service_fn(|request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(private(&state, &request)))
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(settings.idle_timeout);
    let connection = async {
        // What goes wrong there is the asker's own.
        let _ = match socket {
            Socket::Tcp(stream) => builder.serve_connection(TokioIo::new(stream), &service).await,
            Socket::Unix(stream) => builder.serve_connection(TokioIo::new(stream), &service).await,
        };
    };
    let mut phase = state.phase.subscribe();
    tokio::select! {
        () = connection => {}
        // The sender lives in the state.
        _ = phase.wait_for(|phase| *phase >= Phase::Cut) => {}
    }
}

/// The private listener's pages.
fn private(state: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, content_type: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into());
    }
    match request.uri().path() {
        "/metrics" => text(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            state.metrics_text(),
        ),
        "/health" => text(StatusCode::OK, "application/json", r#"{"status":"ok"}"#.into()),
        "/ready" => match state.ready() {
            Ok(()) => text(StatusCode::OK, "application/json", r#"{"ready":true}"#.into()),
            Err(reasons) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "application/json",
                serde_json::json!({ "ready": false, "unserved": reasons }).to_string(),
            ),
        },
        _ => text(StatusCode::NOT_FOUND, "text/plain", "/metrics, /health, /ready\n".into()),
    }
}
