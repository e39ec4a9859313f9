//! The manual's pages are what the code does.

use std::path::Path;

use model::{Preset, ServerName, Stack};
use routes::{Matcher, Method, Options, Process, Table, classes_table_markdown, endpoints_markdown};

#[test]
fn the_table_of_classes_is_current() {
    committed::part("docs/routing.md", "classes", &classes_table_markdown());
}

#[test]
fn the_table_of_endpoints_is_current() {
    let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
    let topology = model::plan(&Stack::new(name), Path::new("/run/x"), Preset::Full).expect("a plan");
    let matcher = Matcher::compile(Table::newest(), &topology, &Options::default()).expect("a matcher");
    let newest = format!("The tables below are those of Synapse {}.\n\n", Table::newest().version());
    committed::part("docs/endpoints.md", "endpoints", &(newest + &endpoints_markdown(&matcher)));
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
