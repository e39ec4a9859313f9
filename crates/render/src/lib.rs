//! A topology as the files that other programs read.
//!
//! Pure functions from a planned [`model::Topology`] to text. Nothing here touches the outside world, and the same
//! topology always gives the same bytes, so that a changed file means a changed configuration.

mod companion;
mod compose;
mod diagram;
mod mas;
mod proxy;
mod synapse;
mod systemd;
mod yaml;

use std::path::PathBuf;

use serde_json::{Map, Value};

pub use companion::{companion_file, companions};
pub use compose::{COMPOSE_DIRECTORIES, ComposeOptions, compose, compose_stack};
pub use diagram::{DIAGRAM_STYLE, Diagram, View};
pub use mas::{PRIVATE_PORT as MAS_PRIVATE_PORT, mas};
pub use proxy::{Unsupported, envoy, haproxy, nginx};
pub use synapse::{InstanceError, config_args, synapse, synapse_instance, synapse_options};
pub use systemd::{SystemdOptions, systemd};

/// Valkey's own options, wherever it runs. What Synapse's processes tell each other need not last, and their cache entries
/// are small and expire; what does not fit is dropped, the least recently used first.
pub const VALKEY_OPTIONS: [&str; 10] = [
    "--save",
    "",
    "--appendonly",
    "no",
    "--maxmemory",
    "128mb",
    "--maxmemory-policy",
    "allkeys-lru",
    "--databases",
    "1",
];

/// A YAML document below some lines of comment, in the form that all rendered ones have.
pub fn yaml_document(comment: &str, entries: Map<String, Value>) -> String {
    yaml::document(comment, &[yaml::Section { title: String::new(), entries }])
}

/// A file for another program to read.
///
/// It holds no secret that matrix-stack knows of (Synapse reads those from files of their own), but options that a
/// person passes through may hold some: write it with mode 0600.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedFile {
    /// Where it goes, relative to the directory that it is rendered for ([`model::Layout::config`] for Synapse).
    pub path: PathBuf,
    /// The whole text, ending in a newline.
    pub contents: String,
}
