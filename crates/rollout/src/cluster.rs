//! The cluster: what is in it, and how a step is done. Which requests this takes is said once, in [`RULES`].

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_core::Stream as _;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{self, ConfigMap, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::next::{Observed, Pod, Step, Uncertain, Workload};
use crate::wanted::{Key, Kind, Stack};

/// The label that says which release an object belongs to.
pub const RELEASE_LABEL: &str = "app.kubernetes.io/instance";

/// The label of workloads, and of their pods, that says which of the stack's groups they run. Nothing else carries it.
pub const GROUP_LABEL: &str = "matrix-stack.io/group";

/// The annotation of pod templates that says which configuration the pods have.
pub const CONFIGURATION: &str = "matrix-stack.io/configuration";

/// The annotation of a workload that is held: how many pods it had.
pub const HELD: &str = "matrix-stack.io/held";

/// The annotation of the applied stack that says what was uncertain when it was written.
pub const UNCERTAIN: &str = "matrix-stack.io/uncertain";

/// The key of both `ConfigMap`s under which the stack stands.
pub const STACK_KEY: &str = "stack.yaml";

/// As whom the API server knows what is ours.
pub const FIELD_MANAGER: &str = "matrix-stack-rollout";

/// What a role has to allow, in the release's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The API group; empty for the core's.
    pub group: &'static str,
    /// The resource, as rules of a `Role` write it.
    pub resource: &'static str,
    /// The verbs.
    pub verbs: &'static [&'static str],
    /// What for.
    pub purpose: &'static str,
}

/// Everything that a rollout asks of the API server.
pub const RULES: [Rule; 8] = [
    Rule {
        group: "",
        resource: "configmaps",
        verbs: &["get", "watch", "create", "patch"],
        purpose: "read the desired stack and follow it; write the applied one",
    },
    Rule { group: "", resource: "pods", verbs: &["list"], purpose: "see which pods still run" },
    Rule {
        group: "apps",
        resource: "statefulsets",
        verbs: &["list", "patch"],
        purpose: "see how they are; annotate their pods' template",
    },
    Rule {
        group: "apps",
        resource: "statefulsets/scale",
        verbs: &["patch"],
        purpose: "set how many pods they have",
    },
    Rule {
        group: "apps",
        resource: "deployments",
        verbs: &["get", "list", "patch"],
        purpose: "the same for pools",
    },
    Rule {
        group: "apps",
        resource: "deployments/scale",
        verbs: &["patch"],
        purpose: "stop a pool, and start it again",
    },
    Rule { group: "events.k8s.io", resource: "events", verbs: &["create"], purpose: "say what happened" },
    Rule {
        group: "coordination.k8s.io",
        resource: "leases",
        verbs: &["get", "create", "update"],
        purpose: "let one rollout act at a time",
    },
];

/// The names that a release's objects have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The release.
    pub release: String,
    /// The `ConfigMap` with the desired stack.
    pub desired: String,
    /// The `ConfigMap` with the applied stack, and the lease of whoever acts.
    pub applied: String,
}

/// The cluster could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A request failed.
    #[error("cannot {action}: {}{}", describe(.source), mend(.source))]
    Request {
        /// What it was for.
        action: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Two workloads of one kind for one group.
    #[error("`{first}` and `{second}` both carry the label {GROUP_LABEL} of {key}; remove one of them")]
    Ambiguous {
        /// Which one there should be.
        key: Key,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
}

fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error { status.message.clone() } else { error.to_string() }
}

fn mend(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; let the service account do it: docs/rollout.md says what it needs"
        }
        kube::Error::Api(_) => "",
        _ => "; see that the API server can be reached from here",
    }
}

pub(crate) fn failed(action: impl fmt::Display) -> impl FnOnce(kube::Error) -> ClusterError {
    move |source| ClusterError::Request { action: action.to_string(), source: Box::new(source) }
}

/// What was observed, and by which versions of the objects.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) observed: Observed,
    /// Which objects the workloads are, by kind and name: a step is for that one, and not for one that was made since.
    uids: BTreeMap<(Kind, String), String>,
    desired: Option<ObjectMeta>,
    applied: Option<ObjectMeta>,
}

/// What is told as an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Refused,
    Applied,
    Complete,
}

/// A release in a namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) names: Names,
    configmaps: Api<ConfigMap>,
    sets: Api<StatefulSet>,
    deployments: Api<Deployment>,
    pods: Api<v1::Pod>,
    events: Api<Event>,
    /// The stacks that were read last.
    read: Arc<Mutex<Vec<Arc<Stack>>>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("namespace", &self.namespace)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// The cluster that the environment means: that of the pod, or of the current context of `~/.kube/config`. The
    /// namespace is that one's unless one is named.
    pub async fn connect(namespace: Option<String>, names: Names) -> Result<Self, ClusterError> {
        let client = Client::try_default().await.map_err(failed("find out which cluster to ask"))?;
        Ok(Self::new(client, namespace, names))
    }

    /// The cluster of this client.
    pub fn new(client: Client, namespace: Option<String>, names: Names) -> Self {
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Self {
            configmaps: Api::namespaced(client.clone(), &namespace),
            sets: Api::namespaced(client.clone(), &namespace),
            deployments: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            events: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            names,
            read: Arc::default(),
        }
    }

    /// Looks at everything that counts.
    ///
    /// # Errors
    /// A request that failed, or two workloads that would be the same one.
    pub async fn observe(&self) -> Result<Observed, ClusterError> {
        Ok(self.see().await?.observed)
    }

    pub(crate) async fn see(&self) -> Result<Seen, ClusterError> {
        let desired = self.config_map(&self.names.desired).await?;
        let applied = self.config_map(&self.names.applied).await?;
        let ours =
            ListParams::default().labels(&format!("{RELEASE_LABEL}={},{GROUP_LABEL}", self.names.release));
        // The pods come last: that a workload has none must not be older than that it shall have none.
        let sets = self.sets.list(&ours).await.map_err(failed("list the StatefulSets"))?;
        let deployments = self.deployments.list(&ours).await.map_err(failed("list the Deployments"))?;
        let pods = self.pods.list(&ours).await.map_err(failed("list the pods"))?;
        let workloads: Vec<Workload> =
            sets.iter().map(of_set).chain(deployments.iter().map(of_deployment)).collect();
        let mut known: BTreeMap<&Key, &Workload> = BTreeMap::new();
        for workload in &workloads {
            if let Some(other) = known.insert(&workload.key, workload) {
                let (first, second) = (other.name.clone(), workload.name.clone());
                return Err(ClusterError::Ambiguous { key: workload.key.clone(), first, second });
            }
        }
        let observed = Observed {
            desired: desired.as_ref().and_then(|map| self.read(map)),
            applied: applied.as_ref().and_then(|map| self.read(map)),
            uncertain: applied.as_ref().map(|map| read_uncertain(&map.metadata)).unwrap_or_default(),
            workloads,
            pods: pods.iter().filter_map(of_pod).collect(),
        };
        let uid = |kind, metadata: &ObjectMeta| Some(((kind, metadata.name.clone()?), metadata.uid.clone()?));
        let uids = sets.iter().filter_map(|set| uid(Kind::StatefulSet, &set.metadata));
        let uids =
            uids.chain(deployments.iter().filter_map(|d| uid(Kind::Deployment, &d.metadata))).collect();
        Ok(Seen {
            uids,
            observed,
            desired: desired.map(|map| map.metadata),
            applied: applied.map(|map| map.metadata),
        })
    }

    /// The stack that stands in a `ConfigMap`, read but once.
    fn read(&self, map: &ConfigMap) -> Option<Arc<Stack>> {
        let text = map.data.as_ref()?.get(STACK_KEY)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stack) = read.iter().find(|stack| stack.text == *text) {
            return Some(stack.clone());
        }
        let stack = Arc::new(Stack::read(&format!("the ConfigMap `{}`", map.name_any()), text));
        read.truncate(1);
        read.insert(0, stack.clone());
        Some(stack)
    }

    async fn config_map(&self, name: &str) -> Result<Option<ConfigMap>, ClusterError> {
        self.configmaps.get_opt(name).await.map_err(failed(format_args!("read the ConfigMap `{name}`")))
    }

    /// Does a step.
    pub(crate) async fn take(&self, step: &Step, seen: &Seen) -> Result<(), ClusterError> {
        let failed = failed(step);
        let uid = |key: &Key, name: &String| seen.uids.get(&(key.kind, name.clone()));
        match step {
            Step::Mark { key, name, configuration, held } => {
                let mut ours = mark(key.kind, name, configuration.as_deref(), *held);
                ours["metadata"]["uid"] = json!(uid(key, name));
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                match key.kind {
                    Kind::StatefulSet => {
                        self.sets.patch(name, &parameters, &Patch::Apply(ours)).await.map(drop)
                    }
                    Kind::Deployment => {
                        self.deployments.patch(name, &parameters, &Patch::Apply(ours)).await.map(drop)
                    }
                }
            }
            Step::Scale { key, name, replicas } => {
                let patch = Patch::Merge(
                    json!({ "metadata": { "uid": uid(key, name) }, "spec": { "replicas": replicas } }),
                );
                let parameters = ours();
                match key.kind {
                    Kind::StatefulSet => self.sets.patch_scale(name, &parameters, &patch).await.map(drop),
                    Kind::Deployment => {
                        self.deployments.patch_scale(name, &parameters, &patch).await.map(drop)
                    }
                }
            }
            Step::Release { name, .. } => self.release(name).await,
            Step::Apply { text, uncertain } => self.apply(text, uncertain, seen).await,
        }
        .map_err(failed)
    }

    /// Strikes ourselves from the list of those who say how many pods a Deployment has. Else the API server would
    /// keep Helm from changing that number later.
    async fn release(&self, name: &str) -> Result<(), kube::Error> {
        let mut metadata = self.deployments.get(name).await?.metadata;
        let fields = metadata.managed_fields.get_or_insert_default();
        fields.retain(|entry| !is_our_scale(entry.manager.as_deref(), entry.subresource.as_deref()));
        // Somebody who changed the list meanwhile makes this fail; then it is tried again.
        let version = &metadata.resource_version;
        let patch = json!({ "metadata": { "managedFields": fields, "resourceVersion": version } });
        self.deployments.patch(name, &ours(), &Patch::Merge(patch)).await.map(drop)
    }

    async fn apply(&self, text: &str, uncertain: &Uncertain, seen: &Seen) -> Result<(), kube::Error> {
        let name = &self.names.applied;
        let mut metadata = json!({
            "name": name,
            "labels": { RELEASE_LABEL: self.names.release, "app.kubernetes.io/managed-by": FIELD_MANAGER },
            "annotations": { UNCERTAIN: write_uncertain(uncertain) },
        });
        if let Some(version) = seen.applied.as_ref().and_then(|applied| applied.resource_version.as_ref()) {
            metadata["resourceVersion"] = version.as_str().into();
        }
        // It goes with the release. Should it go by accident, it is written anew, and nothing restarts for that.
        if let Some(owner) = &seen.desired {
            metadata["ownerReferences"] =
                json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": owner.name, "uid": owner.uid }]);
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": { STACK_KEY: text },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.configmaps.patch(name, &parameters, &Patch::Apply(map)).await.map(drop)
    }

    /// Waits until the desired stack changes, or as long as this.
    pub(crate) async fn wait(&self, seen: &Seen, longest: Duration) {
        let change = async {
            let fields = format!("metadata.name={}", self.names.desired);
            let seconds = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX).max(1);
            let parameters = WatchParams::default().fields(&fields).timeout(seconds);
            let version = seen.desired.as_ref().and_then(|desired| desired.resource_version.as_deref());
            match self.configmaps.watch(&parameters, version.unwrap_or("0")).await {
                // Whatever it says is a reason to look again.
                Ok(events) => {
                    let mut events = pin!(events);
                    if let Some(Ok(_)) =
                        std::future::poll_fn(|context| events.as_mut().poll_next(context)).await
                    {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot watch; looking now and then"),
            }
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(longest, change).await;
    }

    /// Tells something as an event of the `ConfigMap` with the desired stack, once.
    pub(crate) async fn tell(
        &self,
        seen: &Seen,
        news: News,
        note: &str,
        by: &str,
    ) -> Result<(), ClusterError> {
        let Some(about) = &seen.desired else { return Ok(()) };
        let (type_, action) = match news {
            News::Refused => ("Warning", "Plan"),
            News::Applied | News::Complete => ("Normal", "Rollout"),
        };
        let reason = format!("{news:?}");
        let hash = Sha256::digest(format!("{reason}\n{:?}\n{note}", about.resource_version));
        let event = Event {
            metadata: ObjectMeta {
                // The same news has the same name, so that it is told once.
                name: Some(format!("{}.{}", self.names.desired, hex::encode(&hash[..8]))),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(action.to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            // What the API server takes at most, in bytes.
            note: Some(cut(note, 1024)),
            reason: Some(reason),
            regarding: Some(ObjectReference { namespace: Some(self.namespace.clone()), ..reference(about) }),
            reporting_controller: Some(format!("matrix-stack.io/{FIELD_MANAGER}")),
            reporting_instance: Some(cut(by, 128)),
            type_: Some(type_.to_owned()),
            ..Event::default()
        };
        match self.events.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            other => other.map(drop).map_err(failed("write an event")),
        }
    }
}

/// The beginning of a text, at most so many bytes of it.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

fn ours() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn reference(metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// What is ours of a workload, whole: the API server removes what it knows as ours and does not find here.
fn mark(kind: Kind, name: &str, configuration: Option<&str>, held: Option<u32>) -> Value {
    let mut object =
        json!({ "apiVersion": "apps/v1", "kind": kind.to_string(), "metadata": { "name": name } });
    if let Some(held) = held {
        object["metadata"]["annotations"] = json!({ HELD: held.to_string() });
    }
    if let Some(configuration) = configuration {
        object["spec"] =
            json!({ "template": { "metadata": { "annotations": { CONFIGURATION: configuration } } } });
    }
    object
}

fn is_our_scale(manager: Option<&str>, subresource: Option<&str>) -> bool {
    manager == Some(FIELD_MANAGER) && subresource == Some("scale")
}

/// `KIND/GROUP CONFIGURATION`, a line each.
fn write_uncertain(uncertain: &Uncertain) -> String {
    let line = |(key, says): (&Key, &String)| format!("{}/{} {says}\n", key.kind, key.group);
    uncertain.iter().map(line).collect()
}

fn read_uncertain(metadata: &ObjectMeta) -> Uncertain {
    let text = annotation(metadata, UNCERTAIN).unwrap_or_default();
    let read = |line: &str| {
        let (key, says) = line.split_once(' ')?;
        let (kind, group) = key.split_once('/')?;
        let kind =
            [Kind::StatefulSet, Kind::Deployment].into_iter().find(|known| known.to_string() == kind)?;
        Some((Key { kind, group: group.to_owned() }, says.to_owned()))
    };
    text.lines().filter_map(read).collect()
}

/// A count of Kubernetes', none of which is negative.
fn count(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

/// Which configuration the pods of a template have.
fn configuration(template: &v1::PodTemplateSpec) -> Option<String> {
    template.metadata.as_ref().and_then(|metadata| annotation(metadata, CONFIGURATION))
}

fn of_set(set: &StatefulSet) -> Workload {
    let (spec, status) = (&set.spec, set.status.as_ref());
    Workload {
        replicas: count(spec.replicas.or(Some(1))),
        configuration: configuration(&spec.template),
        seen: status.and_then(|status| status.observed_generation) >= set.metadata.generation,
        pods: status.map_or(0, |status| count(Some(status.replicas))),
        updated: count(status.and_then(|status| status.updated_replicas)),
        ready: count(status.and_then(|status| status.ready_replicas)),
        ..common(Kind::StatefulSet, set)
    }
}

fn of_deployment(deployment: &Deployment) -> Workload {
    let (spec, status) = (&deployment.spec, deployment.status.as_ref());
    Workload {
        replicas: count(spec.replicas.or(Some(1))),
        configuration: configuration(&spec.template),
        seen: status.and_then(|status| status.observed_generation) >= deployment.metadata.generation,
        pods: count(status.and_then(|status| status.replicas)),
        updated: count(status.and_then(|status| status.updated_replicas)),
        ready: count(status.and_then(|status| status.ready_replicas)),
        ..common(Kind::Deployment, deployment)
    }
}

/// What is found in the same place whatever the kind.
fn common<K: Resource<DynamicType = ()>>(kind: Kind, object: &K) -> Workload {
    let metadata = object.meta();
    let fields = metadata.managed_fields.iter().flatten();
    Workload {
        key: key(kind, metadata),
        name: object.name_any(),
        configuration: None,
        held: annotation(metadata, HELD).map(|held| held.parse().unwrap_or(1)),
        replicas: 0,
        seen: false,
        pods: 0,
        updated: 0,
        ready: 0,
        scale_is_ours: fields
            .into_iter()
            .any(|entry| is_our_scale(entry.manager.as_deref(), entry.subresource.as_deref())),
    }
}

fn key(kind: Kind, metadata: &ObjectMeta) -> Key {
    let group = metadata.labels.as_ref().and_then(|labels| labels.get(GROUP_LABEL));
    Key { kind, group: group.cloned().unwrap_or_default() }
}

fn annotation(metadata: &ObjectMeta, name: &str) -> Option<String> {
    metadata.annotations.as_ref()?.get(name).cloned()
}

/// A pod, unless all of its processes have ended or it is no workload's.
fn of_pod(pod: &v1::Pod) -> Option<Pod> {
    let owner =
        pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let kind = match owner.kind.as_str() {
        "StatefulSet" => Kind::StatefulSet,
        "ReplicaSet" => Kind::Deployment,
        _ => return None,
    };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let configuration = annotation(&pod.metadata, CONFIGURATION);
    Some(Pod { key: key(kind, &pod.metadata), name: pod.name_any(), configuration })
}
