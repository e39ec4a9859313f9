//! Times as Go's templates show them.

use std::fmt::Write as _;

use jiff::civil::{DateTime, Weekday};
use jiff::tz::Offset;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time with the offset from UTC that it was written with, as Go keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time {
    at: DateTime,
    /// Seconds east of Greenwich.
    offset: i32,
}

impl Time {
    /// From RFC 3339, as JSON has it, or from what [`Time::shown`] makes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.trim().split_at_checked(10)?;
        let rest = rest.get(1..)?;
        let end = rest.find(|c: char| !c.is_ascii_digit() && !":.".contains(c)).unwrap_or(rest.len());
        let at = format!("{date}T{}", &rest[..end]).parse().ok()?;
        let zone: String = rest[end..].trim_start().chars().take_while(|c| !c.is_whitespace()).collect();
        let offset = match zone.as_str() {
            "" | "Z" | "z" => 0,
            zone => {
                let sign = if zone.starts_with('-') { -1 } else { 1 };
                let digits: String = zone.chars().filter(char::is_ascii_digit).collect();
                let number: i32 = digits.parse().ok()?;
                sign * (number / 100 * 3600 + number % 100 * 60)
            }
        };
        Some(Self { at, offset })
    }

    /// As Go prints a time that nothing else is asked of.
    pub(super) fn shown(self) -> String {
        let name = if self.offset == 0 { " UTC" } else { " -0700" };
        self.format(&format!("2006-01-02 15:04:05.999999999 -0700{name}"))
    }

    pub(super) fn unix_millis(self) -> i64 {
        let offset = Offset::from_seconds(self.offset).unwrap_or(Offset::UTC);
        offset.to_timestamp(self.at).map_or(0, jiff::Timestamp::as_millisecond)
    }

    /// The same time in UTC.
    pub(super) fn utc(self) -> Self {
        let offset = Offset::from_seconds(self.offset).unwrap_or(Offset::UTC);
        let at = offset.to_timestamp(self.at).map_or(self.at, |at| Offset::UTC.to_datetime(at));
        Self { at, offset: 0 }
    }

    pub(super) fn is_zero(self) -> bool {
        let utc = self.utc().at;
        utc.year() == 1 && utc.day_of_year() == 1 && utc.time() == jiff::civil::Time::midnight()
    }

    /// A number that Go's methods of the same name give.
    pub(super) fn part(self, name: &str) -> Option<i64> {
        let at = self.at;
        Some(match name {
            "Unix" => self.unix_millis().div_euclid(1000),
            "UnixMilli" => self.unix_millis(),
            "Year" => at.year().into(),
            "Day" => at.day().into(),
            "Hour" => at.hour().into(),
            "Minute" => at.minute().into(),
            "Second" => at.second().into(),
            "YearDay" => at.day_of_year().into(),
            _ => return None,
        })
    }

    pub(super) fn month(self) -> &'static str {
        usize::try_from(self.at.month() - 1).ok().and_then(|at| MONTHS.get(at)).copied().unwrap_or_default()
    }

    pub(super) fn weekday(self) -> &'static str {
        match self.at.weekday() {
            Weekday::Monday => "Monday",
            Weekday::Tuesday => "Tuesday",
            Weekday::Wednesday => "Wednesday",
            Weekday::Thursday => "Thursday",
            Weekday::Friday => "Friday",
            Weekday::Saturday => "Saturday",
            Weekday::Sunday => "Sunday",
        }
    }

    /// By a layout of Go's: the time of reference, `Mon Jan 2 15:04:05 MST 2006`, written as this one shall be.
    pub(super) fn format(self, layout: &str) -> String {
        /// What a layout can hold, the longer ones before those that they begin with.
        const PARTS: [&str; 31] = [
            "January", "Jan", "Monday", "Mon", "MST", "2006", "Z07:00", "Z0700", "-07:00", "-0700", "-07",
            "002", "01", "02", "03", "04", "05", "06", "_2", "15", "1", "2", "3", "4", "5", "PM", "pm", ".0",
            ",0", ".9", ",9",
        ];
        let mut out = String::new();
        let mut rest = layout;
        while let Some(next) = rest.chars().next() {
            let part = PARTS.iter().find(|part| rest.starts_with(**part));
            let Some(part) = part else {
                out.push(next);
                rest = &rest[next.len_utf8()..];
                continue;
            };
            if part.starts_with(['.', ',']) {
                let digit = &part[1..];
                let digits = rest[1..].chars().take_while(|c| digit.starts_with(*c)).count();
                let after = &rest[1 + digits..];
                if digits > 9 || after.starts_with(|c: char| c.is_ascii_digit()) {
                    out.push(next);
                    rest = &rest[1..];
                } else {
                    out.push_str(&self.fraction(&part[..1], digits, digit == "9"));
                    rest = after;
                }
                continue;
            }
            self.write(&mut out, part);
            rest = &rest[part.len()..];
        }
        out
    }

    fn fraction(self, point: &str, digits: usize, trimmed: bool) -> String {
        let nanos = format!("{:09}", self.at.subsec_nanosecond());
        let mut shown = nanos[..digits].to_owned();
        if trimmed {
            shown.truncate(shown.trim_end_matches('0').len());
            if shown.is_empty() {
                return shown;
            }
        }
        format!("{point}{shown}")
    }

    fn write(self, out: &mut String, part: &str) {
        let at = self.at;
        let half = |hour: i8| if hour % 12 == 0 { 12 } else { hour % 12 };
        // Writing to a string does not fail.
        let _ = match part {
            "January" => write!(out, "{}", self.month()),
            "Jan" => write!(out, "{}", &self.month()[..3]),
            "Monday" => write!(out, "{}", self.weekday()),
            "Mon" => write!(out, "{}", &self.weekday()[..3]),
            "MST" if self.offset == 0 => write!(out, "UTC"),
            "2006" => write!(out, "{:04}", at.year()),
            "06" => write!(out, "{:02}", at.year() % 100),
            "Z07:00" | "Z0700" if self.offset == 0 => write!(out, "Z"),
            "Z07:00" | "-07:00" => write!(out, "{}", self.zone(true)),
            "MST" | "Z0700" | "-0700" => write!(out, "{}", self.zone(false)),
            "-07" => write!(out, "{}", &self.zone(false)[..3]),
            "002" => write!(out, "{:03}", at.day_of_year()),
            "01" => write!(out, "{:02}", at.month()),
            "1" => write!(out, "{}", at.month()),
            "02" => write!(out, "{:02}", at.day()),
            "_2" => write!(out, "{:2}", at.day()),
            "2" => write!(out, "{}", at.day()),
            "15" => write!(out, "{:02}", at.hour()),
            "03" => write!(out, "{:02}", half(at.hour())),
            "3" => write!(out, "{}", half(at.hour())),
            "04" => write!(out, "{:02}", at.minute()),
            "4" => write!(out, "{}", at.minute()),
            "05" => write!(out, "{:02}", at.second()),
            "5" => write!(out, "{}", at.second()),
            "PM" => write!(out, "{}", if at.hour() < 12 { "AM" } else { "PM" }),
            "pm" => write!(out, "{}", if at.hour() < 12 { "am" } else { "pm" }),
            other => write!(out, "{other}"),
        };
    }

    fn zone(self, colon: bool) -> String {
        let sign = if self.offset < 0 { '-' } else { '+' };
        let minutes = self.offset.abs() / 60;
        let colon = if colon { ":" } else { "" };
        format!("{sign}{:02}{colon}{:02}", minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_go_shows_them() {
        let utc = Time::parse("2026-03-09T15:04:05.120Z").unwrap();
        let east = Time::parse("2026-12-31T23:30:00+02:00").unwrap();
        assert_eq!(utc.shown(), "2026-03-09 15:04:05.12 +0000 UTC");
        assert_eq!(east.shown(), "2026-12-31 23:30:00 +0200 +0200");
        for time in [utc, east] {
            assert_eq!(Time::parse(&time.shown()), Some(time));
        }
        for (layout, shown) in [
            ("Mon Jan _2 15:04:05 MST 2006", "Mon Mar  9 15:04:05 UTC 2026"),
            ("2006-01-02T15:04:05Z07:00", "2026-03-09T15:04:05Z"),
            ("Monday, 02-Jan-06 3:04PM", "Monday, 09-Mar-26 3:04PM"),
            ("15h04 (.000) .00 .9 05.999999", "15h04 (.120) .12 .1 05.12"),
            ("day 002, January 2", "day 068, March 9"),
            ("at 1.5 ä", "at 3.5 ä"),
        ] {
            assert_eq!(utc.format(layout), shown, "{layout}");
        }
        assert_eq!(east.format("15:04 -07:00 -0700 -07"), "23:30 +02:00 +0200 +02");
        assert_eq!(east.utc().format("15:04"), "21:30");
        assert_eq!(utc.part("Unix"), Some(1_773_068_645));
        assert!(Time::parse("0001-01-01T00:00:00Z").unwrap().is_zero() && !utc.is_zero());
        for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01", "ääääääää"] {
            assert_eq!(Time::parse(bad), None, "{bad}");
        }
    }
}
