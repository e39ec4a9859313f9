//! The supervisor with real processes that answer as Synapse's would, and die as they are told.

use std::fs;
use std::path::Path;

use model::{Instance, Preset, Role, Stack, WorkerGroup};

use super::*;
use crate::launch::{Launcher, Spec};
use crate::progress;

/// A program that was written a moment ago may be busy still, so this one is a file of the repository.
const LAUNCHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launcher.sh");

/// Answers 200 on each of the sockets that are its arguments.
const SERVER: &str = r#"
import os, socket, sys, threading
def serve(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
        connection.close()
print("serving", flush=True)
for path in sys.argv[1:]:
    threading.Thread(target=serve, args=(path,)).start()
"#;

/// A process that serves, or one that ends at once.
fn unit(instance: &Instance, broken: bool) -> (About, Kind) {
    let paths = [&instance.private].into_iter().chain(&instance.client).map(|address| match address {
        model::Address::Unix { path } => path.as_os_str().to_owned(),
        model::Address::Tcp { .. } => unreachable!("the network is unix"),
    });
    let program = if broken { "print('no use'); exit(3)" } else { SERVER };
    let alone = Spec::new("python3").args(["-c", program]).args(paths);
    let about = About {
        name: instance.name.clone(),
        group: instance.group.clone(),
        roles: instance.roles.iter().map(ToString::to_string).collect(),
        address: None,
        marks: vec!["python3".to_owned()],
        stop: Signal::SIGTERM as i32,
    };
    (about, Kind::Synapse { instance: Box::new(instance.clone()), args: Vec::new(), alone: Box::new(alone) })
}

struct Stage {
    topology: Topology,
    _dir: tempfile::TempDir,
    supervisor: Supervisor,
    ended: broadcast::Receiver<Ended>,
}

/// Main and one worker, of which `broken` ends at once.
fn stage(broken: Option<&str>) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("d"));
    fs::create_dir_all(layout.logs()).unwrap();
    fs::create_dir_all(layout.sockets()).unwrap();

    let mut stack = Stack::new("example.org".to_owned().try_into().unwrap());
    stack.preset = Some(Preset::Custom);
    stack
        .workers
        .insert("sync".to_owned(), WorkerGroup { roles: Some(vec![Role::Sync]), ..WorkerGroup::default() });
    let topology = model::plan(&stack, &layout.sockets(), Preset::Custom).unwrap();
    let plan = Plan {
        topology: Arc::new(ArcSwap::from_pointee(topology.clone())),
        spawner: Spawner::new(Launcher::at(LAUNCHER)).unwrap(),
        teller: Teller::new(progress::quiet()),
        width: 2,
        external: External { database: true, cache: true },
        separate: true,
        clock: Instant::now(),
        layout,
    };
    let snapshot = router::Snapshot::new(&topology, router::Settings::from_stack(&stack)).unwrap();
    let router = Router::start(snapshot, router::Options::default()).unwrap();
    let supervisor = Supervisor::start(plan, router);
    let ended = supervisor.ends();
    supervisor.add(topology.instances().iter().map(|i| unit(i, broken == Some(&i.name))).collect());
    Stage { topology, _dir: dir, supervisor, ended }
}

impl Stage {
    fn entry(&self, name: &str) -> Entry {
        self.supervisor.shared.board().get(name).unwrap().clone()
    }

    fn records(&self, layout: &Layout) -> String {
        save_records(&self.supervisor.shared);
        fs::read_to_string(layout.data_dir().join("processes.json")).unwrap()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_come_back_and_go_in_order() {
    let mut stage = stage(None);
    let layout = stage.supervisor.shared.layout.clone();

    // Workers wait until they may start.
    within(stage.supervisor.healthy("main")).await;
    assert_eq!(stage.entry("sync_1").state, State::Waiting);
    stage.supervisor.let_workers_start();
    within(stage.supervisor.all_healthy(|_| true)).await;

    // Killed, a process is started again at once.
    let first = stage.entry("sync_1").process.unwrap();
    assert!(stage.records(&layout).contains(&format!(r#""pid":{}"#, first.pid)));
    assert!(first.signal(Signal::SIGKILL));
    let ended = within(stage.ended.recv()).await.unwrap();
    assert_eq!(
        (ended.name.as_str(), ended.reason.as_str(), ended.in_a_row),
        ("sync_1", "killed by SIGKILL", 1)
    );
    within(stage.supervisor.all_healthy(|_| true)).await;
    let second = stage.entry("sync_1");
    assert_eq!((second.restarts, second.last_exit.as_deref()), (1, Some("killed by SIGKILL")));
    assert!(second.process.is_some_and(|process| process != first));

    // Restarted on purpose, by its role, it counts as no failure.
    let mut restarted = Vec::new();
    within(stage.supervisor.restart("sync", |name, _| restarted.push(name.to_owned()))).await.unwrap();
    assert_eq!(restarted, ["sync_1"]);
    assert_eq!(stage.entry("sync_1").restarts, 2);
    assert!(stage.ended.try_recv().is_err());
    let unknown = within(stage.supervisor.restart("nobody", |_, _| ())).await.unwrap_err();
    assert!(matches!(unknown, RestartError::Unknown { .. }));

    // One that goes leaves nothing behind, and comes back as what it was.
    let worker = stage.topology.instance("sync_1").unwrap();
    let model::Address::Unix { path } = &worker.private else { panic!("the network is unix") };
    assert!(path.exists());
    within(stage.supervisor.remove(&["sync_1".to_owned()], Duration::from_secs(1))).await;
    assert_eq!((stage.entry("sync_1").state, path.exists()), (State::Stopped, false));
    let running: Vec<String> = stage.supervisor.running().into_iter().map(|(name, _)| name).collect();
    assert_eq!(running, ["main"]);
    stage.supervisor.add(vec![unit(worker, false)]);
    within(stage.supervisor.all_healthy(|_| true)).await;
    assert_eq!(stage.entry("sync_1").restarts, 3);

    // Stopped, nothing runs and nothing is recorded.
    let last = stage.entry("main").process.unwrap();
    within(stage.supervisor.stop()).await;
    assert!(!last.alive());
    assert!(["main", "sync_1"].iter().all(|name| stage.entry(name).state == State::Stopped));
    assert!(!stage.records(&layout).contains("pid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_run_fails_with_its_last_words() {
    let mut stage = stage(Some("main"));
    for in_a_row in 1..=3 {
        let ended = within(stage.ended.recv()).await.unwrap();
        assert_eq!(ended.in_a_row, in_a_row);
        assert_eq!(
            (ended.reason.as_str(), ended.lines.as_slice()),
            ("exit code 3", ["no use".to_owned()].as_slice())
        );
    }
    // Stopping does not wait for the next try.
    within(stage.supervisor.stop()).await;
    assert_eq!(stage.entry("main").state, State::Stopped);
    assert!(Path::new(&stage.supervisor.shared.layout.log("main")).exists());
}
