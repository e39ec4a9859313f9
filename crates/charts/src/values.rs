//! The values of the chart `synapse`.
//!
//! What is a default here stands in `values.yaml`; what is said here of a value is its comment there, and its row in the
//! reference.

use std::borrow::Cow;

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A part of a Kubernetes object, passed through as it is.
pub(crate) type Object = Map<String, Value>;
/// Texts by name.
pub(crate) type Texts = IndexMap<String, String>;

/// The values of the chart `synapse`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Values {
    /// The stack, as in stack.yaml: which processes there are, and how they behave. What only the chart knows (addresses,
    /// hosts, paths of secrets and of media) it adds itself, and refuses here.
    #[schemars(with = "model::Stack")]
    pub stack: Object,
    /// Passwords and keys, each either `{value: TEXT}` or `{secret: NAME, key: KEY}` of a Secret that is there.
    pub secrets: Credentials,
    /// Container images.
    pub images: Images,
    /// What holds for every pod, unless a component says otherwise under its own `pod`.
    pub pods: Pod,
    /// The main process.
    pub main: Component,
    /// Worker groups by their names in the stack: the preset's, and those of `stack.workers`.
    pub groups: IndexMap<String, Group>,
    /// The router, through which every request comes.
    pub router: Router,
    /// Valkey in the cluster, through which the processes tell each other what changed. It is left away where
    /// `stack.redis.external` names a server.
    pub valkey: Component,
    /// `PgBouncer` between the processes and PostgreSQL.
    pub pgbouncer: Pgbouncer,
    /// PostgreSQL in the cluster, as a `Cluster` of the operator `CloudNativePG`.
    pub cloud_native_pg: CloudNativePg,
    /// Where media files lie.
    pub media: MediaStorage,
    /// An Ingress for clients and other servers.
    pub ingress: Ingress,
    /// An `HTTPRoute` of the Gateway API for clients and other servers.
    pub http_route: HttpRoute,
    /// A certificate from cert-manager, for the names of `ingress` or of a Gateway.
    pub certificate: Certificate,
    /// Prometheus and Grafana.
    pub monitoring: Monitoring,
    /// Who may reach which pod.
    pub network_policy: NetworkPolicies,
    /// The addresses of Services.
    pub services: Services,
    /// A `PodDisruptionBudget` for each component of several pods: one pod at a time may be evicted.
    pub pod_disruption_budgets: Switch,
    /// How processes are restarted when the stack changes.
    pub rollout: Rollout,
    /// The pods' `ServiceAccounts`.
    pub service_accounts: ServiceAccounts,
    /// The cluster's domain.
    #[schemars(length(min = 1))]
    pub cluster_domain: String,
    /// What the names of all objects begin with. Default: the release's name, followed by `-synapse` where it has no
    /// `synapse` in it.
    #[schemars(regex(pattern = r"^([a-z]([a-z0-9-]*[a-z0-9])?)?$"))]
    pub fullname_override: String,
    /// Labels of every object.
    pub labels: Texts,
    /// More objects to install. Text in them is rendered as in templates.
    pub extra_objects: Vec<Object>,
    /// Values that a parent chart shares with its parts. Nothing is read from here.
    pub global: Object,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            stack: object(json!({ "preset": "small" })),
            secrets: Credentials::default(),
            images: Images::default(),
            pods: Pod::default(),
            main: Component::default(),
            groups: IndexMap::new(),
            router: Router::default(),
            valkey: Component {
                pod: object(json!({
                    "resources": { "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": "256Mi" } }
                })),
            },
            pgbouncer: Pgbouncer::default(),
            cloud_native_pg: CloudNativePg::default(),
            media: MediaStorage::default(),
            ingress: Ingress::default(),
            http_route: HttpRoute::default(),
            certificate: Certificate::default(),
            monitoring: Monitoring::default(),
            network_policy: NetworkPolicies::default(),
            services: Services::default(),
            pod_disruption_budgets: Switch { enabled: true },
            rollout: Rollout::default(),
            service_accounts: ServiceAccounts::default(),
            cluster_domain: "cluster.local".to_owned(),
            fullname_override: String::new(),
            labels: Texts::new(),
            extra_objects: Vec::new(),
            global: Object::new(),
        }
    }
}

pub(crate) fn object(value: Value) -> Object {
    if let Value::Object(object) = value { object } else { Object::new() }
}

/// Whether there is such a thing.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Switch {
    /// Whether to install it.
    pub enabled: bool,
}

/// A password or key: `{value: TEXT}`, `{secret: NAME, key: KEY}`, or `{}` where none is given.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Credential {}

impl JsonSchema for Credential {
    fn schema_name() -> Cow<'static, str> {
        "Credential".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = |of: &str| json!({ "type": "string", "minLength": 1, "description": of });
        json_schema!({
            "description": "A password or key.",
            "type": "object",
            "properties": {
                "value": text("The text itself. It goes into a Secret."),
                "secret": text("The name of a Secret in the release's namespace, which holds it."),
                "key": text("Its key in that Secret."),
            },
            "additionalProperties": false,
            "dependentRequired": { "secret": ["key"], "key": ["secret"] },
            "not": { "required": ["value", "secret"] },
        })
    }
}

/// Passwords and keys.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Credentials {
    /// Whether a job makes those of Synapse's keys that are not given, and Valkey's password, once, before the first
    /// installation. They stay in a Secret that Helm never changes nor removes.
    pub generate: bool,
    /// The database user's password.
    pub database_password: Credential,
    /// The password of `stack.redis.external`, or of Valkey in the cluster.
    pub redis_password: Credential,
    /// The server's signing key, in Synapse's format (`ed25519 ID KEY`).
    pub signing_key: Credential,
    /// Key for access and guest tokens (Synapse's `macaroon_secret_key`).
    pub macaroon_secret_key: Credential,
    /// Key for the values in HTML forms (Synapse's `form_secret`).
    pub form_secret: Credential,
    /// Lets its holder create accounts (Synapse's `registration_shared_secret`).
    pub registration_shared_secret: Credential,
    /// Lets Synapse's processes trust each other (Synapse's `worker_replication_secret`).
    pub worker_replication_secret: Credential,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            generate: true,
            database_password: Credential {},
            redis_password: Credential {},
            signing_key: Credential {},
            macaroon_secret_key: Credential {},
            form_secret: Credential {},
            registration_shared_secret: Credential {},
            worker_replication_secret: Credential {},
        }
    }
}

/// A container image.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Image {
    /// Registry and repository.
    #[schemars(length(min = 1))]
    pub repository: String,
    /// Tag.
    pub tag: String,
    /// Digest (`sha256:…`), which counts above the tag. Default: none.
    #[schemars(regex(pattern = r"^(sha256:[0-9a-f]{64})?$"))]
    pub digest: String,
    /// When to pull it.
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub pull_policy: String,
}

impl Default for Image {
    fn default() -> Self {
        Self::new("", "")
    }
}

impl Image {
    pub(crate) fn new(repository: &str, tag: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: String::new(),
            pull_policy: "IfNotPresent".to_owned(),
        }
    }
}

/// Container images.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Images {
    /// Synapse, as its makers publish it. An empty tag stands for the version that this chart was made for.
    pub synapse: Image,
    /// matrix-stack: the router, and what configures each Synapse process. An empty tag stands for the chart's own version.
    pub matrix_stack: Image,
    /// Valkey.
    pub valkey: Image,
    /// `PgBouncer`.
    pub pgbouncer: Image,
    /// Secrets for registries, as `{name: NAME}`.
    pub pull_secrets: Vec<Object>,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            synapse: Image::new("ghcr.io/element-hq/synapse", ""),
            matrix_stack: Image::new("matrix-stack", ""),
            valkey: Image::new("docker.io/valkey/valkey", "9.0.8-alpine"),
            pgbouncer: Image::new("docker.io/edoburu/pgbouncer", "v1.24.1-p1"),
            pull_secrets: Vec::new(),
        }
    }
}

/// What holds for every pod. A component's `pod` takes the same fields; a mapping there is merged with the one here, and
/// anything else takes its place.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Pod {
    /// Labels of the pods.
    pub labels: Texts,
    /// Annotations of the pods.
    pub annotations: Texts,
    /// Environment variables of the main container, as Kubernetes has them. Those that the chart sets cannot be set.
    pub extra_env: Vec<Object>,
    /// More volumes, as Kubernetes has them.
    pub extra_volumes: Vec<Object>,
    /// Where the main container sees them.
    pub extra_volume_mounts: Vec<Object>,
    /// More init containers, before the chart's own.
    pub extra_init_containers: Vec<Object>,
    /// More containers beside the main one.
    pub extra_containers: Vec<Object>,
    /// Requests and limits of the main container. Default: by the sizing model, for each component.
    pub resources: Object,
    /// Labels of nodes to run on.
    pub node_selector: Texts,
    /// Tolerations, as Kubernetes has them.
    pub tolerations: Vec<Object>,
    /// Affinity, as Kubernetes has it.
    pub affinity: Object,
    /// Topology spread constraints, as Kubernetes has them, without `labelSelector`. Default: pods of one component on
    /// different nodes where that can be.
    pub topology_spread_constraints: Option<Vec<Object>>,
    /// Priority class.
    pub priority_class_name: String,
    /// Runtime class.
    pub runtime_class_name: String,
    /// Scheduler.
    pub scheduler_name: String,
    /// Entries of the pods' `/etc/hosts`, as Kubernetes has them.
    pub host_aliases: Vec<Object>,
    /// DNS configuration, as Kubernetes has it.
    pub dns_config: Object,
    /// The pods' security context. A field that is `null` is left away, as `OpenShift` wants it of users and groups.
    pub security_context: Object,
    /// The containers' security context.
    pub container_security_context: Object,
    /// How long a pod may take to stop, in seconds. Default: as long as the component needs.
    #[schemars(range(min = 1))]
    pub termination_grace_period_seconds: Option<u32>,
    /// Changes to the startup probe, such as `{failureThreshold: 1000}`.
    pub startup_probe: Object,
    /// Changes to the readiness probe.
    pub readiness_probe: Object,
    /// Changes to the liveness probe.
    pub liveness_probe: Object,
}

impl Default for Pod {
    fn default() -> Self {
        Self {
            labels: Texts::new(),
            annotations: Texts::new(),
            extra_env: Vec::new(),
            extra_volumes: Vec::new(),
            extra_volume_mounts: Vec::new(),
            extra_init_containers: Vec::new(),
            extra_containers: Vec::new(),
            resources: Object::new(),
            node_selector: Texts::new(),
            tolerations: Vec::new(),
            affinity: Object::new(),
            topology_spread_constraints: None,
            priority_class_name: String::new(),
            runtime_class_name: String::new(),
            scheduler_name: String::new(),
            host_aliases: Vec::new(),
            dns_config: Object::new(),
            security_context: object(json!({
                "runAsNonRoot": true,
                // Synapse's own in its image; any will do.
                "runAsUser": 991,
                "runAsGroup": 991,
                "fsGroup": 991,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": { "type": "RuntimeDefault" },
            })),
            container_security_context: object(json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            })),
            termination_grace_period_seconds: None,
            startup_probe: Object::new(),
            readiness_probe: Object::new(),
            liveness_probe: Object::new(),
        }
    }
}

/// A component.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Component {
    /// What holds for its pods, as in `pods`.
    #[schemars(with = "Pod")]
    pub pod: Object,
}

/// A worker group. How many processes it has, and how many at most, stands in `stack.workers`.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Group {
    /// What holds for its pods, as in `pods`.
    #[schemars(with = "Pod")]
    pub pod: Object,
    /// Scaling between `count` and `max_count` of `stack.workers.NAME`. Only groups whose roles are all readers can be scaled.
    pub autoscaling: Autoscaling,
}

/// Scaling at run time.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Autoscaling {
    /// By what: `hpa` (`HorizontalPodAutoscaler`) or `keda` (a `ScaledObject` of KEDA). Default: the group keeps its size.
    #[schemars(extend("enum" = ["", "hpa", "keda"]))]
    pub by: String,
    /// Target of the pods' mean processor use, in hundredths of what they request. With `hpa`, and where there are no
    /// `metrics`.
    #[schemars(range(min = 1))]
    pub target_cpu: Option<u32>,
    /// Metrics of the `HorizontalPodAutoscaler`, as Kubernetes has them, in place of `targetCpu`.
    pub metrics: Vec<Object>,
    /// How fast it scales, as Kubernetes has it (`scaleUp`, `scaleDown`).
    pub behavior: Object,
    /// Times at which to run more, for KEDA.
    pub cron: Vec<CronTrigger>,
    /// Prometheus queries to scale by, for KEDA.
    pub prometheus: Vec<PrometheusTrigger>,
    /// More triggers of KEDA's, as it has them.
    pub triggers: Vec<Object>,
}

/// Times at which to run more.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CronTrigger {
    /// When it begins, such as `0 7 * * 1-5`.
    pub start: String,
    /// When it ends.
    pub end: String,
    /// Of which time zone, such as `Europe/Berlin`.
    pub timezone: String,
    /// How many to run meanwhile.
    #[schemars(range(min = 1, max = 64))]
    pub replicas: u16,
}

/// A Prometheus query to scale by.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PrometheusTrigger {
    /// Prometheus's URL.
    pub server_address: String,
    /// The query, whose result is divided by the number of pods.
    pub query: String,
    /// What each pod should have of it.
    pub threshold: String,
}

/// The router.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Router {
    /// How many to run.
    #[schemars(range(min = 1, max = 64))]
    pub replicas: u16,
    /// How many threads each has to move bytes with.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: u16,
    /// The Service that Ingresses, Gateways and load balancers send requests to.
    pub service: RouterService,
    /// What holds for its pods, as in `pods`.
    #[schemars(with = "Pod")]
    pub pod: Object,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            replicas: 2,
            threads: 2,
            service: RouterService::default(),
            pod: object(json!({
                "resources": { "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "512Mi" } }
            })),
        }
    }
}

/// The router's Service.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct RouterService {
    /// Its type.
    #[schemars(rename = "type", extend("enum" = ["ClusterIP", "NodePort", "LoadBalancer"]))]
    #[serde(rename = "type")]
    pub kind: String,
    /// Its port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Its annotations.
    pub annotations: Texts,
    /// Its port on nodes, with `NodePort` or `LoadBalancer`. Default: the cluster chooses.
    #[schemars(range(min = 1))]
    pub node_port: Option<u16>,
    /// Whose requests a node answers. `Local` keeps clients' addresses.
    #[schemars(extend("enum" = ["", "Cluster", "Local"]))]
    pub external_traffic_policy: String,
    /// The class of the load balancer.
    pub load_balancer_class: String,
    /// Addresses that may reach the load balancer, such as `10.0.0.0/8`. Default: all.
    pub load_balancer_source_ranges: Vec<String>,
    /// Addresses outside of the cluster.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
}

impl Default for RouterService {
    fn default() -> Self {
        Self {
            kind: "ClusterIP".to_owned(),
            port: 80,
            annotations: Texts::new(),
            node_port: None,
            external_traffic_policy: String::new(),
            load_balancer_class: String::new(),
            load_balancer_source_ranges: Vec::new(),
            external_ips: Vec::new(),
        }
    }
}

/// `PgBouncer` between the processes and PostgreSQL, with sessions of their own for all processes: it spares PostgreSQL the
/// making of connections, not their number.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Pgbouncer {
    /// Whether to install it.
    pub enabled: bool,
    /// How many to run.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: u16,
    /// Options of `PgBouncer`'s section `[pgbouncer]`, above the chart's own.
    pub options: Texts,
    /// What holds for its pods, as in `pods`.
    #[schemars(with = "Pod")]
    pub pod: Object,
}

impl Default for Pgbouncer {
    fn default() -> Self {
        Self {
            enabled: false,
            replicas: 2,
            options: Texts::new(),
            pod: object(json!({
                "resources": { "requests": { "cpu": "50m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } }
            })),
        }
    }
}

/// A PostgreSQL cluster of `CloudNativePG`'s.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct CloudNativePg {
    /// Whether to install it. The operator must be there.
    pub enabled: bool,
    /// How many servers, one of which takes writes.
    #[schemars(range(min = 1, max = 9))]
    pub instances: u16,
    /// Disk space of each.
    #[schemars(length(min = 1))]
    pub size: String,
    /// Storage class. Default: the cluster's.
    pub storage_class: String,
    /// More of the Cluster's `spec`, above the chart's own.
    pub spec: Object,
}

impl Default for CloudNativePg {
    fn default() -> Self {
        Self {
            enabled: false,
            instances: 3,
            size: "20Gi".to_owned(),
            storage_class: String::new(),
            spec: Object::new(),
        }
    }
}

/// Where media files lie.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct MediaStorage {
    /// A volume for the processes that serve media.
    pub persistence: Persistence,
    /// Storage in S3, for which Synapse needs the module `synapse-s3-storage-provider`.
    pub s3: S3,
}

/// A volume.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Persistence {
    /// Whether media outlive pods in a volume. With `s3` there is none. Turn it off to try things out.
    pub enabled: bool,
    /// Its size.
    #[schemars(length(min = 1))]
    pub size: String,
    /// Its storage class. Default: the cluster's.
    pub storage_class: String,
    /// How it can be mounted. Where several processes serve media, as in the preset `full`, it must be `ReadWriteMany`.
    #[schemars(inner(regex(pattern = r"^ReadWrite(Once|Many|OncePod)$")), length(min = 1))]
    pub access_modes: Vec<String>,
    /// A claim that is there already, in place of a new one.
    pub existing_claim: String,
    /// Whether the claim outlives the release.
    pub keep: bool,
    /// Annotations of the claim.
    pub annotations: Texts,
    /// Labels of the volume to claim. Default: any.
    pub selector: Object,
    /// The volume to claim. Default: any.
    pub volume_name: String,
}

impl Default for Persistence {
    fn default() -> Self {
        Self {
            enabled: true,
            size: "20Gi".to_owned(),
            storage_class: String::new(),
            access_modes: vec!["ReadWriteOnce".to_owned()],
            existing_claim: String::new(),
            keep: true,
            annotations: Texts::new(),
            selector: Object::new(),
            volume_name: String::new(),
        }
    }
}

/// Media in S3.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct S3 {
    /// Whether media go to S3.
    pub enabled: bool,
    /// The bucket.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The server's URL. Default: Amazon's.
    pub endpoint: String,
    /// Access key. Without it, the pods' own identity counts.
    pub access_key: Credential,
    /// Secret key.
    pub secret_key: Credential,
    /// The module, which an init container installs with pip when a pod starts. Empty where the image has it already.
    pub package: String,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            enabled: false,
            bucket: String::new(),
            region: String::new(),
            endpoint: String::new(),
            access_key: Credential {},
            secret_key: Credential {},
            package: "synapse-s3-storage-provider==1.7.0".to_owned(),
        }
    }
}

/// An Ingress. Its hosts are that of `stack.public_base_url`, and the server name for the documents under
/// `/.well-known/matrix`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Ingress {
    /// Whether to install it.
    pub enabled: bool,
    /// Its class. Default: the cluster's.
    pub class_name: String,
    /// Its annotations, such as those of cert-manager.
    pub annotations: Texts,
    /// The Secret with the certificate. Default: that of `certificate`, else none.
    pub tls_secret: String,
    /// Whether the server name too is served, for `/.well-known/matrix`. Turn it off where something else serves it.
    pub well_known: bool,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            enabled: false,
            class_name: String::new(),
            annotations: Texts::new(),
            tls_secret: String::new(),
            well_known: true,
        }
    }
}

/// An `HTTPRoute`, for the same hosts as the Ingress.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct HttpRoute {
    /// Whether to install it.
    pub enabled: bool,
    /// The Gateways, as the Gateway API has them (`{name, namespace, sectionName}`).
    pub parent_refs: Vec<Object>,
    /// Its annotations.
    pub annotations: Texts,
    /// Whether the server name too is served, for `/.well-known/matrix`.
    pub well_known: bool,
}

impl Default for HttpRoute {
    fn default() -> Self {
        Self { enabled: false, parent_refs: Vec::new(), annotations: Texts::new(), well_known: true }
    }
}

/// A certificate of cert-manager's.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Certificate {
    /// Whether to ask for it.
    pub enabled: bool,
    /// Who issues it.
    pub issuer: Issuer,
}

impl Default for Certificate {
    fn default() -> Self {
        Self { enabled: false, issuer: Issuer { name: String::new(), kind: "ClusterIssuer".to_owned() } }
    }
}

/// An issuer of cert-manager's.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Issuer {
    /// Its name.
    pub name: String,
    /// Its kind.
    #[schemars(extend("enum" = ["ClusterIssuer", "Issuer"]))]
    pub kind: String,
}

/// Prometheus and Grafana.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Monitoring {
    /// `PodMonitors` of the Prometheus operator.
    pub pod_monitors: PodMonitors,
    /// Alerts, as a `PrometheusRule` of the Prometheus operator.
    pub alerts: Labelled,
    /// Grafana dashboards, as `ConfigMaps` that Grafana's sidecar finds.
    pub dashboards: Dashboards,
}

/// `PodMonitors`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct PodMonitors {
    /// Whether to install them.
    pub enabled: bool,
    /// Their labels, by which Prometheus finds them.
    pub labels: Texts,
    /// How often to ask.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h)$"))]
    pub interval: String,
    /// Relabelings of metrics, as the operator has them.
    pub metric_relabelings: Vec<Object>,
}

impl Default for PodMonitors {
    fn default() -> Self {
        Self {
            enabled: false,
            labels: Texts::new(),
            interval: "30s".to_owned(),
            metric_relabelings: Vec::new(),
        }
    }
}

/// Something that is found by labels.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Labelled {
    /// Whether to install it.
    pub enabled: bool,
    /// Its labels.
    pub labels: Texts,
}

/// Grafana dashboards.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Dashboards {
    /// Whether to install them.
    pub enabled: bool,
    /// Labels by which the sidecar finds them.
    pub labels: Texts,
    /// Annotations, such as the sidecar's for a folder.
    pub annotations: Texts,
}

impl Default for Dashboards {
    fn default() -> Self {
        let labels = Texts::from([("grafana_dashboard".to_owned(), "1".to_owned())]);
        Self { enabled: false, labels, annotations: Texts::new() }
    }
}

/// Who may reach which pod: replication and metrics only Synapse's own pods and those that scrape, Valkey and `PgBouncer`
/// only Synapse, Synapse's requests only the router.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct NetworkPolicies {
    /// Whether to install them.
    pub enabled: bool,
    /// Who may read metrics, as peers of a `NetworkPolicy`.
    pub metrics_from: Vec<Object>,
    /// Who may send requests to the router, as peers of a `NetworkPolicy`. Default: all.
    pub requests_from: Vec<Object>,
}

impl Default for NetworkPolicies {
    fn default() -> Self {
        let monitoring = json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } });
        Self { enabled: true, metrics_from: vec![object(monitoring)], requests_from: Vec::new() }
    }
}

/// The addresses of Services.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Services {
    /// Whether they have addresses of both families. Default: as the cluster does it.
    #[schemars(extend("enum" = ["", "SingleStack", "PreferDualStack", "RequireDualStack"]))]
    pub ip_family_policy: String,
    /// Their families, in order. Default: as the cluster does it.
    #[schemars(inner(regex(pattern = r"^IPv[46]$")), length(max = 2))]
    pub ip_families: Vec<String>,
}

/// How processes are restarted when the stack changes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct Rollout {
    /// Whether `matrix-stack rollout` restarts what must restart, in the right order. Without it, every Synapse pod
    /// restarts with each change that may concern it.
    pub enabled: bool,
    /// What holds for its pod, as in `pods`.
    #[schemars(with = "Pod")]
    pub pod: Object,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            enabled: false,
            pod: object(json!({
                "resources": { "requests": { "cpu": "20m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } }
            })),
        }
    }
}

/// The pods' service accounts. None of them may do anything, but that of the job that makes secrets.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(default)]
pub struct ServiceAccounts {
    /// Whether to create them. Else the pods run as the namespace's `default`.
    pub create: bool,
    /// Their annotations, such as a cloud's for access to its storage.
    pub annotations: Texts,
}

impl Default for ServiceAccounts {
    fn default() -> Self {
        Self { create: true, annotations: Texts::new() }
    }
}
