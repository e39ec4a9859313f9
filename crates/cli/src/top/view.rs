//! What there is to see: figures, made of two samples.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use routes::ClassId;
use runtime::client::{Phase, ProcessStatus, State};
use serde::Serialize;

use super::sample::{Interval, Latency, Sample, Series, total};

/// What there is to see of a stack, or of a router alone.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    /// None for a router alone.
    pub(crate) stack: Option<StackView>,
    /// The time that the rates are of.
    pub(crate) seconds: f64,
    /// The router was started anew in this time.
    pub(crate) router_restarted: bool,
    pub(crate) totals: Totals,
    /// In the order of the stack.
    pub(crate) instances: Vec<InstanceView>,
    /// Those that were ever asked for.
    pub(crate) classes: Vec<ClassView>,
    /// The newest first.
    pub(crate) failures: Vec<FailureView>,
}

/// The stack as a whole.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StackView {
    pub(crate) server_name: String,
    pub(crate) preset: String,
    pub(crate) phase: Phase,
    pub(crate) uptime_seconds: u64,
}

/// Figures of everything together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Totals {
    pub(crate) requests_per_second: f64,
    pub(crate) errors_per_second: f64,
    pub(crate) shed_per_second: f64,
    pub(crate) retries_per_second: f64,
    /// Access tokens that were looked up, and those of them that Synapse was asked about.
    pub(crate) whoami_per_second: f64,
    pub(crate) whoami_asked_per_second: f64,
    pub(crate) connections: f64,
    pub(crate) in_flight: f64,
    /// Those in flight that are syncs, which Synapse keeps until there is news.
    pub(crate) held_polls: f64,
    /// Requests that wait for a place.
    pub(crate) queued: f64,
    /// Requests that wait for an instance to come back.
    pub(crate) waiting: f64,
    /// Shared memory counted once.
    pub(crate) memory_bytes: Option<u64>,
    /// Of one core.
    pub(crate) cpu_percent: Option<f64>,
}

/// What passes through.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Traffic {
    pub(crate) requests_per_second: f64,
    pub(crate) in_flight: f64,
    /// To the head of the response.
    pub(crate) p50: Option<Latency>,
    pub(crate) p99: Option<Latency>,
    pub(crate) errors_per_second: f64,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct InstanceView {
    pub(crate) name: String,
    pub(crate) roles: Vec<String>,
    pub(crate) state: String,
    /// Whether the state is not as it should be.
    pub(crate) amiss: bool,
    pub(crate) restarts: Option<u32>,
    /// None for a process that takes no requests from the router.
    pub(crate) traffic: Option<Traffic>,
    pub(crate) memory_bytes: Option<u64>,
    /// Of one core.
    pub(crate) cpu_percent: Option<f64>,
}

/// A class of endpoints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ClassView {
    pub(crate) name: String,
    pub(crate) traffic: Traffic,
    /// None without requests.
    pub(crate) error_share: Option<f64>,
    /// Answered with 429 by the router.
    pub(crate) shed_per_second: f64,
    pub(crate) queued: f64,
}

/// What failed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FailureView {
    pub(crate) instance: String,
    pub(crate) failure: String,
    /// Since the router, or the supervisor, was started.
    pub(crate) times: f64,
    /// None if that was before anybody looked.
    pub(crate) last_seconds_ago: Option<u64>,
}

/// When failures were last seen to happen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(HashMap<String, Instant>);

const FAILURES: &str = "upstream_failures_total";
const REQUESTS: &str = "requests_total";
const DURATIONS: &str = "upstream_duration_seconds_bucket";

/// The classes whose requests Synapse keeps until there is news.
const POLLS: [ClassId; 2] = [ClassId::SyncIncremental, ClassId::SyncSliding];

/// Whether a request's outcome is a failure of the server. That the router sheds is told apart, and what is closed or
/// unknown is not served on purpose.
fn is_error(request: &Series) -> bool {
    let outcome = request.label("outcome");
    outcome == "5xx"
        || outcome.starts_with("upstream_")
        || ["router_no_instance", "router_stopping", "router_storage"].contains(&outcome)
}

fn is_shed(request: &Series) -> bool {
    request.label("outcome") == "router_shed"
}

fn name_of_failure(failure: &Series) -> String {
    format!("{} {}", failure.label("instance"), failure.label("failure"))
}

impl Seen {
    /// Takes note of what failed between two samples.
    pub(crate) fn note(&mut self, before: &Sample, after: &Sample) {
        for (failure, grown) in Interval::new(before, after).grown(FAILURES) {
            if grown > 0.0 {
                self.0.insert(name_of_failure(failure), after.at);
            }
        }
    }
}

impl View {
    /// What is to be seen of what happened between two samples.
    pub(crate) fn of(before: &Sample, after: &Sample, seen: &Seen) -> Self {
        let interval = Interval::new(before, after);
        Self {
            stack: after.status.as_ref().map(|status| StackView {
                server_name: status.server_name.clone(),
                preset: status.preset.clone(),
                phase: status.phase,
                uptime_seconds: status.uptime_seconds,
            }),
            seconds: interval.seconds,
            router_restarted: interval.restarted,
            totals: totals(interval, before, after),
            instances: instances(interval, before, after),
            classes: classes(interval),
            failures: failures(after, seen),
        }
    }
}

fn totals(interval: Interval<'_>, before: &Sample, after: &Sample) -> Totals {
    let now = interval.after;
    let is_poll = |series: &&Series| POLLS.iter().any(|class| class.class().name == series.label("class"));
    let processes = after.status.iter().flat_map(|status| &status.processes);
    let cpu: Vec<f64> =
        processes.filter_map(|process| cpu_percent(process, before, interval.seconds)).collect();
    Totals {
        requests_per_second: interval.rate(REQUESTS, |_| true),
        errors_per_second: interval.rate(REQUESTS, is_error),
        shed_per_second: interval.rate(REQUESTS, is_shed),
        retries_per_second: interval.rate("retries_total", |_| true),
        whoami_per_second: interval.rate("whoami_total", |_| true),
        whoami_asked_per_second: interval.rate("whoami_total", |lookup| lookup.label("result") == "asked"),
        connections: now.sum("connections"),
        in_flight: now.sum("in_flight"),
        held_polls: total(now.all("in_flight").filter(is_poll).map(|series| series.value)),
        queued: now.sum("queued"),
        waiting: now.sum("waiting"),
        memory_bytes: after.status.as_ref().and_then(|status| status.pss_bytes),
        cpu_percent: (!cpu.is_empty()).then(|| total(cpu.into_iter())),
    }
}

/// The figures of the requests that have this label.
fn traffic(interval: Interval<'_>, label: &str, value: &str) -> Traffic {
    let here = |series: &Series| series.label(label) == value;
    let durations = interval.durations(DURATIONS, here);
    Traffic {
        requests_per_second: interval.rate(REQUESTS, here),
        in_flight: total(interval.after.all("in_flight").filter(|s| here(s)).map(|s| s.value)),
        p50: durations.quantile(0.5),
        p99: durations.quantile(0.99),
        errors_per_second: interval.rate(REQUESTS, |request| here(request) && is_error(request)),
    }
}

/// The processes that the supervisor has, or else those that the router knows.
fn instances(interval: Interval<'_>, before: &Sample, after: &Sample) -> Vec<InstanceView> {
    let routed: BTreeMap<&str, &str> = interval
        .after
        .all("instance_state")
        .map(|series| (series.label("instance"), series.label("state")))
        .collect();
    let traffic = |name: &str| routed.contains_key(name).then(|| traffic(interval, "instance", name));
    let Some(status) = &after.status else {
        let roles = |name: &str| {
            let all = interval.after.all("instance_role").filter(|series| series.label("instance") == name);
            all.map(|series| series.label("role").to_owned()).collect()
        };
        return routed
            .iter()
            .map(|(&name, &state)| InstanceView {
                name: name.to_owned(),
                roles: roles(name),
                state: state.to_owned(),
                amiss: state != UP,
                restarts: None,
                traffic: traffic(name),
                memory_bytes: None,
                cpu_percent: None,
            })
            .collect();
    };
    let view = |process: &ProcessStatus| {
        let name = &*process.name;
        // The supervisor knows why a process takes no requests, and the router knows better whether it takes them.
        let routed = routed.get(name).copied();
        let state = if process.state == State::Healthy {
            routed.unwrap_or_else(|| process.state.name())
        } else {
            process.state.name()
        };
        InstanceView {
            name: name.to_owned(),
            roles: process.roles.clone(),
            state: state.to_owned(),
            amiss: !process.is_healthy() || routed.is_some_and(|state| state != UP),
            restarts: Some(process.restarts),
            traffic: traffic(name),
            memory_bytes: process.pss_bytes.or(process.rss_bytes),
            cpu_percent: cpu_percent(process, before, interval.seconds),
        }
    };
    status.processes.iter().map(view).collect()
}

/// The state of an instance that takes requests.
const UP: &str = router::InstanceState::Up.name();

/// The processor time that a process used since the sample before; none if it is another process now.
fn cpu_percent(process: &ProcessStatus, before: &Sample, seconds: f64) -> Option<f64> {
    let known = before.status.as_ref()?.processes.iter().find(|known| known.name == process.name)?;
    let used = process.cpu_ms?.checked_sub(known.cpu_ms?)?;
    let same = known.pid == process.pid;
    same.then(|| Duration::from_millis(used).as_secs_f64() / seconds * 100.0)
}

fn classes(interval: Interval<'_>) -> Vec<ClassView> {
    let known = [REQUESTS, "in_flight", "queued"].into_iter().flat_map(|name| interval.after.all(name));
    let names: BTreeSet<&str> = known.map(|series| series.label("class")).collect();
    let view = |name: &str| {
        let here = |series: &Series| series.label("class") == name;
        let traffic = traffic(interval, "class", name);
        let (errors, requests) = (traffic.errors_per_second, traffic.requests_per_second);
        ClassView {
            name: name.to_owned(),
            error_share: (requests > 0.0).then(|| errors / requests),
            shed_per_second: interval.rate(REQUESTS, |request| here(request) && is_shed(request)),
            queued: total(interval.after.all("queued").filter(|s| here(s)).map(|s| s.value)),
            traffic,
        }
    };
    names.into_iter().map(view).collect()
}

fn failures(after: &Sample, seen: &Seen) -> Vec<FailureView> {
    let attempts = after.scrape.all(FAILURES).map(|failure| FailureView {
        instance: failure.label("instance").to_owned(),
        failure: failure.label("failure").to_owned(),
        times: failure.value,
        last_seconds_ago: seen
            .0
            .get(&name_of_failure(failure))
            .map(|last| after.at.saturating_duration_since(*last).as_secs()),
    });
    let processes = after.status.iter().flat_map(|status| &status.processes);
    let ends = processes.filter(|process| process.restarts > 0).filter_map(|process| {
        Some(FailureView {
            instance: process.name.clone(),
            failure: process.last_exit.clone()?,
            times: process.restarts.into(),
            last_seconds_ago: process.uptime_seconds,
        })
    });
    let mut all: Vec<_> = attempts.chain(ends).collect();
    all.sort_by_key(|failure| failure.last_seconds_ago.unwrap_or(u64::MAX));
    all
}
