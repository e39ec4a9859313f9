//! What happens while a stack starts, runs and stops, and two ways to show it.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Something that happened to the stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// A step before the processes: one line of text.
    Step {
        /// What is being done.
        text: String,
    },
    /// The processes are known.
    Planned {
        /// How many there are, PostgreSQL, Valkey and the fork server among them.
        processes: usize,
    },
    /// A process was started.
    Starting {
        /// Its name.
        name: String,
    },
    /// A process answers as it should.
    Healthy {
        /// Its name.
        name: String,
        /// How many are healthy now.
        healthy: usize,
        /// Of how many.
        total: usize,
        /// Seconds since it was started, or ceased to be healthy.
        seconds: f64,
    },
    /// A process answers no more, though it lives.
    Unhealthy {
        /// Its name.
        name: String,
        /// What it answered instead.
        reason: String,
    },
    /// A process ended that should not have.
    Exited {
        /// Its name.
        name: String,
        /// How it ended.
        reason: String,
        /// Seconds until it is started again.
        retry_seconds: f64,
        /// Its last log lines, where it ends again and again.
        log: Vec<String>,
    },
    /// Every process is healthy.
    Ready {
        /// How many there are.
        processes: usize,
        /// Seconds that it took, installation not counted.
        seconds: f64,
    },
    /// Processes are about to be changed.
    Change {
        /// Their names.
        names: Vec<String>,
        /// What happens to them, as [`model::Action::describe`] says it.
        action: String,
        /// The fields of `stack.yaml` that cause it.
        because: Vec<String>,
    },
    /// A change is done, and every process is healthy.
    Changed {
        /// How many processes it changed.
        changed: usize,
        /// How many it left alone.
        kept: usize,
        /// Seconds that it took.
        seconds: f64,
    },
    /// A change did not come to its end; whoever asked for it hears why.
    NotChanged {},
    /// Something that deserves a look.
    Note {
        /// What.
        text: String,
    },
    /// The stack stops.
    Stopping {
        /// Why.
        reason: String,
    },
    /// A process was stopped.
    Stopped {
        /// Its name.
        name: String,
        /// How many still run.
        left: usize,
    },
    /// All have stopped.
    Down {
        /// Seconds that it took.
        seconds: f64,
    },
}

/// Takes notice of what happens.
pub trait Progress: Send + Sync {
    /// Called for each event, in order; it should return soon.
    fn event(&self, event: &Event);
}

/// Shows progress on stderr: on a terminal with one line that changes in place, else a plain line for each event.
pub fn for_stderr() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Arc::new(Live::new(std::io::stderr()))
    } else {
        Arc::new(Plain::new(std::io::stderr()))
    }
}

/// Shows nothing.
pub fn quiet() -> Arc<dyn Progress> {
    struct Quiet;
    impl Progress for Quiet {
        fn event(&self, _: &Event) {}
    }
    Arc::new(Quiet)
}

/// The events as plain lines.
struct Plain<W> {
    out: Mutex<W>,
    start: Instant,
}

impl<W: Write + Send> Plain<W> {
    fn new(out: W) -> Self {
        Self { out: Mutex::new(out), start: Instant::now() }
    }
}

impl<W: Write + Send> Progress for Plain<W> {
    fn event(&self, event: &Event) {
        let Some(text) = line(event) else { return };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A closed stderr must not stop the stack.
        let _ = writeln!(out, "{:7.2} s  {text}", self.start.elapsed().as_secs_f64());
    }
}

/// The event as a line, if it is worth one of its own.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Step { text } | Event::Note { text } => text.clone(),
        Event::Planned { processes } => format!("starting {processes} processes"),
        Event::Starting { .. } | Event::Stopped { .. } | Event::NotChanged {} => return None,
        Event::Healthy { name, healthy, total, seconds } => {
            format!("{name} is healthy after {seconds:.2} s ({healthy} of {total})")
        }
        Event::Unhealthy { name, reason } => format!("{name} does not answer: {reason}"),
        Event::Exited { name, reason, retry_seconds, log } => {
            let when = if *retry_seconds > 0.0 {
                format!("again in {retry_seconds} s")
            } else {
                "starting it again".to_owned()
            };
            let mut text = format!("{name} ended: {reason}; {when}");
            for line in log {
                text.push_str("\n    ");
                text.push_str(line);
            }
            text
        }
        Event::Ready { processes, seconds } => {
            format!("all {processes} processes are healthy after {seconds:.1} s")
        }
        Event::Change { names, action, because } => {
            let because = if because.is_empty() {
                String::new()
            } else {
                format!(", because of {}", because.join(", "))
            };
            format!("{}: {action}{because}", names.join(", "))
        }
        Event::Changed { changed: 0, seconds, .. } => {
            format!("no process had to change; the router has loaded its table after {seconds:.1} s")
        }
        Event::Changed { changed, kept, seconds } => {
            format!("processes changed: {changed}, left alone: {kept}; all are healthy after {seconds:.1} s")
        }
        Event::Stopping { reason } => format!("stopping: {reason}"),
        Event::Down { seconds } => format!("everything has stopped after {seconds:.1} s"),
    })
}

/// One line that changes in place; what matters longer scrolls by above it.
struct Live<W>(Mutex<LiveState<W>>);

struct LiveState<W> {
    out: W,
    start: Instant,
    doing: String,
    starting: BTreeSet<String>,
    settled: bool,
    stopping: bool,
    shown: bool,
}

impl<W: Write + Send> Live<W> {
    fn new(out: W) -> Self {
        Self(Mutex::new(LiveState {
            out,
            start: Instant::now(),
            doing: String::new(),
            starting: BTreeSet::new(),
            settled: false,
            stopping: false,
            shown: false,
        }))
    }
}

impl<W: Write + Send> Progress for Live<W> {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).event(event);
    }
}

impl<W: Write> LiveState<W> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { text } => self.doing.clone_from(text),
            Event::Planned { processes } => self.doing = format!("0 of {processes} healthy"),
            Event::Starting { name } => {
                self.starting.insert(name.clone());
            }
            Event::Healthy { name, healthy, total, .. } => {
                self.starting.remove(name);
                if self.settled {
                    self.keep(line(event));
                } else {
                    self.doing = format!("{healthy} of {total} healthy");
                }
            }
            Event::Stopped { left, .. } if self.stopping => self.doing = format!("stopping, {left} left"),
            Event::Stopped { .. } => {}
            Event::Stopping { .. } => {
                self.settled = false;
                self.stopping = true;
                self.starting.clear();
                self.start = Instant::now();
                self.keep(line(event));
                "stopping".clone_into(&mut self.doing);
            }
            Event::Ready { .. } | Event::Down { .. } | Event::Changed { .. } => {
                self.settled = true;
                self.keep(line(event));
            }
            Event::NotChanged {} => {
                self.settled = true;
                self.clear();
            }
            Event::Change { .. } | Event::Note { .. } | Event::Unhealthy { .. } | Event::Exited { .. } => {
                self.keep(line(event));
            }
        }
        if !self.settled {
            self.draw();
        }
    }

    fn keep(&mut self, text: Option<String>) {
        let Some(text) = text else { return };
        self.clear();
        let _ = writeln!(self.out, "{text}");
    }

    /// Takes the line back that changes.
    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(self.out, "\r\x1b[2K");
            let _ = self.out.flush();
        }
    }

    fn draw(&mut self) {
        // 78 columns fit every terminal, so the line never wraps and can be taken back.
        const WIDTH: usize = 78;
        let starting: Vec<&str> = self.starting.iter().map(String::as_str).collect();
        let names = if starting.is_empty() { String::new() } else { format!(": {}", starting.join(", ")) };
        let mut text: String = format!("{:5.1} s  {}{names}", self.start.elapsed().as_secs_f64(), self.doing);
        if text.chars().count() > WIDTH {
            text = text.chars().take(WIDTH - 1).chain(['…']).collect();
        }
        let _ = write!(self.out, "\r\x1b[2K{text}");
        let _ = self.out.flush();
        self.shown = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let name = "sync_1".to_owned();
        vec![
            Event::Planned { processes: 2 },
            Event::Starting { name: name.clone() },
            Event::Healthy { name: name.clone(), healthy: 1, total: 2, seconds: 0.5 },
            Event::Exited {
                name,
                reason: "exit code 1".into(),
                retry_seconds: 0.5,
                log: vec!["Traceback".into()],
            },
            Event::Change {
                names: vec!["sync_1".into(), "sync_2".into()],
                action: "appears".into(),
                because: vec!["workers.sync.count".into()],
            },
            Event::Ready { processes: 2, seconds: 1.0 },
        ]
    }

    #[test]
    fn plain_lines_have_no_control_characters() {
        let plain = Plain::new(Vec::new());
        for event in &events() {
            plain.event(event);
        }
        let text = String::from_utf8(plain.out.into_inner().unwrap()).unwrap();
        assert!(!text.contains(['\x1b', '\r']));
        assert!(
            text.contains("sync_1 is healthy after 0.50 s (1 of 2)")
                && text.contains("again in 0.5 s\n    Traceback")
        );
        assert!(text.contains("sync_1, sync_2: appears, because of workers.sync.count"));
        assert_eq!(text.lines().count(), 6);
    }

    #[test]
    fn the_live_line_leaves_only_what_matters() {
        let live = Live::new(Vec::new());
        for event in &events() {
            live.event(event);
        }
        let text = String::from_utf8(live.0.into_inner().unwrap().out).unwrap();
        assert!(text.ends_with("\r\x1b[2Kall 2 processes are healthy after 1.0 s\n"));
    }

    #[test]
    fn events_travel_as_json() {
        for event in events() {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }
    }
}
