//! The client's side of a connection: its requests' heads, their bodies, and whether it is still there.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::Worker;
use crate::failure::Failure;
use crate::http1::{Body, Framing, HeadError, HeadLimits, RequestHead};
use crate::settings::Settings;
use crate::state::Phase;
use crate::stream::Stream;
use crate::timer::Timer;
use crate::upstream::append;

/// A client's connection.
pub(crate) struct Client {
    pub stream: Stream,
    /// What came and was not used yet.
    buffer: Bytes,
    /// The body of the request under way, as far as it was not read.
    body: Body,
    /// Whether the client waits for leave to send that body.
    expects: bool,
    /// Bounds what the client does or leaves undone.
    pub timer: Timer,
    /// Bounds what an instance does meanwhile.
    pub upstream_timer: Timer,
}

/// What comes next on a connection.
pub(crate) enum Next {
    Request(RequestHead),
    Bad(HeadError),
    /// Nothing: it is over, or has been idle for too long.
    Closed,
}

/// What bounds the wait for a request's head, and the head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadBounds {
    limits: HeadLimits,
    idle: Duration,
    head: Duration,
}

impl HeadBounds {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            limits: HeadLimits { bytes: settings.max_head_bytes, headers: settings.max_headers },
            idle: settings.idle_timeout,
            head: settings.head_timeout,
        }
    }
}

/// How long a connection on which nothing has come yet may still bring its first request when the router stops.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

/// How much may come unasked while a request is served, before the client has to wait.
const MAX_EARLY: usize = 64 << 10;

const CONTINUE: Bytes = Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n");

impl Client {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            buffer: Bytes::new(),
            body: Body::new(Framing::None),
            expects: false,
            timer: Timer::default(),
            upstream_timer: Timer::default(),
        }
    }

    /// Takes in what comes next. False at the end of the stream.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.stream.poll_receive(cx).map_ok(|data| {
            let more = !data.is_empty();
            append(&mut self.buffer, data);
            more
        })
    }

    /// Waits for the next request. `first`: nothing was asked on this connection before.
    pub(crate) async fn next(&mut self, worker: &Worker, bounds: HeadBounds, first: bool) -> Next {
        let began = Instant::now();
        self.timer.set(began + bounds.idle);
        let mut in_head = false;
        poll_fn(|cx| {
            loop {
                if !self.buffer.is_empty() {
                    match RequestHead::parse(&mut self.buffer, bounds.limits) {
                        Ok(Some(head)) => return Poll::Ready(Next::Request(head)),
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Next::Bad(error)),
                    }
                    if !in_head {
                        in_head = true;
                        self.timer.set(Instant::now() + bounds.head);
                    }
                }
                match self.poll_more(cx) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(_) => return Poll::Ready(Next::Closed),
                    Poll::Pending => break,
                }
            }
            if worker.phase() >= Phase::Draining && !in_head {
                if !first {
                    return Poll::Ready(Next::Closed);
                }
                // Whoever has just connected is about to ask.
                let last = began.max(worker.stopping_since()) + FIRST_REQUEST;
                self.timer.set(last);
            }
            self.timer.poll(cx).map(|()| Next::Closed)
        })
        .await
    }

    /// Begins with the body of a request.
    pub(crate) fn begin_body(&mut self, framing: Framing, expects: bool) {
        self.body = Body::new(framing);
        self.expects = expects && framing != Framing::None;
    }

    /// Whether the body was read to its end.
    pub(crate) fn body_is_over(&self) -> bool {
        self.body.is_over()
    }

    /// Whether the client still waits for leave to send the body, and so has not.
    pub(crate) fn body_is_held_back(&self) -> bool {
        self.expects
    }

    /// The next piece of the body; none at its end.
    pub(crate) fn poll_body(
        &mut self,
        stall: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Failure>> {
        loop {
            match self.body.take(&mut self.buffer) {
                Err(_) => return Poll::Ready(Err(Failure::ClientMalformed)),
                Ok(piece) if !piece.is_empty() => {
                    self.timer.clear();
                    return Poll::Ready(Ok(Some(piece)));
                }
                Ok(_) if self.body.is_over() => {
                    self.timer.clear();
                    return Poll::Ready(Ok(None));
                }
                Ok(_) => {}
            }
            if std::mem::take(&mut self.expects) {
                self.stream.send(CONTINUE);
            }
            match self.stream.poll_sent(cx) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::ClientGone)),
            }
            match self.poll_more(cx) {
                Poll::Ready(Ok(true)) => self.timer.clear(),
                Poll::Ready(_) => return Poll::Ready(Err(Failure::ClientGone)),
                Poll::Pending => {
                    if !self.timer.is_set() {
                        self.timer.set(Instant::now() + stall);
                    }
                    return self.timer.poll(cx).map(|()| Err(Failure::ClientSlow));
                }
            }
        }
    }

    /// Whether the client has gone away. What it sends meanwhile, up to a limit, is kept.
    pub(crate) fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        while self.buffer.len() < MAX_EARLY {
            match self.poll_more(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(_) => return true,
                Poll::Pending => break,
            }
        }
        false
    }

    /// What the future comes to, unless the client goes away meanwhile.
    pub(crate) async fn unless_gone<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending if self.is_gone(cx) => Poll::Ready(Err(Failure::ClientGone)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Sends something. Whether the client reads it shows later.
    pub(crate) async fn send(&mut self, data: Bytes, stall: Duration) -> Result<(), Failure> {
        self.sent(stall).await?;
        self.stream.send(data);
        Ok(())
    }

    /// Waits until what was sent last was taken, which may take so long.
    pub(crate) async fn sent(&mut self, stall: Duration) -> Result<(), Failure> {
        self.timer.clear();
        poll_fn(|cx| match self.stream.poll_sent(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(|_| Failure::ClientGone)),
            Poll::Pending => {
                if !self.timer.is_set() {
                    self.timer.set(Instant::now() + stall);
                }
                self.timer.poll(cx).map(|()| Err(Failure::ClientGone))
            }
        })
        .await
    }

    /// Ends the connection in a way that destroys no answer on its way: the network resets a connection that is closed
    /// with data unread. So what still comes is read, within limits, and thrown away.
    pub(crate) async fn close(mut self, unread: bool, stall: Duration) {
        const LONGEST: Duration = Duration::from_secs(5);
        const LARGEST: usize = 64 << 20;
        if self.sent(stall).await.is_err() {
            return;
        }
        self.stream.shutdown().await;
        if !unread {
            return;
        }
        self.timer.set(Instant::now() + LONGEST);
        let mut bytes = 0;
        poll_fn(|cx| {
            while let Poll::Ready(result) = self.stream.poll_receive(cx) {
                let length = result.map_or(0, |data| data.len());
                bytes += length;
                if length == 0 || bytes > LARGEST {
                    return Poll::Ready(());
                }
            }
            self.timer.poll(cx)
        })
        .await;
    }
}
