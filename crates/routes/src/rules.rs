//! The matcher's decisions as a list of patterns, the first that fits deciding: for programs that match one pattern
//! after the other, such as other proxies.

use std::cmp::Reverse;

use crate::matcher::{Matcher, Route};
use crate::table::{Method, Segment};

/// A pattern for paths, and who answers those that no earlier rule's pattern fits.
#[derive(Clone, Debug)]
pub struct Rule<'m> {
    /// The pattern.
    pub segments: Vec<Segment<'m>>,
    /// The route for each of [`Method::ALL`] that Synapse registers.
    methods: [Option<&'m Route>; 4],
    /// The route for every other method.
    any: &'m Route,
}

impl<'m> Rule<'m> {
    /// The route for a method; none stands for every method that Synapse does not know.
    pub fn route(&self, method: Option<Method>) -> &'m Route {
        method.and_then(|method| self.methods[method as usize]).unwrap_or(self.any)
    }
}

/// What in a query makes a sync an initial one, which another route answers.
#[derive(Clone, Copy, Debug)]
pub struct Initial<'m> {
    /// The parameter without which it is one.
    pub unless: &'static str,
    /// A parameter, and the value with which it is one all the same.
    pub or_if: Option<(&'static str, &'static str)>,
    /// Who answers.
    pub route: &'m Route,
}

impl Matcher {
    /// The rules for all that is forwarded and that the table has, to be tried in this order. What fits none, below
    /// one of [`Matcher::open_places`], is [`Matcher::unknown`].
    pub fn rules(&self) -> Vec<Rule<'_>> {
        let mut rules: Vec<Rule<'_>> = self
            .leaves()
            .filter_map(|(templates, methods, any)| {
                // A leaf stands for the paths that all of its templates fit, and so for fewer than the leaves of some of them. Those
                // that have no part in the decision count as well: without them it would come too late in the order.
                let segments = templates
                    .filter_map(Segment::parse_all)
                    .reduce(|all, template| all.iter().zip(&template).map(|(a, b)| *a.min(b)).collect())?;
                self.open_places().any(|place| starts_with(&segments, place)).then_some(Rule {
                    segments,
                    methods,
                    any,
                })
            })
            .collect();
        // As the automaton does: whole templates first, then the longest prefix; what is specific before what is not.
        rules.sort_by_cached_key(|rule| order(&rule.segments));
        rules.dedup_by(|a, b| order(&a.segments) == order(&b.segments));
        rules
    }

    /// The first segments of every path that is forwarded. They are compared decoded: [`Matcher::decide`] and Synapse
    /// let any of their letters be percent-encoded.
    pub fn open_places(&self) -> impl Iterator<Item = &'static [&'static str]> {
        self.open()
    }

    /// What makes a request with this route an initial sync.
    pub fn initial_of(&self, route: &Route) -> Option<Initial<'_>> {
        let (by, route) = self.initial(route)?;
        Some(Initial { unless: by.unless(), or_if: by.or_if(), route })
    }
}

/// Whether a pattern begins with these literals.
fn starts_with(segments: &[Segment<'_>], place: &[&str]) -> bool {
    segments.len() >= place.len()
        && segments.iter().zip(place).all(|(segment, word)| *segment == Segment::Literal(word))
}

/// Where a pattern stands among others: the names of parameters do not count.
fn order<'a>(segments: &[Segment<'a>]) -> (bool, Reverse<usize>, Vec<Segment<'a>>) {
    let rest = matches!(segments.last(), Some(Segment::Rest(_)));
    let nameless = segments.iter().map(|segment| match segment {
        Segment::Literal(text) => Segment::Literal(text),
        Segment::NonEmpty(_) => Segment::NonEmpty(""),
        Segment::Any(_) => Segment::Any(""),
        Segment::Rest(_) => Segment::Rest(""),
    });
    // Segments compare by how specific they are, literals first.
    (rest, Reverse(if rest { segments.len() } else { 0 }), nameless.collect())
}
