//! `router`: the router alone.

use std::process::ExitCode;

use anyhow::anyhow;
use model::Topology;

use crate::args::{Router, StackArguments, Transport};
use crate::place::{self, Place};

pub(crate) fn router(arguments: &Router, stack: &StackArguments) -> anyhow::Result<ExitCode> {
    // First of all: it changes the environment.
    let given = runtime::Given::from_environment();
    // Before the file is read for the first time, so that no change is missed.
    let watch = arguments.watch.then(|| watched(stack)).transpose()?;
    let topology = topology(arguments, stack)?;
    if arguments.probe {
        super::block_on(async { Ok(runtime::probe_router(topology.stack()).await?) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let router = router::Options {
        access_log: arguments.access_log.clone().map_or_else(Default::default, router::AccessLog::File),
        threads: arguments.threads.map(usize::from),
        transport: match arguments.transport {
            Transport::Auto => router::Transport::Auto,
            Transport::Epoll => router::Transport::Epoll,
        },
        dns_server: arguments.dns_server,
    };
    let options = runtime::RouteOptions { router, given, handover: arguments.handover.clone(), watch };
    let table = super::routes::version(&arguments.synapse, &topology)?;
    let url = topology.stack().base_url();
    let ready = || eprintln!("routing at {url}; SIGHUP reloads, SIGTERM stops");
    let reload = || self::topology(arguments, stack).map_err(|error| format!("{error:#}"));
    super::block_on(async {
        runtime::route(&topology, &table, options, ready, reload).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn topology(arguments: &Router, stack: &StackArguments) -> anyhow::Result<Topology> {
    let mut place = Place::find(stack)?;
    if let Some(listen) = &arguments.listen {
        place.loaded.stack.listen.address.clone_from(listen);
    }
    place.plan()
}

/// The stack file, which has to exist.
fn watched(stack: &StackArguments) -> anyhow::Result<runtime::Watch> {
    let file = place::file(stack.config.as_deref())
        .ok_or_else(|| anyhow!("there is no stack file to watch; name one with `--config FILE`"))?;
    Ok(runtime::Watch::new(file.to_owned()))
}
