//! The command line.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use model::{Address, ListenAddress, Preset, Sources};

use crate::top::Sort;

/// Plans, checks, runs, routes, watches and repairs a complete self-hosted Matrix deployment.
#[derive(Debug, Parser)]
#[command(name = "matrix-stack", version, max_term_width = 110, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Which stack.
    #[command(flatten)]
    pub(crate) stack: StackArguments,
}

/// Which stack a command is about, and what is changed for this once.
#[derive(Clone, Debug, Args)]
pub(crate) struct StackArguments {
    /// The stack file [default: stack.yaml where it exists, else a stack called `localhost`]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The stack's data directory, above what the stack file says
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The layout of processes, above what the stack file says
    #[arg(long, global = true, value_name = "NAME", value_parser = preset)]
    pub(crate) preset: Option<Preset>,
}

fn preset(name: &str) -> Result<Preset, String> {
    name.parse()
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a commented stack.yaml
    Init(Init),
    /// Say everything that is wrong with the stack file, or nothing
    Check,
    /// Show which processes the stack means, what they need, or what a change would restart
    Plan(Plan),
    /// Install what is missing and run the whole stack
    Up(Up),
    /// Show every process of the running stack
    Status(Json),
    /// Watch the running stack: what passes through each process and class of endpoints, and what fails
    Top(Top),
    /// Show the processes' logs
    Logs(Logs),
    /// Restart processes of the running stack
    Restart {
        /// Names of processes, roles or groups
        #[arg(required = true, value_name = "NAME|ROLE")]
        names: Vec<String>,
    },
    /// Make the running stack what the stack file says now, without stopping it
    Reload,
    /// Stop the running stack
    Down,
    /// Serve the admin console of the running stack, for a browser
    Console(Console),
    /// Run the router alone, in front of processes that run elsewhere
    Router(Router),
    /// Look at a homeserver from outside, as other servers and as clients do, and say what to mend
    Doctor(Doctor),
    /// Run one companion service
    #[command(subcommand)]
    Serve(Serve),
    /// What webhooks left undelivered
    #[command(subcommand)]
    Hooks(Hooks),
    /// Bring the pods of a release on Kubernetes to its stack, in the planner's order
    Rollout(Rollout),
    /// Install what the stack runs, and make its directories and secrets, but start nothing
    Install(PackagesDir),
    /// Become one process of the stack, for systemd or another supervisor
    Run(Run),
    /// Accounts
    #[command(subcommand)]
    User(User),
    /// Write files for other programs
    #[command(subcommand)]
    Render(Render),
    /// Write the Synapse configuration of one process, as in a container
    Configure(Configure),
    /// Make secrets in the cluster that this runs in, once; those that are there stay as they are
    GenerateSecrets(GenerateSecrets),
    /// Where requests go, and why
    #[command(subcommand)]
    Routes(Routes),
    /// Store the state of rooms in fewer rows of Synapse's database, while Synapse runs
    CompressState(CompressState),
    /// Draw the stack: who asks whom, or every process
    Diagram(Diagram),
    /// Package Helm charts as a repository to publish
    PackageCharts(PackageCharts),
    /// Print the JSON Schema of stack.yaml
    Schema,
}

/// `serve`.
#[derive(Debug, Subcommand)]
pub(crate) enum Serve {
    /// Give out LiveKit tokens to users of Matrix homeservers
    ///
    /// Without `--config`, it is configured by the environment variables of lk-jwt-service.
    LivekitJwt,
    /// Serve the documents under `/.well-known/matrix/` alone
    ///
    /// They are those of the stack file, at its `well_known.listen`.
    WellKnown,
    /// Balance connections and searches over LDAP servers
    ///
    /// Without `--config`, its file is `ldap.yaml`.
    Ldap,
    /// Bring Alertmanager's notifications into rooms
    Alertmanager {
        /// Say what is wrong with the configuration and its templates, and do nothing else
        #[arg(long)]
        check: bool,
    },
    /// Bring Sentry's webhooks into rooms [without a file: as matrix-sentry-webhooks' environment variables say]
    SentryWebhook,
    /// Bring what is sent to Slack, and other webhooks, into rooms [without a file: as matrix-webhook's variables say]
    Webhook,
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The server's name [default: that of the stack file]
    #[arg(value_name = "SERVER_NAME")]
    pub(crate) server_name: Option<String>,
    /// Networks outside the public internet in which it may be, such as `10.0.0.0/8`
    #[arg(long = "allow", value_name = "NETWORK", value_parser = network)]
    pub(crate) allowed: Vec<Sources>,
    /// A file with certificates of authorities that are believed beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Ask this DNS server [default: those of the system]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) dns_server: Option<SocketAddr>,
    /// Output.
    #[command(flatten)]
    pub(crate) json: Json,
}

fn network(text: &str) -> Result<Sources, String> {
    text.to_owned().try_into()
}

/// `compress-state`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command")]
pub(crate) struct CompressState {
    /// Only these rooms [default: all that have something new, the largest gain in a second first]
    #[arg(long, value_name = "ROOM_ID")]
    pub(crate) room: Vec<String>,
    /// The database [default: that of libpq's environment variables if PGHOST is set, else the stack's]; a password that is
    /// missing in it is read from PGPASSWORD
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// Change nothing, and estimate from a sample what each room would save
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Change nothing, and count what each room would save by doing everything but writing
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) count: bool,
    /// Change nothing, and write SQL to this file
    #[arg(long, value_name = "FILE", requires = "room", conflicts_with_all = ["dry_run", "count"])]
    pub(crate) output: Option<PathBuf>,
    /// With `--dry-run`, draw a chart as SVG to this file
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    pub(crate) svg: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// How many hops each level may use, the finest first; 99 in all at most count
    #[arg(long, value_name = "N,N,…", default_value = "50,33,16")]
    pub(crate) levels: compress_state::tree::Levels,
    /// End after this time, such as `90s`, `30m` or `2h`; the next run goes on from there
    #[arg(long, value_name = "TIME", value_parser = time_span)]
    pub(crate) budget: Option<Duration>,
    /// Work between these times of the day alone: wait for the first, and end at the second
    #[arg(long, value_name = "HH:MM-HH:MM")]
    pub(crate) night: Option<compress_state::clock::Night>,
    /// How many rooms at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) jobs: u8,
    /// Wait while more queries of others than this run on the server
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) max_active: u16,
    /// Begin with the oldest group, whatever was done before
    #[arg(long)]
    pub(crate) from_start: bool,
    /// Only groups above this one
    #[arg(long, value_name = "GROUP", requires = "room")]
    pub(crate) above: Option<i64>,
    /// Only groups up to this one
    #[arg(long, value_name = "GROUP", requires = "room")]
    pub(crate) up_to: Option<i64>,
    /// Only so many groups of each room
    #[arg(long, value_name = "N")]
    pub(crate) groups: Option<u64>,
    /// Give groups whose predecessor is missing another one, with the state that Synapse makes of them now
    #[arg(long)]
    pub(crate) repair: bool,
    /// Do not read back what was written before it is committed
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// Look for groups that nothing refers to, and rows whose group is gone, instead of compressing
    #[arg(long, conflicts_with_all = ["room", "dry_run", "count", "budget", "night"])]
    pub(crate) unused: bool,
    /// And remove them: mark the groups for Synapse, which deletes them ten minutes later, and delete the rows
    #[arg(long, requires = "unused")]
    pub(crate) remove: bool,
    /// Write metrics to this file, for `node_exporter`'s textfile collector
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics_file: Option<PathBuf>,
}

/// A time such as `30m`.
fn time_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time such as `90s`, `30m` or `2h`");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    (1..=10_000).contains(&number).then(|| Duration::from_secs(number * unit)).ok_or_else(wrong)
}

/// `hooks`.
#[derive(Debug, Subcommand)]
pub(crate) enum Hooks {
    /// List the messages that could not be delivered, with the reason of each
    Dead {
        /// Which store.
        #[command(flatten)]
        store: HooksStore,
        /// Output.
        #[command(flatten)]
        json: Json,
    },
    /// Try to deliver them again; a service that runs begins within a second
    Retry {
        /// The number of one of them
        #[arg(value_name = "NUMBER", required_unless_present = "all", conflicts_with = "all")]
        id: Option<i64>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// Which store.
        #[command(flatten)]
        store: HooksStore,
    },
}

/// The store of a service that takes webhooks.
#[derive(Debug, Args)]
pub(crate) struct HooksStore {
    /// The file that the service's `queue.store` names
    #[arg(long, value_name = "FILE")]
    pub(crate) store: PathBuf,
}

/// `console`.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// Where browsers reach it, an address and a port or `unix:PATH`. It speaks no TLS: beyond this machine, put a proxy that
    /// does in front of it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    pub(crate) listen: ListenAddress,
    /// The file of the audit log [default: `console-audit.jsonl` in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log: Option<PathBuf>,
}

/// `diagram`.
#[derive(Debug, Args)]
pub(crate) struct Diagram {
    /// What to write: a picture, or text that another program draws
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: DiagramFormat,
    /// What to show: who asks whom, or every process of Synapse
    #[arg(long, value_enum, default_value_t)]
    pub(crate) view: DiagramView,
    /// The file to write to [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// A format of pictures.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum DiagramFormat {
    #[default]
    Svg,
    Mermaid,
    Dot,
}

/// What a picture shows.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum DiagramView {
    #[default]
    Overview,
    Workers,
}

/// `package-charts`.
#[derive(Debug, Args)]
pub(crate) struct PackageCharts {
    /// The directory that holds a directory for each chart
    #[arg(long, value_name = "DIR", default_value = "charts")]
    pub(crate) charts: PathBuf,
    /// The directory to write to: archives and `index.yaml`, and an OCI layout of each chart in `oci`
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Where the archives will be found [default: beside the index]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// When all was made, in seconds since 1970: the same charts and the same time give the same bytes
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SOURCE_DATE_EPOCH",
        hide_env_values = true,
        default_value_t = 1_577_836_800
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(..253_402_300_800))]
    pub(crate) time: u64,
}

/// `init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The server name, which is the domain in user IDs
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub(crate) server_name: String,
    /// Where to write; `-` for stdout
    #[arg(long, short, value_name = "FILE", default_value = "stack.yaml")]
    pub(crate) out: PathBuf,
}

/// `plan`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Recommend a layout for this many users
    #[arg(long, value_name = "N", conflicts_with = "against", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) users: Option<u32>,
    /// Compare with another stack file: what would happen if that one took this one's place
    #[arg(long, value_name = "FILE")]
    pub(crate) against: Option<PathBuf>,
    /// Output.
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Output as JSON.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Watch a router that runs alone, at its `listen.metrics`, instead of a stack on this machine
    #[arg(long, value_name = "http://HOST:PORT", value_parser = listener)]
    pub(crate) url: Option<Address>,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2.0, value_parser = interval)]
    pub(crate) interval: f64,
    /// What to sort by; a key changes it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) sort: Sort,
    /// Only what contains this; `/` changes it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) filter: String,
    /// Print one picture of one interval and end, as where stdout is no terminal
    #[arg(long)]
    pub(crate) once: bool,
    /// The same as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.2..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("not from 0.2 to 3600".to_owned()) }
}

/// A router's private listener, from its URL.
fn listener(url: &str) -> Result<Address, String> {
    let parts = || {
        let rest = url.strip_prefix("http://")?;
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = place.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        (!host.is_empty() && ["", "metrics"].contains(&path))
            .then_some(Address::Tcp { host, port: port.parse().ok()? })
    };
    parts().ok_or_else(|| "not as in `http://127.0.0.1:9090`".to_owned())
}

/// `up`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Up {
    /// Return once everything is healthy, and leave the stack running in the background
    #[arg(long)]
    pub(crate) detach: bool,
    /// This is the process in the background that `--detach` leaves
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
    /// Where clients reach the stack, an address and a port or `unix:PATH`, above what the stack file says
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Where they are installed.
    #[command(flatten)]
    pub(crate) packages: PackagesDir,
    /// Start one Python for each process instead of forking them from one parent
    #[arg(long)]
    pub(crate) no_fork_server: bool,
    /// Let accounts go over to the Matrix Authentication Service (`auth.mas`), or back, on a stack that has run already
    #[arg(long)]
    pub(crate) change_auth: bool,
}

/// Where packages are installed.
#[derive(Debug, Args)]
pub(crate) struct PackagesDir {
    /// Where Synapse, PostgreSQL and Valkey are installed; stacks share it
    #[arg(long, value_name = "DIR")]
    pub(crate) packages_dir: Option<PathBuf>,
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The process: `postgres`, `valkey`, `main` or a worker's name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Where it is installed.
    #[command(flatten)]
    pub(crate) packages: PackagesDir,
}

/// `router`.
#[derive(Debug, Args)]
pub(crate) struct Router {
    /// Where clients reach the stack, an address and a port or `unix:PATH`, above what the stack file says
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Which Synapse runs.
    #[command(flatten)]
    pub(crate) synapse: Synapse,
    /// How many threads move bytes [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// How they do it: by `io_uring` where the kernel allows it, else by epoll, or by epoll in any case
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    pub(crate) transport: Transport,
    /// Ask this DNS server for the names of hosts, which are taken as they stand [default: those of /etc/resolv.conf, with
    /// its search list]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) dns_server: Option<SocketAddr>,
    /// Write a line for each request to this file [default: none]
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,
    /// Take over from the router that runs with the same socket here, if one does, without refusing or losing a
    /// connection; and let the next one take over from this
    #[arg(long, value_name = "SOCKET")]
    pub(crate) handover: Option<PathBuf>,
    /// Look at the stack file every two seconds, and reload when its content has changed
    #[arg(long)]
    pub(crate) watch: bool,
    /// Ask the router that runs for this stack whether it is well, and do nothing else; it answers at `listen.metrics`
    #[arg(long)]
    pub(crate) probe: bool,
}

/// `rollout`.
#[derive(Debug, Args)]
pub(crate) struct Rollout {
    /// The release, as the label `app.kubernetes.io/instance` of its workloads and pods has it
    #[arg(long, value_name = "NAME")]
    pub(crate) release: String,
    /// The namespace [default: that of the pod, or of the current context]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// The `ConfigMap` with the stack that is wished [default: RELEASE-stack-desired]
    #[arg(long, value_name = "NAME")]
    pub(crate) desired: Option<String>,
    /// The `ConfigMap` with the stack that pods read, which this alone writes [default: RELEASE-stack]
    #[arg(long, value_name = "NAME")]
    pub(crate) applied: Option<String>,
    /// Return once all is applied and ready, instead of following the wished stack
    #[arg(long)]
    pub(crate) once: bool,
    /// How many seconds that may take
    #[arg(long, value_name = "SECONDS", default_value_t = 900, requires = "once", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Change nothing, and print what would happen
    #[arg(long, conflicts_with_all = ["once", "listen"])]
    pub(crate) dry_run: bool,
    /// How many workloads may restart at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) at_once: u8,
    /// Where `/health`, `/ready` and `/metrics` are served [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<std::net::SocketAddr>,
}

/// How the router moves bytes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Transport {
    Auto,
    Epoll,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on as the logs grow
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many lines of each log to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub(crate) lines: usize,
    /// Names of processes, roles or groups [default: all]
    #[arg(value_name = "ROLE|NAME")]
    pub(crate) names: Vec<String>,
}

/// `user`.
#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// Create an account on the running stack
    Add {
        /// The localpart: `alice` for `@alice:example.org`
        name: String,
        /// The file that holds the password; `-` for stdin [default: one is made and printed]
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Make it a server administrator
        #[arg(long)]
        admin: bool,
    },
}

/// `render`.
#[derive(Debug, Subcommand)]
pub(crate) enum Render {
    /// Synapse's configuration: one shared file and one for each process
    Synapse {
        /// The directory to write to; it is made
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// The configuration of the Matrix Authentication Service, for where `up` does not run it
    Mas {
        /// The file to write to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// The router's work for nginx: a file for its `http` block
    Nginx(Proxy),
    /// The router's work for HAProxy: a whole file
    Haproxy(Proxy),
    /// The router's work for Envoy: a whole file
    Envoy(Proxy),
    /// Units for systemd: one for each process
    Systemd(Systemd),
    /// A file for Docker Compose: a container for each process, with PostgreSQL and Valkey
    Compose {
        /// The directory to write to: secrets that are missing are made in it, and configuration, media and the database
        /// will lie there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Another proxy's configuration.
#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// The file to write to [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Where the proxy listens, an address and a port or `unix:PATH`, above the router's address in the stack file
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
}

/// Units for systemd.
#[derive(Debug, Args)]
pub(crate) struct Systemd {
    /// The directory to write to, `/etc` to use them at once: units go to `systemd/system` in it, and the user and its
    /// directories to `sysusers.d` and `tmpfiles.d`
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The units' name, or the first part of it; it tells stacks apart
    #[arg(long, value_name = "NAME", default_value = "matrix-stack", value_parser = unit_name)]
    pub(crate) name: String,
    /// The user that everything runs as
    #[arg(long, value_name = "USER", default_value = "matrix-stack", value_parser = unit_name)]
    pub(crate) user: String,
    /// One unit that runs `matrix-stack up`, instead of one for each process
    #[arg(long)]
    pub(crate) whole: bool,
    /// This program's file [default: the one that runs now]
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// Where it installs to.
    #[command(flatten)]
    pub(crate) packages: PackagesDir,
}

/// The name of a user or a unit, in letters that mean nothing else to systemd.
fn unit_name(name: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 31 && name.bytes().all(good) {
        return Ok(name.to_owned());
    }
    Err("use up to 31 lower-case letters, digits, `-` and `_`, a letter first".to_owned())
}

/// `configure`.
#[derive(Debug, Args)]
pub(crate) struct Configure {
    /// The process, or the pool that it is one of
    #[arg(long, value_name = "NAME")]
    pub(crate) instance: String,
    /// The name of this process of a pool, which no other process has, such as its pod's
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The directory to write to [default: `config` in the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Then wait until main is healthy, so that the process finds a database that is up to date; but no longer than this,
    /// and not for main itself
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait_for_main: Option<u16>,
}

/// `generate-secrets`.
#[derive(Debug, Args)]
pub(crate) struct GenerateSecrets {
    /// The Secret to keep them in; it is made, or what it lacks is added to it
    #[arg(long, value_name = "NAME")]
    pub(crate) kubernetes_secret: String,
    /// The fields of `secrets` in the stack to make secrets for, which are the keys in the Secret
    #[arg(required = true, value_name = "FIELD", value_parser = clap::builder::PossibleValuesParser::new(config::secrets::GENERATED))]
    pub(crate) fields: Vec<String>,
}

/// `routes`.
#[derive(Debug, Subcommand)]
pub(crate) enum Routes {
    /// Say where one request goes, and why
    Explain {
        /// The HTTP method
        method: String,
        /// The path, with its query if it has one
        path: String,
        /// Of which Synapse.
        #[command(flatten)]
        synapse: Synapse,
        /// Output.
        #[command(flatten)]
        json: Json,
    },
    /// List every endpoint with the role that serves it
    List {
        /// Of which Synapse.
        #[command(flatten)]
        synapse: Synapse,
        /// Output.
        #[command(flatten)]
        json: Json,
    },
    /// Print the endpoint table of an installed Synapse
    Extract {
        /// The Python interpreter of the environment that Synapse is installed in
        #[arg(long, value_name = "FILE")]
        python: PathBuf,
    },
    /// Show which endpoints differ between two versions of Synapse
    Diff {
        /// A version whose table this program has, or a file that `routes extract` made
        old: String,
        /// Another
        new: String,
    },
    /// Say what a routing table that is kept by hand gets wrong: what it leaves on main, what it sends where it cannot be
    /// served, what is stale
    Audit(Audit),
}

/// The version of Synapse that is asked about.
#[derive(Debug, Args)]
pub(crate) struct Synapse {
    /// The Synapse to answer for: a version whose table this program has, or a file that `routes extract` made
    /// [default: the stack's]
    #[arg(long, value_name = "VERSION|FILE")]
    pub(crate) synapse: Option<String>,
}

/// `routes audit`.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// What sends requests to workers: proxy configurations, or any text with regular expressions or prefixes of paths in
    /// it. Some lines of it: `FILE:FROM-TO` [default: this stack's own routing]
    #[arg(value_name = "FILE")]
    pub(crate) workers: Vec<Part>,
    /// What sends requests to workers if their method is GET
    #[arg(long, value_name = "FILE", requires = "workers")]
    pub(crate) get: Vec<Part>,
    /// What keeps requests on main, whatever else matches them
    #[arg(long, value_name = "FILE", requires = "workers")]
    pub(crate) main: Vec<Part>,
    /// Of which Synapse.
    #[command(flatten)]
    pub(crate) synapse: Synapse,
    /// Output.
    #[command(flatten)]
    pub(crate) json: Json,
    /// Print Markdown
    #[arg(long, conflicts_with = "json")]
    pub(crate) markdown: bool,
}

/// A file, or some of its lines.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) file: PathBuf,
    pub(crate) lines: RangeInclusive<usize>,
}

impl FromStr for Part {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let lines = text.rsplit_once(':').and_then(|(file, lines)| {
            let (from, to) = lines.split_once('-')?;
            Some((file, from.parse().ok()?..=to.parse().ok()?))
        });
        let (file, lines) = lines.unwrap_or((text, 1..=usize::MAX));
        Ok(Self { file: file.into(), lines })
    }
}
