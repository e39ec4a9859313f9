//! HTTP/2 in front. Each of its requests becomes one of HTTP/1.1 over a connection in memory, so that there is one life
//! of a request, and one set of rules for it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::spawn_local;

use crate::answer;
use crate::engine::{Peer, Worker};
use crate::failure::Failure;
use crate::proxy;
use crate::state::{Phase, Shared};
use crate::stream::{Io, Stream};

/// How much of a body may lie between the two protocols, each way, in bytes.
const BETWEEN: usize = 64 << 10;

/// The most requests at once on one connection.
const MAX_STREAMS: u32 = 128;

#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        spawn_local(async {
            future.await;
        });
    }
}

type Body = Either<Incoming, Full<Bytes>>;

/// Serves a client's connection to its end.
pub(crate) async fn serve(worker: &Rc<Worker>, state: &Shared, io: impl Io + 'static, peer: Peer) {
    let service = service_fn(|request: Request<Incoming>| {
        let (worker, state) = (worker.clone(), state.clone());
        async move {
            let response = match forward(worker, state, peer, request).await {
                Ok(response) => response.map(Either::Left),
                Err(_) => answer::failure(Failure::Reset).map(|body| Either::Right(Full::new(body))),
            };
            Ok::<Response<Body>, Infallible>(response)
        }
    });
    let settings = state.active.load().settings().clone();
    let mut builder = http2::Builder::new(OnThisThread);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(settings.max_head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(settings.idle_timeout / 2)
        .keep_alive_timeout(settings.idle_timeout / 2);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    if worker.until(Phase::Leaving, connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        // What goes wrong on it is the client's own.
        let _ = connection.await;
    }
}

/// Has a request answered as if it were of HTTP/1.1.
async fn forward(
    worker: Rc<Worker>,
    state: Shared,
    peer: Peer,
    request: Request<Incoming>,
) -> hyper::Result<Response<Incoming>> {
    let (near, far) = tokio::io::duplex(BETWEEN);
    spawn_local(async move { proxy::serve(&worker, &state, Stream::polled(far), peer).await });
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await?;
    spawn_local(connection);

    let (mut head, body) = request.into_parts();
    head.version = Version::HTTP_11;
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::try_from(authority.as_str())
    {
        head.headers.insert(HOST, host);
    }
    let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from(target);
    sender.send_request(Request::from_parts(head, body.boxed())).await
}
