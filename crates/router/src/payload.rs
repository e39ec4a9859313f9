//! Request bodies: taken in from the client, and given to an instance.

use std::fs::File;
use std::future::{Future as _, poll_fn};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::client::Client;
use crate::failure::Failure;
use crate::http1::Framing;

/// How many bytes of a spooled body are read at once.
const CHUNK: usize = 64 << 10;

/// A request body as it can be sent to an instance: any number of times, except for a stream, which can be sent once.
#[derive(Debug)]
pub(crate) enum Payload {
    None,
    Bytes(Bytes),
    File(Arc<File>, u64),
    /// It is still with the client.
    Stream(u64),
    /// A stream that was sent.
    Spent,
}

/// What bounds the reading of a request body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub max: u64,
    pub buffer: usize,
    pub stall: Duration,
}

impl Payload {
    /// Takes in a request body. Small ones and those without a length (which Synapse refuses) are read whole, beyond
    /// the buffer into a file that has no name; longer ones stay where they are. `bytes` counts what was read.
    pub(crate) async fn prepare(
        client: &mut Client,
        framing: Framing,
        bounds: Bounds,
        bytes: &mut u64,
        spools: &Semaphore,
    ) -> Result<Self, Failure> {
        match framing {
            Framing::Length(length) if length > bounds.max => return Err(Failure::BodyTooLarge),
            Framing::Length(length) if length > bounds.buffer as u64 => return Ok(Self::Stream(length)),
            Framing::None | Framing::Length(0) | Framing::Close => return Ok(Self::None),
            Framing::Length(_) | Framing::Chunked => {}
        }
        let Some(first) = next_piece(client, bounds.stall).await? else { return Ok(Self::None) };
        *bytes += first.len() as u64;
        if client.body_is_over() && *bytes <= bounds.max {
            // The usual case: it came with the head.
            return Ok(Self::Bytes(first));
        }
        Box::pin(Self::gather(client, first, bounds, bytes, spools)).await
    }

    /// Goes on reading a body of which this has come.
    async fn gather(
        client: &mut Client,
        first: Bytes,
        bounds: Bounds,
        bytes: &mut u64,
        spools: &Semaphore,
    ) -> Result<Self, Failure> {
        let mut buffer = BytesMut::from(&first[..]);
        loop {
            if *bytes > bounds.max {
                return Err(Failure::BodyTooLarge);
            }
            if buffer.len() > bounds.buffer {
                return Self::spool(client, buffer.freeze(), bounds, bytes, spools).await;
            }
            let Some(data) = next_piece(client, bounds.stall).await? else { break };
            *bytes += data.len() as u64;
            buffer.extend_from_slice(&data);
        }
        Ok(Self::Bytes(buffer.freeze()))
    }

    async fn spool(
        client: &mut Client,
        start: Bytes,
        bounds: Bounds,
        bytes: &mut u64,
        spools: &Semaphore,
    ) -> Result<Self, Failure> {
        let Ok(_permit) = spools.try_acquire() else { return Err(Failure::Shed) };
        let storage = |error: &io::Error| {
            tracing::error!(%error, "cannot keep a request body in the temporary directory; free space there");
            Failure::Storage
        };
        let file = on_blocking_thread(tempfile::tempfile).await.map_err(|e| storage(&e))?;
        let file = Arc::new(file);
        let mut length = 0;
        let mut data = start;
        loop {
            let (to, at) = (file.clone(), length);
            length += data.len() as u64;
            on_blocking_thread(move || to.write_all_at(&data, at)).await.map_err(|e| storage(&e))?;
            match next_piece(client, bounds.stall).await? {
                None => return Ok(Self::File(file, length)),
                Some(more) => data = more,
            }
            *bytes += data.len() as u64;
            if *bytes > bounds.max {
                return Err(Failure::BodyTooLarge);
            }
        }
    }

    /// Its length, where there is a body.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::None | Self::Spent => None,
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(_, length) | Self::Stream(length) => Some(*length),
        }
    }

    /// What can be sent together with the head.
    pub(crate) fn with_head(&self) -> &[u8] {
        if let Self::Bytes(bytes) = self { bytes } else { &[] }
    }

    /// Whether it can be sent once only.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Spent)
    }

    /// Whether it cannot be sent any more.
    pub(crate) fn is_spent(&self) -> bool {
        matches!(self, Self::Spent)
    }

    /// What is to be sent behind [`Payload::with_head`]. A stream is spent by this.
    pub(crate) fn take(&mut self, stall: Duration) -> Source {
        match self {
            Self::None | Self::Spent | Self::Bytes(_) => Source::Nothing,
            Self::File(file, length) => {
                Source::File(Spooled { file: file.clone(), at: 0, length: *length, reading: None })
            }
            Self::Stream(_) => {
                *self = Self::Spent;
                Source::Client { stall }
            }
        }
    }
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn next_piece(client: &mut Client, stall: Duration) -> Result<Option<Bytes>, Failure> {
    poll_fn(|cx| client.poll_body(stall, cx)).await
}

/// Where the rest of a request comes from while it is sent.
#[derive(Debug)]
pub(crate) enum Source {
    Nothing,
    File(Spooled),
    Client { stall: Duration },
}

/// A body read from a file.
#[derive(Debug)]
pub(crate) struct Spooled {
    file: Arc<File>,
    at: u64,
    length: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Source {
    /// Whether nothing more is to be sent.
    pub(crate) fn is_dry(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// The next piece; none at the end. `bytes` counts what was read from the client.
    pub(crate) fn poll_next(
        &mut self,
        client: &mut Client,
        bytes: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Failure>> {
        let piece = match self {
            Self::Nothing => return Poll::Ready(Ok(None)),
            Self::File(spooled) => ready!(spooled.poll_next(cx)).map_err(|error| {
                tracing::error!(%error, "cannot read a request body back from the temporary directory");
                Failure::Storage
            })?,
            Self::Client { stall } => {
                let piece = ready!(client.poll_body(*stall, cx))?;
                *bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                piece
            }
        };
        if piece.is_none() {
            *self = Self::Nothing;
        }
        Poll::Ready(Ok(piece))
    }
}

impl Spooled {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if self.at >= self.length {
            return Poll::Ready(Ok(None));
        }
        let (file, at) = (&self.file, self.at);
        let size = usize::try_from(self.length - at).unwrap_or(CHUNK).min(CHUNK);
        let reading = self.reading.get_or_insert_with(|| {
            let file = file.clone();
            spawn_blocking(move || {
                let mut chunk = BytesMut::zeroed(size);
                file.read_exact_at(&mut chunk, at)?;
                Ok(chunk.freeze())
            })
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let chunk = read.map_err(io::Error::other)??;
        self.at += chunk.len() as u64;
        Poll::Ready(Ok(Some(chunk)))
    }
}
