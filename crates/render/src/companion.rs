//! The settings of each companion service as a file, with where it listens.

use std::path::PathBuf;

use model::{Address, CompanionKind, Layout, ListenAddress, PlannedCompanion, Topology};
use serde_json::{Map, Value};

use crate::{RenderedFile, yaml_document};

/// The file of a companion's settings, in [`model::Layout::config`].
pub fn companion_file(kind: CompanionKind) -> PathBuf {
    PathBuf::from(format!("{kind}.yaml"))
}

/// The settings of every companion of a topology, and the configuration of MAS.
pub fn companions(topology: &Topology, layout: &Layout) -> Vec<RenderedFile> {
    let own = topology.companions().iter().filter(|companion| companion.kind != CompanionKind::Mas);
    own.map(file).chain(crate::mas(topology, layout)).collect()
}

fn file(companion: &PlannedCompanion) -> RenderedFile {
    let mut entries = Map::new();
    if let Some(address) = &companion.address {
        entries.insert("listen".to_owned(), listen(address));
    }
    entries.insert("metrics".to_owned(), listen(&companion.private));
    entries.extend(companion.settings.clone());
    let comment =
        format!("{}, as `matrix-stack serve {0}` reads it. Generated: change stack.yaml.", companion.kind);
    RenderedFile { path: companion_file(companion.kind), contents: yaml_document(&comment, entries) }
}

fn listen(address: &Address) -> Value {
    match address {
        Address::Unix { path } => ListenAddress::Unix(path.clone()).to_string().into(),
        Address::Tcp { .. } => address.to_string().into(),
    }
}
