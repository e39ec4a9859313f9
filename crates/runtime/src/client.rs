//! Client of a running stack's control socket.
//!
//! The protocol is lines of JSON, one request a connection: `{"v":1,"op":"status"}`. Answers are lines too: any number
//! of `event` and `restarted`, then `done` or `error`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use model::{Address, Layout};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::probe;
use crate::progress::Event;
use crate::state::Lock;

/// The version of the protocol. A supervisor that runs stays what it was while the program is replaced.
pub(crate) const PROTOCOL: u32 = 1;
/// How long a supervisor may take to answer what it knows by itself.
const ANSWER: Duration = Duration::from_secs(15);
/// How long everything may take to stop: draining, then every stage at its slowest.
const STOP: Duration = Duration::from_secs(180);
/// The longest line of an answer.
const MAX_LINE: u64 = 16 << 20;

/// How a running stack is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the matrix-stack that runs it.
    pub version: String,
    /// Its server name.
    pub server_name: String,
    /// The URL for clients.
    pub url: String,
    /// Its preset.
    pub preset: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// The supervisor's process.
    pub pid: u32,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// How long the supervisor has been running.
    pub uptime_seconds: u64,
    /// The memory of all processes, shared memory counted once (proportional set size), where the kernel tells.
    pub pss_bytes: Option<u64>,
    /// Every process.
    pub processes: Vec<ProcessStatus>,
}

/// Where a stack is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is being installed or started.
    Starting,
    /// It runs.
    Running,
    /// It is being stopped.
    Stopping,
}

/// How one process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its name, such as `sync_1`, `main`, `postgres`, `valkey`, `forkserver` or `router`.
    pub name: String,
    /// Its first role; `postgres`, `valkey`, `forkserver` and `router` are roles of their own.
    pub role: String,
    /// All its roles.
    pub roles: Vec<String>,
    /// The group that it belongs to.
    pub group: String,
    /// Its process number, while it runs.
    pub pid: Option<u32>,
    /// How it is.
    pub state: State,
    /// Where it takes requests, if it does: `unix:PATH` or `HOST:PORT`.
    pub address: Option<String>,
    /// Its resident memory, without its children.
    pub rss_bytes: Option<u64>,
    /// Its share of memory, shared memory divided by those who share it; PostgreSQL's with its children.
    pub pss_bytes: Option<u64>,
    /// The processor time that it has used, in milliseconds; PostgreSQL's with its children's.
    #[serde(default)]
    pub cpu_ms: Option<u64>,
    /// How often it was started again.
    pub restarts: u32,
    /// How long it has been running.
    pub uptime_seconds: Option<u64>,
    /// How it ended the last time.
    pub last_exit: Option<String>,
}

impl ProcessStatus {
    /// Whether nothing is amiss: it is healthy, or it is a fork server that this stack does without.
    pub fn is_healthy(&self) -> bool {
        self.state == State::Healthy || (self.role == "forkserver" && self.state == State::Stopped)
    }
}

/// The state of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for another process before its first start.
    Waiting,
    /// It was started and is not healthy yet.
    Starting,
    /// It answers as it should.
    Healthy,
    /// It lives but does not answer.
    Unhealthy,
    /// It ended and is about to be started again.
    Restarting,
    /// It was stopped.
    Stopped,
    /// It ended so often that it is only tried now and then.
    Failed,
}

impl State {
    /// The state's name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// A process was restarted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restarted {
    /// Its name.
    pub name: String,
    /// Seconds from the signal to being healthy.
    pub seconds: f64,
}

/// Why a running stack could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is none.
    #[error("no stack runs on {}: start it with `matrix-stack up`", .data_dir.display())]
    NotRunning {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The control socket belongs to somebody else, or cannot be reached.
    #[error("cannot reach the running stack at {}: {source}; ask as the user who started it", .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It broke off in the middle.
    #[error("the running stack broke off: {reason}; see the end of {}", .log.display())]
    Broken {
        /// What happened.
        reason: String,
        /// The supervisor's log.
        log: PathBuf,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Its words, which name the mend.
        message: String,
    },
    /// It did not stop.
    #[error(
        "the stack does not stop, after {} s: `matrix-stack status` shows what still runs; `kill -9` of the supervisor ends all",
        STOP.as_secs()
    )]
    DoesNotStop,
}

/// A request, as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) v: u32,
    #[serde(flatten)]
    pub(crate) op: Op,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub(crate) enum Op {
    Status,
    Restart {
        target: String,
    },
    /// Become what the stack file says now.
    Reload,
    Down,
    Metrics,
    /// Follow the start until it is done.
    Watch,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Who answers: the first line of an answer to `watch`.
    Supervisor(u32),
    Event(Event),
    Restarted(Restarted),
    Done(serde_json::Value),
    Error(String),
}

/// How every process of the running stack is.
pub async fn status(layout: &Layout) -> Result<Status, ClientError> {
    let mut connection = Connection::open(layout, Op::Status).await?;
    connection.last(ANSWER, |_| {}).await
}

/// The router's metrics, in Prometheus' text format.
pub async fn metrics(layout: &Layout) -> Result<String, ClientError> {
    let mut connection = Connection::open(layout, Op::Metrics).await?;
    connection.last(ANSWER, |_| {}).await
}

/// The metrics of a router that stands alone, from its private listener.
pub async fn metrics_at(listener: &Address) -> io::Result<String> {
    let (status, body) = probe::get(listener, "/metrics", ANSWER).await?;
    if status != 200 {
        return Err(io::Error::other(format!("/metrics was answered with {status}")));
    }
    String::from_utf8(body.into()).map_err(io::Error::other)
}

/// Restarts the processes that `target` means (a name, role or group), one after the other, and waits until each is
/// healthy; `on` hears of each.
pub async fn restart(
    layout: &Layout,
    target: &str,
    mut on: impl FnMut(Restarted),
) -> Result<Vec<Restarted>, ClientError> {
    let mut connection = Connection::open(layout, Op::Restart { target: target.to_owned() }).await?;
    let mut all = Vec::new();
    // The supervisor bounds each restart by itself.
    let note = |reply| {
        if let Reply::Restarted(restarted) = reply {
            all.push(restarted.clone());
            on(restarted);
        }
    };
    let () = connection.last(Duration::MAX, note).await?;
    Ok(all)
}

/// Has the running stack become what its stack file says now, and waits until all of it is healthy; `on` hears of what is
/// done.
pub async fn reload(layout: &Layout, mut on: impl FnMut(&Event)) -> Result<(), ClientError> {
    let mut connection = Connection::open(layout, Op::Reload).await?;
    let note = |reply| {
        if let Reply::Event(event) = reply {
            on(&event);
        }
    };
    // The supervisor bounds each of its steps by itself.
    connection.last(Duration::MAX, note).await
}

/// Stops the running stack, and waits until all of it has stopped; `on` hears of each process.
pub async fn down(layout: &Layout, mut on: impl FnMut(&Event)) -> Result<(), ClientError> {
    let mut connection = Connection::open(layout, Op::Down).await?;
    let note = |reply| {
        if let Reply::Event(event) = reply {
            on(&event);
        }
    };
    match connection.last::<()>(STOP, note).await {
        // The end of the supervisor ends the connection too.
        Ok(()) | Err(ClientError::Broken { .. }) => {}
        Err(error) => return Err(error),
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while Lock::is_held(layout) {
        if Instant::now() > deadline {
            return Err(ClientError::DoesNotStop);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A connection to a supervisor that was asked something.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
    log: PathBuf,
}

impl Connection {
    pub(crate) async fn open(layout: &Layout, op: Op) -> Result<Self, ClientError> {
        let path = layout.control_socket();
        let mut stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Err(ClientError::NotRunning { data_dir: layout.data_dir().to_owned() });
            }
            Err(source) => return Err(ClientError::Unreachable { path, source }),
        };
        let mut line = serde_json::to_vec(&Request { v: PROTOCOL, op }).unwrap_or_default();
        line.push(b'\n');
        let unreachable = |source| ClientError::Unreachable { path, source };
        stream.write_all(&line).await.map_err(unreachable)?;
        Ok(Self { stream: BufReader::new(stream), log: layout.log("supervisor") })
    }

    /// The next line; nothing at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Reply>, ClientError> {
        use tokio::io::AsyncReadExt as _;
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut line).await;
        if read.map_err(|error| self.broken(error.to_string()))? == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| self.broken(format!("it answered something else: {error}")))
    }

    /// The result, once it comes; `note` gets the lines before it.
    async fn last<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        mut note: impl FnMut(Reply),
    ) -> Result<T, ClientError> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            let next = match deadline {
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    timeout(left, self.next())
                        .await
                        .map_err(|_| self.broken("it does not answer".to_owned()))?
                }
                None => self.next().await,
            };
            match next? {
                Some(Reply::Done(value)) => {
                    return serde_json::from_value(value)
                        .map_err(|error| self.broken(format!("it answered something else: {error}")));
                }
                Some(Reply::Error(message)) => return Err(ClientError::Refused { message }),
                Some(reply) => note(reply),
                None => return Err(self.broken("it closed the connection".to_owned())),
            }
        }
    }

    fn broken(&self, reason: String) -> ClientError {
        ClientError::Broken { reason, log: self.log.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_flat_and_versioned() {
        let line = |op| serde_json::to_string(&Request { v: PROTOCOL, op }).unwrap();
        assert_eq!(line(Op::Status), r#"{"v":1,"op":"status"}"#);
        assert_eq!(line(Op::Restart { target: "sync".into() }), r#"{"v":1,"op":"restart","target":"sync"}"#);
        assert!(serde_json::from_str::<Request>(r#"{"v":1,"op":"explode"}"#).is_err());
    }

    #[test]
    fn states_are_called_as_in_json() {
        for state in [
            State::Waiting,
            State::Starting,
            State::Healthy,
            State::Unhealthy,
            State::Restarting,
            State::Stopped,
            State::Failed,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[tokio::test]
    async fn nothing_runs_on_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let error = status(&Layout::new(dir.path())).await.unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }));
        assert!(error.to_string().contains("matrix-stack up"));
    }
}
