//! For tests: files that are generated and committed. A test fails when one is stale, and writes it anew when it is run
//! with `UPDATE_FILES=1`.

use std::path::{Path, PathBuf};

/// Fails unless the committed file has this text. The path is one from the root of the repository.
#[track_caller]
pub fn file(path: &str, text: &str) {
    let place = root().join(path);
    if std::fs::read_to_string(&place).is_ok_and(|committed| committed == text) {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_FILES").is_some(),
        "{path} is stale: run the tests with UPDATE_FILES=1 and commit it"
    );
    std::fs::write(&place, text).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Fails unless the part of a committed file that stands between `<!-- generated: NAME -->` and the next
/// `<!-- end -->` is this text.
#[track_caller]
pub fn part(path: &str, name: &str, text: &str) {
    let place = root().join(path);
    let whole = std::fs::read_to_string(&place).unwrap_or_else(|error| panic!("{path}: {error}"));
    let opening = format!("<!-- generated: {name} -->\n");
    let (head, rest) = whole.split_once(&opening).unwrap_or_else(|| panic!("{path} has no `{opening}`"));
    let end = rest.find("<!-- end -->").unwrap_or_else(|| panic!("the part {name} of {path} has no end"));
    file(path, &format!("{head}{opening}\n{}\n\n{}", text.trim(), &rest[end..]));
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
