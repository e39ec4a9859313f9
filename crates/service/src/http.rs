//! HTTP/1.1 on a listener, with bounds on what a client may take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::Listener;

/// How many connections are open at once; the rest wait in the socket's queue.
const CONNECTIONS: usize = 8192;

/// How long a head may take to arrive, and a connection may lie idle.
const HEAD: Duration = Duration::from_secs(30);

/// How large a head may be.
const HEAD_BYTES: usize = 32 << 10;

/// Who is at the other end of a connection: an extension of each request. None over a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub Option<SocketAddr>);

/// Serves until `end`, then takes no more connections, closes those that lie idle, and lets requests finish for `drain`.
pub async fn serve(listener: Listener, app: Router, end: impl Future<Output = ()>, drain: Duration) {
    /// Nothing that a client does may make accepting spin.
    const PAUSE: Duration = Duration::from_millis(50);
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = GracefulShutdown::new();
    let mut end = std::pin::pin!(end);
    loop {
        let accept = async {
            let place = open.clone().acquire_owned().await;
            let stream = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    // It fails where the client is gone already.
                    let _ = stream.set_nodelay(true);
                    (Box::new(stream) as Box<dyn Stream>, Peer(Some(peer)))
                }),
                Listener::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| (Box::new(stream) as Box<dyn Stream>, Peer(None))),
            };
            (place, stream)
        };
        let (place, (stream, peer)) = tokio::select! {
            () = &mut end => break,
            (place, accepted) = accept => match accepted {
                Ok(accepted) => (place, accepted),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let app = TowerToHyperService::new(app.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request: Request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            app.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // What a client does wrong, or that it goes away, is its own affair.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection failed");
            }
            drop(place);
        });
    }
    drop(listener);
    if timeout(drain, connections.shutdown()).await.is_err() && !drain.is_zero() {
        tracing::warn!("requests did not finish in time and are cut");
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::sync::{Notify, oneshot};

    use super::*;
    use crate::bind;

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn requests_know_their_peer_and_finish_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let started = Arc::new(Notify::new());
        let going_on = Arc::new(Notify::new());
        let app = || {
            let (started, going_on) = (started.clone(), going_on.clone());
            Router::new()
                .route(
                    "/peer",
                    get(|Extension(Peer(peer)): Extension<Peer>| async move { format!("{peer:?}") }),
                )
                .route(
                    "/slow",
                    get(|| async move {
                        started.notify_one();
                        going_on.notified().await;
                        "slow"
                    }),
                )
        };
        let unix = bind("listen", &format!("unix:{}", path.display()).parse().unwrap()).await.unwrap();
        tokio::spawn(serve(unix, app(), std::future::pending(), Duration::ZERO));
        assert!(ask(UnixStream::connect(&path).await.unwrap(), "/peer").await.ends_with("\r\n\r\nNone"));

        let tcp = bind("listen", &"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let Listener::Tcp(socket) = &tcp else { unreachable!("it is of TCP") };
        let address = socket.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(tcp, app(), async { drop(ended.await) }, Duration::from_secs(20)));
        let answer = ask(TcpStream::connect(address).await.unwrap(), "/peer").await;
        assert!(answer.contains("Some(127.0.0.1:"), "{answer}");
        let slow =
            tokio::spawn(async move { ask(TcpStream::connect(address).await.unwrap(), "/slow").await });
        started.notified().await;
        end.send(()).unwrap();
        // Nobody else is taken, and who is being served is served to the end.
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        going_on.notify_one();
        assert!(slow.await.unwrap().ends_with("\r\n\r\nslow"));
        serving.await.unwrap();
    }
}
