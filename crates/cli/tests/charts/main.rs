//! The Helm charts, rendered by the Helm engine itself and held against the Kubernetes API, the planner and what
//! `matrix-stack configure` writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod consistency;
mod custom;
mod helm;
mod objects;
mod processes;
mod programs;
mod refusals;
mod restarts;

/// What is rendered is committed, so that a change of the templates shows as one of the objects.
#[test]
fn what_is_rendered_is_committed() {
    for case in helm::all() {
        let chart = if case.name.contains('/') { "" } else { "synapse/" };
        committed::file(&format!("charts/rendered/{chart}{}.yaml", case.name), &case.text);
    }
}
