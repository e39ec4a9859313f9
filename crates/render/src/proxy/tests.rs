//! The patterns decide as the matcher does.

use std::path::Path;
use std::sync::LazyLock;

use model::{Preset, ServerName};
use proptest::prelude::*;
use regex::Regex;
use routes::{Decision, Features, Options, Table};

use super::*;

/// A list of patterns, read by a library of regular expressions.
struct Reader<'a> {
    routing: Routing<'a>,
    patterns: Vec<(Vec<Regex>, Option<Regex>)>,
    rooms: Vec<Regex>,
}

fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^{pattern}$")).expect("a regular expression")
}

impl<'a> Reader<'a> {
    fn new(topology: &'a Topology, matcher: &'a Matcher) -> Self {
        let routing = Routing::new(topology, matcher);
        let patterns = routing
            .patterns
            .iter()
            .map(|p| (p.paths.iter().map(|path| whole(path)).collect(), p.query.as_deref().map(whole)))
            .collect();
        let rooms = routing
            .rooms
            .values()
            .flatten()
            .map(|path| Regex::new(&format!("^{path}/([^/]*)")).expect("a regular expression"))
            .collect();
        Self { routing, patterns, rooms }
    }

    fn decide(&self, method: &str, target: &str) -> Outcome {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        self.routing
            .patterns
            .iter()
            .zip(&self.patterns)
            .find(|(pattern, (paths, wanted))| {
                (pattern.methods.is_empty() || pattern.methods.contains(&method))
                    && paths.iter().any(|regex| regex.is_match(path))
                    && wanted.as_ref().is_none_or(|regex| query.is_some_and(|query| regex.is_match(query)))
            })
            .map_or(Outcome::NotFound, |(pattern, _)| pattern.outcome)
    }

    fn room<'t>(&self, target: &'t str) -> Vec<&'t str> {
        let path = target.split('?').next().unwrap_or_default();
        let rooms = self.rooms.iter().filter_map(|regex| regex.captures(path)?.get(1));
        rooms.map(|room| room.as_str()).collect()
    }

    fn check(&self, matcher: &Matcher, method: &str, target: &str) {
        let found = self.decide(method, target);
        let decision = matcher.decide(method, target);
        let fits = match (&decision, found) {
            (Decision::Forward(forward), Outcome::Forward(index)) => {
                let target_of = &self.routing.targets[index];
                if forward.route.class.key == Key::Room && forward.method_registered {
                    let wanted: Vec<_> =
                        forward.room.clone().map(|range| &target[range]).into_iter().collect();
                    assert_eq!(self.room(target), wanted, "{method} {target}");
                }
                target_of.class.id == forward.route.class.id && target_of.chain == forward.route.chain
            }
            (Decision::Preflight, Outcome::Preflight)
            | (Decision::Landing, Outcome::Landing)
            | (Decision::Closed(_) | Decision::NotFound, Outcome::NotFound) => true,
            (Decision::WellKnown(which), Outcome::WellKnown(found)) => *which == found,
            // One that the stack has nothing for.
            (Decision::WellKnown(which), Outcome::NotFound) => !self.routing.documents.contains_key(which),
            _ => false,
        };
        assert!(fits, "{method} {target}: {} instead of {decision:?}", self.routing.name(found));
    }
}

fn topology(preset: Preset) -> Topology {
    let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
    model::plan(&Stack::new(name), Path::new("/run/x"), preset).expect("a plan")
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

const QUERIES: [&str; 14] = [
    "",
    "?",
    "?since=s1",
    "?timeout=1&since=",
    "?a;since=s?since",
    "?since",
    "?%73inc%65=1",
    "?xsince=1&sincex=1",
    "?since=1&full_state=true",
    "?full_state=%74rue;since=1",
    "?since=1&full_state=truely",
    "?since=1&full_state=false",
    "?from=x",
    "?access_token=from=1&from",
];

/// A path for a template.
fn sample(template: &str, value: &str) -> String {
    let segments = Segment::parse_all(template).expect("a template");
    segments
        .iter()
        .map(|segment| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::NonEmpty(_) if value.is_empty() => "/x".to_owned(),
            Segment::NonEmpty(_) | Segment::Any(_) => format!("/{value}"),
            Segment::Rest(_) => format!("/{value}/more/"),
        })
        .collect()
}

#[test]
fn every_endpoint_is_decided_as_the_matcher_decides() {
    for table in Table::all() {
        for preset in [Preset::Small, Preset::Medium, Preset::Full, Preset::Custom] {
            let topology = topology(preset);
            let mas = Features::default().with("matrix_authentication_service.enabled");
            for (admin_open, features) in [(false, Features::default()), (true, mas)] {
                let options = Options { admin_open, features };
                let matcher = Matcher::compile(table, &topology, &options).expect("a matcher");
                let reader = Reader::new(&topology, &matcher);
                for endpoint in table.endpoints() {
                    for value in ["%21a%3Ab", ""] {
                        let path = sample(&endpoint.path, value);
                        for method in METHODS {
                            reader.check(&matcher, method, &path);
                        }
                        let syncs = endpoint.path.ends_with("/sync") || endpoint.path.ends_with("/events");
                        for query in QUERIES.iter().filter(|_| syncs) {
                            reader.check(&matcher, "GET", &format!("{path}{query}"));
                        }
                    }
                }
            }
        }
    }
}

static FULL: LazyLock<(Topology, Matcher)> = LazyLock::new(|| {
    let topology = topology(Preset::Full);
    let options = Options { admin_open: true, features: Features::default() };
    let matcher = Matcher::compile(Table::newest(), &topology, &options).expect("a matcher");
    (topology, matcher)
});

static READER: LazyLock<Reader<'static>> = LazyLock::new(|| Reader::new(&FULL.0, &FULL.1));

/// Every literal segment of the table, and what is none.
fn segment() -> impl Strategy<Value = String> {
    static WORDS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let mut words: Vec<String> = Table::newest()
            .endpoints()
            .iter()
            .flat_map(|endpoint| endpoint.path.split('/').map(str::to_owned))
            .chain(
                ["", "%73ync", ".", "..", "%5Fmatrix", "_SYNAPSE", "%61dmin", "!a:b", "x"].map(str::to_owned),
            )
            .filter(|word| !word.starts_with('{'))
            .collect();
        words.sort_unstable();
        words.dedup();
        words
    });
    prop::sample::select(&WORDS[..])
}

/// Paths of the table with something changed, and paths made of the table's words.
fn path() -> impl Strategy<Value = String> {
    let paths: Vec<&str> = Table::newest().endpoints().iter().map(|endpoint| &*endpoint.path).collect();
    let odd = (prop::sample::select(paths), segment(), any::<prop::sample::Index>(), segment(), 0..4)
        .prop_map(|(template, value, at, other, how)| {
            let path = sample(template, &value);
            let mut segments: Vec<&str> = path.split('/').collect();
            let at = 1 + at.index(segments.len() - 1);
            match how {
                0 => segments[at] = &other,
                1 => segments.insert(at, &other),
                2 => drop(segments.remove(at)),
                _ => {}
            }
            segments.join("/")
        });
    let made = prop::collection::vec(segment(), 0..7).prop_map(|segments| format!("/{}", segments.join("/")));
    prop_oneof![3 => odd, 1 => made]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn odd_paths_are_decided_as_the_matcher_decides(
        path in path(),
        method in prop::sample::select(&METHODS[..]),
        query in prop::sample::select(&QUERIES[..]),
    ) {
        prop_assume!(path.starts_with('/'));
        READER.check(&FULL.1, method, &format!("{path}{query}"));
    }
}

/// A template of few words, so that templates share paths.
fn template() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(&["a", "b", "{x}", "{y+}"][..]);
    let rest = prop::sample::select(&["", "", "", "/{rest...}"][..]);
    (prop::collection::vec(segment, 1..4), rest)
        .prop_map(|(segments, rest)| format!("/_matrix/client/v3/{}{rest}", segments.join("/")))
}

/// A table that no Synapse has.
fn table() -> impl Strategy<Value = Table> {
    let by = prop::sample::select(&[r#""main""#, r#""main", "worker""#][..]);
    let method = prop::sample::select(&["GET", "POST", "PUT", "DELETE"][..]);
    prop::collection::btree_map((template(), method), by, 1..12).prop_map(|endpoints| {
        let list: Vec<_> = endpoints
            .iter()
            .map(|((path, method), by)| {
                format!(r#"{{"method": "{method}", "path": "{path}", "by": [{by}], "handler": "X"}}"#)
            })
            .collect();
        let text = format!(r#"{{"synapse": "1.2.3", "endpoints": [{}]}}"#, list.join(","));
        Table::parse(&text).expect("a table")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the templates have in common: today's tables have little.
    #[test]
    fn templates_that_share_paths_are_tried_in_the_matcher_s_order(
        table in table(),
        paths in prop::collection::vec(prop::collection::vec(prop::sample::select(&["a", "b", "c", ""][..]), 1..5), 30),
    ) {
        let matcher = Matcher::compile(&table, &FULL.0, &Options::default()).expect("a matcher");
        let reader = Reader::new(&FULL.0, &matcher);
        for path in paths {
            for method in METHODS {
                reader.check(&matcher, method, &format!("/_matrix/client/v3/{}", path.join("/")));
            }
        }
    }
}

/// A template that has no part in a decision still says which paths it is about.
#[test]
fn a_template_without_a_part_narrows_its_leaf() {
    let endpoint = |method: &str, path: &str, by: &str| {
        format!(
            r#"{{"method": "{method}", "path": "/_matrix/client/v3/{path}", "by": [{by}], "handler": "X"}}"#
        )
    };
    let list = [
        endpoint("POST", "b/{x}/a", r#""main""#),
        endpoint("GET", "b/{x}/{x}", r#""main""#),
        endpoint("POST", "{x}/{y+}/{x}", r#""main", "worker""#),
    ];
    let text = format!(r#"{{"synapse": "1.2.3", "endpoints": [{}]}}"#, list.join(","));
    let table = Table::parse(&text).expect("a table");
    let matcher = Matcher::compile(&table, &FULL.0, &Options::default()).expect("a matcher");
    let reader = Reader::new(&FULL.0, &matcher);
    for path in ["b/a/a", "b//a", "b/a/c", "b//c", "a/a/a", "a//a"] {
        for method in METHODS {
            reader.check(&matcher, method, &format!("/_matrix/client/v3/{path}"));
        }
    }
}

#[test]
fn dots_and_private_places_are_found_in_every_spelling() {
    let (dots, private) = (whole(pattern::DOTS), whole(&pattern::private()));
    for path in [
        "/_matrix/../_synapse/admin/x",
        "/a/%2e%2E/_synaps%65/./admin/x",
        "/a%2f..%2F_synapse",
        "/x/../he%61lth",
    ] {
        assert!(dots.is_match(path) && private.is_match(path), "{path}");
    }
    for path in ["/_matrix/client/versions", "/.well-known/x", "/a/..b/%41", "/a/..."] {
        assert!(!dots.is_match(path), "{path}");
    }
    for path in ["/_matrix/_synapsex", "/_matrix/client/v3/rooms/_synapse:x/state", "/healthy"] {
        assert!(!private.is_match(path), "{path}");
    }
}

#[test]
fn no_pattern_is_too_long_for_a_line_of_a_configuration() {
    for pattern in &READER.routing.patterns {
        for path in &pattern.paths {
            assert!(path.len() < 1500 && !path.contains(['\'', '"', ' ', '\n']), "{path}");
        }
    }
}
