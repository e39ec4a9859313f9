//! Byte streams, alike whether the kernel is asked in batches (`io_uring`) or socket by socket (epoll, through tokio).
//!
//! What waits for data holds no buffer either way; what arrives comes in a piece of its own size.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Anything that tokio reads and writes.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// A stream to or from somebody.
pub(crate) enum Stream {
    Ring(uring::Socket),
    Polled(Box<Polled>),
}

/// A stream that is read and written call by call.
pub(crate) struct Polled {
    io: Box<dyn Io>,
    /// What came while nobody wanted it yet.
    early: Option<io::Result<Bytes>>,
    /// What is still to be written.
    out: Bytes,
    broken: Option<io::Error>,
    written: u64,
}

/// The most that is taken in at once, in bytes.
const PIECE: usize = 16 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

impl Polled {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Some(early) = self.early.take() {
            return Poll::Ready(early);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(Bytes::copy_from_slice(buf.filled())))
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.out)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.out.advance(n);
                    self.written += n as u64;
                }
                Err(error) => {
                    self.out.clear();
                    return Poll::Ready(Err(error));
                }
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl Stream {
    /// A stream that tokio reads and writes.
    pub(crate) fn polled(io: impl Io + 'static) -> Self {
        let io = Box::new(io);
        Self::Polled(Box::new(Polled { io, early: None, out: Bytes::new(), broken: None, written: 0 }))
    }

    /// What arrives next; nothing at the end of the stream.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match self {
            Self::Ring(socket) => socket.poll_receive(cx),
            Self::Polled(polled) => polled.poll_read(cx),
        }
    }

    /// Begins to receive, so that the end of the stream is noticed.
    pub(crate) fn listen(&mut self) {
        if let Self::Ring(socket) = self {
            socket.listen();
        }
    }

    /// Whether something is there to be received: on a stream that should be silent, a sign that it is of no use.
    pub(crate) fn has_received(&mut self) -> bool {
        match self {
            Self::Ring(socket) => socket.has_received(),
            Self::Polled(polled) => {
                if polled.early.is_none()
                    && let Poll::Ready(result) = polled.poll_read(&mut Context::from_waker(Waker::noop()))
                {
                    polled.early = Some(result);
                }
                polled.early.is_some()
            }
        }
    }

    /// Begins to send. What was sent before must be [`Stream::poll_sent`].
    pub(crate) fn send(&mut self, data: Bytes) {
        match self {
            Self::Ring(socket) => socket.send(data),
            Self::Polled(polled) => {
                polled.out = data;
                if let Poll::Ready(Err(error)) = polled.poll_write(&mut Context::from_waker(Waker::noop())) {
                    polled.broken = Some(error);
                }
            }
        }
    }

    /// Waits until what was sent last was taken by the kernel.
    pub(crate) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Ring(socket) => socket.poll_sent(cx),
            Self::Polled(polled) => polled.poll_write(cx),
        }
    }

    /// Whether all that was to be sent was taken by the kernel.
    pub(crate) fn is_settled(&mut self) -> bool {
        matches!(self.poll_sent(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Goes on with sending where that does not happen by itself, for callers that wait for something else.
    pub(crate) fn push(&mut self, cx: &mut Context<'_>) {
        if let Self::Polled(polled) = self
            && !polled.out.is_empty()
            && let Poll::Ready(Err(error)) = polled.poll_write(cx)
        {
            polled.broken = Some(error);
        }
    }

    /// Bytes that were sent, as far as that is known: none, for sure, if nothing of what was to be sent left.
    pub(crate) fn written(&self) -> u64 {
        match self {
            Self::Ring(socket) => socket.written(),
            Self::Polled(polled) => polled.written,
        }
    }

    /// Tells the other side that nothing more will come.
    pub(crate) async fn shutdown(&mut self) {
        match self {
            Self::Ring(socket) => socket.shutdown(),
            // A failure means that the other side has gone already.
            Self::Polled(polled) => {
                let _ = poll_fn(|cx| Pin::new(&mut polled.io).poll_shutdown(cx)).await;
            }
        }
    }
}
