//! The sockets that the router listens on: given to this process, or bound by it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::Path;

use listenfd::ListenFd;
use model::{ListenAddress, Topology};
use router::{Listener, Router};
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, getsockname};
use service::bind_unix;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::proc;
use crate::up::UpError;

/// A listening socket that belongs to no runtime.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Socket {
    /// Where it listens; none if its name says nothing.
    fn address(&self) -> Option<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(ListenAddress::Tcp),
            Self::Unix(listener) => {
                let path = |address: UnixAddress| address.as_pathname().map(Path::to_owned);
                listener.local_addr().ok().and_then(path).map(ListenAddress::Unix)
            }
        }
    }

    /// The same socket, for the router.
    pub(crate) fn listener(&self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)?.into()
            }
            Self::Unix(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)?.into()
            }
        })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl TryFrom<OwnedFd> for Socket {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        if !socket_acceptconn(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
        }
        match getsockname(&fd)?.address_family() {
            AddressFamily::INET | AddressFamily::INET6 => Ok(Self::Tcp(fd.into())),
            AddressFamily::UNIX => Ok(Self::Unix(fd.into())),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither of TCP nor a unix socket")),
        }
    }
}

/// Listening sockets that this process got from another.
#[derive(Debug, Default)]
pub struct Given(Vec<Socket>);

impl Given {
    /// The sockets of the service manager's (`LISTEN_FDS`, systemd's socket activation). To be called first in a program:
    /// it changes the environment, which no other thread may look at then.
    pub fn from_environment() -> Self {
        let mut fds = ListenFd::from_env();
        let sockets = (0..fds.len()).filter_map(|index| {
            let tcp = fds.take_tcp_listener(index).ok().flatten().map(OwnedFd::from);
            let fd = tcp.or_else(|| fds.take_unix_listener(index).ok().flatten().map(OwnedFd::from));
            // What is of another kind is of no use here.
            Socket::try_from(fd?).ok()
        });
        Self(sockets.collect())
    }

    pub(crate) fn new(fds: impl Iterator<Item = OwnedFd>) -> io::Result<Self> {
        fds.map(Socket::try_from).collect::<io::Result<_>>().map(Self)
    }

    /// The socket that listens there.
    fn take(&mut self, address: &ListenAddress) -> Option<Socket> {
        let at = self.0.iter().position(|socket| socket.address().as_ref() == Some(address))?;
        Some(self.0.swap_remove(at))
    }

    /// Where those listen that nobody took.
    pub(crate) fn left(&self) -> impl Iterator<Item = String> {
        let name = |socket: &Socket| socket.address().map_or_else(|| "nowhere".into(), |a| a.to_string());
        self.0.iter().map(name)
    }
}

/// The sockets that the router listens on.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) public: Socket,
    pub(crate) metrics: Option<Socket>,
}

/// The tasks that take connections.
pub(crate) struct Serving(Vec<JoinHandle<()>>);

impl Serving {
    /// Takes no more connections. Those that wait stay in the sockets, for whoever else listens on them.
    pub(crate) async fn stop(self) {
        for task in self.0 {
            task.abort();
            // That it was aborted.
            let _ = task.await;
        }
    }
}

impl Sockets {
    /// Those that were given and fit, and new ones for the other addresses.
    pub(crate) async fn bind(topology: &Topology, given: &mut Given) -> Result<Self, UpError> {
        let listen = &topology.stack().listen;
        Ok(Self {
            public: bind("listen.address", &listen.address, given).await?,
            metrics: match &listen.metrics {
                Some(address) => Some(bind("listen.metrics", address, given).await?),
                None => None,
            },
        })
    }

    /// Has a router take connections, until it stops.
    pub(crate) fn serve(&self, router: &Router) -> io::Result<Serving> {
        let mut tasks = vec![tokio::spawn(router.serve(self.public.listener()?))];
        if let Some(metrics) = &self.metrics {
            tasks.push(tokio::spawn(router.serve_private(metrics.listener()?)));
        }
        Ok(Serving(tasks))
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.public].into_iter().chain(&self.metrics).map(AsFd::as_fd)
    }
}

/// The socket that was given for an address, or a new one.
pub(crate) async fn bind(field: &'static str, text: &str, given: &mut Given) -> Result<Socket, UpError> {
    let failed = |source| UpError::Bind { field, address: text.to_owned(), source };
    let address: ListenAddress = text.parse().map_err(|error| failed(io::Error::other(error)))?;
    if let Some(socket) = given.take(&address) {
        return Ok(socket);
    }
    let in_use = |holder| UpError::AddressInUse { field, address: text.to_owned(), holder };
    match &address {
        ListenAddress::Tcp(address) => bind_tcp(*address).await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => in_use(proc::listener(*address)),
            _ => failed(source),
        }),
        ListenAddress::Unix(path) => match bind_unix(path, 0o666).await {
            Ok(listener) => Ok(Socket::Unix(listener)),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => Err(in_use(holder(path).await)),
            Err(source) => Err(failed(source)),
        },
    }
}

async fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    TcpListener::bind(address).await?.into_std().map(Socket::Tcp)
}

/// Who listens on a unix socket: number and name.
async fn holder(path: &Path) -> Option<(u32, String)> {
    let pid = UnixStream::connect(path).await.ok()?.peer_cred().ok()?.pid()?;
    let pid = u32::try_from(pid).ok()?;
    Some((pid, proc::name(pid)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_taken_address_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let path = dir.path().join("router.sock");
        let _also = UnixListener::bind(&path).unwrap();
        for address in [held.local_addr().unwrap().to_string(), format!("unix:{}", path.display())] {
            let error = bind("listen.address", &address, &mut Given::default()).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&address) && text.contains("listen.address"), "{text}");
            assert!(text.contains(&format!("by process {}", std::process::id())), "{text}");
        }
        // 192.0.2.0/24 is for documentation and on no machine.
        let nowhere = bind("listen.address", "192.0.2.1:1", &mut Given::default()).await;
        assert!(matches!(nowhere, Err(UpError::Bind { .. })));
        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        let address = format!("unix:{}", file.display());
        assert!(bind("listen.address", &address, &mut Given::default()).await.is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_given_socket_is_taken_for_its_address_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("router.sock");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let mut given = Given::new([OwnedFd::from(unix), tcp.into()].into_iter()).unwrap();
        let other = bind("listen.address", "127.0.0.1:0", &mut given).await.unwrap();
        assert!(other.address() != Some(ListenAddress::Tcp(address)) && given.left().count() == 2);
        let taken = bind("listen.address", &address.to_string(), &mut given).await.unwrap();
        assert_eq!(taken.address(), Some(ListenAddress::Tcp(address)));
        assert_eq!(given.left().collect::<Vec<_>>(), [format!("unix:{}", path.display())]);
        // What does not listen is of no use.
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Given::new([one.into()].into_iter()).is_err());
    }
}
