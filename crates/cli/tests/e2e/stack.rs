//! A stack under test: its directory, its command line, and its end.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use runtime::client::{State, Status};
use runtime::install::{E2E, InstallOptions, ensure, ensure_extra};
use runtime::launch::Launcher;
use serde_json::{Value, json};

use crate::system::{self, Done, Process};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_matrix-stack");
/// The first start installs, and a debug build on a busy machine is slow.
const UP: Duration = Duration::from_secs(300);
/// Any command that asks a running stack something.
const ASK: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(120);

/// Directories of stacks that were made, for `clear_up`.
static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A stack with a directory and a port of its own.
pub(crate) struct Stack {
    /// Holds the stack file, the data and what the tests need beside them.
    pub(crate) directory: PathBuf,
    pub(crate) port: u16,
    preset: &'static str,
}

impl Stack {
    /// A stack that is not up yet.
    pub(crate) fn new(preset: &'static str) -> Self {
        Self::at(preset, system::free_port())
    }

    /// A stack on a port that may be taken.
    pub(crate) fn at(preset: &'static str, port: u16) -> Self {
        let directory = made("ms-e2e-");
        let stack = Self { directory, port, preset };
        stack.write(&stack.file());
        watch_over(&stack.directory);
        stack
    }

    /// Changes the stack file.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.directory.join("stack.yaml")).expect("own file");
        let mut file = serde_json::from_str(&text).expect("own JSON");
        change(&mut file);
        self.write(&file);
    }

    fn write(&self, file: &Value) {
        // JSON is YAML.
        let text = serde_json::to_string_pretty(file).expect("JSON");
        fs::write(self.directory.join("stack.yaml"), text).expect("own directory");
    }

    /// What the flows need: open registration, no rate limits, everything that can be switched on.
    fn file(&self) -> Value {
        let free = json!({ "per_second": 100_000, "burst_count": 100_000 });
        json!({
            "server_name": "e2e.test",
            "preset": self.preset,
            "data_dir": self.data(),
            "listen": { "address": format!("127.0.0.1:{}", self.port) },
            "registration": { "open": true },
            "synapse": { "extra": {
                "max_event_delay_duration": "24h",
                "experimental_features": { "msc3814_enabled": true, "msc4306_enabled": true },
                "refreshable_access_token_lifetime": "5m",
                "room_list_publication_rules": [{ "action": "allow" }],
                "user_directory": { "enabled": true, "search_all_users": true },
                // The flow's push gateway is on this machine.
                "ip_range_whitelist": ["127.0.0.1/32"],
                "rc_message": free,
                "rc_registration": free,
                "rc_login": { "address": free, "account": free, "failed_attempts": free },
                "rc_joins": { "local": free, "remote": free },
                "rc_joins_per_room": free,
                "rc_invites": { "per_room": free, "per_user": free, "per_issuer": free },
                "rc_room_creation": free,
                "rc_key_requests": free,
                "rc_presence": { "per_user": free },
                "rc_media_create": free,
                "rc_delayed_event_mgmt": free,
                "rc_reports": free,
                "rc_user_directory": free,
                "rc_profile": free,
            }},
        })
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.data().join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The program, about this stack.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.directory.join("stack.yaml")).args(words);
        command
    }

    /// Runs the program about this stack.
    #[track_caller]
    pub(crate) fn ask(&self, words: &[&str]) -> Done {
        system::run(&mut self.command(words), ASK)
    }

    /// The command that brings it up and leaves it in the background.
    pub(crate) fn up_command(&self) -> Command {
        let mut command = self.command(&["up", "--detach", "--packages-dir"]);
        command.arg(packages());
        command
    }

    #[track_caller]
    pub(crate) fn up(&self) -> Done {
        system::run(&mut self.up_command(), UP)
    }

    #[track_caller]
    pub(crate) fn down(&self) -> Done {
        system::run(&mut self.command(&["down"]), DOWN)
    }

    /// How it is, by `status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        let done = self.ask(&["status", "--json"]);
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error} in {done:?}"))
    }

    /// Every process that belongs to it, found without asking it.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let mut processes = system::working_in(&self.directory);
        processes.extend(processes.clone().iter().flat_map(|process| system::tree(process.pid)));
        processes.sort();
        processes.dedup();
        processes
    }

    /// A file with these people's names and passwords, for the flow.
    pub(crate) fn people(&self, names: &[&str]) -> PathBuf {
        let people: Vec<Value> =
            names.iter().map(|name| json!({ "name": name, "password": password(name) })).collect();
        let path = self.directory.join(format!("{}.json", names[0]));
        fs::write(&path, Value::from(people).to_string()).expect("own directory");
        path
    }

    /// `e2e/flow.py` with these arguments.
    pub(crate) fn flow(&self, command: &str, people: &Path) -> Command {
        let mut flow = script("flow.py");
        flow.args([command, "--url", &self.url(), "--users"]).arg(people);
        if command == "full" {
            flow.arg("--report").arg(self.report());
        }
        flow
    }

    /// Where the last whole flow wrote down how its steps went.
    pub(crate) fn report(&self) -> PathBuf {
        self.directory.join("flow.json")
    }

    /// The lines of the router's access log so far.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.log("access")).expect("an access log");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
            .collect()
    }
}

/// The password of a person of the tests.
pub(crate) fn password(name: &str) -> String {
    format!("{name}'s password")
}

/// A new directory, which `clear_up` removes. It is short, for the sockets' paths are limited to 107 bytes, and open, for
/// PostgreSQL's user has to get in.
pub(crate) fn made(prefix: &str) -> PathBuf {
    let directory =
        tempfile::Builder::new().prefix(prefix).tempdir_in("/tmp").expect("a temporary directory").keep();
    fs::set_permissions(&directory, Permissions::from_mode(0o711)).expect("own directory");
    MADE.lock().unwrap_or_else(PoisonError::into_inner).push(directory.clone());
    directory
}

/// Whether all of a stack is as it should be.
pub(crate) fn is_healthy(status: &Status) -> bool {
    status.processes.iter().all(|process| process.state == State::Healthy)
}

/// Where packages are kept from one run to the next. Where that directory is another user's, or PostgreSQL's user could
/// not enter it, they are kept for one run only.
pub(crate) fn packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let lasting = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let me = nix::unistd::Uid::effective();
        let own = lasting.metadata().is_ok_and(|meta| meta.uid() == me.as_raw());
        let open = lasting.ancestors().all(|path| path.metadata().is_ok_and(|meta| meta.mode() & 0o001 != 0));
        if own && (open || !me.is_root()) {
            return lasting.join("packages");
        }
        made("ms-e2e-packages-")
    })
}

/// A Python with the client library, installed from the lock like everything else.
pub(crate) fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let options = InstallOptions::new(packages(), Launcher::at(PROGRAM));
        ensure_extra(&options, &E2E, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// The Python that Synapse is installed in.
pub(crate) fn synapse_python() -> PathBuf {
    let options = InstallOptions::new(packages(), Launcher::at(PROGRAM));
    ensure(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}")).python
}

/// A file of the tests' clients.
pub(crate) fn client_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e").join(name)
}

/// One of the clients that are written in Python.
pub(crate) fn script(name: &str) -> Command {
    let mut command = Command::new(python());
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(client_file(name));
    command
}

/// Stops the stack, and the proxy in front of it, and removes its directory should this process end without having done
/// so: a pipe tells the watch, which nothing can prevent.
fn watch_over(directory: &Path) {
    static WATCHES: Mutex<Vec<Child>> = Mutex::new(Vec::new());
    let mut watch = Command::new("sh");
    watch
        .args(["-c", r#"cat; "$PROGRAM" down --config "$DIRECTORY/stack.yaml"; kill "$(cat "$DIRECTORY/nginx.pid")"; rm -rf "$DIRECTORY""#])
        .env("PROGRAM", PROGRAM)
        .env("DIRECTORY", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for the tests, not for who clears up after them.
        .process_group(0);
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner).push(watch.spawn().expect("a shell"));
}

/// Stops whatever still runs and removes the directories; after a failure it shows what the supervisors said.
pub(crate) fn clear_up(failed: bool) {
    let made = std::mem::take(&mut *MADE.lock().unwrap_or_else(PoisonError::into_inner));
    for directory in made {
        let file = directory.join("stack.yaml");
        if file.exists() && !system::working_in(&directory).is_empty() {
            // Whether it worked is seen below.
            let _ = std::panic::catch_unwind(|| {
                system::run(Command::new(PROGRAM).arg("down").arg("--config").arg(&file), DOWN)
            });
        }
        for process in system::working_in(&directory) {
            process.kill();
        }
        if failed {
            show_end(&directory.join("data/logs/supervisor.log"));
        }
        let _ = fs::remove_dir_all(&directory);
    }
}

fn show_end(log: &Path) {
    let Ok(text) = fs::read_to_string(log) else { return };
    let lines: Vec<&str> = text.lines().collect();
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "\n--- the end of {} ---", log.display());
    for line in &lines[lines.len().saturating_sub(60)..] {
        let _ = writeln!(err, "{line}");
    }
}
