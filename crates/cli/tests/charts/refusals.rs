//! Values that cannot be installed.

use serde_json::{Value, json};

use crate::helm::{Job, render};

#[expect(clippy::too_many_lines, reason = "it is a table")]
/// Values, what they are set above, and words of what is said.
fn refusals() -> Vec<(&'static str, &'static str, Value, Vec<&'static str>)> {
    vec![
        (
            "nothing is given",
            "",
            json!({}),
            vec!["stack.server_name:", "stack.database.external.host:", "secrets.databasePassword:"],
        ),
        (
            "credentials are missing",
            "minimal",
            json!({ "secrets": { "generate": false, "signingKey": { "secret": "a", "key": "b" } } }),
            vec![
                "secrets.macaroonSecretKey:",
                "secrets.formSecret:",
                "secrets.registrationSharedSecret:",
                "secrets.workerReplicationSecret:",
                "secrets.redisPassword:",
            ],
        ),
        (
            "a credential of both kinds",
            "minimal",
            json!({ "secrets": { "signingKey": { "value": "a", "secret": "b", "key": "c" } } }),
            vec!["signingKey"],
        ),
        (
            "a Secret without a key",
            "minimal",
            json!({ "secrets": { "formSecret": { "secret": "b" } } }),
            vec!["formSecret"],
        ),
        (
            "what the chart sets itself",
            "minimal",
            json!({ "stack": { "network": { "unix": null }, "data_dir": "/x", "media": { "store_path": "/y" } } }),
            vec!["network", "data_dir", "store_path"],
        ),
        ("an unknown value", "minimal", json!({ "rooter": {} }), vec!["rooter"]),
        (
            "an unknown role",
            "minimal",
            json!({ "stack": { "workers": { "x": { "roles": ["sing"] } } } }),
            vec!["/stack/workers/x/roles/0"],
        ),
        ("a group called main", "minimal", json!({ "stack": { "workers": { "main": {} } } }), vec!["main"]),
        (
            "an option of Synapse's that the stack sets",
            "minimal",
            json!({ "stack": { "synapse": { "extra": { "listeners": [] } } } }),
            vec!["listeners"],
        ),
        (
            "a second writer where there can be one",
            "medium",
            json!({ "stack": { "workers": { "stream_writer": { "count": 2 } } } }),
            vec!["stack.workers.stream_writer.count: there can be only one process with the role `typing`"],
        ),
        (
            "scaling what is known by name",
            "medium",
            json!({ "groups": { "event_persister": { "autoscaling": { "by": "hpa" } } } }),
            vec!["groups.event_persister.autoscaling: this group is not scaled at run time"],
        ),
        (
            "scaling without room",
            "medium",
            json!({ "groups": { "sync": { "autoscaling": { "by": "hpa" } } } }),
            vec!["groups.sync.autoscaling: set stack.workers.sync.max_count"],
        ),
        (
            "media on several nodes",
            "minimal",
            json!({ "stack": { "preset": "full", "database": { "max_connections": 300 } } }),
            vec!["media: 5 processes serve media"],
        ),
        (
            "settings of nobody",
            "minimal",
            json!({ "groups": { "sync": {} } }),
            vec!["groups.sync: the stack has no such group"],
        ),
        (
            "a name that is too long",
            "minimal",
            json!({ "fullnameOverride": "a-name-of-a-release-that-is-much-too-long-to-be-used" }),
            vec!["longer than 46 characters", "longer than 52 characters", "fullnameOverride"],
        ),
        (
            "a name that is taken",
            "minimal",
            json!({ "stack": { "workers": { "router": { "roles": ["sync"] } } } }),
            vec!["stack.workers.router: the chart has something else of this name"],
        ),
        ("no Gateway", "minimal", json!({ "httpRoute": { "enabled": true } }), vec!["httpRoute.parentRefs:"]),
        (
            "no issuer",
            "minimal",
            json!({ "certificate": { "enabled": true } }),
            vec!["certificate.issuer.name:"],
        ),
        ("no bucket", "minimal", json!({ "media": { "s3": { "enabled": true } } }), vec!["media.s3.bucket:"]),
        (
            "two databases",
            "minimal",
            json!({ "cloudNativePg": { "enabled": true } }),
            vec!["cloudNativePg.enabled:"],
        ),
        (
            "a variable of the chart's",
            "minimal",
            json!({ "pods": { "extraEnv": [{ "name": "HOME", "value": "/" }] } }),
            vec!["extraEnv: HOME is set by the chart"],
        ),
    ]
}

#[test]
fn what_cannot_be_installed_is_refused_with_all_that_is_wrong() {
    let jobs: Vec<Job> = refusals()
        .into_iter()
        .map(|(name, file, values, _)| Job {
            name: name.to_owned(),
            chart: "synapse",
            file,
            values,
            check: false,
        })
        .collect();
    let answers = render(&jobs);
    for (name, _, _, words) in refusals() {
        let Err(error) = &answers[name] else { panic!("{name}: it was rendered") };
        for word in words {
            assert!(error.contains(word), "{name}: no `{word}` in\n{error}");
        }
    }
}
