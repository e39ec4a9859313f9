//! What is counted, and what is written to the log of operations.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::session::Record;

type Labels<const N: usize> = [(&'static str, String); N];
type Static = [(&'static str, &'static str); 1];

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) opened: Counter,
    pub(crate) open: Gauge,
    operations: Family<Labels<2>, Counter>,
    seconds: Family<Static, Histogram, fn() -> Histogram>,
    refused: Family<Static, Counter>,
    closed: Family<Static, Counter>,
    cached: Counter,
    up: Family<Labels<1>, Gauge>,
    failures: Family<Labels<1>, Counter>,
    connections: Family<Labels<1>, Gauge>,
    pub(crate) retried: Counter<u64, AtomicU64>,
}

fn histogram() -> Histogram {
    Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("matrix_stack_ldap_proxy");
        let mut metrics = Self {
            registry: Registry::default(),
            opened: Counter::default(),
            open: Gauge::default(),
            operations: Family::default(),
            seconds: Family::new_with_constructor(histogram as fn() -> Histogram),
            refused: Family::default(),
            closed: Family::default(),
            cached: Counter::default(),
            up: Family::default(),
            failures: Family::default(),
            connections: Family::default(),
            retried: Counter::default(),
        };
        registry.register("connections_opened", "Connections from clients", metrics.opened.clone());
        registry.register("connections", "Connections from clients that are open", metrics.open.clone());
        registry.register("operations", "Operations that ended, by result code", metrics.operations.clone());
        registry.register(
            "operation_seconds",
            "How long servers took for operations",
            metrics.seconds.clone(),
        );
        registry.register(
            "refused",
            "Operations that the proxy answered itself, by reason",
            metrics.refused.clone(),
        );
        registry.register("connections_closed", "Connections that the proxy ended", metrics.closed.clone());
        registry.register("cache_hits", "Searches that were answered from the cache", metrics.cached.clone());
        registry.register("server_up", "Whether a server is used", metrics.up.clone());
        registry.register(
            "server_failures",
            "Looks at and connections to a server that failed",
            metrics.failures.clone(),
        );
        registry.register("server_connections", "Connections to a server", metrics.connections.clone());
        registry.register("retries", "Operations that were sent to another server", metrics.retried.clone());
        metrics.registry = registry;
        metrics
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// An operation is over.
    pub(crate) fn record(&self, client: IpAddr, record: &Record, server: Option<&str>) {
        let Record { op, target, code, entries, took, own } = record;
        self.operations.get_or_create(&[("operation", (*op).to_owned()), ("code", code.to_string())]).inc();
        match own {
            None => self.seconds.get_or_create(&[("operation", op)]).observe(took.as_secs_f64()),
            Some("cache") => {
                self.cached.inc();
            }
            Some("service") => {}
            Some(reason) => {
                self.refused.get_or_create(&[("reason", reason)]).inc();
            }
        }
        if let Some(target) = target {
            let milliseconds = took.as_secs_f64() * 1000.0;
            tracing::info!(
                target: "ldap_proxy::access",
                %client, operation = op, target, code, entries, milliseconds, server, by_proxy = own,
                "operation"
            );
        }
    }

    pub(crate) fn closed(&self, reason: &'static str) {
        self.closed.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn up(&self, server: &Arc<str>, up: bool) {
        self.up.get_or_create(&[("server", server.to_string())]).set(up.into());
    }

    pub(crate) fn failed(&self, server: &Arc<str>) {
        self.failures.get_or_create(&[("server", server.to_string())]).inc();
    }

    pub(crate) fn connected(&self, server: &Arc<str>, more: i64) {
        self.connections.get_or_create(&[("server", server.to_string())]).inc_by(more);
    }
}
