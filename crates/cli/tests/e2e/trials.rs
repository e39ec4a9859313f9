//! The trials, in the order in which they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use model::ROLES;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::client::{Phase, ProcessStatus, State, Status};
use serde_json::Value;

use crate::stack::{PROGRAM, Stack, is_healthy, password, script, synapse_python};
use crate::system::{Process, describe, get, run, until, wait};
use crate::{
    beside, calls, compose, compressed, console, mas, reload, scenarios, served, tokens, truth, units,
};

/// Name and body of every trial.
pub(crate) const ALL: &[(&str, fn())] = &[
    ("full_starts_from_nothing", full_starts_from_nothing),
    ("a_second_start_on_the_same_data_is_refused", a_second_start_on_the_same_data_is_refused),
    ("a_taken_port_is_named", a_taken_port_is_named),
    ("status_lists_every_process", status_lists_every_process),
    ("a_client_uses_everything_of_full", a_client_uses_everything_of_full),
    ("each_role_served_its_part", each_role_served_its_part),
    ("an_encrypting_client_uses_its_part_of_full", an_encrypting_client_uses_its_part_of_full),
    ("accounts_are_added_and_admin_is_closed", accounts_are_added_and_admin_is_closed),
    ("devices_with_opaque_tokens_stay_with_their_user", devices_with_opaque_tokens_stay_with_their_user),
    ("alerts_and_dashboards_name_what_synapse_measures", alerts_and_dashboards_name_what_synapse_measures),
    ("logs_are_shown", logs_are_shown),
    ("top_shows_what_passes_through", top_shows_what_passes_through),
    ("metrics_are_open_metrics", metrics_are_open_metrics),
    ("hooks_bring_each_alert_once_through_crashes", hooks_bring_each_alert_once_through_crashes),
    ("processes_and_roles_are_restarted", processes_and_roles_are_restarted),
    ("a_browser_uses_each_page_of_the_console", a_browser_uses_each_page_of_the_console),
    ("small_runs_beside_full", small_runs_beside_full),
    (
        "nothing_acknowledged_is_lost_when_processes_are_killed",
        nothing_acknowledged_is_lost_when_processes_are_killed,
    ),
    (
        "a_killed_supervisor_leaves_nothing_and_a_start_without_network_goes_on",
        a_killed_supervisor_leaves_nothing,
    ),
    ("down_leaves_nothing", down_leaves_nothing),
    ("a_stack_changes_while_it_runs_and_no_request_fails", reload::a_stack_changes_while_it_runs),
    ("synapse_agrees_with_table_and_configuration", truth::synapse_agrees_with_table_and_configuration),
    (
        "every_endpoint_is_answered_as_promised_and_as_by_one_process",
        truth::every_endpoint_is_answered_as_promised_and_as_by_one_process,
    ),
    ("odd_spellings_are_understood_as_by_synapse", truth::odd_spellings_are_understood_as_by_synapse),
    ("two_stacks_federate", scenarios::two_stacks_federate),
    ("users_of_two_stacks_get_tokens_for_calls", calls::users_of_two_stacks_get_tokens_for_calls),
    (
        "a_room_is_compressed_while_its_members_come_and_go",
        compressed::a_room_is_compressed_while_its_members_come_and_go,
    ),
    ("tokens_of_another_service_change_and_nothing_is_lost", mas::tokens_of_another_service),
    ("mas_itself_serves_a_stack", mas::mas_itself),
    ("companions_run_beside_synapse", beside::companions_run_beside_synapse),
    ("units_run_without_up", units::units_run_without_up),
    ("compose_files_fit_together", compose::compose_files_fit_together),
];

/// The people of the flow, who register themselves.
const GUESTS: [&str; 5] = ["ada", "bob", "cyd", "dee", "eve"];
/// The people of the ledger, whom the command line adds. The first is an administrator.
const RESIDENTS: [&str; 5] = ["kim", "lee", "max", "noa", "pat"];
/// The flow takes less than a minute by itself on two cores.
const FLOW: Duration = Duration::from_secs(280);
/// How long a killed process may take to be back and everything to be healthy: much more than it should.
const BACK: Duration = Duration::from_secs(60);
/// How long messages may stall. Synapse itself retries its replication requests for 63 s.
const STALL: Duration = Duration::from_secs(90);
/// How long a killed supervisor's processes may outlive it.
const ORPHANED: Duration = Duration::from_secs(10);

/// The stack that the trials share, up since the first one that asked for it.
fn full() -> &'static Stack {
    static FULL: OnceLock<Stack> = OnceLock::new();
    FULL.get_or_init(|| {
        let stack = Stack::new("full");
        let done = stack.up().good();
        println!("    {}", done.stdout.lines().next().unwrap_or_default());
        assert!(done.stdout.contains(&stack.url()), "{}", done.stdout);
        for shown in ["@admin:e2e.test", "password"] {
            assert_eq!(
                done.stdout.matches(shown).count(),
                1,
                "`{shown}` is not shown once:\n{}",
                done.stdout
            );
        }
        stack
    })
}

fn full_starts_from_nothing() {
    let stack = full();
    let status = stack.status();
    assert_eq!(status.phase, Phase::Running);
    assert!(is_healthy(&status), "{}", unhealthy(&status));
}

fn a_second_start_on_the_same_data_is_refused() {
    let stack = full();
    let before = stack.status();
    let done = stack.up();
    assert!(done.took < Duration::from_secs(20), "{:?}", done.took);
    let message = done.bad();
    assert!(message.contains(&before.pid.to_string()) && message.contains("matrix-stack down"), "{message}");
    assert_eq!(pids(&stack.status()), pids(&before), "the running stack was touched");
}

fn a_taken_port_is_named() {
    let stack = full();
    let other = Stack::at("small", stack.port);
    let message = other.up().bad();
    for part in
        [format!("127.0.0.1:{}", stack.port), "listen.address".to_owned(), stack.status().pid.to_string()]
    {
        assert!(message.contains(&part), "no {part} in {message}");
    }
    assert_eq!(describe(&other.processes()), "");
    let message = other.ask(&["status"]).bad();
    assert!(message.contains("matrix-stack up"), "{message}");
}

fn status_lists_every_process() {
    let stack = full();
    let done = stack.ask(&["status", "--json"]).good();
    let json: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let processes = json["processes"].as_array().expect("a list of processes");
    assert!(processes.len() >= 27, "only {}", processes.len());
    let mut names = BTreeSet::new();
    let mut roles = BTreeSet::new();
    for process in processes {
        let text = |field: &str| process[field].as_str().unwrap_or_else(|| panic!("no {field} in {process}"));
        let number =
            |field: &str| process[field].as_u64().unwrap_or_else(|| panic!("no {field} in {process}"));
        assert!(names.insert(text("name")), "{} twice", text("name"));
        roles.insert(text("role"));
        assert_eq!(text("state"), "healthy");
        let pid = u32::try_from(number("pid")).expect("a process number");
        assert!(Process::find(pid).is_some(), "{process} does not run");
        assert!(number("rss_bytes") > 1 << 20, "{process}");
        assert_eq!(number("restarts"), 0);
        // The fork server takes its orders through a pipe.
        let address = process.get("address").unwrap_or_else(|| panic!("no address in {process}"));
        assert!(address.is_string() || text("role") == "forkserver", "{process}");
    }
    let missing: Vec<_> =
        ROLES.iter().map(|spec| spec.role.name()).filter(|role| !roles.contains(role)).collect();
    assert!(missing.is_empty(), "no process has the role {missing:?}");
    let shown = stack.ask(&["status"]).good().stdout;
    assert!(names.iter().all(|name| shown.contains(*name)), "{shown}");
}

/// Runs the whole client flow; a step that the stack does not offer is a failure.
fn flow(stack: &Stack) {
    let people = stack.people(&GUESTS);
    let mut flow = stack.flow("full", &people);
    let done = run(flow.args(["--register", "--router", "--push", "--no-skips"]), FLOW);
    let report = format!("{}{}", done.stdout, done.stderr);
    let amiss: Vec<_> = report.lines().filter(|line| !line.starts_with("PASS")).collect();
    assert_eq!(done.code, Some(0), "{}", amiss.join("\n"));
    println!("    {}", report.lines().last().unwrap_or_default());
}

fn a_client_uses_everything_of_full() {
    flow(full());
}

fn each_role_served_its_part() {
    let stack = full();
    served::check(&stack.report(), &[("", stack)]);
    let log = stack.access_log();
    let text = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let served: BTreeSet<(String, String, String)> = log
        .iter()
        .filter(|line| line["status"].as_u64().is_some_and(|status| status < 300))
        .map(|line| (text(line, "method"), text(line, "path"), text(line, "instance")))
        .collect();
    // Each room's messages were sent by one process.
    let mut senders: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (_, path, instance) in
        served.iter().filter(|(m, path, _)| m == "PUT" && path.contains("/send/m.room.message/"))
    {
        // Clients differ in what they encode.
        let room = path.split('/').nth(5).unwrap_or_default().replace("%21", "!").replace("%3A", ":");
        senders.entry(room).or_default().insert(instance);
    }
    let spread: Vec<_> = senders.iter().filter(|(_, by)| by.len() > 1).collect();
    assert!(spread.is_empty(), "rooms with more than one sending process: {spread:?}");
    assert_eq!(
        senders.values().flatten().collect::<BTreeSet<_>>().len(),
        2,
        "not every room process was used"
    );
    let failures: Vec<_> =
        log.iter().filter(|line| line["status"].as_u64().is_some_and(|status| status >= 500)).collect();
    assert!(failures.is_empty(), "requests failed: {failures:?}");
    // Both event persisters have persisted, behind the room processes.
    for name in ["event_persister_1", "event_persister_2"] {
        let log = fs::read_to_string(stack.log(name)).expect("its log");
        assert!(log.contains("/_synapse/replication/send_event"), "{name} has persisted nothing");
    }
}

fn an_encrypting_client_uses_its_part_of_full() {
    scenarios::an_encrypting_client(full());
}

/// The residents, added by the command line once.
fn residents(stack: &Stack) -> PathBuf {
    static ADDED: OnceLock<PathBuf> = OnceLock::new();
    ADDED.get_or_init(|| add_people(stack, &RESIDENTS)).clone()
}

/// Adds people by the command line, the first as administrator.
pub(crate) fn add_people(stack: &Stack, names: &[&str]) -> PathBuf {
    let file = stack.directory.join("password");
    for name in names {
        fs::write(&file, password(name)).expect("own directory");
        let mut add = stack.command(&["user", "add", name, "--password-file"]);
        add.arg(&file);
        if *name == names[0] {
            add.arg("--admin");
        }
        let done = run(&mut add, BACK).good();
        assert_eq!(done.stdout, format!("@{name}:e2e.test\n"));
    }
    stack.people(names)
}

fn accounts_are_added_and_admin_is_closed() {
    let stack = full();
    residents(stack);
    let message = stack.ask(&["user", "add", RESIDENTS[1]]).bad();
    assert!(message.contains("exists already"), "{message}");
    let message = stack.ask(&["user", "add", "@kim:e2e.test"]).bad();
    assert!(message.contains("without `@`"), "{message}");
    let generated = stack.ask(&["user", "add", "quinn"]).good().stdout;
    assert_eq!(generated.lines().count(), 2, "{generated}");

    for path in [
        "/_synapse/admin/v1/server_version",
        "/_synapse/admin/v1/register",
        "/%5Fsynapse/%61dmin/v1/server_version",
        "/_synapse/replication/send_event/x",
        "/_synapse/metrics",
        "/metrics",
        "/health",
    ] {
        assert_eq!(get(stack.port, path), 404, "{path}");
    }
    assert_eq!(get(stack.port, "/_matrix/client/versions"), 200);
}

fn devices_with_opaque_tokens_stay_with_their_user() {
    let stack = full();
    residents(stack);
    tokens::opaque_tokens(stack, &RESIDENTS);
}

fn a_browser_uses_each_page_of_the_console() {
    let stack = full();
    residents(stack);
    console::a_browser_uses_each_page(stack, RESIDENTS[0], RESIDENTS[1]);
}

/// The charts' alerts and dashboards ask for nothing that Synapse does not tell. The router's own metrics are held by a test
/// of the router's.
fn alerts_and_dashboards_name_what_synapse_measures() {
    let measured: BTreeSet<String> = full()
        .status()
        .processes
        .iter()
        .filter_map(|process| {
            // The private socket lies beside the one that the status names, or is that one.
            let sockets = full().data().join("run");
            let private = sockets.join(format!("{}.private.sock", process.name));
            private.exists().then(|| scrape(&private))
        })
        .flat_map(|text| {
            // What has not happened yet is told by its type alone.
            let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
            let ends = |kind| if kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            types
                .flat_map(|(name, kind)| ends(kind).iter().map(move |end| format!("{name}{end}")))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(measured.contains("synapse_build_info"), "{} metrics", measured.len());
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/synapse/files");
    let mut texts = vec![fs::read_to_string(files.join("alerts.yaml")).expect("the alerts")];
    for entry in fs::read_dir(files.join("dashboards")).expect("the dashboards") {
        texts.push(fs::read_to_string(entry.expect("a dashboard").path()).expect("a dashboard"));
    }
    let named: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| ["synapse_", "python_", "process_"].iter().any(|start| word.starts_with(start)))
        .collect();
    let unknown: Vec<_> = named.iter().filter(|name| !measured.contains(**name)).collect();
    assert!(named.len() > 10 && unknown.is_empty(), "no process measures {unknown:?}");
}

/// What a process measures.
fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).expect("the process listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    stream.write_all(b"GET /_synapse/metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("a connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.split_whitespace().nth(1) == Some("200"), "{answer}");
    answer
}

/// How many alerts; `MATRIX_STACK_HOOKS_ALERTS` has another number.
const ALERTS: &str = "1000";

fn hooks_bring_each_alert_once_through_crashes() {
    let stack = full();
    let alerts = std::env::var("MATRIX_STACK_HOOKS_ALERTS").unwrap_or_else(|_| ALERTS.to_owned());
    let mut hooks = script("hooks.py");
    hooks.args(["--program", PROGRAM, "--url", &stack.url(), "--alerts", &alerts, "--directory"]);
    hooks.arg(stack.directory.join("hooks"));
    let done = run(&mut hooks, Duration::from_secs(1200)).good();
    print!("{}", done.stdout);
}

fn logs_are_shown() {
    let stack = full();
    let one = stack.ask(&["logs", "-n", "3", "typing_1"]).good().stdout;
    assert_eq!(one.lines().count(), 3, "{one}");
    let role = stack.ask(&["logs", "-n", "2", "sync"]).good().stdout;
    assert!(
        role.lines().any(|line| line.starts_with("sync_1"))
            && role.lines().any(|line| line.starts_with("sync_2")),
        "{role}"
    );
    let all = stack.ask(&["logs", "-n", "1"]).good().stdout;
    assert!(
        ["main", "postgres", "supervisor"].iter().all(|name| all.lines().any(|line| line.starts_with(name))),
        "{all}"
    );
    let message = stack.ask(&["logs", "nobody"]).bad();
    assert!(message.contains("`nobody`") && message.contains("matrix-stack status"), "{message}");

    // What is written while one looks is shown.
    let path = stack.directory.join("followed");
    let out = File::create(&path).expect("own directory");
    let mut follow = stack.command(&["logs", "-f", "-n", "0", "client_reader"]);
    let mut follow = follow.stdin(Stdio::null()).stdout(out).spawn().expect("it starts");
    let seen = std::panic::catch_unwind(|| {
        until("a followed line", Duration::from_secs(20), || {
            get(stack.port, "/_matrix/client/versions?followed");
            fs::read_to_string(&path).is_ok_and(|text| text.contains("versions?followed")).then_some(())
        });
    });
    // It runs until told otherwise.
    let _ = follow.kill();
    let _ = follow.wait();
    seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn top_shows_what_passes_through() {
    let stack = full();
    // Somebody who asks as long as one looks.
    let looked = AtomicBool::new(false);
    let (json, text) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + BACK;
            while !looked.load(Ordering::Relaxed) && Instant::now() < deadline {
                get(stack.port, "/_matrix/client/versions");
            }
        });
        let both = (stack.ask(&["top", "--json"]), stack.ask(&["top", "--once"]));
        looked.store(true, Ordering::Relaxed);
        both
    });
    let view: Value = serde_json::from_str(&json.good().stdout).expect("JSON");
    let status = stack.status();
    let instances = view["instances"].as_array().expect("a list");
    assert_eq!(instances.len(), status.processes.len());
    let is_more = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    let asked = instances.iter().filter(|row| is_more(&row["traffic"]["requests_per_second"]));
    let asked: Vec<_> = asked.filter_map(|row| row["name"].as_str()).collect();
    assert!(asked.iter().any(|name| name.starts_with("client_reader_")), "only {asked:?} served anything");
    for row in instances {
        assert_eq!(row["amiss"], false, "{row}");
        assert!(is_more(&row["memory_bytes"]) && row["cpu_percent"].is_f64(), "{row}");
    }
    assert!(is_more(&view["totals"]["requests_per_second"]), "{}", view["totals"]);
    let text = text.good().stdout;
    assert!(status.processes.iter().all(|process| text.contains(&process.name)), "{text}");
}

/// What the router tells Prometheus is read by Prometheus' own client, which Synapse brings along.
fn metrics_are_open_metrics() {
    const READ: &str = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families\n\
        print(*{f.name for f in text_string_to_metric_families(sys.stdin.read()) if f.samples})";
    let stack = full();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let layout = model::Layout::new(stack.data());
    get(stack.port, "/_matrix/client/versions");
    let text = until("the request is counted", BACK, || {
        let text = runtime.block_on(runtime::client::metrics(&layout)).expect("metrics");
        text.contains("_requests_total{").then_some(text)
    });
    let path = stack.directory.join("metrics");
    fs::write(&path, &text).expect("own directory");
    let mut read = Command::new(synapse_python());
    let read = read.args(["-c", READ]).stdin(File::open(&path).expect("own file")).output();
    let read = read.expect("python starts");
    assert!(read.status.success(), "{}\n{text}", String::from_utf8_lossy(&read.stderr));
    let families = String::from_utf8_lossy(&read.stdout).into_owned();
    for name in ["requests", "request_duration_seconds", "upstream_duration_seconds", "instance_role"] {
        let name = format!("matrix_stack_router_{name}");
        assert!(families.split_whitespace().any(|family| family == name), "no {name} in {families}");
    }
}

fn processes_and_roles_are_restarted() {
    let stack = full();
    for (target, names) in [
        ("typing_1", &["typing_1"][..]),
        ("sync", &["sync_1", "sync_2"]),
        ("event_persister_1", &["event_persister_1"]),
    ] {
        let before = stack.status();
        let done = stack.ask(&["restart", target]).good();
        for name in names {
            let line = done
                .stderr
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_else(|| panic!("{}", done.stderr));
            println!("    {line}");
        }
        let after = stack.status();
        for process in &after.processes {
            let changed = pid_of(&before, &process.name) != process.pid;
            assert_eq!(
                changed,
                names.contains(&process.name.as_str()),
                "{} after `restart {target}`",
                process.name
            );
        }
        assert!(is_healthy(&after), "{}", unhealthy(&after));
    }
    let message = stack.ask(&["restart", "nobody"]).bad();
    assert!(message.contains("nobody"), "{message}");
}

fn small_runs_beside_full() {
    let stack = full();
    let before = stack.status();
    let small = Stack::new("small");
    let done = small.up().good();
    println!("    {}", done.stdout.lines().next().unwrap_or_default());
    let status = small.status();
    assert!(is_healthy(&status), "{}", unhealthy(&status));
    assert_eq!(status.preset, "small");
    assert!(status.processes.len() < 10, "{}", status.processes.len());
    flow(&small);
    served::check(&small.report(), &[("", &small)]);
    assert_eq!(pids(&stack.status()), pids(&before), "the other stack was touched");
    let left = small.processes();
    small.down().good();
    assert_gone(&left, Duration::ZERO);
    assert!(is_healthy(&stack.status()));
}

/// People who send messages until told to stop.
pub(crate) struct Senders {
    child: Child,
    output: PathBuf,
    ledger: PathBuf,
}

impl Senders {
    /// Each sends a message every so many seconds.
    pub(crate) fn start(stack: &Stack, people: &Path, interval: &str) -> Self {
        let ledger = ledger(stack);
        let output = stack.directory.join("senders");
        let file = File::create(&output).expect("own directory");
        let errors = file.try_clone().expect("a file can be opened twice");
        let mut command = stack.flow("acked", people);
        command
            .arg("--ledger")
            .arg(&ledger)
            .args(["--interval", interval])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors);
        Self { child: command.spawn().expect("python starts"), output, ledger }
    }

    /// How many messages have been acknowledged.
    pub(crate) fn acknowledged(&mut self) -> usize {
        if let Some(status) = self.child.try_wait().expect("a child of ours") {
            panic!("the senders gave up ({status}):\n{}", self.said());
        }
        fs::read_to_string(&self.ledger).map_or(0, |text| text.lines().count())
    }

    /// Waits until so many more have been acknowledged.
    #[track_caller]
    pub(crate) fn more(&mut self, count: usize) {
        let wanted = self.acknowledged() + count;
        until(&format!("{wanted} messages"), STALL, || (self.acknowledged() >= wanted).then_some(()));
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Lets them finish what they are sending.
    pub(crate) fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("a child of ours");
        let status = wait(&mut self.child, Duration::from_secs(150));
        assert!(status.is_some_and(|status| status.success()), "{status:?}:\n{}", self.said());
        self.said()
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        // Nothing to do if they have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ledger(stack: &Stack) -> PathBuf {
    stack.directory.join("ledger.jsonl")
}

/// Reads back what the ledger says was acknowledged.
#[track_caller]
pub(crate) fn verify(stack: &Stack, people: &Path) {
    let mut verify = stack.flow("verify", people);
    let done = run(verify.arg("--ledger").arg(ledger(stack)), FLOW).good();
    println!("    {}", done.stdout.trim_end());
}

fn nothing_acknowledged_is_lost_when_processes_are_killed() {
    let stack = full();
    let people = residents(stack);
    let mut senders = Senders::start(stack, &people, "1");
    until("the first messages", STALL, || (senders.acknowledged() >= 10).then_some(()));
    let first = stack.status();
    let victims: Vec<String> = first
        .processes
        .iter()
        .filter(|process| process.pid != Some(first.pid))
        .map(|process| process.name.clone())
        .collect();
    let mut took = Vec::new();
    for name in victims {
        let before = stack.status();
        let victim = process(&before, &name);
        let pid = victim.pid.and_then(Process::find).unwrap_or_else(|| panic!("{name} does not run"));
        pid.kill();
        let killed = Instant::now();
        let after = until(&format!("{name} back and all healthy"), BACK, || {
            let status = stack.status();
            let back = process(&status, &name);
            (back.pid != victim.pid && back.restarts > victim.restarts && is_healthy(&status))
                .then_some(status)
        });
        took.push((killed.elapsed(), name));
        assert_eq!(after.pid, first.pid, "the supervisor is another one");
        senders.more(2);
    }
    let said = senders.stop();
    println!("    {}", said.lines().last().unwrap_or_default());
    took.sort();
    let slowest: Vec<String> =
        took.iter().rev().take(5).map(|(took, name)| format!("{name} {:.2} s", took.as_secs_f64())).collect();
    let median = took[took.len() / 2].0.as_secs_f64();
    println!("    {} killed; back after {median:.2} s (median); slowest: {}", took.len(), slowest.join(", "));
    verify(stack, &people);
}

/// A command that runs where there is no network but the loopback interface, as far as this user may arrange that; in
/// any case where no package index can be reached.
fn without_network(command: &Command) -> Command {
    // SIOCSIFFLAGS with IFF_UP, netdevice(7): a new namespace's loopback interface is down.
    const LOOPBACK: &str = "import fcntl, os, socket, struct, sys\n\
        fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 1))\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    let allowed = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    let mut offline = if allowed.is_ok_and(|status| status.success()) {
        let mut offline = Command::new("unshare");
        offline.args(["--net", "python3", "-c", LOOPBACK]).arg(command.get_program());
        offline
    } else {
        eprintln!("    no network namespace may be made here: only the package index is out of reach");
        Command::new(command.get_program())
    };
    offline.args(command.get_args());
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        // Nothing listens on the discard port.
        offline.env(name, "http://127.0.0.1:9");
    }
    offline
}

fn a_killed_supervisor_leaves_nothing() {
    let stack = full();
    let people = residents(stack);
    let status = stack.status();
    let processes = stack.processes();
    assert!(processes.len() >= status.processes.len(), "found only {}", describe(&processes));
    Process::find(status.pid).expect("the supervisor").kill();
    assert_gone(&processes, ORPHANED);
    assert_eq!(describe(&stack.processes()), "", "orphans");
    let message = stack.ask(&["status"]).bad();
    assert!(message.contains("matrix-stack up"), "{message}");

    let done = run(&mut without_network(&stack.up_command()), Duration::from_secs(120)).good();
    println!("    without network: {}", done.stdout.lines().next().unwrap_or_default());
    assert!(!done.stdout.contains("password"), "the password is shown again");
    let status = stack.status();
    assert!(is_healthy(&status), "{}", unhealthy(&status));
    stack.down().good();

    let done = stack.up().good();
    println!("    and again: {}", done.stdout.lines().next().unwrap_or_default());
    // The messages of the trial before; alone, this trial sends some of its own first.
    if !ledger(stack).exists() {
        let mut senders = Senders::start(stack, &people, "1");
        until("some messages", STALL, || (senders.acknowledged() >= 10).then_some(()));
        senders.stop();
    }
    verify(stack, &people);
}

fn down_leaves_nothing() {
    let stack = full();
    let processes = stack.processes();
    let done = stack.down().good();
    println!("    down after {:.1} s", done.took.as_secs_f64());
    assert_gone(&processes, Duration::ZERO);
    assert_eq!(describe(&stack.processes()), "");
    let sockets = fs::read_dir(stack.data().join("run")).expect("its directory").flatten();
    let left: Vec<_> =
        sockets.filter(|entry| entry.path().extension().is_some_and(|e| e == "sock")).collect();
    assert!(left.is_empty(), "{left:?}");
    let message = stack.down().bad();
    assert!(message.contains("no stack runs"), "{message}");
}

fn process<'a>(status: &'a Status, name: &str) -> &'a ProcessStatus {
    status.processes.iter().find(|process| process.name == name).unwrap_or_else(|| panic!("no {name}"))
}

pub(crate) fn pid_of(status: &Status, name: &str) -> Option<u32> {
    process(status, name).pid
}

pub(crate) fn pids(status: &Status) -> BTreeMap<&str, Option<u32>> {
    status.processes.iter().map(|process| (process.name.as_str(), process.pid)).collect()
}

pub(crate) fn unhealthy(status: &Status) -> String {
    let amiss = status.processes.iter().filter(|process| process.state != State::Healthy);
    amiss.map(|process| format!("{process:?}")).collect::<Vec<_>>().join("\n")
}

/// Every one of these processes has ended, or does so within `limit`.
#[track_caller]
fn assert_gone(processes: &[Process], limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let left: Vec<Process> = processes.iter().copied().filter(|process| process.runs()).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "after {limit:?} these still run:\n{}", describe(&left));
        std::thread::sleep(Duration::from_millis(20));
    }
}
