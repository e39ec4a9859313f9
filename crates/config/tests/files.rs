//! Reading files, and the files that are generated from the types.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use model::{Preset, ServerName};

#[test]
fn the_schema_is_committed() {
    committed::file(
        "crates/config/stack.schema.json",
        &format!("{}\n", serde_json::to_string_pretty(&config::schema()).unwrap()),
    );
}

#[test]
fn the_reference_is_committed() {
    committed::file("docs/configuration.md", &config::reference_markdown());
}

fn example() -> ServerName {
    ServerName::try_from("example.org".to_owned()).unwrap()
}

/// Removes the `#` before each key.
fn uncomment(text: &str) -> String {
    text.lines()
        .map(|line| {
            let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
            match rest.strip_prefix('#') {
                Some(key) if !key.starts_with(['#', ' ']) => format!("{indent}{key}\n"),
                _ => format!("{line}\n"),
            }
        })
        .collect()
}

#[test]
fn init_writes_every_field() {
    insta::assert_snapshot!(config::init_yaml(&example(), None));
}

#[test]
fn init_loads_as_it_is() {
    for preset in [None, Some(Preset::Small), Some(Preset::Full)] {
        let text = config::init_yaml(&example(), preset);
        let loaded = config::parse("stack.yaml", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        let mut expected = model::Stack::new(example());
        expected.preset = preset;
        assert_eq!(loaded.stack, expected);
    }
}

#[test]
fn init_loads_with_everything_uncommented() {
    let text = uncomment(&config::init_yaml(&example(), None));
    let loaded = config::parse("stack.yaml", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    assert_eq!(loaded.stack.workers["sync"].count, Some(2));
    assert!(loaded.stack.database.external.is_some());
    assert!(loaded.stack.secrets.redis_password.is_some());
    for preset in Preset::LAYOUTS {
        loaded.plan(Path::new("/run"), preset).unwrap_or_else(|report| panic!("{report}"));
    }
    // What init shows as a default is the default.
    let mut stack = loaded.stack;
    assert_eq!(stack.network, model::Network::default());
    (stack.listen.metrics, stack.listen.proxy_protocol, stack.listen.tls) = (None, None, None);
    assert_eq!(stack.listen, model::Listen::default());
}

#[test]
fn relative_paths_count_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stack.yaml");
    fs::write(&file, "server_name: a.b\ndata_dir: data\nsecrets:\n  form_secret: {file: ../x}\n  signing_key: {file: /k}\nlisten:\n  tls: {certificate: c.pem, private_key: /p.pem}\n")
        .unwrap();
    let stack = config::load(&file).unwrap().stack;
    assert_eq!(stack.data_dir, Some(dir.path().join("data")));
    assert_eq!(stack.secrets.form_secret.unwrap().file, dir.path().join("../x"));
    assert_eq!(stack.secrets.signing_key.unwrap().file, PathBuf::from("/k"));
    let tls = stack.listen.tls.unwrap();
    assert_eq!((tls.certificate, tls.private_key), (dir.path().join("c.pem"), PathBuf::from("/p.pem")));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stack.yaml");
    let report = config::load(&file).unwrap_err().to_string();
    assert!(report.contains("cannot be read") && report.contains("matrix-stack init"), "{report}");

    fs::write(&file, b"server_name: a.b\n\xff\n").unwrap();
    let report = config::load(&file).unwrap_err().to_string();
    assert!(report.contains("line 2 is not UTF-8"), "{report}");
    assert!(config::load(dir.path()).unwrap_err().to_string().contains("cannot be read"));
}
