//! A stand-in for Kubernetes: the few resources and verbs that a rollout needs, in memory, and controllers that play out
//! one thing after each request.
//!
//! It is *not* Kubernetes, and was written from the same documentation as the code that it tests. It shows that the real
//! client's requests are well-formed for what the documentation says of server-side apply, merge patches, the scale
//! subresource, optimistic locking, selectors and required fields; that no verb is used that [`rollout::RULES`] does not
//! name; and that a rollout which is killed at any request goes on from there. It does not show that a real API server
//! accepts the same, nor how admission, defaulting, quotas, watch caches, slow kubelets or the real controllers behave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::events::v1::Event;
use rollout::{CONFIGURATION, GROUP_LABEL, Key, Kind, RELEASE_LABEL, RULES, STACK_KEY};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::stacks::{Process, STACKS, agree};

/// The namespace that there is.
pub(crate) const NAMESPACE: &str = "matrix";

/// The release in it.
pub(crate) const RELEASE: &str = "synapse";

/// Resources by plural name: group and version, kind.
const RESOURCES: [(&str, &str, &str); 6] = [
    ("configmaps", "v1", "ConfigMap"),
    ("pods", "v1", "Pod"),
    ("statefulsets", "apps/v1", "StatefulSet"),
    ("deployments", "apps/v1", "Deployment"),
    ("leases", "coordination.k8s.io/v1", "Lease"),
    ("events", "events.k8s.io/v1", "Event"),
];

/// Why a request fails: status code, reason and message.
#[derive(Debug)]
pub(crate) struct Failure(u16, &'static str, String);

type Answer = Result<Value, Failure>;

fn failure<T>(code: u16, reason: &'static str, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(code, reason, message.into()))
}

/// When a rollout is killed: with so many requests made, before or after the last of them had its effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) request: usize,
    pub(crate) after: bool,
}

/// Everything that there is. Clones are snapshots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    objects: BTreeMap<(&'static str, String), Value>,
    version: u64,
    /// With which of the stacks a pod's processes run.
    runs: BTreeMap<String, usize>,
    /// How often pods of a group started.
    pub(crate) starts: BTreeMap<String, u32>,
    pub(crate) requests: usize,
    pub(crate) kill: Option<Kill>,
    /// Verb, API group, resource: what was asked.
    pub(crate) asked: BTreeSet<(&'static str, &'static str, String)>,
}

impl Cluster {
    /// Helm brings a release's desired stack, and the workloads of its groups.
    pub(crate) fn helm(&mut self, stack: usize) {
        let wanted = &STACKS[stack].target().wanted;
        self.put(
            "configmaps",
            json!({
                "metadata": { "name": "synapse-stack-desired" },
                "data": { STACK_KEY: STACKS[stack].read.text },
            }),
        );
        let kept: BTreeSet<(&str, String)> =
            wanted.iter().map(|w| (plural(w.key.kind), w.key.group.replace('_', "-"))).collect();
        self.objects.retain(|(resource, name), _| {
            !matches!(*resource, "statefulsets" | "deployments") || kept.contains(&(*resource, name.clone()))
        });
        for wanted in wanted {
            let labels = json!({ RELEASE_LABEL: RELEASE, GROUP_LABEL: wanted.key.group });
            let mut spec = json!({
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [{ "name": "synapse", "image": "synapse" }] },
                },
            });
            match wanted.key.kind {
                Kind::StatefulSet => spec["ordinals"] = json!({ "start": 1 }),
                // This one Helm decides about.
                Kind::Deployment => spec["replicas"] = 2.into(),
            }
            let name = wanted.key.group.replace('_', "-");
            let place = (plural(wanted.key.kind), name.clone());
            if !self.objects.contains_key(&place) {
                self.put(place.0, json!({ "metadata": { "name": name, "labels": labels }, "spec": spec }));
            }
        }
    }

    /// Puts an object there that nobody asks about.
    fn put(&mut self, resource: &'static str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let (_, version, kind) = RESOURCES.into_iter().find(|(plural, ..)| *plural == resource).unwrap();
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        strict(resource, &object).unwrap();
        self.store(resource, &name, object);
    }

    /// An object, if it is there.
    pub(crate) fn object(&self, resource: &'static str, name: &str) -> Option<&Value> {
        self.objects.get(&(resource, name.to_owned()))
    }

    /// The names of the objects of a resource.
    pub(crate) fn names(&self, resource: &str) -> Vec<&str> {
        self.objects.keys().filter(|(plural, _)| *plural == resource).map(|(_, name)| name.as_str()).collect()
    }

    /// With which stacks the processes run.
    pub(crate) fn running(&self) -> BTreeSet<usize> {
        self.runs.values().copied().collect()
    }

    /// Writes an object that was asked for, unless it is not one.
    fn write(&mut self, asked: &Asked, name: &str, mut object: Value) -> Answer {
        clean(&mut object);
        strict(asked.resource, &object)?;
        Ok(self.store(asked.resource, name, object))
    }

    /// Writes an object. One that is as before stays so.
    fn store(&mut self, resource: &'static str, name: &str, mut object: Value) -> Value {
        let place = (resource, name.to_owned());
        let before = self.objects.get(&place);
        let metadata = &mut object["metadata"];
        metadata["namespace"] = NAMESPACE.into();
        if let Some(before) = before {
            for field in ["uid", "resourceVersion", "generation"] {
                metadata[field] = before["metadata"][field].clone();
            }
        } else {
            metadata["uid"] = format!("uid-{}", self.version).into();
        }
        if matches!(resource, "statefulsets" | "deployments") {
            if object["spec"]["replicas"].is_null() {
                object["spec"]["replicas"] = 1.into();
            }
            if before.is_none_or(|before| before["spec"] != object["spec"]) {
                let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                object["metadata"]["generation"] = generation.into();
            }
        }
        clean(&mut object);
        if before != Some(&object) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.objects.insert(place, object.clone());
        }
        object
    }

    fn request(
        &mut self,
        method: &Method,
        path: &str,
        query: &Map<String, Value>,
        kind: &str,
        body: &[u8],
    ) -> Answer {
        let asked = Asked::of(path)?;
        let verb = match (method.as_str(), &asked.name) {
            ("GET", Some(_)) => "get",
            ("GET", None) if query.contains_key("watch") => "watch",
            ("GET", None) => "list",
            ("POST", None) => "create",
            ("PUT", Some(_)) => "update",
            ("PATCH", Some(_)) => "patch",
            _ => return failure(405, "MethodNotAllowed", format!("{method} {path}")),
        };
        self.allow(verb, &asked)?;
        match verb {
            "get" => self.find(&asked).cloned(),
            "list" | "watch" => self.list(&asked, query),
            _ => {
                let body: Value = serde_json::from_slice(body)
                    .map_err(|error| Failure(400, "BadRequest", format!("the body is no JSON: {error}")))?;
                match (verb, kind) {
                    ("create", "application/json") => self.create(&asked, body),
                    ("update", "application/json") => self.update(&asked, body),
                    ("patch", "application/merge-patch+json") => self.merge(&asked, query, &body),
                    ("patch", "application/apply-patch+yaml") => self.apply(&asked, query, &body),
                    _ => failure(415, "UnsupportedMediaType", format!("{verb} with {kind}")),
                }
            }
        }
    }

    /// Lets nothing be done that the rules do not name.
    fn allow(&mut self, verb: &'static str, asked: &Asked) -> Result<(), Failure> {
        let group = asked.version.split_once('/').map_or("", |(group, _)| group);
        let resource =
            if asked.scale { format!("{}/scale", asked.resource) } else { asked.resource.to_owned() };
        let allowed =
            RULES.iter().any(|r| r.group == group && r.resource == resource && r.verbs.contains(&verb));
        if !allowed {
            return failure(403, "Forbidden", format!("{verb} {group} {resource} is in no rule"));
        }
        self.asked.insert((verb, group, resource));
        Ok(())
    }

    fn find(&self, asked: &Asked) -> Result<&Value, Failure> {
        let name = asked.name.as_deref().unwrap_or_default();
        self.object(asked.resource, name)
            .ok_or_else(|| Failure(404, "NotFound", format!("{} \"{name}\" not found", asked.resource)))
    }

    fn list(&self, asked: &Asked, query: &Map<String, Value>) -> Answer {
        let text = |name: &str| query.get(name).and_then(Value::as_str).unwrap_or_default();
        let fields = text("fieldSelector").strip_prefix("metadata.name=");
        if !text("fieldSelector").is_empty() && fields.is_none() {
            return failure(400, "BadRequest", "this field cannot be selected by");
        }
        let selected = |object: &Value| {
            let labels = &object["metadata"]["labels"];
            fields.is_none_or(|name| object["metadata"]["name"] == name)
                && text("labelSelector").split(',').filter(|term| !term.is_empty()).all(|term| {
                    match term.split_once('=') {
                        Some((label, value)) => labels[label] == value,
                        None => !labels[term].is_null(),
                    }
                })
        };
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|((resource, _), object)| *resource == asked.resource && selected(object))
            .map(|(_, object)| object)
            .collect();
        Ok(json!({
            "apiVersion": asked.version,
            "kind": format!("{}List", asked.kind),
            "metadata": { "resourceVersion": self.version.to_string() },
            "items": items,
        }))
    }

    fn create(&mut self, asked: &Asked, object: Value) -> Answer {
        asked.is_one(&object)?;
        let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
            return failure(422, "Invalid", "metadata.name: required");
        };
        if self.object(asked.resource, &name).is_some() {
            return failure(409, "AlreadyExists", format!("{} \"{name}\" already exists", asked.resource));
        }
        self.write(asked, &name, object)
    }

    fn update(&mut self, asked: &Asked, object: Value) -> Answer {
        asked.is_one(&object)?;
        let before = self.find(asked)?;
        let name = asked.name.clone().unwrap_or_default();
        if object["metadata"]["name"] != name.as_str() {
            return failure(400, "BadRequest", "the name of the object is not that of the address");
        }
        same_version(&object, before)?;
        self.write(asked, &name, object)
    }

    fn merge(&mut self, asked: &Asked, query: &Map<String, Value>, patch: &Value) -> Answer {
        if query.contains_key("force") {
            return failure(422, "Invalid", "force: forbidden for a patch that is not apply");
        }
        let before = self.find(asked)?.clone();
        same_version(patch, &before)?;
        let name = asked.name.clone().unwrap_or_default();
        let mut object = before.clone();
        if asked.scale {
            // What the patch changes is a `Scale`, of which nothing else reaches the workload.
            let mut scale = scale(&before);
            merge(&mut scale, patch);
            typed::<Scale>(&scale)?;
            object["spec"]["replicas"] = scale["spec"]["replicas"].clone();
        } else {
            merge(&mut object, patch);
        }
        if object["metadata"]["managedFields"] == before["metadata"]["managedFields"] {
            let manager = query.get("fieldManager").and_then(Value::as_str).unwrap_or("unknown");
            own_changes(&before, &mut object, manager, asked);
        }
        let object = self.write(asked, &name, object)?;
        Ok(if asked.scale { scale(&object) } else { object })
    }

    /// Server-side apply, of objects in which what is applied is no list but as a whole.
    fn apply(&mut self, asked: &Asked, query: &Map<String, Value>, applied: &Value) -> Answer {
        let Some(manager) = query.get("fieldManager").and_then(Value::as_str) else {
            return failure(422, "Invalid", "fieldManager: required for apply");
        };
        let force = query.get("force").and_then(Value::as_str) == Some("true");
        asked.is_one(applied)?;
        let name = asked.name.clone().unwrap_or_default();
        if applied["metadata"]["name"] != name.as_str() {
            return failure(400, "BadRequest", "metadata.name: must be that of the address");
        }
        if !applied["metadata"]["managedFields"].is_null() {
            return failure(400, "BadRequest", "metadata.managedFields must be nil");
        }
        let before = self.object(asked.resource, &name).cloned();
        match &before {
            None => self.allow("create", asked)?,
            Some(before) => same_version(applied, before)?,
        }
        let mut object = before.unwrap_or_else(
            || json!({ "apiVersion": asked.version, "kind": asked.kind, "metadata": { "name": name } }),
        );
        let mut entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let wished = leaves(applied);
        let is_mine = |entry: &Value| entry["manager"] == manager && entry["operation"] == "Apply";
        // Others who own what is to be changed.
        for entry in entries.iter_mut().filter(|entry| !is_mine(entry)) {
            let mut theirs = owned(entry);
            let taken: Vec<_> = theirs
                .iter()
                .filter(|path| wished.get(*path).is_some_and(|value| at(&object, path) != Some(value)))
                .cloned()
                .collect();
            if !taken.is_empty() && !force {
                let message = format!("conflict with {}: {taken:?}", entry["manager"]);
                return failure(409, "Conflict", message);
            }
            theirs.retain(|path| !taken.contains(path));
            entry["fieldsV1"] = fields(&theirs);
        }
        // What was ours, is not wished any more and is nobody else's goes.
        let mine = entries.iter().find(|entry| is_mine(entry)).map(owned).unwrap_or_default();
        for path in mine.iter().filter(|path| !wished.contains_key(*path)) {
            if !entries.iter().any(|entry| !is_mine(entry) && owned(entry).contains(path)) {
                remove(&mut object, path);
            }
        }
        for (path, value) in &wished {
            set(&mut object, path, value.clone());
        }
        entries.retain(|entry| !is_mine(entry) && entry["fieldsV1"] != json!({}));
        entries.push(json!({
            "manager": manager,
            "operation": "Apply",
            "apiVersion": asked.version,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields(&wished.into_keys().collect()),
        }));
        object["metadata"]["managedFields"] = entries.into();
        self.write(asked, &name, object)
    }

    /// The controllers and the kubelet do one thing for each object.
    pub(crate) fn tick(&mut self) {
        let pods: Vec<(String, Value)> = self.of("pods");
        for (name, pod) in pods {
            self.live(&name, pod);
        }
        for (resource, kind) in [("statefulsets", Kind::StatefulSet), ("deployments", Kind::Deployment)] {
            for (name, workload) in self.of(resource) {
                self.control(kind, &name, workload);
            }
        }
        // What deleted workloads left is collected.
        for (name, pod) in self.of("pods") {
            let kind = if pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet" {
                "statefulsets"
            } else {
                "deployments"
            };
            let group = pod["metadata"]["labels"][GROUP_LABEL].as_str().unwrap().replace('_', "-");
            if self.object(kind, &group).is_none() {
                self.end(&name);
            }
        }
        self.check();
    }

    fn of(&self, resource: &str) -> Vec<(String, Value)> {
        let all = self.objects.iter().filter(|((plural, _), _)| *plural == resource);
        all.map(|((_, name), object)| (name.clone(), object.clone())).collect()
    }

    fn live(&mut self, name: &str, mut pod: Value) {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            self.objects.remove(&("pods", name.to_owned()));
            self.runs.remove(name);
            return;
        }
        let key = pod_key(&pod);
        if pod["status"]["phase"] == "Pending" {
            let text = self.object("configmaps", "synapse-stack").map(|map| map["data"][STACK_KEY].clone());
            let Some(stack) = STACKS.iter().position(|stack| text == Some(stack.read.text.as_str().into()))
            else {
                return;
            };
            let Some(wanted) = STACKS[stack].target().of(&key) else { return };
            if wanted.replicas.is_some_and(|replicas| ordinal(name) > replicas) {
                return;
            }
            self.runs.insert(name.to_owned(), stack);
            *self.starts.entry(key.group).or_default() += 1;
            pod["status"] = json!({ "phase": "Running" });
        } else {
            pod["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
        }
        self.store("pods", name, pod);
    }

    fn control(&mut self, kind: Kind, name: &str, mut workload: Value) {
        let group = workload["metadata"]["labels"][GROUP_LABEL].clone();
        let replicas = u32::try_from(workload["spec"]["replicas"].as_u64().unwrap()).unwrap();
        let revision = workload["spec"]["template"].to_string();
        let pods: Vec<(String, Value)> = self
            .of("pods")
            .into_iter()
            .filter(|(_, pod)| pod["metadata"]["labels"][GROUP_LABEL] == group && pod_key(pod).kind == kind)
            .collect();
        let ends = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
        let is_new = |pod: &Value| pod["metadata"]["annotations"]["revision"] == revision.as_str();
        let ready = |pod: &Value| !ends(pod) && !pod["status"]["conditions"].is_null();
        let living: Vec<&(String, Value)> = pods.iter().filter(|(_, pod)| !ends(pod)).collect();
        let new = living.iter().filter(|(_, pod)| is_new(pod)).count();
        let many = usize::try_from(replicas).unwrap();
        let (end, create): (Option<String>, Option<u32>) = match kind {
            Kind::StatefulSet => {
                let above = living.iter().find(|(name, _)| ordinal(name) > replicas);
                let missing = (1..=replicas).find(|n| pods.iter().all(|(name, _)| ordinal(name) != *n));
                let calm = missing.is_none() && pods.iter().all(|(_, pod)| !is_new(pod) || ready(pod));
                let old = living.iter().rfind(|(_, pod)| !is_new(pod)).filter(|_| calm);
                (above.or(old).map(|(name, _)| name.clone()), missing)
            }
            Kind::Deployment => {
                let old = living.iter().find(|(_, pod)| !is_new(pod));
                let calm = living.iter().all(|(_, pod)| !is_new(pod) || ready(pod));
                let surplus =
                    if living.len() > many && (calm || many == 0) { old.or(living.first()) } else { None };
                let number = u32::try_from(self.version).unwrap() + 1000;
                (
                    surplus.map(|(name, _)| name.clone()),
                    (new < many && living.len() <= many).then_some(number),
                )
            }
        };
        if let Some(pod) = end {
            self.end(&pod);
        } else if let Some(number) = create {
            let template = &workload["spec"]["template"]["metadata"];
            let owner = if kind == Kind::StatefulSet { "StatefulSet" } else { "ReplicaSet" };
            let mut annotations = json!({ "revision": revision });
            if !template["annotations"][CONFIGURATION].is_null() {
                annotations[CONFIGURATION] = template["annotations"][CONFIGURATION].clone();
            }
            let pod = json!({
                "metadata": {
                    "name": format!("{name}-{number}"),
                    "labels": template["labels"],
                    "annotations": annotations,
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": owner, "name": name, "uid": "x", "controller": true }],
                },
                "spec": workload["spec"]["template"]["spec"],
                "status": { "phase": "Pending" },
            });
            self.put("pods", pod);
        }
        let count = |count: usize| i32::try_from(count).unwrap();
        workload["status"] = json!({
            "observedGeneration": workload["metadata"]["generation"],
            "replicas": count(if kind == Kind::StatefulSet { pods.len() } else { living.len() }),
            "updatedReplicas": count(new),
            "readyReplicas": count(pods.iter().filter(|(_, pod)| ready(pod)).count()),
        });
        self.store(plural(kind), name, workload);
    }

    fn end(&mut self, pod: &str) {
        if !self.runs.contains_key(pod) {
            self.objects.remove(&("pods", pod.to_owned()));
        } else if let Some(pod) = self.objects.get_mut(&("pods", pod.to_owned())) {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
    }

    fn check(&self) {
        let processes: Vec<(Key, u32, usize)> = self
            .runs
            .iter()
            .filter_map(|(name, stack)| Some((pod_key(self.object("pods", name)?), ordinal(name), *stack)))
            .collect();
        agree(processes.iter().map(|(key, number, stack)| Process { key, number: *number, stack: *stack }));
    }
}

fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::StatefulSet => "statefulsets",
        Kind::Deployment => "deployments",
    }
}

fn pod_key(pod: &Value) -> Key {
    let set = pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
    let kind = if set { Kind::StatefulSet } else { Kind::Deployment };
    Key { kind, group: pod["metadata"]["labels"][GROUP_LABEL].as_str().unwrap().to_owned() }
}

fn ordinal(pod: &str) -> u32 {
    pod.rsplit_once('-').unwrap().1.parse().unwrap()
}

/// What an address names.
struct Asked {
    resource: &'static str,
    version: &'static str,
    kind: &'static str,
    name: Option<String>,
    scale: bool,
}

impl Asked {
    fn of(path: &str) -> Result<Self, Failure> {
        let found = RESOURCES.into_iter().find_map(|(resource, version, kind)| {
            let root = if version == "v1" { "/api" } else { "/apis" };
            let rest = path.strip_prefix(&format!("{root}/{version}/namespaces/{NAMESPACE}/{resource}"))?;
            let parts: Vec<&str> = rest.split('/').skip(1).collect();
            let (name, scale) = match parts[..] {
                [] if rest.is_empty() => (None, false),
                [name] => (Some(name.to_owned()), false),
                [name, "scale"] if matches!(resource, "statefulsets" | "deployments") => {
                    (Some(name.to_owned()), true)
                }
                _ => return None,
            };
            Some(Self { resource, version, kind, name, scale })
        });
        found.ok_or_else(|| Failure(404, "NotFound", format!("the server could not find {path}")))
    }

    fn is_one(&self, object: &Value) -> Result<(), Failure> {
        if object["apiVersion"] != self.version || object["kind"] != self.kind {
            let message = format!("apiVersion and kind must be {} and {}", self.version, self.kind);
            return failure(400, "BadRequest", message);
        }
        Ok(())
    }
}

fn same_version(object: &Value, before: &Value) -> Result<(), Failure> {
    let uid = &object["metadata"]["uid"];
    if !uid.is_null() && *uid != before["metadata"]["uid"] {
        return failure(409, "Conflict", "Precondition failed: UID in precondition is another");
    }
    let version = &object["metadata"]["resourceVersion"];
    if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
        return failure(
            409,
            "Conflict",
            "the object has been modified; please apply your changes to the latest version",
        );
    }
    Ok(())
}

fn scale(workload: &Value) -> Value {
    json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": { "name": workload["metadata"]["name"], "uid": workload["metadata"]["uid"] },
        "spec": { "replicas": workload["spec"]["replicas"] },
    })
}

/// Fails unless the type reads this object without losing anything of it, and what has to be there is there.
fn strict(resource: &str, object: &Value) -> Result<(), Failure> {
    let required: &[&str] = match resource {
        "configmaps" => typed::<ConfigMap>(object).map(|()| &[][..])?,
        "pods" => typed::<Pod>(object).map(|()| &["/spec/containers/0/name"][..])?,
        "statefulsets" => typed::<StatefulSet>(object)
            .map(|()| &["/spec/selector/matchLabels", "/spec/template/spec"][..])?,
        "deployments" => typed::<Deployment>(object)
            .map(|()| &["/spec/selector/matchLabels", "/spec/template/spec"][..])?,
        "leases" => typed::<Lease>(object).map(|()| &["/spec"][..])?,
        _ => typed::<Event>(object).map(|()| {
            &[
                "/eventTime",
                "/reportingController",
                "/reportingInstance",
                "/action",
                "/reason",
                "/type",
                "/regarding/name",
            ][..]
        })?,
    };
    if let Some(missing) = required.iter().find(|path| object.pointer(path).is_none()) {
        return failure(422, "Invalid", format!("{missing}: required"));
    }
    let note = object["note"].as_str().map_or(0, str::len);
    if resource == "events" && (note > 1024 || object["regarding"]["namespace"] != NAMESPACE) {
        return failure(
            422,
            "Invalid",
            "note: can have at most 1024 bytes; regarding.namespace: the event's",
        );
    }
    Ok(())
}

fn typed<T: Serialize + DeserializeOwned>(object: &Value) -> Result<(), Failure> {
    let read: T = serde_json::from_value(object.clone())
        .map_err(|error| Failure(400, "BadRequest", format!("strict decoding error: {error}")))?;
    let kept = leaves(&serde_json::to_value(read).unwrap());
    match leaves(object).keys().find(|path| !kept.contains_key(*path)) {
        Some(lost) => failure(400, "BadRequest", format!("strict decoding error: unknown field {lost:?}")),
        None => Ok(()),
    }
}

/// Drops what is null, and mappings that nothing is left in.
fn clean(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(clean);
        map.retain(|_, value| !value.is_null());
    }
}

/// RFC 7396.
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (key, patch) in patch {
        merge(&mut value[key], patch);
    }
    clean(value);
}

type Path = Vec<String>;

/// What an object says, but for what names it: lists count as a whole.
fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    fn walk(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    path.push(key.clone());
                    walk(value, path, found);
                    path.pop();
                }
            }
            Value::Null => {}
            value => drop(found.insert(path.clone(), value.clone())),
        }
    }
    let mut found = BTreeMap::new();
    walk(object, &mut Vec::new(), &mut found);
    let names = [
        "apiVersion",
        "kind",
        "metadata/name",
        "metadata/resourceVersion",
        "metadata/namespace",
        "metadata/uid",
    ];
    found.retain(|path, _| !names.contains(&path.join("/").as_str()));
    found
}

fn at<'a>(object: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

fn set(object: &mut Value, path: &Path, value: Value) {
    *path.iter().fold(object, |object, key| &mut object[key]) = value;
}

fn remove(object: &mut Value, path: &Path) {
    set(object, path, Value::Null);
}

/// Paths as `fieldsV1` writes them, and back.
fn fields(paths: &BTreeSet<Path>) -> Value {
    let mut fields = json!({});
    for path in paths {
        set(&mut fields, &path.iter().map(|key| format!("f:{key}")).collect(), json!({}));
    }
    fields
}

fn owned(entry: &Value) -> BTreeSet<Path> {
    let plain = |path: Path| path.iter().map(|key| key.trim_start_matches("f:").to_owned()).collect();
    leaves(&entry["fieldsV1"]).into_keys().map(plain).collect()
}

/// Whoever changes something by an update owns it, alone.
fn own_changes(before: &Value, object: &mut Value, manager: &str, asked: &Asked) {
    let (was, is) = (leaves(before), leaves(object));
    let changed: BTreeSet<Path> = is
        .iter()
        .filter(|(path, value)| path[0] != "status" && was.get(*path) != Some(value))
        .map(|(path, _)| path.clone())
        .collect();
    if changed.is_empty() {
        return;
    }
    let mut entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    for entry in &mut entries {
        entry["fieldsV1"] = fields(&owned(entry).difference(&changed).cloned().collect());
    }
    entries.retain(|entry| entry["fieldsV1"] != json!({}));
    let mut entry = json!({
        "manager": manager,
        "operation": "Update",
        "apiVersion": asked.version,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields(&changed),
    });
    if asked.scale {
        entry["subresource"] = "scale".into();
    }
    entries.push(entry);
    object["metadata"]["managedFields"] = entries.into();
}

/// A stand-in that listens.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) cluster: Arc<Mutex<Cluster>>,
    /// The rollout is to be killed now.
    pub(crate) killed: Arc<Notify>,
    changed: Arc<Notify>,
    address: std::net::SocketAddr,
}

impl Server {
    /// Starts one with this in it. It lives as long as the runtime.
    pub(crate) async fn start(cluster: Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            cluster: Arc::new(Mutex::new(cluster)),
            killed: Arc::default(),
            changed: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = serving.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { server.answer(request).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        server
    }

    /// A real client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let kind = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let query: Map<String, Value> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), decode(value).into()))
            .collect();
        let watched = query.get("watch").is_some();
        if watched {
            // A change ends the wait; a watch may end at any time.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.changed.notified()).await;
        }
        let answer = {
            let mut cluster = self.cluster.lock().unwrap();
            cluster.requests += 1;
            let kill = cluster.kill.filter(|kill| kill.request == cluster.requests);
            let answer = match kill {
                Some(Kill { after: false, .. }) => None,
                _ => Some(cluster.request(&parts.method, parts.uri.path(), &query, kind, &body)),
            };
            cluster.tick();
            if kill.is_some() { None } else { answer }
        };
        let Some(answer) = answer else {
            self.killed.notify_one();
            return std::future::pending().await;
        };
        let (code, answer) = match answer {
            Ok(list) if watched => (200, json!({ "type": "MODIFIED", "object": list["items"][0] })),
            Ok(answer) => (200, answer),
            Err(Failure(code, reason, message)) => (
                code,
                json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message }),
            ),
        };
        let response = Response::builder().status(code).header("content-type", "application/json");
        Ok(response.body(Full::new(format!("{answer}\n").into())).unwrap())
    }

    /// Changes something, as others do.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        let result = change(&mut self.cluster.lock().unwrap());
        self.changed.notify_waiters();
        result
    }

    /// One request, as it is.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        query: &Value,
        kind: &str,
        body: &Value,
    ) -> Result<Value, u16> {
        let method = method.parse().unwrap();
        let mut cluster = self.cluster.lock().unwrap();
        let answer =
            cluster.request(&method, path, query.as_object().unwrap(), kind, body.to_string().as_bytes());
        answer.map_err(|Failure(code, ..)| code)
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
