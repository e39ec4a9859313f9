//! What is counted on the way of a message.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Which room.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Room {
    pub(crate) room: String,
}

/// The bounds of latencies in seconds: from what a good day brings to what an outage leaves.
const LATENCIES: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];

/// What is counted on the way of a message.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) accepted: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) refused: Counter,
    pub(crate) delivered: Counter,
    pub(crate) retries: Counter,
    pub(crate) dead: Counter,
    pub(crate) found: Counter,
    pub(crate) joined: Family<Room, Counter>,
    pub(crate) not_joined: Family<Room, Counter>,
    pub(crate) waiting: Gauge,
    pub(crate) waiting_bytes: Gauge,
    pub(crate) oldest: Gauge,
    pub(crate) dead_letters: Gauge,
    pub(crate) reachable: Gauge,
    pub(crate) latency: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            accepted: Counter::default(),
            duplicates: Counter::default(),
            refused: Counter::default(),
            delivered: Counter::default(),
            retries: Counter::default(),
            dead: Counter::default(),
            found: Counter::default(),
            joined: Family::default(),
            not_joined: Family::default(),
            waiting: Gauge::default(),
            waiting_bytes: Gauge::default(),
            oldest: Gauge::default(),
            dead_letters: Gauge::default(),
            reachable: Gauge::default(),
            latency: Histogram::new(LATENCIES),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("matrix_stack_hooks");
        let m = self;
        registry.register("accepted", "Messages taken, and durable since", m.accepted.clone());
        registry.register("duplicates", "Messages that had been taken before", m.duplicates.clone());
        registry.register(
            "refused",
            "Messages not taken, which their senders have to send again",
            m.refused.clone(),
        );
        registry.register("delivered", "Messages that the homeserver has", m.delivered.clone());
        registry.register("retries", "Attempts that failed and will be repeated", m.retries.clone());
        registry.register(
            "dead",
            "Messages that cannot be delivered and became dead letters",
            m.dead.clone(),
        );
        registry.register(
            "found",
            "Messages whose first attempt had arrived after all, as a look into the room showed",
            m.found.clone(),
        );
        registry.register("waiting", "Messages that wait to be delivered", m.waiting.clone());
        registry.register("waiting_bytes", "Bytes of messages that wait", m.waiting_bytes.clone());
        registry.register("oldest_seconds", "Age of the oldest message that waits", m.oldest.clone());
        registry.register("dead_letters", "Dead letters in the store", m.dead_letters.clone());
        registry.register(
            "homeserver_reachable",
            "Whether the last request reached the homeserver",
            m.reachable.clone(),
        );
        registry.register(
            "delivery_seconds",
            "Time from when a message was taken to when the homeserver had it",
            m.latency.clone(),
        );
    }
}
