//! Each object as the Kubernetes API takes it.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::helm::all;

#[test]
fn the_kubernetes_api_takes_every_object() {
    let invalid: Vec<&String> = all().flat_map(|case| &case.invalid).collect();
    assert!(invalid.is_empty(), "{invalid:#?}");
}

#[test]
fn every_field_is_one_of_its_type() {
    for case in all() {
        for object in &case.objects {
            let (name, kind) = (&object["metadata"]["name"], object["kind"].as_str().unwrap());
            let known = match kind {
                "Deployment" => through::<Deployment>(object),
                "StatefulSet" => through::<StatefulSet>(object),
                "Job" => through::<Job>(object),
                "CronJob" => through::<CronJob>(object),
                "Service" => through::<Service>(object),
                "ServiceAccount" => through::<ServiceAccount>(object),
                "ConfigMap" => through::<ConfigMap>(object),
                "Secret" => through::<Secret>(object),
                "PersistentVolumeClaim" => through::<PersistentVolumeClaim>(object),
                "Ingress" => through::<Ingress>(object),
                "NetworkPolicy" => through::<NetworkPolicy>(object),
                "PodDisruptionBudget" => through::<PodDisruptionBudget>(object),
                "HorizontalPodAutoscaler" => through::<HorizontalPodAutoscaler>(object),
                "Role" => through::<Role>(object),
                "RoleBinding" => through::<RoleBinding>(object),
                // Held against their definitions elsewhere.
                "PodMonitor" | "PrometheusRule" | "ScaledObject" | "Certificate" | "HTTPRoute"
                | "Cluster" => continue,
                other => panic!("{}: {other} {name} is of a kind that nothing checks", case.name),
            };
            let lost = lost(object, &known, "");
            assert!(lost.is_empty(), "{}: {kind} {name} has fields that the API drops: {lost:?}", case.name);
        }
    }
}

/// An object as the API would give it back.
fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    serde_json::to_value(typed).unwrap()
}

/// The fields that got lost on the way.
fn lost(before: &Value, after: &Value, path: &str) -> Vec<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before
            .iter()
            // An empty list or mapping says nothing.
            .filter(|(_, value)| !matches!(value, Value::Null))
            .flat_map(|(key, value)| match after.get(key) {
                Some(after) => lost(value, after, &format!("{path}.{key}")),
                None => vec![format!("{path}.{key}")],
            })
            .collect(),
        (Value::Array(before), Value::Array(after)) => before
            .iter()
            .zip(after)
            .enumerate()
            .flat_map(|(at, (before, after))| lost(before, after, &format!("{path}[{at}]")))
            .collect(),
        _ => Vec::new(),
    }
}
