//! Brings the pods of a stack on Kubernetes from the configuration that they run with to the next one.
//!
//! `docs/rollout.md` says how a person uses it. [`next()`] is the pure core, which derives everything from what is in the
//! cluster; [`Cluster`] observes and does, and [`once`] or [`control`] go on.

mod cluster;
mod lease;
mod next;
mod run;
mod status;
mod wanted;

pub use cluster::{
    CONFIGURATION, Cluster, ClusterError, FIELD_MANAGER, GROUP_LABEL, HELD, Names, RELEASE_LABEL, RULES,
    Rule, STACK_KEY, UNCERTAIN,
};
pub use next::{Next, Observed, Pod, Step, Uncertain, Workload, comparison, next};
pub use run::{Options, RolloutError, control, once};
pub use status::Status;
pub use wanted::{Key, Kind, Stack, Target, Turn, Unusable, Wanted, options};
