//! What every object, and all of them together, have to keep to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::helm::{Case, Job, NAMESPACE, VERSIONS, all, render, rendered, template};

/// All of something, each with where it is.
fn each<'c>(mut found: impl FnMut(&'c Case, &'c Value)) {
    for case in all() {
        for object in &case.objects {
            found(case, object);
        }
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn place(case: &Case, object: &Value) -> String {
    format!("{}: {} {}", case.name, object["kind"].as_str().unwrap(), name(object))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts<'v>(value: &'v Value, found: &mut dyn FnMut(&'v str)) {
    match value {
        Value::String(text) => found(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, found)),
        _ => {}
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).chain(list(&pod["containers"]))
}

/// Whether its pods come to an end.
fn is_job(owner: &Value) -> bool {
    owner["kind"] == "Job" || owner["kind"] == "CronJob"
}

/// The chart's own containers, without those that the values add.
fn own_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    containers(pod).filter(|container| container["name"] != "before" && container["name"] != "beside")
}

#[test]
fn objects_have_names_and_labels_that_kubernetes_takes() {
    let mut seen = BTreeSet::new();
    each(|case, object| {
        let place = place(case, object);
        let name = name(object);
        assert!(name.len() <= 63, "{place}: the name is too long");
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        assert!(name.bytes().all(plain), "{place}: the name has other letters than Kubernetes takes");
        assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{place}");
        assert!(seen.insert(place.clone()), "{place} is there twice");
        if name.ends_with("-extra") {
            return;
        }
        let labels = object["metadata"]["labels"].as_object().unwrap();
        for label in ["name", "instance", "component", "part-of", "managed-by", "version"] {
            assert!(labels.contains_key(&format!("app.kubernetes.io/{label}")), "{place}: no label {label}");
        }
        for (key, value) in labels {
            let value = value.as_str().unwrap();
            assert!(value.len() <= 63 && !value.is_empty(), "{place}: label {key}");
        }
        if case.name.ends_with("everything") {
            assert_eq!(labels["team"], "chat", "{place}");
        }
    });
}

#[test]
fn no_text_is_left_unrendered() {
    each(|case, object| {
        // Grafana and Prometheus have templates of their own, and so have alerts' messages.
        let messages =
            case.name.starts_with("matrix-alertmanager-receiver/") && name(object).ends_with("-settings");
        let theirs = object["kind"] == "PrometheusRule" || name(object).contains("-dashboard-") || messages;
        texts(object, &mut |text| {
            assert!(
                theirs || !(text.contains("{{") || text.contains("}}")),
                "{}: {text}",
                place(case, object)
            );
            for broken in ["%!", "<no value>", "map[", "e+0"] {
                assert!(!text.contains(broken), "{}: {text}", place(case, object));
            }
        });
    });
}

#[test]
fn selectors_select_the_pods_of_their_own() {
    for case in all() {
        let pods: Vec<(&Value, &Value)> =
            case.workloads().map(|owner| (owner, &template(owner)["metadata"]["labels"])).collect();
        let selected = |selector: &Value| -> Vec<&str> {
            let selector = selector.as_object().unwrap();
            let fits = |labels: &Value| selector.iter().all(|(label, value)| labels[label] == *value);
            pods.iter().filter(|(_, labels)| fits(labels)).map(|(owner, _)| name(owner)).collect()
        };
        for (owner, _) in &pods {
            if !is_job(owner) {
                assert_eq!(
                    selected(&owner["spec"]["selector"]["matchLabels"]),
                    [name(owner)],
                    "{}",
                    case.name
                );
            }
        }
        for service in case.of_kind("Service") {
            let found = selected(&service["spec"]["selector"]);
            assert!(!found.is_empty(), "{} selects nothing", place(case, service));
            if !name(service).ends_with("-processes") {
                assert_eq!(found, [name(service)], "{}", place(case, service));
            }
            for port in list(&service["spec"]["ports"]) {
                assert!(port["name"].is_string(), "{}", place(case, service));
                let open = pods.iter().filter(|(owner, _)| found.contains(&name(owner))).any(|(owner, _)| {
                    list(&template(owner)["spec"]["containers"]).flat_map(|c| list(&c["ports"])).any(
                        |there| {
                            there["name"] == port["targetPort"]
                                || there["containerPort"] == port["targetPort"]
                        },
                    )
                });
                assert!(open, "{}: nothing listens on {}", place(case, service), port["targetPort"]);
            }
        }
        for budget in case.of_kind("PodDisruptionBudget") {
            assert_eq!(
                selected(&budget["spec"]["selector"]["matchLabels"]).len(),
                1,
                "{}",
                place(case, budget)
            );
        }
        for policy in case.of_kind("NetworkPolicy") {
            assert!(
                !selected(&policy["spec"]["podSelector"]["matchLabels"]).is_empty(),
                "{}",
                place(case, policy)
            );
            for peer in list(&policy["spec"]["ingress"]).flat_map(|rule| list(&rule["from"])) {
                if peer["podSelector"].is_object() {
                    assert!(
                        !selected(&peer["podSelector"]["matchLabels"]).is_empty(),
                        "{}",
                        place(case, policy)
                    );
                }
            }
        }
        for monitor in case.of_kind("PodMonitor") {
            let found = selected(&monitor["spec"]["selector"]["matchLabels"]);
            assert!(!found.is_empty(), "{}", place(case, monitor));
            for (owner, _) in pods.iter().filter(|(owner, _)| found.contains(&name(owner))) {
                for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
                    let ports = list(&template(owner)["spec"]["containers"]).flat_map(|c| list(&c["ports"]));
                    assert!(
                        ports.into_iter().any(|port| port["name"] == endpoint["port"]),
                        "{}",
                        place(case, owner)
                    );
                }
            }
        }
    }
}

/// Secrets that are there before the chart is installed, by the values files.
const BROUGHT: [&str; 6] = ["postgres", "valkey", "matrix", "s3", "registry", "ca"];

#[test]
fn what_is_referred_to_is_there() {
    for case in all() {
        let known = |kind: &str, wanted: &Value, from: &Value| {
            let wanted = wanted.as_str().unwrap();
            // What others make: the job, an operator, the rollout.
            let made =
                kind == "ConfigMap" && case.object("ConfigMap", &format!("{wanted}-desired")).is_some();
            let generated = made
                || kind == "Secret"
                    && (wanted.ends_with("-generated")
                        && case.of_kind("Job").any(|job| job.to_string().contains(wanted))
                        || wanted.ends_with("-postgres-app") && case.of_kind("Cluster").next().is_some()
                        || wanted.ends_with("-tls") && case.of_kind("Certificate").next().is_some());
            let brought = BROUGHT.contains(&wanted) || wanted == "old-media" || wanted == "default";
            assert!(
                generated || brought || case.object(kind, wanted).is_some(),
                "{}: there is no {kind} {wanted}",
                place(case, from)
            );
        };
        for owner in case.workloads() {
            let pod = &template(owner)["spec"];
            known("ServiceAccount", &pod["serviceAccountName"], owner);
            for volume in list(&pod["volumes"]) {
                if let Some(map) = volume.get("configMap") {
                    known("ConfigMap", &map["name"], owner);
                }
                if let Some(claim) = volume.get("persistentVolumeClaim") {
                    known("PersistentVolumeClaim", &claim["claimName"], owner);
                }
                for source in list(&volume["projected"]["sources"]) {
                    known("Secret", &source["secret"]["name"], owner);
                    for item in list(&source["secret"]["items"]) {
                        has_key(case, &source["secret"]["name"], &item["key"]);
                    }
                }
            }
            for variable in containers(pod).flat_map(|container| list(&container["env"])) {
                if let Some(secret) = variable["valueFrom"].get("secretKeyRef") {
                    known("Secret", &secret["name"], owner);
                    has_key(case, &secret["name"], &secret["key"]);
                }
            }
        }
        for object in &case.objects {
            for path in list(&object["spec"]["rules"]).flat_map(|rule| list(&rule["http"]["paths"])) {
                known("Service", &path["backend"]["service"]["name"], object);
            }
            for backend in list(&object["spec"]["rules"]).flat_map(|rule| list(&rule["backendRefs"])) {
                known("Service", &backend["name"], object);
                let service = case.object("Service", backend["name"].as_str().unwrap()).unwrap();
                assert!(list(&service["spec"]["ports"]).any(|port| port["port"] == backend["port"]));
            }
            for tls in list(&object["spec"]["tls"]) {
                known("Secret", &tls["secretName"], object);
            }
        }
    }
}

/// That a Secret of the chart's has the key.
fn has_key(case: &Case, secret: &Value, key: &Value) {
    let (secret, key) = (secret.as_str().unwrap(), key.as_str().unwrap());
    if let Some(secret) = case.object("Secret", secret) {
        assert!(secret["data"][key].is_string(), "{}: no key {key}", place(case, secret));
    }
    if secret.ends_with("-generated") {
        let job = case.of_kind("Job").next().unwrap();
        let arguments = &job["spec"]["template"]["spec"]["containers"][0]["args"];
        assert!(list(arguments).any(|argument| argument == key), "{}: nothing makes {key}", case.name);
    }
}

/// Directories that programs know by themselves.
const KNOWN_BY_THEMSELVES: [&str; 2] = ["/tmp", "/etc/ssl/own"];

#[test]
fn mounts_have_volumes_and_are_used_and_paths_are_mounted() {
    each(|case, owner| {
        let pod = &template(owner)["spec"];
        if !pod.is_object() {
            return;
        }
        let place = place(case, owner);
        let claims = list(&owner["spec"]["volumeClaimTemplates"]).map(|claim| &claim["metadata"]);
        let named: Vec<&str> =
            list(&pod["volumes"]).chain(claims).map(|volume| volume["name"].as_str().unwrap()).collect();
        let volumes: BTreeSet<&str> = named.iter().copied().collect();
        assert_eq!(volumes.len(), named.len(), "{place}: volumes of the same name");
        let mut mounted = BTreeSet::new();
        for container in containers(pod) {
            let mut paths = BTreeSet::new();
            for mount in list(&container["volumeMounts"]) {
                let (name, path) = (mount["name"].as_str().unwrap(), mount["mountPath"].as_str().unwrap());
                assert!(volumes.contains(name), "{place}: {name} is no volume");
                assert!(paths.insert(path), "{place}: {path} is mounted twice");
                mounted.insert(name);
            }
            if container["name"] == "before" || container["name"] == "beside" {
                continue;
            }
            // What the command line and the environment say; the stack's files are looked at where pods are configured.
            let mut said = String::new();
            for field in ["command", "args", "env"] {
                texts(&container[field], &mut |text| {
                    said.push_str(text);
                    said.push('\n');
                });
            }
            // A companion's settings are one file.
            for volume in list(&pod["volumes"]) {
                let map = volume["configMap"]["name"].as_str().and_then(|map| case.object("ConfigMap", map));
                said.push_str(map.and_then(|map| map["data"]["settings.yaml"].as_str()).unwrap_or_default());
            }
            let through = said.contains("stack.yaml") || said.contains("/data/config/");
            for path in &paths {
                let used = said.contains(path)
                    || KNOWN_BY_THEMSELVES.contains(path)
                    || through && ["/secrets", "/data", "/media"].contains(path);
                assert!(used, "{place}: {path} is mounted, and nothing speaks of it");
            }
            let words = said.split_whitespace().map(|word| word.trim_matches(|c| "\"')".contains(c)));
            for word in words.filter(|word| word.starts_with('/') && word.len() > 1) {
                assert!(paths.iter().any(|path| word.starts_with(path)), "{place}: {word} is not mounted");
            }
        }
        assert_eq!(mounted, volumes, "{place}: a volume that nothing mounts");
    });
}

#[test]
fn pods_are_restricted() {
    each(|case, owner| {
        let pod = &template(owner)["spec"];
        if !pod.is_object() {
            return;
        }
        let place = place(case, owner);
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true, "{place}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{place}");
        for id in ["runAsUser", "runAsGroup", "fsGroup"] {
            let expected = if case.name.ends_with("everything") { Value::Null } else { json!(991) };
            assert_eq!(security[id], expected, "{place}: OpenShift chooses {id} itself");
        }
        for container in own_containers(pod) {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{place}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{place}");
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }), "{place}");
            assert!(
                container["resources"]["requests"]["memory"].is_string(),
                "{place}: no memory is asked for"
            );
            assert!(container["resources"]["limits"]["memory"].is_string(), "{place}: memory is not limited");
            let image = container["image"].as_str().unwrap();
            assert!(
                image.contains("@sha256:") || image.rsplit(':').next().is_some_and(|tag| tag != "latest"),
                "{place}: {image}"
            );
        }
        for container in list(&pod["containers"]).filter(|container| container["name"] != "beside") {
            let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
            let has = probes.iter().filter(|probe| container[**probe].is_object()).count();
            assert_eq!(has, if is_job(owner) { 0 } else { 3 }, "{place}: probes");
        }
        // Only the job that makes secrets and the rollout talk to the API.
        let asks = owner["kind"] == "Job" || name(owner).ends_with("-rollout");
        assert_eq!(pod["automountServiceAccountToken"], asks, "{place}");
        assert_eq!(pod["enableServiceLinks"], false, "{place}: variables of every Service");
        // A pod that is stopped has the time that its hook and its requests take.
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        for container in list(&pod["containers"]) {
            let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
            assert!(pause + 30 <= grace || pause == 0, "{place}: no time is left after the pause");
        }
    });
}

#[test]
fn settings_of_all_pods_reach_each_of_them() {
    let case = rendered().iter().find(|case| case.name == "everything").unwrap();
    for owner in case.workloads() {
        let place = place(case, owner);
        let template = template(owner);
        let pod = &template["spec"];
        assert_eq!(template["metadata"]["labels"]["tier"], "backend", "{place}");
        let of_sync = name(owner) == "chat-server-sync";
        let note = if of_sync { "sync" } else { "all" };
        assert_eq!(template["metadata"]["annotations"]["example.org/note"], note, "{place}");
        assert_eq!(list(&pod["tolerations"]).count(), usize::from(!of_sync), "{place}: a group's own counts");
        assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux", "{place}");
        for (field, value) in
            [("priorityClassName", "high"), ("runtimeClassName", "gvisor"), ("schedulerName", "own")]
        {
            assert_eq!(pod[field], value, "{place}: {field}");
        }
        for field in ["affinity", "dnsConfig", "hostAliases", "imagePullSecrets"] {
            assert!(!pod[field].is_null(), "{place}: {field}");
        }
        if owner["kind"] == "Job" {
            continue;
        }
        assert_eq!(pod["terminationGracePeriodSeconds"], 120, "{place}");
        assert_eq!(
            pod["topologySpreadConstraints"][0]["topologyKey"], "topology.kubernetes.io/zone",
            "{place}"
        );
        assert_eq!(pod["initContainers"][0]["name"], "before", "{place}");
        let main = &pod["containers"][0];
        assert!(list(&main["env"]).any(|variable| variable["name"] == "TZ"), "{place}");
        assert!(list(&main["volumeMounts"]).any(|mount| mount["mountPath"] == "/etc/ssl/own"), "{place}");
        assert_eq!(main["startupProbe"]["failureThreshold"], 1000, "{place}");
        assert_eq!(main["readinessProbe"]["periodSeconds"], 7, "{place}");
        assert_eq!(main["livenessProbe"]["timeoutSeconds"], 20, "{place}");
    }
    let main = case.object("StatefulSet", "chat-server-main").unwrap();
    assert_eq!(main["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"], "4Gi");
    assert_eq!(
        main["spec"]["template"]["spec"]["nodeSelector"],
        json!({ "kubernetes.io/os": "linux", "disk": "fast" })
    );
}

#[test]
fn secrets_are_in_secrets_alone() {
    let mut seen = 0;
    each(|case, object| {
        let secret = object["kind"] == "Secret";
        texts(object, &mut |text| {
            assert!(!text.contains("value-of-") && !text.contains("not-a-secret"), "{}", place(case, object));
        });
        if secret {
            assert!(object["type"].is_string() && !object["data"].as_object().unwrap().is_empty());
            seen += 1;
        }
    });
    assert!(seen >= 3, "values files with credentials as values");
    // Where all credentials are there already, there is nothing to make and nobody to do it.
    let case = rendered().iter().find(|case| case.name == "secrets-externally").unwrap();
    for kind in ["Secret", "Job", "Role", "RoleBinding"] {
        assert_eq!(case.of_kind(kind).count(), 0, "{kind}");
    }
}

#[test]
fn the_job_that_makes_secrets_may_do_no_more_and_goes_first() {
    for case in rendered() {
        let hooks: Vec<&Value> = case
            .objects
            .iter()
            .filter(|o| o["metadata"]["annotations"]["helm.sh/hook"].is_string())
            .collect();
        assert_eq!(hooks.is_empty(), case.of_kind("Job").next().is_none(), "{}", case.name);
        let mut weights = BTreeMap::new();
        for hook in hooks {
            let annotations = &hook["metadata"]["annotations"];
            assert_eq!(annotations["helm.sh/hook"], "pre-install,pre-upgrade", "{}", place(case, hook));
            assert_eq!(annotations["argocd.argoproj.io/hook"], "PreSync", "{}", place(case, hook));
            assert_eq!(annotations["helm.sh/hook-weight"], annotations["argocd.argoproj.io/sync-wave"]);
            assert!(
                annotations["helm.sh/hook-delete-policy"].as_str().unwrap().contains("before-hook-creation")
            );
            assert_ne!(hook["kind"], "Secret", "a hook's Secret would be made anew with each upgrade");
            let weight: i32 = annotations["helm.sh/hook-weight"].as_str().unwrap().parse().unwrap();
            weights.insert(hook["kind"].as_str().unwrap(), weight);
        }
        if let Some(job) = weights.get("Job") {
            assert!(weights.iter().all(|(kind, weight)| *kind == "Job" || weight < job), "{weights:?}");
        }
        for role in case.of_kind("Role").filter(|role| name(role).ends_with("-generate-secrets")) {
            for rule in list(&role["rules"]) {
                assert_eq!(rule["resources"], json!(["secrets"]));
                let verbs: Vec<&str> = list(&rule["verbs"]).map(|verb| verb.as_str().unwrap()).collect();
                assert!(verbs == ["create"] || list(&rule["resourceNames"]).count() == 1, "{rule}");
            }
        }
    }
}

#[test]
fn the_rollout_may_do_what_it_does_and_no_more() {
    let needed: BTreeSet<_> = rollout::RULES
        .iter()
        .flat_map(|rule| rule.verbs.iter().map(|verb| (rule.group, rule.resource, *verb)))
        .collect();
    let mut found = 0;
    each(|case, object| {
        if object["kind"] != "Role" || !name(object).ends_with("-rollout") {
            return;
        }
        found += 1;
        let text = |value: &'static Value| value.as_str().unwrap();
        let granted: BTreeSet<_> = list(&object["rules"])
            .flat_map(|rule| list(&rule["apiGroups"]).map(move |group| (rule, text(group))))
            .flat_map(|(rule, group)| list(&rule["resources"]).map(move |of| (rule, group, text(of))))
            .flat_map(|(rule, group, of)| list(&rule["verbs"]).map(move |verb| (group, of, text(verb))))
            .collect();
        assert_eq!(granted, needed, "{}", place(case, object));
    });
    assert!(found > 0, "no values file switches the rollout on");
}

#[test]
fn what_must_be_one_is_one() {
    for case in rendered() {
        let topology = crate::processes::plan(case);
        for set in case.of_kind("StatefulSet") {
            let component = set["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap();
            let group = topology.groups().iter().find(|group| group.name.replace('_', "-") == component);
            let rolled = case.object("Deployment", "chat-server-rollout").is_some() && component != "valkey";
            let expected = group.map_or(1, |group| group.count);
            if rolled {
                assert!(set["spec"]["replicas"].is_null(), "{}: the rollout says how many", place(case, set));
                continue;
            }
            assert_eq!(set["spec"]["replicas"], expected, "{}", place(case, set));
            let single = group.is_none_or(|group| group.roles.iter().any(|role| !role.spec().scalable));
            assert!(!single || set["spec"]["replicas"] == 1, "{}", place(case, set));
        }
    }
}

#[test]
fn replication_is_for_synapse_alone() {
    for case in rendered().iter().filter(|case| case.of_kind("NetworkPolicy").next().is_some()) {
        let policies: Vec<&Value> = case.of_kind("NetworkPolicy").collect();
        for policy in &policies {
            assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
            for rule in list(&policy["spec"]["ingress"]) {
                for port in list(&rule["ports"]) {
                    let from = rule["from"].as_array();
                    match port["port"].as_u64().unwrap() {
                        // Metrics are read on the same port as replication is spoken on, which asks for a secret.
                        9093 | 9090 => {
                            assert!(from.is_some_and(|from| !from.is_empty()), "{}", place(case, policy));
                        }
                        5432 | 6379 => {
                            let peers = from.unwrap();
                            assert!(peers.iter().all(
                                |p| p["podSelector"]["matchLabels"]["matrix-stack.io/kind"] == "synapse"
                            ));
                        }
                        8008 if name(policy).ends_with("-router") => {}
                        8008 => assert_eq!(
                            from.unwrap()[0]["podSelector"]["matchLabels"]["matrix-stack.io/kind"],
                            "router"
                        ),
                        other => panic!("{}: port {other}", place(case, policy)),
                    }
                }
            }
        }
        // Each pod but the job's is behind one.
        for owner in case.workloads().filter(|owner| owner["kind"] != "Job") {
            let labels = &template(owner)["metadata"]["labels"];
            let covered = policies.iter().any(|policy| {
                let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap();
                wanted.iter().all(|(label, value)| labels[label] == *value)
            });
            assert!(covered, "{}", place(case, owner));
        }
    }
}

#[test]
fn all_renders_the_same_again_and_on_upgrades() {
    let job = |name: &str| Job {
        name: name.to_owned(),
        chart: "synapse",
        file: "everything",
        values: json!({}),
        check: false,
    };
    let again = render(&[job("once"), job("again")]);
    let text = |name: &str| again[name].as_ref().unwrap().text.clone();
    assert_eq!(text("once"), text("again"));
    let before = rendered().iter().find(|case| case.name == "everything").unwrap();
    assert_eq!(text("once"), before.text);
}

#[test]
fn the_chart_says_what_it_is_for() {
    let chart = std::fs::read_to_string(committed::root().join("charts/synapse/Chart.yaml")).unwrap();
    let version = runtime::install::SYNAPSE.version("matrix-synapse").unwrap();
    assert!(
        chart.contains(&format!("appVersion: \"{version}\"\n")),
        "Chart.yaml: appVersion is not {version}"
    );
    assert!(chart.contains(&format!("version: {}\n", env!("CARGO_PKG_VERSION"))), "Chart.yaml: version");
    assert!(chart.contains(&format!("kubeVersion: \">={}.0-0\"\n", VERSIONS[0])), "Chart.yaml: kubeVersion");
}
