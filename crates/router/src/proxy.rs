//! The life of a request: decide, take it in, pick an instance, send, answer.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use model::{Balance, Role};
use routes::{Class, ClassId, Closed, Decision, Forward, Key, WellKnown};
use tokio::time::timeout;

use crate::answer;
use crate::balance::{Candidate, choose};
use crate::client::{Client, HeadBounds, Next};
use crate::engine::{Peer, Worker};
use crate::failure::Failure;
use crate::headers::{self, From};
use crate::http1::{Body, Framing, HeadError, LAST_CHUNK, RequestHead, ResponseHead, chunk};
use crate::instance::{Finding, Instance, Standing};
use crate::key::{self, KeyKind};
use crate::payload::{Bounds, Payload, Source};
use crate::record::Record;
use crate::settings::Settings;
use crate::snapshot::Active;
use crate::state::{Counted, Phase, Place, Shared};
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
        let trust = active.settings().trust_forwarded_for;
        let path =
            if state.access.is_on() { key::loggable(self.head.target()) } else { String::new() };
        let client = headers::client_address(&self.head, self.peer.address, trust);
        let mut record = Record::new(state.clone(), self.head.method.clone(), path, client);

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
                    let request = self.request(settings, framing, &payload, record.id.as_str());
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
                                state.metrics.upstream(class, took);
                                let body = Body::new(head.framing);
                                return Ok(Served::By(Box::new(Answered { head, body, upstream, place, sent })));
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
                    Pick::Returning { role, elsewhere } => {
                        let wait = Box::pin(wait.for_return(state, settings, role, elsewhere));
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

    /// What is to be done with the request.
    fn decide<'m>(&self, active: &'m Active) -> Result<Decided<'m>, Failure> {
        let matcher = &active.snapshot.matcher;
        let (method, target) = (self.head.method.as_str(), self.head.target());
        let closed = |kind: Closed| {
            self.state.metrics.closed(kind.name());
            Err(Failure::Closed)
        };
        if let Some(resolved) = headers::without_dots(target)
            && let Decision::Closed(kind) = matcher.decide(method, &resolved)
        {
            return closed(kind);
        }
        match matcher.decide(method, target) {
            Decision::Forward(forward) => Ok(Decided::Forward(forward)),
            Decision::Preflight => Ok(Decided::Here(answer::preflight())),
            Decision::Landing => Ok(Decided::Here(answer::landing())),
            Decision::WellKnown(document) => self.well_known(active, document).map(Decided::Here),
            Decision::Closed(kind) => closed(kind),
            Decision::NotFound if self.head.method == Method::OPTIONS => {
                Ok(Decided::Here(answer::preflight()))
            }
            Decision::NotFound => Err(Failure::NotFound),
        }
    }

    fn well_known(&self, active: &Active, document: WellKnown) -> Result<Response<Bytes>, Failure> {
        let text = match document {
            WellKnown::Client => Some(&active.snapshot.well_known_client),
            WellKnown::Server => active.snapshot.well_known_server.as_ref(),
        };
        match self.head.method {
            Method::OPTIONS => Ok(answer::preflight()),
            Method::GET | Method::HEAD => {
                text.map(|text| answer::document(StatusCode::OK, text.clone())).ok_or(Failure::NotFound)
            }
            _ => Err(Failure::NotFound),
        }
    }

    /// The hash of what the request is balanced by, if there is something to balance.
    async fn key(&self, active: &Arc<Active>, forward: &Forward<'_>, record: &mut Record) -> Option<u64> {
        let route = forward.route;
        let hashed = |role: &Role| {
            active.pool(*role).len() > 1
                && matches!(
                    route.class.balance(*role),
                    Balance::HashRoom | Balance::HashUser | Balance::HashOrigin
                )
        };
        if !route.chain.iter().any(hashed) {
            return None;
        }
        let (hash, kind) = match route.class.key {
            Key::None => return None,
            Key::Room => (routes::hash_room(self.head.target().get(forward.room.clone()?)?), KeyKind::Room),
            Key::User => self.user(active, record.id.as_str()).await?,
            Key::Origin => match key::origin(&self.head) {
                Some(origin) => (routes::hash_key(origin.as_bytes()), KeyKind::Origin),
                None => (routes::hash_key(record.client?.to_string().as_bytes()), KeyKind::Address),
            },
        };
        record.key = Some(kind);
        Some(hash)
    }

    async fn user(&self, active: &Arc<Active>, request_id: &str) -> Option<(u64, KeyKind)> {
        let token = key::access_token(&self.head)?;
        if let Some(localpart) = key::localpart_of_token(&token) {
            return Some((routes::hash_key(localpart.as_bytes()), KeyKind::Token));
        }
        // Only application services may say on whose behalf they ask; for others Synapse ignores it, and so little
        // is lost by believing it.
        if let Some(user) = key::query_value(self.head.target(), "user_id").filter(|user| !user.is_empty()) {
            return Some((routes::hash_key(key::localpart_of_user(&user).as_bytes()), KeyKind::Masquerade));
        }
        let ask = || self.ask_whoami(active, &token, request_id);
        let (answer, how) = match self.state.whoami.remembered(&token) {
            Some(found) => found,
            // What is rare is kept out of every connection's state.
            None => Box::pin(self.state.whoami.find(&token, active.settings(), ask)).await,
        };
        self.state.metrics.whoami(how);
        Some(match answer {
            Answer::User(hash) => (hash, KeyKind::Whoami),
            Answer::Nobody | Answer::Unknown => (routes::hash_key(token.as_bytes()), KeyKind::TokenHash),
        })
    }

    /// What an instance is sent first: the head, and a small body with it.
    fn request(&self, settings: &Settings, framing: Framing, payload: &Payload, request_id: &str) -> Bytes {
        let body = payload.with_head();
        let mut out = Vec::with_capacity(self.head.length() + 256 + body.len());
        let length = headers::length_to_tell(framing, payload.length());
        headers::write_request(&self.head, self.from(settings, request_id), length, &mut out);
        out.extend_from_slice(body);
        out.into()
    }

    fn from<'f>(&self, settings: &Settings, request_id: &'f str) -> From<'f> {
        let (peer, proto) = (self.peer.address, self.peer.proto);
        From { peer, trust: settings.trust_forwarded_for, proto, request_id }
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
        reply.fill(&mut out, &self.worker.pools)?;
        self.client.sent(settings.write_stall).await?;
        self.client.stream.send(out.into());

        let client = &mut *self.client;
        if reply.is_handed_over() {
            // The usual case: one piece.
            record.bytes_out = reply.bytes;
            return Ok(());
        }
        client.timer.clear();
        client.upstream_timer.set((Instant::now() + settings.response_stall).into());
        let result = poll_fn(|cx| reply.poll(client, settings, &self.worker.pools, cx)).await;
        client.timer.clear();
        record.bytes_out = reply.bytes;
        result
    }
}

/// A response body on its way from an instance to the client.
struct Reply {
    body: Body,
    /// Whether the client gets it in chunks.
    chunked: bool,
    /// The connection that it comes over and the place that it takes, until it is over.
    source: Option<(Upstream, Place)>,
    /// What the client gets next.
    next: Option<Bytes>,
    /// If the connection can be used again: how many of them are kept.
    keep: Option<usize>,
    /// Bytes of the body so far.
    bytes: u64,
}

impl Reply {
    /// Whether all of it is with the kernel, or on its way there. Whether the client has read it shows with its next
    /// request.
    fn is_handed_over(&self) -> bool {
        self.source.is_none() && self.next.is_none()
    }

    /// How many bytes have come already.
    fn buffered(&self) -> usize {
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
    fn fill(&mut self, out: &mut Vec<u8>, pools: &crate::upstream::Pools) -> Result<(), Failure> {
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
    fn finish(&mut self, pools: &crate::upstream::Pools) {
        let Some((upstream, place)) = self.source.take() else { return };
        // What came beyond the end was promised by nobody.
        if let Some(max) = self.keep
            && upstream.buffer.is_empty()
        {
            pools.put(place.instance(), upstream, max);
        }
    }

    /// Moves what can be moved.
    fn poll(
        &mut self,
        client: &mut Client,
        settings: &Settings,
        pools: &crate::upstream::Pools,
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
                client.timer.set((Instant::now() + settings.write_stall).into());
            }
            if self.next.is_none()
                && let Some((upstream, _)) = &mut self.source
            {
                match upstream.stream.poll_receive(cx) {
                    Poll::Ready(Ok(data)) if !data.is_empty() => {
                        client.upstream_timer.set((Instant::now() + settings.response_stall).into());
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
    fn take_in(&mut self, data: Bytes, pools: &crate::upstream::Pools) -> Result<(), Failure> {
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

/// What an attempt came to.
struct Failed {
    failure: Failure,
    /// Nobody listened: the attempt cost nothing and told that the instance is away.
    refused: bool,
}

/// The most attempts that found nobody listening, for one request.
const MAX_REFUSALS: u32 = 20;

/// The attempts that a request has had.
#[derive(Default)]
struct Attempts {
    made: u32,
    refused: u32,
    /// Whose turn is over for now.
    tried: Vec<Arc<Instance>>,
}

impl Attempts {
    /// Counts a failed attempt; whether there may be another.
    fn another(&mut self, failed: &Failed, instance: &Arc<Instance>, settings: &Settings) -> bool {
        if failed.refused {
            // It is known to be away now, and worth another look when it is back.
            self.refused += 1;
        } else {
            self.made += 1;
            self.tried.push(instance.clone());
        }
        self.made < settings.attempts && self.refused < MAX_REFUSALS
    }
}

/// What is to be done with a request.
enum Decided<'m> {
    Forward(Forward<'m>),
    Here(Response<Bytes>),
}

/// What bounds the reading of a request body of this class.
fn bounds(class: &Class, settings: &Settings) -> Bounds {
    let max = if class.id == ClassId::MediaUpload {
        settings.max_upload_bytes.max(settings.max_body_bytes)
    } else {
        settings.max_body_bytes
    };
    Bounds { max, buffer: settings.buffer_bytes, stall: settings.body_stall }
}

/// What picking an instance came to.
enum Pick {
    /// A place on an instance of this role.
    Got(Place, Role),
    /// The instances of this role have no place left for this class.
    Full(Role),
    /// An instance of this role is about to come back; whether somebody else could serve the request.
    Returning { role: Role, elsewhere: bool },
    /// Nobody can serve it, and nobody is about to.
    Nobody,
}

/// Among whom to pick.
struct Choice<'a> {
    active: &'a Active,
    chain: &'a [Role],
    class: &'a Class,
    key: Option<u64>,
    /// Not these.
    tried: &'a [Arc<Instance>],
}

impl Choice<'_> {
    fn pick(&self, state: &Shared, impatient: bool) -> Pick {
        let grace = self.active.settings().restart_grace;
        for (position, role) in self.chain.iter().enumerate() {
            let pool = self.active.pool(*role);
            match self.pick_among(state, *role, pool, Standing::Ready, grace) {
                Ok(Some(place)) => return Pick::Got(place, *role),
                // A role that is full keeps its work: spilling it over would drown the next one too.
                Err(Crowded) => return Pick::Full(*role),
                Ok(None) => {}
            }
            if !impatient && pool.iter().any(|instance| instance.standing(grace) == Standing::Returning) {
                let able = |instance: &Arc<Instance>| {
                    matches!(instance.standing(grace), Standing::Ready | Standing::LastResort)
                        && !self.is_tried(instance)
                };
                let elsewhere =
                    self.chain[position..].iter().any(|role| self.active.pool(*role).iter().any(able));
                return Pick::Returning { role: *role, elsewhere };
            }
        }
        for role in self.chain {
            match self.pick_among(state, *role, self.active.pool(*role), Standing::LastResort, grace) {
                Ok(Some(place)) => return Pick::Got(place, *role),
                Err(Crowded) => return Pick::Full(*role),
                Ok(None) => {}
            }
        }
        Pick::Nobody
    }

    fn is_tried(&self, instance: &Arc<Instance>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, instance))
    }

    fn pick_among(
        &self,
        state: &Shared,
        role: Role,
        pool: &[Arc<Instance>],
        standing: Standing,
        grace: Duration,
    ) -> Result<Option<Place>, Crowded> {
        let class = self.class.id.index();
        if let [instance] = pool {
            // Nothing to choose.
            if instance.standing(grace) != standing || self.is_tried(instance) {
                return Ok(None);
            }
            let lease = instance.lease(class, self.class.cap).ok_or(Crowded)?;
            return Ok(Some(Place::new(lease, state.clone(), class, role)));
        }
        let mut crowded = false;
        let mut candidates: Vec<Candidate> = pool
            .iter()
            .map(|instance| {
                let standing = instance.standing(grace) == standing && !self.is_tried(instance);
                let room = instance.in_flight_of(class) < self.class.cap;
                crowded |= standing && !room;
                Candidate { seed: instance.seed, in_flight: instance.in_flight(), eligible: standing && room }
            })
            .collect();
        let balance = self.class.balance(role);
        let turn = if pool.len() > 1 { state.next_turn() } else { 0 };
        while let Some(index) = choose(balance, &candidates, self.key, turn) {
            if let Some(lease) = pool[index].lease(class, self.class.cap) {
                return Ok(Some(Place::new(lease, state.clone(), class, role)));
            }
            // Somebody was faster.
            candidates[index].eligible = false;
            crowded = true;
        }
        if crowded { Err(Crowded) } else { Ok(None) }
    }
}

/// Every instance that could take the request is at its cap.
struct Crowded;

/// What a request has waited for so far.
#[derive(Default)]
struct Waits<'a> {
    place: Option<(Counted<'a>, Instant)>,
    back: Option<(Counted<'a>, Role, tokio::sync::watch::Receiver<u64>)>,
    /// The time spent waiting for instances to come back.
    waited: Duration,
    /// Whether it waits no more for instances to come back.
    impatient: bool,
}

impl<'a> Waits<'a> {
    /// An instance was found.
    fn got(&mut self) {
        self.place = None;
        self.back = None;
    }

    /// Waits until a place may have become free. The first call only joins the queue: the place may have become free
    /// before that, and then nobody would tell.
    async fn for_place(
        &mut self,
        state: &'a Shared,
        settings: &Settings,
        class: &Class,
        role: Role,
    ) -> Result<(), Failure> {
        let queue = state.queue(class.id.index(), role);
        let Some((_, until)) = &self.place else {
            let place = queue.join(settings.queue_length).ok_or(Failure::Shed)?;
            self.place = Some((place, Instant::now() + settings.queue_timeout));
            return Ok(());
        };
        tokio::time::timeout_at((*until).into(), queue.freed.notified()).await.map_err(|_| Failure::Shed)
    }

    /// Waits until an instance may have come back. The first call only begins to listen.
    async fn for_return(
        &mut self,
        state: &'a Shared,
        settings: &Settings,
        role: Role,
        elsewhere: bool,
    ) -> Result<(), Failure> {
        /// An instance may also cease to be about to come back, of which nobody tells.
        const LOOK_AGAIN: Duration = Duration::from_millis(500);
        let limit = if elsewhere { settings.fallback_patience } else { settings.patience };
        match &mut self.back {
            Some((_, waiting_for, available)) if *waiting_for == role => {
                let left = limit.saturating_sub(self.waited);
                if left.is_zero() {
                    self.impatient = true;
                    self.back = None;
                    return Ok(());
                }
                let started = Instant::now();
                let _ = timeout(left.min(LOOK_AGAIN), available.changed()).await;
                self.waited += started.elapsed();
            }
            _ => match state.wait_for(role, settings.max_waiting) {
                Some(counted) => self.back = Some((counted, role, state.availability.subscribe())),
                None if elsewhere => self.impatient = true,
                None => return Err(Failure::NoInstance),
            },
        }
        Ok(())
    }
}

/// One try to have a request answered by an instance.
struct Attempt<'a> {
    worker: &'a Worker,
    state: &'a Shared,
    settings: &'a Settings,
    instance: &'a Arc<Instance>,
    /// How long the head of the response may take.
    within: Duration,
    /// The head, with what of the body goes with it.
    request: Bytes,
    method: &'a Method,
}

impl Attempt<'_> {
    /// Sends the request for a client, and takes note of how that went. Comes to the connection, the head of the response
    /// on it, and whether the instance took the whole request.
    async fn make(
        self,
        client: &mut Client,
        payload: &mut Payload,
        bytes: &mut u64,
    ) -> Result<(Upstream, ResponseHead, bool), Failed> {
        // A stream can be sent once, so it is not risked on a connection that may just be closing.
        let fresh = payload.is_stream();
        let mut upstream = match self.ready_one(fresh) {
            Some(upstream) => upstream,
            None => {
                let opened = client.unless_gone(Box::pin(self.open())).await;
                opened.map_err(|failure| Failed { failure, refused: false })??
            }
        };
        let mut source = payload.take(self.settings.body_stall);
        let before = upstream.stream.written();
        upstream.stream.send(self.request.clone());
        client.upstream_timer.set((Instant::now() + self.within).into());
        let sent = poll_fn(|cx| self.poll_exchange(&mut upstream, before, &mut source, client, bytes, cx)).await;
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
        let opening = Upstream::open(self.instance, self.worker.ring.as_ref());
        match timeout(self.settings.connect_timeout, opening).await {
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
            crate::failure::Blame::Upstream if failure == Failure::ResetUnsent => {
                // It was closed while it lay idle, and so will the others have been.
                self.instance.forget_connections();
                self.note(failure, None)
            }
            crate::failure::Blame::Upstream => self.note(failure, Some(Finding::Broke)),
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
                        client.upstream_timer.set((Instant::now() + self.within).into());
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
    async fn ask(self) -> Option<Answer> {
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
