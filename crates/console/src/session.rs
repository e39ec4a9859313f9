//! Who is signed in. A browser holds a random name in its cookie, and nothing else; what it stands for stays here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::secrets::Secret;
use sha2::{Digest, Sha256};

/// How long a session may lie unused.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// How long it may last in all.
const WHOLE: Duration = Duration::from_secs(8 * 3600);
/// How many there may be; the one that was unused for longest gives way.
const SESSIONS: usize = 256;
/// How many failed attempts to sign in are let pass in [`WINDOW`], for one address and for one name.
const ATTEMPTS: usize = 5;
const WINDOW: Duration = Duration::from_secs(300);
/// How many failed attempts are remembered.
const REMEMBERED: usize = 4096;

/// Somebody who is signed in.
#[derive(Debug)]
pub(crate) struct Session {
    /// The user ID.
    pub(crate) user: String,
    /// The access token, which Synapse gave to this session alone.
    pub(crate) token: Secret,
    /// What each form of this session holds.
    pub(crate) csrf: String,
    /// What it is called in the audit log.
    pub(crate) name: String,
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: Instant,
    /// When Synapse last said that the user is an administrator.
    checked: Instant,
    /// What the next page says first.
    notice: Option<String>,
}

impl Session {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the next page say this.
    pub(crate) fn notify(&self, notice: String) {
        self.state().notice = Some(notice);
    }

    /// What the page is to say, once.
    pub(crate) fn notice(&self) -> Option<String> {
        self.state().notice.take()
    }

    /// How long ago Synapse last said that the user is an administrator.
    pub(crate) fn unchecked_for(&self) -> Duration {
        self.state().checked.elapsed()
    }

    /// Synapse said it now.
    pub(crate) fn check(&self) {
        self.state().checked = Instant::now();
    }

    fn is_over(&self) -> bool {
        self.opened.elapsed() > WHOLE || self.state().used.elapsed() > IDLE
    }
}

/// All of them, by the hash of what the browser holds: looking one up tells nothing by the time it takes.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<[u8; 32], Arc<Session>>>,
    failed: Mutex<VecDeque<(Instant, String)>>,
}

impl Sessions {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session: the cookie's value, and the sessions that had to give way.
    pub(crate) fn begin(
        &self,
        user: String,
        token: Secret,
    ) -> Result<(String, Vec<Arc<Session>>), config::secrets::SecretError> {
        let (cookie, csrf, name) = (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        let now = Instant::now();
        let session = Session {
            user,
            token,
            csrf: csrf.expose().to_owned(),
            name: name.expose().chars().take(8).collect(),
            opened: now,
            state: Mutex::new(State { used: now, checked: now, notice: None }),
        };
        let mut open = self.open();
        let mut over = Vec::new();
        while open.len() >= SESSIONS {
            let oldest = open.iter().min_by_key(|(_, session)| session.state().used).map(|(key, _)| *key);
            over.extend(oldest.and_then(|key| open.remove(&key)));
        }
        open.insert(digest(cookie.expose()), Arc::new(session));
        Ok((cookie.expose().to_owned(), over))
    }

    /// Whose cookie this is. `by_hand` says that a person asked, and not a page that renews itself.
    pub(crate) fn find(&self, cookie: &str, by_hand: bool) -> Option<Arc<Session>> {
        let session = self.open().get(&digest(cookie))?.clone();
        if session.is_over() {
            return None;
        }
        if by_hand {
            session.state().used = Instant::now();
        }
        Some(session)
    }

    /// Ends a session.
    pub(crate) fn end(&self, session: &Arc<Session>) {
        self.open().retain(|_, other| !Arc::ptr_eq(other, session));
    }

    /// Ends those whose time is over; these.
    pub(crate) fn end_old(&self) -> Vec<Arc<Session>> {
        self.open().extract_if(|_, session| session.is_over()).map(|(_, old)| old).collect()
    }

    /// Ends all; those that there were.
    pub(crate) fn end_all(&self) -> Vec<Arc<Session>> {
        self.open().drain().map(|(_, session)| session).collect()
    }

    /// Whether somebody may try to sign in: neither the address nor the name has failed too often of late.
    pub(crate) fn may_try(&self, keys: &[String]) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|(at, _)| at.elapsed() < WINDOW);
        keys.iter().all(|key| failed.iter().filter(|(_, other)| other == key).count() < ATTEMPTS)
    }

    /// Somebody failed to sign in.
    pub(crate) fn failed(&self, keys: &[String]) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            if failed.len() >= REMEMBERED {
                failed.pop_front();
            }
            failed.push_back((Instant::now(), key.clone()));
        }
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// Whether two texts are the same, in a time that does not depend on where they differ.
pub(crate) fn same(one: &str, other: &str) -> bool {
    digest(one) == digest(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found_by_their_cookie_until_they_end() {
        let sessions = Sessions::default();
        let token = || Secret::generate().unwrap();
        let (cookie, _) = sessions.begin("@a:x".to_owned(), token()).unwrap();
        let session = sessions.find(&cookie, true).unwrap();
        assert!(session.user == "@a:x" && session.csrf != cookie && sessions.find("other", true).is_none());
        session.notify("done".to_owned());
        assert_eq!((session.notice().as_deref(), session.notice()), (Some("done"), None));
        sessions.end(&session);
        assert!(sessions.find(&cookie, true).is_none());
        for _ in 0..SESSIONS {
            assert!(sessions.begin("@a:x".to_owned(), token()).unwrap().1.is_empty());
        }
        assert_eq!(sessions.begin("@b:x".to_owned(), token()).unwrap().1.len(), 1);
        assert!(sessions.end_old().is_empty());
        assert_eq!(sessions.end_all().len(), SESSIONS);
    }

    #[test]
    fn who_fails_too_often_has_to_wait() {
        let sessions = Sessions::default();
        let keys = ["1.2.3.4".to_owned(), "@a:x".to_owned()];
        for _ in 0..ATTEMPTS {
            assert!(sessions.may_try(&keys));
            sessions.failed(&keys);
        }
        assert!(!sessions.may_try(&keys) && !sessions.may_try(&keys[1..]));
        assert!(sessions.may_try(&["@b:x".to_owned()]));
    }
}
