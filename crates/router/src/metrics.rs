//! What Prometheus is told. The names are documented in `docs/router.md`.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use model::{ROLES, Role};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use routes::{CLASSES, Class};

use crate::failure::{Blame, Failure};
use crate::instance::Instance;

/// Label names with values: of one text each, all from small sets (roles, instances, classes, outcomes).
type Labels<const N: usize> = [(&'static str, Arc<str>); N];
type StaticLabels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics that are counted as things happen. Those that can be looked up are filled in when they are asked for.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels<4>, Counter>,
    duration: Family<StaticLabels<2>, Histogram>,
    /// Those of them that were used, by the class's index (the last is of what the router answered itself) and the
    /// outcome's group.
    durations: Box<[OnceLock<Histogram>]>,
    upstream: Family<Labels<3>, Histogram>,
    retries: Family<Labels<2>, Counter>,
    failed: Family<Labels<2>, Counter>,
    pub unknown_paths: Counter,
    closed: Family<StaticLabels<1>, Counter>,
    whoami: Family<StaticLabels<1>, Counter>,
    dns_lookups: Family<Labels<2>, Counter>,
    pub connections_opened: Counter,
    pub malformed: Counter,
    unproxied: Family<StaticLabels<1>, Counter>,
    pub access_log_dropped: Counter,
    pub look: Look,
}

/// The metrics that are filled in when they are asked for.
#[derive(Debug, Default)]
pub(crate) struct Look {
    in_flight: Family<Labels<2>, Gauge>,
    idle: Family<Labels<1>, Gauge>,
    state: Family<Labels<2>, Gauge>,
    role: Family<Labels<2>, Gauge>,
    queued: Family<StaticLabels<2>, Gauge>,
    waiting: Family<StaticLabels<1>, Gauge>,
    pool_members: Family<Labels<1>, Gauge>,
    pub connections: Gauge,
    pub whoami_entries: Gauge,
}

/// The class of what the router answers itself.
const ROUTER: &str = "router";

/// From one millisecond, which only the router's own answers take, to the longest of long polls.
const BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// With a status of so many hundreds.
    Answered(u16),
    Failed(Failure),
}

/// What durations are told apart by: a status by its hundreds, a failure by who is to blame.
const GROUPS: [&str; 8] = ["2xx", "3xx", "4xx", "5xx", "other", "client", "router", "upstream"];

impl Outcome {
    /// Its place in [`GROUPS`].
    fn group(self) -> usize {
        match self {
            Self::Answered(hundreds @ 2..=5) => usize::from(hundreds - 2),
            Self::Answered(_) => 4,
            Self::Failed(failure) => match failure.blame() {
                Blame::Client => 5,
                Blame::Router => 6,
                Blame::Upstream => 7,
            },
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Answered(_) => GROUPS[self.group()],
            Self::Failed(failure) => failure.label(),
        }
    }
}

/// How long something took, in buckets. Unlike the library's histogram it takes no lock: every request counts in two.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram(Arc<Observed>);

#[derive(Debug, Default)]
struct Observed {
    /// How often, by bucket; the last is of what is beyond them all.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    /// In microseconds: 10 000 long polls at once for 58 years.
    sum: AtomicU64,
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.partition_point(|upper| *upper < seconds);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.sum.fetch_add(micros, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        // The count is that of the buckets as they were read, so that the two never disagree.
        let buckets: [(f64, u64); BUCKETS.len() + 1] = array::from_fn(|place| {
            let upper = BUCKETS.get(place).copied().unwrap_or(f64::INFINITY);
            (upper, self.0.buckets[place].load(Ordering::Relaxed))
        });
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.0.sum.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A metric of the role that asked first.
type OfRole<M> = OnceLock<(Role, M)>;

/// An instance's own metrics, by class: the families of all of them are slow to find one in.
#[derive(Debug)]
pub(crate) struct Own {
    /// The counters of requests, for the usual outcomes.
    requests: Box<[OfRole<Counter>]>,
    upstream: Box<[OfRole<Histogram>]>,
}

/// The usual outcomes: the first of [`GROUPS`].
const USUAL: usize = 4;

impl Own {
    pub(crate) fn new() -> Self {
        Self {
            requests: (0..CLASSES.len() * USUAL).map(|_| OnceLock::new()).collect(),
            upstream: CLASSES.iter().map(|_| OnceLock::new()).collect(),
        }
    }
}

/// Counts in the metric that lies at a place, or else in the one that is found.
fn count_at<M>(place: &OfRole<M>, role: Role, find: impl Fn() -> M, count: impl FnOnce(&M)) {
    let (of, metric) = place.get_or_init(|| (role, find()));
    if *of == role { count(metric) } else { count(&find()) }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("matrix_stack_router");
        let requests = Family::default();
        registry.register("requests", "Requests by class, role, instance and outcome", requests.clone());
        let duration = Family::default();
        registry.register(
            "request_duration_seconds",
            "From a request's head to the end of its response, by class and group of outcomes",
            duration.clone(),
        );
        let upstream = Family::default();
        registry.register(
            "upstream_duration_seconds",
            "From the sending of a request to the head of the response, by class, role and instance",
            upstream.clone(),
        );
        let retries = Family::default();
        registry.register(
            "retries",
            "Requests sent again, by the instance and failure that made it so",
            retries.clone(),
        );
        let failed = Family::default();
        registry.register(
            "upstream_failures",
            "Attempts that failed, by instance and failure",
            failed.clone(),
        );
        let unknown_paths = Counter::default();
        registry.register(
            "unknown_paths",
            "Requests for paths that the endpoint table does not know; they went to main",
            unknown_paths.clone(),
        );
        let closed = Family::default();
        registry.register("closed", "Requests for paths that are closed here, by kind", closed.clone());
        let whoami = Family::default();
        registry.register("whoami", "Looking up whose an access token is, by result", whoami.clone());
        let dns_lookups = Family::default();
        registry.register(
            "dns_lookups",
            "Looking up instances' names, by name and result",
            dns_lookups.clone(),
        );
        let connections_opened = Counter::default();
        registry.register("connections_opened", "Client connections accepted", connections_opened.clone());
        let malformed = Counter::default();
        registry.register("malformed", "Client connections closed for breaking HTTP", malformed.clone());
        let unproxied = Family::default();
        registry.register(
            "proxy_protocol_refused",
            "Client connections closed for not beginning as the PROXY protocol has it, by reason",
            unproxied.clone(),
        );
        let access_log_dropped = Counter::default();
        registry.register(
            "access_log_dropped",
            "Lines that the access log could not take in time",
            access_log_dropped.clone(),
        );
        let look = Look::default();
        registry.register("in_flight", "Requests in flight, by instance and class", look.in_flight.clone());
        registry.register("idle_connections", "Connections to an instance that lie ready", look.idle.clone());
        registry.register("instance_state", "1 for the state that an instance is in", look.state.clone());
        registry.register("instance_role", "1 for each role that an instance has", look.role.clone());
        registry.register("queued", "Requests that wait for a place, by class and role", look.queued.clone());
        registry.register(
            "waiting",
            "Requests that wait for an instance to come back, by role",
            look.waiting.clone(),
        );
        registry.register(
            "pool_members",
            "Processes that the DNS has behind a pool's name",
            look.pool_members.clone(),
        );
        registry.register("connections", "Client connections open", look.connections.clone());
        registry.register(
            "whoami_entries",
            "Access tokens whose users are remembered",
            look.whoami_entries.clone(),
        );
        Self {
            registry,
            requests,
            duration,
            durations: (0..=CLASSES.len()).flat_map(|_| GROUPS).map(|_| OnceLock::new()).collect(),
            upstream,
            retries,
            failed,
            unknown_paths,
            closed,
            whoami,
            dns_lookups,
            connections_opened,
            malformed,
            unproxied,
            access_log_dropped,
            look,
        }
    }

    pub(crate) fn request(
        &self,
        class: Option<&'static Class>,
        role: Option<Role>,
        instance: Option<&Instance>,
        outcome: Outcome,
        duration: Duration,
    ) {
        let name = class.map_or(ROUTER, |class| class.name);
        let index = class.map_or(CLASSES.len(), |class| class.id.index());
        let group = outcome.group();
        self.durations[index * GROUPS.len() + group]
            .get_or_init(|| self.duration.get_or_create_owned(&[("class", name), ("outcome", GROUPS[group])]))
            .observe(duration);
        let find = || {
            let labels = [
                ("class", name.into()),
                ("role", role.map_or("", Role::name).into()),
                ("instance", instance.map(|instance| instance.name.clone()).unwrap_or_default()),
                ("outcome", outcome.label().into()),
            ];
            self.requests.get_or_create_owned(&labels)
        };
        match (class, role, instance) {
            (Some(_), Some(role), Some(instance)) if group < USUAL => {
                let place = &instance.own.requests[index * USUAL + group];
                count_at(place, role, find, |counter| {
                    counter.inc();
                });
            }
            _ => {
                find().inc();
            }
        }
    }

    pub(crate) fn upstream(
        &self,
        class: &'static Class,
        role: Role,
        instance: &Instance,
        duration: Duration,
    ) {
        let find = || {
            let labels = [
                ("class", class.name.into()),
                ("role", role.name().into()),
                ("instance", instance.name.clone()),
            ];
            self.upstream.get_or_create_owned(&labels)
        };
        let place = &instance.own.upstream[class.id.index()];
        count_at(place, role, find, |histogram| histogram.observe(duration));
    }

    pub(crate) fn attempt_failed(&self, instance: &Arc<str>, failure: &'static str) {
        self.failed.get_or_create(&[("instance", instance.clone()), ("failure", failure.into())]).inc();
    }

    pub(crate) fn retry(&self, instance: &Arc<str>, failure: &'static str) {
        self.retries.get_or_create(&[("instance", instance.clone()), ("failure", failure.into())]).inc();
    }

    pub(crate) fn closed(&self, kind: &'static str) {
        self.closed.get_or_create(&[("kind", kind)]).inc();
    }

    pub(crate) fn unproxied(&self, reason: &'static str) {
        self.unproxied.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn whoami(&self, result: &'static str) {
        self.whoami.get_or_create(&[("result", result)]).inc();
    }

    pub(crate) fn dns_lookup(&self, host: &str, result: &'static str) {
        self.dns_lookups.get_or_create(&[("name", host.into()), ("result", result.into())]).inc();
    }

    /// Forgets what was counted of an instance that is gone for good.
    pub(crate) fn forget(&self, instance: &Arc<str>) {
        let failures = || Failure::ALL.iter().map(|failure| failure.label());
        let outcomes: Vec<Arc<str>> =
            ["2xx", "3xx", "4xx", "5xx", "other"].into_iter().chain(failures()).map(Into::into).collect();
        for failure in failures() {
            let labels = [("instance", instance.clone()), ("failure", failure.into())];
            self.failed.remove(&labels);
            self.retries.remove(&labels);
        }
        let roles: Vec<Arc<str>> =
            ROLES.iter().filter(|spec| spec.elastic).map(|spec| spec.name.into()).collect();
        for class in &CLASSES {
            let class: Arc<str> = class.name.into();
            for role in &roles {
                let labels =
                    [("class", class.clone()), ("role", role.clone()), ("instance", instance.clone())];
                self.upstream.remove(&labels);
                for outcome in &outcomes {
                    self.requests.remove(&[
                        ("class", class.clone()),
                        ("role", role.clone()),
                        ("instance", instance.clone()),
                        ("outcome", outcome.clone()),
                    ]);
                }
            }
        }
    }

    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Look {
    /// Forgets what was looked up before, so that instances that went are not told of for ever.
    pub(crate) fn clear(&self) {
        self.in_flight.clear();
        self.idle.clear();
        self.state.clear();
        self.role.clear();
        self.queued.clear();
        self.waiting.clear();
        self.pool_members.clear();
    }

    pub(crate) fn in_flight(&self, instance: &Arc<str>, class: &'static str, count: u32) {
        self.in_flight
            .get_or_create(&[("instance", instance.clone()), ("class", class.into())])
            .set(count.into());
    }

    pub(crate) fn instance(&self, instance: &Arc<str>, roles: &[Role], state: &'static str, idle: usize) {
        self.state.get_or_create(&[("instance", instance.clone()), ("state", state.into())]).set(1);
        for role in roles {
            self.role.get_or_create(&[("instance", instance.clone()), ("role", role.name().into())]).set(1);
        }
        self.idle.get_or_create(&[("instance", instance.clone())]).set(count(idle));
    }

    pub(crate) fn pool(&self, pool: &str, members: usize) {
        self.pool_members.get_or_create(&[("pool", pool.into())]).set(count(members));
    }

    pub(crate) fn queued(&self, class: &'static str, role: &'static str, number: usize) {
        self.queued.get_or_create(&[("class", class), ("role", role)]).set(count(number));
    }

    pub(crate) fn waiting(&self, role: &'static str, number: usize) {
        self.waiting.get_or_create(&[("role", role)]).set(count(number));
    }
}

pub(crate) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_lie_in_the_bucket_that_they_do_not_exceed() {
        let histogram = Histogram::default();
        for micros in [1000, 1001, 90_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut registry = Registry::default();
        registry.register("it", "It", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"it_bucket{le="0.001"} 1"#,
            r#"it_bucket{le="0.0025"} 2"#,
            r#"it_bucket{le="60.0"} 2"#,
            r#"it_bucket{le="+Inf"} 3"#,
            "it_count 3",
            "it_sum 90.002001",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }

    #[test]
    fn nothing_is_left_of_an_instance_that_is_forgotten() {
        let metrics = Metrics::new();
        let count = |name: &str| {
            let address = model::Address::Tcp { host: "10.0.0.7".to_owned(), port: 1 };
            let instance = Instance::new(name, address);
            for outcome in [Outcome::Answered(2), Outcome::Answered(4), Outcome::Failed(Failure::Timeout)] {
                let class = CLASSES.first();
                metrics.request(class, Some(Role::Sync), Some(&instance), outcome, Duration::ZERO);
            }
            metrics.attempt_failed(&instance.name, Failure::Reset.label());
            metrics.retry(&instance.name, Failure::Reset.label());
            metrics.upstream(&CLASSES[0], Role::Sync, &instance, Duration::ZERO);
        };
        count("sync@10.0.0.7");
        count("sync@10.0.0.8");
        metrics.forget(&"sync@10.0.0.7".into());
        let text = metrics.encode();
        assert!(!text.contains("10.0.0.7"), "{text}");
        // Five counters, and the buckets, sum and count of a histogram.
        assert_eq!(text.matches("10.0.0.8").count(), 5 + BUCKETS.len() + 3, "{text}");
    }

    /// The charts' alerts and dashboards ask for nothing that the router does not tell.
    #[test]
    fn alerts_and_dashboards_name_what_the_router_measures() {
        let metrics = Metrics::new();
        let name: Arc<str> = "sync_1".into();
        // Each begins with the first that is counted.
        let instance = Instance::new("sync_1", model::Address::Tcp { host: "127.0.0.1".to_owned(), port: 1 });
        let class = &CLASSES[0];
        let (role, outcome) = (Some(Role::Sync), Outcome::Answered(2));
        metrics.request(Some(class), role, Some(&instance), outcome, Duration::ZERO);
        metrics.upstream(class, Role::Sync, &instance, Duration::ZERO);
        metrics.retries.get_or_create(&[("instance", name.clone()), ("failure", "x".into())]).inc();
        metrics.failed.get_or_create(&[("instance", name.clone()), ("failure", "x".into())]).inc();
        metrics.closed.get_or_create(&[("kind", "admin")]).inc();
        metrics.whoami.get_or_create(&[("result", "x")]).inc();
        metrics.look.in_flight(&name, "sync", 1);
        metrics.look.instance(&name, &[Role::Sync], "up", 1);
        metrics.look.queued("sync", "sync", 1);
        metrics.look.waiting("sync", 1);
        let text = metrics.encode();
        let measured: Vec<&str> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();

        let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/synapse/files");
        let mut named = 0;
        for file in ["alerts.yaml", "dashboards/router.json", "dashboards/synapse.json"] {
            let file = std::fs::read_to_string(files.join(file)).unwrap();
            for word in file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                if word.starts_with("matrix_stack_router_") {
                    named += 1;
                    assert!(measured.contains(&word), "the router does not measure {word}");
                }
            }
        }
        assert!(named > 5, "only {named}");
    }
}
