//! Client of the fork server: JSON lines to its stdin, JSON lines from its stdout. See `forkserver.py`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::supervisor::Exit;

/// The program. It is written to the configuration directory at each start.
pub(crate) const PROGRAM: &str = include_str!("forkserver.py");
/// The longest line that the fork server may send.
const MAX_LINE: usize = 1 << 20;
/// A fork takes milliseconds; the fork server answers one order after the other.
const ANSWER: Duration = Duration::from_secs(30);

/// An order to start a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'a> {
    pub(crate) name: &'a str,
    pub(crate) app: &'a str,
    pub(crate) args: &'a [String],
    pub(crate) log: &'a Path,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
enum Command<'a> {
    Prepare { args: &'a [String] },
    Spawn { id: u64, name: &'a str, app: &'a str, args: &'a [String], log: &'a Path, umask: u32 },
}

impl Command<'_> {
    fn line(&self) -> Result<String, String> {
        let mut line = serde_json::to_string(self).map_err(|error| error.to_string())?;
        line.push('\n');
        Ok(line)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Event {
    Ready { synapse: String },
    Unsupported { reason: String },
    Spawned { id: u64, pid: u32 },
    Schema {},
    Exit { id: u64, code: Option<i32>, signal: Option<i32> },
    Error { id: Option<u64>, message: String },
}

/// What the fork server said first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// It takes orders; the version of Synapse that it imported.
    Ready(String),
    /// It cannot fork this Synapse safely; the processes have to be started one by one.
    Unsupported(String),
}

/// A process that the fork server started.
pub(crate) struct Forked {
    pub(crate) pid: u32,
    /// How it ended. The sender is dropped when the fork server ends.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// A running fork server. When the last clone is dropped its stdin is closed, and it stops.
#[derive(Clone)]
pub(crate) struct ForkServer {
    lines: mpsc::Sender<String>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
    schema: watch::Receiver<bool>,
}

#[derive(Default)]
struct Waiting {
    spawned: HashMap<u64, oneshot::Sender<Result<u32, String>>>,
    exits: HashMap<u64, oneshot::Sender<Exit>>,
    ended: bool,
}

impl ForkServer {
    /// Talks to a fork server that was just started; the receiver gets its first word, or nothing if it ends before.
    pub(crate) fn new(
        mut stdin: impl AsyncWrite + Unpin + Send + 'static,
        stdout: impl AsyncRead + Unpin + Send + 'static,
    ) -> (Self, oneshot::Receiver<Hello>) {
        let (lines, mut orders) = mpsc::channel::<String>(64);
        let (hello, greeted) = oneshot::channel();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (announce, schema) = watch::channel(false);
        tokio::spawn(async move {
            while let Some(line) = orders.recv().await {
                if stdin.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(read(BufReader::new(stdout), Arc::clone(&waiting), hello, announce));
        (Self { lines, waiting, next: Arc::new(AtomicU64::new(1)), schema }, greeted)
    }

    /// Says that a process with these arguments will be started within a minute, which makes it start faster.
    pub(crate) async fn prepare(&self, args: &[String]) {
        if let Ok(line) = (Command::Prepare { args }).line() {
            // A hint that is lost costs some time.
            let _ = self.lines.send(line).await;
        }
    }

    /// Waits until the main process has found or made the database's tables.
    pub(crate) async fn schema(&self) {
        if self.schema.clone().wait_for(|announced| *announced).await.is_err() {
            // The fork server has ended: nobody will announce it any more.
            std::future::pending::<()>().await;
        }
    }

    /// Starts a process.
    pub(crate) async fn spawn(&self, order: Order<'_>) -> Result<Forked, String> {
        const GONE: &str = "the fork server has ended";
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let Order { name, app, args, log } = order;
        let line = Command::Spawn { id, name, app, args, log, umask: 0o077 }.line()?;
        let (spawned, answer) = oneshot::channel();
        let (exit, exited) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.ended {
                return Err(GONE.to_owned());
            }
            waiting.spawned.insert(id, spawned);
            waiting.exits.insert(id, exit);
        }
        self.lines.send(line).await.map_err(|_| GONE.to_owned())?;
        match timeout(ANSWER, answer).await {
            Ok(Ok(Ok(pid))) => Ok(Forked { pid, exit: exited }),
            Ok(Ok(Err(message))) => Err(format!("the fork server could not start it: {message}")),
            Ok(Err(_)) => Err(GONE.to_owned()),
            Err(_) => Err(format!("the fork server did not answer within {} s", ANSWER.as_secs())),
        }
    }
}

async fn read(
    mut stdout: impl AsyncBufReadExt + Unpin,
    waiting: Arc<Mutex<Waiting>>,
    hello: oneshot::Sender<Hello>,
    schema: watch::Sender<bool>,
) {
    let mut hello = Some(hello);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut stdout, &mut line).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                tracing::error!(%error, "cannot read the fork server's events");
                break;
            }
        }
        let event = match serde_json::from_slice(&line) {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "the fork server sent something else than an event");
                continue;
            }
        };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // A receiver that is gone no longer cares: its process was given up.
        match event {
            Event::Ready { synapse } => drop(hello.take().map(|hello| hello.send(Hello::Ready(synapse)))),
            Event::Unsupported { reason } => {
                drop(hello.take().map(|hello| hello.send(Hello::Unsupported(reason))));
            }
            Event::Spawned { id, pid } => {
                drop(waiting.spawned.remove(&id).map(|answer| answer.send(Ok(pid))));
            }
            Event::Schema {} => drop(schema.send_replace(true)),
            Event::Error { id: Some(id), message } => {
                waiting.exits.remove(&id);
                drop(waiting.spawned.remove(&id).map(|answer| answer.send(Err(message))));
            }
            Event::Error { id: None, message } => tracing::warn!(message, "the fork server refused an order"),
            Event::Exit { id, code, signal } => {
                drop(waiting.exits.remove(&id).map(|exit| exit.send(Exit::from_parts(code, signal))));
            }
        }
    }
    // Whoever still waits learns that the fork server has ended by its sender's end.
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    *waiting = Waiting { ended: true, ..Waiting::default() };
}

/// Reads a line into `line`, at most [`MAX_LINE`] long; false at the end.
async fn read_line(stdout: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let chunk = stdout.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(false);
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let taken = end.map_or(chunk.len(), |end| end + 1);
        line.extend_from_slice(&chunk[..taken]);
        stdout.consume(taken);
        if line.len() > MAX_LINE {
            return Err(std::io::Error::other("an event is too long"));
        }
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    fn order() -> Order<'static> {
        Order { name: "sync_1", app: "synapse.app.generic_worker", args: &[], log: Path::new("/tmp/x.log") }
    }

    struct Fake {
        orders: tokio::io::Lines<BufReader<DuplexStream>>,
        events: DuplexStream,
    }

    impl Fake {
        async fn order(&mut self) -> serde_json::Value {
            serde_json::from_str(&self.orders.next_line().await.unwrap().unwrap()).unwrap()
        }

        async fn say(&mut self, line: &str) {
            self.events.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
    }

    fn fake() -> (Fake, ForkServer, oneshot::Receiver<Hello>) {
        let (stdin, orders) = duplex(1 << 16);
        let (events, stdout) = duplex(1 << 16);
        let (client, hello) = ForkServer::new(stdin, stdout);
        (Fake { orders: BufReader::new(orders).lines(), events }, client, hello)
    }

    #[tokio::test]
    async fn orders_and_events_find_each_other() {
        let (mut fake, client, hello) = fake();
        fake.say(r#"{"event":"ready","pid":1,"synapse":"1.163.2","python":"3.11.7","optimised":true}"#).await;
        assert_eq!(hello.await, Ok(Hello::Ready("1.163.2".to_owned())));
        let (forked, ()) = tokio::join!(client.spawn(order()), async {
            let order = fake.order().await;
            assert_eq!(
                (&order["op"], &order["name"], &order["umask"]),
                (&"spawn".into(), &"sync_1".into(), &0o077.into())
            );
            fake.say("not json").await;
            fake.say(&format!(r#"{{"event":"spawned","id":{},"name":"sync_1","pid":77}}"#, order["id"]))
                .await;
        });
        let forked = forked.unwrap();
        assert_eq!(forked.pid, 77);
        fake.say(r#"{"event":"exit","id":1,"name":"sync_1","pid":77,"code":null,"signal":9}"#).await;
        assert_eq!(forked.exit.await, Ok(Exit::Signal(9)));
    }

    #[tokio::test]
    async fn refusals_and_the_servers_end_are_errors() {
        let (mut fake, client, hello) = fake();
        let (refused, ()) = tokio::join!(client.spawn(order()), async {
            fake.order().await;
            fake.say(r#"{"event":"error","id":1,"message":"OSError: no"}"#).await;
        });
        assert!(refused.err().unwrap().contains("OSError"));
        let (lost, ()) = tokio::join!(client.spawn(order()), async {
            fake.order().await;
            fake.say(r#"{"event":"spawned","id":2,"name":"sync_1","pid":78}"#).await;
        });
        drop(fake);
        assert!(lost.unwrap().exit.await.is_err());
        assert!(hello.await.is_err());
        assert!(client.spawn(order()).await.is_err());
    }

    #[tokio::test]
    async fn hints_and_the_schema_need_no_number() {
        let (mut fake, client, _hello) = fake();
        client.prepare(&["-c".to_owned()]).await;
        assert_eq!(fake.order().await, serde_json::json!({"op": "prepare", "args": ["-c"]}));
        fake.say(r#"{"event":"schema","id":1,"name":"main","pid":3}"#).await;
        client.schema().await;
    }

    #[tokio::test]
    async fn the_last_clone_closes_stdin() {
        let (mut fake, client, _hello) = fake();
        drop(client);
        assert_eq!(fake.orders.next_line().await.unwrap(), None);
    }
}
