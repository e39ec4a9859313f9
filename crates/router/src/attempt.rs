//! One try to have a request answered by an instance, and how often there may be another.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout};

use crate::client::Client;
use crate::engine::Worker;
use crate::failure::{Blame, Failure};
use crate::http1::{Body, ResponseHead};
use crate::instance::{Finding, Instance};
use crate::key;
use crate::payload::{Payload, Source};
use crate::settings::Settings;
use crate::state::Shared;
use crate::upstream::Upstream;
use crate::whoami::Answer;

/// What an attempt came to.
pub(crate) struct Failed {
    pub failure: Failure,
    /// Nobody listened: the attempt cost nothing and told that the instance is away.
    pub refused: bool,
}

/// The most attempts that found nobody listening, or somebody who was told to go, for one request.
const MAX_REFUSALS: u32 = 20;

/// The attempts that a request has had.
#[derive(Default)]
pub(crate) struct Attempts {
    made: u32,
    refused: u32,
    /// Whose turn is over for now.
    pub tried: Vec<Arc<Instance>>,
}

impl Attempts {
    /// Counts a failed attempt; whether there may be another.
    pub(crate) fn another(&mut self, failed: &Failed, instance: &Arc<Instance>, settings: &Settings) -> bool {
        if failed.refused || instance.is_leaving() {
            // It is known to be away now, and worth another look when it is back.
            self.refused += 1;
        } else {
            self.made += 1;
            self.tried.push(instance.clone());
        }
        self.made < settings.attempts && self.refused < MAX_REFUSALS
    }
}

/// One try to have a request answered by an instance.
pub(crate) struct Attempt<'a> {
    pub worker: &'a Worker,
    pub state: &'a Shared,
    pub settings: &'a Settings,
    pub instance: &'a Arc<Instance>,
    /// How long the head of the response may take.
    pub within: Duration,
    /// The head, with what of the body goes with it.
    pub request: Bytes,
    pub method: &'a Method,
}

impl Attempt<'_> {
    /// Sends the request for a client, and takes note of how that went. Comes to the connection, the head of the response
    /// on it, and whether the instance took the whole request.
    pub(crate) async fn make(
        self,
        client: &mut Client,
        payload: &mut Payload,
        bytes: &mut u64,
    ) -> Result<(Upstream, ResponseHead, bool), Failed> {
        // A stream can be sent once, so it is not risked on a connection that may just be closing.
        let fresh = payload.is_stream();
        let mut upstream = if let Some(upstream) = self.ready_one(fresh) {
            upstream
        } else {
            let opened = client.unless_gone(Box::pin(self.open())).await;
            opened.map_err(|failure| Failed { failure, refused: false })??
        };
        // Until its response begins; then it would break off.
        let again = !payload.is_stream() && Failure::Reset.may_retry(self.method);
        let _replaceable = again.then(|| self.instance.replaceable());
        let mut source = payload.take(self.settings.body_stall);
        let before = upstream.stream.written();
        upstream.stream.send(self.request.clone());
        client.upstream_timer.set(Instant::now() + self.within);
        let sent =
            poll_fn(|cx| self.poll_exchange(&mut upstream, before, &mut source, client, bytes, cx)).await;
        client.upstream_timer.clear();
        match sent {
            Ok(head) => {
                self.instance.note(Finding::Answered, self.settings);
                Ok((upstream, head, source.is_dry()))
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    /// A connection that lies ready.
    fn ready_one(&self, fresh: bool) -> Option<Upstream> {
        if fresh { None } else { self.worker.pools.take(self.instance, self.settings.upstream_idle) }
    }

    /// A new connection.
    async fn open(&self) -> Result<Upstream, Failed> {
        let within = self.settings.connect_timeout;
        let opening = Upstream::open(self.instance, within, self.worker.ring.as_ref());
        match timeout(within, opening).await {
            Ok(Ok(upstream)) => Ok(upstream),
            Ok(Err(error)) => {
                let (instance, address) = (&*self.instance.name, &self.instance.address);
                tracing::debug!(instance, %address, %error, "cannot connect");
                Err(self.note(Failure::Connect, Some(Finding::Refused)))
            }
            Err(_) => Err(self.note(Failure::Connect, Some(Finding::Broke))),
        }
    }

    fn note(&self, failure: Failure, finding: Option<Finding>) -> Failed {
        self.state.metrics.attempt_failed(&self.instance.name, failure.label());
        if let Some(finding) = finding {
            self.instance.note(finding, self.settings);
        }
        Failed { failure, refused: finding == Some(Finding::Refused) }
    }

    fn failed(&self, failure: Failure) -> Failed {
        match failure.blame() {
            Blame::Upstream if failure == Failure::ResetUnsent => {
                // It was closed while it lay idle, and so will the others have been.
                self.instance.forget_connections();
                self.note(failure, None)
            }
            Blame::Upstream => self.note(failure, Some(Finding::Broke)),
            // The instance has nothing to do with it.
            _ => Failed { failure, refused: false },
        }
    }

    /// Sends what is to be sent and looks for the head of the response.
    fn poll_exchange(
        &self,
        upstream: &mut Upstream,
        before: u64,
        source: &mut Source,
        client: &mut Client,
        bytes: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Failure>> {
        let streaming = matches!(source, Source::Client { .. });
        while !source.is_dry() {
            match upstream.stream.poll_sent(cx) {
                // What the instance said before it stopped listening may still come.
                Poll::Ready(Err(_)) => *source = Source::Nothing,
                Poll::Pending => break,
                Poll::Ready(Ok(())) => match source.poll_next(client, bytes, cx) {
                    Poll::Ready(Ok(Some(piece))) => {
                        upstream.stream.send(piece);
                        // The time counts from when the request last moved.
                        client.upstream_timer.set(Instant::now() + self.within);
                    }
                    Poll::Ready(Ok(None)) => {}
                    Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                    Poll::Pending => break,
                },
            }
        }
        upstream.stream.push(cx);
        loop {
            match upstream.stream.poll_receive(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(data)) if !data.is_empty() => {
                    upstream.append(data);
                    match ResponseHead::parse(&mut upstream.buffer, self.method) {
                        Ok(Some(head)) => return Poll::Ready(Ok(head)),
                        Ok(None) => {}
                        Err(_) => return Poll::Ready(Err(Failure::Garbage)),
                    }
                }
                Poll::Ready(_) => {
                    // Now it is known how much of the request left.
                    let failed = matches!(upstream.stream.poll_sent(cx), Poll::Ready(Err(_)));
                    let unsent = failed && upstream.stream.written() == before;
                    return Poll::Ready(Err(if unsent { Failure::ResetUnsent } else { Failure::Reset }));
                }
            }
        }
        if !streaming && client.is_gone(cx) {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        client.upstream_timer.poll(cx).map(|()| Err(Failure::Timeout))
    }

    /// Sends the router's own question whose a token is.
    pub(crate) async fn ask(self) -> Option<Answer> {
        /// The largest answer that is read, in bytes.
        const MAX_ANSWER: usize = 64 << 10;
        #[derive(serde::Deserialize)]
        struct Whoami {
            user_id: String,
        }
        let mut upstream = match self.ready_one(false) {
            Some(upstream) => upstream,
            None => self.open().await.ok()?,
        };
        upstream.stream.send(self.request.clone());
        let asked = timeout(self.within, async {
            let mut head = None;
            let mut body = Body::Length(0);
            let mut text = Vec::new();
            loop {
                if head.is_none() {
                    head = ResponseHead::parse(&mut upstream.buffer, self.method).ok()?;
                    body = head.as_ref().map_or(body, |head| Body::new(head.framing));
                }
                if let Some(head) = &head {
                    loop {
                        let piece = body.take(&mut upstream.buffer).ok()?;
                        if piece.is_empty() {
                            break;
                        }
                        text.extend_from_slice(&piece);
                    }
                    if body.is_over() {
                        return Some((head.status, head.keep_alive, text));
                    }
                }
                let data = poll_fn(|cx| {
                    upstream.stream.push(cx);
                    upstream.stream.poll_receive(cx)
                });
                match data.await {
                    Ok(data) if !data.is_empty() && text.len() <= MAX_ANSWER => upstream.append(data),
                    _ => return None,
                }
            }
        });
        let Ok(Some((status, keep_alive, text))) = asked.await else {
            self.note(Failure::Reset, Some(Finding::Broke));
            return None;
        };
        self.instance.note(Finding::Answered, self.settings);
        if keep_alive && upstream.buffer.is_empty() {
            self.worker.pools.put(self.instance, upstream, self.settings.upstream_idle_max);
        }
        match status {
            StatusCode::OK => {
                let whoami: Whoami = serde_json::from_slice(&text).ok()?;
                Some(Answer::User(routes::hash_key(key::localpart_of_user(&whoami.user_id).as_bytes())))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Some(Answer::Nobody),
            _ => None,
        }
    }
}
