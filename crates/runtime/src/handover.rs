//! How a router's sockets pass to the one that replaces it, so that no connection is refused or lost in between.
//!
//! A running router listens on a unix socket for its successor. Whoever connects gets the listening sockets, that one among
//! them, and does all that could fail. Then it says that it is ready; the old one stops taking connections and
//! says that the sockets are the new one's. Connections that came meanwhile wait in the sockets. If the new one ends before
//! it is ready, nothing has happened.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use service::bind_unix;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::listen::{Given, Sockets};
use crate::up::UpError;

/// What comes with the sockets; the number is of this protocol.
const SOCKETS: &[u8; 10] = b"sockets 1\n";
/// What the new router says when it could begin.
const READY: &[u8; 6] = b"ready\n";
/// What the old one says when it has stopped.
const YOURS: &[u8; 6] = b"yours\n";

/// The most sockets that pass.
const MOST: usize = 8;

/// The most successors that get ready at once.
const SUCCESSORS: usize = 8;

/// How long the other side may take for what needs no time.
const ANSWER: Duration = Duration::from_secs(10);

/// The router that runs, as its successor sees it.
pub(crate) struct Predecessor {
    stream: UnixStream,
    /// The handover socket.
    listener: OwnedFd,
}

impl Predecessor {
    /// Asks the router that listens there, if one does, for its sockets.
    pub(crate) async fn find(path: &Path) -> Result<Option<(Self, Given)>, UpError> {
        let failed = failed(path);
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(&format!("{error}; give a path in a directory of this user's"))),
        };
        if !is_ours(&stream) {
            return Err(failed(
                "another user's program listens there; give a path in a directory of this user's",
            ));
        }
        let received = timeout(ANSWER, receive(&stream)).await;
        let received = received.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut fds =
            received.map_err(|error| failed(&format!("the router there gives no sockets: {error}")))?;
        if fds.is_empty() {
            return Err(failed("the router there gives no sockets"));
        }
        let listener = fds.remove(0);
        let given = Given::new(fds.into_iter()).map_err(|error| failed(&error.to_string()))?;
        Ok(Some((Self { stream, listener }, given)))
    }

    /// Tells it that this process can begin, and waits until it has stopped.
    pub(crate) async fn relieve(mut self, path: &Path) -> Result<OwnedFd, UpError> {
        let mut answer = [0; YOURS.len()];
        let told = async {
            self.stream.write_all(READY).await?;
            self.stream.read_exact(&mut answer).await
        };
        match timeout(ANSWER, told).await {
            Ok(Ok(_)) if answer == *YOURS => return Ok(self.listener),
            Err(_) => {
                return Err(failed(path)(
                    "the router there does not stop; end it (SIGTERM), and start again",
                ));
            }
            Ok(_) => {}
        }
        // It ended without a word: by itself, or because another process was ready before this one.
        drop(self.listener);
        match UnixStream::connect(path).await {
            Ok(_) => Err(failed(path)("another new router was ready first; nothing is left to do")),
            Err(_) => own(path).await,
        }
    }
}

/// Makes the handover socket.
pub(crate) async fn own(path: &Path) -> Result<OwnedFd, UpError> {
    let told =
        |error: io::Error| failed(path)(&format!("{error}; give a path in a directory of this user's"));
    bind_unix(path, 0o600).await.map(OwnedFd::from).map_err(told)
}

fn failed(path: &Path) -> impl Fn(&str) -> UpError {
    move |reason| UpError::Handover { path: path.to_owned(), reason: reason.to_owned() }
}

/// Whether the other side is a process of the same user.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw())
}

/// Waits for the one that will replace this router.
pub(crate) struct Handover {
    listener: UnixListener,
    /// The handover socket and the router's.
    fds: Vec<OwnedFd>,
    successors: JoinSet<io::Result<Successor>>,
}

/// A router that is ready to replace this one.
pub(crate) struct Successor {
    stream: UnixStream,
    /// The number of its process.
    pub(crate) pid: Option<u32>,
}

impl Successor {
    /// Tells it that the sockets are its own.
    pub(crate) async fn begin(mut self) -> io::Result<()> {
        self.stream.write_all(YOURS).await
    }
}

impl Handover {
    pub(crate) fn new(listener: OwnedFd, sockets: &Sockets) -> io::Result<Self> {
        let fds = [listener.as_fd()].into_iter().chain(sockets.fds()).map(|fd| fd.try_clone_to_owned());
        let fds = fds.collect::<io::Result<_>>()?;
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, fds, successors: JoinSet::new() })
    }

    /// Waits until a successor is ready. May be given up and called again.
    pub(crate) async fn next(&mut self) -> io::Result<Successor> {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.successors.len() < SUCCESSORS => {
                    let (stream, _) = accepted?;
                    if !is_ours(&stream) {
                        tracing::warn!("another user's process asked for the router's sockets, in vain");
                        continue;
                    }
                    let fds = self.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?;
                    self.successors.spawn(offer(stream, fds));
                }
                Some(ended) = self.successors.join_next() => match ended {
                    Ok(Ok(successor)) => return Ok(successor),
                    Ok(Err(error)) => tracing::warn!(%error, "a new router ended before it was ready; this one goes on"),
                    Err(_) => {}
                }
            }
        }
    }
}

/// Gives the sockets, and waits until the other side could begin.
async fn offer(mut stream: UnixStream, fds: Vec<OwnedFd>) -> io::Result<Successor> {
    let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
    send(&stream, &fds).await?;
    let mut said = [0; READY.len()];
    // However long it takes: if it ends before, so does this.
    stream.read_exact(&mut said).await?;
    if said == *READY { Ok(Successor { stream, pid }) } else { Err(io::ErrorKind::InvalidData.into()) }
}

async fn send(stream: &UnixStream, fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // So little is sent whole or not at all.
            sendmsg(stream, &[IoSlice::new(SOCKETS)], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

async fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut said = [0; SOCKETS.len()];
            let message =
                recvmsg(stream, &mut [IoSliceMut::new(&mut said)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let fds = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            let fds = fds.flatten().collect();
            match message.bytes {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ if said == *SOCKETS => Ok(fds),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version")),
            }
        })
        .await
}
