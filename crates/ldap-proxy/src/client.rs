//! The life of a client's connection: bytes to the session and back.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::Active;
use crate::ber;
use crate::message::{self, code};
use crate::policy::Refusal;
use crate::pool::{Failure, Leg};
use crate::session::{NO_SERVER, Passed, Session, Todo, Who};
use crate::shared::{Ask, Back, Reply};
use crate::wire::{Stream, Wire};

/// How far the end of the whole proxy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Running,
    /// Connections end once nothing is under way.
    Draining,
    /// They end.
    Cut,
}

/// What waits to be written to one side; with more, nothing is read from the other.
const HIGH: usize = 256 << 10;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client is gone, or has said goodbye.
    Gone,
    /// It is told why.
    Told(&'static str, Refusal),
    /// It takes nothing, so it is told nothing.
    Cut(&'static str),
}

const GOING: End = End::Told("drain", (code::UNAVAILABLE, "the proxy stops; connect again"));
const LOST: End = End::Told("server_lost", (code::UNAVAILABLE, "the LDAP server is gone; connect again"));

enum Event {
    Client(io::Result<usize>),
    Own(io::Result<usize>),
    Back(Back),
    /// There is room again.
    Written,
}

struct Client {
    active: Arc<Active>,
    wire: Wire,
    own: Option<Leg>,
    session: Session,
    address: IpAddr,
    back: mpsc::UnboundedReceiver<Back>,
    reply: Reply,
    /// Over which shared connection of which server each request went.
    places: HashMap<i32, (usize, usize)>,
    /// When it was last of use.
    used: Instant,
    /// Since when a part of a message waits for the rest.
    partial: Option<Instant>,
    /// Since when the client takes nothing of what it is sent.
    stalled: Option<Instant>,
}

/// Serves a client. TLS, if it is to begin at once, has begun.
pub(crate) async fn serve(
    active: Arc<Active>,
    stream: Stream,
    address: IpAddr,
    mut phase: watch::Receiver<Phase>,
) {
    static CLIENTS: AtomicU64 = AtomicU64::new(0);
    let tls = matches!(stream, Stream::Tls(_));
    let (to, back) = mpsc::unbounded_channel();
    let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
    let mut client = Client {
        wire: Wire::new(stream),
        own: None,
        session: Session::new(address, tls),
        address,
        back,
        reply: Reply { client, to, waiting: Arc::new(AtomicUsize::new(0)) },
        places: HashMap::new(),
        used: Instant::now(),
        partial: None,
        stalled: None,
        active,
    };
    let end = client.run(&mut phase).await;
    client.watch();
    let reason = match end {
        End::Gone => "client",
        End::Told(reason, (code, text)) => {
            client.wire.output.extend_from_slice(&message::notice(code, text));
            reason
        }
        End::Cut(reason) => reason,
    };
    for id in client.session.shared().collect::<Vec<_>>() {
        client.forget(id);
    }
    client.own = None;
    client.active.metrics.closed(reason);
    // What is left for the client goes out if it takes it soon.
    let goodbye = async {
        client.wire.drain().await?;
        tokio::io::AsyncWriteExt::shutdown(&mut client.wire.stream).await
    };
    if !matches!(end, End::Cut(_)) {
        let _ = timeout(Duration::from_secs(2), goodbye).await;
    }
}

impl Client {
    async fn run(&mut self, phase: &mut watch::Receiver<Phase>) -> End {
        loop {
            if let Err(end) = self.requests().await {
                return end;
            }
            self.watch();
            let now = *phase.borrow_and_update();
            if now == Phase::Cut || (now == Phase::Draining && self.session.is_idle()) {
                return GOING;
            }
            let deadline = self.deadline();
            let event = tokio::select! {
                biased;
                event = self.event() => event,
                changed = phase.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return GOING,
                },
                () = sleep_until(deadline.into()) => match self.late(Instant::now()).await {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
            };
            let done = match event {
                Event::Client(Ok(1..)) => {
                    self.partial.get_or_insert_with(Instant::now);
                    Ok(())
                }
                Event::Client(_) => Err(End::Gone),
                Event::Own(Ok(1..)) => self.answers().await,
                Event::Own(Ok(0)) => {
                    self.own_lost(&io::Error::from(io::ErrorKind::UnexpectedEof).into()).await
                }
                Event::Own(Err(error)) => self.own_lost(&error.into()).await,
                Event::Back(back) => self.back(back),
                Event::Written => Ok(()),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Whether requests are read now.
    fn reads(&self) -> bool {
        let room = |wire: &Wire| wire.output.len() < HIGH;
        !self.session.holds() && room(&self.wire) && self.own.as_ref().is_none_or(|own| room(&own.wire))
    }

    /// Whatever happens next on the connections.
    async fn event(&mut self) -> Event {
        let reads = self.reads();
        let Self { wire, own, back, stalled, .. } = self;
        poll_fn(|cx| {
            if !wire.is_drained() {
                let full = wire.output.len() >= HIGH;
                match wire.poll_drain(cx) {
                    Poll::Ready(Err(error)) => return Poll::Ready(Event::Client(Err(error))),
                    Poll::Ready(Ok(written)) => {
                        if written > 0 {
                            *stalled = None;
                        }
                        if full && wire.output.len() < HIGH {
                            return Poll::Ready(Event::Written);
                        }
                    }
                    Poll::Pending => {}
                }
                if wire.output.is_empty() {
                    *stalled = None;
                } else {
                    stalled.get_or_insert_with(Instant::now);
                    // Registers for more, where some was written just now.
                    if let Poll::Ready(Err(error)) = wire.poll_drain(cx) {
                        return Poll::Ready(Event::Client(Err(error)));
                    }
                }
            }
            if let Some(own) = own {
                let full = own.wire.output.len() >= HIGH;
                if !own.wire.is_drained()
                    && let Poll::Ready(Err(error)) = own.wire.poll_drain(cx)
                {
                    return Poll::Ready(Event::Own(Err(error)));
                }
                if full && own.wire.output.len() < HIGH {
                    return Poll::Ready(Event::Written);
                }
                if wire.output.len() < HIGH
                    && let Poll::Ready(read) = own.wire.poll_fill(cx)
                {
                    return Poll::Ready(Event::Own(read));
                }
            }
            if reads && let Poll::Ready(read) = wire.poll_fill(cx) {
                return Poll::Ready(Event::Client(read));
            }
            if wire.output.len() < HIGH
                && let Poll::Ready(Some(message)) = back.poll_recv(cx)
            {
                return Poll::Ready(Event::Back(message));
            }
            Poll::Pending
        })
        .await
    }

    /// Takes the requests that are there.
    async fn requests(&mut self) -> Result<(), End> {
        while self.reads() {
            let largest = self.active.settings.limits.request_bytes as usize;
            let length = match ber::frame(&self.wire.input, largest) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(ber::Malformed::Encoding) => {
                    return Err(End::Told("malformed", (code::PROTOCOL_ERROR, "this is no LDAP message")));
                }
                Err(ber::Malformed::TooLarge) => {
                    let refusal = (code::PROTOCOL_ERROR, "the message is larger than is taken here");
                    return Err(End::Told("too_large", refusal));
                }
            };
            let bytes = self.wire.input.split_to(length);
            self.partial = None;
            let now = Instant::now();
            self.used = now;
            let todo = self.session.request(&self.active.rules, &bytes, now);
            if self.session.is_outdated() {
                self.own = None;
            }
            self.act(todo).await?;
        }
        if self.wire.input.is_empty() {
            self.partial = None;
        }
        Ok(())
    }

    async fn act(&mut self, todo: Todo) -> Result<(), End> {
        match todo {
            Todo::Nothing => {}
            Todo::Say(bytes) => self.wire.output.extend_from_slice(&bytes),
            Todo::Own(bytes) => {
                if self.own.is_none() {
                    self.connect(None).await;
                }
                match &mut self.own {
                    Some(own) => own.wire.output.extend_from_slice(&bytes),
                    None => self.own_missing(),
                }
            }
            Todo::Shared(id) => self.share(id, None),
            Todo::Forget(id) => self.forget(id),
            Todo::StartTls(answer) => self.start_tls(&answer).await?,
            Todo::Unbind => return Err(End::Gone),
            Todo::End(refusal) => return Err(End::Told("malformed", refusal)),
        }
        Ok(())
    }

    async fn connect(&mut self, failed: Option<usize>) {
        let identity = match self.session.who() {
            Who::Service => self.active.identity(),
            Who::Nobody | Who::User(_) => None,
        };
        self.own = self.active.pool.connect(identity, failed).await;
    }

    /// No server could be had.
    fn own_missing(&mut self) {
        let lost = self.session.lost(&self.active.rules, false, Instant::now());
        self.wire.output.extend_from_slice(&lost.say);
    }

    /// The client's own server has closed the connection, or left it without an answer.
    async fn own_lost(&mut self, error: &Failure) -> Result<(), End> {
        let failed = self.own.take().map(|own| own.index);
        if let Some(index) = failed.filter(|_| self.session.waits_since().is_some()) {
            self.active.pool.failed(index, error);
        }
        let lost = self.session.lost(&self.active.rules, true, Instant::now());
        self.wire.output.extend_from_slice(&lost.say);
        if lost.end {
            return Err(LOST);
        }
        if !lost.again.is_empty() {
            self.connect(failed).await;
            match &mut self.own {
                Some(own) => {
                    self.active.metrics.retried.inc_by(lost.again.len() as u64);
                    lost.again.iter().for_each(|request| own.wire.output.extend_from_slice(request));
                }
                None => self.own_missing(),
            }
        }
        Ok(())
    }

    /// Takes the answers that are there.
    async fn answers(&mut self) -> Result<(), End> {
        let largest = self.active.settings.limits.response_bytes as usize;
        let now = Instant::now();
        self.used = now;
        loop {
            let Some(own) = &mut self.own else { return Ok(()) };
            own.read = now;
            let passed = match ber::frame(&own.wire.input, largest) {
                Ok(None) => return Ok(()),
                Ok(Some(length)) => {
                    let bytes = own.wire.input.split_to(length);
                    let passed = message::parse(&bytes).and_then(|response| {
                        self.session.response(&self.active.rules, &response, false, now)
                    });
                    if let Ok(Passed::On) = passed {
                        self.wire.output.extend_from_slice(&bytes);
                    }
                    passed
                }
                Err(error) => Err(error),
            };
            match passed {
                Ok(Passed::On | Passed::Dropped) => {}
                Ok(Passed::Ends) | Err(_) => return self.own_lost(&Failure::Unexpected).await,
            }
        }
    }

    /// Sends a request over a shared connection, but not to the server that has just failed, if there is another.
    fn share(&mut self, id: i32, failed: Option<usize>) {
        let mut failed = failed;
        loop {
            let Some(request) = self.session.shared_request(id) else { return };
            let Ok(request) = message::parse(request) else { return };
            let order = self.active.pool.order(true);
            let index = order.iter().find(|index| Some(**index) != failed).or(order.first());
            let Some(&index) = index else { return };
            let ask = Ask::Send { id, rest: request.rest.to_vec(), reply: self.reply.clone() };
            if let Some(queue) = self.active.shared.get(index).and_then(|shared| shared.send(ask)) {
                self.places.insert(id, (index, queue));
                return;
            }
            failed = Some(index);
            if let Some(say) = self.session.shared_lost(&self.active.rules, id, NO_SERVER, Instant::now()) {
                self.wire.output.extend_from_slice(&say);
                return;
            }
        }
    }

    fn forget(&mut self, id: i32) {
        if let Some((index, queue)) = self.places.remove(&id)
            && let Some(shared) = self.active.shared.get(index)
        {
            shared.forget(queue, id, self.reply.client);
        }
    }

    /// Takes what came over a shared connection.
    fn back(&mut self, back: Back) -> Result<(), End> {
        let now = Instant::now();
        self.used = now;
        match back {
            Back::Message(bytes) => {
                self.reply.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                let passed = message::parse(&bytes)
                    .and_then(|response| self.session.response(&self.active.rules, &response, true, now));
                match passed {
                    Ok(Passed::On) => self.wire.output.extend_from_slice(&bytes),
                    Ok(Passed::Dropped | Passed::Ends) => {}
                    Err(_) => return Err(LOST),
                }
            }
            Back::Lost(id, index) => {
                self.places.remove(&id);
                if let Some(say) = self.session.shared_lost(&self.active.rules, id, NO_SERVER, now) {
                    self.wire.output.extend_from_slice(&say);
                } else {
                    self.active.metrics.retried.inc();
                    self.share(id, Some(index));
                }
            }
            Back::Overflow(id) => {
                self.places.remove(&id);
                let refusal = (code::ADMIN_LIMIT_EXCEEDED, "too much of the answer was left unread");
                if let Some(say) = self.session.shared_lost(&self.active.rules, id, refusal, now) {
                    self.wire.output.extend_from_slice(&say);
                }
            }
        }
        Ok(())
    }

    async fn start_tls(&mut self, answer: &[u8]) -> Result<(), End> {
        // What came in the clear behind the request would count as sent within TLS.
        if !self.wire.input.is_empty() {
            let refusal = (code::PROTOCOL_ERROR, "nothing may follow StartTLS before its answer");
            return Err(End::Told("malformed", refusal));
        }
        let Some(acceptor) = &self.active.acceptor else { return Ok(()) };
        let within = Duration::from_secs(self.active.settings.limits.io_seconds.into());
        self.wire.output.extend_from_slice(answer);
        let encrypted = async {
            self.wire.drain().await?;
            encrypt(acceptor, std::mem::replace(&mut self.wire.stream, Stream::Gone)).await
        };
        match timeout(within, encrypted).await {
            Ok(Ok(stream)) => {
                self.wire = Wire::new(stream);
                self.session.encrypted();
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::debug!(client = %self.address, %error, "TLS failed");
                Err(End::Cut("tls"))
            }
            Err(_) => Err(End::Cut("slow")),
        }
    }

    /// Tells those who watch what is over.
    fn watch(&mut self) {
        for record in self.session.records.drain(..) {
            let server = self.own.as_ref().map(|own| &*own.server.name).filter(|_| record.own.is_none());
            self.active.metrics.record(self.address, &record, server);
        }
    }

    /// When to look next whether something takes too long.
    fn deadline(&self) -> Instant {
        /// Where nothing is limited.
        const NEVER: Duration = Duration::from_secs(86_400);
        self.dues().into_iter().flatten().min().unwrap_or_else(|| Instant::now() + NEVER)
    }

    /// When it is too late for the client to take something, to send the rest of a message, for the server to answer, and for
    /// the client to have done nothing.
    fn dues(&self) -> [Option<Instant>; 4] {
        let limits = &self.active.settings.limits;
        let io = Duration::from_secs(limits.io_seconds.into());
        let seconds = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        let response = seconds(self.active.settings.upstream.response_seconds);
        let idle = seconds(limits.idle_seconds).filter(|_| self.session.is_idle());
        let silent =
            self.own.as_ref().zip(self.session.waits_since()).map(|(own, since)| own.read.max(since));
        [
            self.stalled.map(|since| since + io),
            self.partial.filter(|_| self.reads()).map(|since| since + io),
            silent.zip(response).map(|(since, limit)| since + limit),
            idle.map(|limit| self.used + limit),
        ]
    }

    /// Something takes too long.
    async fn late(&mut self, now: Instant) -> Result<(), End> {
        let late = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let [stalled, partial, silent, idle] = self.dues();
        if late(stalled) {
            return Err(End::Cut("slow"));
        }
        if late(partial) {
            let refusal = (code::ADMIN_LIMIT_EXCEEDED, "the rest of a message did not come in time");
            return Err(End::Told("slow", refusal));
        }
        if late(silent) {
            return self.own_lost(&Failure::Slow).await;
        }
        if late(idle) {
            return Err(End::Told("idle", (code::ADMIN_LIMIT_EXCEEDED, "the connection was idle too long")));
        }
        Ok(())
    }
}

/// Begins TLS with a client.
pub(crate) async fn encrypt(acceptor: &TlsAcceptor, stream: Stream) -> io::Result<Stream> {
    match stream {
        Stream::Plain(socket) => Ok(Stream::Tls(Box::new(acceptor.accept(socket).await?.into()))),
        other => Ok(other),
    }
}
