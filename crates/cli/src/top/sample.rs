//! What is known at one moment, and how much more it became since another.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use runtime::client::Status;
use serde::Serialize;

/// What was known at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    /// What the supervisor says of the processes; a router that stands alone has none.
    pub(crate) status: Option<Status>,
    pub(crate) scrape: Scrape,
}

/// What all the router's metrics begin with.
const PREFIX: &str = "matrix_stack_router_";

/// The router's metrics, read from its text (`OpenMetrics`, as far as the router makes use of it).
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape {
    series: Vec<Series>,
    /// By everything that stands before the value.
    values: HashMap<String, f64>,
}

/// One number.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    key: String,
    /// Without the prefix.
    name: String,
    labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Series {
    /// A label's value; empty if it has no such label.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }

    /// A line, if it is one of the router's; none if it cannot be read.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix(PREFIX)?;
        let end = rest.find(['{', ' '])?;
        let (name, mut rest) = rest.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, text) = rest.trim_start_matches(',').split_once("=\"")?;
                let (value, after) = unquote(text)?;
                labels.push((label.to_owned(), value));
                rest = after;
            }
            rest = &rest[1..];
        }
        let key = line[..line.len() - rest.len()].to_owned();
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self { key, name: name.to_owned(), labels, value })
    }

    /// Whether it can only grow as long as the router lives.
    fn is_counter(&self) -> bool {
        ["_total", "_bucket", "_count", "_sum"].iter().any(|end| self.name.ends_with(end))
    }
}

/// A quoted text up to its closing quote, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((place, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[place + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

impl Scrape {
    /// Reads the text of `/metrics`. None if it is not a matrix-stack router's.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let series: Vec<_> = text.lines().filter_map(Series::parse).collect();
        let values = series.iter().map(|series| (series.key.clone(), series.value)).collect();
        (!series.is_empty()).then_some(Self { series, values })
    }

    /// The numbers of this name, which is without the common prefix.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| series.name == name)
    }

    /// The sum of the numbers of this name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        total(self.all(name).map(|series| series.value))
    }
}

/// The sum; of nothing it is 0, and not -0 as with [`Iterator::sum`].
pub(crate) fn total(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(0.0, |sum, number| sum + number)
}

/// What happened between two samples.
#[derive(Clone, Copy)]
pub(crate) struct Interval<'a> {
    before: &'a Scrape,
    pub(crate) after: &'a Scrape,
    /// Its length; never 0.
    pub(crate) seconds: f64,
    /// The router was started anew in between, so that all its counters began at 0: what is known is what happened since.
    pub(crate) restarted: bool,
}

impl<'a> Interval<'a> {
    pub(crate) fn new(before: &'a Sample, after: &'a Sample) -> Self {
        let (at, before, after) =
            (after.at.saturating_duration_since(before.at), &before.scrape, &after.scrape);
        let shrunk = |series: &Series| {
            series.is_counter() && series.value > after.values.get(&series.key).copied().unwrap_or(0.0)
        };
        let restarted = before.series.iter().any(shrunk);
        Self { before, after, seconds: at.as_secs_f64().max(0.001), restarted }
    }

    /// The counters of this name, with how much they grew.
    pub(crate) fn grown(self, name: &'a str) -> impl Iterator<Item = (&'a Series, f64)> {
        self.after.all(name).map(move |series| {
            let known = if self.restarted { None } else { self.before.values.get(&series.key) };
            (series, series.value - known.copied().unwrap_or(0.0))
        })
    }

    /// How much the counters of this name grew a second, as far as they are wanted.
    pub(crate) fn rate(self, name: &'a str, wanted: impl Fn(&Series) -> bool) -> f64 {
        total(self.grown(name).filter(|(series, _)| wanted(series)).map(|(_, grown)| grown)) / self.seconds
    }

    /// The durations of this name that came in, as far as they are wanted.
    pub(crate) fn durations(self, name: &'a str, wanted: impl Fn(&Series) -> bool) -> Durations {
        let mut durations = Durations::default();
        for (series, grown) in self.grown(name).filter(|(series, _)| wanted(series)) {
            // `+Inf` is a number too.
            if let Ok(upper) = series.label("le").parse::<f64>() {
                *durations.0.entry(upper.to_bits()).or_default() += grown;
            }
        }
        durations
    }
}

/// How many durations were at most so long, by the length's bits, which are in the order of the numbers as long as these
/// are not negative.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durations(BTreeMap<u64, f64>);

/// A duration that was found in a histogram.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Latency {
    pub(crate) seconds: f64,
    /// It is beyond the last of the histogram's limits, which `seconds` is.
    pub(crate) or_more: bool,
}

impl Durations {
    /// The duration that this share of them did not exceed: between a bucket's limits it is taken to be as far along as
    /// its rank is. None if there are none.
    pub(crate) fn quantile(&self, share: f64) -> Option<Latency> {
        let total = *self.0.last_key_value()?.1;
        if total <= 0.0 {
            return None;
        }
        let rank = share * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (&upper, &count) in &self.0 {
            let upper = f64::from_bits(upper);
            if count >= rank {
                if upper.is_infinite() {
                    return Some(Latency { seconds: lower, or_more: true });
                }
                let seconds = lower + (upper - lower) * (rank - below) / (count - below).max(f64::EPSILON);
                return Some(Latency { seconds, or_more: false });
            }
            (lower, below) = (upper, count);
        }
        None
    }
}
