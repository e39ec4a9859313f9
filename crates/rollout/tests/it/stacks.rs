//! Stacks to change into each other, and what their processes must agree on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use rollout::{Key, Kind, Stack, Target, options};
use serde_json::Value;

/// Stacks, each a change of the first.
pub(crate) static STACKS: LazyLock<Vec<Variant>> = LazyLock::new(|| {
    let pools = "pools: {suffix: .svc}";
    [
        ("base", pools, "", "event_persister: {count: 1}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
        ("more writers", pools, "", "event_persister: {count: 3}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
        ("typing leaves main", pools, "", "event_persister: {count: 1}, typing: {}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
        ("other pushers", pools, "", "event_persister: {count: 1}, sync: {count: 2, max_count: 4}, pusher: {count: 3}"),
        ("no pushers", pools, "", "event_persister: {count: 1}, sync: {count: 2, max_count: 4}"),
        ("a shared option", pools, "caches: {global_factor: 2}", "event_persister: {count: 1}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
        ("an option of readers", pools, "", "event_persister: {count: 1}, sync: {count: 2, max_count: 4, cache_factor: 3}, pusher: {count: 1}"),
        ("readers by name", "pools: null", "", "event_persister: {count: 1}, sync: {count: 2}, pusher: {count: 1}"),
        ("fewer readers by name", "pools: null", "", "event_persister: {count: 1}, sync: {count: 1}, pusher: {count: 1}"),
        ("a second duty", pools, "", "event_persister: {count: 1, roles: [event_persister, typing]}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
        ("another Valkey", pools, "redis: {external: {host: other}}", "event_persister: {count: 1}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
        ("a comment", pools, "# nothing", "event_persister: {count: 1}, sync: {count: 2, max_count: 4}, pusher: {count: 1}"),
    ]
    .into_iter()
    .map(|(name, pools, more, workers)| {
        let redis = if more.starts_with("redis") { "" } else { "redis: {external: {host: valkey}}\n" };
        let text = format!(
            "server_name: example.org\npreset: custom\nnetwork: {{hosts: {{{pools}}}}}\n{redis}\
             public_base_url: https://matrix.example.org\n\
             database: {{external: {{host: postgres}}, max_connections: 500}}\n{more}\nworkers: {{{workers}}}\n"
        );
        let read = Arc::new(Stack::read(name, &text));
        let target = read.target.as_ref().unwrap_or_else(|error| panic!("{error}"));
        let views = target.wanted.iter().map(|w| (w.key.clone(), View::of(target, &w.key))).collect();
        Variant { name, read, views }
    })
    .collect()
});

/// One of the stacks.
pub(crate) struct Variant {
    /// What it is.
    pub(crate) name: &'static str,
    /// It.
    pub(crate) read: Arc<Stack>,
    views: BTreeMap<Key, View>,
}

impl Variant {
    /// Its plan.
    pub(crate) fn target(&self) -> &Target {
        self.read.target.as_ref().unwrap()
    }
}

/// The index of the stack of this name.
pub(crate) fn stack(name: &str) -> usize {
    STACKS.iter().position(|stack| stack.name == name).unwrap()
}

/// What a group's processes believe about who does what, taken from the options that Synapse reads.
#[derive(Debug)]
struct View {
    /// Each kind of work with those who do it.
    lists: BTreeMap<String, BTreeSet<String>>,
    /// What all processes must have in common at any time.
    common: Value,
}

impl View {
    fn of(target: &Target, key: &Key) -> Self {
        let options = options(target, key).unwrap();
        let mut lists = BTreeMap::new();
        let names = |value: &Value| match value {
            Value::Array(names) => names.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
            name => BTreeSet::from([name.as_str().unwrap().to_owned()]),
        };
        for (stream, writers) in options["stream_writers"].as_object().unwrap() {
            lists.insert(format!("stream {stream}"), names(writers));
        }
        for duty in [
            "run_background_tasks_on",
            "notify_appservices_from_worker",
            "update_user_directory_from_worker",
            "media_instance_running_background_jobs",
            "pusher_instances",
            "federation_sender_instances",
        ] {
            lists.insert(duty.to_owned(), names(&options[duty]));
        }
        Self { lists, common: serde_json::json!([options["redis"], options["database"]["args"]["host"]]) }
    }
}

/// A process that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process<'a> {
    /// Of which workload.
    pub(crate) key: &'a Key,
    /// Which of its pods.
    pub(crate) number: u32,
    /// With which of the stacks.
    pub(crate) stack: usize,
}

impl Process<'_> {
    /// Its name, as others list it; a pool's processes have names that nobody lists.
    fn name(&self) -> Option<String> {
        match (self.key.kind, self.key.group.as_str()) {
            (Kind::Deployment, _) => None,
            (Kind::StatefulSet, "main") => Some("master".to_owned()),
            (Kind::StatefulSet, group) => Some(format!("{group}_{}", self.number)),
        }
    }
}

/// What must hold at every moment: nobody who does some kind of work disagrees with another who does it about who all of
/// them are, and all processes use one database and one Valkey.
pub(crate) fn agree<'a>(processes: impl Iterator<Item = Process<'a>>) {
    let mut known: BTreeMap<&String, (Process, &BTreeSet<String>)> = BTreeMap::new();
    let mut first: Option<(Process, &Value)> = None;
    for process in processes {
        let view = &STACKS[process.stack].views[process.key];
        for (work, list) in &view.lists {
            if process.name().is_some_and(|name| list.contains(&name)) {
                let (other, agreed) = known.entry(work).or_insert((process, list));
                assert_eq!(*agreed, list, "{work}: {other:?} and {process:?} disagree");
            }
        }
        let (other, common) = first.get_or_insert((process, &view.common));
        assert_eq!(*common, &view.common, "{other:?} and {process:?} use different servers");
    }
}
