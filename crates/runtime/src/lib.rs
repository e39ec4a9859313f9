//! Install, start, supervise and stop a stack on this machine.
//!
//! [`up`] runs a planned stack: PostgreSQL, Valkey, the fork server with Synapse's processes, and the router inside this
//! process. [`run`] becomes one of them for another supervisor. [`client`] reaches a running one. Children start through [`launch`], and what they run comes from
//! [`install`].

mod alone;
mod change;
pub mod client;
mod control;
mod forks;
mod handover;
pub mod install;
pub mod launch;
mod listen;
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

pub use alone::{install, run};
pub use listen::Given;
pub use probe::{json as ask, wait_until_healthy};
pub use route::{ProbeError, RouteOptions, Watch, probe_router, route};
pub use state::{StateError, write_file};
pub use up::{Admin, ReadAgain, Running, Started, UpError, UpOptions, detach, up};
