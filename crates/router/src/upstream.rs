//! Connections to instances: making them, and keeping them for the next request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use model::Address;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};
use uring::Ring;

use crate::instance::Instance;
use crate::stream::{Io, Stream};

/// A connection to an instance, on which one request at a time is sent.
pub(crate) struct Upstream {
    pub stream: Stream,
    /// What came and was not used yet.
    pub buffer: Bytes,
    epoch: u64,
    used: Instant,
}

/// Connects to an instance, as tokio does it. Several addresses are tried in turn, each for its share of the time.
///
/// A unix socket whose backlog is full says so at once where TCP would wait: it is asked again.
pub(crate) async fn connect(instance: &Instance, within: Duration) -> io::Result<Socket> {
    match &instance.address {
        Address::Tcp { host, .. } => {
            let addresses = instance.addresses();
            let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
            let share = within / left.max(1);
            let mut failure =
                io::Error::new(io::ErrorKind::NotFound, format!("no address is known for the name {host}"));
            for address in addresses.iter() {
                left -= 1;
                let connecting = TcpStream::connect(address);
                // The last has all the time that is left.
                let connected = if left == 0 {
                    connecting.await
                } else {
                    timeout(share, connecting).await.unwrap_or_else(|late| Err(late.into()))
                };
                match connected {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(Socket::Tcp(stream));
                    }
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        }
        Address::Unix { path } => loop {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                result => return result.map(Socket::Unix),
            }
        },
    }
}

/// A connected socket, not yet bound to a thread.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The same, between two threads' runtimes.
#[derive(Debug)]
pub(crate) enum Loose {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// Frees the socket from this thread's runtime.
    pub(crate) fn loosen(self) -> io::Result<Loose> {
        Ok(match self {
            Self::Tcp(stream) => Loose::Tcp(stream.into_std()?),
            Self::Unix(stream) => Loose::Unix(stream.into_std()?),
        })
    }
}

impl Loose {
    /// Binds the socket to this thread's runtime, as tokio does it.
    pub(crate) fn tighten(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// The socket, as tokio reads and writes it.
    pub(crate) fn polled(self) -> io::Result<Box<dyn Io>> {
        Ok(match self.tighten()? {
            Socket::Tcp(stream) => Box::new(stream),
            Socket::Unix(stream) => Box::new(stream),
        })
    }

    /// Binds the socket to this thread: to its ring, if it has one.
    pub(crate) fn bind(self, ring: Option<&Ring>) -> io::Result<Stream> {
        // A ring waits by itself, unless the socket says that it must not.
        match (self, ring) {
            (Self::Tcp(stream), Some(ring)) => {
                stream.set_nonblocking(false)?;
                Ok(Stream::Ring(ring.socket(stream.into())))
            }
            (Self::Unix(stream), Some(ring)) => {
                stream.set_nonblocking(false)?;
                Ok(Stream::Ring(ring.socket(stream.into())))
            }
            (Self::Tcp(stream), None) => Ok(Stream::polled(TcpStream::from_std(stream)?)),
            (Self::Unix(stream), None) => Ok(Stream::polled(UnixStream::from_std(stream)?)),
        }
    }
}

impl Upstream {
    /// Connects to an instance. Whoever waits for it gives up by itself after this time.
    pub(crate) async fn open(instance: &Instance, within: Duration, ring: Option<&Ring>) -> io::Result<Self> {
        let epoch = instance.epoch();
        let stream = match connect(instance, within).await? {
            socket if ring.is_some() => socket.loosen()?.bind(ring)?,
            Socket::Tcp(stream) => Stream::polled(stream),
            Socket::Unix(stream) => Stream::polled(stream),
        };
        Ok(Self { stream, buffer: Bytes::new(), epoch, used: Instant::now() })
    }

    /// Takes in what came.
    pub(crate) fn append(&mut self, data: Bytes) {
        append(&mut self.buffer, data);
    }

    /// Whether a request may be sent on it. What an instance says unasked, the end of the stream above all, makes it
    /// useless.
    fn is_usable(&mut self, instance: &Instance, max_age: Duration) -> bool {
        self.epoch == instance.epoch() && self.used.elapsed() < max_age && !self.stream.has_received()
    }
}

/// Puts what came behind what is there.
pub(crate) fn append(buffer: &mut Bytes, data: Bytes) {
    if buffer.is_empty() {
        *buffer = data;
    } else {
        let before = std::mem::take(buffer);
        let mut whole = before.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        whole.extend_from_slice(&data);
        *buffer = whole.freeze();
    }
}

/// One thread's connections that lie ready, by instance.
#[derive(Default)]
pub(crate) struct Pools(RefCell<HashMap<u64, Pool>>);

struct Pool {
    instance: Arc<Instance>,
    idle: Vec<Upstream>,
}

impl Pools {
    /// A connection that lies ready, the one used last.
    pub(crate) fn take(&self, instance: &Instance, max_age: Duration) -> Option<Upstream> {
        let mut pools = self.0.borrow_mut();
        let idle = &mut pools.get_mut(&instance.id)?.idle;
        while let Some(mut upstream) = idle.pop() {
            instance.idle.fetch_sub(1, Ordering::Relaxed);
            if upstream.is_usable(instance, max_age) {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection for later.
    pub(crate) fn put(&self, instance: &Arc<Instance>, mut upstream: Upstream, max: usize) {
        if upstream.epoch != instance.epoch() || !upstream.stream.is_settled() {
            return;
        }
        let mut pools = self.0.borrow_mut();
        let pool =
            pools.entry(instance.id).or_insert_with(|| Pool { instance: instance.clone(), idle: Vec::new() });
        if pool.idle.len() < max {
            upstream.used = Instant::now();
            // So that the end of the stream is noticed.
            upstream.stream.listen();
            pool.idle.push(upstream);
            instance.idle.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Closes connections that lay idle too long, that the other side closed, or whose instance is gone.
    pub(crate) fn sweep(&self, max_age: Duration) {
        self.0.borrow_mut().retain(|_, pool| {
            let before = pool.idle.len();
            let instance = &pool.instance;
            pool.idle.retain_mut(|upstream| upstream.is_usable(instance, max_age));
            instance.idle.fetch_sub(before - pool.idle.len(), Ordering::Relaxed);
            !pool.idle.is_empty()
        });
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        for pool in self.0.get_mut().values() {
            pool.instance.idle.fetch_sub(pool.idle.len(), Ordering::Relaxed);
        }
    }
}
