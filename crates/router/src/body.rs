//! Bodies: the request's, read from the client and given to an instance, and the response's on its way back.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::failure::Failure;
use crate::instance::Instance;
use crate::record::Record;
use crate::state::Place;
use crate::upstream::Connection;

/// How many bytes of a spooled body are read at once.
const CHUNK: usize = 64 << 10;

/// A request body as it can be sent to an instance: any number of times, except for a stream, which can be sent once.
#[derive(Debug)]
pub(crate) enum Payload {
    None,
    Bytes(Bytes),
    File(Arc<File>, u64),
    Stream(Option<Incoming>, u64),
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

/// How a request says that it frames its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

impl Payload {
    /// Takes in a request body. Small ones and those without a length (which Synapse refuses) are read whole, beyond
    /// the buffer into a file that has no name; longer ones stay where they are.
    pub(crate) async fn prepare(
        mut body: Incoming,
        framing: Framing,
        bounds: Bounds,
        progress: &Progress,
        spools: &Semaphore,
    ) -> Result<Self, Failure> {
        match framing {
            Framing::None | Framing::Length(0) => Ok(Self::None),
            Framing::Length(length) if length > bounds.max => {
                discard(body);
                Err(Failure::BodyTooLarge)
            }
            Framing::Length(length) if length > bounds.buffer as u64 => Ok(Self::Stream(Some(body), length)),
            Framing::Length(_) | Framing::Chunked => {
                let mut buffer = BytesMut::new();
                while let Some(data) = next_data(&mut body, bounds.stall).await? {
                    progress.add(data.len());
                    if progress.bytes() > bounds.max {
                        discard(body);
                        return Err(Failure::BodyTooLarge);
                    }
                    buffer.extend_from_slice(&data);
                    if buffer.len() > bounds.buffer {
                        return Self::spool(body, buffer.freeze(), bounds, progress, spools).await;
                    }
                }
                Ok(if buffer.is_empty() { Self::None } else { Self::Bytes(buffer.freeze()) })
            }
        }
    }

    async fn spool(
        mut body: Incoming,
        start: Bytes,
        bounds: Bounds,
        progress: &Progress,
        spools: &Semaphore,
    ) -> Result<Self, Failure> {
        let Ok(_permit) = spools.try_acquire() else {
            discard(body);
            return Err(Failure::Shed);
        };
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
            match next_data(&mut body, bounds.stall).await? {
                None => return Ok(Self::File(file, length)),
                Some(more) => data = more,
            }
            progress.add(data.len());
            if progress.bytes() > bounds.max {
                discard(body);
                return Err(Failure::BodyTooLarge);
            }
        }
    }

    /// Its length, where there is a body.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::None | Self::Spent => None,
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(_, length) | Self::Stream(_, length) => Some(*length),
        }
    }

    /// Whether it can be sent once only.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(..) | Self::Spent)
    }

    /// Whether it can still be sent.
    pub(crate) fn is_spent(&self) -> bool {
        matches!(self, Self::Spent)
    }

    /// The body to send. A stream is spent by this.
    pub(crate) fn take(&mut self, stall: Duration, progress: &Arc<Progress>) -> Outgoing {
        match self {
            Self::None | Self::Spent => Outgoing::Full(Full::default()),
            Self::Bytes(bytes) => Outgoing::Full(Full::new(bytes.clone())),
            Self::File(file, length) => {
                Outgoing::Spooled(Spooled { file: file.clone(), at: 0, length: *length, reading: None })
            }
            Self::Stream(incoming, length) => {
                let (incoming, length) = (incoming.take(), *length);
                *self = Self::Spent;
                match incoming {
                    Some(incoming) => Outgoing::Stream(Streamed {
                        incoming,
                        length,
                        stall: Stall::new(stall),
                        progress: progress.clone(),
                    }),
                    None => Outgoing::Full(Full::default()),
                }
            }
        }
    }
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn next_data(body: &mut Incoming, stall: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        match timeout(stall, body.frame()).await {
            Err(_) => return Err(Failure::ClientSlow),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(Failure::ClientGone),
            Ok(Some(Ok(frame))) => {
                // Trailers mean nothing to Synapse.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads away what a client still sends after its request was refused: closing at once would destroy the answer on
/// its way, because the network resets a connection that is closed with data unread.
pub(crate) fn discard(mut body: Incoming) {
    const LONGEST: Duration = Duration::from_secs(5);
    const LARGEST: usize = 64 << 20;
    tokio::spawn(timeout(LONGEST, async move {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > LARGEST {
                break;
            }
        }
    }));
}

/// How far a request body has come, shared between the sending of it and who waits for the response.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    trouble: AtomicU8,
}

impl Progress {
    const GONE: u8 = 1;
    const SLOW: u8 = 2;

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::AcqRel);
    }

    /// Bytes read from the client.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// How the client failed to send its body, if it did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self.trouble.load(Ordering::Acquire) {
            Self::GONE => Some(Failure::ClientGone),
            Self::SLOW => Some(Failure::ClientSlow),
            _ => None,
        }
    }
}

/// A timer that runs only while nothing comes.
#[derive(Debug)]
struct Stall {
    after: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    running: bool,
}

impl Stall {
    fn new(after: Duration) -> Self {
        Self { after, sleep: None, running: false }
    }

    fn moved(&mut self) {
        self.running = false;
    }

    /// Called when nothing came: true once that has been so for too long.
    fn stalled(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self.sleep.get_or_insert_with(|| Box::pin(sleep(self.after)));
        if !self.running {
            timer.as_mut().reset(Instant::now() + self.after);
            self.running = true;
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

/// A request body on its way to an instance.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Full(Full<Bytes>),
    Spooled(Spooled),
    Stream(Streamed),
}

/// A body read from a file.
#[derive(Debug)]
pub(crate) struct Spooled {
    file: Arc<File>,
    at: u64,
    length: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

/// A body that comes from the client while it is sent.
#[derive(Debug)]
pub(crate) struct Streamed {
    incoming: Incoming,
    length: u64,
    stall: Stall,
    progress: Arc<Progress>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Full(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Spooled(body) => body.poll(cx),
            Self::Stream(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Spooled(body) => body.at >= body.length,
            Self::Stream(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Spooled(body) => SizeHint::with_exact(body.length - body.at),
            Self::Stream(body) => SizeHint::with_exact(body.length),
        }
    }
}

impl Spooled {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.at >= self.length {
            return Poll::Ready(None);
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
        match read.map_err(io::Error::other).and_then(|result| result) {
            Ok(chunk) => {
                self.at += chunk.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

impl Streamed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.stall.moved();
                    if let Ok(data) = frame.into_data() {
                        self.progress.add(data.len());
                        self.length = self.length.saturating_sub(data.len() as u64);
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.progress.trouble.store(Progress::GONE, Ordering::Release);
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if self.stall.stalled(cx) => {
                    self.progress.trouble.store(Progress::SLOW, Ordering::Release);
                    return Poll::Ready(Some(Err("the client sends nothing".into())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// A response body on its way to the client.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The router's own.
    Full(Full<Bytes>),
    /// An instance's.
    Forwarded(Box<Forwarded>),
}

/// An instance's response body, with all that is settled when it ends.
#[derive(Debug)]
pub(crate) struct Forwarded {
    incoming: Incoming,
    stall: Stall,
    record: Option<Record>,
    /// The connection that it comes over, and the place that it takes.
    held: Option<(Connection, Place)>,
    keep: usize,
}

impl Forwarded {
    pub(crate) fn new(
        incoming: Incoming,
        connection: Connection,
        place: Place,
        record: Record,
        stall: Duration,
        keep: usize,
    ) -> Self {
        Self {
            incoming,
            stall: Stall::new(stall),
            record: Some(record),
            held: Some((connection, place)),
            keep,
        }
    }

    fn finish(&mut self, failure: Option<Failure>) {
        if let Some((connection, place)) = self.held.take()
            && failure.is_none()
        {
            give_back(connection, place.instance(), self.keep);
        }
        if let Some(mut record) = self.record.take() {
            record.finish(failure);
        }
    }
}

/// Puts a connection whose response has ended with the idle ones, as soon as the request has ended too.
pub(crate) fn give_back(mut connection: Connection, instance: &Arc<Instance>, keep: usize) {
    /// An instance that answered before it had the whole request may still be reading it; no longer than this.
    const LINGER: Duration = Duration::from_secs(1);
    let instance = instance.clone();
    if connection.is_ready() {
        instance.put_idle(connection, keep);
    } else {
        tokio::spawn(async move {
            if timeout(LINGER, connection.ready()).await == Ok(true) {
                instance.put_idle(connection, keep);
            }
        });
    }
}

impl Body for Forwarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            match Pin::new(&mut this.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.stall.moved();
                    // Trailers are hop-by-hop here: nobody was promised any.
                    if let Ok(data) = frame.into_data() {
                        if let Some(record) = &mut this.record {
                            record.bytes_out += data.len() as u64;
                        }
                        if this.incoming.is_end_stream() {
                            this.finish(None);
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.finish(Some(Failure::Truncated));
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => {
                    this.finish(None);
                    return Poll::Ready(None);
                }
                Poll::Pending if this.held.is_some() && this.stall.stalled(cx) => {
                    this.finish(Some(Failure::Timeout));
                    return Poll::Ready(Some(Err("the instance sends nothing".into())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        if self.held.is_some() {
            let failure = (!self.incoming.is_end_stream()).then_some(Failure::ClientGone);
            self.finish(failure);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Full(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Forwarded(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Forwarded(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Forwarded(body) => body.size_hint(),
        }
    }
}
