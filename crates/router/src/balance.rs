//! Which instance of a pool takes a request. Pure: what it knows of the instances is passed in.

use std::cmp::Reverse;

use model::Balance;

/// What balancing needs to know of an instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// [`seed`] of its name: what ties keys to it across restarts and across routers.
    pub seed: u64,
    /// Its requests in flight.
    pub in_flight: u32,
    /// Whether it may get this request.
    pub eligible: bool,
}

/// The number that stands for an instance in the hash. It depends on the name alone.
pub(crate) fn seed(name: &str) -> u64 {
    mix(routes::hash_key(name.as_bytes()))
}

/// The finaliser of `SplitMix64`: every bit of the input moves half of the output's.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How well a key suits an instance: rendezvous hashing, so that a key moves only when its own instance comes or goes.
const fn score(key: u64, seed: u64) -> u64 {
    mix(key ^ seed)
}

/// The load that an instance must have before keys are moved off it for having more than its share. Below it nothing
/// is gained by moving: a handful of long polls is no load.
const SLACK: u32 = 32;

/// The most requests that an instance may have in flight before a hashed key goes to its next choice: a quarter more
/// than its share ("consistent hashing with bounded loads").
fn bound(candidates: &[Candidate]) -> u32 {
    let mut eligible = 0_u64;
    let mut total = 1_u64;
    for candidate in candidates.iter().filter(|c| c.eligible) {
        eligible += 1;
        total += u64::from(candidate.in_flight);
    }
    let share = (total * 5).div_ceil(eligible.max(1) * 4);
    u32::try_from(share).unwrap_or(u32::MAX).max(SLACK)
}

/// The index of the instance that takes the request, if any is eligible.
///
/// `turn` counts up from request to request, for taking turns; `key` is the hash of what the request is balanced by.
/// A hash balance without a key takes turns, as there is nothing to stick to.
pub(crate) fn choose(
    balance: Balance,
    candidates: &[Candidate],
    key: Option<u64>,
    turn: usize,
) -> Option<usize> {
    let eligible = || candidates.iter().enumerate().filter(|(_, c)| c.eligible);
    match (balance, key) {
        (Balance::None, _) => eligible().next().map(|(index, _)| index),
        (Balance::HashRoom | Balance::HashUser | Balance::HashOrigin, Some(key)) => {
            let bound = bound(candidates);
            let best = |within: bool| {
                eligible()
                    .filter(|(_, c)| !within || c.in_flight < bound)
                    .max_by_key(|(_, c)| score(key, c.seed))
                    .map(|(index, _)| index)
            };
            best(true).or_else(|| best(false))
        }
        (Balance::LeastConnections, _) => {
            // Among equals they take turns, else the first would get everything while all are idle.
            let count = candidates.len();
            eligible()
                .min_by_key(|(index, c)| (c.in_flight, (index + count - turn % count) % count))
                .map(|(index, _)| index)
        }
        _ => {
            let count = candidates.len().max(1);
            eligible()
                .max_by_key(|(index, _)| Reverse((index + count - turn % count) % count))
                .map(|(index, _)| index)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(names: &[String]) -> Vec<Candidate> {
        names.iter().map(|name| Candidate { seed: seed(name), in_flight: 0, eligible: true }).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("sync_{n}")).collect()
    }

    const KEYS: u32 = 20_000;

    fn owner(names: &[String], key: u32) -> String {
        let hash = routes::hash_key(format!("user{key}").as_bytes());
        names[choose(Balance::HashUser, &pool(names), Some(hash), 0).unwrap()].clone()
    }

    #[test]
    fn only_the_keys_of_the_instance_that_came_or_went_move() {
        for count in [2, 3, 8, 16] {
            let (before, after) = (names(count), names(count + 1));
            let mut moved = 0;
            for key in 0..KEYS {
                let (old, new) = (owner(&before, key), owner(&after, key));
                if old != new {
                    assert_eq!(new, after[count], "a key moved between instances that stayed");
                    moved += 1;
                }
            }
            let fair = f64::from(KEYS) / (f64::from(u32::try_from(count).unwrap()) + 1.0);
            assert!(f64::from(moved) <= fair * 1.2, "{moved} of {KEYS} keys moved to one of {}", count + 1);
            assert!(f64::from(moved) >= fair * 0.8, "{moved} of {KEYS} keys moved to one of {}", count + 1);
        }
    }

    #[test]
    fn a_sick_instance_moves_its_own_keys_alone() {
        let names = names(5);
        let (well, mut sick) = (pool(&names), pool(&names));
        sick[2].eligible = false;
        for key in 0..1000_u32 {
            let hash = Some(routes::hash_key(&key.to_le_bytes()));
            let before = choose(Balance::HashRoom, &well, hash, 0).unwrap();
            let after = choose(Balance::HashRoom, &sick, hash, 0).unwrap();
            assert!(after != 2 && (before == 2 || before == after));
        }
    }

    #[test]
    fn no_instance_gets_more_than_its_bound() {
        let names = names(4);
        let mut candidates = pool(&names);
        // One room gets every request: its instance fills to the bound, then the next takes some, and so on.
        for _ in 0..1000 {
            let index = choose(Balance::HashRoom, &candidates, Some(7), 0).unwrap();
            candidates[index].in_flight += 1;
        }
        for candidate in &candidates {
            assert!(candidate.in_flight <= 1000 / 4 * 5 / 4 + 2, "{candidates:?}");
        }
    }

    #[test]
    fn little_load_never_moves_a_key() {
        let mut candidates = pool(&names(3));
        let first = choose(Balance::HashUser, &candidates, Some(1), 0).unwrap();
        candidates[first].in_flight = SLACK - 1;
        assert_eq!(choose(Balance::HashUser, &candidates, Some(1), 5), Some(first));
    }

    #[test]
    fn turns_and_least_connections() {
        let mut candidates = pool(&names(3));
        let turns: Vec<_> =
            (0..6).map(|turn| choose(Balance::RoundRobin, &candidates, None, turn).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        candidates[1].eligible = false;
        assert_eq!(choose(Balance::RoundRobin, &candidates, None, 1), Some(2));

        candidates[0].in_flight = 2;
        candidates[2].in_flight = 1;
        assert_eq!(choose(Balance::LeastConnections, &candidates, None, 0), Some(2));
        let idle = pool(&names(3));
        let turns: Vec<_> =
            (0..3).map(|turn| choose(Balance::LeastConnections, &idle, None, turn).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_is_eligible(
            states in prop::collection::vec((any::<bool>(), 0_u32..5000), 0..12),
            key in any::<u64>(), turn in any::<usize>(),
        ) {
            let candidates: Vec<_> = states.iter().enumerate()
                .map(|(n, (eligible, in_flight))| Candidate {
                    seed: seed(&format!("i{n}")), in_flight: *in_flight, eligible: *eligible,
                })
                .collect();
            for balance in [Balance::None, Balance::RoundRobin, Balance::LeastConnections, Balance::HashRoom] {
                for key in [None, Some(key)] {
                    let chosen = choose(balance, &candidates, key, turn);
                    prop_assert_eq!(chosen.is_some(), candidates.iter().any(|c| c.eligible));
                    prop_assert!(chosen.is_none_or(|index| candidates[index].eligible));
                }
            }
        }
    }
}
