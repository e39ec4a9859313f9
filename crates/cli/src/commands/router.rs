//! `router`: the router alone.

use std::process::ExitCode;

use model::Topology;

use crate::args::{Router, StackArguments, Transport};
use crate::place::{DEFAULT_FILE, Place};

pub(crate) fn router(arguments: &Router, stack: &StackArguments) -> anyhow::Result<ExitCode> {
    let file = || stack.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let followed = arguments.follow.then(|| runtime::Followed::new(file()));
    let topology = topology(arguments, stack)?;
    let options = router::Options {
        access_log: arguments.access_log.clone().map_or_else(Default::default, router::AccessLog::File),
        threads: arguments.threads.map(usize::from),
        transport: match arguments.transport {
            Transport::Auto => router::Transport::Auto,
            Transport::Epoll => router::Transport::Epoll,
        },
        dns_server: arguments.dns_server,
    };
    let table = super::routes::version(&arguments.synapse, &topology)?;
    let url = topology.stack().base_url();
    let ready = || eprintln!("routing at {url}; SIGHUP reloads, SIGTERM stops");
    let reload = || self::topology(arguments, stack).map_err(|error| format!("{error:#}"));
    super::block_on(async {
        runtime::route(&topology, &table, options, ready, reload, followed).await?;
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
