//! A rollout, its core by itself and the whole of it against a stand-in for Kubernetes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apiserver;
mod core;
mod shell;
mod stacks;
