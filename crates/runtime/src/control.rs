//! The control socket of a running stack; see [`crate::client`] for the protocol.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use model::{Layout, Topology};
use nix::unistd::geteuid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::{Op, PROTOCOL, Phase, ProcessStatus, Reply, Request, Restarted, State, Status};
use crate::proc::{self, Family};
use crate::progress::Event;
use crate::supervisor::{Entry, RestartError, Supervisor, Teller};
use crate::up::Begun;

/// So many requests are answered at once.
const MAX_ANSWERS: u32 = 32;
const MAX_REQUEST: u64 = 64 << 10;
/// A request is one line, and its sender has it ready.
const REQUEST: Duration = Duration::from_secs(5);

/// What the control socket tells and asks of the supervisor.
pub(crate) struct Control {
    pub(crate) layout: Layout,
    /// What runs, or is about to.
    pub(crate) topology: Arc<ArcSwap<Topology>>,
    pub(crate) clock: Instant,
    pub(crate) teller: Teller,
    /// The processes, once they are known.
    pub(crate) supervisor: OnceLock<Arc<Supervisor>>,
    /// The finished start.
    pub(crate) begun: watch::Sender<Option<Arc<Begun>>>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Somebody asked for the stack's end.
    pub(crate) down: watch::Sender<bool>,
    /// Everything has stopped.
    pub(crate) ended: watch::Sender<bool>,
}

impl Control {
    pub(crate) fn new(topology: &Topology, layout: &Layout, teller: Teller, clock: Instant) -> Self {
        Self {
            layout: layout.clone(),
            topology: Arc::new(ArcSwap::from_pointee(topology.clone())),
            clock,
            teller,
            supervisor: OnceLock::new(),
            begun: watch::Sender::new(None),
            phase: watch::Sender::new(Phase::Starting),
            down: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        }
    }
}

/// The control socket, open until this is dropped.
pub(crate) struct Server {
    task: JoinHandle<()>,
    path: PathBuf,
    answers: Arc<Semaphore>,
}

impl Server {
    /// Lets those who are still being answered hear the end of it.
    pub(crate) async fn finish(&self, limit: Duration) {
        // Each answer that is under way holds a permit.
        let _ = timeout(limit, self.answers.acquire_many(MAX_ANSWERS)).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // If it is left behind, the next start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Opens the control socket. The caller holds the lock, so that what is there now is stale.
pub(crate) fn serve(control: Arc<Control>) -> io::Result<Server> {
    let path = control.layout.control_socket();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let answers = Arc::new(Semaphore::new(MAX_ANSWERS as usize));
    let free = Arc::clone(&answers);
    let task = tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = Arc::clone(&control);
                    tokio::spawn(async move {
                        if let Err(error) = answer(&control, stream).await {
                            tracing::debug!(%error, "a control connection ended early");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(Server { task, path, answers })
}

async fn answer(control: &Arc<Control>, stream: UnixStream) -> io::Result<()> {
    // The socket's mode says the same, but for the moment before it was set.
    let peer = stream.peer_cred()?.uid();
    if peer != geteuid().as_raw() && peer != 0 {
        return Ok(());
    }
    let (reading, writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let mut out = Out(writing);
    let mut line = Vec::new();
    timeout(REQUEST, (&mut reading).take(MAX_REQUEST).read_until(b'\n', &mut line)).await??;
    // The version first: a newer client's request may not be understood otherwise.
    let version =
        serde_json::from_slice::<serde_json::Value>(&line).ok().and_then(|request| request["v"].as_u64());
    if version != Some(PROTOCOL.into()) {
        let version = env!("CARGO_PKG_VERSION");
        let message =
            format!("the running stack was started by matrix-stack {version}: use that version to reach it");
        return out.send(&Reply::Error(message)).await;
    }
    match serde_json::from_slice::<Request>(&line) {
        Ok(request) => act(control, request.op, &mut reading, &mut out).await,
        Err(error) => out.send(&Reply::Error(format!("the request is not understood: {error}"))).await,
    }
}

async fn act(
    control: &Arc<Control>,
    op: Op,
    reading: &mut BufReader<OwnedReadHalf>,
    out: &mut Out,
) -> io::Result<()> {
    match op {
        Op::Status => {
            let looking = Arc::clone(control);
            let status =
                tokio::task::spawn_blocking(move || status(&looking)).await.map_err(io::Error::other)?;
            out.done(status).await
        }
        Op::Metrics => match control.supervisor.get() {
            Some(supervisor) => out.done(supervisor.shared.router.metrics()).await,
            None => {
                out.send(&Reply::Error("the router is not started yet: try again in a moment".to_owned()))
                    .await
            }
        },
        Op::Restart { target } => {
            let Some(supervisor) = control.supervisor.get() else {
                return out
                    .send(&Reply::Error("the stack is not started yet: try again in a moment".to_owned()))
                    .await;
            };
            let (told, mut done) = tokio::sync::mpsc::unbounded_channel();
            let restarting = supervisor.restart(&target, |name, took| {
                // If nobody listens any more, the restart goes on all the same.
                let _ = told.send(Restarted { name: name.to_owned(), seconds: took.as_secs_f64() });
            });
            let begun = control.begun.borrow().clone();
            let restarting = async {
                match begun {
                    Some(begun) => begun.site.alone(restarting).await.unwrap_or(Err(RestartError::Ending)),
                    None => restarting.await,
                }
            };
            tokio::pin!(restarting);
            let result = loop {
                tokio::select! {
                    biased;
                    Some(restarted) = done.recv() => drop(out.send(&Reply::Restarted(restarted)).await),
                    result = &mut restarting => break result,
                }
            };
            while let Ok(restarted) = done.try_recv() {
                out.send(&Reply::Restarted(restarted)).await?;
            }
            match result {
                Ok(()) => out.done(()).await,
                Err(error) => out.send(&Reply::Error(error.to_string())).await,
            }
        }
        Op::Reload => {
            let Some(begun) = control.begun.borrow().clone() else {
                let message = "the stack has not finished its start: try again in a moment";
                return out.send(&Reply::Error(message.to_owned())).await;
            };
            let events = control.teller.follow();
            // If nobody listens any more, the change goes on all the same.
            let changing = tokio::spawn(async move { begun.site.reload().await });
            match follow(events, out, changing).await? {
                Ok(Ok(())) => out.done(()).await,
                Ok(Err(error)) => out.send(&Reply::Error(error.to_string())).await,
                Err(error) => out.send(&Reply::Error(format!("the change broke off: {error}"))).await,
            }
        }
        Op::Down => {
            let events = control.teller.follow();
            control.down.send_replace(true);
            let mut ended = control.ended.subscribe();
            follow(events, out, async {
                // The sender lives as long as `control`.
                let _ = ended.wait_for(|ended| *ended).await;
            })
            .await?;
            out.done(()).await
        }
        Op::Watch => {
            out.send(&Reply::Supervisor(std::process::id())).await?;
            let events = control.teller.follow();
            let mut begun = control.begun.subscribe();
            let finished = follow(events, out, async {
                begun.wait_for(Option::is_some).await.ok().and_then(|begun| begun.clone())
            })
            .await?;
            let Some(begun) = finished else { return Ok(()) };
            out.done(&begun.started).await?;
            // The password counts as shown once the other side has read it and closed the connection.
            let mut rest = Vec::new();
            if timeout(REQUEST, reading.read_to_end(&mut rest)).await.is_ok() {
                begun.admin_shown();
            }
            Ok(())
        }
    }
}

/// Sends the events on until `done` is.
async fn follow<T>(
    mut events: broadcast::Receiver<Event>,
    out: &mut Out,
    done: impl Future<Output = T>,
) -> io::Result<T> {
    tokio::pin!(done);
    let mut open = true;
    let result = loop {
        tokio::select! {
            biased;
            event = events.recv(), if open => match event {
                Ok(event) => out.send(&Reply::Event(event)).await?,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => open = false,
            },
            result = &mut done => break result,
        }
    };
    Ok(result)
}

struct Out(OwnedWriteHalf);

impl Out {
    async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        timeout(REQUEST, self.0.write_all(&line)).await?
    }

    async fn done(&mut self, value: impl serde::Serialize) -> io::Result<()> {
        self.send(&Reply::Done(json!(value))).await
    }
}

/// How everything is. Reads a good part of `/proc`, so it blocks for some milliseconds.
fn status(control: &Control) -> Status {
    let family = Family::read();
    let topology = control.topology.load();
    let stack = topology.stack();
    let mut processes: Vec<ProcessStatus> = control
        .supervisor
        .get()
        .map(|supervisor| supervisor.shared.board().entries().cloned().collect::<Vec<_>>())
        .unwrap_or_default()
        .iter()
        .map(|entry| process_status(entry, &family))
        .collect();
    let phase = *control.phase.borrow();
    let own = std::process::id();
    processes.push(ProcessStatus {
        name: "router".to_owned(),
        role: "router".to_owned(),
        roles: vec!["router".to_owned()],
        group: "router".to_owned(),
        pid: Some(own),
        state: if phase == Phase::Starting { State::Starting } else { State::Healthy },
        address: Some(stack.listen.address.clone()),
        rss_bytes: proc::resident_bytes(own),
        pss_bytes: proc::proportional_bytes(own),
        cpu_ms: proc::cpu_time(own).map(|time| time.own_ms),
        restarts: 0,
        uptime_seconds: Some(control.clock.elapsed().as_secs()),
        last_exit: None,
    });
    let total: u64 = processes.iter().filter_map(|process| process.pss_bytes).sum();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        server_name: stack.server_name.to_string(),
        url: stack.base_url(),
        preset: topology.preset().to_string(),
        phase,
        pid: own,
        data_dir: control.layout.data_dir().to_owned(),
        uptime_seconds: control.clock.elapsed().as_secs(),
        pss_bytes: (total > 0).then_some(total),
        processes,
    }
}

fn process_status(entry: &Entry, family: &Family) -> ProcessStatus {
    let process = entry.process.filter(|process| process.alive());
    let about = &entry.about;
    // The fork server's children are listed by themselves; PostgreSQL's are part of it.
    let with_children = about.name == "postgres";
    let children = match process {
        Some(process) if with_children => family.descendants(process.pid),
        _ => Vec::new(),
    };
    let pss = process.and_then(|process| {
        let own = proc::proportional_bytes(process.pid)?;
        Some(own + children.iter().copied().filter_map(proc::proportional_bytes).sum::<u64>())
    });
    let cpu_ms = process.and_then(|process| {
        let own = proc::cpu_time(process.pid)?;
        let ended = if with_children { own.children_ms } else { 0 };
        let living = children.iter().copied().filter_map(proc::cpu_time).map(|time| time.own_ms);
        Some(own.own_ms + ended + living.sum::<u64>())
    });
    ProcessStatus {
        name: about.name.clone(),
        role: about.roles.first().cloned().unwrap_or_default(),
        roles: about.roles.clone(),
        group: about.group.clone(),
        pid: process.map(|process| process.pid),
        state: entry.state,
        address: about.address.clone(),
        rss_bytes: process.and_then(|process| proc::resident_bytes(process.pid)),
        pss_bytes: pss,
        cpu_ms,
        restarts: entry.restarts,
        uptime_seconds: process.and(entry.since).map(|since| since.elapsed().as_secs()),
        last_exit: entry.last_exit.clone(),
    }
}
