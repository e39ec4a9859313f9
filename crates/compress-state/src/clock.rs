//! Times of the day.

use std::str::FromStr;
use std::time::Duration;

use jiff::civil::Time;

/// A part of every day, by the system's time zone; it may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Night {
    from: Time,
    to: Time,
}

/// Why a part of the day was refused.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no part of the day such as `01:00-05:00`")]
pub struct NightError(String);

impl FromStr for Night {
    type Err = NightError;

    fn from_str(text: &str) -> Result<Self, NightError> {
        let time = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
        };
        let night =
            text.split_once('-').and_then(|(from, to)| Some(Self { from: time(from)?, to: time(to)? }));
        night.filter(|night| night.from != night.to).ok_or_else(|| NightError(text.to_owned()))
    }
}

impl Night {
    /// From a time of the day: how long until it begins, and how long from then until it ends.
    fn from(self, now: Time) -> (Duration, Duration) {
        const DAY: u64 = 24 * 3600;
        let seconds = |time: Time| {
            let (hour, minute, second) = (time.hour(), time.minute(), time.second());
            (i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)).unsigned_abs()
        };
        let between = |from: u64, to: u64| (to + DAY - from) % DAY;
        let (now, from, to) = (seconds(now), seconds(self.from), seconds(self.to));
        let length = between(from, to);
        let into = between(from, now);
        if into < length {
            (Duration::ZERO, Duration::from_secs(length - into))
        } else {
            (Duration::from_secs(DAY - into), Duration::from_secs(length))
        }
    }

    /// The same from now on.
    pub fn from_now(self) -> (Duration, Duration) {
        self.from(jiff::Zoned::now().time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_begins_and_ends() {
        let at = |night: &str, hour: i8, minute: i8| {
            let night: Night = night.parse().expect("a night");
            let (wait, length) = night.from(Time::constant(hour, minute, 0, 0));
            (wait.as_secs() / 60, length.as_secs() / 60)
        };
        assert_eq!(at("01:00-05:00", 0, 30), (30, 240));
        assert_eq!(at("01:00-05:00", 4, 59), (0, 1));
        assert_eq!(at("01:00-05:00", 5, 0), (20 * 60, 240));
        assert_eq!(at("23:00-02:00", 1, 0), (0, 60));
        for wrong in ["1-5", "25:00-26:00", "01:00-01:00", ""] {
            assert!(wrong.parse::<Night>().is_err(), "{wrong}");
        }
    }
}
