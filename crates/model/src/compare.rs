//! What has to happen to the processes when one topology takes another's place.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::{Address, CompanionKind, Group, Instance, Lookup, Role, Stack, Stream, Topology};

/// The field that makes groups pools.
const POOLS: &str = "network.hosts.pools";

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: its effective configuration is the same.
    Keep,
    /// It restarts at any time, one after the other: no other process has to agree with what changed.
    Roll,
    /// It restarts with the change, once those that stop together have stopped: it has to know the new layout.
    Restart,
    /// It stops, together with all that have this action, before any of them starts again: two of them with
    /// different configurations would both believe that some work is theirs.
    StopTogether,
    /// It is new.
    Start,
    /// It goes.
    Stop,
}

impl Action {
    /// The action in the words of the command line.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Keep => "stays as it is",
            Self::Roll => "restarts, one at a time",
            Self::Restart => "restarts with the change",
            Self::StopTogether => "stops together with the others of its kind, then starts",
            Self::Start => "appears",
            Self::Stop => "goes",
        }
    }
}

/// What happens to one process, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceChange {
    /// The process's name.
    pub instance: String,
    /// What happens to it.
    pub action: Action,
    /// The fields of `stack.yaml` that cause it, sorted.
    pub because: Vec<String>,
}

/// The changes by what happens and why, in the order of [`Action`].
pub fn grouped(changes: &[InstanceChange]) -> BTreeMap<(Action, &[String]), Vec<&str>> {
    let mut groups: BTreeMap<(Action, &[String]), Vec<&str>> = BTreeMap::new();
    for change in changes {
        groups.entry((change.action, &change.because)).or_default().push(&change.instance);
    }
    groups
}

/// What changes between two topologies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// One entry a process of either topology: the old ones in their order, then the new ones, then the companions.
    pub changes: Vec<InstanceChange>,
    /// The old processes that must all have ended before any process reads the new configuration: those that stop
    /// together, and those of their kind that go.
    pub end_first: BTreeSet<String>,
    /// Whether the router has to load a new table.
    pub router: bool,
    /// The fields that differ.
    pub fields: Vec<String>,
    /// Fields that cannot change on a stack that has data, each with the reason.
    pub refused: Vec<(String, &'static str)>,
}

impl Comparison {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
            && !self.router
            && self.changes.iter().all(|change| change.action == Action::Keep)
    }
}

/// Says what has to happen for `new` to take the place of `old`.
///
/// Stream writers, pushers and federation senders shard their work by lists that every process must agree on, so a
/// change of such a list stops all that were or will be on it together, and restarts everyone else.
pub fn compare(old: &Topology, new: &Topology) -> Comparison {
    let fields = changed_fields(old, new);
    let mut because: BTreeMap<(&str, Action), BTreeSet<String>> = BTreeMap::new();
    let kept: Vec<&Instance> = old.instances().iter().filter(|i| new.instance(&i.name).is_some()).collect();

    let mut end_first = BTreeSet::new();
    let mut note = |instance: &Instance, action: Action, field: String| {
        if action == Action::StopTogether {
            end_first.insert(instance.name.clone());
        }
        // Names live in `old` for every process in `kept`, so the borrow outlives the map.
        if let Some(kept) = kept.iter().find(|kept| kept.name == instance.name) {
            because.entry((&kept.name, action)).or_default().insert(field);
        }
    };

    // Work that is shared out by lists which every process must agree on.
    for (role, before, after) in shared_lists(old, new) {
        if names(&before) == names(&after) {
            continue;
        }
        for field in fields_behind(old, new, role) {
            for instance in old.instances() {
                let on_list = before.iter().chain(&after).any(|i| i.name == instance.name);
                note(instance, if on_list { Action::StopTogether } else { Action::Restart }, field.clone());
            }
        }
    }

    // Options that every process has.
    for field in &fields {
        if let Some(action) = shared_field_action(field) {
            for instance in old.instances() {
                note(instance, action, field.clone());
            }
        }
    }
    if old.stack().base_url() != new.stack().base_url() && !fields.iter().any(|f| f == "public_base_url") {
        for instance in old.instances() {
            note(instance, Action::Roll, "listen.address".to_owned());
        }
    }

    // All of Synapse's processes ask the same service whose a token is.
    let asked = |topology: &Topology| topology.mas().map(|mas| mas.address.clone());
    if asked(old) != asked(new) {
        for instance in old.instances() {
            note(instance, Action::Restart, "auth.mas".to_owned());
        }
    }

    // Options of one process.
    for before in &kept {
        let Some(after) = new.instance(&before.name) else { continue };
        for (field, action) in own_changes(before, after) {
            note(before, action, field);
        }
    }

    let mut changes: Vec<InstanceChange> = Vec::new();
    // Which processes come and go because a group of the same size became a pool, or ceased to be one.
    let come_and_go = |group: &str| {
        let fields = group_fields(old, new, group);
        if fields.is_empty() { BTreeSet::from([POOLS.to_owned()]) } else { fields }
    };
    for instance in old.instances() {
        let change = if new.instance(&instance.name).is_none() {
            (Action::Stop, come_and_go(&instance.group))
        } else {
            [Action::StopTogether, Action::Restart, Action::Roll]
                .into_iter()
                .find_map(|action| {
                    because.remove(&(instance.name.as_str(), action)).map(|fields| (action, fields))
                })
                .unwrap_or((Action::Keep, BTreeSet::new()))
        };
        changes.push(InstanceChange {
            instance: instance.name.clone(),
            action: change.0,
            because: change.1.into_iter().collect(),
        });
    }
    for instance in new.instances().iter().filter(|i| old.instance(&i.name).is_none()) {
        changes.push(InstanceChange {
            instance: instance.name.clone(),
            action: Action::Start,
            because: come_and_go(&instance.group).into_iter().collect(),
        });
    }
    changes.extend(companion_changes(old, new));
    let router = router_view(old) != router_view(new)
        || fields.iter().any(|f| {
            ["listen", "well_known", "companions", "auth", "federation", "public_base_url", "media"]
                .contains(&section(f))
        });
    let refused = fields
        .iter()
        .filter(|field| *field == "server_name")
        .map(|field| (field.clone(), "user IDs, room IDs and signatures carry it; start a new stack instead"))
        .collect();
    Comparison { changes, end_first, router, fields, refused }
}

/// What happens to the services beside Synapse: nobody has to agree with them.
fn companion_changes(old: &Topology, new: &Topology) -> Vec<InstanceChange> {
    let change = |kind: CompanionKind, action: Action| InstanceChange {
        instance: kind.name().to_owned(),
        action,
        because: match action {
            Action::Keep => Vec::new(),
            _ => vec![kind.field().to_owned()],
        },
    };
    let find = |topology: &'_ Topology, kind: CompanionKind| topology.companion(kind.name()).cloned();
    CompanionKind::ALL
        .into_iter()
        .filter_map(|kind| {
            let action = match (find(old, kind), find(new, kind)) {
                (None, None) => return None,
                (None, Some(_)) => Action::Start,
                (Some(_), None) => Action::Stop,
                (Some(before), Some(after)) if before.settings == after.settings => Action::Keep,
                (Some(_), Some(_)) => Action::Roll,
            };
            Some(change(kind, action))
        })
        .collect()
}

/// Every list of processes that all must agree on: whose it is, who was on it, who will be.
fn shared_lists<'a>(
    old: &'a Topology,
    new: &'a Topology,
) -> Vec<(Role, Vec<&'a Instance>, Vec<&'a Instance>)> {
    let streams = Stream::ALL
        .into_iter()
        .map(|s| (s.role(), old.writers(s).collect::<Vec<_>>(), new.writers(s).collect::<Vec<_>>()));
    let others =
        [Role::Pusher, Role::FederationSender, Role::Background, Role::UserDir, Role::MediaBackground]
            .into_iter()
            .map(|role| (role, old.serving(role).1, new.serving(role).1));
    streams.chain(others).collect()
}

fn names<'a>(instances: &[&'a Instance]) -> BTreeSet<&'a str> {
    instances.iter().map(|instance| instance.name.as_str()).collect()
}

/// The fields because of which a role is carried by other processes now.
fn fields_behind(old: &Topology, new: &Topology, role: Role) -> BTreeSet<String> {
    let carriers: BTreeSet<&str> = [old, new]
        .iter()
        .flat_map(|t| t.groups().iter().filter(|g| g.roles.contains(&role) || stands_in(role, g)))
        .map(|g| g.name.as_str())
        .collect();
    let found: BTreeSet<String> =
        carriers.into_iter().flat_map(|group| group_fields(old, new, group)).collect();
    if found.is_empty() { BTreeSet::from(["workers".to_owned()]) } else { found }
}

fn stands_in(role: Role, group: &Group) -> bool {
    role.spec().fallback.iter().any(|fallback| group.roles.contains(fallback))
}

/// The fields because of which a group has other instances or roles now.
fn group_fields(old: &Topology, new: &Topology, name: &str) -> BTreeSet<String> {
    let find = |t: &'_ Topology| t.groups().iter().find(|g| g.name == name).cloned();
    let (before, after) = (find(old), find(new));
    let mut fields = BTreeSet::new();
    if before.as_ref().map(|g| (&g.roles, g.count)) == after.as_ref().map(|g| (&g.roles, g.count)) {
        return fields;
    }
    let written = |stack: &Stack| stack.workers.get(name).cloned();
    let (wrote, writes) = (written(old.stack()), written(new.stack()));
    if wrote.as_ref().map(|g| (&g.roles, g.count)) == writes.as_ref().map(|g| (&g.roles, g.count)) {
        fields.insert("preset".to_owned());
        return fields;
    }
    if wrote.is_none() != writes.is_none() && (before.is_none() || after.is_none()) {
        fields.insert(format!("workers.{name}"));
        return fields;
    }
    let roles = |group: &Option<Group>| group.as_ref().map(|g| g.roles.clone());
    let count = |group: &Option<Group>| group.as_ref().map(|g| g.count);
    if roles(&before) != roles(&after) && before.is_some() && after.is_some() {
        fields.insert(format!("workers.{name}.roles"));
    }
    if count(&before) != count(&after) {
        fields.insert(format!("workers.{name}.count"));
    }
    fields
}

/// What changes for one process by its own options.
fn own_changes(before: &Instance, after: &Instance) -> Vec<(String, Action)> {
    let group = &after.group;
    let field = |name: &str| {
        if group == "main" { format!("database.{name}") } else { format!("workers.{group}.{name}") }
    };
    let mut found = Vec::new();
    if before.roles != after.roles {
        found.push((field("roles"), Action::Restart));
    }
    if before.pool != after.pool {
        found.push((field("pool"), Action::Roll));
    }
    if before.cache_factor != after.cache_factor {
        found.push((field("cache_factor"), Action::Roll));
    }
    if before.extra != after.extra {
        found.push((field("extra"), Action::Roll));
    }
    if (before.enable_media_repo, before.app) != (after.enable_media_repo, after.app)
        && before.roles == after.roles
    {
        found.push(("workers".to_owned(), Action::Restart));
    }
    // The processes of a pool do not know the name that they stand behind.
    let of_a_pool = before.is_pool() && after.is_pool();
    if (&before.client, &before.private) != (&after.client, &after.private)
        && before.roles == after.roles
        && !of_a_pool
    {
        // With TCP ports counted up, a new process moves the ports of those behind it.
        found.push(("network".to_owned(), Action::StopTogether));
    }
    found
}

/// What a changed field that all processes share does to them; nothing for fields that no Synapse process reads.
fn shared_field_action(field: &str) -> Option<Action> {
    match section(field) {
        "network" if field.starts_with(POOLS) => None,
        "server_name" | "network" | "data_dir" | "redis" => Some(Action::StopTogether),
        "database" if field.starts_with("database.external") => Some(Action::StopTogether),
        "secrets" if field.starts_with("secrets.worker_replication_secret") => Some(Action::StopTogether),
        "public_base_url" | "synapse" | "registration" | "media" | "caches" | "federation" | "secrets" => {
            Some(Action::Roll)
        }
        // `listen`, `well_known`, the names of pools: the router alone. `workers`, `preset`, `database.pool`: by what they lead to.
        _ => None,
    }
}

fn section(field: &str) -> &str {
    field.split('.').next().unwrap_or(field)
}

/// What the router reads of an instance: its name, its roles, and where it is found in which way.
type RouterView<'a> = (&'a str, &'a [Role], &'a Option<Address>, Option<Lookup>);

fn router_view(topology: &Topology) -> Vec<RouterView<'_>> {
    let view = |i: &'_ Instance| i.replicas.map(|replicas| replicas.lookup);
    topology.instances().iter().map(|i| (i.name.as_str(), i.roles.as_slice(), &i.client, view(i))).collect()
}

/// The dotted paths of all fields that differ.
fn changed_fields(old: &Topology, new: &Topology) -> Vec<String> {
    let tree = |topology: &Topology| serde_json::to_value(topology.stack()).unwrap_or(Value::Null);
    let mut fields = Vec::new();
    differing("", &tree(old), &tree(new), &mut fields);
    if old.preset() != new.preset() && !fields.iter().any(|field| field == "preset") {
        fields.push("preset".to_owned());
    }
    fields.sort();
    fields
}

fn differing(path: &str, old: &Value, new: &Value, fields: &mut Vec<String>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differing(
                    &path,
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                    fields,
                );
            }
        }
        _ => fields.push(path.to_owned()),
    }
}
