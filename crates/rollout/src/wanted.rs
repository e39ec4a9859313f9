//! What a stack asks of the workloads on Kubernetes.

use std::fmt;

use model::{Instance, Layout, Network, Preset, Topology};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Where the pods' files lie unless the stack says so. What is compared are hashes, in which this place is always the same.
const DATA_DIR: &str = "/data";

/// What runs a group's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Processes with names of their own: `NAME_2` is the pod `NAME-2`.
    StatefulSet,
    /// The processes of a pool.
    Deployment,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StatefulSet => "StatefulSet",
            Self::Deployment => "Deployment",
        })
    }
}

/// Which workload: there is one of a kind for a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// The stack's group whose processes its pods run; `main` for the main process.
    pub group: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} of `{}`", self.kind, self.group)
    }
}

/// When a workload's turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Turn {
    /// Main goes first: after a change of writers it must be the first to look at the positions of the streams, and at a
    /// new schema.
    Main,
    /// Then those that serve replication, which all others ask.
    Writers,
    /// Then the rest.
    Others,
}

impl Turn {
    pub(crate) const ALL: [Self; 3] = [Self::Main, Self::Writers, Self::Others];
}

/// What a stack asks of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which one.
    pub key: Key,
    /// When its turn is.
    pub turn: Turn,
    /// The hash of its processes' configuration, but for their names.
    pub configuration: String,
    /// How many pods it has; `None` where something else decides about that, as for pools.
    pub replicas: Option<u32>,
    /// The names of its processes, or of the pool.
    pub(crate) instances: Vec<String>,
}

/// A stack that can run on Kubernetes.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its plan.
    pub topology: Topology,
    /// What it asks for, in the order of turns.
    pub wanted: Vec<Wanted>,
}

/// A stack that cannot be rolled out, and why, in the planner's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

/// The text of a stack, and what it means.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The text, by which it is told from others.
    pub text: String,
    /// Its plan, or why it has none.
    pub target: Result<Target, Unusable>,
}

impl Stack {
    /// Reads the text of a `stack.yaml`, which messages call `name`.
    pub fn read(name: &str, text: &str) -> Self {
        Self { text: text.to_owned(), target: Target::read(name, text) }
    }
}

impl PartialEq for Stack {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Stack {}

impl Target {
    /// Plans the text of a `stack.yaml`, which messages call `name`.
    pub fn read(name: &str, text: &str) -> Result<Self, Unusable> {
        let unusable = |why: &str| Unusable(format!("{name}: {why}"));
        let loaded = config::parse(name, text).map_err(|report| Unusable(report.to_string()))?;
        let stack = &loaded.stack;
        if stack.preset.is_none() {
            return Err(unusable(
                "it names no `preset`, and the pods run on machines of any size; set one, `custom` for none",
            ));
        }
        if !matches!(stack.network, Network::Hosts(_)) {
            return Err(unusable("the pods need names to reach each other by; set `network.hosts`"));
        }
        let layout = Layout::new(stack.data_dir.clone().unwrap_or_else(|| DATA_DIR.into()));
        let topology =
            loaded.plan(&layout.sockets(), Preset::Custom).map_err(|report| Unusable(report.to_string()))?;
        let wanted = wanted(&topology, &layout);
        Ok(Self { topology, wanted })
    }

    /// What it asks of a workload, if it knows it.
    pub fn of(&self, key: &Key) -> Option<&Wanted> {
        self.wanted.iter().find(|wanted| wanted.key == *key)
    }
}

fn wanted(topology: &Topology, layout: &Layout) -> Vec<Wanted> {
    let mut found: Vec<Wanted> = Vec::new();
    for instance in topology.instances() {
        let kind = if instance.is_pool() { Kind::Deployment } else { Kind::StatefulSet };
        let key = Key { kind, group: instance.group.clone() };
        if let Some(wanted) = found.iter_mut().find(|wanted| wanted.key == key) {
            // The processes of a group are alike but for their names.
            wanted.replicas = wanted.replicas.map(|replicas| replicas + 1);
            wanted.instances.push(instance.name.clone());
            continue;
        }
        found.push(Wanted {
            key,
            turn: turn(instance),
            configuration: configuration(topology, layout, instance),
            replicas: (!instance.is_pool()).then_some(1),
            instances: vec![instance.name.clone()],
        });
    }
    found.sort_by_key(|wanted| wanted.turn);
    found
}

fn turn(instance: &Instance) -> Turn {
    match (instance.is_main(), instance.replication) {
        (true, _) => Turn::Main,
        (false, true) => Turn::Writers,
        (false, false) => Turn::Others,
    }
}

/// The hash of the options that a process has in the end: comments and the order of keys do not count.
fn configuration(topology: &Topology, layout: &Layout, instance: &Instance) -> String {
    let mut options = Value::Object(render::synapse_options(topology, layout, instance));
    options.sort_all_objects();
    hex::encode(&Sha256::digest(options.to_string())[..16])
}

/// The options of a workload's processes, for tests to judge by.
#[doc(hidden)]
pub fn options(target: &Target, key: &Key) -> Option<Map<String, Value>> {
    let stack = target.topology.stack();
    let layout = Layout::new(stack.data_dir.clone().unwrap_or_else(|| DATA_DIR.into()));
    let wanted = target.of(key)?;
    let instance = target.topology.instance(wanted.instances.first()?)?;
    Some(render::synapse_options(&target.topology, &layout, instance))
}
