//! The processes' log files: shown, followed, and kept from growing without bound.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Layout, Topology};

use crate::state::with_suffix;

/// The processes that are no part of the topology, each with a log of its own.
const OTHERS: [&str; 4] = ["postgres", "valkey", "forkserver", "supervisor"];
/// A log that is longer is cut, its lines being kept in `NAME.log.1`.
const LONGEST: u64 = 50 << 20;
/// How many bytes at a log's end are looked through for its last lines.
const TAIL: u64 = 4 << 20;
/// How many of a process's last lines an error shows.
const ERROR_LINES: usize = 20;
const FOLLOW: Duration = Duration::from_millis(200);

/// What to show.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many of the last lines of each log.
    pub lines: usize,
    /// Whether to go on with what is written from now on.
    pub follow: bool,
}

/// The processes whose logs `target` means: a process's name, a group's, a role's, or `postgres`, `valkey`,
/// `forkserver`, `supervisor`. Empty: there is none.
pub fn names(topology: &Topology, target: &str) -> Vec<String> {
    if OTHERS.contains(&target) {
        return vec![target.to_owned()];
    }
    topology.named(target).into_iter().map(|instance| instance.name.clone()).collect()
}

/// Every process that has a log.
pub fn all(topology: &Topology) -> Vec<String> {
    let instances = topology.instances().iter().map(|instance| instance.name.clone());
    OTHERS.iter().map(ToString::to_string).chain(instances).collect()
}

/// Shows the logs of these processes, or of all that have one if no name is given. With several, each line starts with
/// its process's name.
pub async fn show(
    layout: &Layout,
    names: &[String],
    options: Options,
    out: &mut impl Write,
) -> io::Result<()> {
    let names: Vec<String> = if names.is_empty() { existing(layout) } else { names.to_vec() };
    let width = names.iter().map(String::len).max().unwrap_or_default();
    let mut logs: Vec<Follower> = names
        .iter()
        .map(|name| {
            let prefix = if names.len() > 1 { format!("{name:width$} | ") } else { String::new() };
            Follower { path: layout.log(name), prefix, position: 0, partial: Vec::new() }
        })
        .collect();
    for log in &mut logs {
        log.last(options.lines, out)?;
    }
    out.flush()?;
    if !options.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(FOLLOW).await;
        for log in &mut logs {
            log.more(out)?;
        }
        out.flush()?;
    }
}

fn existing(layout: &Layout) -> Vec<String> {
    let names: BTreeSet<String> = fs::read_dir(layout.logs())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".log").filter(|name| *name != "access").map(ToOwned::to_owned)
        })
        .collect();
    names.into_iter().collect()
}

/// One log, from where it was read last.
struct Follower {
    path: PathBuf,
    prefix: String,
    position: u64,
    partial: Vec<u8>,
}

impl Follower {
    fn last(&mut self, lines: usize, out: &mut impl Write) -> io::Result<()> {
        let length = length(&self.path);
        for line in last_lines(&self.path, length.saturating_sub(TAIL), length, lines) {
            writeln!(out, "{}{line}", self.prefix)?;
        }
        self.position = length;
        Ok(())
    }

    fn more(&mut self, out: &mut impl Write) -> io::Result<()> {
        let length = length(&self.path);
        if length < self.position {
            // It was cut: go on at its new start.
            self.position = 0;
        }
        if length == self.position {
            return Ok(());
        }
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.position))?;
        let mut new = Vec::new();
        self.position += file.take(TAIL).read_to_end(&mut new)? as u64;
        self.partial.extend_from_slice(&new);
        while let Some(end) = self.partial.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            write!(out, "{}{}", self.prefix, String::from_utf8_lossy(&line))?;
        }
        Ok(())
    }
}

/// The last lines of the part of a file between two positions.
fn last_lines(path: &Path, from: u64, to: u64, count: usize) -> Vec<String> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut lines = std::collections::VecDeque::new();
        for line in BufReader::new(file.take(to.saturating_sub(from))).split(b'\n') {
            lines.push_back(String::from_utf8_lossy(&line?).trim_end_matches('\r').to_owned());
            if lines.len() > count {
                lines.pop_front();
            }
        }
        io::Result::Ok(lines)
    };
    // A log that is not there has no lines.
    read().unwrap_or_default().into()
}

/// How long a log is.
pub(crate) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The last lines that were written since the log was `start` long.
pub(crate) fn tail_since(path: &Path, start: u64) -> Vec<String> {
    let length = length(path);
    // A log that was cut meanwhile has only new lines.
    let start = if length < start { 0 } else { start };
    let mut lines = last_lines(path, start.max(length.saturating_sub(TAIL)), length, ERROR_LINES);
    lines.retain(|line| !line.trim().is_empty());
    lines
}

/// Cuts every log in the directory that has grown too long; its lines go to `NAME.log.1` and replace those there. The
/// processes keep writing to the same file, so lines that come in just between copying and cutting are lost.
pub(crate) fn cut_long(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        if is_log
            && length(&path) > LONGEST
            && let Err(error) = cut(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot cut a log that has grown too long");
        }
    }
}

fn cut(path: &Path) -> io::Result<()> {
    let mut log = OpenOptions::new().read(true).write(true).open(path)?;
    let mut old = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(with_suffix(path, ".1"))?;
    io::copy(&mut log, &mut old)?;
    log.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn last_lines_and_prefixes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        fs::create_dir(layout.logs()).unwrap();
        append(&layout.log("main"), "one\ntwo\nthree\n");
        append(&layout.log("sync_1"), "four\n");
        append(&layout.log("access"), "{}\n");
        let options = Options { lines: 2, follow: false };
        let mut out = Vec::new();
        show(&layout, &["main".to_owned()], options, &mut out).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "two\nthree\n");
        let mut out = Vec::new();
        show(&layout, &[], options, &mut out).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "main   | two\nmain   | three\nsync_1 | four\n");
    }

    #[test]
    fn following_goes_on_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        append(&path, "one\n");
        let mut follower =
            Follower { path: path.clone(), prefix: String::new(), position: 0, partial: Vec::new() };
        let mut out = Vec::new();
        follower.last(10, &mut out).unwrap();
        append(&path, "tw");
        follower.more(&mut out).unwrap();
        append(&path, "o\nthree\n");
        follower.more(&mut out).unwrap();
        cut(&path).unwrap();
        append(&path, "four\n");
        follower.more(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "one\ntwo\nthree\nfour\n");
        assert_eq!(fs::read_to_string(with_suffix(&path, ".1")).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn errors_show_what_was_written_since() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        append(&path, "old\n");
        let start = length(&path);
        append(&path, "new\n\nnewer\n");
        assert_eq!(tail_since(&path, start), ["new", "newer"]);
        assert_eq!(tail_since(&path, 1 << 30), ["old", "new", "newer"]);
        assert!(tail_since(&dir.path().join("none"), 0).is_empty());
    }
}
