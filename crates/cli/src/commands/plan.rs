//! `check` and `plan`: what a stack means, before anything runs.

use std::fmt::Write as _;

use anyhow::bail;
use model::{Action, Comparison, Estimate, Recommendation, Topology, compare, estimate, grouped, recommend};
use serde_json::json;

use crate::args::{Plan, StackArguments};
use crate::machine::this_machine;
use crate::place::{Place, load};

pub(crate) fn check(arguments: &StackArguments) -> anyhow::Result<()> {
    let place = Place::find(arguments)?;
    let topology = place.plan()?;
    // The routing table is part of what a stack means: one that cannot be routed is not good either.
    super::routes::matcher(&topology)?;
    let name = place.loaded.name().unwrap_or("no stack file; a stack called `localhost`").to_owned();
    eprintln!("{name}: no problems; {} Synapse processes", topology.processes());
    Ok(())
}

pub(crate) fn plan(arguments: &Plan, stack: &StackArguments) -> anyhow::Result<()> {
    if let Some(users) = arguments.users {
        let recommendation = recommend(users);
        return if arguments.json.json {
            super::print_json(&recommendation)
        } else {
            super::print(&describe_recommendation(&recommendation))
        };
    }
    let place = Place::find(stack)?;
    let topology = place.plan()?;
    if let Some(other) = &arguments.against {
        // Both are planned as if they were the same stack at another time: the same place, the same machine.
        let other =
            Place { loaded: load(Some(other))?, layout: place.layout.clone(), chosen: place.chosen.clone() };
        let other = Place {
            chosen: other.loaded.stack.preset.is_none().then(|| model::choose_preset(this_machine())),
            ..other
        };
        let comparison = compare(&topology, &other.plan()?);
        if let Some((field, reason)) = comparison.refused.first() {
            bail!("`{field}` cannot change on a stack that has data: {reason}");
        }
        return if arguments.json.json {
            super::print_json(&comparison)
        } else {
            super::print(&describe_comparison(&comparison))
        };
    }
    let why = place.chosen.as_ref().map(|(_, why)| why.as_str());
    if arguments.json.json {
        super::print_json(&json!({
            "preset": topology.preset(),
            "reason": why,
            "estimate": estimate(&topology),
            "machine": this_machine(),
            "instances": topology.instances(),
        }))
    } else {
        super::print(&describe_topology(&topology, why))
    }
}

fn describe_topology(topology: &Topology, why: Option<&str>) -> String {
    let mut out = format!("preset `{}`", topology.preset());
    if let Some(why) = why {
        let _ = write!(out, ": {why}");
    }
    out.push_str("\n\n");
    let width = topology.instances().iter().map(|i| i.name.len()).max().unwrap_or(0);
    for instance in topology.instances() {
        let roles: Vec<_> = instance.roles.iter().map(|role| role.name()).collect();
        let _ = write!(out, "  {:width$}  {}", instance.name, roles.join(", "));
        if let Some(replicas) = instance.replicas {
            let _ = write!(out, " (a pool of {}, at most {})", replicas.count, replicas.max);
        }
        out.push('\n');
    }
    let _ = writeln!(out, "\n{}", describe_estimate(&estimate(topology)));
    out
}

fn describe_estimate(estimate: &Estimate) -> String {
    format!(
        "{} Synapse processes, about {} MiB of memory idle, {} MiB to plan for under load, {} database connections",
        estimate.processes,
        estimate.idle_bytes >> 20,
        estimate.busy_bytes >> 20,
        estimate.connections
    )
}

fn describe_recommendation(recommendation: &Recommendation) -> String {
    let mut out = format!("for {} users: preset `{}`\n\n", recommendation.load.users, recommendation.preset);
    for reason in &recommendation.reasons {
        let _ = writeln!(out, "  - {reason}");
    }
    let _ = writeln!(out, "\nin stack.yaml:\n\n  preset: {}", recommendation.preset);
    if !recommendation.counts.is_empty() {
        out.push_str("  workers:\n");
        for (group, count) in &recommendation.counts {
            let _ = writeln!(out, "    {group}: {{count: {count}}}");
        }
    }
    let _ =
        writeln!(out, "\n{}, {} cores", describe_estimate(&recommendation.estimate), recommendation.cores);
    out
}

/// What a change does, in words.
pub(crate) fn describe_comparison(comparison: &Comparison) -> String {
    if comparison.is_empty() {
        return "nothing changes\n".to_owned();
    }
    let mut out = String::new();
    for ((action, because), instances) in grouped(&comparison.changes) {
        let verb = match action {
            Action::Keep => "keep",
            Action::Roll => "roll (one at a time)",
            Action::Restart => "restart (with the change)",
            Action::StopTogether => "stop together, then start",
            Action::Start => "start",
            Action::Stop => "stop",
        };
        let _ = writeln!(out, "{verb}: {}", instances.join(", "));
        if !because.is_empty() {
            let _ = writeln!(out, "  because of {}", because.join(", "));
        }
    }
    if comparison.router {
        out.push_str("router: loads a new table, without a restart\n");
    }
    out
}
