//! One module a command.

mod charts;
mod compress_state;
mod console;
mod diagram;
mod doctor;
mod files;
mod hooks;
mod init;
mod plan;
mod rollout;
mod router;
mod routes;
mod run;
mod running;
mod secrets;
mod serve;
mod top;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use model::Network;

use crate::args::{Arguments, Command};
use crate::place::Place;

pub(crate) use running::duration;

/// Runs a command.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let stack = &arguments.stack;
    match &arguments.command {
        Command::Init(init) => init::init(init, stack.preset)?,
        Command::Check => plan::check(stack)?,
        Command::Plan(plan) => plan::plan(plan, stack)?,
        Command::Up(up) => return up::up(up, stack),
        Command::Status(json) => return running::status(&Place::find(stack)?, json.json),
        Command::Top(top) => top::top(top, stack)?,
        Command::Logs(logs) => running::logs(&Place::find(stack)?, logs)?,
        Command::Restart { names } => running::restart(&Place::find(stack)?, names)?,
        Command::Reload => running::reload(stack)?,
        Command::Down => running::down(&Place::find(stack)?)?,
        Command::Console(arguments) => console::console(arguments, stack)?,
        Command::Router(router) => return router::router(router, stack),
        Command::Doctor(doctor) => return doctor::doctor(doctor, stack),
        Command::Serve(service) => serve::serve(service, stack)?,
        Command::Hooks(hooks) => hooks::hooks(hooks)?,
        Command::Rollout(rollout) => return rollout::rollout(rollout),
        Command::User(user) => running::user(&Place::find(stack)?, user)?,
        Command::Install(packages) => run::install(packages, stack)?,
        Command::Run(arguments) => run::run(arguments, stack)?,
        Command::Render(render) => files::render(render, stack)?,
        Command::Configure(configure) => files::configure(&Place::find(stack)?, configure)?,
        Command::GenerateSecrets(generate) => secrets::generate(generate)?,
        Command::Routes(routes) => routes::routes(routes, stack)?,
        Command::CompressState(arguments) => return compress_state::compress(arguments, stack),
        Command::Diagram(arguments) => diagram::diagram(arguments, stack)?,
        Command::PackageCharts(arguments) => charts::package(arguments)?,
        Command::Schema => {
            print_json(&config::schema())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a stack whose processes belong on hosts of their own.
fn on_this_machine(place: &Place) -> anyhow::Result<()> {
    if matches!(place.loaded.stack.network, Network::Hosts(_)) {
        bail!(
            "`network: hosts` gives each process a host of its own, and this is about one machine that runs all of them; \
             remove `network`, or run each process with `matrix-stack configure --instance NAME`"
        );
    }
    Ok(())
}

/// Prints a value as JSON on stdout.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes to stdout. A reader that goes away (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs a future to its end. The runtime has worker threads, because the router lives in this process.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    // An installation that was interrupted may take a moment to notice; nobody should have to wait for more.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}
