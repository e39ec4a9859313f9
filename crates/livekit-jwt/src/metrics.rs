//! What the service counts.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels<const N: usize> = [(&'static str, String); N];

/// Counters, and the registry that shows them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels<2>, Counter>,
    tokens: Family<Labels<1>, Counter>,
    webhooks: Family<Labels<1>, Counter>,
    sfu_failures: Family<Labels<1>, Counter>,
    pub jobs: Gauge,
    jobs_ended: Family<Labels<1>, Counter>,
    pub store_failures: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("matrix_stack_livekit_jwt");
        let (requests, tokens, webhooks, sfu_failures, jobs_ended) =
            (Family::default(), Family::default(), Family::default(), Family::default(), Family::default());
        let (jobs, store_failures) = (Gauge::default(), Counter::default());
        registry.register("requests", "Requests of clients, by path and status", Family::clone(&requests));
        registry.register(
            "tokens",
            "Tokens given out, by the access of who got them",
            Family::clone(&tokens),
        );
        registry.register("webhooks", "Messages of SFUs, by what became of them", Family::clone(&webhooks));
        registry.register(
            "sfu_failures",
            "Questions that an SFU did not answer, by its API",
            Family::clone(&sfu_failures),
        );
        registry.register("delayed_leaves", "Delayed leaves that are looked after now", jobs.clone());
        registry.register(
            "delayed_leaves_ended",
            "Delayed leaves that were looked after, by how it ended",
            Family::clone(&jobs_ended),
        );
        registry.register(
            "store_failures",
            "Delayed leaves that could not be stored or removed",
            store_failures.clone(),
        );
        Self { registry, requests, tokens, webhooks, sfu_failures, jobs, jobs_ended, store_failures }
    }

    pub(crate) fn request(&self, path: &str, status: u16) {
        self.requests.get_or_create(&[("path", path.to_owned()), ("status", status.to_string())]).inc();
    }

    pub(crate) fn token(&self, full: bool) {
        let access = if full { "full" } else { "restricted" };
        self.tokens.get_or_create(&[("access", access.to_owned())]).inc();
    }

    pub(crate) fn webhook(&self, outcome: &'static str) {
        self.webhooks.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    pub(crate) fn sfu_failed(&self, api: &str) {
        self.sfu_failures.get_or_create(&[("sfu", api.to_owned())]).inc();
    }

    pub(crate) fn job_ended(&self, how: &'static str) {
        self.jobs_ended.get_or_create(&[("how", how.to_owned())]).inc();
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
