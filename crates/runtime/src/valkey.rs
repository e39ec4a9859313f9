//! The Valkey server that a stack brings with it.
//!
//! Synapse's processes tell each other through it what is new, and keep some short-lived cache entries there. It holds
//! nothing that must last: it writes nothing to the disk, and starts empty.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use model::Layout;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::install::Packages;
use crate::launch::{self, LaunchError, Launcher, Spec, User};

/// How to stop the server: each signal with how long to wait for it.
pub const STOP: &[(Signal, Duration)] =
    &[(Signal::SIGTERM, Duration::from_secs(5)), (Signal::SIGKILL, Duration::from_secs(5))];

/// The longest path of a unix socket in bytes (`sun_path` in unix(7) has 108, one of them the closing zero).
const SOCKET_PATH_MAX: usize = 107;

/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// What can go wrong with the bundled Valkey.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValkeyError {
    /// The socket's path does not fit.
    #[error(
        "the path of Valkey's socket, `{}`, is longer than the {SOCKET_PATH_MAX} bytes that the system allows: choose a \
         shorter `data_dir` in stack.yaml", .path.display()
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// The server's user cannot reach its socket's directory.
    #[error(
        "the user `{user}`, which runs Valkey, may not enter `{}`: let it pass (`chmod o+x {}`), or choose another \
         `data_dir` in stack.yaml", .directory.display(), .directory.display()
    )]
    Closed {
        /// The directory that stops it.
        directory: PathBuf,
        /// The user.
        user: String,
    },
    /// A file could not be used.
    #[error("cannot use `{}`: {source}. Check its owner and mode, and the disk", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server does not answer, or not yet.
    #[error("Valkey does not answer on `{}` ({reason}): look at its log (`matrix-stack logs valkey`)", .socket.display())]
    NotReady {
        /// The socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system gives no memory.
    #[error(
        "Valkey cannot get the memory it needs: stop other programs, or raise the limit of the container\n{detail}"
    )]
    Memory {
        /// What it said.
        detail: String,
    },
    /// The server could not make its socket.
    #[error("Valkey cannot make its socket `{}`: check who owns the directory, and the disk\n{detail}", .socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What it said.
        detail: String,
    },
    /// The server did not like its configuration.
    #[error("this Valkey does not take its configuration: use the one that matrix-stack installs\n{detail}")]
    Configuration {
        /// What it said.
        detail: String,
    },
    /// A child could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// The Valkey server of a stack.
#[derive(Clone, Debug)]
pub struct Valkey {
    server: PathBuf,
    directory: PathBuf,
    socket: PathBuf,
    user: Option<User>,
    launcher: Launcher,
}

impl Valkey {
    /// The server of a stack. `user` is who runs it: [`launch::unprivileged_user`].
    pub fn new(packages: &Packages, layout: &Layout, user: Option<User>, launcher: Launcher) -> Self {
        Self {
            server: packages.valkey_server.clone(),
            directory: layout.valkey_socket_dir(),
            socket: layout.valkey_socket(),
            user,
            launcher,
        }
    }

    /// Makes the socket's directory, and removes a socket that a killed server left. Blocks, for a moment.
    pub fn prepare(&self) -> Result<(), ValkeyError> {
        if self.socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(ValkeyError::SocketPath { path: self.socket.clone() });
        }
        self.make_directory().map_err(|source| ValkeyError::Io { path: self.directory.clone(), source })?;
        if let Some(user) = &self.user
            && let Some(directory) = launch::closed_to(&self.launcher, &self.socket, user)?
        {
            return Err(ValkeyError::Closed { directory, user: user.name.clone() });
        }
        match fs::remove_file(&self.socket) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ValkeyError::Io { path: self.socket.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn make_directory(&self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        if let Some(user) = &self.user
            && fs::metadata(&self.directory)?.uid() != user.uid
        {
            chown(&self.directory, Some(user.uid), Some(user.gid))?;
        }
        fs::set_permissions(&self.directory, Permissions::from_mode(0o700))
    }

    /// How to start the server. It writes its log to stdout.
    pub fn spec(&self) -> Spec {
        let spec = Spec::new(&self.server)
            .user(self.user.clone())
            .directory(&self.directory)
            .umask(0o077)
            .env_clear();
        let spec = spec.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        // No TCP port; nobody but the owner of the directory reaches the socket.
        let spec = spec.args(["--port", "0", "--unixsocketperm", "700", "--unixsocket"]).arg(&self.socket);
        let spec = spec.args(render::VALKEY_OPTIONS).arg("--dir").arg(&self.directory);
        spec.args(["--daemonize", "no", "--always-show-logo", "no", "--loglevel", "notice"])
    }

    /// Whether the server answers: one try, of at most a second. Poll it, every 20 ms say.
    pub async fn ready(&self) -> Result<(), ValkeyError> {
        let not_ready = |reason: String| ValkeyError::NotReady { socket: self.socket.clone(), reason };
        let ping = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        match tokio::time::timeout(PROBE_LIMIT, ping).await {
            Err(_) => Err(not_ready("no answer in time".to_owned())),
            Ok(Err(error)) => Err(not_ready(error.to_string())),
            Ok(Ok(answer)) if &answer == b"+PONG\r\n" => Ok(()),
            Ok(Ok(answer)) => {
                Err(not_ready(format!("it says `{}`", String::from_utf8_lossy(&answer).trim())))
            }
        }
    }

    /// Why the server ended, from the last lines of its log, where they say so in words that are known.
    pub fn explain(&self, log: &str) -> Option<ValkeyError> {
        let said = |signs: &[&str]| signs.iter().any(|sign| log.contains(sign));
        let detail = launch::last_lines(log, 4);
        if said(&["Out Of Memory", "out of memory", "Cannot allocate memory"]) {
            Some(ValkeyError::Memory { detail })
        } else if said(&["opening Unix socket", "Failed opening", "bind:"]) {
            Some(ValkeyError::Socket { socket: self.socket.clone(), detail })
        } else if said(&["FATAL CONFIG FILE ERROR"]) {
            Some(ValkeyError::Configuration { detail })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_explained() {
        let valkey = Valkey {
            server: "/nowhere/valkey-server".into(),
            directory: "/nowhere/run/valkey".into(),
            socket: "/nowhere/run/valkey/valkey.sock".into(),
            user: None,
            launcher: Launcher::this_program(),
        };
        let explain = |log: &str| valkey.explain(log);
        assert!(matches!(
            explain("7:M 01 Jan 2026 * Failed opening Unix socket: bind: Permission denied"),
            Some(ValkeyError::Socket { detail, .. }) if detail.contains("Permission denied")
        ));
        assert!(matches!(
            explain("*** FATAL CONFIG FILE ERROR (Version 9) ***"),
            Some(ValkeyError::Configuration { .. })
        ));
        assert!(explain("7:M 01 Jan 2026 * Ready to accept connections unix").is_none());
    }
}
