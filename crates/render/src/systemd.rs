//! systemd units (systemd.unit(5), systemd.service(5), systemd.exec(5)): one for each process, or one for the whole stack.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use model::{App, Layout, Stack, Topology};

use crate::RenderedFile;

/// What the units need to know beside the stack.
#[derive(Clone, Debug)]
pub struct SystemdOptions {
    /// The units' name, or the first part of it.
    pub name: String,
    /// The user that everything runs as.
    pub user: String,
    /// This program.
    pub program: PathBuf,
    /// The stack file.
    pub config: PathBuf,
    /// Where Synapse, PostgreSQL and Valkey are installed.
    pub packages: PathBuf,
    /// One unit that runs `up`, instead of one for each process.
    pub whole: bool,
}

/// The files to lay below `/etc`: units in `systemd/system`, the user in `sysusers.d`, its directories in `tmpfiles.d`.
pub fn systemd(topology: &Topology, layout: &Layout, options: &SystemdOptions) -> Vec<RenderedFile> {
    let units = Units { topology, stack: topology.stack(), layout, options };
    let mut files = if options.whole { vec![units.whole()] } else { units.each() };
    files.extend(units.compress_state());
    files.push(units.users());
    files.push(units.directories());
    files
}

struct Units<'a> {
    topology: &'a Topology,
    stack: &'a Stack,
    layout: &'a Layout,
    options: &'a SystemdOptions,
}

/// Whom a service talks to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Processes of this machine, over unix sockets alone.
    Local,
    /// Others, over the network.
    Network,
}

/// One service.
struct Service<'a> {
    description: String,
    /// Units that must be there for it, and whose restart is its own.
    requires: Vec<String>,
    /// Units that start before it and stop after it. They restart without it.
    after: Vec<String>,
    /// The command, behind the program and the stack's own arguments.
    words: &'a [&'a str],
    /// More lines of the `[Service]` section, before those about what it is allowed.
    lines: &'a str,
    reach: Reach,
    /// What it may write to.
    writes: Vec<&'a Path>,
}

impl Units<'_> {
    fn each(&self) -> Vec<RenderedFile> {
        let unit = |part: &str| format!("{}-{part}.service", self.options.name);
        let mut own = vec![];
        if self.stack.database.external.is_none() {
            own.push(("postgres", self.postgres()));
        }
        if self.stack.redis.external.is_none() {
            own.push(("valkey", self.valkey()));
        }
        let before_main: Vec<String> = own.iter().map(|(part, _)| unit(part)).collect();
        let has = |app: App| self.topology.instances().iter().any(|instance| instance.app == app);

        let mut files = vec![self.target(&before_main), self.file(&unit("install"), &self.install())];
        files.extend(own.iter().map(|(part, service)| self.file(&unit(part), service)));
        files.push(self.file(&unit("main"), &self.main(before_main)));
        if has(App::Generic) || has(App::Media) {
            files.push(self.file(&unit("worker@"), &self.worker()));
        }
        if !self.topology.companions().is_empty() {
            files.push(self.file(&unit("companion@"), &self.companion()));
        }
        files.push(self.file(&unit("router"), &Self::router()));
        files
    }

    /// The target that pulls in every process, so that enabling it enables the stack.
    fn target(&self, own: &[String]) -> RenderedFile {
        let name = &self.options.name;
        let mut out = self.heading();
        let _ = writeln!(out, "[Unit]\nDescription=Matrix homeserver {}", self.stack.server_name);
        for unit in own {
            let _ = writeln!(out, "Wants={unit}");
        }
        let _ = writeln!(out, "Wants={name}-main.service");
        for instance in self.topology.instances().iter().filter(|instance| !instance.is_main()) {
            let _ = writeln!(out, "Wants={name}-worker@{}.service", instance.name);
        }
        for companion in self.topology.companions() {
            let _ = writeln!(out, "Wants={name}-companion@{}.service", companion.kind);
        }
        let _ = writeln!(out, "Wants={name}-router.service");
        out.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        RenderedFile { path: format!("systemd/system/{name}.target").into(), contents: out }
    }

    fn install(&self) -> Service<'_> {
        Service {
            description: "Installation".to_owned(),
            requires: vec![],
            after: vec!["network-online.target".to_owned()],
            words: &["install", "--packages-dir"],
            lines: "Type=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=15min\n",
            reach: Reach::Network,
            writes: vec![self.layout.data_dir(), &self.options.packages],
        }
    }

    fn postgres(&self) -> Service<'_> {
        Service {
            description: "PostgreSQL".to_owned(),
            requires: vec![self.installed()],
            after: vec![],
            words: &["run", "postgres", "--packages-dir"],
            // SIGINT ends its clients' sessions; SIGTERM would wait for them.
            lines: "Type=exec\nKillMode=mixed\nKillSignal=SIGINT\nTimeoutStopSec=5min\nOOMScoreAdjust=-500\n",
            reach: Reach::Local,
            writes: vec![self.layout.data_dir()],
        }
    }

    fn valkey(&self) -> Service<'_> {
        Service {
            description: "Valkey".to_owned(),
            requires: vec![self.installed()],
            after: vec![],
            words: &["run", "valkey", "--packages-dir"],
            lines: "Type=exec\n",
            reach: Reach::Local,
            writes: vec![self.layout.data_dir()],
        }
    }

    fn main(&self, own: Vec<String>) -> Service<'_> {
        // Not required: it waits for them by itself, and goes on when one of them restarts.
        let mut after = own;
        after.push("network-online.target".to_owned());
        Service {
            description: "Synapse, main process".to_owned(),
            requires: vec![self.installed()],
            after,
            words: &["run", "main", "--packages-dir"],
            // Main migrates the database when Synapse is new, which takes its time.
            lines: "Type=notify\nTimeoutStartSec=1h\nExecReload=kill -HUP $MAINPID\n",
            reach: Reach::Network,
            writes: self.data(),
        }
    }

    fn worker(&self) -> Service<'_> {
        Service {
            description: "Synapse worker %i".to_owned(),
            requires: vec![self.installed()],
            after: vec!["network-online.target".to_owned(), format!("{}-main.service", self.options.name)],
            words: &["run", "%i", "--packages-dir"],
            lines: "Type=notify\nTimeoutStartSec=5min\nExecReload=kill -HUP $MAINPID\n",
            reach: Reach::Network,
            writes: self.data(),
        }
    }

    fn companion(&self) -> Service<'_> {
        Service {
            description: "Matrix companion %i".to_owned(),
            requires: vec![self.installed()],
            after: vec!["network-online.target".to_owned()],
            words: &["run", "%i", "--packages-dir"],
            lines: "Type=notify\nExecReload=kill -HUP $MAINPID\nTimeoutStopSec=60\n",
            reach: Reach::Network,
            writes: vec![self.layout.data_dir()],
        }
    }

    fn router() -> Service<'static> {
        Service {
            description: "Matrix router".to_owned(),
            requires: vec![],
            after: vec!["network-online.target".to_owned()],
            words: &["router"],
            lines: "Type=notify\nExecReload=kill -HUP $MAINPID\nTimeoutStopSec=60\n",
            reach: Reach::Network,
            writes: vec![],
        }
    }

    /// What makes the database smaller, at night, where its timer is enabled.
    fn compress_state(&self) -> [RenderedFile; 2] {
        let name = format!("{}-compress-state", self.options.name);
        let service = Service {
            description: "Compression of the state of rooms".to_owned(),
            requires: vec![],
            after: vec!["network-online.target".to_owned()],
            words: &["compress-state", "--budget", "2h"],
            // What it has not done it does the next night.
            lines: "Type=oneshot\nRestart=no\nNice=10\n",
            reach: Reach::Network,
            writes: vec![],
        };
        let mut timer = self.heading();
        let _ = writeln!(timer, "[Unit]\nDescription={} of {}", service.description, self.stack.server_name);
        timer.push_str(
            "\n[Timer]\nOnCalendar=*-*-* 01:17:00\nRandomizedDelaySec=30min\n\n[Install]\nWantedBy=timers.target\n",
        );
        let path = format!("systemd/system/{name}.timer").into();
        [self.file(&format!("{name}.service"), &service), RenderedFile { path, contents: timer }]
    }

    fn whole(&self) -> RenderedFile {
        let mut writes = self.data();
        writes.push(&self.options.packages);
        let service = Service {
            description: "Matrix homeserver".to_owned(),
            requires: vec![],
            after: vec!["network-online.target".to_owned()],
            words: &["up", "--packages-dir"],
            // Its stdout holds the first administrator's password, which has no place in the journal.
            lines: "Type=exec\nStandardOutput=null\nKillMode=mixed\nTimeoutStopSec=2min\n",
            reach: Reach::Network,
            writes,
        };
        let mut file = self.file(&format!("{}.service", self.options.name), &service);
        file.contents.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        file
    }

    fn installed(&self) -> String {
        format!("{}-install.service", self.options.name)
    }

    /// The data directory, and the media store where that lies elsewhere.
    fn data(&self) -> Vec<&Path> {
        let own = self.stack.media.store_path.as_deref();
        std::iter::once(self.layout.data_dir())
            .chain(own.filter(|path| !path.starts_with(self.layout.data_dir())))
            .collect()
    }

    fn heading(&self) -> String {
        format!(
            "# Generated by matrix-stack for {}; changes made here are lost. Use `systemctl edit` for changes of your own.\n\n",
            self.stack.server_name
        )
    }

    fn file(&self, name: &str, service: &Service<'_>) -> RenderedFile {
        let mut out = self.heading();
        let _ = writeln!(out, "[Unit]\nDescription={} of {}", service.description, self.stack.server_name);
        if !self.options.whole {
            let _ = writeln!(out, "PartOf={}.target", self.options.name);
        }
        for unit in &service.requires {
            let _ = writeln!(out, "Requires={unit}");
        }
        for unit in &service.after {
            if unit == "network-online.target" {
                let _ = writeln!(out, "Wants={unit}");
            }
        }
        for unit in service.requires.iter().chain(&service.after) {
            let _ = writeln!(out, "After={unit}");
        }
        out.push_str("# A process that does not come up is tried again for as long as it takes.\n");
        out.push_str("StartLimitIntervalSec=0\n");

        out.push_str("\n[Service]\n");
        let _ = writeln!(out, "ExecStart={}", self.command(service.words));
        out.push_str(service.lines);
        if !service.lines.contains("Restart=") {
            out.push_str("Restart=on-failure\nRestartSec=2\n");
        }
        let _ = writeln!(out, "User={0}\nGroup={0}", self.options.user);
        let _ = writeln!(
            out,
            "WorkingDirectory={}",
            self.layout.data_dir().display().to_string().replace('%', "%%")
        );
        let _ = writeln!(out, "Slice={}.slice", self.options.name);
        out.push_str("LimitNOFILE=1048576\n");
        self.allow(&mut out, service);
        RenderedFile { path: format!("systemd/system/{name}").into(), contents: out }
    }

    /// The line of a command. What the stack file leaves to the machine is said here, so that units and processes agree.
    fn command(&self, words: &[&str]) -> String {
        // No variable is replaced in the program's own name.
        let mut line = value(&self.options.program);
        for (flag, path) in
            [("--config", self.options.config.as_path()), ("--data-dir", self.layout.data_dir())]
        {
            let _ = write!(line, " {flag} {}", argument(path));
        }
        let _ = write!(line, " --preset {}", self.topology.preset());
        for word in words {
            let _ = write!(line, " {word}");
            if *word == "--packages-dir" {
                let _ = write!(line, " {}", argument(&self.options.packages));
            }
        }
        line
    }

    fn allow(&self, out: &mut String, service: &Service<'_>) {
        out.push_str("\n# What it is allowed.\nUMask=0077\nNoNewPrivileges=yes\n");
        let low = service.words[0] == "router" || self.options.whole;
        let ports = [Some(&self.stack.listen.address), self.stack.listen.metrics.as_ref()];
        let port = |address: &String| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if low && ports.into_iter().flatten().filter_map(port).any(|port| port < 1024) {
            out.push_str(
                "AmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n",
            );
        } else {
            // A user namespace of its own would take the capability away.
            out.push_str("CapabilityBoundingSet=\nPrivateUsers=yes\n");
        }
        out.push_str("ProtectSystem=strict\n");
        for path in &service.writes {
            let _ = writeln!(out, "ReadWritePaths={}", value(path));
        }
        let homes = [Path::new("/home"), Path::new("/root"), Path::new("/run/user")];
        let mut paths = vec![self.options.program.as_path(), &self.options.config, &self.options.packages];
        paths.extend(self.data());
        paths.extend(self.stack.synapse.python.as_deref());
        let in_home = paths.iter().any(|path| homes.iter().any(|home| path.starts_with(home)));
        let _ = writeln!(out, "ProtectHome={}", if in_home { "read-only" } else { "yes" });
        out.push_str(
            "PrivateTmp=yes\n\
             PrivateDevices=yes\n\
             ProtectClock=yes\n\
             ProtectControlGroups=yes\n\
             ProtectHostname=yes\n\
             ProtectKernelLogs=yes\n\
             ProtectKernelModules=yes\n\
             ProtectKernelTunables=yes\n\
             ProtectProc=invisible\n\
             RestrictNamespaces=yes\n\
             RestrictRealtime=yes\n\
             RestrictSUIDSGID=yes\n\
             LockPersonality=yes\n",
        );
        match service.reach {
            Reach::Local => {
                out.push_str("PrivateNetwork=yes\nIPAddressDeny=any\nRestrictAddressFamilies=AF_UNIX\n");
            }
            Reach::Network => out.push_str("RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n"),
        }
        if service.words[0] == "router" {
            // Python's foreign functions write code into memory; the router has nothing of the kind.
            out.push_str("MemoryDenyWriteExecute=yes\n");
        }
        out.push_str(
            "SystemCallArchitectures=native\n\
             SystemCallFilter=@system-service\n\
             SystemCallFilter=~@privileged @resources\n\
             SystemCallErrorNumber=EPERM\n",
        );
    }

    fn users(&self) -> RenderedFile {
        let Self { layout, options, .. } = self;
        let home = options.packages.parent().unwrap_or(layout.data_dir());
        RenderedFile {
            path: format!("sysusers.d/{}.conf", options.name).into(),
            contents: format!("{}u {} - \"matrix-stack\" {}\n", self.heading(), options.user, value(home)),
        }
    }

    fn directories(&self) -> RenderedFile {
        let mut out = self.heading();
        for path in self.data().into_iter().chain([self.options.packages.as_path()]) {
            let _ = writeln!(out, "d {} 0711 {1} {1} -", value(path), self.options.user);
        }
        RenderedFile { path: format!("tmpfiles.d/{}.conf", self.options.name).into(), contents: out }
    }
}

/// A path as a setting's value: quoted where it has to be, and free of specifiers.
fn value(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@:%,=~".contains(&b)) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A path as a word of a command line, where variables are replaced besides.
fn argument(path: &Path) -> String {
    value(path).replace('$', "$$")
}
