//! The ring and its sockets.
#![expect(
    unsafe_code,
    reason = "operations name memory that must stay where it is until the kernel is done with it"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use io_uring::squeue::Flags;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::pool::{GROUP, Pool};

/// How many operations are submitted at once. More wait for the next call within the same turn.
const ENTRIES: u32 = 512;
/// The most completions that the kernel keeps before it has to set memory aside for more.
const COMPLETIONS: u32 = 4096;
/// The most calls of the kernel in one turn.
const MAX_ROUNDS: usize = 64;
/// `IORING_RECVSEND_POLL_FIRST`: wait until something is there instead of looking first, in vain.
const POLL_FIRST: u16 = 1;
/// `IORING_ENTER_GETEVENTS`: let what was deferred happen.
const GETEVENTS: u32 = 1;
/// The completion of a cancellation, of which nobody waits for the outcome.
const NOBODY: u64 = u64::MAX;

/// One thread's `io_uring`. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Ring(Rc<Inner>);

struct Inner {
    uring: ManuallyDrop<RefCell<IoUring>>,
    state: ManuallyDrop<RefCell<State>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    pool: Pool,
    operations: Slab<Operation>,
    queued: VecDeque<squeue::Entry>,
    /// Descriptors of sockets that were dropped, to be closed once nothing that is queued names them.
    closing: Vec<OwnedFd>,
    woken: Vec<Waker>,
}

/// Something that the kernel was asked for, or is about to be.
#[derive(Debug)]
struct Operation {
    waker: Option<Waker>,
    /// Its socket was dropped.
    orphan: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Receive { fd: RawFd, done: Option<io::Result<Bytes>> },
    Send { fd: RawFd, rest: Bytes, done: Option<io::Result<()>> },
}

impl Operation {
    fn is_done(&self) -> bool {
        match &self.kind {
            Kind::Receive { done, .. } => done.is_some(),
            Kind::Send { done, .. } => done.is_some(),
        }
    }

    fn entry(&self, key: usize, poll_first: bool) -> squeue::Entry {
        match &self.kind {
            Kind::Receive { fd, .. } => opcode::Recv::new(Fd(*fd), std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .ioprio(if poll_first { POLL_FIRST } else { 0 })
                .build()
                .flags(Flags::BUFFER_SELECT),
            Kind::Send { fd, rest, .. } => {
                let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                opcode::Send::new(Fd(*fd), rest.as_ptr(), length)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .build()
            }
        }
        .user_data(key as u64)
    }
}

impl Ring {
    /// Makes a ring for this thread. Fails where the kernel is older than 6.1 or does not let this process have one, as
    /// in many containers.
    pub fn new() -> io::Result<Self> {
        let uring: IoUring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)?;
        let pool = Pool::new(&uring.submitter())?;
        let state = State {
            pool,
            operations: Slab::new(),
            queued: VecDeque::new(),
            closing: Vec::new(),
            woken: Vec::new(),
        };
        Ok(Self(Rc::new(Inner {
            uring: ManuallyDrop::new(RefCell::new(uring)),
            state: ManuallyDrop::new(RefCell::new(state)),
        })))
    }

    /// Submits what is queued, takes in what is done, and wakes who waits for it. To be called whenever the thread would
    /// go to sleep.
    pub fn turn(&self) {
        let mut uring = self.0.uring.borrow_mut();
        let mut state = self.0.state.borrow_mut();
        // More rounds than one are for what did not fit; that they end at all shall not be up to the kernel.
        for _ in 0..MAX_ROUNDS {
            let state = &mut *state;
            {
                let mut submission = uring.submission();
                state.push(&mut submission);
                submission.sync();
                if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
                    drop(submission);
                    if uring.completion().is_empty() {
                        break;
                    }
                }
            }
            enter(&uring);
            if state.queued.is_empty() && uring.submission().is_empty() {
                state.closing.clear();
            }
            let mut completion = uring.completion();
            completion.sync();
            for entry in completion {
                state.complete(&entry);
            }
        }
        let mut woken = std::mem::take(&mut state.woken);
        drop((uring, state));
        woken.drain(..).for_each(Waker::wake);
        self.0.state.borrow_mut().woken = woken;
    }

    /// Takes turns whenever the kernel has something while the thread sleeps. Runs for ever, on this thread's runtime.
    pub async fn attend(&self) -> io::Result<()> {
        // SAFETY: the event's descriptor is valid until dropped, which the registration does when it ends.
        let event = unsafe { AsyncFd::register_with_interest(event()?, Interest::READABLE) };
        let event = event.map_err(|error| error.into_parts().1)?;
        self.0.uring.borrow().submitter().register_eventfd(event.as_raw_fd())?;
        loop {
            let mut guard = event.readable().await?;
            // Cleared before looking, so that what comes meanwhile is told of again. It is never read: each event
            // counts, as the readiness is edge-triggered.
            guard.clear_ready();
            self.turn();
        }
    }

    /// A socket of this ring. The descriptor must be that of a connected stream socket, in blocking mode.
    pub fn socket(&self, fd: OwnedFd) -> Socket {
        Socket { ring: self.clone(), fd: Some(fd), receiving: None, sending: None, eager: true, written: 0 }
    }

    /// How many operations are under way.
    pub fn under_way(&self) -> usize {
        self.0.state.borrow().operations.len()
    }
}

/// What the kernel signals that there is work: of a ring with deferred work its own descriptor tells nothing.
fn event() -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Submits, and lets what was deferred happen.
fn enter(uring: &IoUring) {
    // SAFETY: only the count is read; the entries were pushed above.
    let waiting = unsafe { uring.submission_shared() }.len();
    let waiting = u32::try_from(waiting).unwrap_or(ENTRIES);
    // SAFETY: no argument is passed beside numbers.
    let result = unsafe { uring.submitter().enter::<libc::sigset_t>(waiting, 0, GETEVENTS, None) };
    // Interrupted or short of memory: what was not submitted stays in the queue, and the next round tries again.
    let _ = result;
}

impl State {
    /// Puts what is queued where the kernel finds it, as far as there is room.
    fn push(&mut self, submission: &mut squeue::SubmissionQueue<'_>) {
        while let Some(entry) = self.queued.front() {
            // SAFETY: what the entry points to, if anything, belongs to an operation in the slab, which stays until its
            // completion was seen.
            if unsafe { submission.push(entry) }.is_err() {
                break;
            }
            self.queued.pop_front();
        }
    }

    /// Takes in a completion.
    fn complete(&mut self, entry: &cqueue::Entry) {
        if entry.user_data() == NOBODY {
            return;
        }
        let key = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
        let result = match entry.result() {
            n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
            n => Ok(usize::try_from(n).unwrap_or(0)),
        };
        let Self { pool, operations, queued, woken, .. } = self;
        // A buffer that was chosen must be given back, whoever wanted it.
        let data = cqueue::buffer_select(entry.flags())
            .map(|number| pool.take(number, *result.as_ref().unwrap_or(&0)));
        let Some(operation) = operations.get_mut(key) else { return };
        match &mut operation.kind {
            Kind::Receive { done, .. } => {
                if matches!(&result, Err(error) if error.raw_os_error() == Some(libc::ENOBUFS))
                    && !operation.orphan
                {
                    // All buffers were in use; those of this round are given back by now.
                    queued.push_back(operation.entry(key, false));
                    return;
                }
                *done = Some(result.map(|_| data.unwrap_or_default()));
            }
            Kind::Send { rest, done, .. } => match result {
                Ok(sent) if sent < rest.len() && sent > 0 && !operation.orphan => {
                    rest.advance(sent);
                    queued.push_back(operation.entry(key, false));
                    return;
                }
                Ok(sent) if sent < rest.len() => *done = Some(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => *done = Some(Ok(())),
                Err(error) => *done = Some(Err(error)),
            },
        }
        if operation.orphan {
            operations.remove(key);
        } else if let Some(waker) = operation.waker.take() {
            woken.push(waker);
        }
    }

    fn start(&mut self, kind: Kind, waker: Option<Waker>, poll_first: bool) -> usize {
        let key = self.operations.insert(Operation { waker, orphan: false, kind });
        self.queued.push_back(self.operations[key].entry(key, poll_first));
        key
    }

    /// Whether an operation is done; if not, who is to be woken when it is.
    fn is_done(&mut self, key: usize, cx: &Context<'_>) -> bool {
        let operation = &mut self.operations[key];
        if operation.is_done() {
            return true;
        }
        match &mut operation.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        false
    }

    /// Has an operation end whose socket is gone.
    fn abandon(&mut self, key: usize) {
        if self.operations[key].is_done() {
            self.operations.remove(key);
            return;
        }
        let operation = &mut self.operations[key];
        operation.orphan = true;
        operation.waker = None;
        self.queued.push_back(opcode::AsyncCancel::new(key as u64).build().user_data(NOBODY));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // All sockets are gone, for they hold the ring: what is still under way was cancelled.
        let uring = self.uring.get_mut();
        let state = self.state.get_mut();
        for _ in 0..1000 {
            if state.operations.is_empty() && state.queued.is_empty() {
                break;
            }
            state.push(&mut uring.submission());
            enter(uring);
            for entry in uring.completion() {
                state.complete(&entry);
            }
        }
        if state.operations.is_empty() {
            // SAFETY: dropped here and nowhere else. Closing the ring comes first: after it the kernel has no use for
            // the pool, as nothing is under way.
            unsafe { ManuallyDrop::drop(&mut self.uring) };
            // SAFETY: likewise.
            unsafe { ManuallyDrop::drop(&mut self.state) };
        }
        // Else both stay for ever: the kernel may still write there.
    }
}

/// A connected stream socket. At most one receive and one send are under way on it.
#[derive(Debug)]
pub struct Socket {
    ring: Ring,
    /// None only while it is dropped.
    fd: Option<OwnedFd>,
    receiving: Option<usize>,
    sending: Option<usize>,
    /// Something is likely to be there already: so it is with a new connection, and after a full buffer.
    eager: bool,
    written: u64,
}

impl Socket {
    fn raw(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// What arrives next, at most a buffer full; nothing at the end of the stream. Dropping the caller loses nothing:
    /// what came meanwhile is there at the next call.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        self.listen();
        let Some(key) = self.receiving else { return Poll::Pending };
        let mut state = self.ring.0.state.borrow_mut();
        if !state.is_done(key, cx) {
            return Poll::Pending;
        }
        self.receiving = None;
        let Kind::Receive { done: Some(result), .. } = state.operations.remove(key).kind else {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        self.eager = result.as_ref().is_ok_and(|data| data.len() >= crate::pool::SIZE);
        Poll::Ready(result)
    }

    /// Begins to receive, if it does not already, without waiting for anything.
    pub fn listen(&mut self) {
        if self.receiving.is_none() {
            let kind = Kind::Receive { fd: self.raw(), done: None };
            let key = self.ring.0.state.borrow_mut().start(kind, None, !self.eager);
            self.receiving = Some(key);
        }
    }

    /// Whether [`Socket::poll_receive`] would have something now: data, the end, or an error.
    pub fn has_received(&self) -> bool {
        self.receiving.is_some_and(|key| self.ring.0.state.borrow().operations[key].is_done())
    }

    /// Begins to send. What was sent before must have been waited for ([`Socket::poll_sent`]).
    pub fn send(&mut self, data: Bytes) {
        debug_assert!(self.sending.is_none(), "two sends at once");
        if data.is_empty() {
            return;
        }
        self.written += data.len() as u64;
        let kind = Kind::Send { fd: self.raw(), rest: data, done: None };
        let key = self.ring.0.state.borrow_mut().start(kind, None, false);
        self.sending = Some(key);
    }

    /// Waits until what was sent last was taken by the kernel.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(key) = self.sending else { return Poll::Ready(Ok(())) };
        let mut state = self.ring.0.state.borrow_mut();
        if !state.is_done(key, cx) {
            return Poll::Pending;
        }
        self.sending = None;
        let Kind::Send { rest, done: Some(result), .. } = state.operations.remove(key).kind else {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        if result.is_err() {
            self.written -= rest.len() as u64;
        }
        Poll::Ready(result)
    }

    /// Bytes that were sent, or are on their way; after a failure, those that the kernel took.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Tells the other side that nothing more will come.
    pub fn shutdown(&self) {
        if let Some(fd) = &self.fd {
            // SAFETY: the descriptor is open. A failure means that the other side has gone already.
            let _ = unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.ring.0.state.borrow_mut();
        for key in [self.receiving.take(), self.sending.take()].into_iter().flatten() {
            state.abandon(key);
        }
        // What is queued may still name it, and a new descriptor of the same number must not be mistaken for it.
        state.closing.extend(self.fd.take());
    }
}
