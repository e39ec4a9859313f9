//! The access log: one JSON object a line, written by a thread of its own, so that a slow disk delays no request.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    #[default]
    Off,
    /// To `tracing`, target `access`, level info, the line as its message.
    Tracing,
    /// To the end of this file, which is made with mode 0600 if it is missing, and opened anew on each reload.
    File(PathBuf),
}

/// One line of the log. The field names are documented in `docs/router.md`.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    pub time: String,
    pub request_id: &'a str,
    pub trace_id: Option<&'a str>,
    pub client: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub class: Option<&'static str>,
    pub role: Option<&'static str>,
    pub instance: Option<&'a str>,
    pub status: Option<u16>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration_ms: f64,
    pub upstream_ms: Option<f64>,
    pub failure: Option<&'static str>,
    pub retried: u32,
    pub key: Option<&'static str>,
}

/// How many lines may wait for the disk.
const BACKLOG: usize = 8192;

/// What the writing thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    Line(Vec<u8>),
    Reopen,
}

/// Takes the lines.
#[derive(Debug)]
pub(crate) enum Writer {
    Off,
    Tracing,
    File(SyncSender<Message>),
}

impl Writer {
    pub(crate) fn start(log: &AccessLog) -> io::Result<Self> {
        let path = match log {
            AccessLog::Off => return Ok(Self::Off),
            AccessLog::Tracing => return Ok(Self::Tracing),
            AccessLog::File(path) => path.clone(),
        };
        let file = open(&path)?;
        let (sender, receiver) = sync_channel(BACKLOG);
        // It ends when the router does, which drops the sender.
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(&path, file, &receiver))?;
        Ok(Self::File(sender))
    }

    pub(crate) fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Hands a line over. False if it could not be taken in time.
    pub(crate) fn log(&self, line: &Line<'_>) -> bool {
        match self {
            Self::Off => true,
            Self::Tracing => {
                if let Ok(text) = serde_json::to_string(line) {
                    tracing::info!(target: "access", "{text}");
                }
                true
            }
            Self::File(sender) => {
                let Ok(mut text) = serde_json::to_vec(line) else { return false };
                text.push(b'\n');
                sender.try_send(Message::Line(text)).is_ok()
            }
        }
    }

    pub(crate) fn reopen(&self) {
        if let Self::File(sender) = self {
            // A full backlog means that the old file cannot be written; the next reload tries again.
            let _ = sender.try_send(Message::Reopen);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn write(path: &Path, file: File, messages: &Receiver<Message>) {
    let mut out = BufWriter::new(file);
    while let Ok(first) = messages.recv() {
        for message in std::iter::once(first).chain(messages.try_iter()) {
            let result = match message {
                Message::Line(line) => out.write_all(&line),
                Message::Reopen => {
                    out.flush().and_then(|()| open(path)).map(|file| out = BufWriter::new(file))
                }
            };
            if let Err(error) = result {
                tracing::error!(path = %path.display(), %error, "cannot write the access log; free space or mend its mode");
            }
        }
        if let Err(error) = out.flush() {
            tracing::error!(path = %path.display(), %error, "cannot write the access log; free space or mend its mode");
        }
    }
}

/// The time of day as RFC 3339 has it, in UTC, to the millisecond.
pub fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 1970-01-01 to a civil date, counting years from March so that the leap day comes last, in cycles of
    // 400 years (146 097 days).
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.007Z"),
            (1_772_323_199, "2026-02-28T23:59:59.007Z"),
            (1_772_323_200, "2026-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(7)), text);
        }
    }

    #[test]
    fn the_file_is_private_appended_to_and_reopened() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        std::fs::write(&path, "old\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut out = BufWriter::new(open(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        out.write_all(b"one\n").unwrap();
        drop(out);

        let (sender, receiver) = sync_channel(10);
        sender.send(Message::Line(b"two\n".to_vec())).unwrap();
        sender.send(Message::Reopen).unwrap();
        sender.send(Message::Line(b"three\n".to_vec())).unwrap();
        drop(sender);
        write(&path, open(&path).unwrap(), &receiver);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    }
}
