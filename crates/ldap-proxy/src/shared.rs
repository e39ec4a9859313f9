//! Connections that many clients' searches go over, each message with an ID of its own.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::ber;
use crate::message::{self, op};
use crate::pool::{Failure, Identity, Leg, Pool};

/// What a shared connection is asked.
#[derive(Debug)]
pub(crate) enum Ask {
    /// To send this operation, whose ID is so at the client.
    Send { id: i32, rest: Vec<u8>, reply: Reply },
    /// To give it up.
    Forget { id: i32, client: u64 },
}

/// What a client hears.
#[derive(Debug)]
pub(crate) enum Back {
    /// A message, with the client's ID.
    Message(Vec<u8>),
    /// The connection is gone, to this server.
    Lost(i32, usize),
    /// The client has left too much of what it asked for.
    Overflow(i32),
}

/// Where answers go.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) client: u64,
    pub(crate) to: mpsc::UnboundedSender<Back>,
    /// How many bytes wait there.
    pub(crate) waiting: Arc<AtomicUsize>,
}

/// How many bytes may wait for a client.
const MOST_WAITING: usize = 8 << 20;

/// How many requests may wait for a shared connection.
const QUEUE: usize = 1024;

/// The shared connections to one server.
#[derive(Debug)]
pub(crate) struct Connections {
    queues: Vec<mpsc::Sender<Ask>>,
    next: AtomicUsize,
}

impl Connections {
    /// So many, each of which comes about when it is needed.
    pub(crate) fn new(count: u32, mut start: impl FnMut(mpsc::Receiver<Ask>)) -> Self {
        let queues = (0..count)
            .map(|_| {
                let (queue, asked) = mpsc::channel(QUEUE);
                start(asked);
                queue
            })
            .collect();
        Self { queues, next: AtomicUsize::new(0) }
    }

    /// Sends over one of them, and says over which. None where it has enough to do.
    pub(crate) fn send(&self, ask: Ask) -> Option<usize> {
        let queue = self.next.fetch_add(1, Ordering::Relaxed) % self.queues.len();
        self.queues[queue].try_send(ask).ok().map(|()| queue)
    }

    pub(crate) fn forget(&self, queue: usize, id: i32, client: u64) {
        // Where the queue is full, the answer comes and is dropped.
        let _ = self.queues[queue].try_send(Ask::Forget { id, client });
    }
}

/// The life of one, until nobody can ask it any more.
pub(crate) async fn run(
    pool: &Pool,
    index: usize,
    identity: Identity<'_>,
    mut asked: mpsc::Receiver<Ask>,
    response: Option<Duration>,
    largest: usize,
) {
    while let Some(first) = asked.recv().await {
        let Ask::Send { id, reply, .. } = &first else { continue };
        match pool.reach(index, identity).await {
            Ok(leg) => {
                let mut one = One { leg, under_way: HashMap::new(), last: 0 };
                one.take(first);
                let error = one.serve(&mut asked, response, largest).await;
                let waiting = one.under_way.len();
                if waiting > 0 {
                    pool.failed(index, &error);
                }
                for (_, (id, reply)) in one.under_way.drain() {
                    let _ = reply.to.send(Back::Lost(id, index));
                }
                let count = u32::try_from(waiting).unwrap_or(u32::MAX);
                pool.servers[index].outstanding.fetch_sub(count, Ordering::Relaxed);
            }
            Err(error) => {
                if matches!(error, Failure::Bind(_)) {
                    tracing::error!(server = %pool.servers[index].name, %error, "`service` cannot bind");
                }
                pool.failed(index, &error);
                let _ = reply.to.send(Back::Lost(*id, index));
                // Those that waited meanwhile would only wait longer.
                while let Ok(ask) = asked.try_recv() {
                    if let Ask::Send { id, reply, .. } = ask {
                        let _ = reply.to.send(Back::Lost(id, index));
                    }
                }
            }
        }
    }
}

struct One {
    leg: Leg,
    under_way: HashMap<i32, (i32, Reply)>,
    last: i32,
}

enum Event {
    Asked(Option<Ask>),
    Read(std::io::Result<usize>),
}

impl One {
    /// Until the connection fails, or nobody asks any more.
    async fn serve(
        &mut self,
        asked: &mut mpsc::Receiver<Ask>,
        response: Option<Duration>,
        largest: usize,
    ) -> Failure {
        /// What waits to be sent; more is not taken.
        const HIGH: usize = 256 << 10;
        loop {
            let wire = &mut self.leg.wire;
            let event = poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = wire.poll_drain(cx) {
                    return Poll::Ready(Event::Read(Err(error)));
                }
                if let Poll::Ready(read) = wire.poll_fill(cx) {
                    return Poll::Ready(Event::Read(read));
                }
                if wire.output.len() < HIGH
                    && let Poll::Ready(ask) = asked.poll_recv(cx)
                {
                    return Poll::Ready(Event::Asked(ask));
                }
                Poll::Pending
            });
            let event = match response.filter(|_| !self.under_way.is_empty()) {
                None => event.await,
                Some(limit) => match timeout_at((self.leg.read + limit).into(), event).await {
                    Ok(event) => event,
                    Err(_) => return Failure::Slow,
                },
            };
            match event {
                Event::Asked(None) => return Failure::Unexpected,
                Event::Asked(Some(ask)) => self.take(ask),
                Event::Read(Ok(0)) => return std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
                Event::Read(Err(error)) => return error.into(),
                Event::Read(Ok(_)) => {
                    self.leg.read = Instant::now();
                    if self.answers(largest).is_err() {
                        return Failure::Unexpected;
                    }
                }
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Send { id, rest, reply } => {
                let own = self.fresh();
                if self.under_way.is_empty() {
                    self.leg.read = Instant::now();
                }
                self.leg.wire.output.extend_from_slice(&message::with_id(own, &rest));
                self.leg.server.outstanding.fetch_add(1, Ordering::Relaxed);
                self.under_way.insert(own, (id, reply));
            }
            Ask::Forget { id, client } => {
                let found =
                    self.under_way.iter().find(|(_, (known, reply))| *known == id && reply.client == client);
                if let Some(own) = found.map(|(own, _)| *own) {
                    self.give_up(own);
                }
            }
        }
    }

    fn fresh(&mut self) -> i32 {
        loop {
            self.last = if self.last == i32::MAX { 1 } else { self.last + 1 };
            if !self.under_way.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    fn give_up(&mut self, own: i32) {
        self.under_way.remove(&own);
        self.leg.server.outstanding.fetch_sub(1, Ordering::Relaxed);
        let id = self.fresh();
        self.leg.wire.output.extend_from_slice(&message::abandon(id, own));
    }

    fn answers(&mut self, largest: usize) -> Result<(), ber::Malformed> {
        while let Some(length) = ber::frame(&self.leg.wire.input, largest)? {
            let bytes = self.leg.wire.input.split_to(length);
            let answer = message::parse(&bytes)?;
            if answer.id == 0 {
                return Err(ber::Malformed::Encoding);
            }
            // One that was given up.
            let Some((id, reply)) = self.under_way.get(&answer.id) else { continue };
            let over = !matches!(answer.op, op::ENTRY | op::REFERENCE | op::INTERMEDIATE);
            let text = message::with_id(*id, answer.rest);
            if reply.waiting.fetch_add(text.len(), Ordering::Relaxed) > MOST_WAITING {
                let _ = reply.to.send(Back::Overflow(*id));
                self.give_up(answer.id);
                continue;
            }
            let gone = reply.to.send(Back::Message(text)).is_err();
            if over {
                self.under_way.remove(&answer.id);
                self.leg.server.outstanding.fetch_sub(1, Ordering::Relaxed);
            } else if gone {
                self.give_up(answer.id);
            }
        }
        Ok(())
    }
}
