//! `rollout`: a release on Kubernetes from the stack that it runs with to the one that is wished.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rollout::{Cluster, Names, Options, Status};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Rollout;

/// How long to wait between two looks at pods that come and go.
const POLL: Duration = Duration::from_secs(1);

pub(crate) fn rollout(arguments: &Rollout) -> anyhow::Result<ExitCode> {
    let release = &arguments.release;
    let names = Names {
        release: release.clone(),
        desired: arguments.desired.clone().unwrap_or_else(|| format!("{release}-stack-desired")),
        applied: arguments.applied.clone().unwrap_or_else(|| format!("{release}-stack")),
    };
    let options = Options {
        // A pod's name is its host's; two of one host are told apart by their process.
        identity: format!("{}_{}", nix::unistd::gethostname()?.to_string_lossy(), std::process::id()),
        at_once: arguments.at_once.into(),
        poll: POLL,
    };
    super::block_on(async {
        let cluster = Cluster::connect(arguments.namespace.clone(), names).await?;
        if arguments.dry_run {
            return dry_run(&cluster, &options).await;
        }
        let status = Status::default();
        if let Some(listen) = arguments.listen {
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("cannot listen on {listen}; choose another with `--listen`"))?;
            tokio::spawn(status.clone().serve(listener));
        }
        let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let end = async move {
            tokio::select! {
                _ = end.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        if !arguments.once {
            rollout::control(&cluster, &options, status, end).await;
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            result = rollout::once(&cluster, &options, status, Duration::from_secs(arguments.timeout)) => result?,
            () = end => bail!("stopped in the middle; a rollout that is started again goes on from there"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Says what would happen, in the words of `plan --against`, and the first steps of it.
async fn dry_run(cluster: &Cluster, options: &Options) -> anyhow::Result<ExitCode> {
    let observed = cluster.observe().await?;
    let next = rollout::next(&observed, options.at_once);
    if let Some(refused) = next.refused {
        bail!("{refused}");
    }
    let mut out = match rollout::comparison(&observed) {
        Some(comparison) => super::plan::describe_comparison(&comparison),
        None => "nothing is applied yet: everything starts, in the order of turns\n".to_owned(),
    };
    for step in &next.steps {
        let _ = writeln!(out, "now: {step}");
    }
    for waiting in &next.waiting {
        let _ = writeln!(out, "then: {waiting}");
    }
    super::print(&out)?;
    Ok(ExitCode::SUCCESS)
}
