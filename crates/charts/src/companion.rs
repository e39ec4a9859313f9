//! The charts of the services beside Synapse: one set of templates, and for each chart what is its own.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Value, json};

use crate::schema::prune;
use crate::values::{
    Autoscaling, Credential, Image, Labelled, NetworkPolicies, Object, Persistence, Pod, PodMonitors,
    RouterService, ServiceAccounts, Services, Switch, Texts, object,
};
use crate::yaml::document;

/// The chart of a service beside Synapse.
#[derive(Clone, Debug)]
pub struct CompanionChart {
    /// Its name.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub description: &'static str,
    /// What people look for.
    pub keywords: &'static [&'static str],
    /// What makes its pods.
    pub workload: Workload,
    /// The arguments of its container, behind which `extraArgs` follow.
    pub args: &'static [&'static str],
    /// The name of its container and component.
    pub service: &'static str,
    /// The ports that it is asked at, the most important first, with that of the Service.
    pub ports: &'static [Port],
    /// The paths that Ingress and `HTTPRoute` lead to it; none for what speaks no HTTP.
    pub paths: &'static [&'static str],
    /// Settings that the chart makes itself.
    pub settings: &'static [Setting],
    /// Environment variables, each with the setting that it has; where there are any, there is no file. `PGPASSWORD` is the secret
    /// `password` then.
    pub environment: &'static [(&'static str, &'static str)],
    /// The JSON Schema of its settings.
    pub schema: fn() -> Value,
    /// The settings that `values.yaml` begins with.
    pub example: fn() -> Value,
    /// Alerting rules, as Prometheus has them.
    pub alerts: fn() -> Value,
    /// Requests and limits of its container.
    pub resources: fn() -> Value,
}

/// What makes a service's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// As many as are wanted: nothing is kept.
    Deployment,
    /// One, with a volume.
    StatefulSet,
    /// One now and then.
    CronJob,
}

/// A port of a container.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub port: u16,
    /// The port of the Service that leads to it.
    pub service: u16,
}

/// A setting that the chart makes.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Where it stands, with dots between.
    pub path: &'static str,
    /// What it is. `ANY` stands for the address of all interfaces.
    pub value: &'static str,
    /// The setting that has to be there for it; none if this is empty.
    pub when: &'static str,
}

/// The values of such a chart. Each has those fields that mean something to it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
struct Values {
    /// The service's own settings, as in the file of `matrix-stack`. Where it listens, where it keeps what has to last, and the
    /// files of its credentials the chart adds itself.
    settings: Object,
    /// Credentials by names of your choice, each either `{value: TEXT}` or `{secret: NAME, key: KEY}` of a Secret that is there.
    /// Each becomes the file `/secrets/NAME`, which the settings name where they ask for a file.
    #[schemars(extend("propertyNames" = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$"}))]
    secrets: IndexMap<String, Credential>,
    /// When it runs, in cron's way.
    #[schemars(length(min = 9))]
    schedule: String,
    /// Of which time zone, such as `Europe/Berlin`. Default: the cluster's.
    time_zone: String,
    /// Whether it does not run at present.
    suspend: bool,
    /// After how many seconds it is stopped, which costs nothing but what it is at. Default: never.
    #[schemars(range(min = 1))]
    active_deadline_seconds: Option<u32>,
    /// More arguments of the command.
    extra_args: Vec<String>,
    /// How many to run; with autoscaling, how many at least.
    #[schemars(range(min = 1, max = 64))]
    replicas: u16,
    /// Container images.
    images: Images,
    /// What holds for its pods.
    pods: Pod,
    /// The volume of what has to last.
    persistence: Persistence,
    /// The Service that it is reached by.
    service: RouterService,
    /// An Ingress.
    ingress: Ingress,
    /// An `HTTPRoute` of the Gateway API.
    http_route: HttpRoute,
    /// Scaling at run time.
    autoscaling: Scaling,
    /// Prometheus.
    monitoring: Monitoring,
    /// Who may reach it.
    network_policy: NetworkPolicies,
    /// The address of the Service.
    services: Services,
    /// A `PodDisruptionBudget` where there are several pods: one at a time may be evicted.
    pod_disruption_budgets: Switch,
    /// The pods' `ServiceAccount`, which may do nothing.
    service_accounts: ServiceAccounts,
    /// What the names of all objects begin with. Default: the release's name, followed by the chart's where it is not in it.
    #[schemars(regex(pattern = r"^([a-z]([a-z0-9-]*[a-z0-9])?)?$"))]
    fullname_override: String,
    /// Labels of every object.
    labels: Texts,
    /// More objects to install. Text in them is rendered as in templates.
    extra_objects: Vec<Object>,
    /// Values that a parent chart shares with its parts. Nothing is read from here.
    global: Object,
}

/// Container images.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
struct Images {
    /// matrix-stack. An empty tag stands for the chart's own version.
    matrix_stack: Image,
    /// Secrets for registries, as `{name: NAME}`.
    pull_secrets: Vec<Object>,
}

impl Default for Images {
    fn default() -> Self {
        Self { matrix_stack: Image::new("matrix-stack", ""), pull_secrets: Vec::new() }
    }
}

/// An Ingress.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
struct Ingress {
    /// Whether to install it.
    enabled: bool,
    /// Its class. Default: the cluster's.
    class_name: String,
    /// Its annotations, such as those of cert-manager.
    annotations: Texts,
    /// Its host.
    host: String,
    /// The Secret with the certificate. Default: none.
    tls_secret: String,
}

/// An `HTTPRoute`.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
struct HttpRoute {
    /// Whether to install it.
    enabled: bool,
    /// The Gateways, as the Gateway API has them (`{name, namespace, sectionName}`).
    parent_refs: Vec<Object>,
    /// The hosts.
    hostnames: Vec<String>,
    /// Its annotations.
    annotations: Texts,
}

/// Scaling at run time, from `replicas` on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
struct Scaling {
    /// By what: `hpa` (`HorizontalPodAutoscaler`) or `keda` (a `ScaledObject` of KEDA). Default: there are `replicas`.
    #[schemars(extend("enum" = ["", "hpa", "keda"]))]
    by: String,
    /// How many at most.
    #[schemars(range(min = 1, max = 64))]
    max_replicas: u16,
    /// Target of the pods' mean processor use, in hundredths of what they request.
    #[schemars(range(min = 1))]
    target_cpu: Option<u32>,
    /// Metrics of the `HorizontalPodAutoscaler`, as Kubernetes has them, in place of `targetCpu`.
    metrics: Vec<Object>,
    /// How fast it scales, as Kubernetes has it (`scaleUp`, `scaleDown`).
    behavior: Object,
    /// Triggers of KEDA's, as it has them.
    triggers: Vec<Object>,
}

impl Default for Scaling {
    fn default() -> Self {
        let Autoscaling { by, target_cpu, metrics, behavior, triggers, .. } = Autoscaling::default();
        Self { by, max_replicas: 5, target_cpu, metrics, behavior, triggers }
    }
}

/// Prometheus.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
struct Monitoring {
    /// A `PodMonitor` of the Prometheus operator.
    pod_monitors: PodMonitors,
    /// Alerts, as a `PrometheusRule` of the Prometheus operator.
    alerts: Labelled,
}

/// The templates that all these charts share.
const TEMPLATES: [(&str, &str); 15] = [
    ("_common.tpl", COMMON),
    ("_context.tpl", include_str!("../templates/companion/_context.tpl")),
    ("account.yaml", include_str!("../templates/companion/account.yaml")),
    ("autoscaling.yaml", include_str!("../templates/companion/autoscaling.yaml")),
    ("credentials.yaml", include_str!("../templates/companion/credentials.yaml")),
    ("disruption-budget.yaml", include_str!("../templates/companion/disruption-budget.yaml")),
    ("extra.yaml", include_str!("../templates/companion/extra.yaml")),
    ("httproute.yaml", include_str!("../templates/companion/httproute.yaml")),
    ("ingress.yaml", include_str!("../templates/companion/ingress.yaml")),
    ("monitoring.yaml", include_str!("../templates/companion/monitoring.yaml")),
    ("network-policy.yaml", include_str!("../templates/companion/network-policy.yaml")),
    ("NOTES.txt", include_str!("../templates/companion/NOTES.txt")),
    ("settings.yaml", include_str!("../templates/companion/settings.yaml")),
    ("service.yaml", include_str!("../templates/companion/service.yaml")),
    ("workload.yaml", include_str!("../templates/companion/workload.yaml")),
];

/// What the templates of all charts have in common.
pub const COMMON: &str = include_str!("../templates/_common.tpl");

/// Where a service's metrics are.
const METRICS: u16 = 9090;

impl CompanionChart {
    /// Every file of the chart but its examples of values, by its path in the chart.
    pub fn files(&self) -> BTreeMap<String, String> {
        let mut files: BTreeMap<String, String> = TEMPLATES
            .iter()
            .filter(|(name, _)| self.has_template(name))
            .map(|(name, text)| (format!("templates/{name}"), (*text).to_owned()))
            .collect();
        files.insert("Chart.yaml".to_owned(), self.chart_yaml());
        files.insert(".helmignore".to_owned(), "ci/\n".to_owned());
        files.insert("files/facts.json".to_owned(), pretty(&self.facts()));
        files.insert("values.schema.json".to_owned(), pretty(&self.schema()));
        files.insert("values.yaml".to_owned(), self.values_yaml());
        files
    }

    fn has_template(&self, name: &str) -> bool {
        match name {
            "autoscaling.yaml" | "disruption-budget.yaml" => self.workload == Workload::Deployment,
            "service.yaml" | "monitoring.yaml" => self.workload != Workload::CronJob,
            "httproute.yaml" | "ingress.yaml" => !self.paths.is_empty(),
            "settings.yaml" => self.environment.is_empty(),
            _ => true,
        }
    }

    /// Which values mean nothing to it.
    fn without(&self) -> Vec<&'static str> {
        let mut without = Vec::new();
        if self.workload != Workload::CronJob {
            without.extend(["schedule", "timeZone", "suspend", "activeDeadlineSeconds"]);
        }
        if self.workload != Workload::Deployment {
            without.extend(["replicas", "autoscaling", "podDisruptionBudgets"]);
        }
        if self.workload != Workload::StatefulSet {
            without.push("persistence");
        }
        if self.workload == Workload::CronJob {
            without.extend(["service", "monitoring", "services"]);
        }
        if self.paths.is_empty() {
            without.extend(["ingress", "httpRoute"]);
        }
        without
    }

    fn chart_yaml(&self) -> String {
        format!(
            "apiVersion: v2\nname: {}\ndescription: {}\ntype: application\nversion: {version}\nappVersion: {version:?}\n\
             # A volume's fate can be said since 1.27, a pause before a container's end since 1.30.\n\
             kubeVersion: \">=1.31.0-0\"\nkeywords: [{}]\nannotations:\n  artifacthub.io/category: integration-delivery\n  \
             artifacthub.io/license: Apache-2.0\n",
            self.name,
            self.description,
            self.keywords.join(", "),
            version = env!("CARGO_PKG_VERSION"),
        )
    }

    /// What the templates know of the service.
    fn facts(&self) -> Value {
        let mut ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| json!({ "name": port.name, "port": port.port, "service": port.service }))
            .collect();
        let metrics = self.workload != Workload::CronJob;
        let setting =
            |path: &str, value: &str, when: &str| json!({ "path": path, "value": value, "when": when });
        let mut settings: Vec<Value> =
            self.settings.iter().map(|made| setting(made.path, made.value, made.when)).collect();
        if metrics {
            ports.push(json!({ "name": "metrics", "port": METRICS, "service": METRICS }));
            settings.push(setting("metrics", &format!("ANY:{METRICS}"), ""));
        }
        let environment: Vec<Value> = self
            .environment
            .iter()
            .map(|(variable, setting)| json!({ "name": variable, "setting": setting }))
            .collect();
        json!({
            "service": self.service,
            "workload": format!("{:?}", self.workload),
            "args": self.args,
            "ports": ports,
            "paths": self.paths,
            "metrics": metrics,
            "data": self.workload == Workload::StatefulSet,
            "settings": settings,
            "environment": environment,
            "alerts": (self.alerts)(),
        })
    }

    /// The JSON Schema of its values.
    pub fn schema(&self) -> Value {
        let mut schema =
            SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Values>().to_value();
        if let Some(properties) = schema["properties"].as_object_mut() {
            for field in self.without() {
                properties.shift_remove(field);
            }
        }
        schema["title"] = format!("The values of the chart `{}`.", self.name).into();
        self.add_settings(&mut schema);
        prune(&mut schema);
        schema
    }

    /// Puts the schema of the service's own settings in, without what the chart sets.
    fn add_settings(&self, schema: &mut Value) {
        // Types of the same name may mean something else here.
        let text = (self.schema)().to_string().replace("\"#/$defs/", "\"#/$defs/Settings");
        let Ok(mut own) = serde_json::from_str::<Value>(&text) else { return };
        if let (Some(definitions), Some(all)) =
            (own["$defs"].as_object().cloned(), schema["$defs"].as_object_mut())
        {
            all.extend(definitions.into_iter().map(|(name, own)| (format!("Settings{name}"), own)));
        }
        for path in self.settings.iter().map(|made| made.path).chain(["metrics"]) {
            remove(&mut own, path, schema);
        }
        let description = schema["properties"]["settings"]["description"].clone();
        if let Some(own) = own.as_object_mut() {
            for field in ["$schema", "$defs", "title"] {
                own.shift_remove(field);
            }
            own.insert("description".to_owned(), description);
        }
        schema["properties"]["settings"] = own;
    }

    fn values_yaml(&self) -> String {
        let mut values = serde_json::to_value(Values::default()).unwrap_or_default();
        values["settings"] = (self.example)();
        values["pods"]["resources"] = (self.resources)();
        if let Some(port) = self.ports.first() {
            values["service"]["port"] = port.service.into();
        }
        if let Some(values) = values.as_object_mut() {
            for field in self.without() {
                values.shift_remove(field);
            }
        }
        let comment = format!(
            "# The values of the chart `{}`. Generated from crates/charts: change them there, then run\n\
             # `UPDATE_FILES=1 cargo test -p matrix-stack-charts`.\n",
            self.name
        );
        document(&comment, &self.schema(), &values, "settings")
    }
}

/// Removes a field from a schema, and from what it asks for. A type within may be one of the root's definitions.
fn remove(schema: &mut Value, path: &str, root: &mut Value) {
    let Some((first, rest)) = path.split_once('.') else {
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.shift_remove(path);
        }
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|name| name != path);
        }
        return;
    };
    let inner = &mut schema["properties"][first];
    let reference = [&inner["$ref"], &inner["anyOf"][0]["$ref"]].into_iter().find_map(Value::as_str);
    let Some(name) = reference.and_then(|path| path.strip_prefix("#/$defs/")).map(str::to_owned) else {
        return remove(inner, rest, root);
    };
    let mut inner = root["$defs"][&name].take();
    remove(&mut inner, rest, root);
    root["$defs"][&name] = inner;
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

impl Default for Values {
    fn default() -> Self {
        Self {
            settings: Object::new(),
            secrets: IndexMap::new(),
            schedule: "17 1 * * *".to_owned(),
            time_zone: String::new(),
            suspend: false,
            active_deadline_seconds: None,
            extra_args: Vec::new(),
            replicas: 2,
            images: Images::default(),
            pods: Pod::default(),
            persistence: Persistence { size: "1Gi".to_owned(), ..Persistence::default() },
            service: RouterService::default(),
            ingress: Ingress::default(),
            http_route: HttpRoute::default(),
            autoscaling: Scaling::default(),
            monitoring: Monitoring::default(),
            network_policy: NetworkPolicies::default(),
            services: Services::default(),
            pod_disruption_budgets: Switch { enabled: true },
            service_accounts: ServiceAccounts::default(),
            fullname_override: String::new(),
            labels: Texts::new(),
            extra_objects: Vec::new(),
            global: object(json!({})),
        }
    }
}
