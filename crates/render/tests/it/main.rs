//! What is rendered, for people to read and for the real Synapse to load.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod compose;
mod mas;
mod snapshots;
mod stacks;
mod synapse;
mod systemd;
