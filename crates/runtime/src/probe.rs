//! Requests to the listeners of Synapse and the router, over unix sockets or TCP.

use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use model::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The longest answer that is read.
const MAX_ANSWER: usize = 16 << 20;

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(address: &Address) -> io::Result<Pin<Box<dyn Stream>>> {
    Ok(match address {
        Address::Unix { path } => Box::pin(UnixStream::connect(path).await?),
        Address::Tcp { host, port } => Box::pin(TcpStream::connect((host.as_str(), *port)).await?),
    })
}

/// Whether `GET /health` is answered with 200 within the limit; else why not.
pub(crate) async fn health(address: &Address, limit: Duration) -> Result<(), String> {
    let ask = async {
        let mut stream = connect(address).await?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        io::Result::Ok(head)
    };
    match timeout(limit, ask).await {
        Ok(Ok(head)) if head.ends_with(b" 200") => Ok(()),
        Ok(Ok(head)) => Err(format!("/health answered `{}`", String::from_utf8_lossy(&head).trim())),
        Ok(Err(error)) => Err(format!("/health: {error}")),
        Err(_) => Err(format!("/health did not answer within {} s", limit.as_secs_f32())),
    }
}

/// Waits until a process answers `GET /health` with 200, or until the limit is over; then why it is not healthy.
pub async fn wait_until_healthy(address: &Address, limit: Duration) -> Result<(), String> {
    const PAUSE: Duration = Duration::from_millis(500);
    let end = Instant::now() + limit;
    loop {
        match health(address, Duration::from_secs(2)).await {
            Err(_) if Instant::now() < end => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
}

/// One request with a JSON body, or none, as whose token it is, and its answer: the status and the body, or null where it is
/// not JSON.
pub async fn json(
    address: &Address,
    token: Option<&str>,
    method: Method,
    path: &str,
    body: Option<&serde_json::Value>,
    limit: Duration,
) -> io::Result<(u16, serde_json::Value)> {
    let body = body.map(serde_json::Value::to_string).unwrap_or_default();
    let (status, bytes) = ask(address, token, method, path, body, limit).await?;
    Ok((status, serde_json::from_slice(&bytes).unwrap_or(serde_json::Value::Null)))
}

/// One GET request and its answer: the status and the body.
pub(crate) async fn get(address: &Address, path: &str, limit: Duration) -> io::Result<(u16, Bytes)> {
    ask(address, None, Method::GET, path, String::new(), limit).await
}

async fn ask(
    address: &Address,
    token: Option<&str>,
    method: Method,
    path: &str,
    body: String,
    limit: Duration,
) -> io::Result<(u16, Bytes)> {
    let exchange = async {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(connect(address).await?)).await.map_err(io::Error::other)?;
        let serving = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            // Synapse expects a proxy in front, and has no address of the client at all on a unix socket.
            .header("x-forwarded-for", "127.0.0.1")
            .header("x-forwarded-proto", "https");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let bytes = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        serving.abort();
        Ok((status, bytes))
    };
    timeout(limit, exchange).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs_f32())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn answer_once(answer: &'static [u8]) -> (tempfile::TempDir, Address) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).await.unwrap();
            assert!(request.starts_with(b"GET ") || request.starts_with(b"POST "));
            stream.write_all(answer).await.unwrap();
        });
        (dir, Address::Unix { path })
    }

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn health_means_200() {
        let (_dir, address) = answer_once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK");
        assert_eq!(health(&address, LIMIT).await, Ok(()));
        let (_dir, address) = answer_once(b"HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert!(health(&address, LIMIT).await.unwrap_err().contains("503"));
        let gone = Address::Unix { path: "/nonexistent/x.sock".into() };
        assert!(health(&gone, LIMIT).await.is_err());
    }

    #[tokio::test]
    async fn a_process_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let address = Address::Unix { path: path.clone() };
        assert!(wait_until_healthy(&address, Duration::ZERO).await.is_err());
        let late = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let listener = UnixListener::bind(&path).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK").await.unwrap();
        };
        let (waited, ()) = tokio::join!(wait_until_healthy(&address, Duration::from_secs(20)), late);
        assert_eq!(waited, Ok(()));
    }

    #[tokio::test]
    async fn answers_are_parsed() {
        let (_dir, address) = answer_once(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\n{\"a\":1}");
        let (status, body) =
            json(&address, None, Method::GET, "/_synapse/admin/x", None, LIMIT).await.unwrap();
        assert_eq!((status, body), (400, serde_json::json!({"a": 1})));
    }
}
