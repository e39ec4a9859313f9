//! The manual's page is what the code does.

use std::path::Path;

use routes::{Method, Process, Table, classes_table_markdown};

const BEGIN: &str = "<!-- generated: classes -->\n";
const END: &str = "<!-- end -->\n";

/// Rewrites the generated part when `UPDATE_DOCS` is set.
#[test]
fn the_table_of_classes_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/routing.md");
    let text = std::fs::read_to_string(&path).expect("docs/routing.md");
    let (head, rest) = text.split_once(BEGIN).expect("the marker of the beginning");
    let (_, tail) = rest.split_once(END).expect("the marker of the end");
    let current = format!("{head}{BEGIN}\n{}\n{END}{tail}", classes_table_markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, current).expect("docs/routing.md is written");
    } else {
        assert!(text == current, "docs/routing.md is stale: run the tests with UPDATE_DOCS=1 and commit it");
    }
}

/// The kinds of process and the methods that the page explains are those of the tables.
#[test]
fn tables_hold_what_the_page_says() {
    for table in Table::all() {
        for method in Method::ALL {
            assert!(table.endpoints().iter().any(|endpoint| endpoint.method == method));
        }
        for process in [Process::Main, Process::MainMedia, Process::Worker, Process::Media] {
            assert!(table.endpoints().iter().any(|endpoint| endpoint.by.contains(&process)));
        }
    }
}
