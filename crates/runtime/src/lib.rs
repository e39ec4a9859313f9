//! Install, start, supervise and stop a stack on this machine.
//!
//! [`up`] runs a planned stack: PostgreSQL, Valkey, the fork server with Synapse's processes, and the router inside this
//! process. [`client`] reaches a running one. Children start through [`launch`], and what they run comes from
//! [`install`].

mod change;
pub mod client;
mod control;
mod forks;
pub mod install;
pub mod launch;
pub mod logs;
pub mod postgres;
mod probe;
mod proc;
pub mod progress;
mod route;
mod site;
mod state;
mod supervisor;
mod units;
mod up;
pub mod users;
pub mod valkey;

pub use route::route;
pub use state::StateError;
pub use up::{Admin, ReadAgain, Running, Started, UpError, UpOptions, detach, up};
