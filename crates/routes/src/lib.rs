//! Which process answers which request.
//!
//! *Truth* is extracted from Synapse itself, one [`Table`] a minor version: every method and path, which kinds of
//! process register it, and which stream the process that answers has to write. *Policy* ([`CLASSES`], and the rules
//! that put endpoints into classes) is written by hand: which role each class prefers, by which key it is spread, its
//! timeout and its cap. [`Matcher::compile`] multiplies the two with a [`model::Topology`] into a matcher that is
//! linear in the path and allocates nothing; [`Matcher::rules`] has the same decisions as a list of patterns, for programs
//! that take no automaton. This crate does no I/O.

pub mod answers;
mod audit;
mod explain;
mod features;
mod hash;
mod manual;
mod matcher;
mod policy;
mod rules;
mod table;
mod trie;
mod well_known;

pub use audit::{Audit, Call, Counts, Expression, Found, Target};
pub use explain::Explanation;
pub use features::{Condition, Features};
pub use hash::{hash_key, hash_room};
pub use manual::endpoints_markdown;
pub use matcher::{
    Closed, Decision, Forward, Matcher, Options, Route, RouteError, SEPARATORS, WellKnown, parameter,
};
pub use model::Balance;
pub use policy::{CLASSES, Class, ClassId, Key, classes_table_markdown};
pub use rules::{Initial, Rule};
pub use table::{Difference, Endpoint, Method, Process, Segment, Table, TableError};
pub use well_known::{well_known, well_known_caching};

/// The program that prints a table: Python, to be run by an environment that has Synapse installed, without arguments.
/// The table comes out on its standard output, in the format of [`Table::parse`].
pub const EXTRACT_PY: &str = include_str!("../extract/extract.py");
