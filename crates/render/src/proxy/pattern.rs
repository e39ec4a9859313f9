//! Regular expressions that every proxy's library reads alike (PCRE, RE2): groups that do not capture, alternatives,
//! character classes, no looking around. None of them has alternatives at its top level, or fits anything with a `?`
//! in it, so that they fit a path followed by its query as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use routes::Segment;

/// A segment that may be empty.
const ANY: &str = "[^/?]*";
/// A segment that is not.
const NON_EMPTY: &str = "[^/?]+";
/// The rest of a path.
const REST: &str = "[^?]*";

/// Segments in which a `.` or `..` hides, in any spelling.
pub(super) const DOTS: &str = r"[^?]*(?:/|%2[fF])(?:\.|%2[eE])(?:\.|%2[eE])?(?:(?:/|%2[fF])[^?]*)?";

/// Text that stands for itself.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !(c.is_ascii_alphanumeric() || "/_-~!@%&=:,; ".contains(c)) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A word of which any letter may be percent-encoded.
fn spelt(word: &str) -> String {
    word.bytes().fold(String::new(), |mut out, byte| {
        let digit = |nibble: u8| match nibble {
            0..=9 => char::from(b'0' + nibble).to_string(),
            _ => format!("[{}{}]", char::from(b'a' + nibble - 10), char::from(b'A' + nibble - 10)),
        };
        let plain = literal(&char::from(byte).to_string());
        let _ = write!(out, "(?:{plain}|%{}{})", digit(byte >> 4), digit(byte & 15));
        out
    })
}

/// Paths that begin with these segments, spelt in any way.
pub(super) fn below(place: &[&str]) -> String {
    let words: Vec<_> = place.iter().map(|word| spelt(word)).collect();
    format!("/{}(?:/[^?]*)?", words.join("/"))
}

/// Paths that mention one of the places that are never forwarded.
pub(super) fn private() -> String {
    format!("[^?]*(?:/|%2[fF])(?:{}|{})(?:(?:/|%2[fF])[^?]*)?", spelt("_synapse"), spelt("health"))
}

/// Queries that have this parameter. As Twisted reads it: `;` separates like `&`, a name without `=` is none.
pub(super) fn query_has(name: &str) -> String {
    format!("(?:.*[&;])?{}=.*", spelt(name))
}

/// Queries in which this parameter has this value.
pub(super) fn query_value(name: &str, value: &str) -> String {
    format!("(?:.*[&;])?{}={}(?:[&;].*)?", spelt(name), spelt(value))
}

/// Whether some path fits both.
pub(super) fn share_a_path(a: &[Segment<'_>], b: &[Segment<'_>]) -> bool {
    match (a.split_first(), b.split_first()) {
        (None, None) | (Some((Segment::Rest(_), _)), Some(_)) | (Some(_), Some((Segment::Rest(_), _))) => {
            true
        }
        (Some((first, a)), Some((second, b))) => {
            let alike = match (first, second) {
                (Segment::Literal(first), Segment::Literal(second)) => first == second,
                (Segment::Literal(text), Segment::NonEmpty(_))
                | (Segment::NonEmpty(_), Segment::Literal(text)) => !text.is_empty(),
                _ => true,
            };
            alike && share_a_path(a, b)
        }
        _ => false,
    }
}

/// What begins a path: which part of Matrix, and as far as there are such, which version of it and the next segment.
type Head = (String, Option<String>, Option<String>);

/// Regular expressions for these templates, as few as can be read: versions of one path go together, and paths that
/// differ in their third segment alone.
pub(super) fn templates(templates: &[Vec<Segment<'_>>]) -> Vec<String> {
    let mut tails: BTreeMap<Head, BTreeSet<Vec<String>>> = BTreeMap::new();
    for template in templates {
        let (head, tail) = split(template);
        tails.entry(head).or_default().insert(tail);
    }
    // No version is another shape of path, so it never goes together with versions.
    let mut versions: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for ((base, version, word), tails) in tails {
        let entry = versions.entry((base, version.is_some(), word, tails)).or_default();
        entry.extend(version);
    }
    let mut words: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for ((base, _, word, tails), versions) in versions {
        words.entry((base, versions, word.is_some(), tails)).or_default().extend(word);
    }
    let mut out: Vec<String> = words
        .into_iter()
        .map(|((base, versions, _, tails), words)| {
            let [version, word] = [versions, words]
                .map(|set| if set.is_empty() { String::new() } else { format!("/{}", one_of(&set)) });
            format!("{base}{version}{word}{}", tail(&tails))
        })
        .collect();
    out.sort();
    out
}

/// A template's head and the segments behind it, as regular expressions. A path of three segments has no version.
fn split(template: &[Segment<'_>]) -> (Head, Vec<String>) {
    let mut segments: Vec<String> = template
        .iter()
        .map(|segment| match segment {
            Segment::Literal(text) => literal(text),
            Segment::NonEmpty(_) => NON_EMPTY.to_owned(),
            Segment::Any(_) => ANY.to_owned(),
            Segment::Rest(_) => REST.to_owned(),
        })
        .collect();
    if segments.len() > 4 && segments[2] == "api" {
        let number = segments.remove(3);
        segments[2] = format!("api/{number}");
    }
    let base = format!("/{}", segments[..segments.len().min(2)].join("/"));
    match segments.len() {
        0..=2 => ((base, None, None), Vec::new()),
        3 => ((base, None, Some(segments.swap_remove(2))), Vec::new()),
        _ => {
            let tail = segments.split_off(4);
            let word = segments.swap_remove(3);
            let version = segments.swap_remove(2);
            ((base, Some(version), Some(word)), tail)
        }
    }
}

fn one_of(alternatives: &BTreeSet<String>) -> String {
    let list: Vec<&str> = alternatives.iter().map(String::as_str).collect();
    match list[..] {
        [one] => one.to_owned(),
        _ => format!("(?:{})", list.join("|")),
    }
}

/// What may follow: any of these lists of segments, each behind a slash.
fn tail(tails: &BTreeSet<Vec<String>>) -> String {
    let mut by_first: BTreeMap<&str, BTreeSet<Vec<String>>> = BTreeMap::new();
    for list in tails {
        if let Some((first, rest)) = list.split_first() {
            by_first.entry(first).or_default().insert(rest.to_vec());
        }
    }
    let mut by_rest: BTreeMap<BTreeSet<Vec<String>>, BTreeSet<String>> = BTreeMap::new();
    for (first, rest) in by_first {
        by_rest.entry(rest).or_default().insert(first.to_owned());
    }
    let mut list: Vec<String> =
        by_rest.iter().map(|(rest, firsts)| format!("/{}{}", one_of(firsts), tail(rest))).collect();
    list.sort();
    let optional = tails.iter().any(Vec::is_empty);
    match (&list[..], optional) {
        ([], _) => String::new(),
        ([one], false) => one.clone(),
        (_, false) => format!("(?:{})", list.join("|")),
        (_, true) => format!("(?:{})?", list.join("|")),
    }
}
