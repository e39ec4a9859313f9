//! When a process that ended is started again. Pure: the clock is an argument.

use std::collections::VecDeque;
use std::time::Duration;

/// A process that was healthy this long starts with a clean record when it ends.
const STABLE: Duration = Duration::from_secs(60);
/// So many ends within [`WINDOW`] make a process failed: it is still tried, but slowly.
const MANY: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// What to do about a process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How long to wait before it is started again.
    pub(crate) delay: Duration,
    /// Whether it ended so often that it counts as failed.
    pub(crate) failed: bool,
}

/// The record of one process's ends: at once, then after 0.5, 1, 2 … 30 s.
#[derive(Debug, Default)]
pub(crate) struct RestartPolicy {
    ends: VecDeque<Duration>,
    in_a_row: u32,
}

impl RestartPolicy {
    /// The process ended at `now`, having been healthy since `healthy_since`, if it ever was.
    pub(crate) fn ended(&mut self, now: Duration, healthy_since: Option<Duration>) -> Verdict {
        if healthy_since.is_some_and(|since| now.saturating_sub(since) >= STABLE) {
            *self = Self::default();
        }
        self.ends.push_back(now);
        while self.ends.front().is_some_and(|end| now.saturating_sub(*end) > WINDOW) {
            self.ends.pop_front();
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let failed = self.ends.len() >= MANY;
        let delay = match self.in_a_row {
            _ if failed => LONGEST,
            1 => Duration::ZERO,
            n => FIRST.saturating_mul(1 << (n - 2).min(16)).min(LONGEST),
        };
        Verdict { delay, failed }
    }

    /// How often the process ended since it was last stable.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_wait_longer() {
        let mut policy = RestartPolicy::default();
        let mut now = s(0);
        let delays: Vec<f64> = (0..9)
            .map(|_| {
                now += s(70); // too seldom to count as failed, never healthy
                policy.ended(now, None).delay.as_secs_f64()
            })
            .collect();
        assert_eq!(delays, [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
    }

    #[test]
    fn five_ends_in_a_minute_are_a_failure_that_is_tried_slowly() {
        let mut policy = RestartPolicy::default();
        let verdicts: Vec<Verdict> = (0..6).map(|n| policy.ended(s(n), None)).collect();
        assert!(verdicts[..4].iter().all(|v| !v.failed));
        assert!(verdicts[4..].iter().all(|v| v.failed && v.delay == LONGEST));
        // A minute without an end, and it is no longer failed; the delay stays long until it was stable.
        assert_eq!(policy.ended(s(100), None), Verdict { delay: s(16), failed: false });
    }

    #[test]
    fn a_stable_process_starts_with_a_clean_record() {
        let mut policy = RestartPolicy::default();
        for n in 0..6 {
            policy.ended(s(n), None);
        }
        assert_eq!(policy.ended(s(90), Some(s(40))).delay, s(16));
        assert_eq!(policy.ended(s(300), Some(s(240))), Verdict { delay: s(0), failed: false });
        assert_eq!(policy.in_a_row(), 1);
    }

    #[test]
    fn counting_never_overflows() {
        let mut policy = RestartPolicy { in_a_row: u32::MAX, ..RestartPolicy::default() };
        assert_eq!(policy.ended(s(1), None).delay, LONGEST);
    }
}
