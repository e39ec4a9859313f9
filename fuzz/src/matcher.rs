//! A method and a target, as any client may send them.

use std::path::Path;
use std::sync::LazyLock;

use model::{Preset, ServerName, Stack};
use percent_encoding::percent_decode_str;
use routes::{Decision, Features, Forward, Matcher, Method, Options, Route, Segment, Table};

use crate::headers;

/// A matcher, and what the slow way of matching needs.
struct Subject {
    matcher: &'static Matcher,
    /// Every route with its template.
    templates: Vec<(Vec<Segment<'static>>, &'static Route)>,
    admin_open: bool,
    mas: bool,
}

impl Subject {
    fn new(preset: Preset, admin_open: bool, mas: bool) -> Self {
        let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
        let topology = model::plan(&Stack::new(name), Path::new("/run/x"), preset).expect("a plan");
        let features = Features::default();
        let features = if mas { features.with("matrix_authentication_service.enabled") } else { features };
        let options = Options { admin_open, features };
        let matcher = Matcher::compile(Table::newest(), &topology, &options).expect("a matcher");
        // It is needed to the end of the program.
        let matcher: &'static Matcher = Box::leak(Box::new(matcher));
        let parse = |route: &'static Route| Some((Segment::parse_all(route.template.as_deref()?)?, route));
        let templates = matcher.routes().iter().filter_map(parse).collect();
        Self { matcher, templates, admin_open, mas }
    }
}

static SUBJECTS: LazyLock<[Subject; 3]> = LazyLock::new(|| {
    [
        Subject::new(Preset::Full, false, false),
        Subject::new(Preset::Full, true, true),
        Subject::new(Preset::Small, false, true),
    ]
});

/// A method, a space and a target: what is closed is not reached in any spelling, and what is forwarded goes where a slow
/// look at every template says.
pub fn matcher(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Some((method, target)) = text.split_once(' ') else { return };
    for subject in &*SUBJECTS {
        let decision = headers::decide(subject.matcher, method, target);
        let Decision::Forward(forward) = decision else { continue };
        assert!(target.starts_with('/') && method != "OPTIONS");
        check_closed(subject, target);
        check_room(&forward, target);
        check_route(subject, &forward, method, target);
    }
}

/// However somebody reads the path, it is open.
fn check_closed(subject: &Subject, target: &str) {
    let path = target.split('?').next().unwrap_or_default();
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    // Synapse, and others who take segments apart before they decode them.
    let apart: Vec<Vec<u8>> = path[1..].split('/').map(decoded).collect();
    // Those who decode first.
    let first: Vec<Vec<u8>> = decoded(&path[1..]).split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    for segments in [apart, first] {
        for merge in [false, true] {
            assert!(!is_closed(subject, segments.iter(), merge), "{target} is read as closed");
            let resolved = resolve(&segments, merge);
            assert!(
                !is_closed(subject, resolved.into_iter(), merge),
                "{target} is resolved to what is closed"
            );
        }
    }
}

/// Without dot segments (RFC 3986, section 5.2.4). `merge`: several slashes are one.
fn resolve(segments: &[Vec<u8>], merge: bool) -> Vec<&Vec<u8>> {
    let mut out = Vec::new();
    for segment in segments {
        match &segment[..] {
            b"." => {}
            b".." => drop(out.pop()),
            b"" if merge => {}
            _ => out.push(segment),
        }
    }
    out
}

fn is_closed<'a>(subject: &Subject, segments: impl Iterator<Item = &'a Vec<u8>>, merge: bool) -> bool {
    let mut segments = segments.filter(|segment| !(merge && segment.is_empty()));
    let first = segments.next().map(|segment| &segment[..]);
    let second = segments.next().map(|segment| &segment[..]);
    match (first, second) {
        (Some(b"health"), _) | (Some(b"_synapse"), Some(b"replication" | b"metrics")) => true,
        (Some(b"_synapse"), Some(b"admin")) => !subject.admin_open,
        (Some(b"_synapse"), Some(b"mas")) => !subject.mas,
        _ => false,
    }
}

/// The room is one segment of the path.
fn check_room(forward: &Forward<'_>, target: &str) {
    let Some(range) = forward.room.clone() else { return };
    let path = target.split('?').next().unwrap_or_default();
    let before = path[..range.start].matches('/').count();
    assert_eq!(path.split('/').nth(before), path.get(range), "no segment of {target}");
}

/// The route is that of the template that a slow look finds.
fn check_route(subject: &Subject, forward: &Forward<'_>, method: &str, target: &str) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let segments: Vec<&str> = path[1..].split('/').collect();
    let mut found: Vec<_> =
        subject.templates.iter().filter(|(template, _)| fits(template, &segments)).collect();
    // Those that fit to the end; if there are none, those with the longest beginning.
    let depth = |template: &[Segment<'_>]| match template.last() {
        Some(Segment::Rest(_)) => template.len(),
        _ => usize::MAX,
    };
    let deepest = found.iter().map(|(template, _)| depth(template)).max();
    found.retain(|(template, _)| Some(depth(template)) == deepest);
    // Literal segments before others, from the left.
    let order = |template: &[Segment<'_>]| -> Vec<u8> {
        let rank = |segment: &Segment<'_>| match segment {
            Segment::Literal(_) => 0,
            Segment::NonEmpty(_) => 1,
            Segment::Any(_) => 2,
            Segment::Rest(_) => 3,
        };
        template.iter().map(rank).collect()
    };
    found.sort_by_key(|(template, _)| order(template));
    let wanted = Method::from_name(method);
    let registered = wanted.and_then(|method| found.iter().find(|(_, route)| route.method == Some(method)));
    let route = forward.route;
    if found.is_empty() {
        assert!(!route.known(), "{target} fits nothing, but is known as {:?}", route.template);
        return;
    }
    assert_eq!(forward.method_registered, registered.is_some(), "{method} {target}");
    if let Some((_, expected)) = registered {
        assert_eq!(
            (&route.template, route.method),
            (&expected.template, expected.method),
            "{method} {target}"
        );
    } else {
        assert!(found.iter().any(|(_, other)| other.template == route.template), "{method} {target}");
    }
    if route.template.as_deref().is_some_and(|template| template.ends_with("/v3/sync")) {
        let value = |name: &str| {
            query
                .split(['&', ';'])
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| percent_decode_str(key).eq(name.bytes()))
                .map(|(_, value)| percent_decode_str(value).collect::<Vec<u8>>())
        };
        let initial = value("since").is_none() || value("full_state").as_deref() == Some(b"true");
        assert_eq!(route.class.name == "sync_initial", initial, "{target}");
    }
}

fn fits(template: &[Segment<'_>], path: &[&str]) -> bool {
    match (template, path) {
        ([], []) | ([Segment::Rest(_)], [_, ..]) => true,
        ([segment, template @ ..], [first, path @ ..]) => {
            let fits_first = match segment {
                Segment::Literal(text) => text == first,
                Segment::NonEmpty(_) => !first.is_empty(),
                Segment::Any(_) => true,
                Segment::Rest(_) => false,
            };
            fits_first && fits(template, path)
        }
        _ => false,
    }
}
