//! Listening sockets.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use model::ListenAddress;
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// By TCP.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen at `{address}` ({field}): {source}; choose another address there, or stop who has this one"
)]
pub struct BindError {
    /// The setting that names the address.
    pub field: &'static str,
    /// The address.
    pub address: String,
    /// What the system said.
    pub source: io::Error,
}

/// Listens at an address, which the setting `field` names.
pub async fn bind(field: &'static str, address: &ListenAddress) -> Result<Listener, BindError> {
    let listener = match address {
        ListenAddress::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        ListenAddress::Unix(path) => bind_unix(path, 0o666)
            .await
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)
            })
            .map(Listener::Unix),
    };
    listener.map_err(|source| BindError { field, address: address.to_string(), source })
}

/// Listens on a unix socket with this mode, in place of one that nobody listens on any more.
pub async fn bind_unix(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            if !is_socket || !UnixStream::connect(path).await.is_err_and(|error| refused(&error)) {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        result => result?,
    };
    // Until then it has the mode that the umask leaves, under which nobody can do more.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    listener.into_std()
}
