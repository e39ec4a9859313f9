//! A response body on its way from an instance to the client.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::Instant;

use crate::client::Client;
use crate::failure::Failure;
use crate::http1::{Body, LAST_CHUNK, chunk};
use crate::settings::Settings;
use crate::state::Place;
use crate::upstream::{Pools, Upstream};

/// A response body on its way from an instance to the client.
pub(crate) struct Reply {
    pub body: Body,
    /// Whether the client gets it in chunks.
    pub chunked: bool,
    /// The connection that it comes over and the place that it takes, until it is over.
    pub source: Option<(Upstream, Place)>,
    /// What the client gets next.
    pub next: Option<Bytes>,
    /// If the connection can be used again: how many of them are kept.
    pub keep: Option<usize>,
    /// Bytes of the body so far.
    pub bytes: u64,
}

impl Reply {
    /// Whether all of it is with the kernel, or on its way there. Whether the client has read it shows with its next
    /// request.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.source.is_none() && self.next.is_none()
    }

    /// How many bytes have come already.
    pub(crate) fn buffered(&self) -> usize {
        self.source.as_ref().map_or(0, |(upstream, _)| upstream.buffer.len())
    }

    /// The next piece of what has come, as it is; none if more has to come first.
    fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some((upstream, _)) = &mut self.source else { return Ok(None) };
        let piece = self.body.take(&mut upstream.buffer).map_err(|_| Failure::Truncated)?;
        self.bytes += piece.len() as u64;
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Writes what has come behind the head.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, pools: &Pools) -> Result<(), Failure> {
        while let Some(piece) = self.piece()? {
            if self.chunked { chunk(&piece, out) } else { out.extend_from_slice(&piece) }
        }
        if self.body.is_over() {
            if self.chunked {
                out.extend_from_slice(LAST_CHUNK);
            }
            self.finish(pools);
        }
        Ok(())
    }

    /// The body has come to its end: its connection may serve others.
    fn finish(&mut self, pools: &Pools) {
        let Some((upstream, place)) = self.source.take() else { return };
        // What came beyond the end was promised by nobody.
        if let Some(max) = self.keep
            && upstream.buffer.is_empty()
        {
            pools.put(place.instance(), upstream, max);
        }
    }

    /// Moves what can be moved.
    pub(crate) fn poll(
        &mut self,
        client: &mut Client,
        settings: &Settings,
        pools: &Pools,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        loop {
            let idle = match client.stream.poll_sent(cx) {
                Poll::Ready(Ok(())) => {
                    client.timer.clear();
                    true
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::ClientGone)),
                Poll::Pending => false,
            };
            if idle {
                let next = self.next.take();
                let going_on = next.is_some();
                if let Some(next) = next {
                    client.stream.send(next);
                }
                if self.is_handed_over() {
                    return Poll::Ready(Ok(()));
                }
                if going_on {
                    continue;
                }
            } else if !client.timer.is_set() {
                client.timer.set(Instant::now() + settings.write_stall);
            }
            if self.next.is_none()
                && let Some((upstream, _)) = &mut self.source
            {
                match upstream.stream.poll_receive(cx) {
                    Poll::Ready(Ok(data)) if !data.is_empty() => {
                        client.upstream_timer.set(Instant::now() + settings.response_stall);
                        self.take_in(data, pools)?;
                        continue;
                    }
                    Poll::Ready(Ok(_)) if matches!(self.body, Body::Close) => {
                        self.source = None;
                        self.next = self.chunked.then(|| Bytes::from_static(LAST_CHUNK));
                        continue;
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Failure::Truncated)),
                    Poll::Pending => {}
                }
                if client.is_gone(cx) {
                    return Poll::Ready(Err(Failure::ClientGone));
                }
                if client.upstream_timer.is_over(cx) {
                    return Poll::Ready(Err(Failure::Timeout));
                }
            }
            if client.timer.is_over(cx) {
                return Poll::Ready(Err(Failure::ClientGone));
            }
            return Poll::Pending;
        }
    }

    /// Takes in what has come from the instance.
    fn take_in(&mut self, data: Bytes, pools: &Pools) -> Result<(), Failure> {
        let Some((upstream, _)) = &mut self.source else { return Ok(()) };
        upstream.buffer = data;
        self.next = if self.chunked {
            let mut out = Vec::new();
            self.fill(&mut out, pools)?;
            (!out.is_empty()).then(|| out.into())
        } else {
            let piece = self.piece()?;
            if self.body.is_over() {
                self.finish(pools);
            }
            piece
        };
        Ok(())
    }
}
