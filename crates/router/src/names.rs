//! What is known of the names that instances are reached by, asked again and again, and put into effect when it changes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::sleep;

use crate::dns::{Found, Process, Question};
use crate::health;
use crate::instance::Instance;
use crate::snapshot::{Active, Snapshot};
use crate::state::{Phase, Shared, State};

/// The shortest and the longest time until a name is looked up again, whatever its records' time to live.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// When a name is looked up again that has nothing behind it.
const EMPTY: Duration = Duration::from_secs(2);

/// How often in a row a name must have nothing behind it before that is believed.
const EMPTIES: u32 = 2;

/// What is known of each name that is asked about.
pub(crate) type Names = HashMap<Question, Known>;

/// What is known of a name. Pure.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub processes: Vec<Process>,
    /// Whether it was looked up at least once.
    asked: bool,
    /// How often in a row there was nothing.
    empties: u32,
    /// How often in a row it could not be looked up.
    failures: u32,
}

impl Known {
    /// Takes note of an answer: whether other processes are known now, and when to ask again.
    fn note(&mut self, answer: io::Result<Found>) -> (bool, Duration) {
        self.asked = true;
        let Ok((processes, ttl)) = answer else {
            // What was true a moment ago is better than nothing.
            self.failures += 1;
            let doubled = BOUNDS.0 * 2_u32.saturating_pow(self.failures.min(16) - 1);
            return (false, doubled.min(BOUNDS.1));
        };
        self.failures = 0;
        self.empties = if processes.is_empty() { self.empties + 1 } else { 0 };
        let again = if processes.is_empty() { EMPTY } else { ttl.clamp(BOUNDS.0, BOUNDS.1) };
        if processes == self.processes || (1..EMPTIES).contains(&self.empties) {
            return (false, again);
        }
        self.processes = processes;
        (true, again)
    }
}

/// What is known, for whoever may change it. Nothing is waited for while this is held.
pub(crate) fn lock(state: &State) -> MutexGuard<'_, Names> {
    // Nothing that holds the lock can panic half-way through a change.
    state.names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to look up the names of the snapshot that is in effect, as far as that has not begun.
pub(crate) fn follow(state: &Shared, names: &mut Names) {
    for question in state.active.load().snapshot.questions() {
        if !names.contains_key(question) {
            names.insert(question.clone(), Known::default());
            tokio::spawn(ask_again(Arc::downgrade(state), question.clone()));
        }
    }
}

/// Puts a snapshot into effect, with what is known of its names.
pub(crate) fn activate(state: &Shared, snapshot: Arc<Snapshot>, names: &Names) {
    let before = state.active.load_full();
    let active = Arc::new(Active::new(snapshot, Some(&before), names));
    state.active.store(active.clone());
    let has = |active: &Active, wanted: &Arc<Instance>| {
        active.instances.iter().any(|(known, _)| Arc::ptr_eq(known, wanted))
    };
    for (instance, _) in active.instances.iter().filter(|(instance, _)| !has(&before, instance)) {
        health::start(state, instance);
    }
    for (instance, _) in before.instances.iter().filter(|(instance, _)| !has(&active, instance)) {
        tokio::spawn(forget(Arc::downgrade(state), instance.clone()));
    }
    state.available();
}

/// Looks a name up as long as the router has a use for it.
async fn ask_again(state: Weak<State>, question: Question) {
    loop {
        let pause = {
            let Some(state) = state.upgrade() else { return };
            if *state.phase.borrow() >= Phase::Ending {
                return;
            }
            let answer = state.resolver.ask(&question).await;
            let mut names = lock(&state);
            let active = state.active.load_full();
            if !active.snapshot.questions().any(|wanted| *wanted == question) {
                names.remove(&question);
                return;
            }
            let Some(known) = names.get_mut(&question) else { return };
            take_note(&state, &question, known, &answer);
            let first = !known.asked;
            let (changed, again) = known.note(answer);
            if changed {
                let processes: Vec<_> = known.processes.iter().map(|process| &*process.name).collect();
                tracing::info!(
                    host = question.host,
                    processes = processes.join(", "),
                    "a name was looked up"
                );
                activate(&state, active.snapshot.clone(), &names);
            } else if first {
                state.available();
            }
            again
        };
        sleep(pause).await;
    }
}

/// Tells of an answer in metrics and, if it is news, in the log.
fn take_note(state: &State, question: &Question, known: &Known, answer: &io::Result<Found>) {
    let host = &question.host;
    let result = match answer {
        Ok((processes, _)) if processes.is_empty() => "empty",
        Ok(_) => "found",
        Err(_) => "failed",
    };
    state.metrics.dns_lookup(host, result);
    match answer {
        Err(error) if known.failures == 0 => {
            tracing::warn!(host, %error, "a name cannot be looked up; what is known of it stays as it was");
        }
        Ok(_) if known.failures > 0 => tracing::info!(host, "a name can be looked up again"),
        Ok((processes, _)) if processes.is_empty() && known.empties + 1 == EMPTIES => {
            tracing::warn!(
                host,
                "the DNS has nothing behind a name; see that it exists and that processes run"
            );
        }
        _ => {}
    }
}

/// Forgets what was counted of an instance that went, once its last request has ended: names of processes that come and go
/// would pile up.
async fn forget(state: Weak<State>, instance: Arc<Instance>) {
    /// For what is counted after a request's end, and for somebody to read it.
    const LINGER: Duration = Duration::from_secs(60);
    instance.forget_connections();
    instance.is_idle().await;
    sleep(LINGER).await;
    let Some(state) = state.upgrade() else { return };
    if state.active.load().instance(&instance.name).is_none() {
        state.metrics.forget(&instance.name);
    }
}

/// Whether every name was looked up once.
pub(crate) fn all_asked(state: &State) -> bool {
    lock(state).values().all(|known| known.asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn note(known: &mut Known, names: &[&str], ttl: Duration) -> (bool, Duration) {
        let process = |name: &&str| Process {
            name: (*name).to_owned(),
            host: (*name).to_owned(),
            port: 1,
            addresses: Vec::new(),
        };
        known.note(Ok((names.iter().map(process).collect(), ttl)))
    }

    #[test]
    fn times_to_live_are_bounded_and_only_news_is_news() {
        let mut known = Known::default();
        assert_eq!(note(&mut known, &["a"], Duration::ZERO), (true, SECOND));
        assert_eq!(note(&mut known, &["a"], 5 * SECOND), (false, 5 * SECOND));
        assert_eq!(note(&mut known, &["a", "b"], 3600 * SECOND), (true, 30 * SECOND));
        assert_eq!(known.processes.len(), 2);
    }

    #[test]
    fn failures_change_nothing_and_are_tried_again_ever_more_rarely() {
        let mut known = Known::default();
        note(&mut known, &["a"], SECOND);
        let fail = |known: &mut Known| known.note(Err(io::ErrorKind::TimedOut.into()));
        let pauses: Vec<_> = (0..7).map(|_| fail(&mut known).1.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        (0..100).for_each(|_| assert!(!fail(&mut known).0));
        assert_eq!(known.processes.len(), 1);
        assert_eq!(note(&mut known, &["a"], SECOND), (false, SECOND));
        assert_eq!(fail(&mut known).1, SECOND);
    }

    #[test]
    fn nothing_is_believed_when_seen_twice_in_a_row() {
        let mut known = Known::default();
        note(&mut known, &["a"], SECOND);
        assert_eq!(note(&mut known, &[], SECOND), (false, EMPTY));
        note(&mut known, &["a"], SECOND);
        assert_eq!(note(&mut known, &[], SECOND), (false, EMPTY));
        // A server that fails says nothing either way.
        known.note(Err(io::ErrorKind::TimedOut.into()));
        assert_eq!(note(&mut known, &[], SECOND), (true, EMPTY));
        assert!(known.processes.is_empty());
        assert_eq!(note(&mut known, &[], SECOND), (false, EMPTY));
        assert_eq!(note(&mut known, &["b"], SECOND), (true, SECOND));
    }
}
