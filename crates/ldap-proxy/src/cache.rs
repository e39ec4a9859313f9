//! Answers to searches, for a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache as Store;

use crate::settings;

/// Whose answer to what: the name that is bound, and the request's content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) who: Arc<str>,
    pub(crate) request: Box<[u8]>,
}

/// An answer: its messages without their IDs.
pub(crate) type Answer = Arc<[Box<[u8]>]>;

/// The largest answer that is kept, in bytes.
pub(crate) const LARGEST: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Cache {
    time: Duration,
    store: Store<Key, (Instant, Answer), Weight>,
    /// When something was changed last.
    cleared: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Key, (Instant, Answer)> for Weight {
    fn weight(&self, key: &Key, (_, answer): &(Instant, Answer)) -> u64 {
        // What maps and allocations take beside the bytes themselves.
        const EACH: usize = 32;
        let bytes: usize = answer.iter().map(|message| message.len() + EACH).sum();
        (bytes + key.who.len() + key.request.len() + 4 * EACH) as u64
    }
}

impl Cache {
    pub(crate) fn new(settings: &settings::Cache) -> Self {
        let bytes = u64::from(settings.mebibytes) << 20;
        // Answers of some hundred bytes are the rule.
        let count = usize::try_from(bytes / 512).unwrap_or(usize::MAX);
        Self {
            time: Duration::from_secs(settings.seconds.into()),
            store: Store::with_weighter(count, bytes, Weight),
            cleared: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, key: &Key, now: Instant) -> Option<Answer> {
        let (since, answer) = self.store.get(key)?;
        (now.saturating_duration_since(since) < self.time).then_some(answer)
    }

    /// Remembers an answer to a request that was made at this time, unless something was changed meanwhile.
    pub(crate) fn put(&self, key: Key, asked: Instant, answer: Vec<Box<[u8]>>) {
        let cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        if cleared.is_none_or(|cleared| cleared < asked) {
            self.store.insert(key, (asked, answer.into()));
        }
    }

    /// Something was changed.
    pub(crate) fn clear(&self, now: Instant) {
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        *cleared = Some(now);
        self.store.clear();
    }
}
