//! The Compose file, for people to read. `crates/cli/tests/e2e` judges it.

use std::fmt::Write as _;
use std::path::Path;

use crate::stacks::case;
use model::{Layout, Preset, plan};
use render::{ComposeOptions, compose, compose_stack};
use serde_json::{Value, json};

fn rendered(stack: Value) -> String {
    let written = case("compose", Path::new("/srv/matrix"), stack).topology;
    let stack = compose_stack(&written);
    let topology = plan(&stack, Path::new("/data/run"), Preset::Custom).unwrap();
    let options = ComposeOptions {
        image: "matrix-stack:1.2.3".to_owned(),
        synapse: "matrixdotorg/synapse:v1.163.2".to_owned(),
        postgres: "postgres:17".to_owned(),
        valkey: "valkey/valkey:9".to_owned(),
        user: (991, 991),
    };
    let files = compose(written.stack(), &Layout::new("/srv/matrix"), &topology, &options);
    let mut out = String::new();
    for file in files {
        write!(out, "=== {}\n{}\n", file.path.display(), file.contents).unwrap();
    }
    out
}

#[test]
fn compose_files() {
    insta::assert_snapshot!("compose_small", rendered(json!({ "preset": "small" })));
    insta::assert_snapshot!("compose_full", rendered(json!({ "preset": "full" })));
    let outside = json!({
        "preset": "small",
        "listen": {
            "address": "0.0.0.0:443",
            "metrics": "127.0.0.1:9100",
            "tls": { "certificate": "/etc/tls/$domain.crt", "private_key": "/etc/tls/$domain.key" },
        },
        "network": { "hosts": { "prefix": "s-", "suffix": ".example.org", "private_port": 9999 } },
        "database": { "external": { "host": "db.example.org" }, "max_connections": 200 },
        "redis": { "external": { "host": "valkey.example.org" } },
        "media": { "store_path": "/srv/media", "shared_storage": true },
        "secrets": { "redis_password": { "file": "/etc/valkey" }, "database_password": { "file": "/etc/db" } },
    });
    insta::assert_snapshot!("compose_outside", rendered(outside));
}
