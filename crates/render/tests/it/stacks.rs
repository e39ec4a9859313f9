//! Stacks to render, each for something that makes the files differ.

use std::path::Path;

use model::{Layout, Preset, Stack, Topology, plan};
use serde_json::{Value, json};

/// A stack's topology and layout.
pub(super) struct Case {
    /// What it is for.
    pub(super) name: &'static str,
    /// Its plan.
    pub(super) topology: Topology,
    /// Its files, below the directory that the case was made for.
    pub(super) layout: Layout,
}

/// The case for a stack, given as in `stack.yaml` but for the server's name, with its files below `data_dir`.
pub(super) fn case(name: &'static str, data_dir: &Path, mut stack: Value) -> Case {
    stack["server_name"] = "example.org".into();
    let stack: Stack = serde_json::from_value(stack).unwrap_or_else(|e| panic!("{name}: {e}"));
    let layout = Layout::new(data_dir);
    let topology =
        plan(&stack, &layout.sockets(), Preset::Custom).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    Case { name, topology, layout }
}

/// A stack whose processes each have a host of their own.
pub(super) fn hosts() -> Value {
    json!({
        "preset": "medium",
        "network": { "hosts": { "prefix": "synapse-", "suffix": ".matrix.svc.cluster.local" } },
        "public_base_url": "https://matrix.example.org",
        "database": { "external": { "host": "postgres.db.svc", "sslmode": "verify-full" }, "max_connections": 200 },
        "redis": { "external": { "host": "valkey.db.svc", "dbid": 2 } },
        "media": { "shared_storage": true, "store_path": "/media" },
    })
}

/// The same with pools, found in this way.
pub(super) fn pools(lookup: &str) -> Value {
    let mut stack = hosts();
    stack["network"]["hosts"]["pools"] = json!({ "suffix": ".matrix.svc.cluster.local", "lookup": lookup });
    stack["workers"] = json!({ "sync": { "count": 2, "max_count": 6 } });
    stack
}
