//! The key to it all: the stack in the `ConfigMap` is planned by the planner, each pod is configured by the program that its
//! init container runs, and what they speak of is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use model::{Address, Instance, Layout, Preset, Topology};
use serde_json::Value;

use crate::helm::{Case, MATRIX_STACK, NAMESPACE, rendered};

/// The stack that a case's pods read.
pub(crate) fn stack_yaml(case: &Case) -> &str {
    let maps =
        case.of_kind("ConfigMap").filter_map(|map| map["data"]["stack.yaml"].as_str()).collect::<Vec<_>>();
    let [stack] = maps[..] else { panic!("{}: not one stack.yaml but {}", case.name, maps.len()) };
    stack
}

/// The plan of it. No preset is chosen by the machine.
pub(crate) fn plan(case: &Case) -> Topology {
    let loaded = config::parse("stack.yaml", stack_yaml(case))
        .unwrap_or_else(|report| panic!("{}: {report}", case.name));
    assert!(loaded.stack.preset.is_some(), "{}: each pod would choose a preset by its node", case.name);
    loaded.plan(Path::new("/run"), Preset::Small).unwrap_or_else(|report| panic!("{}: {report}", case.name))
}

/// A pod of Synapse's.
struct Pod<'c> {
    /// Its name; in a pool, one that a pod might have.
    name: String,
    /// The `StatefulSet` or Deployment.
    owner: &'c Value,
    /// What stands for `$(POD_INDEX)`.
    index: u64,
}

impl Pod<'_> {
    fn spec(&self) -> &Value {
        &self.owner["spec"]["template"]["spec"]
    }

    /// The arguments of one of its containers, as Kubernetes expands them.
    fn arguments(&self, containers: &str, name: &str) -> Vec<String> {
        let containers = self.spec()[containers].as_array().unwrap();
        let container = containers.iter().find(|container| container["name"] == name).unwrap();
        let variables: BTreeSet<&str> =
            container["env"].as_array().into_iter().flatten().map(|v| v["name"].as_str().unwrap()).collect();
        container["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|argument| {
                let mut argument = argument.as_str().unwrap().to_owned();
                for (variable, value) in
                    [("POD_INDEX", self.index.to_string()), ("POD_NAME", self.name.clone())]
                {
                    if variables.contains(variable) {
                        argument = argument.replace(&format!("$({variable})"), &value);
                    }
                }
                assert!(
                    !argument.contains("$("),
                    "{}: {argument} names a variable that is not there",
                    self.name
                );
                argument
            })
            .collect()
    }
}

/// All of Synapse's pods.
fn pods(case: &Case) -> Vec<Pod<'_>> {
    let mut pods = Vec::new();
    let topology = plan(case);
    for owner in case.workloads() {
        if owner["spec"]["template"]["metadata"]["labels"]["matrix-stack.io/kind"] != "synapse" {
            continue;
        }
        let name = owner["metadata"]["name"].as_str().unwrap();
        // An autoscaler or a rollout says how many where the chart does not.
        let group = &owner["metadata"]["labels"]["matrix-stack.io/group"];
        let planned = topology.groups().iter().find(|planned| *group == *planned.name);
        let planned = planned.map_or(1, |group| u64::from(group.count));
        let replicas = owner["spec"]["replicas"].as_u64().unwrap_or(planned);
        if owner["kind"] == "Deployment" {
            pods.extend((0..replicas).map(|index| Pod {
                name: format!("{name}-6d4cf56db6-x{index}yz"),
                owner,
                index,
            }));
        } else {
            let start = owner["spec"]["ordinals"]["start"].as_u64().unwrap();
            pods.extend((start..start + replicas).map(|index| Pod {
                name: format!("{name}-{index}"),
                owner,
                index,
            }));
        }
    }
    pods
}

fn after<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
    arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

/// The host of the instance's pod or pool in the cluster's DNS, by the rules of Kubernetes.
fn host(case: &Case, pod: &Pod<'_>, domain: &str) -> String {
    let service = if pod.owner["kind"] == "StatefulSet" {
        let governing = pod.owner["spec"]["serviceName"].as_str().unwrap();
        let service =
            case.object("Service", governing).unwrap_or_else(|| panic!("{governing} is no Service"));
        assert_eq!(service["spec"]["clusterIP"], "None", "{governing} gives pods no names");
        assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
        assert_selects(service, pod);
        return format!("{}.{governing}.{NAMESPACE}.svc.{domain}", pod.name);
    } else {
        let name = pod.owner["metadata"]["name"].as_str().unwrap();
        case.object("Service", name).unwrap_or_else(|| panic!("{name} is no Service"))
    };
    assert_eq!(service["spec"]["clusterIP"], "None", "the name does not lead to the pods");
    assert_selects(service, pod);
    format!("{}.{NAMESPACE}.svc.{domain}", service["metadata"]["name"].as_str().unwrap())
}

fn assert_selects(service: &Value, pod: &Pod<'_>) {
    let labels = &pod.owner["spec"]["template"]["metadata"]["labels"];
    for (label, value) in service["spec"]["selector"].as_object().unwrap() {
        assert_eq!(&labels[label], value, "{} does not select {}", service["metadata"]["name"], pod.name);
    }
}

#[test]
fn the_planner_and_the_pods_speak_of_the_same() {
    for case in rendered() {
        let topology = plan(case);
        let domain = if case.name == "everything" { "cluster.example" } else { "cluster.local" };
        let mut found: BTreeMap<&str, u32> = BTreeMap::new();
        for pod in pods(case) {
            let arguments = pod.arguments("initContainers", "configure");
            let [name] = after(&arguments, "--instance")[..] else { panic!("{}: {arguments:?}", pod.name) };
            let instance = topology.instance(name).unwrap_or_else(|| {
                panic!("{}: {} configures {name}, which nobody planned", case.name, pod.name)
            });
            *found.entry(&instance.name).or_default() += 1;
            assert_eq!(instance.is_pool(), pod.owner["kind"] == "Deployment", "{}: {name}", case.name);
            check_addresses(case, &pod, instance, domain);
            // By this label, a rollout knows whose processes the pods are.
            for labelled in [pod.owner, &pod.owner["spec"]["template"]] {
                assert_eq!(
                    labelled["metadata"]["labels"]["matrix-stack.io/group"], *instance.group,
                    "{}",
                    pod.name
                );
            }
            let pools_own = after(&arguments, "--name");
            assert_eq!(pools_own, if instance.is_pool() { vec![pod.name.as_str()] } else { vec![] });
        }
        for instance in topology.instances() {
            let pods = found.get(instance.name.as_str()).copied().unwrap_or_default();
            let scaled = case.objects.iter().any(|object| {
                let target = &object["spec"]["scaleTargetRef"]["name"];
                target.as_str().is_some_and(|t| t.ends_with(&format!("-{}", instance.name.replace('_', "-"))))
            });
            let expected = instance.replicas.map_or(1, |replicas| u32::from(replicas.count));
            assert!(pods == expected || scaled, "{}: {pods} pods are {}", case.name, instance.name);
            if let (true, Some(replicas)) = (scaled, instance.replicas) {
                check_scaling(case, instance, replicas.count, replicas.max);
            }
        }
    }
}

fn check_scaling(case: &Case, instance: &Instance, least: u16, most: u16) {
    let name = instance.name.replace('_', "-");
    let scaler = case
        .objects
        .iter()
        .find(|o| {
            o["spec"]["scaleTargetRef"]["name"]
                .as_str()
                .is_some_and(|target| target.ends_with(&format!("-{name}")))
        })
        .unwrap();
    let target = scaler["spec"]["scaleTargetRef"]["name"].as_str().unwrap();
    let deployment = case.object("Deployment", target).unwrap();
    assert!(
        deployment["spec"]["replicas"].is_null(),
        "{target}: an upgrade would undo what the autoscaler did"
    );
    let spec = &scaler["spec"];
    let bounds = [("minReplicas", "maxReplicas"), ("minReplicaCount", "maxReplicaCount")]
        .into_iter()
        .find_map(|(least, most)| Some((spec[least].as_u64()?, spec[most].as_u64()?)));
    assert_eq!(bounds, Some((least.into(), most.into())), "{}: {target}", case.name);
}

/// That the planner's addresses lead to the pod, and to ports that it has.
fn check_addresses(case: &Case, pod: &Pod<'_>, instance: &Instance, domain: &str) {
    let container =
        pod.spec()["containers"].as_array().unwrap().iter().find(|c| c["name"] == "synapse").unwrap();
    let port = |name: &str| {
        container["ports"]
            .as_array()
            .unwrap()
            .iter()
            .find(|port| port["name"] == name)
            .map(|port| &port["containerPort"])
    };
    let host = host(case, pod, domain);
    for (address, name) in [(instance.client.as_ref(), "http"), (Some(&instance.private), "private")] {
        let expected = address.map(|address| {
            let Address::Tcp { host, port } = address else { panic!("{address} is not on the network") };
            (host.clone(), *port)
        });
        let found = port(name).map(|port| (host.clone(), u16::try_from(port.as_u64().unwrap()).unwrap()));
        assert_eq!(found, expected, "{}: {} {name}", case.name, pod.name);
    }
}

/// A directory in place of the pods' own: the stack that is mounted there, and the secrets.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(case: &Case) -> Self {
        let directory = tempfile::Builder::new().prefix("charts-").tempdir().unwrap();
        let root = directory.path();
        fs::DirBuilder::new().mode(0o700).create(root.join("secrets")).unwrap();
        for secret in mounted_secrets(case) {
            let key = "ed25519 a_abcd dmFsdWUtb2Ytc2lnbmluZy1rZXktMzItYnl0ZXMtISE";
            let text = if secret == "signing_key" { key } else { "a secret: with \\ in it" };
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(root.join("secrets").join(secret))
                .unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        }
        let secrets = format!("file: {}/secrets/", root.display());
        fs::write(root.join("stack.yaml"), stack_yaml(case).replace("file: /secrets/", &secrets)).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The files that the volume of secrets has.
fn mounted_secrets(case: &Case) -> BTreeSet<String> {
    let pods = pods(case);
    let volumes = pods[0].spec()["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
    volume["projected"]["sources"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|source| source["secret"]["items"].as_array().unwrap())
        .map(|item| item["path"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn each_pod_is_configured_and_starts_what_it_was_configured_for() {
    for case in rendered() {
        let topology = plan(case);
        let layout = Layout::new("/data");
        let place = Place::new(case);
        for pod in pods(case) {
            let data = place.path(&pod.name);
            let mut arguments = pod.arguments("initContainers", "configure");
            let config = arguments.iter().position(|argument| argument == "--config").unwrap() + 1;
            assert_eq!(arguments[config], "/etc/matrix-stack/stack.yaml");
            arguments[config] = place.path("stack.yaml").display().to_string();
            // Nobody is there to be waited for.
            let wait = arguments.iter().position(|argument| argument == "--wait-for-main").unwrap();
            arguments.drain(wait..wait + 2);
            let done =
                Command::new(MATRIX_STACK).args(&arguments).arg("--data-dir").arg(&data).output().unwrap();
            assert!(
                done.status.success(),
                "{}: {}: {}",
                case.name,
                pod.name,
                String::from_utf8_lossy(&done.stderr)
            );

            let name = after(&arguments, "--instance")[0];
            let instance = topology.instance(name).unwrap();
            let starts = pod.arguments("containers", "synapse");
            assert_eq!(after(&starts, "-m"), [instance.app.module()], "{}: {}", case.name, pod.name);
            assert_eq!(after(&starts, "-c"), after(&render::config_args(&layout, instance), "-c"));
            for file in after(&starts, "-c") {
                let written = data.join(Path::new(file).strip_prefix("/data").unwrap());
                assert!(
                    written.is_file(),
                    "{}: {} reads {file}, which `configure` does not write",
                    case.name,
                    pod.name
                );
                check_paths(case, &pod, &fs::read_to_string(&written).unwrap(), &place, &data);
            }
        }
    }
}

/// That every file which the configuration names is there: written by `configure`, or mounted.
fn check_paths(case: &Case, pod: &Pod<'_>, text: &str, place: &Place, data: &Path) {
    let secrets = format!("{}/", place.path("secrets").display());
    let own = format!("{}/", data.display());
    for line in text.lines() {
        let Some((option, value)) = line.trim().split_once(": ") else { continue };
        let value = value.trim_matches('"');
        if let Some(secret) = value.strip_prefix(&secrets) {
            assert!(mounted_secrets(case).contains(secret), "{}: {line}", case.name);
        } else if let Some(file) = value.strip_prefix(&own) {
            assert!(data.join(file).exists(), "{}: {}: {line}: nobody wrote it", case.name, pod.name);
        } else if option == "media_store_path" {
            assert_eq!(value, "/media");
            let mounts = &pod.spec()["containers"][0]["volumeMounts"];
            let media = mounts.as_array().unwrap().iter().any(|mount| mount["mountPath"] == "/media");
            let (arguments, topology) = (pod.arguments("initContainers", "configure"), plan(case));
            let instance = topology.instance(after(&arguments, "--instance")[0]).unwrap();
            assert_eq!(media, instance.enable_media_repo, "{}: {}", case.name, pod.name);
        } else {
            assert!(!value.starts_with('/') || option == "path", "{}: {line}: is it there?", case.name);
        }
    }
}
