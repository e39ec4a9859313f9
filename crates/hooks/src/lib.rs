//! Webhooks into Matrix rooms: Sentry, Slack-compatible senders, Alertmanager.
//!
//! What is accepted is durable before the sender hears of it, and arrives once, in order. Formats are pure functions from a payload to a
//! [`Message`]; an [`Outbox`] takes messages and answers for them.

pub mod alertmanager;
mod auth;
mod courier;
mod event;
pub mod formats;
mod html;
mod json;
mod message;
mod metrics;
mod outbox;
mod requests;
mod run;
pub mod sentry;
pub mod serve;
mod settings;
pub mod slack;
mod store;
pub mod webhook;

pub use courier::{Courier, StartError};
pub use message::Message;
pub use outbox::{Accepted, Delivery, Outbox, Refused};
pub use requests::Requests;
pub use run::RunError;
pub use settings::{Matrix, Queue};
pub use store::{DeadLetter, Store, StoreError, dead_letters, retry};

/// The largest body that is taken, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// A message as snapshots show it.
#[cfg(test)]
fn shown(message: &Message) -> String {
    let Message { plain, html, notice: _, key, edits, thread, mentions, mentions_room } = message;
    let mut parts = vec![plain.clone(), html.clone().unwrap_or_else(|| "(no HTML)".to_owned())];
    for (name, value) in [("key", key), ("edits", edits), ("thread", thread)] {
        parts.extend(value.as_ref().map(|value| format!("{name} {value}")));
    }
    if !mentions.is_empty() || *mentions_room {
        parts.push(format!("mentions {mentions:?}, room {mentions_room}"));
    }
    parts.join("\n--- ").replacen("--- ", "---\n", 1)
}
