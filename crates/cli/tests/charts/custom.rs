//! Custom resources, held against what their operators' documentation says of the fields that the chart uses: nothing else
//! is in them, and of the right types.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::helm::all;

/// A kind of custom resource.
fn check(object: &Value) -> Option<serde_json::Result<()>> {
    fn of<T: for<'de> Deserialize<'de>>(object: &Value, version: &str) -> serde_json::Result<()> {
        assert_eq!(object["apiVersion"], version);
        assert_eq!(
            object.as_object().map(serde_json::Map::len),
            Some(4),
            "apiVersion, kind, metadata and spec"
        );
        T::deserialize(&object["spec"]).map(drop)
    }
    Some(match object["kind"].as_str()? {
        "PodMonitor" => of::<PodMonitor>(object, "monitoring.coreos.com/v1"),
        "PrometheusRule" => of::<PrometheusRule>(object, "monitoring.coreos.com/v1"),
        "ScaledObject" => of::<ScaledObject>(object, "keda.sh/v1alpha1"),
        "Certificate" => of::<Certificate>(object, "cert-manager.io/v1"),
        "HTTPRoute" => of::<HttpRoute>(object, "gateway.networking.k8s.io/v1"),
        "Cluster" => of::<Cluster>(object, "postgresql.cnpg.io/v1"),
        _ => return None,
    })
}

#[test]
fn custom_resources_have_fields_that_their_operators_know() {
    let mut seen = BTreeMap::new();
    for case in all() {
        for object in &case.objects {
            if let Some(result) = check(object) {
                let kind = object["kind"].as_str().unwrap();
                result.unwrap_or_else(|error| panic!("{}: {kind}: {error}: {object:#}", case.name));
                *seen.entry(kind).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

macro_rules! fields {
    ($($name:ident { $($(#[$meta:meta])? $field:ident : $kind:ty),* $(,)? })*) => {
        $(
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields, rename_all = "camelCase")]
            #[expect(dead_code, reason = "that they can be read is what counts")]
            struct $name { $($(#[$meta])? $field: $kind),* }
        )*
    };
}

type Texts = BTreeMap<String, String>;

fields! {
    PodMonitor { selector: Selector, #[serde(rename = "podMetricsEndpoints")] endpoints: Vec<Endpoint> }
    Selector { match_labels: Texts }
    Endpoint {
        port: String,
        path: String,
        interval: String,
        relabelings: Option<Vec<Relabeling>>,
        metric_relabelings: Option<Vec<Relabeling>>,
    }
    Relabeling {
        source_labels: Option<Vec<String>>,
        target_label: Option<String>,
        action: Option<String>,
        regex: Option<String>,
    }
    PrometheusRule { groups: Vec<RuleGroup> }
    RuleGroup { name: String, rules: Vec<Rule> }
    Rule { alert: String, expr: String, r#for: String, labels: Texts, annotations: Texts }
    ScaledObject {
        scale_target_ref: Target,
        min_replica_count: u32,
        max_replica_count: u32,
        triggers: Vec<Trigger>,
        advanced: Option<Value>,
    }
    Target { name: String }
    Trigger { r#type: String, metadata: Texts, metric_type: Option<String> }
    Certificate { secret_name: String, dns_names: Vec<String>, issuer_ref: IssuerRef }
    IssuerRef { group: String, kind: String, name: String }
    HttpRoute { parent_refs: Vec<ParentRef>, hostnames: Vec<String>, rules: Vec<RouteRule> }
    ParentRef { name: String, namespace: Option<String>, section_name: Option<String> }
    RouteRule { matches: Vec<Match>, timeouts: Option<Timeouts>, backend_refs: Vec<Backend> }
    Match { path: PathMatch }
    PathMatch { r#type: String, value: String }
    Timeouts { request: String }
    Backend { name: String, port: u16 }
    Cluster {
        instances: u32,
        storage: Disk,
        bootstrap: Bootstrap,
        postgresql: Postgresql,
        monitoring: Option<PodMonitoring>,
    }
    Disk { size: String, storage_class: Option<String> }
    Bootstrap { initdb: InitDb }
    // `localeCType` is how the operator spells it.
    InitDb { database: String, owner: String, encoding: String, locale_collate: String, #[serde(rename = "localeCType")] locale_ctype: String }
    Postgresql { parameters: Texts }
    PodMonitoring { enable_pod_monitor: bool }
}
