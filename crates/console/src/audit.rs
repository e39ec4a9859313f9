//! The audit log: a JSON object a line for what somebody is about to do, and one for what came of it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde_json::Value;

/// How much of its end is read to be shown.
const TAIL: u64 = 1 << 20;

/// The file, which is only ever added to.
#[derive(Debug)]
pub(crate) struct Audit(PathBuf);

impl Audit {
    /// The log in this file, which is made if there is none.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let audit = Self(path);
        audit.file()?;
        Ok(audit)
    }

    fn file(&self) -> io::Result<File> {
        // Opened anew for each line, so that it can be rotated by anybody.
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.0)
    }

    /// Adds a line. What cannot be written down must not be done.
    pub(crate) fn note(&self, line: &Value) -> io::Result<()> {
        // One write, so that lines of two processes do not mix.
        self.file()?.write_all(format!("{line}\n").as_bytes())
    }

    /// The last lines, the newest first.
    pub(crate) fn newest(&self, count: usize) -> io::Result<Vec<Value>> {
        let mut file = File::open(&self.0)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let lines = BufReader::new(file.take(TAIL)).lines().map_while(Result::ok);
        // The first may be half a line.
        let mut all: Vec<Value> = lines.filter_map(|line| serde_json::from_str(&line).ok()).collect();
        all.reverse();
        all.truncate(count);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn lines_are_kept_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(path.clone()).unwrap();
        for number in 0..3 {
            audit.note(&serde_json::json!({ "n": number, "text": "a\nb" })).unwrap();
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let newest = audit.newest(2).unwrap();
        assert_eq!(newest.iter().map(|line| line["n"].as_u64()).collect::<Vec<_>>(), [Some(2), Some(1)]);
    }
}
