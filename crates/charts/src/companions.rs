//! The charts of the services beside Synapse, and what is each one's own.

use schemars::{JsonSchema, schema_for};
use serde_json::{Value, json};

use crate::companion::{CompanionChart, Port, Setting, Workload};

/// Where an HTTP service is asked.
const HTTP: &[Port] = &[Port { name: "http", port: 8080, service: 80 }];
const HTTP_LISTEN: Setting = Setting { path: "listen", value: "ANY:8080", when: "" };

/// The charts of the services beside Synapse.
pub fn companion_charts() -> impl Iterator<Item = CompanionChart> {
    [ldap(), sentry_webhook(), webhook(), alertmanager(), livekit_jwt(), compress_state()].into_iter()
}

fn schema<T: JsonSchema>() -> Value {
    schema_for!(T).to_value()
}

fn resources(cpu: &str, memory: &str, limit: &str) -> Value {
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "memory": limit } })
}

/// Alerts of services that keep messages until they are delivered.
fn undelivered() -> Value {
    json!([
        {
            "alert": "MatrixWebhooksNotDelivered",
            "expr": "max by (namespace, pod) (matrix_stack_hooks_oldest_seconds{namespace=\"NAMESPACE\"}) > 900",
            "for": "5m",
            "labels": { "severity": "warning" },
            "annotations": { "summary": "Messages wait for more than 15 minutes to be delivered to Matrix." },
        },
        {
            "alert": "MatrixWebhooksDead",
            "expr": "max by (namespace, pod) (matrix_stack_hooks_dead_letters{namespace=\"NAMESPACE\"}) > 0",
            "for": "5m",
            "labels": { "severity": "info" },
            "annotations": { "summary": "Messages cannot be delivered; `matrix-stack hooks dead` says why." },
        },
    ])
}

fn ldap() -> CompanionChart {
    CompanionChart {
        name: "ldap",
        description: "A proxy in front of LDAP servers that knows LDAP",
        keywords: &["ldap", "freeipa", "proxy", "matrix"],
        workload: Workload::Deployment,
        args: &["--config", "/etc/matrix-stack/settings.yaml", "serve", "ldap"],
        service: "ldap",
        ports: &[
            Port { name: "ldap", port: 3389, service: 389 },
            Port { name: "ldaps", port: 3636, service: 636 },
        ],
        paths: &[],
        settings: &[
            Setting { path: "listen.ldap", value: "ANY:3389", when: "" },
            Setting { path: "listen.ldaps", value: "ANY:3636", when: "listen.tls" },
        ],
        environment: &[],
        schema: schema::<ldap_proxy::Settings>,
        example: || json!({ "servers": [] }),
        alerts: || json!([]),
        resources: || resources("50m", "32Mi", "256Mi"),
    }
}

fn sentry_webhook() -> CompanionChart {
    CompanionChart {
        name: "sentry-webhook",
        description: "Sentry's issues and alerts in Matrix rooms",
        keywords: &["matrix", "sentry", "webhook"],
        workload: Workload::StatefulSet,
        args: &["--config", "/etc/matrix-stack/settings.yaml", "serve", "sentry-webhook"],
        service: "sentry-webhook",
        ports: HTTP,
        paths: &["/"],
        settings: &[
            HTTP_LISTEN,
            Setting { path: "queue.store", value: "/data/sentry-webhook.sqlite", when: "" },
        ],
        environment: &[],
        schema: schema::<hooks::sentry::Config>,
        example: || json!({}),
        alerts: undelivered,
        resources: || resources("20m", "32Mi", "128Mi"),
    }
}

fn webhook() -> CompanionChart {
    CompanionChart {
        name: "webhook",
        description: "Messages of Slack's senders, GitHub, GitLab, Grafana and others in Matrix rooms",
        keywords: &["matrix", "slack", "webhook", "grafana", "gitlab"],
        workload: Workload::StatefulSet,
        args: &["--config", "/etc/matrix-stack/settings.yaml", "serve", "webhook"],
        service: "webhook",
        ports: HTTP,
        paths: &["/"],
        settings: &[HTTP_LISTEN, Setting { path: "queue.store", value: "/data/webhook.sqlite", when: "" }],
        environment: &[],
        schema: schema::<hooks::webhook::Config>,
        example: || json!({}),
        alerts: undelivered,
        resources: || resources("20m", "32Mi", "128Mi"),
    }
}

fn alertmanager() -> CompanionChart {
    CompanionChart {
        name: "matrix-alertmanager-receiver",
        description: "Alertmanager's notifications in Matrix rooms",
        keywords: &["matrix", "alertmanager", "prometheus"],
        workload: Workload::StatefulSet,
        args: &["--config", "/etc/matrix-stack/settings.yaml", "serve", "alertmanager"],
        service: "alertmanager",
        ports: HTTP,
        paths: &["/alerts"],
        settings: &[
            HTTP_LISTEN,
            Setting { path: "queue.store", value: "/data/alertmanager.sqlite", when: "" },
        ],
        environment: &[],
        schema: schema::<hooks::alertmanager::Config>,
        example: || json!({}),
        alerts: undelivered,
        resources: || resources("20m", "32Mi", "128Mi"),
    }
}

fn livekit_jwt() -> CompanionChart {
    CompanionChart {
        name: "livekit-jwt",
        description: "Tokens for calls with LiveKit, for users of Matrix homeservers",
        keywords: &["matrix", "livekit", "element-call"],
        workload: Workload::Deployment,
        args: &["--config", "/etc/matrix-stack/settings.yaml", "serve", "livekit-jwt"],
        service: "livekit-jwt",
        ports: HTTP,
        paths: &["/sfu/get", "/get_token", "/delegate_delayed_leave", "/sfu_webhook"],
        settings: &[HTTP_LISTEN],
        environment: &[],
        schema: schema::<livekit_jwt::Config>,
        example: || json!({ "sfus": [], "full_access_homeservers": [] }),
        alerts: || json!([]),
        resources: || resources("20m", "32Mi", "128Mi"),
    }
}

/// Synapse's database.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "for its schema alone")]
struct Postgres {
    /// The host.
    #[schemars(length(min = 1))]
    host: String,
    /// The port.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// The user, who owns Synapse's tables.
    user: Option<String>,
    /// The name of the database.
    database: Option<String>,
    /// Whether TLS is used, as libpq has it.
    #[schemars(extend("enum" = ["disable", "prefer", "require", "verify-ca", "verify-full"]))]
    sslmode: Option<String>,
}

fn compress_state() -> CompanionChart {
    CompanionChart {
        name: "compress-state",
        description: "Stores the state of rooms in fewer rows of Synapse's database, now and then",
        keywords: &["matrix", "synapse", "postgresql", "compress"],
        workload: Workload::CronJob,
        args: &["compress-state"],
        service: "compress-state",
        ports: &[],
        paths: &[],
        settings: &[],
        environment: &[
            ("PGHOST", "host"),
            ("PGPORT", "port"),
            ("PGUSER", "user"),
            ("PGDATABASE", "database"),
            ("PGSSLMODE", "sslmode"),
        ],
        schema: schema::<Postgres>,
        example: || json!({ "port": 5432, "user": "synapse", "database": "synapse" }),
        alerts: || json!([]),
        resources: || resources("100m", "64Mi", "512Mi"),
    }
}
