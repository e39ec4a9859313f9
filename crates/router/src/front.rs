//! The client's side: listeners, connections, and what bounds them.

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::proxy;
use crate::settings::Settings;
use crate::state::{Phase, Shared};

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

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
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

/// Serves clients until the router stops.
pub(crate) async fn serve_public(listening: Listening, listener: Listener) {
    serve(listening.0.clone(), listener, Purpose::Public).await;
}

/// Accepts connections until the router stops.
pub(crate) async fn serve(state: Shared, listener: Listener, purpose: Purpose) {
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
                tokio::select! { () = closed => {} _ = phase.changed() => {} () = sleep(Duration::from_millis(100)) => {} }
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
    let state = state.clone();
    if purpose == Purpose::Public {
        state.metrics.connections_opened.inc();
        // Counted before it runs, so that the limit holds and the end waits for it.
        state.connections.fetch_add(1, Ordering::AcqRel);
    }
    tokio::spawn(async move {
        let settings = state.active.load().settings().clone();
        let progress = Arc::new(AtomicU8::new(NEW));
        let io = TokioIo::new(Watched::new(socket, progress.clone(), &settings));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(settings.idle_timeout)
            .max_buf_size(settings.max_head_bytes.max(8192))
            .max_headers(settings.max_headers);
        let service = service_fn(|request: Request<Incoming>| {
            let (state, progress) = (state.clone(), progress.clone());
            async move {
                progress.store(BUSY, Ordering::Release);
                let response = match purpose {
                    Purpose::Public => proxy::handle(state, peer, request).await,
                    Purpose::Private => private(&state, &request).map(crate::body::Reply::Full),
                };
                progress.store(IDLE, Ordering::Release);
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let mut phase = state.phase.subscribe();
        let result = loop {
            let now = *phase.borrow_and_update();
            if now >= Phase::Cut {
                break Ok(());
            }
            if now > Phase::Serving && purpose == Purpose::Public {
                if progress.load(Ordering::Acquire) == NEW {
                    // Whoever has just connected is about to ask.
                    tokio::select! {
                        result = connection.as_mut() => break result,
                        () = sleep(FIRST_REQUEST) => {}
                    }
                }
                connection.as_mut().graceful_shutdown();
            }
            tokio::select! {
                result = connection.as_mut() => break result,
                _ = phase.changed() => {}
            }
        };
        if let Err(error) = result
            && (error.is_parse() || error.is_parse_too_large())
        {
            state.metrics.malformed.inc();
        }
        if purpose == Purpose::Public {
            state.connections.fetch_sub(1, Ordering::AcqRel);
            state.closed.notify_waiters();
        }
    });
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

/// Nothing has ever come.
const NEW: u8 = 0;
/// Nothing of the next request has come.
const IDLE: u8 = 1;
/// A request's head is coming.
const HEAD: u8 = 2;
/// A request is being served.
const BUSY: u8 = 3;

/// How long a connection on which nothing has come yet may still bring its first request when the router stops.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

/// A client's socket, which fails when the client sends a request's head too slowly or does not read what it gets.
#[derive(Debug)]
struct Watched {
    socket: Socket,
    stage: Arc<AtomicU8>,
    head_timeout: Duration,
    write_stall: Duration,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
    write_waits: bool,
}

impl Watched {
    fn new(socket: Socket, stage: Arc<AtomicU8>, settings: &Settings) -> Self {
        Self {
            socket,
            stage,
            head_timeout: settings.head_timeout,
            write_stall: settings.write_stall,
            reading: None,
            writing: None,
            write_waits: false,
        }
    }

    /// Starts, or starts anew, a timer.
    fn set(timer: &mut Option<Pin<Box<Sleep>>>, after: Duration) {
        let until = Instant::now() + after;
        match timer {
            Some(timer) => timer.as_mut().reset(until),
            None => *timer = Some(Box::pin(tokio::time::sleep_until(until))),
        }
    }

    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.write_waits = false;
            return result;
        }
        if !self.write_waits {
            self.write_waits = true;
            Self::set(&mut self.writing, self.write_stall);
        }
        if self.writing.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")));
        }
        Poll::Pending
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let result = match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if result.is_ready() {
            if buf.filled().len() > before && this.stage.load(Ordering::Acquire) < HEAD {
                this.stage.store(HEAD, Ordering::Release);
                Self::set(&mut this.reading, this.head_timeout);
            }
            return result;
        }
        if this.stage.load(Ordering::Acquire) == HEAD
            && this.reading.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the request's head takes too long",
            )));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
