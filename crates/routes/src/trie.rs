//! A deterministic automaton over a path's segments: one step a segment, no backtracking, no allocation.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::table::Segment;

/// What follows a prefix of templates: states by segment.
#[derive(Debug, Default)]
struct Node<'a> {
    literals: BTreeMap<&'a str, usize>,
    non_empty: Option<usize>,
    any: Option<usize>,
    /// Templates that end here, and those that end here with the rest of the path.
    ends: Vec<usize>,
    rests: Vec<usize>,
}

/// One state of the automaton.
#[derive(Debug)]
struct State {
    /// Literal segments with the state after each, in the order of [`by_length`].
    literals: Box<[(Box<str>, u32)]>,
    /// The state after an empty segment and after any other that is no literal here.
    empty: u32,
    other: u32,
    /// The value where the path ends here, and where it goes on in any way.
    end: u32,
    rest: u32,
}

const NONE: u32 = u32::MAX;

/// Finds the templates that a path matches: whole templates before those that end with a rest.
#[derive(Debug)]
pub(crate) struct Trie {
    states: Box<[State]>,
    leaves: Box<[Box<[usize]>]>,
}

impl Trie {
    /// Compiles templates.
    pub(crate) fn new(templates: &[Vec<Segment<'_>>]) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, template) in templates.iter().enumerate() {
            let mut at = 0;
            let mut rest = false;
            for segment in template {
                let new = nodes.len();
                let next = match segment {
                    Segment::Literal(text) => *nodes[at].literals.entry(text).or_insert(new),
                    Segment::NonEmpty(_) => *nodes[at].non_empty.get_or_insert(new),
                    Segment::Any(_) => *nodes[at].any.get_or_insert(new),
                    Segment::Rest(_) => {
                        rest = true;
                        break;
                    }
                };
                if next == new {
                    nodes.push(Node::default());
                }
                at = next;
            }
            if rest { nodes[at].rests.push(index) } else { nodes[at].ends.push(index) }
        }
        determinize(&nodes, templates)
    }

    /// For each leaf, the indices of the templates that match there, the most specific first (literal segments before
    /// parameters). Never empty.
    pub(crate) fn leaves(&self) -> &[Box<[usize]>] {
        &self.leaves
    }

    /// The leaf that a path's segments lead to.
    pub(crate) fn find<'a>(&self, segments: impl Iterator<Item = &'a str>) -> Option<usize> {
        let mut state = &self.states[0];
        let mut rest = NONE;
        for segment in segments {
            if state.rest != NONE {
                rest = state.rest;
            }
            let next = match state.literals.binary_search_by(|(text, _)| by_length(text, segment)) {
                Ok(found) => state.literals[found].1,
                Err(_) if segment.is_empty() => state.empty,
                Err(_) => state.other,
            };
            if next == NONE {
                return (rest != NONE).then_some(rest as usize);
            }
            state = &self.states[next as usize];
        }
        let found = if state.end == NONE { rest } else { state.end };
        (found != NONE).then_some(found as usize)
    }
}

/// The shorter first, and by their bytes where they are equally long: most comparisons then never look at a byte.
fn by_length(left: &str, right: &str) -> Ordering {
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

/// The subset construction: a state stands for all nodes that a path can have come to.
fn determinize(nodes: &[Node<'_>], templates: &[Vec<Segment<'_>>]) -> Trie {
    let mut leaves: Vec<Box<[usize]>> = Vec::new();
    let mut numbers: BTreeMap<Vec<usize>, u32> = BTreeMap::from([(vec![0], 0)]);
    let mut sets = vec![vec![0]];
    let mut states = Vec::new();
    while states.len() < sets.len() {
        let set = sets[states.len()].clone();
        let mut number = |mut to: Vec<usize>| {
            to.sort_unstable();
            to.dedup();
            if to.is_empty() {
                return NONE;
            }
            *numbers.entry(to).or_insert_with_key(|to| {
                sets.push(to.clone());
                index(sets.len() - 1)
            })
        };
        let parameters = |empty: bool| {
            set.iter()
                .flat_map(|at| [nodes[*at].any, nodes[*at].non_empty.filter(|_| !empty)])
                .flatten()
                .collect::<Vec<_>>()
        };
        let mut texts: Vec<&str> = set.iter().flat_map(|at| nodes[*at].literals.keys().copied()).collect();
        texts.sort_unstable_by(|left, right| by_length(left, right));
        texts.dedup();
        let literals = texts
            .into_iter()
            .map(|text| {
                let mut to = parameters(text.is_empty());
                to.extend(set.iter().filter_map(|at| nodes[*at].literals.get(text)));
                (Box::from(text), number(to))
            })
            .collect();
        let mut leaf = |mut found: Vec<usize>| {
            found.sort_by_key(|value| (specificity(&templates[*value]), *value));
            if found.is_empty() {
                return NONE;
            }
            leaves.push(found.into());
            index(leaves.len() - 1)
        };
        let (end, rest) = (
            leaf(set.iter().flat_map(|at| nodes[*at].ends.iter().copied()).collect()),
            leaf(set.iter().flat_map(|at| nodes[*at].rests.iter().copied()).collect()),
        );
        states.push(State {
            literals,
            empty: number(parameters(true)),
            other: number(parameters(false)),
            end,
            rest,
        });
    }
    Trie { states: states.into(), leaves: leaves.into() }
}

fn specificity(template: &[Segment<'_>]) -> Vec<u8> {
    template
        .iter()
        .map(|segment| match segment {
            Segment::Literal(_) => 0,
            Segment::NonEmpty(_) => 1,
            Segment::Any(_) => 2,
            Segment::Rest(_) => 3,
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "there are a few thousand templates and states at most")]
fn index(number: usize) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(templates: &[&str], path: &str) -> Option<usize> {
        let parsed: Vec<_> = templates.iter().map(|t| Segment::parse_all(t).expect("a template")).collect();
        let trie = Trie::new(&parsed);
        trie.find(path[1..].split('/')).map(|leaf| trie.leaves()[leaf][0])
    }

    #[test]
    fn literals_come_before_parameters_without_backtracking() {
        let templates = ["/a/{x}/c", "/a/b/d", "/a/{x}/{y}", "/a/b/{rest...}"];
        assert_eq!(find(&templates, "/a/b/c"), Some(0));
        assert_eq!(find(&templates, "/a/b/d"), Some(1));
        assert_eq!(find(&templates, "/a/z/d"), Some(2));
        assert_eq!(find(&templates, "/a/b/d/e"), Some(3));
        assert_eq!(find(&templates, "/a/z/d/e"), None);
        assert_eq!(find(&templates, "/a/b"), None);
        assert_eq!(find(&templates, "/a"), None);
    }

    #[test]
    fn empty_segments_are_segments() {
        let templates = ["/a/{x}/c", "/a/{x+}", "/a/{x}/{rest...}", "/b/"];
        assert_eq!(find(&templates, "/a//c"), Some(0));
        assert_eq!(find(&templates, "/a/"), None);
        assert_eq!(find(&templates, "/a/x"), Some(1));
        assert_eq!(find(&templates, "/a/x/"), Some(2));
        assert_eq!(find(&templates, "/b/"), Some(3));
        assert_eq!(find(&templates, "/b"), None);
        assert_eq!(find(&templates, "//a/x"), None);
    }
}
