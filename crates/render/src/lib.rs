//! A topology as the files that other programs read.
//!
//! Pure functions from a planned [`model::Topology`] to text. Nothing here touches the outside world, and the same
//! topology always gives the same bytes, so that a changed file means a changed configuration.

mod proxy;
mod synapse;
mod systemd;
mod yaml;

use std::path::PathBuf;

pub use proxy::{Unsupported, envoy, haproxy, nginx};
pub use synapse::{InstanceError, config_args, synapse, synapse_instance};
pub use systemd::{SystemdOptions, systemd};

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
