//! The core: from what is in the cluster to what is to be done next. Pure, and without a memory of its own.
//!
//! Pods read the *applied* stack when they start, and nothing else. So there are two phases, each of which can be entered
//! at any point:
//!
//! 1. The applied stack is not the desired one: whatever must not run with both is *held*, which means marked and scaled to
//!    zero; once its pods are gone, the desired stack becomes the applied one.
//! 2. They are the same: turn by turn, what is held is started and what has another configuration is rolled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use model::{Comparison, compare};

use crate::wanted::{Key, Kind, Stack, Target, Turn, Wanted};

/// Workloads some of whose pods may have another configuration than their template says, with what it says. A pod that
/// started by itself, after a stack was applied and before its workload's turn, has that one's configuration; if the next
/// stack then brings back what the template still says, only a restart makes it sure. While the template says this, that
/// is still to come.
pub type Uncertain = BTreeMap<Key, String>;

/// What is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The desired stack.
    pub desired: Option<Arc<Stack>>,
    /// The applied stack.
    pub applied: Option<Arc<Stack>>,
    /// What was uncertain when it was applied.
    pub uncertain: Uncertain,
    /// The workloads of the release that belong to a group.
    pub workloads: Vec<Workload>,
    /// Their pods, and those that deleted workloads left.
    pub pods: Vec<Pod>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Which one.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// The configuration that stands in its pod template.
    pub configuration: Option<String>,
    /// Set while it is held: how many pods it had.
    pub held: Option<u32>,
    /// How many pods it shall have.
    pub replicas: u32,
    /// Whether Kubernetes' own controller has seen what it shall be.
    pub seen: bool,
    /// How many pods it has.
    pub pods: u32,
    /// How many of them come from its present template.
    pub updated: u32,
    /// How many of them are ready.
    pub ready: u32,
    /// Whether the API server still takes the number of its pods for ours to say.
    pub scale_is_ours: bool,
}

impl Workload {
    /// Whether its template says this configuration.
    fn says(&self, configuration: &str) -> bool {
        says(self.configuration.as_ref(), configuration)
    }

    /// Whether its template says the wanted configuration, and its pods have it or will have it.
    fn has(&self, wanted: &Wanted, uncertain: &Uncertain) -> bool {
        self.says(&wanted.configuration) && uncertain.get(&self.key) != self.configuration.as_ref()
    }

    /// What its template has to say so that all of its pods have the wanted configuration.
    fn to_say(&self, wanted: &Wanted, uncertain: &Uncertain) -> String {
        match &self.configuration {
            Some(says) if self.has(wanted, uncertain) => says.clone(),
            Some(says) if *says == wanted.configuration => format!("{says}{AGAIN}"),
            _ => wanted.configuration.clone(),
        }
    }

    fn settled(&self) -> bool {
        self.seen && [self.pods, self.updated, self.ready].iter().all(|count| *count == self.replicas)
    }
}

/// A pod whose processes have not all ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The workload that it belongs to.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// The configuration that its template had.
    pub configuration: Option<String>,
}

impl Pod {
    fn has(&self, configuration: &str) -> bool {
        says(self.configuration.as_ref(), configuration)
    }
}

/// Whether an annotation says this configuration.
fn says(annotation: Option<&String>, configuration: &str) -> bool {
    annotation.is_some_and(|says| says.strip_suffix(AGAIN).unwrap_or(says) == configuration)
}

/// One thing to do. Each is one request that changes something, and each can be the last before everything is begun anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set what is ours of a workload.
    Mark {
        /// The workload.
        key: Key,
        /// Its name.
        name: String,
        /// The configuration in its pod template. Another one makes Kubernetes roll its pods.
        configuration: Option<String>,
        /// Whether it is held, and how many pods it had.
        held: Option<u32>,
    },
    /// Set how many pods a workload has.
    Scale {
        /// The workload.
        key: Key,
        /// Its name.
        name: String,
        /// So many.
        replicas: u32,
    },
    /// Leave the number of a pool's pods to others again.
    Release {
        /// The workload.
        key: Key,
        /// Its name.
        name: String,
    },
    /// Make the desired stack the applied one.
    Apply {
        /// Its text.
        text: String,
        /// What is uncertain then.
        uncertain: Uncertain,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark { key, held: Some(_), .. } => write!(f, "hold {key}"),
            Self::Mark { key, held: None, .. } => write!(f, "let {key} run with its configuration"),
            Self::Scale { key, replicas, .. } => write!(f, "scale {key} to {replicas}"),
            Self::Release { key, .. } => write!(f, "leave the scale of {key} to others"),
            Self::Apply { .. } => f.write_str("apply the desired stack"),
        }
    }
}

/// What stands behind a configuration in a template that said the same one before.
const AGAIN: &str = ".again";

/// What is to be done next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Things to do now, in this order.
    pub steps: Vec<Step>,
    /// What has to happen by itself before more can be done.
    pub waiting: Vec<String>,
    /// Why the desired stack cannot be rolled out. What was applied before goes on.
    pub refused: Option<String>,
}

impl Next {
    /// Whether the desired stack is applied and all of its pods are ready.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_empty() && self.refused.is_none()
    }
}

impl Observed {
    /// What was applied, if that is known. What this version cannot read was applied by another.
    fn applied(&self) -> Option<&Target> {
        self.applied.as_ref()?.target.as_ref().ok()
    }
}

/// What the planner says about the change from the applied stack to the desired one; `None` where one of them is missing
/// or unusable.
pub fn comparison(observed: &Observed) -> Option<Comparison> {
    let desired = observed.desired.as_ref()?.target.as_ref().ok()?;
    Some(compare(&observed.applied()?.topology, &desired.topology))
}

/// Says what to do next. At most `at_once` workloads roll at the same time.
pub fn next(observed: &Observed, at_once: usize) -> Next {
    let (stack, desired) = match wish(observed) {
        Ok(wish) => wish,
        Err(refused) => {
            // What was applied is brought to its end: a stack that is half stopped helps nobody.
            let next = observed.applied().map(|applied| converge(observed, applied, at_once));
            return Next { refused: Some(refused), ..next.unwrap_or_default() };
        }
    };
    if observed.applied.as_ref() == Some(stack) {
        converge(observed, desired, at_once)
    } else {
        hold_and_apply(observed, stack, desired)
    }
}

/// The desired stack, or why it cannot be had.
fn wish(observed: &Observed) -> Result<(&Arc<Stack>, &Target), String> {
    let stack = observed.desired.as_ref().ok_or("there is no desired stack; install the chart first")?;
    let desired = stack.target.as_ref().map_err(|unusable| unusable.0.clone())?;
    if let Some(applied) = observed.applied()
        && let Some((field, reason)) = compare(&applied.topology, &desired.topology).refused.first()
    {
        return Err(format!("`{field}` cannot change on a stack that has data: {reason}"));
    }
    Ok((stack, desired))
}

/// The first phase.
fn hold_and_apply(observed: &Observed, stack: &Arc<Stack>, desired: &Target) -> Next {
    let applied = observed.applied();
    let mut next = Next::default();
    for wanted in &desired.wanted {
        if !observed.workloads.iter().any(|workload| workload.key == wanted.key) {
            next.waiting.push(format!("{} does not exist yet", wanted.key));
        }
    }
    let complete = next.waiting.is_empty();
    let mut ends = ends(observed, applied, desired);
    // Until all that the desired stack needs is there, what is in the applied one goes on.
    ends.retain(|key| complete || applied.is_some_and(|applied| applied.of(key).is_none()));
    for workload in observed.workloads.iter().filter(|workload| ends.contains(&workload.key)) {
        hold(workload, &mut next.steps);
        if !workload.seen || workload.pods > 0 {
            next.waiting.push(format!("{} still has pods", workload.key));
        }
    }
    // By the pods, too: those of a workload that was deleted run on for a while.
    for pod in observed.pods.iter().filter(|pod| ends.contains(&pod.key)) {
        next.waiting.push(format!("the pod `{}` has not ended yet", pod.name));
    }
    if next.steps.is_empty() && next.waiting.is_empty() {
        let uncertain = uncertain(observed, applied, desired);
        next.steps.push(Step::Apply { text: stack.text.clone(), uncertain });
    }
    next
}

/// The workloads whose pods must have ended before the desired stack is applied: those that must not run with both, and
/// those that the applied stack does not know.
fn ends<'a>(observed: &'a Observed, applied: Option<&Target>, desired: &Target) -> BTreeSet<&'a Key> {
    let workloads = observed.workloads.iter().map(|workload| (&workload.key, &workload.configuration));
    let pods = observed.pods.iter().map(|pod| (&pod.key, &pod.configuration));
    let will = |key: &Key| desired.of(key).map(|wanted| wanted.configuration.as_str());
    let end_first = applied.map(|applied| compare(&applied.topology, &desired.topology).end_first);
    let ends = |key: &Key, has: &Option<String>| match (applied, &end_first) {
        (Some(applied), Some(end_first)) => applied.of(key).is_none_or(|was| {
            will(key) != Some(was.configuration.as_str())
                && was.instances.iter().any(|name| end_first.contains(name))
        }),
        // What was applied is not known, so the hashes have to say it all.
        _ => will(key).is_none_or(|will| !says(has.as_ref(), will)),
    };
    workloads.chain(pods).filter(|(key, has)| ends(key, has)).map(|(key, _)| key).collect()
}

/// What will be uncertain once the desired stack is applied.
fn uncertain(observed: &Observed, applied: Option<&Target>, desired: &Target) -> Uncertain {
    let maybe = |workload: &&Workload| {
        let says =
            |target: &Target| target.of(&workload.key).is_some_and(|w| workload.says(&w.configuration));
        let was = workload.configuration.is_some()
            && observed.uncertain.get(&workload.key) == workload.configuration.as_ref();
        // One that is held, too: it may only be marked yet, with all of its pods.
        says(desired) && (was || applied.is_some_and(|applied| !says(applied)))
    };
    let uncertain = observed.workloads.iter().filter(maybe);
    uncertain.filter_map(|w| Some((w.key.clone(), w.configuration.clone()?))).collect()
}

fn hold(workload: &Workload, steps: &mut Vec<Step>) {
    let Workload { key, name, .. } = workload;
    if workload.held.is_none() {
        let (configuration, held) = (workload.configuration.clone(), Some(workload.replicas));
        steps.push(Step::Mark { key: key.clone(), name: name.clone(), configuration, held });
    }
    if workload.replicas > 0 {
        steps.push(Step::Scale { key: key.clone(), name: name.clone(), replicas: 0 });
    }
}

/// The second phase.
fn converge(observed: &Observed, target: &Target, at_once: usize) -> Next {
    let mut next = Next::default();
    for workload in observed.workloads.iter().filter(|workload| target.of(&workload.key).is_none()) {
        hold(workload, &mut next.steps);
    }
    let late = end_late(observed, target, &mut next);
    for turn in Turn::ALL {
        let of_turn: Vec<(&Wanted, Option<&Workload>)> = target
            .wanted
            .iter()
            .filter(|wanted| wanted.turn == turn)
            .map(|wanted| (wanted, observed.workloads.iter().find(|workload| workload.key == wanted.key)))
            .collect();
        let uncertain = &observed.uncertain;
        let mut free = at_once.saturating_sub(
            of_turn
                .iter()
                .filter(|(wanted, workload)| workload.is_some_and(|w| rolls(w, wanted, uncertain)))
                .count(),
        );
        for (wanted, workload) in of_turn {
            match workload {
                None => next.waiting.push(format!("{} does not exist yet", wanted.key)),
                Some(workload) if workload.held.is_some() => {
                    start(wanted, workload, uncertain, late, &mut next);
                }
                Some(workload) => roll(wanted, workload, uncertain, &mut free, &mut next),
            }
        }
        if !next.waiting.is_empty() {
            break;
        }
    }
    next
}

/// Ends what still runs of held workloads with another configuration, and says whether there is such a thing. All looked
/// ended when the stack was applied, so it came up since by somebody else's doing; or its workload was only marked when
/// the desired stack changed once more.
fn end_late(observed: &Observed, target: &Target, next: &mut Next) -> bool {
    let held = observed.workloads.iter().filter(|workload| workload.held.is_some());
    for (workload, wanted) in held.filter_map(|workload| Some((workload, target.of(&workload.key)?))) {
        let is_late = |pod: &&Pod| pod.key == workload.key && !pod.has(&wanted.configuration);
        let Some(pod) = observed.pods.iter().find(is_late) else { continue };
        next.waiting.push(format!("the pod `{}` has not ended yet", pod.name));
        if workload.replicas > 0 {
            let (key, name) = (workload.key.clone(), workload.name.clone());
            next.steps.push(Step::Scale { key, name, replicas: 0 });
        }
    }
    !next.waiting.is_empty()
}

/// Whether a workload is on its way to its configuration.
fn rolls(workload: &Workload, wanted: &Wanted, uncertain: &Uncertain) -> bool {
    workload.held.is_none() && workload.has(wanted, uncertain) && !workload.settled()
}

/// Lets a workload run that was held: its configuration first, so that its pods start but once.
fn start(wanted: &Wanted, workload: &Workload, uncertain: &Uncertain, late: bool, next: &mut Next) {
    let Workload { key, name, held, .. } = workload;
    next.waiting.push(format!("{key} starts"));
    let configuration = workload.to_say(wanted, uncertain);
    let mark = |held| {
        let configuration = Some(configuration.clone());
        Step::Mark { key: key.clone(), name: name.clone(), configuration, held }
    };
    if !workload.has(wanted, uncertain) {
        next.steps.push(mark(*held));
    }
    if late {
        return;
    }
    let replicas = wanted.replicas.or(*held).unwrap_or(1);
    if workload.replicas != replicas {
        next.steps.push(Step::Scale { key: key.clone(), name: name.clone(), replicas });
    }
    next.steps.push(mark(None));
}

/// Brings a workload that runs to its configuration.
fn roll(wanted: &Wanted, workload: &Workload, uncertain: &Uncertain, free: &mut usize, next: &mut Next) {
    let Workload { key, name, .. } = workload;
    let configured = workload.has(wanted, uncertain);
    if !configured {
        next.waiting.push(format!("{key} restarts with its new configuration"));
        if *free == 0 {
            return;
        }
        *free -= 1;
        let configuration = Some(workload.to_say(wanted, uncertain));
        next.steps.push(Step::Mark { key: key.clone(), name: name.clone(), configuration, held: None });
    }
    if let Some(replicas) = wanted.replicas.filter(|replicas| *replicas != workload.replicas) {
        next.steps.push(Step::Scale { key: key.clone(), name: name.clone(), replicas });
        next.waiting.push(format!("{key} is scaled"));
    } else if configured && !workload.settled() {
        next.waiting.push(format!(
            "{key} has {} ready pods of {}, {} of them with its present template",
            workload.ready, workload.replicas, workload.updated
        ));
    }
    if wanted.key.kind == Kind::Deployment && workload.scale_is_ours {
        next.steps.push(Step::Release { key: key.clone(), name: name.clone() });
    }
}
