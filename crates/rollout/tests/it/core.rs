//! The core against a small model of Kubernetes, with every interleaving that chance comes upon: steps that are never
//! taken, pods that restart by themselves, wishes that change in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rollout::{Key, Kind, Next, Observed, Pod, Stack, Step, Uncertain, Workload, next};

use crate::stacks::{Process, STACKS, agree, stack};

const AT_ONCE: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Pending,
    /// Its processes run with this stack.
    Running(usize),
    Ready(usize),
    Ending(usize),
}

#[derive(Clone, Debug)]
struct SimPod {
    key: Key,
    number: u32,
    configuration: Option<String>,
    phase: Phase,
}

impl SimPod {
    fn stack(&self) -> Option<usize> {
        match self.phase {
            Phase::Pending => None,
            Phase::Running(stack) | Phase::Ready(stack) | Phase::Ending(stack) => Some(stack),
        }
    }

    fn ends(&self) -> bool {
        matches!(self.phase, Phase::Ending(_))
    }
}

#[derive(Clone, Debug)]
struct SimWorkload {
    configuration: Option<String>,
    held: Option<u32>,
    replicas: u32,
    seen: bool,
    ours: bool,
    /// Which object it is: another one once it was made anew.
    uid: u32,
}

/// A cluster with one release in it.
#[derive(Clone, Debug, Default)]
struct World {
    desired: Option<usize>,
    applied: Option<usize>,
    uncertain: Uncertain,
    workloads: BTreeMap<Key, SimWorkload>,
    pods: Vec<SimPod>,
    started: u32,
    /// How often pods of a workload started.
    starts: BTreeMap<Key, u32>,
    /// Where nothing but the pods may change: no holding, no new template.
    touched: BTreeSet<Key>,
}

impl World {
    fn observe(&self) -> Observed {
        let read = |index: usize| STACKS[index].read.clone();
        let workloads = self.workloads.iter().map(|(key, workload)| {
            let pods: Vec<_> = self.pods.iter().filter(|pod| pod.key == *key).collect();
            let count = |count: usize| u32::try_from(count).unwrap();
            let updated = |pod: &&&SimPod| pod.configuration == workload.configuration && !pod.ends();
            Workload {
                key: key.clone(),
                name: key.group.clone(),
                configuration: workload.configuration.clone(),
                held: workload.held,
                replicas: workload.replicas,
                seen: workload.seen,
                // A Deployment does not count the pods that are ending.
                pods: count(pods.iter().filter(|p| key.kind == Kind::StatefulSet || !p.ends()).count()),
                updated: count(pods.iter().filter(updated).count()),
                ready: count(pods.iter().filter(|p| matches!(p.phase, Phase::Ready(_))).count()),
                scale_is_ours: workload.ours,
            }
        });
        let pods = self.pods.iter().map(|pod| Pod {
            key: pod.key.clone(),
            name: format!("{}-{}", pod.key.group, pod.number),
            configuration: pod.configuration.clone(),
        });
        Observed {
            desired: self.desired.map(read),
            applied: self.applied.map(read),
            uncertain: self.uncertain.clone(),
            workloads: workloads.collect(),
            pods: pods.collect(),
        }
    }

    fn next(&self) -> Next {
        next(&self.observe(), AT_ONCE)
    }

    /// Does a step, which may come from an observation that is out of date.
    fn take(&mut self, step: &Step) {
        match step {
            Step::Apply { text, uncertain } => {
                self.applied = STACKS.iter().position(|stack| stack.read.text == *text);
                self.uncertain.clone_from(uncertain);
            }
            Step::Mark { key, configuration, held, .. } => {
                let Some(workload) = self.workloads.get_mut(key) else { return };
                if workload.configuration != *configuration {
                    workload.seen = false;
                    self.touched.insert(key.clone());
                }
                workload.configuration.clone_from(configuration);
                workload.held = *held;
            }
            Step::Scale { key, replicas, .. } => {
                let Some(workload) = self.workloads.get_mut(key) else { return };
                if *replicas == 0 {
                    self.touched.insert(key.clone());
                }
                workload.seen &= workload.replicas == *replicas;
                (workload.replicas, workload.ours) = (*replicas, true);
            }
            Step::Release { key, .. } => {
                if let Some(workload) = self.workloads.get_mut(key) {
                    workload.ours = false;
                }
            }
        }
        self.check();
    }

    /// Helm brings a release: the wish, and the workloads of its groups.
    fn helm(&mut self, stack: usize) {
        self.desired = Some(stack);
        let wanted: BTreeSet<&Key> = STACKS[stack].target().wanted.iter().map(|wanted| &wanted.key).collect();
        self.workloads.retain(|key, _| wanted.contains(key));
        for key in wanted {
            let new = SimWorkload {
                configuration: None,
                held: None,
                replicas: 1,
                seen: false,
                ours: false,
                uid: 0,
            };
            self.started += 1;
            self.workloads.entry(key.clone()).or_insert(SimWorkload { uid: self.started, ..new });
        }
        let orphans: Vec<usize> =
            (0..self.pods.len()).filter(|pod| !self.workloads.contains_key(&self.pods[*pod].key)).collect();
        for pod in orphans.into_iter().rev() {
            self.end(pod);
        }
    }

    /// Does a step that comes from a look at `then`, unless its object was made anew since.
    fn take_late(&mut self, step: &Step, then: &Self) {
        let same = match step {
            Step::Mark { key, .. } | Step::Scale { key, .. } | Step::Release { key, .. } => {
                let uid = |world: &Self| world.workloads.get(key).map(|workload| workload.uid);
                uid(self) == uid(then)
            }
            Step::Apply { .. } => true,
        };
        if same {
            self.take(step);
        }
    }

    /// The controller of a workload does one thing.
    fn control(&mut self, key: &Key) {
        let Some(workload) = self.workloads.get_mut(key) else { return };
        workload.seen = true;
        let workload = workload.clone();
        let of: Vec<usize> = (0..self.pods.len()).filter(|pod| self.pods[*pod].key == *key).collect();
        let number = |pod: &usize| self.pods[*pod].number;
        let lives = |pod: &&usize| !self.pods[**pod].ends();
        let old = |pod: &&usize| self.pods[**pod].configuration != workload.configuration;
        let ready = |pod: &&usize| matches!(self.pods[**pod].phase, Phase::Ready(_));
        let (end, create) = match key.kind {
            Kind::StatefulSet => {
                let above = of.iter().filter(lives).find(|pod| number(pod) > workload.replicas);
                let missing = (1..=workload.replicas).find(|n| of.iter().all(|pod| number(pod) != *n));
                let all_new_ready = of.iter().filter(|pod| !old(pod)).all(|pod| ready(&pod));
                let roll =
                    of.iter().filter(lives).filter(old).filter(|_| all_new_ready).max_by_key(|p| number(p));
                (above.or(roll.filter(|_| missing.is_none())).copied(), missing)
            }
            Kind::Deployment => {
                let living: Vec<usize> = of.iter().filter(lives).copied().collect();
                let new = living.iter().filter(|pod| !old(pod)).count();
                let many = usize::try_from(workload.replicas).unwrap();
                let surplus = if living.len() > many && (new < many || many == 0) {
                    // One may go as long as enough are ready without it.
                    let spare = living.iter().filter(|pod| ready(pod)).count() > many;
                    living.iter().find(old).filter(|_| spare || many == 0)
                } else {
                    living.iter().find(old).filter(|_| living.len() > many)
                };
                let surplus = surplus.or_else(|| living.first().filter(|_| new > many));
                (surplus.copied(), (new < many && living.len() <= many).then_some(0))
            }
        };
        if let Some(pod) = end {
            self.end(pod);
        } else if let Some(number) = create {
            self.started += 1;
            let number = if number == 0 { 1000 + self.started } else { number };
            let configuration = workload.configuration;
            self.pods.push(SimPod { key: key.clone(), number, configuration, phase: Phase::Pending });
        }
        self.check();
    }

    fn end(&mut self, pod: usize) {
        match self.pods[pod].stack() {
            Some(stack) => self.pods[pod].phase = Phase::Ending(stack),
            None => drop(self.pods.remove(pod)),
        }
    }

    /// A pod comes one step further in its life.
    fn live(&mut self, pod: usize) {
        match self.pods[pod].phase {
            Phase::Pending => {
                // Its init container reads the applied stack, and fails where that does not know it.
                let SimPod { key, number, .. } = &self.pods[pod];
                let Some(applied) = self.applied else { return };
                let Some(wanted) = STACKS[applied].target().of(key) else { return };
                if wanted.replicas.is_some_and(|replicas| *number > replicas) {
                    return;
                }
                *self.starts.entry(key.clone()).or_default() += 1;
                self.pods[pod].phase = Phase::Running(applied);
            }
            Phase::Running(stack) => self.pods[pod].phase = Phase::Ready(stack),
            Phase::Ready(_) => {}
            Phase::Ending(_) => drop(self.pods.remove(pod)),
        }
        self.check();
    }

    fn check(&self) {
        let processes = self
            .pods
            .iter()
            .filter_map(|pod| Some(Process { key: &pod.key, number: pod.number, stack: pod.stack()? }));
        agree(processes);
    }

    /// Everything happens that can, until nothing is left to do. Says how many rounds that took.
    fn settle(&mut self) -> u32 {
        for round in 0..400 {
            let next = self.next();
            if next.is_done() {
                return round;
            }
            assert_eq!(next.refused, None);
            for step in &next.steps {
                self.take(step);
            }
            for key in self.workloads.keys().cloned().collect::<Vec<_>>() {
                self.control(&key);
            }
            for pod in (0..self.pods.len()).rev() {
                self.live(pod);
            }
        }
        panic!("it does not end: {:?}\n{self:#?}", self.next());
    }

    /// Everything is as the desired stack wants it.
    fn check_end(&self) {
        assert_eq!(self.applied, self.desired);
        let target = STACKS[self.desired.unwrap()].target();
        for wanted in &target.wanted {
            let workload = &self.workloads[&wanted.key];
            let says = workload.configuration.as_deref().map(|says| says.trim_end_matches(".again"));
            assert_eq!((workload.held, says), (None, Some(wanted.configuration.as_str())));
            let pods: Vec<_> = self.pods.iter().filter(|pod| pod.key == wanted.key && !pod.ends()).collect();
            assert_eq!(pods.len(), usize::try_from(wanted.replicas.unwrap_or(workload.replicas)).unwrap());
            assert!(workload.replicas > 0);
            for pod in pods {
                let stack = STACKS[pod.stack().unwrap()].target();
                assert_eq!(stack.of(&pod.key).unwrap().configuration, wanted.configuration, "{pod:?}");
            }
            assert!(!(workload.ours && wanted.key.kind == Kind::Deployment), "{} is released", wanted.key);
        }
    }

    fn installed(stack: usize) -> Self {
        let mut world = Self::default();
        world.helm(stack);
        world.settle();
        world.check_end();
        (world.starts, world.touched) = Default::default();
        world
    }
}

#[test]
fn a_first_installation_starts_every_pod_once() {
    let mut world = World::default();
    world.helm(stack("more writers"));
    // Kubernetes was first.
    for key in world.workloads.keys().cloned().collect::<Vec<_>>() {
        world.control(&key);
    }
    world.settle();
    world.check_end();
    for wanted in &STACKS[stack("more writers")].target().wanted {
        assert_eq!(world.starts[&wanted.key], wanted.replicas.unwrap_or(1), "{}", wanted.key);
    }
}

/// Every change of one stack into another: what has the same configuration is left alone, the rest starts once for
/// each of its pods.
#[test]
fn nothing_restarts_that_need_not() {
    for from in 0..STACKS.len() {
        let installed = World::installed(from);
        for to in 0..STACKS.len() {
            let mut world = installed.clone();
            world.helm(to);
            world.settle();
            world.check_end();
            let change = format!("{} to {}", STACKS[from].name, STACKS[to].name);
            for wanted in &STACKS[to].target().wanted {
                let before = STACKS[from].target().of(&wanted.key);
                let same = before.is_some_and(|before| before.configuration == wanted.configuration);
                let had = before.map_or(0, |before| before.replicas.unwrap_or(0));
                let has = wanted.replicas.unwrap_or(world.workloads[&wanted.key].replicas);
                let expected = if same { has.saturating_sub(had) } else { has };
                let expected = if same && wanted.replicas.is_none() { 0 } else { expected };
                let starts = world.starts.get(&wanted.key).copied().unwrap_or(0);
                assert_eq!(starts, expected, "{change}: {}", wanted.key);
                assert!(
                    !same || !world.touched.contains(&wanted.key),
                    "{change}: {} was touched",
                    wanted.key
                );
            }
        }
    }
}

#[test]
fn the_planner_s_refusal_changes_nothing() {
    let world = World::installed(0);
    let ask = |desired: String| {
        let desired = Some(Arc::new(Stack::read("the desired stack", &desired)));
        next(&Observed { desired, ..world.observe() }, AT_ONCE)
    };
    let other = ask(STACKS[0].read.text.replace("server_name: example.org", "server_name: other.org"));
    assert!(other.steps.is_empty());
    assert!(other.refused.unwrap().starts_with("`server_name` cannot change on a stack that has data"));
    let broken = ask(STACKS[0].read.text.replace("pusher: {count: 1}", "typing: {count: 2}"));
    assert!(broken.steps.is_empty());
    assert!(broken.refused.unwrap().contains("workers.typing.count"));
    for (line, message) in [("preset: custom\n", "names no `preset`"), ("network:", "set `network.hosts`")] {
        let text: String =
            STACKS[0].read.text.split_inclusive('\n').filter(|l| !l.starts_with(line.trim_end())).collect();
        assert!(ask(text).refused.unwrap().contains(message), "{message}");
    }
}

#[test]
fn a_refusal_in_the_middle_brings_what_was_applied_back() {
    let mut world = World::installed(0);
    world.helm(stack("more writers"));
    let persisters = Key { kind: Kind::StatefulSet, group: "event_persister".to_owned() };
    for step in world.next().steps {
        world.take(&step);
    }
    assert_eq!(world.workloads[&persisters].replicas, 0);
    let desired = Some(Arc::new(Stack::read("the desired stack", "server_name: other.org")));
    let refused = Observed { desired, ..world.observe() };
    let next = next(&refused, AT_ONCE);
    assert!(next.refused.is_some());
    assert!(
        next.steps
            .iter()
            .any(|step| matches!(step, Step::Scale { key, replicas: 1, .. } if *key == persisters))
    );
}

#[test]
fn what_the_desired_stack_needs_is_waited_for_before_anything_stops() {
    let mut world = World::installed(0);
    world.desired = Some(stack("typing leaves main"));
    let next = world.next();
    assert_eq!(next.steps, []);
    assert_eq!(next.waiting, ["the StatefulSet of `typing` does not exist yet"]);
}

#[test]
fn a_lost_applied_stack_is_written_anew_without_a_restart() {
    let mut world = World::installed(0);
    world.applied = None;
    world.settle();
    world.check_end();
    assert_eq!((world.starts.len(), world.touched.len()), (0, 0));
    // With another wish it cannot be known who would disagree, so whatever changes stops together.
    world.applied = None;
    world.helm(stack("more writers"));
    world.settle();
    world.check_end();
}

#[test]
fn a_pool_comes_back_with_as_many_pods_as_it_had() {
    let mut world = World::installed(0);
    let sync = Key { kind: Kind::Deployment, group: "sync".to_owned() };
    world.workloads.get_mut(&sync).unwrap().replicas = 3;
    world.settle();
    world.helm(stack("another Valkey"));
    world.settle();
    world.check_end();
    assert_eq!(world.workloads[&sync].replicas, 3);
}

/// A pod that started by itself in the middle has what nobody wants any more, whatever its template says.
#[test]
fn a_change_taken_back_reaches_pods_that_took_it_by_accident() {
    let mut world = World::installed(0);
    world.helm(stack("a shared option"));
    for step in world.next().steps {
        world.take(&step);
    }
    assert_eq!(world.applied, world.desired);
    let pod = world.pods.iter().position(|pod| pod.key.group == "sync").unwrap();
    world.pods.remove(pod);
    let sync = Key { kind: Kind::Deployment, group: "sync".to_owned() };
    world.control(&sync);
    world.live(world.pods.len() - 1);
    world.helm(0);
    world.settle();
    world.check_end();
    // Once is enough.
    let says = world.workloads[&sync].configuration.clone();
    world.helm(stack("a comment"));
    world.settle();
    world.check_end();
    assert_eq!(world.workloads[&sync].configuration, says);
}

#[derive(Clone, Debug)]
enum Act {
    /// Look, and take so many steps of what is to be done.
    Look(usize),
    /// Take one more of them, however out of date.
    Take,
    Control(prop::sample::Index),
    Live(prop::sample::Index),
    /// A pod is gone at once, with its node.
    Kill(prop::sample::Index),
    /// A pod is told to end.
    Evict(prop::sample::Index),
    Helm(usize),
    /// An autoscaler at work.
    Autoscale(u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let index = any::<prop::sample::Index>;
    let act = prop_oneof![
        6 => (0..4usize).prop_map(Act::Look),
        4 => Just(Act::Take),
        20 => index().prop_map(Act::Control),
        30 => index().prop_map(Act::Live),
        2 => index().prop_map(Act::Kill),
        2 => index().prop_map(Act::Evict),
        1 => (0..STACKS.len()).prop_map(Act::Helm),
        1 => (1..4u32).prop_map(Act::Autoscale),
    ];
    prop::collection::vec(act, 0..200)
}

proptest! {
    /// `check` holds after every single thing that happens, and in the end everything is as wished.
    #[test]
    fn whatever_happens_nobody_disagrees_and_it_ends(from in 0..STACKS.len(), to in 0..STACKS.len(), acts in acts()) {
        static INSTALLED: LazyLock<Vec<World>> =
            LazyLock::new(|| (0..STACKS.len()).map(World::installed).collect());
        let mut world = INSTALLED[from].clone();
        world.helm(to);
        let mut batch = Vec::new().into_iter();
        let mut then = world.clone();
        for act in acts {
            match act {
                Act::Look(steps) => {
                    batch = world.next().steps.into_iter();
                    then = world.clone();
                    for step in batch.by_ref().take(steps) {
                        world.take(&step);
                    }
                }
                Act::Take => {
                    if let Some(step) = batch.next() {
                        world.take_late(&step, &then);
                    }
                }
                Act::Control(index) => {
                    let key = index.get(&world.workloads.keys().cloned().collect::<Vec<_>>()).clone();
                    world.control(&key);
                }
                Act::Live(index) if !world.pods.is_empty() => world.live(index.index(world.pods.len())),
                Act::Kill(index) if !world.pods.is_empty() => {
                    world.pods.remove(index.index(world.pods.len()));
                }
                Act::Evict(index) if !world.pods.is_empty() => world.end(index.index(world.pods.len())),
                Act::Helm(stack) => world.helm(stack),
                Act::Autoscale(replicas) => {
                    // It leaves alone what is scaled to zero.
                    for (key, workload) in &mut world.workloads {
                        if key.kind == Kind::Deployment && workload.replicas > 0 {
                            workload.seen &= workload.replicas == replicas;
                            (workload.replicas, workload.ours) = (replicas, false);
                        }
                    }
                }
                Act::Live(_) | Act::Kill(_) | Act::Evict(_) => {}
            }
            world.check();
        }
        world.settle();
        world.check_end();
    }
}
