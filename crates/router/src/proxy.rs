//! The life of a request: decide, take it in, pick an instance, send, answer.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{Method, Response, StatusCode};
use routes::{Class, ClassId, Decision, Forward, WellKnown};
use tokio::time::{Instant, sleep};

use crate::answer;
use crate::attempt::{Attempt, Attempts};
use crate::client::{Client, HeadBounds, Next};
use crate::engine::{Peer, Worker};
use crate::failure::Failure;
use crate::headers::{self, From};
use crate::http1::{Body, Framing, HeadError, RequestHead, ResponseHead};
use crate::key::{self, KeyKind, Known};
use crate::payload::{Bounds, Payload};
use crate::pick::{Choice, Pick, Waits};
use crate::record::Record;
use crate::reply::Reply;
use crate::settings::Settings;
use crate::snapshot::Active;
use crate::state::{Phase, Place, Shared};
use crate::stream::Stream;
use crate::upstream::Upstream;
use crate::whoami::Answer;

/// Serves a client's connection to its end.
pub(crate) async fn serve(worker: &Worker, state: &Shared, stream: Stream, peer: Peer) {
    let mut client = Client::new(stream);
    let mut first = true;
    let unread = loop {
        let bounds = HeadBounds::of(state.active.load().settings());
        match client.next(worker, bounds, first).await {
            Next::Request(head) => {
                let exchange = Exchange { worker, state, peer, client: &mut client, head };
                if !exchange.run().await {
                    break !client.body_is_over() && !client.body_is_held_back();
                }
            }
            Next::Bad(error) => {
                state.metrics.malformed.inc();
                let status = match error {
                    HeadError::Malformed => StatusCode::BAD_REQUEST,
                    HeadError::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                };
                let answer = answer::write(&answer::bad_head(status), false, true, false);
                // Whoever breaks HTTP may well be gone.
                let _ = client.send(answer, state.active.load_full().settings().write_stall).await;
                break true;
            }
            Next::Closed => break false,
        }
        first = false;
    };
    let stall = state.active.load().settings().write_stall;
    Box::pin(client.close(unread, stall)).await;
}

/// One request, and the connection that it came over.
struct Exchange<'a> {
    worker: &'a Worker,
    state: &'a Shared,
    peer: Peer,
    client: &'a mut Client,
    head: RequestHead,
}

/// How a request is answered.
enum Served {
    Here(Response<Bytes>),
    By(Box<Answered>),
}

/// An instance's answer, of which the body is still to come.
struct Answered {
    head: ResponseHead,
    body: Body,
    upstream: Upstream,
    place: Place,
    /// Whether the instance took the whole request.
    sent: bool,
}

impl Exchange<'_> {
    /// Answers the request. Whether the connection stays open.
    async fn run(mut self) -> bool {
        let (state, worker) = (self.state, self.worker);
        let active = state.active.load_full();
        let path = if state.access.is_on() { key::loggable(self.head.target()) } else { String::new() };
        let believed = active.settings().believed();
        let client = headers::client_address(&self.head, self.peer.address, believed);
        let mut record = Record::new(state.clone(), self.head.method.clone(), path, client);
        if state.access.is_on() {
            record.trace_id = headers::trace_id(&self.head);
        }

        let framing = headers::check(&self.head);
        let served = match framing {
            Ok(framing) => {
                self.client.begin_body(framing, self.head.expects);
                let travel = pin!(self.travel(active.clone(), framing, &mut record));
                worker.until(Phase::Ending, travel).await.unwrap_or(Err(Failure::Stopping))
            }
            Err(failure) => {
                // Where the next request would begin is anybody's guess.
                self.client.begin_body(Framing::Close, false);
                Err(failure)
            }
        };
        let mut keep_alive = self.head.keep_alive
            // Whoever stands in front may have read the chunks otherwise (RFC 9112, section 6.3).
            && !matches!(framing, Ok(Framing::Chunked) | Err(_))
            && self.client.body_is_over()
            && self.worker.phase() == Phase::Serving;

        let settings = active.settings();
        let response = match served {
            Ok(Served::By(answered)) => {
                keep_alive &= answered.head.framing_for(self.head.is_11) != Framing::Close;
                record.status = Some(answered.head.status);
                let result = self.relay(*answered, keep_alive, settings, &mut record).await;
                record.finish(result.err());
                return keep_alive && result.is_ok();
            }
            Ok(Served::Here(response)) => {
                record.status = Some(response.status());
                record.bytes_out = response.body().len() as u64;
                record.finish(None);
                response
            }
            Err(Failure::ClientGone) => {
                record.finish(Some(Failure::ClientGone));
                return false;
            }
            Err(failure) => {
                let response = answer::failure(failure);
                record.status = Some(response.status());
                record.bytes_out = response.body().len() as u64;
                record.finish(Some(failure));
                response
            }
        };
        let head_only = self.head.method == Method::HEAD;
        let answer = answer::write(&response, head_only, self.head.is_11, keep_alive);
        self.client.send(answer, settings.write_stall).await.is_ok() && keep_alive
    }

    async fn travel(
        &mut self,
        mut active: Arc<Active>,
        framing: Framing,
        record: &mut Record,
    ) -> Result<Served, Failure> {
        let state = self.state;
        let mut wait = Waits::default();
        let mut attempts = Attempts::default();
        let mut taken: Option<(Payload, Bytes)> = None;
        // Once around for each snapshot: what waits when another comes is decided anew.
        'snapshot: loop {
            let forward = match self.decide(&active)? {
                Decided::Forward(forward) => forward,
                Decided::Here(response) => return Ok(Served::Here(response)),
                Decided::Beside => return Box::pin(self.go_beside(&active, framing, record)).await,
            };
            let settings = active.settings();
            let class = forward.route.class;
            record.class = Some(class);
            // Until another stands in for it.
            record.role = Some(forward.route.primary());
            let (payload, request) = match &mut taken {
                Some(taken) => taken,
                none => {
                    if !forward.route.known() {
                        state.metrics.unknown_paths.inc();
                    }
                    let bounds = bounds(class, settings);
                    let bytes = &mut record.bytes_in;
                    let payload =
                        Payload::prepare(self.client, framing, bounds, bytes, &state.spools).await?;
                    let request = self.request(None, settings, framing, &payload, record.id.as_str());
                    none.insert((payload, request))
                }
            };
            let key = self.key(&active, &forward, record).await;

            loop {
                let choice = Choice {
                    active: &active,
                    chain: &forward.route.chain,
                    class,
                    key,
                    tried: &attempts.tried,
                };
                match choice.pick(state, wait.impatient) {
                    Pick::Got(place, role) => {
                        wait.got();
                        let instance = place.instance().clone();
                        record.role = Some(role);
                        record.instance = Some(instance.clone());
                        let started = Instant::now();
                        let within = class.timeout.min(settings.max_response_time);
                        let attempt = Attempt {
                            worker: self.worker,
                            state,
                            settings,
                            instance: &instance,
                            within,
                            request: request.clone(),
                            method: &self.head.method,
                        };
                        let result = attempt.make(self.client, payload, &mut record.bytes_in).await;
                        let took = started.elapsed();
                        record.upstream = Some(took);
                        let failed = match result {
                            Ok((upstream, head, sent)) => {
                                state.metrics.upstream(class, role, &instance, took);
                                let body = Body::new(head.framing);
                                return Ok(Served::By(Box::new(Answered {
                                    head,
                                    body,
                                    upstream,
                                    place,
                                    sent,
                                })));
                            }
                            Err(failed) => failed,
                        };
                        drop(place);
                        let failure = failed.failure;
                        let may = failure.may_retry(&self.head.method) && !payload.is_spent();
                        if !(may && attempts.another(&failed, &instance, settings)) {
                            return Err(failure);
                        }
                        record.retried += 1;
                        state.metrics.retry(&instance.name, failure.label());
                    }
                    Pick::Full(role) => {
                        let wait = Box::pin(wait.for_place(state, settings, class, role));
                        self.client.unless_gone(wait).await??;
                    }
                    Pick::Returning { role, limit, elsewhere } => {
                        let wait = Box::pin(wait.for_return(state, settings, role, limit, elsewhere));
                        self.client.unless_gone(wait).await??;
                    }
                    // Those that broke off before may have a second chance.
                    Pick::Nobody if !attempts.tried.is_empty() => attempts.tried.clear(),
                    Pick::Nobody => return Err(Failure::NoInstance),
                }
                let newest = state.active.load_full();
                if !Arc::ptr_eq(&newest, &active) {
                    active = newest;
                    continue 'snapshot;
                }
            }
        }
    }

    /// Takes the request to the service beside Synapse that its path belongs to. While that restarts, it waits.
    async fn go_beside(
        &mut self,
        active: &Active,
        framing: Framing,
        record: &mut Record,
    ) -> Result<Served, Failure> {
        /// Until it is looked whether the service is back.
        const PAUSE: Duration = Duration::from_millis(50);
        let (state, settings, class) = (self.state, active.settings(), ClassId::Companion.class());
        let Some((instance, target)) = active.beside(&self.head) else {
            return Err(Failure::NotFound);
        };
        record.class = Some(class);
        record.instance = Some(instance.clone());
        let bounds = bounds(class, settings);
        let mut payload =
            Payload::prepare(self.client, framing, bounds, &mut record.bytes_in, &state.spools).await?;
        let request = self.request(Some(&target), settings, framing, &payload, record.id.as_str());
        let lease = instance.lease(class.id.index(), class.cap).ok_or(Failure::Shed)?;
        let place = Place::new(lease, state.clone(), class.id.index(), None);
        let patience = Instant::now() + settings.patience;
        loop {
            let started = Instant::now();
            let attempt = Attempt {
                worker: self.worker,
                state,
                settings,
                instance,
                within: class.timeout,
                request: request.clone(),
                method: &self.head.method,
            };
            let result = attempt.make(self.client, &mut payload, &mut record.bytes_in).await;
            record.upstream = Some(started.elapsed());
            let failed = match result {
                Ok((upstream, head, sent)) => {
                    let body = Body::new(head.framing);
                    return Ok(Served::By(Box::new(Answered { head, body, upstream, place, sent })));
                }
                Err(failed) => failed,
            };
            let unsent = failed.refused || failed.failure == Failure::ResetUnsent;
            if !unsent || payload.is_spent() || Instant::now() >= patience {
                return Err(failed.failure);
            }
            record.retried += 1;
            self.client.unless_gone(Box::pin(sleep(PAUSE))).await?;
        }
    }

    /// What is to be done with the request.
    fn decide<'m>(&self, active: &'m Active) -> Result<Decided<'m>, Failure> {
        let (method, target) = (self.head.method.as_str(), self.head.target());
        if active.is_at_mas(&self.head) {
            return Ok(Decided::Beside);
        }
        match headers::decide(&active.snapshot.matcher, method, target) {
            Decision::Forward(forward) => Ok(Decided::Forward(forward)),
            Decision::Preflight => Ok(Decided::Here(answer::preflight())),
            Decision::Landing => Ok(Decided::Here(answer::landing())),
            Decision::WellKnown(document) => self.well_known(active, document).map(Decided::Here),
            Decision::Closed(kind) => {
                self.state.metrics.closed(kind.name());
                Err(Failure::Closed)
            }
            Decision::Auth => Ok(Decided::Beside),
            Decision::NotFound if active.beside(&self.head).is_some() => Ok(Decided::Beside),
            Decision::NotFound => Err(Failure::NotFound),
        }
    }

    fn well_known(&self, active: &Active, document: WellKnown) -> Result<Response<Bytes>, Failure> {
        let snapshot = &active.snapshot;
        let text = snapshot.well_known.get(&document).ok_or(Failure::NotFound);
        match self.head.method {
            Method::OPTIONS => Ok(answer::preflight()),
            Method::GET | Method::HEAD => {
                let mut response = answer::document(StatusCode::OK, text?.clone());
                response.headers_mut().insert(CACHE_CONTROL, snapshot.well_known_caching.clone());
                Ok(response)
            }
            _ => Err(Failure::NotFound),
        }
    }

    /// The hash of what the request is balanced by, if there is something to balance.
    async fn key(&self, active: &Active, forward: &Forward<'_>, record: &mut Record) -> Option<u64> {
        if !active.is_hashed(forward.route) {
            return None;
        }
        let (hash, kind) = match key::of(&self.head, forward, record.client) {
            Known::Nothing => return None,
            Known::Key(hash, kind) => (hash, kind),
            Known::Token(token) => {
                let ask = || self.ask_whoami(active, &token, record.id.as_str());
                let (answer, how) = match self.state.whoami.remembered(&token) {
                    Some(found) => found,
                    // What is rare is kept out of every connection's state.
                    None => Box::pin(self.state.whoami.find(&token, active.settings(), ask)).await,
                };
                self.state.metrics.whoami(how);
                match answer {
                    Answer::User(hash) => (hash, KeyKind::Whoami),
                    Answer::Nobody | Answer::Unknown => {
                        (routes::hash_key(token.as_bytes()), KeyKind::TokenHash)
                    }
                }
            }
        };
        record.key = Some(kind);
        Some(hash)
    }

    /// What an instance is sent first: the head, and a small body with it. It may know the target as another one.
    fn request(
        &self,
        target: Option<&str>,
        settings: &Settings,
        framing: Framing,
        payload: &Payload,
        request_id: &str,
    ) -> Bytes {
        let target = target.unwrap_or_else(|| self.head.target());
        let body = payload.with_head();
        let mut out = Vec::with_capacity(self.head.length() + 256 + body.len());
        let length = headers::length_to_tell(framing, payload.length());
        headers::write_request(&self.head, target, self.from(settings, request_id), length, &mut out);
        out.extend_from_slice(body);
        out.into()
    }

    fn from<'f>(&self, settings: &Settings, request_id: &'f str) -> From<'f> {
        let (peer, proto) = (self.peer.address, self.peer.proto);
        From { peer, believed: settings.believed(), proto, request_id }
    }

    /// Asks Synapse whose a token is.
    async fn ask_whoami(&self, active: &Active, token: &str, request_id: &str) -> Answer {
        const PATH: &str = "/_matrix/client/v3/account/whoami";
        let Decision::Forward(forward) = active.snapshot.matcher.decide("GET", PATH) else {
            return Answer::Unknown;
        };
        // It may have come decoded from the query, and is written into a header here.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Answer::Nobody;
        }
        let (state, settings, route) = (self.state, active.settings(), forward.route);
        let choice = Choice { active, chain: &route.chain, class: route.class, key: None, tried: &[] };
        let Pick::Got(place, _) = choice.pick(state, true) else { return Answer::Unknown };
        let mut request = Vec::new();
        headers::write_whoami(&self.head, self.from(settings, request_id), PATH, token, &mut request);
        let attempt = Attempt {
            worker: self.worker,
            state,
            settings,
            instance: place.instance(),
            within: settings.whoami_timeout,
            request: request.into(),
            method: &Method::GET,
        };
        attempt.ask().await.unwrap_or(Answer::Unknown)
    }

    /// Passes an instance's answer on.
    async fn relay(
        &mut self,
        answered: Answered,
        keep_alive: bool,
        settings: &Settings,
        record: &mut Record,
    ) -> Result<(), Failure> {
        let Answered { head, body, upstream, place, sent } = answered;
        let is_11 = self.head.is_11;
        let mut reply = Reply {
            chunked: head.framing_for(is_11) == Framing::Chunked,
            body,
            source: Some((upstream, place)),
            next: None,
            keep: (sent && head.keep_alive).then_some(settings.upstream_idle_max),
            bytes: 0,
        };
        let mut out = Vec::with_capacity(head.bytes.len() + 64 + reply.buffered());
        head.write(is_11, keep_alive, &mut out);
        let filled = reply.fill(&mut out, &self.worker.pools);
        self.client.sent(settings.write_stall).await?;
        let client = &mut *self.client;
        if let Err(failure) = filled {
            // What came before it broke off is the client's, as it would be if it had come earlier.
            record.bytes_out = reply.bytes;
            client.stream.send(out.into());
            return Err(failure);
        }
        if reply.is_handed_over() {
            // The usual case: one piece. Accounted for before the client can have it.
            record.bytes_out = reply.bytes;
            record.finish(None);
            client.stream.send(out.into());
            return Ok(());
        }
        client.stream.send(out.into());
        client.timer.clear();
        client.upstream_timer.set(Instant::now() + settings.response_stall);
        let result = poll_fn(|cx| reply.poll(client, settings, &self.worker.pools, cx)).await;
        client.timer.clear();
        record.bytes_out = reply.bytes;
        result
    }
}

/// What is to be done with a request.
enum Decided<'m> {
    Forward(Forward<'m>),
    Here(Response<Bytes>),
    /// To a service beside Synapse.
    Beside,
}

/// What bounds the reading of a request body of this class.
fn bounds(class: &Class, settings: &Settings) -> Bounds {
    let max = class.max_body(settings.max_upload_bytes, settings.max_body_bytes);
    Bounds { max, buffer: settings.buffer_bytes, stall: settings.body_stall }
}
