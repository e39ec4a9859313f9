//! The life of a request: decide, take it in, pick an instance, send, answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use model::{Balance, Role};
use routes::{Class, Closed, Decision, Forward, Key, WellKnown};
use tokio::time::timeout;

use crate::answer;
use crate::balance::{Candidate, choose};
use crate::body::{Bounds, Forwarded, Framing, Outgoing, Payload, Progress, Reply, discard, give_back};
use crate::failure::Failure;
use crate::headers;
use crate::instance::{Finding, Instance, Standing};
use crate::key::{self, KeyKind};
use crate::record::Record;
use crate::settings::Settings;
use crate::snapshot::Active;
use crate::state::{Counted, Phase, Place, Shared};
use crate::upstream::Connection;
use crate::whoami::Answer;

/// How a request is answered.
enum Served {
    Here(Response<Full<Bytes>>),
    By { response: Response<Incoming>, connection: Connection, place: Place },
}

/// Answers one request.
pub(crate) async fn handle(
    state: Shared,
    peer: Option<IpAddr>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let (mut parts, body) = request.into_parts();
    let active = state.active.load_full();
    let trust = active.settings().trust_forwarded_for;
    let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str).to_owned();
    let path = if state.access.is_on() { key::loggable(&target) } else { String::new() };
    let client = headers::client_address(&parts.headers, peer, trust);
    let mut record = Record::new(state.clone(), parts.method.clone(), path, client);

    let framing = headers::check(&parts);
    // A client that waits for leave to send its body has not sent it.
    let expects = parts.headers.contains_key(http::header::EXPECT);
    let mut taking = Taking { body: Some(body), payload: None, framing: framing.unwrap_or(Framing::None) };
    let served = if let Err(failure) = framing {
        Err(failure)
    } else {
        headers::prepare(&mut parts, peer, trust, &record.id);
        let journey = Journey { state: &state, parts: &mut parts, target: &target };
        tokio::select! {
            served = journey.travel(active.clone(), &mut taking, &mut record) => served,
            () = ending(&state) => Err(Failure::Stopping),
        }
    };
    if !expects && !matches!(served, Ok(Served::By { .. })) {
        taking.discard();
    }

    let mut response = match served {
        Ok(Served::By { response, connection, place }) => {
            let (mut head, incoming) = response.into_parts();
            headers::strip_hop_by_hop(&mut head.headers);
            record.status = Some(head.status);
            let settings = active.settings();
            let body = Forwarded::new(
                incoming,
                connection,
                place,
                record,
                settings.response_stall,
                settings.upstream_idle_max,
            );
            Response::from_parts(head, Reply::Forwarded(Box::new(body)))
        }
        Ok(Served::Here(response)) => {
            record.status = Some(response.status());
            record.bytes_out = length(&response);
            record.finish(None);
            response.map(Reply::Full)
        }
        Err(failure) => {
            let response = answer::failure(failure);
            record.status = Some(response.status());
            record.bytes_out = length(&response);
            record.finish(Some(failure));
            response.map(Reply::Full)
        }
    };
    // A request framed by chunks might have had a length as well, which the parser then drops: whoever stands in
    // front may have read it otherwise, so nothing more is read from this connection (RFC 9112, section 6.3).
    if parts.version == Version::HTTP_11
        && (framing == Ok(Framing::Chunked) || framing == Err(Failure::ClientMalformed))
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn length(response: &Response<Full<Bytes>>) -> u64 {
    response.body().size_hint().exact().unwrap_or_default()
}

/// Ends when requests that wait must be answered.
async fn ending(state: &Shared) {
    let mut phase = state.phase.subscribe();
    // The sender lives in the state.
    let _ = phase.wait_for(|phase| *phase >= Phase::Ending).await;
}

/// The request body, from where the client left it to where it can be sent.
struct Taking {
    body: Option<Incoming>,
    payload: Option<Payload>,
    framing: Framing,
}

impl Taking {
    /// Reads away what was not wanted.
    fn discard(self) {
        let ((Some(body), _) | (None, Some(Payload::Stream(Some(body), _)))) = (self.body, self.payload)
        else {
            return;
        };
        if self.framing != Framing::None {
            discard(body);
        }
    }
}

/// A request on its way.
struct Journey<'a> {
    state: &'a Shared,
    /// Its head, ready to be sent to an instance.
    parts: &'a mut Parts,
    /// Path and query as the client sent them.
    target: &'a str,
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
    Here(Response<Full<Bytes>>),
}

impl Journey<'_> {
    async fn travel(
        self,
        mut active: Arc<Active>,
        taking: &mut Taking,
        record: &mut Record,
    ) -> Result<Served, Failure> {
        let state = self.state;
        let mut wait = Waits::default();
        let mut attempts = Attempts::default();
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
            let payload = match &mut taking.payload {
                Some(payload) => payload,
                none => {
                    if !forward.route.known() {
                        state.metrics.unknown_paths.inc();
                    }
                    let Some(body) = taking.body.take() else { return Err(Failure::ClientGone) };
                    let bounds = bounds(class, settings);
                    let payload =
                        Payload::prepare(body, taking.framing, bounds, &record.progress, &state.spools)
                            .await?;
                    headers::set_length(&mut self.parts.headers, taking.framing, payload.length());
                    none.insert(payload)
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
                        let result = attempt(
                            state,
                            settings,
                            &instance,
                            within,
                            self.parts,
                            payload,
                            &record.progress,
                        )
                        .await;
                        record.upstream = Some(started.elapsed());
                        let failed = match result {
                            Ok((response, connection)) => {
                                state.metrics.upstream(class.name, started.elapsed());
                                return Ok(Served::By { response, connection, place });
                            }
                            Err(failed) => failed,
                        };
                        drop(place);
                        let failure = failed.failure;
                        let may = failure.may_retry(&self.parts.method) && !payload.is_spent();
                        if !(may && attempts.another(&failed, &instance, settings)) {
                            return Err(failure);
                        }
                        record.retried += 1;
                        state.metrics.retry(&instance.name, failure.label());
                    }
                    Pick::Full(role) => wait.for_place(state, settings, class, role).await?,
                    Pick::Returning { role, elsewhere } => {
                        wait.for_return(state, settings, role, elsewhere).await?;
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
        let method = self.parts.method.as_str();
        let closed = |kind: Closed| {
            self.state.metrics.closed(kind.name());
            Err(Failure::Closed)
        };
        if let Some(resolved) = headers::without_dots(self.target)
            && let Decision::Closed(kind) = matcher.decide(method, &resolved)
        {
            return closed(kind);
        }
        match matcher.decide(method, self.target) {
            Decision::Forward(forward) => Ok(Decided::Forward(forward)),
            Decision::Preflight => Ok(Decided::Here(answer::preflight())),
            Decision::Landing => Ok(Decided::Here(answer::landing())),
            Decision::WellKnown(document) => self.well_known(active, document).map(Decided::Here),
            Decision::Closed(kind) => closed(kind),
            Decision::NotFound if self.parts.method == Method::OPTIONS => {
                Ok(Decided::Here(answer::preflight()))
            }
            Decision::NotFound => Err(Failure::NotFound),
        }
    }

    fn well_known(&self, active: &Active, document: WellKnown) -> Result<Response<Full<Bytes>>, Failure> {
        let text = match document {
            WellKnown::Client => Some(&active.snapshot.well_known_client),
            WellKnown::Server => active.snapshot.well_known_server.as_ref(),
        };
        match self.parts.method {
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
            Key::Room => (routes::hash_room(self.target.get(forward.room.clone()?)?), KeyKind::Room),
            Key::User => self.user(active).await?,
            Key::Origin => match key::origin(&self.parts.headers) {
                Some(origin) => (routes::hash_key(origin.as_bytes()), KeyKind::Origin),
                None => (routes::hash_key(record.client?.to_string().as_bytes()), KeyKind::Address),
            },
        };
        record.key = Some(kind);
        Some(hash)
    }

    async fn user(&self, active: &Arc<Active>) -> Option<(u64, KeyKind)> {
        let token = key::access_token(&self.parts.headers, self.target)?;
        if let Some(localpart) = key::localpart_of_token(&token) {
            return Some((routes::hash_key(localpart.as_bytes()), KeyKind::Token));
        }
        // Only application services may say on whose behalf they ask; for others Synapse ignores it, and so little
        // is lost by believing it.
        if let Some(user) = key::query_value(self.target, "user_id").filter(|user| !user.is_empty()) {
            return Some((routes::hash_key(key::localpart_of_user(&user).as_bytes()), KeyKind::Masquerade));
        }
        let ask = || ask_whoami(self.state, active, &self.parts.headers, &token);
        let (answer, how) = self.state.whoami.find(&token, active.settings(), ask).await;
        self.state.metrics.whoami(how);
        Some(match answer {
            Answer::User(hash) => (hash, KeyKind::Whoami),
            Answer::Nobody | Answer::Unknown => (routes::hash_key(token.as_bytes()), KeyKind::TokenHash),
        })
    }
}

/// What bounds the reading of a request body of this class.
fn bounds(class: &Class, settings: &Settings) -> Bounds {
    let max = class.max_body(settings.max_upload_bytes, settings.max_body_bytes);
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

/// Sends a request to an instance once, and takes note of how that went.
async fn attempt(
    state: &Shared,
    settings: &Settings,
    instance: &Arc<Instance>,
    within: Duration,
    head: &Parts,
    payload: &mut Payload,
    progress: &Arc<Progress>,
) -> Result<(Response<Incoming>, Connection), Failed> {
    let fail = |failure: Failure, finding: Option<Finding>| {
        state.metrics.attempt_failed(&instance.name, failure.label());
        if let Some(finding) = finding {
            instance.note(finding, settings);
        }
        Failed { failure, refused: finding == Some(Finding::Refused) }
    };
    // A stream can be sent once, so it is not risked on a connection that may just be closing.
    let mut connection = match reuse(instance, settings, payload.is_stream()).await {
        Some(connection) => connection,
        None => match Connection::open(&instance.address, settings.connect_timeout).await {
            Ok(connection) => connection,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                return Err(fail(Failure::Connect, Some(Finding::Broke)));
            }
            Err(error) => {
                tracing::debug!(instance = &*instance.name, address = %instance.address, %error, "cannot connect");
                return Err(fail(Failure::Connect, Some(Finding::Refused)));
            }
        },
    };
    let mut request = Request::new(payload.take(settings.body_stall, progress));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    *request.headers_mut() = head.headers.clone();
    match send(&mut connection, request, within, progress).await {
        Ok(response) => {
            instance.note(Finding::Answered, settings);
            Ok((response, connection))
        }
        Err(failure) => Err(match progress.failure() {
            Some(clients) => Failed { failure: clients, refused: false },
            None if failure == Failure::ResetUnsent => {
                // It was closed while it lay idle, and so will the others have been.
                instance.forget_connections();
                fail(failure, None)
            }
            None => fail(failure, Some(Finding::Broke)),
        }),
    }
}

async fn reuse(instance: &Instance, settings: &Settings, fresh: bool) -> Option<Connection> {
    if fresh {
        return None;
    }
    while let Some(mut connection) = instance.take_idle(settings.upstream_idle) {
        if connection.ready().await {
            return Some(connection);
        }
    }
    None
}

/// Sends a request. The time for the response counts from when the request body last moved.
async fn send(
    connection: &mut Connection,
    request: Request<Outgoing>,
    within: Duration,
    progress: &Progress,
) -> Result<Response<Incoming>, Failure> {
    let mut response = std::pin::pin!(connection.send(request));
    let mut seen = progress.bytes();
    loop {
        match timeout(within, &mut response).await {
            Ok(result) => return result,
            Err(_) if progress.bytes() > seen => seen = progress.bytes(),
            Err(_) => return Err(Failure::Timeout),
        }
    }
}

/// The largest answer to `whoami` that is read, in bytes.
const MAX_WHOAMI: usize = 64 << 10;

/// What Synapse says about a token.
#[derive(serde::Deserialize)]
struct Whoami {
    user_id: String,
}

/// Asks Synapse whose a token is.
async fn ask_whoami(state: &Shared, active: &Active, headers: &HeaderMap, token: &str) -> Answer {
    const PATH: &str = "/_matrix/client/v3/account/whoami";
    let Decision::Forward(forward) = active.snapshot.matcher.decide("GET", PATH) else {
        return Answer::Unknown;
    };
    let route = forward.route;
    let choice = Choice { active, chain: &route.chain, class: route.class, key: None, tried: &[] };
    let Pick::Got(place, _) = choice.pick(state, true) else { return Answer::Unknown };
    let Some(headers) = headers::for_whoami(headers, token) else { return Answer::Unknown };

    let (mut parts, ()) = Request::new(()).into_parts();
    parts.uri = Uri::from_static(PATH);
    parts.headers = headers;
    let (settings, instance) = (active.settings(), place.instance().clone());
    let (within, mut payload, progress) = (settings.whoami_timeout, Payload::None, Arc::default());
    let sent = attempt(state, settings, &instance, within, &parts, &mut payload, &progress).await;
    let Ok((response, connection)) = sent else { return Answer::Unknown };
    let status = response.status();
    let Ok(body) = Limited::new(response.into_body(), MAX_WHOAMI).collect().await else {
        return Answer::Unknown;
    };
    give_back(connection, &instance, settings.upstream_idle_max);
    match status {
        StatusCode::OK => match serde_json::from_slice::<Whoami>(&body.to_bytes()) {
            Ok(whoami) => Answer::User(routes::hash_key(key::localpart_of_user(&whoami.user_id).as_bytes())),
            Err(_) => Answer::Unknown,
        },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Answer::Nobody,
        _ => Answer::Unknown,
    }
}
