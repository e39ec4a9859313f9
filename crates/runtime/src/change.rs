//! What has to be done, in which order, for a running stack to become another one. Pure.

use std::sync::Arc;

use model::{Action, Comparison, InstanceChange, Topology, compare};

/// A step of a change. Each is taken when the one before is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// No request goes to any process from now on, and those under way finish.
    Pause,
    /// These stop, workers before main. Those that are no more are forgotten.
    Stop(Vec<String>),
    /// The new configuration is written.
    Configure,
    /// The router loads the new table.
    Route,
    /// These start, main first, and become healthy. Then a pause is over.
    Start(Vec<String>),
    /// This one stops and starts again.
    Roll {
        /// Its name.
        name: String,
        /// Whether other processes' requests lead to it: then it restarts while none is under way.
        paused: bool,
    },
}

/// What happens to each process, given the topology with which each was started, in the order of the list; those that
/// are new come last.
///
/// Usually that is the same topology for all, but a change that broke off leaves some with an earlier one.
pub(crate) fn changes(running: &[(String, Arc<Topology>)], new: &Topology) -> Vec<InstanceChange> {
    let mut compared: Vec<(&Arc<Topology>, Comparison)> = Vec::new();
    let mut changes = Vec::new();
    for (name, old) in running {
        if !compared.iter().any(|(known, _)| Arc::ptr_eq(known, old)) {
            compared.push((old, compare(old, new)));
        }
        let comparison = compared.iter().find(|(known, _)| Arc::ptr_eq(known, old));
        let change = comparison.and_then(|(_, c)| c.changes.iter().find(|change| change.instance == *name));
        changes.extend(change.cloned());
    }
    for new in new.names().filter(|new| running.iter().all(|(name, _)| name != new)) {
        let started = compared.iter().flat_map(|(_, comparison)| &comparison.changes);
        let change = started.into_iter().find(|change| change.instance == new);
        let because = change.map(|change| change.because.clone()).unwrap_or_default();
        changes.push(InstanceChange { instance: new.to_owned(), action: Action::Start, because });
    }
    changes
}

/// The steps of a change.
///
/// Processes that stop together, and those that have to know the new layout, are away at the same time: one that
/// lived on with the old layout would send work to a process that it no longer belongs to.
pub(crate) fn steps(changes: &[InstanceChange], new: &Topology) -> Vec<Step> {
    let with = |actions: &[Action]| -> Vec<String> {
        let found = changes.iter().filter(|change| actions.contains(&change.action));
        found.map(|change| change.instance.clone()).collect()
    };
    let mut steps = if with(&[Action::StopTogether, Action::Restart]).is_empty() {
        vec![
            Step::Configure,
            Step::Start(with(&[Action::Start])),
            Step::Route,
            Step::Stop(with(&[Action::Stop])),
        ]
    } else {
        vec![
            Step::Pause,
            Step::Stop(with(&[Action::StopTogether, Action::Restart, Action::Stop])),
            Step::Configure,
            Step::Route,
            Step::Start(with(&[Action::StopTogether, Action::Restart, Action::Start])),
        ]
    };
    steps.retain(|step| !matches!(step, Step::Stop(names) | Step::Start(names) if names.is_empty()));
    // Main last: what it would stumble over is better found out by one that others can stand in for.
    let (main, others): (Vec<_>, Vec<_>) = with(&[Action::Roll])
        .into_iter()
        .partition(|name| new.instance(name).is_some_and(model::Instance::is_main));
    steps.extend(others.into_iter().chain(main).map(|name| {
        let paused = new.instance(&name).is_some_and(|instance| instance.replication);
        Step::Roll { name, paused }
    }));
    steps
}

/// A field that cannot change while a stack runs, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// Fields that can only change while nothing runs: a field stands for all below it.
const FIXED: &[(&str, &str)] = &[
    ("data_dir", "everything that runs works in it; move the directory in between"),
    ("network", "every process would have to be reached elsewhere"),
    ("database.external", "the data stays where it is; move it in between"),
    ("database.max_connections", "PostgreSQL reads it at its start"),
    ("redis", "all processes must change over at once"),
    ("synapse.python", "the fork server has loaded Synapse from there"),
    ("media.store_path", "the files stay where they are; move them in between"),
    ("secrets.database_password", "the database knows the old one"),
    ("secrets.redis_password", "all processes must change over at once"),
];

/// The first field that keeps `new` from taking the place of `now`, if there is one. The database takes so many
/// connections.
pub(crate) fn fixed(now: &Topology, new: &Topology, connections: u32) -> Option<Fixed> {
    let comparison = compare(now, new);
    if let Some((field, reason)) = comparison.refused.first() {
        return Some(Fixed { field: field.clone(), reason: (*reason).to_owned() });
    }
    let below = |field: &str, above: &str| {
        field.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let mas = |topology: &Topology| {
        let mas = topology.stack().auth.mas.as_ref();
        mas.map(|mas| (mas.run, mas.program.clone(), mas.database.clone()))
    };
    if mas(now) != mas(new) {
        let reason = "sessions and their database change hands: stop the stack in between".to_owned();
        return Some(Fixed { field: "auth.mas".to_owned(), reason });
    }
    for field in &comparison.fields {
        if let Some((_, reason)) = FIXED.iter().find(|(fixed, _)| below(field, fixed)) {
            return Some(Fixed { field: field.clone(), reason: (*reason).to_owned() });
        }
    }
    (new.max_connections() > connections).then(|| Fixed {
        field: comparison.fields.first().cloned().unwrap_or_else(|| "workers".to_owned()),
        reason: format!(
            "the processes may open {} database connections, and PostgreSQL has started with room for {connections}",
            new.max_connections()
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::{Preset, Stack, WorkerGroup};

    use super::*;

    fn stack() -> Stack {
        let mut stack = Stack::new("example.org".to_owned().try_into().unwrap());
        stack.preset = Some(Preset::Custom);
        for name in ["sync", "room", "typing", "event_persister"] {
            stack.workers.insert(name.to_owned(), WorkerGroup { count: Some(1), ..WorkerGroup::default() });
        }
        stack
    }

    fn plan(change: impl FnOnce(&mut Stack)) -> Arc<Topology> {
        let mut stack = stack();
        change(&mut stack);
        Arc::new(model::plan(&stack, Path::new("/run/x"), Preset::Custom).unwrap())
    }

    fn count(stack: &mut Stack, group: &str, count: u16) {
        stack.workers[group].count = Some(count);
    }

    fn running(topology: &Arc<Topology>) -> Vec<(String, Arc<Topology>)> {
        topology.instances().iter().map(|i| (i.name.clone(), Arc::clone(topology))).collect()
    }

    fn between(running: &[(String, Arc<Topology>)], new: &Topology) -> Vec<Step> {
        steps(&changes(running, new), new)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn roll(name: &str, paused: bool) -> Step {
        Step::Roll { name: name.to_owned(), paused }
    }

    #[test]
    fn a_start_is_a_change_from_nothing() {
        let all = names(&["main", "sync_1", "room_1", "typing_1", "event_persister_1"]);
        assert_eq!(between(&[], &plan(|_| ())), [Step::Configure, Step::Start(all), Step::Route]);
    }

    #[test]
    fn nothing_new_touches_no_process() {
        let now = plan(|_| ());
        assert_eq!(between(&running(&now), &plan(|_| ())), [Step::Configure, Step::Route]);
    }

    #[test]
    fn new_ones_join_before_others_leave() {
        let now = plan(|stack| count(stack, "sync", 2));
        let new = plan(|stack| count(stack, "room", 2));
        assert_eq!(
            between(&running(&now), &new),
            [Step::Configure, Step::Start(names(&["room_2"])), Step::Route, Step::Stop(names(&["sync_2"]))]
        );
    }

    #[test]
    fn main_rolls_last_and_those_that_others_ask_roll_in_a_pause() {
        let new = plan(|stack| stack.caches.global_factor = 2.0);
        assert_eq!(
            between(&running(&plan(|_| ())), &new),
            [
                Step::Configure,
                Step::Route,
                roll("sync_1", false),
                roll("room_1", false),
                roll("typing_1", true),
                roll("event_persister_1", true),
                roll("main", true)
            ]
        );
    }

    #[test]
    fn a_new_layout_finds_nobody_with_the_old_one() {
        let now = plan(|stack| count(stack, "sync", 2));
        let new = plan(|stack| {
            count(stack, "event_persister", 2);
            // That they would roll for this is contained in it.
            stack.caches.global_factor = 2.0;
        });
        let old = names(&["main", "sync_1", "sync_2", "room_1", "typing_1", "event_persister_1"]);
        let started =
            names(&["main", "sync_1", "room_1", "typing_1", "event_persister_1", "event_persister_2"]);
        assert_eq!(
            between(&running(&now), &new),
            [Step::Pause, Step::Stop(old), Step::Configure, Step::Route, Step::Start(started)]
        );
    }

    #[test]
    fn a_change_that_broke_off_is_gone_on_with_or_taken_back() {
        let (old, new) = (plan(|_| ()), plan(|stack| stack.workers["sync"].cache_factor = Some(2.0)));
        let mut mixed = running(&new);
        // This one was not reached.
        mixed.iter_mut().filter(|(name, _)| name == "sync_1").for_each(|(_, t)| *t = Arc::clone(&old));
        assert_eq!(between(&mixed, &new), [Step::Configure, Step::Route, roll("sync_1", false)]);
        assert_eq!(between(&mixed, &old), [Step::Configure, Step::Route]);

        // One that the earlier file did not have and the later does not have either.
        let mut mixed = running(&old);
        mixed.push(("room_2".to_owned(), plan(|stack| count(stack, "room", 2))));
        assert_eq!(between(&mixed, &old).last(), Some(&Step::Stop(names(&["room_2"]))));
    }

    #[test]
    fn what_cannot_change_is_named() {
        let now = plan(|_| ());
        let refused = |new: &Topology| fixed(&now, new, 150);
        let field = |new: &Topology| refused(new).map(|fixed| fixed.field);
        assert_eq!(refused(&plan(|stack| count(stack, "event_persister", 3))), None);
        assert_eq!(refused(&plan(|stack| stack.database.pool.max = 7)), None);
        let other = |stack: &mut Stack| stack.server_name = "other.org".to_owned().try_into().unwrap();
        assert_eq!(field(&plan(other)).as_deref(), Some("server_name"));
        let tcp = |stack: &mut Stack| stack.network = model::Network::Tcp(model::Tcp::default());
        assert_eq!(field(&plan(tcp)).as_deref(), Some("network"));
        let moved = |stack: &mut Stack| stack.data_dir = Some("/elsewhere".into());
        assert_eq!(field(&plan(moved)).as_deref(), Some("data_dir"));
        let limit = |stack: &mut Stack| stack.database.max_connections = Some(500);
        assert_eq!(field(&plan(limit)).as_deref(), Some("database.max_connections"));
        let many = refused(&plan(|stack| count(stack, "room", 40))).unwrap();
        assert!(many.field == "workers.room.count" && many.reason.contains("150"), "{many:?}");
    }
}
