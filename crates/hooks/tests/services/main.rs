//! The services, with an outbox that keeps what it was given.

mod docs;
mod recorder;
mod senders;
mod sentry;
mod webhook;
