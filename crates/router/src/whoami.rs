//! Whose an access token is: asked of Synapse once, and remembered for a while.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher as _;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::settings::Settings;

/// Hashes of user keys by hashes of tokens. The hash of a token is keyed anew in each process, so what is kept says
/// nothing about the token. Two tokens with one hash would share an instance, no more.
#[derive(Debug)]
pub(crate) struct Whoami {
    cache: Cache<u64, Entry>,
    hasher: RandomState,
    questions: Semaphore,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// None: the token is nobody's.
    user: Option<u64>,
    until: Instant,
}

/// For how long it is remembered that a token is nobody's. Short: it may yet become somebody's.
const UNKNOWN_TTL: Duration = Duration::from_secs(30);

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The hash of the user's localpart.
    User(u64),
    /// The token is nobody's.
    Nobody,
    /// It could not be found out.
    Unknown,
}

/// An answer, with how it was come by (a metric label).
pub(crate) type Found = (Answer, &'static str);

impl Whoami {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            cache: Cache::new(settings.whoami_entries.max(1)),
            hasher: RandomState::new(),
            questions: Semaphore::new(settings.whoami_concurrency),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whose the token is, if that is remembered.
    pub(crate) fn remembered(&self, token: &str) -> Option<Found> {
        let key = self.hasher.hash_one(token);
        let entry = self.cache.get(&key)?;
        (entry.until > Instant::now())
            .then(|| (entry.user.map_or(Answer::Nobody, Answer::User), "remembered"))
    }

    /// Whose the token is: remembered, or the answer of `ask`, which runs once however many want to know.
    pub(crate) async fn find<F>(&self, token: &str, settings: &Settings, ask: impl FnOnce() -> F) -> Found
    where
        F: Future<Output = Answer>,
    {
        if let Some(found) = self.remembered(token) {
            return found;
        }
        let key = self.hasher.hash_one(token);
        self.cache.remove_if(&key, |entry| entry.until <= Instant::now());
        let found = timeout(settings.whoami_timeout, async {
            match self.cache.get_value_or_guard_async(&key).await {
                Ok(entry) => (entry.user.map_or(Answer::Nobody, Answer::User), "shared"),
                Err(guard) => {
                    let Ok(_permit) = self.questions.try_acquire() else {
                        return (Answer::Unknown, "too_many");
                    };
                    let answer = ask().await;
                    let entry = match answer {
                        Answer::User(user) => {
                            Entry { user: Some(user), until: Instant::now() + settings.whoami_ttl }
                        }
                        Answer::Nobody => Entry { user: None, until: Instant::now() + UNKNOWN_TTL },
                        Answer::Unknown => return (answer, "failed"),
                    };
                    // An error means that it was evicted meanwhile: then it is not remembered.
                    let _ = guard.insert(entry);
                    (answer, "asked")
                }
            }
        });
        found.await.unwrap_or((Answer::Unknown, "timeout"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn settings() -> Settings {
        Settings { whoami_timeout: Duration::from_millis(200), whoami_concurrency: 1, ..Settings::default() }
    }

    #[tokio::test]
    async fn many_who_want_to_know_ask_once() {
        let (settings, asked) = (settings(), AtomicUsize::new(0));
        let whoami = Whoami::new(&settings);
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Answer::User(7)
        };
        let (a, b, c) = tokio::join!(
            whoami.find("t", &settings, ask),
            whoami.find("t", &settings, ask),
            whoami.find("t", &settings, ask)
        );
        assert_eq!([a.0, b.0, c.0], [Answer::User(7); 3]);
        assert_eq!(whoami.find("t", &settings, ask).await, (Answer::User(7), "remembered"));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn failures_are_not_remembered_and_answers_expire() {
        let mut settings = settings();
        settings.whoami_ttl = Duration::ZERO;
        let whoami = Whoami::new(&settings);
        assert_eq!(
            whoami.find("t", &settings, || async { Answer::Unknown }).await,
            (Answer::Unknown, "failed")
        );
        assert_eq!(
            whoami.find("t", &settings, || async { Answer::User(1) }).await,
            (Answer::User(1), "asked")
        );
        assert_eq!(
            whoami.find("t", &settings, || async { Answer::User(2) }).await,
            (Answer::User(2), "asked")
        );
        assert_eq!(whoami.find("u", &settings, || async { Answer::Nobody }).await, (Answer::Nobody, "asked"));
        assert_eq!(
            whoami.find("u", &settings, || async { Answer::User(3) }).await,
            (Answer::Nobody, "remembered")
        );
    }

    #[tokio::test]
    async fn a_flood_of_nobodys_tokens_is_bounded_and_leaves_users_known() {
        let mut settings = settings();
        settings.whoami_entries = 100;
        let whoami = Whoami::new(&settings);
        for _ in 0..2 {
            for user in 0..20 {
                whoami.find(&format!("u{user}"), &settings, || async { Answer::User(1) }).await;
            }
        }
        for nobody in 0..10_000 {
            whoami.find(&format!("n{nobody}"), &settings, || async { Answer::Nobody }).await;
        }
        assert!(whoami.len() <= 100, "{}", whoami.len());
        let known = (0..20).filter(|user| whoami.remembered(&format!("u{user}")).is_some()).count();
        assert!(known >= 10, "only {known} of 20 users are still known");
    }

    #[tokio::test]
    async fn questions_are_bounded_in_number_and_time() {
        let settings = settings();
        let whoami = Whoami::new(&settings);
        let slow = || std::future::pending();
        let (first, second) =
            tokio::join!(whoami.find("a", &settings, slow), whoami.find("b", &settings, slow));
        assert_eq!(first, (Answer::Unknown, "timeout"));
        assert_eq!(second, (Answer::Unknown, "too_many"));
    }
}
