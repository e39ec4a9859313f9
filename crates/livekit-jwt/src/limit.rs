//! How often somebody may ask.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Millis;

/// A limit: so many requests at once, and then so many a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many requests there may be in a minute, on the average. 0: any number.
    #[schemars(range(max = 1_000_000))]
    pub per_minute: u32,
    /// How many may come at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: u32,
}

/// Holds each of many to a limit. Those that have not asked for the longest time are forgotten first.
#[derive(Debug)]
pub(crate) struct Limiter<K: Eq + Hash + Clone> {
    rate: Rate,
    /// When each would have used up what they had, did they ask at the allowed rate (the generic cell rate algorithm).
    used: Cache<K, Arc<Mutex<Millis>>>,
}

impl<K: Eq + Hash + Clone> Limiter<K> {
    pub(crate) fn new(rate: Rate, most: usize) -> Self {
        Self { rate, used: Cache::new(most) }
    }

    /// Counts one request; where it is one too many, says when to come back.
    pub(crate) fn ask(&self, who: &K, now: Millis) -> Result<(), Duration> {
        if self.rate.per_minute == 0 {
            return Ok(());
        }
        let used = self.used.get_or_insert_with::<_, std::convert::Infallible>(who, || Ok(Arc::default()));
        let Ok(used) = used;
        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
        let each = 60_000 / u64::from(self.rate.per_minute).min(60_000);
        let all = each * u64::from(self.rate.burst.max(1));
        let next = (*used).max(now) + each;
        if next > now + all {
            return Err(Duration::from_millis(next - now - all));
        }
        *used = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_after_another() {
        let limiter = Limiter::new(Rate { per_minute: 60, burst: 3 }, 100);
        let ask = |who: &'static str, now| limiter.ask(&who, now).map_err(|after| after.as_millis());
        assert_eq!([0, 0, 0, 0].map(|now| ask("a", now)), [Ok(()), Ok(()), Ok(()), Err(1000)]);
        assert_eq!(ask("b", 0), Ok(()));
        assert_eq!([999, 1000, 1000].map(|now| ask("a", now)), [Err(1), Ok(()), Err(1000)]);
        let any = Limiter::new(Rate { per_minute: 0, burst: 1 }, 100);
        assert!((0..1000).all(|_| any.ask(&"a", 0).is_ok()));
    }
}
