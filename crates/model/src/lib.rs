//! The one model of a Matrix homeserver stack, from which everything else is derived.
//!
//! What a person writes becomes a [`Stack`]; [`plan()`] turns it into a [`Topology`] (which Synapse
//! processes exist, what each of them does and where it listens) or into a list of [`Problem`]s.
//! No `Topology` can exist that Synapse would misbehave under. This crate does no I/O.

mod companion;
mod compare;
mod layout;
mod mas;
mod plan;
mod preset;
mod problem;
mod role;
mod sizing;
mod stack;
mod topology;

pub use companion::{Companion, CompanionKind, Companions, LdapCompanion, PlannedCompanion};
pub use compare::{Action, Comparison, InstanceChange, compare, grouped};
pub use layout::{Layout, MasSecretPaths, SecretPath, SecretPaths};
pub use mas::{
    Account, Algorithm, Apple, Auth, Branding, Captcha, Client, Email, Experimental, InactiveSessions, Mas,
    OAuth, Passwords, PlannedMas, Policy, Provider, RateLimit, RateLimiting, Scheme, SessionLimit, TokenAuth,
};
pub use plan::{plan, reserved_connections};
pub use preset::{Preset, preset_groups};
pub use problem::{Problem, Problems};
pub use role::{Balance, Kind, ROLES, Role, RoleSpec, Shard, Stream, UnknownRole, roles_table_markdown};
pub use sizing::{
    Estimate, Machine, Recommendation, Share, UserLoad, choose_preset, estimate, recommend, share,
};
pub use stack::{
    Authentication, Caches, Contact, Database, EncryptionHints, Federation, Hosts, InvalidServerName, Listen,
    ListenAddress, Lookup, MAX_WORKERS_PER_GROUP, Media, Network, NotAnAddress, OWNED_SYNAPSE_OPTIONS, Pool,
    Pools, Postgres, ProxyProtocol, Redis, RedisServer, Registration, SecretSource, Secrets, ServerName,
    Sources, Stack, Support, Synapse, Tcp, Tls, WellKnown, WorkerGroup,
};
pub use topology::{Address, App, Group, Instance, Replicas, Topology, Violation};
