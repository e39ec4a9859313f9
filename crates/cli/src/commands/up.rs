//! `up`: install what is missing, and run the whole stack.

use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::Context as _;
use model::Topology;
use runtime::progress::{self, Progress};
use runtime::{ReadAgain, Running, Started, UpOptions};

use crate::args::{StackArguments, Up};
use crate::place::Place;

pub(crate) fn up(arguments: &Up, stack: &StackArguments) -> anyhow::Result<ExitCode> {
    let (place, topology) = read(arguments.listen.as_deref(), stack)?;
    if let Some((preset, why)) = &place.chosen
        && !arguments.detached
    {
        eprintln!("preset `{preset}`: {why}");
    }
    let packages = Place::packages_dir(arguments.packages.packages_dir.as_deref())?;

    let (listen, again) = (arguments.listen.clone(), stack.clone());
    let read_again = ReadAgain::new(move || {
        let (_, topology) = read(listen.as_deref(), &again).map_err(|error| format!("{error:#}"))?;
        Ok(topology)
    });
    let mut options = UpOptions::new(topology, place.layout.clone(), packages, read_again);
    options.detached = arguments.detached;
    options.change_auth = arguments.change_auth;
    options.fork_server = !arguments.no_fork_server;
    let display = progress::for_stderr();
    super::block_on(async {
        if arguments.detach {
            let started = runtime::detach(in_background()?, &place.layout, display).await?;
            announce(&started)?;
            eprintln!(
                "it runs in the background: see `matrix-stack status`, stop it with `matrix-stack down`"
            );
            return Ok(ExitCode::SUCCESS);
        }
        Box::pin(foreground(options, display)).await
    })
}

/// Reads the stack file, with what the command line changes.
fn read(listen: Option<&str>, stack: &StackArguments) -> anyhow::Result<(Place, Topology)> {
    let mut place = Place::find(stack)?;
    if let Some(listen) = listen {
        listen.clone_into(&mut place.loaded.stack.listen.address);
    }
    super::on_this_machine(&place)?;
    let topology = place.plan()?;
    // The routing table must be good before anything is installed, started or changed.
    super::routes::matcher(&topology)?;
    Ok((place, topology))
}

async fn foreground(options: UpOptions, display: Arc<dyn Progress>) -> anyhow::Result<ExitCode> {
    let detached = options.detached;
    // What all of a start holds is large.
    let running: Running = Box::pin(runtime::up(options, display)).await?;
    if !detached {
        announce(running.started())?;
        running.admin_shown();
        eprintln!("press Ctrl-C to stop it");
    }
    running.wait_until_stopped().await?;
    Ok(ExitCode::SUCCESS)
}

/// This command once more, as the one that stays.
fn in_background() -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    for argument in std::env::args_os().skip(1) {
        if argument == "--detach" {
            command.arg("--detached");
        } else {
            command.arg(argument);
        }
    }
    Ok(command)
}

/// Tells where the stack is, and the first administrator's password, which is shown this once.
fn announce(started: &Started) -> anyhow::Result<()> {
    let mut text = format!(
        "{} is up at {} ({} processes, {} of them Synapse, in {:.1} s)\n",
        started.server_name, started.url, started.processes, started.synapse_processes, started.seconds
    );
    if let Some(admin) = &started.admin {
        let _ = writeln!(text, "admin user {}\npassword   {}", admin.user_id, admin.password);
        text.push_str("(shown this once; set another with your client)\n");
    }
    super::print(&text)
}
