//! The committed tables against an installed Synapse.

use std::io::Write as _;
use std::process::{Command, Stdio};

use routes::{EXTRACT_PY, Table};

/// Extracts the endpoints of the Synapse of the environment whose Python is `MATRIX_STACK_PYTHON`, and compares them
/// with the committed table of that version.
#[test]
fn the_table_is_what_synapse_registers() {
    let Some(python) = std::env::var_os("MATRIX_STACK_PYTHON") else {
        println!("skipped: MATRIX_STACK_PYTHON names no Python of an environment with matrix-synapse");
        return;
    };
    let mut child = Command::new(&python)
        .args(["-W", "ignore", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    child.stdin.take().expect("a pipe").write_all(EXTRACT_PY.as_bytes()).expect("the script is read");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "extract.py: {}", output.status);
    let extracted = Table::parse(std::str::from_utf8(&output.stdout).expect("UTF-8")).expect("a table");

    let version = extracted.version();
    let committed = Table::for_version(version).unwrap_or_else(|| {
        panic!("there is no table for Synapse {version}: extract one into crates/routes/tables and list it in table.rs")
    });
    let difference = committed.diff(&extracted);
    assert!(
        difference.is_empty(),
        "the table of Synapse {} is not what Synapse {version} registers; extract it again:\n{difference}",
        committed.version(),
    );
}
