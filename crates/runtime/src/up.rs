//! `up`: from a planned stack to its running processes, and to their orderly end.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use config::secrets::{Secret, SecretError};
use model::{Layout, Topology};
use nix::sys::signal::Signal;
use routes::Table;
use serde::{Deserialize, Serialize};
use service::{Asked, Signals};
use tokio::time::sleep;

use crate::client::{Connection, Op, Phase, Reply};
use crate::control::{self, Control};
use crate::install::InstallError;
use crate::launch::{LaunchError, Launcher};
use crate::listen::{Given, Sockets};
use crate::logs;
use crate::postgres::PostgresError;
use crate::proc;
use crate::progress::{Event, Progress};
use crate::site::{self, Doors, Site};
use crate::state::{self, Applied, Lock, Records, StateError};
use crate::supervisor::{External, Plan, Spawner, Supervisor, Teller};
use crate::units;
use crate::users::{self, Account, UserError};
use crate::valkey::ValkeyError;

/// How long the processes of a killed supervisor get to end by themselves.
const SWEEP: Duration = Duration::from_secs(10);
/// How long a start may take that migrates the database to another version of Synapse.
const MIGRATION: Duration = Duration::from_secs(3600);
/// How long those who still talk to the control socket get at the end.
const GOODBYE: Duration = Duration::from_millis(200);

/// What to bring up, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpOptions {
    /// The plan, with [`Layout::sockets`] as its socket directory.
    pub topology: Topology,
    /// The places of the stack's files, below an absolute data directory.
    pub layout: Layout,
    /// The directory of installed packages, which all stacks of this machine share.
    pub packages: PathBuf,
    /// The name of the first administrator. Default: `admin`.
    pub admin: String,
    /// Reads the stack file again, for a reload.
    pub read_again: ReadAgain,
    /// How long processes that start together may take to become healthy. Default: two minutes. A start with another
    /// version of Synapse may take an hour, for its database may have to be migrated.
    pub start_timeout: Duration,
    /// How long requests may go on when the stack stops. Default: five seconds.
    pub drain: Duration,
    /// Whether Synapse's processes are forked from one that has imported Synapse. Default: yes. They start one by one
    /// where that cannot be.
    pub fork_server: bool,
    /// Whether accounts may go over to the Matrix Authentication Service, or back, on a stack that has run already. Default:
    /// no.
    pub change_auth: bool,
    /// Whether this is the background process of [`detach`]: it leaves the terminal's session.
    pub detached: bool,
}

impl UpOptions {
    /// The defaults for a plan.
    pub fn new(topology: Topology, layout: Layout, packages: PathBuf, read_again: ReadAgain) -> Self {
        Self {
            topology,
            layout,
            packages,
            read_again,
            admin: "admin".to_owned(),
            start_timeout: Duration::from_secs(120),
            drain: Duration::from_secs(5),
            fork_server: true,
            change_auth: false,
            detached: false,
        }
    }
}

/// Reads the stack file again, with what the command line changes; says what is wrong with it.
#[derive(Clone)]
pub struct ReadAgain(Arc<dyn Fn() -> Result<Topology, String> + Send + Sync>);

impl ReadAgain {
    /// Reads by this function.
    pub fn new(read: impl Fn() -> Result<Topology, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(crate) fn read(&self) -> Result<Topology, String> {
        (self.0)()
    }
}

impl fmt::Debug for ReadAgain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAgain").finish_non_exhaustive()
    }
}

/// A stack that has started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Its server name.
    pub server_name: String,
    /// The URL for clients.
    pub url: String,
    /// Its preset.
    pub preset: String,
    /// How many processes run, PostgreSQL, Valkey and the fork server among them.
    pub processes: usize,
    /// How many of them are Synapse's.
    pub synapse_processes: usize,
    /// How long the start took, in seconds, installation not counted.
    pub seconds: f64,
    /// How long the installation took, in seconds.
    pub install_seconds: f64,
    /// The first administrator, until the password was shown once.
    pub admin: Option<Admin>,
}

/// The first administrator's account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// The user ID.
    pub user_id: String,
    /// The generated password.
    pub password: String,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

/// Why a stack did not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpError {
    /// The data directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Children cannot be started as they should.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// What the stack needs cannot be installed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A secret cannot be made or read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// PostgreSQL cannot be started or used.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// Valkey cannot be started.
    #[error(transparent)]
    Valkey(#[from] ValkeyError),
    /// The program of the Matrix Authentication Service is not there.
    #[error(
        "`{}`, the program of the Matrix Authentication Service, is not there: put it on PATH (its releases are at \
         https://github.com/element-hq/matrix-authentication-service/releases), name it as `auth.mas.program`, or set \
         `auth.mas.run: false` if it runs elsewhere", .program.display()
    )]
    NoMas {
        /// What was looked for.
        program: PathBuf,
    },
    /// The stack has run with its accounts elsewhere.
    #[error(
        "this stack has run {}, and its accounts and sessions do not follow by themselves: {}, or move them first \
         (docs/mas.md) and then say `up --change-auth` once",
        if *.mas { "without the Matrix Authentication Service" } else { "with the Matrix Authentication Service" },
        if *.mas { "remove `auth.mas`" } else { "put `auth.mas` back" }
    )]
    OtherAuth {
        /// Whether the stack has MAS now.
        mas: bool,
    },
    /// There is no such process to run.
    #[error("this stack runs no process `{name}` itself; it runs {}", .names.join(", "))]
    NoProcess {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        names: Vec<String>,
    },
    /// The router's address is taken.
    #[error(
        "{address} is in use{}: stop what listens there, or set `{field}` to another address in stack.yaml",
        .holder.as_ref().map(|(pid, name)| format!(" by process {pid} ({name})")).unwrap_or_default()
    )]
    AddressInUse {
        /// The field of `stack.yaml`.
        field: &'static str,
        /// The address.
        address: String,
        /// Who has it, where that can be seen.
        holder: Option<(u32, String)>,
    },
    /// The router cannot listen on its address.
    #[error(
        "cannot listen on {address}: {source}; set `{field}` to an address of this machine in stack.yaml"
    )]
    Bind {
        /// The field of `stack.yaml`.
        field: &'static str,
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A router that runs cannot be taken over from, or nobody could take over from this one.
    #[error("cannot hand the router's sockets over by {}: {reason}", .path.display())]
    Handover {
        /// The handover socket.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The control socket cannot be made.
    #[error("cannot make the control socket {}: {source}; use a shorter `data_dir` on a local disk", .path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The router does not take this stack.
    #[error("the router cannot start: {message}")]
    Router {
        /// Its words.
        message: String,
    },
    /// A process ends whenever it is started.
    #[error(
        "{name} does not start: {reason}{}\nsee `matrix-stack logs {name}` for more",
        indented(.lines)
    )]
    Process {
        /// Its name.
        name: String,
        /// How it ended.
        reason: String,
        /// Its last log lines.
        lines: Vec<String>,
    },
    /// It takes too long.
    #[error(
        "after {} s these are not healthy: {}; see `matrix-stack logs NAME`, and plan fewer processes if this machine is slow",
        .limit.as_secs(), .names.join(", ")
    )]
    Timeout {
        /// The limit.
        limit: Duration,
        /// Who is not healthy.
        names: Vec<String>,
    },
    /// The first administrator cannot be registered.
    #[error("cannot create the first administrator: {0}")]
    Admin(UserError),
    /// A signal came while the stack started.
    #[error("interrupted by {signal}: everything that had started was stopped")]
    Interrupted {
        /// The signal.
        signal: &'static str,
    },
    /// The stack file cannot be used.
    #[error("{report}\nnothing was changed")]
    File {
        /// What is wrong with it, and where.
        report: String,
    },
    /// The stack file changes what a running stack cannot change.
    #[error(
        "`{field}` cannot change like this while the stack runs: {reason}. Nothing was changed; take it back, or run \
         `matrix-stack down` and then `matrix-stack up`"
    )]
    Fixed {
        /// The field of `stack.yaml`.
        field: String,
        /// Why.
        reason: String,
    },
    /// A change did not come to its end.
    #[error(
        "{source}\nthe change is not complete: mend what is wrong, then run `matrix-stack reload` again. `matrix-stack status` \
         shows how things are"
    )]
    Incomplete {
        /// Why.
        source: Box<UpError>,
    },
    /// The stack stops.
    #[error("the stack is being stopped: the next `matrix-stack up` starts it as the stack file says")]
    Ending,
    /// The background process ended.
    #[error("{output}")]
    Background {
        /// What it said last.
        output: String,
    },
    /// The certificate of the public address cannot be used.
    #[error(transparent)]
    Tls(router::TlsError),
    /// The system refused something basic.
    #[error(
        "cannot {action}: {source}; see whether this machine is short of processes or open files (`ulimit -a`)"
    )]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn indented(lines: &[String]) -> String {
    lines.iter().flat_map(|line| ["\n    ", line.as_str()]).collect()
}

pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> UpError {
    move |source| UpError::System { action, source }
}

/// A stack that runs. If this is dropped, its processes are killed when this process ends.
pub struct Running {
    stack: Arc<UpStack>,
    signals: Signals,
}

impl Running {
    /// How it started.
    pub fn started(&self) -> &Started {
        &self.stack.begun.started
    }

    /// Forgets the first administrator's password, after it was shown.
    pub fn admin_shown(&self) {
        self.stack.begun.admin_shown();
    }

    /// Waits for SIGINT, SIGTERM or `down`, then stops everything in order. A second signal hurries. At SIGHUP the stack
    /// becomes what its file says.
    pub async fn wait_until_stopped(self) -> Result<(), UpError> {
        let Self { stack, mut signals } = self;
        let mut down = stack.session.control.down.subscribe();
        let reason = loop {
            let asked = tokio::select! {
                asked = signals.next() => asked,
                // The sender lives as long as `stack`.
                _ = down.wait_for(|down| *down) => break "`matrix-stack down`".to_owned(),
            };
            match asked {
                Asked::End(signal) => break format!("{signal} received"),
                Asked::Reload => {
                    let site = Arc::clone(&stack.begun.site);
                    tokio::spawn(async move {
                        match site.reload().await {
                            Ok(()) => tracing::info!("reloaded"),
                            Err(error) => tracing::error!(%error, "the reload failed"),
                        }
                    });
                }
            }
        };
        stop(&stack.session, stack.drain, reason, &mut signals).await;
        Ok(())
    }
}

struct UpStack {
    begun: Arc<Begun>,
    session: Session,
    drain: Duration,
}

/// A finished start, and what is left to do once its password was shown.
pub(crate) struct Begun {
    pub(crate) started: Started,
    pub(crate) site: Arc<Site>,
}

impl Begun {
    pub(crate) fn admin_shown(&self) {
        if self.started.admin.is_none() {
            return;
        }
        let layout = &self.site.layout;
        let mut applied = self.site.applied();
        applied.admin = true;
        if let Err(error) = applied.save(layout) {
            tracing::warn!(%error, "the next start will show the password again");
            return;
        }
        // Without the entry above the file is of no use.
        let _ = std::fs::remove_file(password_file(layout));
    }
}

fn password_file(layout: &Layout) -> PathBuf {
    layout.secrets().join("first_admin_password")
}

/// What holds while a stack is up.
struct Session {
    control: Arc<Control>,
    server: control::Server,
    _lock: Lock,
}

/// Installs what is missing and starts everything; returns when every process is healthy.
///
/// It must run in a multi-threaded tokio runtime, and takes SIGINT, SIGTERM and SIGHUP for itself.
pub async fn up(options: UpOptions, progress: Arc<dyn Progress>) -> Result<Running, UpError> {
    let clock = Instant::now();
    if options.detached {
        // It fails only for the leader of a process group, who has no terminal to leave either.
        let _ = nix::unistd::setsid();
    }
    let mut signals = Signals::new().map_err(system("handle signals"))?;
    raise_file_limit();
    let UpOptions { topology, layout, .. } = &options;
    let teller = Teller::new(progress);

    state::prepare_directories(layout, &layout.media(topology.stack()))?;
    let lock = Lock::acquire(layout)?;
    sweep(layout, &teller).await?;
    logs::cut_long(&layout.logs());
    let sockets = Sockets::bind(topology, &mut Given::default()).await?;
    let control = Arc::new(Control::new(topology, layout, teller, clock));
    let server = control::serve(Arc::clone(&control))
        .map_err(|source| UpError::Control { path: layout.control_socket(), source })?;
    let session = Session { control: Arc::clone(&control), server, _lock: lock };

    let mut down = control.down.subscribe();
    let result = tokio::select! {
        result = start(&options, sockets, &control) => result,
        signal = signals.end() => Err(UpError::Interrupted { signal }),
        _ = down.wait_for(|down| *down) => Err(UpError::Interrupted { signal: "matrix-stack down" }),
    };
    match result {
        Ok(begun) => {
            let begun = Arc::new(begun);
            control.phase.send_replace(Phase::Running);
            control.begun.send_replace(Some(Arc::clone(&begun)));
            let Started { processes, seconds, .. } = begun.started;
            control.teller.tell(Event::Ready { processes, seconds });
            let stack = UpStack { begun, session, drain: options.drain };
            Ok(Running { stack: Arc::new(stack), signals })
        }
        Err(error) => {
            let reason = match &error {
                UpError::Interrupted { signal } => format!("{signal} received"),
                _ => "the start failed".to_owned(),
            };
            stop(&session, Duration::ZERO, reason, &mut signals).await;
            Err(error)
        }
    }
}

/// Lets this process have as many open files as it may: the router needs two for each request.
pub(crate) fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, limit = soft, "the number of open files stays limited");
    }
}

/// Ends what a killed supervisor left.
async fn sweep(layout: &Layout, teller: &Teller) -> Result<(), UpError> {
    let records = Records::load(layout);
    let swept = tokio::task::spawn_blocking(move || records.sweep(SWEEP)).await;
    let names =
        swept.map_err(|error| system("look for what an earlier run left")(io::Error::other(error)))??;
    if !names.is_empty() {
        let text = format!("ended what an earlier run had left: {}", names.join(", "));
        teller.tell(Event::Note { text });
    }
    state::remove_sockets(&layout.sockets());
    Ok(())
}

async fn start(options: &UpOptions, sockets: Sockets, control: &Arc<Control>) -> Result<Begun, UpError> {
    let UpOptions { topology, layout, .. } = options;
    let launcher = Launcher::this_program();
    let applied = Applied::load(layout)?;
    let mas = topology.mas().is_some();
    if !applied.synapse.is_empty() && applied.mas != mas && !options.change_auth {
        return Err(UpError::OtherAuth { mas });
    }
    let installing = Instant::now();
    let programs = units::programs(options, &launcher, &control.teller).await?;
    let install_seconds = installing.elapsed();

    let stack = topology.stack();
    let secrets = config::secrets::ensure(stack, layout)?;
    site::write_configuration(topology, layout)?;
    site::tidy_configuration(topology, layout);
    let agreement = state::agreement(topology);

    let table = endpoints(&programs.synapse, &control.teller);
    let router = site::start_router(topology, layout, table)?;
    let doors = Doors::open(&router, topology, sockets).map_err(system("listen"))?;
    let mut units = units::services(options, &programs, &launcher, &secrets.database_password.path)?;
    let plan = Plan {
        layout: layout.clone(),
        topology: Arc::clone(&control.topology),
        spawner: Spawner::new(launcher).map_err(system("start a thread"))?,
        teller: control.teller.clone(),
        width: width(options.fork_server),
        external: External {
            database: stack.database.external.is_some(),
            cache: stack.redis.external.is_some(),
        },
        separate: !options.fork_server,
        clock: control.clock,
    };
    let supervisor = Arc::new(Supervisor::start(plan, router));
    // Nobody else sets it.
    let _ = control.supervisor.set(Arc::clone(&supervisor));

    let same = applied.synapse == programs.synapse && applied.agreement == agreement;
    let site = Site {
        layout: layout.clone(),
        teller: control.teller.clone(),
        table,
        supervisor: Arc::clone(&supervisor),
        start_timeout: options.start_timeout,
        connections: units::connections(topology),
        applied: Mutex::new(applied.clone()),
        doors: Mutex::new(doors),
        phase: control.phase.subscribe(),
        read_again: options.read_again.clone(),
        turn: tokio::sync::Mutex::default(),
        programs,
    };
    let names: Vec<String> = topology.names().map(str::to_owned).collect();
    units.extend(site.units(topology, &names));
    control.teller.tell(Event::Planned { processes: units.len() });
    let registering = async {
        if applied.admin || mas { Ok(None) } else { first_admin(options, &supervisor, control).await }
    };
    let starting = async {
        let (admin, ()) = tokio::try_join!(registering, site.bring_up(units, same, true))?;
        Ok(admin)
    };
    // A migration of a large database takes its time, and must not be broken off.
    let migrates = applied.synapse != site.programs.synapse
        && (!applied.synapse.is_empty() || stack.database.external.is_some());
    let limit = if migrates { options.start_timeout.max(MIGRATION) } else { options.start_timeout };
    let admin = site.within(limit, starting).await?;

    let applied = Applied::new(site.programs.synapse.clone(), agreement, admin.is_none(), mas);
    applied.save(layout)?;
    *site.applied() = applied;
    let started = Started {
        server_name: stack.server_name.to_string(),
        url: stack.base_url(),
        preset: topology.preset().to_string(),
        processes: supervisor.shared.board().healthy().0,
        synapse_processes: topology.instances().len(),
        seconds: control.clock.elapsed().saturating_sub(install_seconds).as_secs_f64(),
        install_seconds: install_seconds.as_secs_f64(),
        admin,
    };
    Ok(Begun { started, site: Arc::new(site) })
}

/// How many workers start at once. Forks are quickest all together; programs of their own take much memory and time
/// while they import, and each is slower the more there are.
fn width(forked: bool) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if forked { 1024 } else { cores + 1 }
}

/// The endpoint table of the Synapse that runs. It is the user's to choose, so there may be none.
fn endpoints(synapse: &str, teller: &Teller) -> &'static Table {
    let table = Table::closest(synapse);
    if Table::for_version(synapse).is_none() {
        let text = format!(
            "there is no endpoint table of Synapse {synapse}; routing by that of {}. `matrix-stack routes extract` and \
             `routes diff` show what differs",
            table.version()
        );
        teller.tell(Event::Note { text });
    }
    table
}

/// Creates the first administrator, with a password that is kept until it was shown.
async fn first_admin(
    options: &UpOptions,
    supervisor: &Supervisor,
    control: &Control,
) -> Result<Option<Admin>, UpError> {
    let UpOptions { topology, layout, admin: name, .. } = options;
    supervisor.healthy("main").await;
    let file = password_file(layout);
    let (password, kept) = if file.exists() {
        (config::secrets::read(&file)?, true)
    } else {
        let password = Secret::generate()?;
        state::write_private(&file, password.expose().as_bytes())?;
        (password, false)
    };
    let secret =
        config::secrets::read(&layout.secret_paths(topology.stack()).registration_shared_secret.path)?;
    let main = topology.main();
    let account = Account { name, password: password.expose(), admin: true };
    let known = Admin {
        user_id: format!("@{name}:{}", topology.stack().server_name),
        password: password.expose().to_owned(),
    };
    match users::register(main.client.as_ref().unwrap_or(&main.private), secret.expose(), account).await {
        Ok(_) => Ok(Some(known)),
        // An earlier start created it and broke off before it could show the password.
        Err(UserError::Exists { .. }) if kept => Ok(Some(known)),
        Err(UserError::Exists { .. }) => {
            let text = format!("the user `{name}` exists already, so no first administrator is created");
            control.teller.tell(Event::Note { text });
            let _ = std::fs::remove_file(file);
            Ok(None)
        }
        Err(error) => Err(UpError::Admin(error)),
    }
}

/// Stops everything: the router lets requests finish, workers go before main, the database is last.
async fn stop(session: &Session, drain: Duration, reason: String, signals: &mut Signals) {
    let Session { control, .. } = session;
    let clock = Instant::now();
    control.phase.send_replace(Phase::Stopping);
    control.teller.tell(Event::Stopping { reason });
    if let Some(supervisor) = control.supervisor.get() {
        let begun = control.begun.borrow().clone();
        let stopping = async {
            if let Some(begun) = begun {
                begun.site.left_alone().await;
            }
            supervisor.shared.router.shutdown(drain).await;
            supervisor.stop().await;
        };
        tokio::pin!(stopping);
        tokio::select! {
            () = &mut stopping => {}
            signal = signals.end() => {
                control.teller.tell(Event::Note { text: format!("{signal} received again: hurrying") });
                supervisor.shared.hurry();
                supervisor.shared.router.shutdown(Duration::ZERO).await;
                stopping.await;
            }
        }
    }
    control.teller.tell(Event::Down { seconds: clock.elapsed().as_secs_f64() });
    control.ended.send_replace(true);
    session.server.finish(GOODBYE).await;
}

/// Starts `command`, which calls [`up`] with [`UpOptions::detached`], in the background, and waits until its stack has
/// started.
///
/// Its output goes to `supervisor.log`. The first administrator's password comes through the control socket, once.
pub async fn detach(
    command: std::process::Command,
    layout: &Layout,
    progress: Arc<dyn Progress>,
) -> Result<Started, UpError> {
    const POLL: Duration = Duration::from_millis(25);
    let logs = layout.logs();
    std::fs::create_dir_all(layout.data_dir()).map_err(state::file_error("make", layout.data_dir()))?;
    state::make_directory(&logs, 0o700)?;
    let path = layout.log("supervisor");
    let log_start = logs::length(&path);
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(state::file_error("open", &path))?;
    let mut signals = Signals::new().map_err(system("handle signals"))?;

    let mut command = tokio::process::Command::from(command);
    let errors = log.try_clone().map_err(system("open a file twice"))?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut child = command.spawn().map_err(system("start the background process"))?;
    let pid = child.id();

    let follow = async {
        loop {
            if let Ok(connection) = Connection::open(layout, Op::Watch).await
                && let Some(started) = watch(connection, pid, progress.as_ref()).await
            {
                return started;
            }
            sleep(POLL).await;
        }
    };
    tokio::select! {
        started = follow => Ok(started),
        _ = child.wait() => Err(UpError::Background { output: last_words(&path, log_start) }),
        signal = signals.end() => {
            if let Some(child) = pid.and_then(proc::ProcessId::of) {
                child.signal(Signal::SIGTERM);
            }
            // It stops what it has started, and is bounded in that.
            let _ = child.wait().await;
            Err(UpError::Interrupted { signal })
        }
    }
}

/// Follows the start of the supervisor `pid`; nothing if another one answers, or it breaks off.
async fn watch(mut connection: Connection, pid: Option<u32>, progress: &dyn Progress) -> Option<Started> {
    loop {
        match connection.next().await.ok()?? {
            Reply::Supervisor(who) if Some(who) != pid => return None,
            Reply::Event(event) => progress.event(&event),
            Reply::Done(value) => return serde_json::from_value(value).ok(),
            Reply::Error(_) => return None,
            Reply::Supervisor(_) | Reply::Restarted(_) => {}
        }
    }
}

/// The error that a background process ended with: its last line that starts with `error:`, and what follows.
fn last_words(log: &Path, start: u64) -> String {
    let lines = logs::tail_since(log, start);
    let from = lines.iter().rposition(|line| line.starts_with("error:")).unwrap_or_default();
    let text = lines[from..].join("\n");
    match text.strip_prefix("error:").unwrap_or(&text).trim() {
        "" => format!("the background process ended without a word; see {}", log.display()),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.log");
        std::fs::write(&path, "   0.10 s  starting\nerror: main does not start: exit code 1\n    line\n")
            .unwrap();
        assert_eq!(last_words(&path, 0), "main does not start: exit code 1\n    line");
        assert!(last_words(&path, logs::length(&path)).contains("without a word"));
    }
}
