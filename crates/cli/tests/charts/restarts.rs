//! Which pods an upgrade restarts: exactly those whose template changes.

use std::collections::BTreeSet;

use model::{Action, compare};
use serde_json::{Value, json};

use crate::helm::{Case, Job, render, template};
use crate::processes::plan;

#[expect(clippy::too_many_lines, reason = "it is a table")]
/// A change of values, above what, and whose pods restart: `processes` for all of Synapse's, else components.
fn changes() -> Vec<(&'static str, &'static str, Value, &'static [&'static str])> {
    vec![
        ("nothing", "high-availability", json!({}), &[]),
        (
            "a pool grows",
            "high-availability",
            json!({ "stack": { "workers": { "sync": { "count": 4 } } } }),
            &[],
        ),
        (
            "a pool may grow",
            "high-availability",
            json!({ "stack": { "workers": { "sync": { "max_count": 9 } } } }),
            &[],
        ),
        (
            "a pool is named that was the preset's",
            "high-availability",
            json!({ "stack": { "workers": { "room": { "count": 3 } } } }),
            &[],
        ),
        (
            "more event persisters",
            "high-availability",
            json!({ "stack": { "workers": { "event_persister": { "count": 5 } } } }),
            &["processes"],
        ),
        ("the admin API", "high-availability", json!({ "stack": { "listen": { "admin_api": true } } }), &[]),
        (
            "well-known",
            "high-availability",
            json!({ "stack": { "well_known": { "server": "example.org:443" } } }),
            &[],
        ),
        (
            "an option of Synapse's",
            "high-availability",
            json!({ "stack": { "synapse": { "extra": { "forget_rooms_on_leave": true } } } }),
            &["processes"],
        ),
        (
            "open registration",
            "high-availability",
            json!({ "stack": { "registration": { "open": true } } }),
            &["processes"],
        ),
        ("the router's number", "high-availability", json!({ "router": { "replicas": 5 } }), &[]),
        ("the router's threads", "high-availability", json!({ "router": { "threads": 8 } }), &["router"]),
        (
            "a group's resources",
            "high-availability",
            json!({ "groups": { "sync": { "pod": { "resources": { "requests": { "cpu": "1" } } } } } }),
            &["sync"],
        ),
        (
            "an annotation of main's",
            "high-availability",
            json!({ "main": { "pod": { "annotations": { "a": "b" } } } }),
            &["main"],
        ),
        (
            "Valkey's image",
            "high-availability",
            json!({ "images": { "valkey": { "tag": "10" } } }),
            &["valkey"],
        ),
        (
            "Synapse's image",
            "high-availability",
            json!({ "images": { "synapse": { "tag": "v1.164.0" } } }),
            &["processes"],
        ),
        (
            "the Service's type",
            "high-availability",
            json!({ "router": { "service": { "type": "LoadBalancer" } } }),
            &[],
        ),
        (
            "an autoscaler",
            "high-availability",
            json!({ "groups": { "sync": { "autoscaling": { "targetCpu": 80 } } } }),
            &[],
        ),
        (
            "monitoring",
            "high-availability",
            json!({ "monitoring": { "podMonitors": { "enabled": true }, "alerts": { "enabled": true }, "dashboards": { "enabled": true } } }),
            &[],
        ),
        ("no network policies", "high-availability", json!({ "networkPolicy": { "enabled": false } }), &[]),
        (
            "a credential",
            "secrets-in-values",
            json!({ "secrets": { "formSecret": { "value": "value-of-another" } } }),
            &["processes"],
        ),
        // With a rollout, nothing restarts because of the stack: the rollout does it.
        (
            "an option, with a rollout",
            "everything",
            json!({ "stack": { "synapse": { "extra": { "forget_rooms_on_leave": true } } } }),
            &[],
        ),
    ]
}

/// The components whose pods the templates make, each with its template.
fn templates(case: &Case) -> Vec<(&str, &str, &Value)> {
    case.workloads()
        .filter(|owner| owner["kind"] != "Job")
        .map(|owner| {
            let labels = &owner["spec"]["template"]["metadata"]["labels"];
            let label = |name: &str| labels[name].as_str().unwrap();
            (label("app.kubernetes.io/component"), label("matrix-stack.io/kind"), &owner["spec"]["template"])
        })
        .collect()
}

#[test]
fn an_upgrade_restarts_what_it_must_and_no_more() {
    let mut jobs = Vec::new();
    for (name, file, values, _) in changes() {
        jobs.push(Job {
            name: format!("{name}: before"),
            chart: "synapse",
            file,
            values: json!({}),
            check: false,
        });
        jobs.push(Job { name: name.to_owned(), chart: "synapse", file, values, check: false });
    }
    let answers = render(&jobs);
    for (name, _, _, expected) in changes() {
        let before = answers[&format!("{name}: before")].as_ref().unwrap();
        let after = answers[name].as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        let old = templates(before);
        let restarted: BTreeSet<&str> = templates(after)
            .into_iter()
            .filter(|(component, _, template)| {
                old.iter().any(|(was, _, old)| was == component && old != template)
            })
            .map(|(component, _, _)| component)
            .collect();
        let all: BTreeSet<&str> =
            old.iter().filter(|(_, kind, _)| *kind == "synapse").map(|(c, _, _)| *c).collect();
        let mut wanted: BTreeSet<&str> =
            expected.iter().copied().filter(|name| *name != "processes").collect();
        if expected.contains(&"processes") {
            wanted.extend(&all);
        }
        assert_eq!(restarted, wanted, "{name}");

        // Whatever the planner says must restart, does, unless a rollout sees to it.
        if name.contains("rollout") {
            continue;
        }
        for change in compare(&plan(before), &plan(after)).changes {
            let (plan, instance) = (plan(before), &change.instance);
            let Some(group) = plan.instance(instance).map(|instance| instance.group.replace('_', "-")) else {
                continue;
            };
            let must = matches!(change.action, Action::Roll | Action::Restart | Action::StopTogether);
            assert!(
                !must || restarted.contains(group.as_str()),
                "{name}: {instance} keeps its old configuration"
            );
        }
    }
}

/// What changes a companion's pods, and what does not. Jobs end by themselves, so that nothing restarts.
#[test]
fn companions_restart_for_their_own_settings_alone() {
    let changes = |setting: Value| {
        vec![
            ("its settings", json!({ "settings": setting }), true),
            ("memory", json!({ "pods": { "resources": { "limits": { "memory": "1Gi" } } } }), true),
            ("the image", json!({ "images": { "matrixStack": { "tag": "0.0.1" } } }), true),
            ("metrics", json!({ "monitoring": { "podMonitors": { "enabled": true } } }), false),
            ("no network policies", json!({ "networkPolicy": { "enabled": false } }), false),
            ("a load balancer", json!({ "service": { "type": "LoadBalancer" } }), false),
            (
                "annotations of the account",
                json!({ "serviceAccounts": { "annotations": { "a": "b" } } }),
                false,
            ),
        ]
    };
    let scaled = [
        ("another pod", json!({ "replicas": 3 }), false),
        ("autoscaling", json!({ "autoscaling": { "by": "hpa" } }), false),
        ("no budget", json!({ "podDisruptionBudgets": { "enabled": false } }), false),
    ];
    let credential =
        |name: &str| ("a credential", json!({ "secrets": { name: { "value": "value-of-another" } } }), true);
    let of = |chart: &str| match chart {
        "ldap" => [changes(json!({ "limits": { "connections": 7 } })), scaled.to_vec()].concat(),
        "livekit-jwt" => {
            [changes(json!({ "token_seconds": 600 })), scaled.to_vec(), vec![credential("livekit")]].concat()
        }
        "matrix-alertmanager-receiver" => {
            [changes(json!({ "delivery": { "doubles-within": 30 } })), vec![credential("token")]].concat()
        }
        _ => [changes(json!({ "notice": true })), vec![credential("token")]].concat(),
    };
    let charts: Vec<&str> =
        charts::companion_charts().map(|chart| chart.name).filter(|name| *name != "compress-state").collect();
    let mut jobs = Vec::new();
    for chart in charts.iter().copied() {
        let job = |name: &str, values: Value| Job {
            name: format!("{chart}: {name}"),
            chart,
            file: "minimal",
            values,
            check: false,
        };
        jobs.push(job("before", json!({})));
        jobs.extend(of(chart).into_iter().map(|(name, values, _)| job(name, values)));
    }
    let answers = render(&jobs);
    let pods = |name: &str| {
        let case = answers[name].as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        case.workloads().map(template).cloned().collect::<Vec<_>>()
    };
    for chart in charts {
        for (name, _, restarts) in of(chart) {
            let restarted = pods(&format!("{chart}: {name}")) != pods(&format!("{chart}: before"));
            assert_eq!(restarted, restarts, "{chart}: {name}");
        }
    }
}
