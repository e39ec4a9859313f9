//! The thread that starts every child.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use tokio::process::Child;
use tokio::sync::oneshot;

use crate::launch::{self, Launcher, Spec};

type Job = Box<dyn FnOnce() + Send>;

/// Starts children from one thread that lives as long as this value: the kernel ends a child when the thread that
/// started it ends, so that none outlives a supervisor that was killed, and tokio's own threads may come and go.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: mpsc::Sender<Job>,
    launcher: Launcher,
}

/// Where a child's output goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Output<'a> {
    /// All to the log; nothing comes in.
    Log(&'a Path),
    /// stdin and stdout are pipes; stderr goes to the log.
    Pipes(&'a Path),
}

impl Spawner {
    /// Starts the thread. Must be called within a tokio runtime.
    pub(crate) fn new(launcher: Launcher) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            let _guard = runtime.enter();
            for job in queue {
                job();
            }
        })?;
        Ok(Self { jobs, launcher })
    }

    /// Starts a child.
    pub(crate) async fn spawn(&self, spec: &Spec, output: Output<'_>) -> io::Result<Child> {
        let (Output::Log(log) | Output::Pipes(log)) = output;
        let log = open_log(log)?;
        let mut command = launch::command(&self.launcher, spec);
        match output {
            Output::Log(_) => command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log),
            Output::Pipes(_) => command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log),
        };
        let (done, started) = oneshot::channel();
        let job = Box::new(move || drop(done.send(tokio::process::Command::from(command).spawn())));
        let gone = || io::Error::other("the thread that starts processes has ended");
        self.jobs.send(job).map_err(|_| gone())?;
        started.await.map_err(|_| gone())?
    }
}

fn open_log(path: &Path) -> io::Result<std::fs::File> {
    // Appended to, so that a log which is cut short while it is written to grows from its new end.
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
