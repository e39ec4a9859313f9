//! Connections to instances: making them, sending one request on one, and what its failure means.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use model::Address;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::body::Outgoing;
use crate::failure::Failure;

/// The largest response head that is read from an instance, in bytes.
const MAX_RESPONSE_HEAD: usize = 64 << 10;

/// A connection to an instance, on which one request at a time can be sent.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Outgoing>,
    /// Bytes written to the socket so far.
    written: Arc<AtomicU64>,
    used: Instant,
}

impl Connection {
    /// Connects.
    ///
    /// A unix socket whose backlog is full says so at once where TCP would wait: it is asked again until the time is up.
    pub(crate) async fn open(address: &Address, within: Duration) -> io::Result<Self> {
        let connect = async {
            match address {
                Address::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(stream))
                }
                Address::Unix { path } => loop {
                    match UnixStream::connect(path).await {
                        Ok(stream) => break Ok(Socket::Unix(stream)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        Err(error) => break Err(error),
                    }
                },
            }
        };
        let socket =
            timeout(within, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let written = Arc::new(AtomicU64::new(0));
        let io = TokioIo::new(Counted { socket, written: written.clone() });
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_RESPONSE_HEAD)
            .handshake::<_, Outgoing>(io)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            // What goes wrong here is reported to whoever sent the request.
            let _ = connection.await;
        });
        Ok(Self { sender, written, used: Instant::now() })
    }

    /// Whether it is still open, and was not idle for too long.
    pub(crate) fn usable(&self, max_age: Duration) -> bool {
        !self.sender.is_closed() && self.used.elapsed() < max_age
    }

    /// Whether it can take a request now.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Waits until it can take a request. False if it was closed instead.
    pub(crate) async fn ready(&mut self) -> bool {
        self.used = Instant::now();
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and waits for the head of the response. Dropping the future closes the connection.
    pub(crate) async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, Failure> {
        let before = self.written.load(Ordering::Acquire);
        self.used = Instant::now();
        let result = self.sender.try_send_request(request).await;
        match result {
            // No upgrade was asked for, so a switch of protocols answers nothing.
            Ok(response) if response.status() == http::StatusCode::SWITCHING_PROTOCOLS => {
                Err(Failure::Garbage)
            }
            Ok(response) => Ok(response),
            Err(mut refused) => {
                let unsent =
                    refused.take_message().is_some() || self.written.load(Ordering::Acquire) == before;
                let error = refused.into_error();
                Err(if unsent {
                    Failure::ResetUnsent
                } else if error.is_parse() {
                    Failure::Garbage
                } else {
                    Failure::Reset
                })
            }
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket that counts what was written to it: the one sure sign of whether a request was sent.
#[derive(Debug)]
struct Counted {
    socket: Socket,
    written: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.written.fetch_add(*bytes as u64, Ordering::Release);
        }
        result
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.count(result)
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
        self.count(result)
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
