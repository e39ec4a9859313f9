//! Webhooks into Matrix rooms: Sentry, Slack-compatible senders, Alertmanager.
//!
//! What is accepted is durable before the sender hears of it, and arrives once, in order. Formats are pure functions from a payload to a
//! [`Message`]; an [`Outbox`] takes messages and answers for them.

mod message;
mod outbox;

pub use message::Message;
pub use outbox::{Accepted, Delivery, Outbox, Refused};
