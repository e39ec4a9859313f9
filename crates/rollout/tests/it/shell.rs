//! The whole of a rollout, with the real client, against the stand-in; killed at each of its requests.

use std::collections::BTreeSet;
use std::time::Duration;

use rollout::{
    CONFIGURATION, Cluster, HELD, Names, Options, RULES, RolloutError, STACK_KEY, Status, control, once,
};
use serde_json::{Value, json};

use crate::apiserver::{self, Kill, NAMESPACE, RELEASE, Server};
use crate::stacks::{STACKS, stack};

const TIMEOUT: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options { identity: "rollout-0".to_owned(), at_once: 2, poll: Duration::from_millis(1) }
}

fn release(server: &Server) -> Cluster {
    let names = Names {
        release: RELEASE.to_owned(),
        desired: "synapse-stack-desired".to_owned(),
        applied: "synapse-stack".to_owned(),
    };
    Cluster::new(server.client(), Some(NAMESPACE.to_owned()), names)
}

/// A cluster in which this stack runs.
async fn installed(index: usize) -> apiserver::Cluster {
    let server = Server::start(apiserver::Cluster::default()).await;
    server.change(|cluster| cluster.helm(index));
    once(&release(&server), &options(), Status::default(), TIMEOUT).await.unwrap();
    let mut cluster = server.change(|cluster| cluster.clone());
    check_end(&cluster, index);
    cluster.requests = 0;
    cluster.starts.clear();
    cluster
}

/// Everything is as the stack wants it.
fn check_end(cluster: &apiserver::Cluster, index: usize) {
    assert_eq!(
        cluster.object("configmaps", "synapse-stack").unwrap()["data"][STACK_KEY],
        STACKS[index].read.text
    );
    for wanted in &STACKS[index].target().wanted {
        let resource = if wanted.replicas.is_some() { "statefulsets" } else { "deployments" };
        let workload = cluster.object(resource, &wanted.key.group.replace('_', "-")).unwrap();
        let says = workload["spec"]["template"]["metadata"]["annotations"][CONFIGURATION].as_str().unwrap();
        assert_eq!(says.trim_end_matches(".again"), wanted.configuration, "{}", wanted.key);
        assert_eq!(workload["metadata"]["annotations"][HELD], Value::Null, "{}", wanted.key);
        assert_eq!(workload["spec"]["replicas"], wanted.replicas.unwrap_or(2), "{}", wanted.key);
        assert_eq!(workload["status"]["readyReplicas"], workload["spec"]["replicas"], "{}", wanted.key);
        // Helm may change the number of a pool's pods.
        let fields = workload["metadata"]["managedFields"].as_array().unwrap();
        let scales = fields.iter().any(|entry| entry["subresource"] == "scale");
        assert!(!(scales && resource == "deployments"), "{}: {fields:?}", wanted.key);
    }
}

#[tokio::test]
async fn an_installation_uses_every_rule_but_the_controller_s() {
    let installed = installed(0).await;
    // In the order of turns, each pod once.
    for (group, starts) in [("main", 1), ("event_persister", 1), ("pusher", 1), ("sync", 2)] {
        let pods =
            installed.names("pods").iter().filter(|pod| pod.starts_with(&group.replace('_', "-"))).count();
        assert_eq!(pods, starts, "{group}");
    }
    let granted: BTreeSet<_> = RULES
        .iter()
        .flat_map(|rule| rule.verbs.iter().map(|verb| (*verb, rule.group, rule.resource.to_owned())))
        .collect();
    let unused: Vec<_> = granted.difference(&installed.asked).collect();
    // Following the desired stack is what the controller does.
    assert_eq!(unused, [&("watch", "", "configmaps".to_owned())], "rules that nothing needs");
}

/// Kills a rollout from one stack to another at each of its requests, and lets the next one go on.
async fn killed_everywhere(from: Option<&str>, to: &str) {
    let (from, to) = (from.map(stack), stack(to));
    let before = match from {
        Some(from) => installed(from).await,
        None => apiserver::Cluster::default(),
    };
    let had = |key| Some(&STACKS[from?].target().of(key)?.configuration);
    for after in [false, true] {
        for request in 1.. {
            let mut cluster = before.clone();
            cluster.helm(to);
            cluster.kill = Some(Kill { request, after });
            let server = Server::start(cluster).await;
            let (cluster, options) = (release(&server), options());
            let finished = tokio::select! {
                result = once(&cluster, &options, Status::default(), TIMEOUT) => { result.unwrap(); true }
                () = server.killed.notified() => false,
            };
            if !finished {
                once(&release(&server), &options, Status::default(), TIMEOUT).await.unwrap();
            }
            let cluster = server.change(|cluster| cluster.clone());
            check_end(&cluster, to);
            // Each pod that restarts does so once, whoever was killed.
            for wanted in &STACKS[to].target().wanted {
                let same = had(&wanted.key) == Some(&wanted.configuration);
                let starts = cluster.starts.get(&wanted.key.group).copied().unwrap_or(0);
                assert_eq!(
                    starts,
                    if same { 0 } else { wanted.replicas.unwrap_or(2) },
                    "{request}: {}",
                    wanted.key
                );
            }
            if finished {
                assert!(request > 20, "it took {request} requests alone");
                break;
            }
        }
    }
}

#[tokio::test]
async fn an_installation_wherever_it_is_killed() {
    killed_everywhere(None, "base").await;
}

#[tokio::test]
async fn more_writers_wherever_it_is_killed() {
    killed_everywhere(Some("base"), "more writers").await;
}

#[tokio::test]
async fn everything_stops_together_wherever_it_is_killed() {
    killed_everywhere(Some("base"), "another Valkey").await;
}

#[tokio::test]
async fn an_option_of_readers_wherever_it_is_killed() {
    killed_everywhere(Some("base"), "an option of readers").await;
}

#[tokio::test]
async fn a_refused_stack_changes_nothing_and_is_told() {
    let server = Server::start(installed(0).await).await;
    let text = STACKS[0].read.text.replace("server_name: example.org", "server_name: other.org");
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/synapse-stack-desired");
    let change = json!({ "data": { STACK_KEY: text } });
    let merge = "application/merge-patch+json";
    server.ask("PATCH", &path, &json!({}), merge, &change).unwrap();
    let before = server.change(|cluster| cluster.clone());
    let error = once(&release(&server), &options(), Status::default(), TIMEOUT).await.unwrap_err();
    assert!(
        matches!(&error, RolloutError::Refused(why) if why.starts_with("`server_name` cannot change")),
        "{error}"
    );
    let after = server.change(|cluster| cluster.clone());
    for resource in ["configmaps", "statefulsets", "deployments", "pods"] {
        for name in before.names(resource) {
            assert_eq!(before.object(resource, name), after.object(resource, name));
        }
    }
    let told: Vec<_> =
        after.names("events").into_iter().filter(|name| !before.names("events").contains(name)).collect();
    let [event] = told[..] else { panic!("one event: {told:?}") };
    let event = after.object("events", event).unwrap();
    assert_eq!((event["type"].as_str(), event["reason"].as_str()), (Some("Warning"), Some("Refused")));
    assert!(event["note"].as_str().unwrap().contains("user IDs, room IDs and signatures carry it"));
}

#[tokio::test]
async fn the_controller_follows_the_desired_stack_and_another_waits() {
    let server = Server::start(installed(0).await).await;
    let (status, end) = (Status::default(), tokio::sync::Notify::new());
    let (cluster, options) = (release(&server), options());
    let controller = control(&cluster, &options, status.clone(), end.notified());
    let meanwhile = async {
        server.change(|cluster| cluster.helm(stack("a shared option")));
        wait(|| server.change(|cluster| cluster.running() == BTreeSet::from([stack("a shared option")])))
            .await;
        // The controller holds the lease, and is idle for less time than that lasts.
        let other = Options { identity: "rollout-1".to_owned(), ..options.clone() };
        let error = once(&cluster, &other, Status::default(), Duration::from_millis(200)).await.unwrap_err();
        assert!(error.to_string().contains("another rollout of this release is at work"), "{error}");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(status.clone().serve(listener));
        assert!(get(address, "/ready").await.starts_with("HTTP/1.1 200"));
        let mut metrics = String::new();
        for _ in 0..1000 {
            metrics = get(address, "/metrics").await;
            if metrics.contains("matrix_stack_rollout_complete 1") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for line in [
            "matrix_stack_rollout_complete 1",
            "matrix_stack_rollout_active 1",
            "matrix_stack_rollout_refused 0",
            "matrix_stack_rollout_steps_total{step=\"apply\"} 1",
        ] {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
        end.notify_one();
    };
    tokio::join!(controller, meanwhile);
    // It let go of the lease, so another can act at once.
    let other = Options { identity: "rollout-1".to_owned(), ..options.clone() };
    once(&cluster, &other, Status::default(), TIMEOUT).await.unwrap();
}

async fn wait(condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen");
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// The stand-in is as strict as it says.
#[tokio::test]
async fn the_stand_in_refuses_what_kubernetes_refuses() {
    let server = Server::start(installed(0).await).await;
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/sync");
    let (apply, merge) = ("application/apply-patch+yaml", "application/merge-patch+json");
    let mine = json!({ "fieldManager": "me" });
    let object = |spec: Value| json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "sync" }, "spec": spec });
    let ask =
        |kind: &str, query: &Value, body: &Value| server.ask("PATCH", &path, query, kind, body).map(drop);
    assert_eq!(ask(apply, &mine, &object(json!({ "paused": true }))), Ok(()));
    assert_eq!(ask(apply, &json!({}), &object(json!({}))), Err(422), "no manager");
    for missing in ["apiVersion", "kind", "metadata"] {
        let mut object = object(json!({}));
        object.as_object_mut().unwrap().remove(missing);
        assert_eq!(ask(apply, &mine, &object), Err(400), "{missing}");
    }
    assert_eq!(ask("application/json", &mine, &object(json!({}))), Err(415));
    assert_eq!(ask(apply, &mine, &object(json!({ "replica": 1 }))), Err(400), "an unknown field");
    assert_eq!(ask(apply, &mine, &object(json!({ "replicas": "1" }))), Err(400), "a wrong type");
    let theirs = object(json!({ "template": { "metadata": { "annotations": { CONFIGURATION: "x" } } } }));
    assert_eq!(ask(apply, &mine, &theirs), Err(409), "somebody else's field");
    let stale = json!({ "metadata": { "resourceVersion": "1" } });
    assert_eq!(ask(merge, &mine, &stale), Err(409), "a version that is not the latest");
    assert_eq!(server.ask("DELETE", &path, &mine, "", &json!({})).map(drop), Err(405));
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    assert_eq!(server.ask("GET", &secrets, &mine, "", &json!({})).map(drop), Err(404));
}
