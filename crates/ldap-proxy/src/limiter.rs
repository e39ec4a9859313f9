//! How often who may try to bind: buckets of tokens, each as the one time at which it will be full (GCRA).

use std::convert::Infallible;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::settings::{Count, Limits, Rate};

/// How many addresses and names are told apart; those longest out of use are forgotten first.
const KEPT: usize = 1 << 16;

/// Both limits on binds.
#[derive(Debug)]
pub(crate) struct Limiter {
    clients: Option<Buckets<IpAddr>>,
    names: Option<Buckets<String>>,
}

/// A bind that is under way, and what it took.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    client: IpAddr,
    name: String,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            clients: limits.binds_per_client.map(Buckets::new),
            names: limits.binds_per_dn.map(Buckets::new),
        }
    }

    /// Takes what a bind costs; none where one of the buckets is empty.
    pub(crate) fn take(&self, client: IpAddr, name: String, now: Instant) -> Option<Taken> {
        let client = network(client);
        if self.clients.as_ref().is_some_and(|clients| !clients.take(&client, now)) {
            return None;
        }
        if self.names.as_ref().is_some_and(|names| !names.take(&name, now)) {
            if let Some(clients) = &self.clients {
                clients.give_back(&client);
            }
            return None;
        }
        Some(Taken { client, name })
    }

    /// The password was right, or nobody has said that it was wrong.
    pub(crate) fn excuse(&self, taken: &Taken) {
        if let Some(clients) = self.clients.as_ref().filter(|buckets| buckets.rate.count == Count::Failed) {
            clients.give_back(&taken.client);
        }
        if let Some(names) = self.names.as_ref().filter(|buckets| buckets.rate.count == Count::Failed) {
            names.give_back(&taken.name);
        }
    }
}

/// Whose one client's addresses are.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    /// When each bucket will be full again.
    full: Cache<K, Arc<Mutex<Instant>>>,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, full: Cache::new(KEPT) }
    }

    /// How long a token takes to come.
    fn interval(&self) -> Duration {
        Duration::from_secs(60) / self.rate.per_minute.max(1)
    }

    fn take(&self, key: &K, now: Instant) -> bool {
        let Ok(bucket) = self.full.get_or_insert_with(key, || Ok::<_, Infallible>(Arc::new(Mutex::new(now))));
        let mut full = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full).max(now) + self.interval();
        let granted = next <= now + self.interval() * self.rate.burst;
        if granted {
            *full = next;
        }
        granted
    }

    fn give_back(&self, key: &K) {
        if let Some(bucket) = self.full.get(key) {
            let mut full = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            *full = full.checked_sub(self.interval()).unwrap_or(*full);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_run_out_by_name_and_by_address_and_come_back_with_time() {
        let rate = |burst| Some(Rate { burst, per_minute: 60, count: Count::Failed });
        let limits = Limits { binds_per_client: rate(4), binds_per_dn: rate(2), ..Limits::default() };
        let limiter = Limiter::new(&limits);
        let start = Instant::now();
        let take = |last: u16, name: &str, seconds| {
            let client = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
            limiter.take(client, name.to_owned(), start + Duration::from_secs(seconds))
        };
        // The right password costs nothing.
        for _ in 0..20 {
            limiter.excuse(&take(1, "a", 0).unwrap());
        }
        assert!(take(1, "a", 0).is_some() && take(2, "a", 0).is_some());
        assert!(take(1, "a", 0).is_none(), "the name's are used up");
        assert!(take(1, "b", 0).is_some() && take(2, "c", 0).is_some());
        assert!(take(3, "d", 0).is_none(), "the network's are used up");
        assert!(take(3, "a", 1).is_some() && take(3, "a", 1).is_none());
    }
}
