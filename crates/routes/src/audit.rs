//! What a routing table that is kept by hand gets wrong, measured against an endpoint table.
//!
//! Such a table is any text with regular expressions or paths in it: a configuration of nginx, HAProxy or Envoy, a list
//! in a manual or in a program. Only the expressions are read, not what is done with them, so whoever asks has to say
//! which of them send requests to workers ([`Target`]).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use regex_lite::Regex;
use serde::Serialize;

use crate::policy::{ClassId, classify, normal_form, version};
use crate::table::{Endpoint, Method, Process, Segment, Table};

/// What is done with the requests that an expression matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// They go to a worker.
    Worker,
    /// Those with the method GET go to a worker.
    WorkerForGet,
    /// They go to main, whatever other expressions match them.
    Main,
}

/// A regular expression or path that was found in a text.
#[derive(Clone, Debug)]
pub struct Expression {
    /// Where it stands: `FILE:LINE`.
    place: String,
    /// As it is written.
    text: String,
    target: Target,
    /// What it matches, or why that is not known.
    matches: Result<Regex, String>,
}

/// How many endpoints workers can serve, in versions collapsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Those with a stable version of the path, media aside.
    pub stable: usize,
    /// Those of which all versions are unstable, media aside.
    pub unstable: usize,
    /// Those of the media repository, which media processes serve.
    pub media: usize,
}

/// An endpoint: the path's current version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The path's template.
    pub path: String,
    /// The configuration that registers it, if not every one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

impl Call {
    fn new(endpoint: &Endpoint) -> Self {
        let when = (!endpoint.when.is_always()).then(|| endpoint.when.as_str().to_owned());
        Self { method: endpoint.method, path: endpoint.path.to_string(), when }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        self.when.as_ref().map_or(Ok(()), |when| write!(f, ", if {when}"))
    }
}

/// An expression and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// `FILE:LINE`.
    pub place: String,
    /// As it is written.
    pub expression: String,
    /// Why it cannot be read, if that is why it is listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place, self.expression)?;
        self.error.as_ref().map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// The version of Synapse that it was measured against.
    pub synapse: String,
    /// How many expressions were read.
    pub expressions: usize,
    /// How many endpoints workers can serve.
    pub worker_capable: Counts,
    /// Endpoints with a stable path that workers can serve and that stay on main.
    pub left_on_main: Vec<Call>,
    /// The same for those that have but unstable paths.
    pub left_on_main_unstable: Vec<Call>,
    /// The same for those of the media repository.
    pub left_on_main_media: Vec<Call>,
    /// Endpoints that are sent to workers by the current version of their path, but not by these older or unstable ones.
    pub left_on_main_by_version: Vec<Call>,
    /// Endpoints that main alone can serve and that are sent to workers.
    pub sent_to_workers: Vec<Call>,
    /// Expressions that match no endpoint of this Synapse.
    pub stale: Vec<Found>,
    /// Expressions that match whatever lies under `/_matrix`. They are taken for the way to main.
    pub everything: Vec<Found>,
    /// Expressions that cannot be read.
    pub unreadable: Vec<Found>,
}

/// Who can serve an endpoint.
enum Served {
    /// Workers can.
    Workers { media: bool },
    /// Main alone can, or the others fail.
    MainAlone,
    /// Workers can if all of a login goes to the same one, so that both are right.
    Either,
}

fn served(endpoint: &Endpoint) -> Option<Served> {
    Some(match classify(endpoint)?.0 {
        ClassId::Sso => Served::Either,
        ClassId::MainStore => Served::MainAlone,
        _ if endpoint.worker_capable() => Served::Workers { media: !endpoint.by.contains(&Process::Worker) },
        _ => Served::MainAlone,
    })
}

/// The versions of one endpoint, the current one first.
fn collapsed(table: &Table) -> Vec<Vec<&Endpoint>> {
    let mut groups: BTreeMap<_, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in table.endpoints() {
        // Versions that different classes of Synapse's answer are different endpoints.
        let (name, rest) = normal_form(&endpoint.path);
        groups.entry((name, rest, endpoint.method, &*endpoint.handler)).or_default().push(endpoint);
    }
    let age = |endpoint: &&Endpoint| {
        const NEWEST_FIRST: [&str; 6] = ["v3", "v2", "v1", "r0", "api/v1", "unstable"];
        version(&endpoint.path).map(|version| NEWEST_FIRST.iter().position(|other| *other == version))
    };
    let mut groups: Vec<_> = groups.into_values().collect();
    for group in &mut groups {
        group.sort_by_key(age);
        // Two configurations may register the same.
        group.dedup_by(|a, b| a.path == b.path);
    }
    groups
}

impl Audit {
    /// Measures what decides by method and path whether a request goes to a worker.
    pub fn of_decisions(table: &Table, mut worker: impl FnMut(Method, &str) -> bool) -> Self {
        let mut audit = Self { synapse: table.version().to_owned(), ..Self::default() };
        for group in collapsed(table) {
            let Some(served) = served(group[0]) else { continue };
            let reached: Vec<bool> =
                group.iter().map(|endpoint| worker(endpoint.method, &sample(endpoint))).collect();
            let unstable = version(&group[0].path) == Some("unstable");
            match served {
                Served::Either => {}
                Served::MainAlone => {
                    audit.sent_to_workers.extend(
                        group.iter().zip(&reached).find(|(_, reached)| **reached).map(|(e, _)| Call::new(e)),
                    );
                }
                Served::Workers { media } => {
                    let counts = &mut audit.worker_capable;
                    let (count, left) = match (media, unstable) {
                        (true, _) => (&mut counts.media, &mut audit.left_on_main_media),
                        (false, true) => (&mut counts.unstable, &mut audit.left_on_main_unstable),
                        (false, false) => (&mut counts.stable, &mut audit.left_on_main),
                    };
                    *count += 1;
                    if reached[0] {
                        let others = group.iter().zip(&reached).filter(|(_, reached)| !**reached);
                        audit.left_on_main_by_version.extend(others.map(|(endpoint, _)| Call::new(endpoint)));
                    } else {
                        left.push(Call::new(group[0]));
                    }
                }
            }
        }
        audit
    }

    /// Measures expressions.
    pub fn of_expressions(table: &Table, expressions: &[Expression]) -> Self {
        let mut readable = Vec::new();
        let (mut everything, mut unreadable) = (Vec::new(), Vec::new());
        for expression in expressions {
            match &expression.matches {
                Ok(regex) if NOWHERE.iter().all(|path| regex.is_match(path)) => {
                    everything.push(expression.found(None));
                }
                Ok(regex) => readable.push((expression, regex)),
                Err(error) => unreadable.push(expression.found(Some(error.clone()))),
            }
        }
        let sends = |method, path: &str| {
            let matched = |target: Target| {
                readable.iter().any(|(expression, regex)| expression.target == target && regex.is_match(path))
            };
            !matched(Target::Main)
                && (matched(Target::Worker) || method == Method::Get && matched(Target::WorkerForGet))
        };
        let stale = readable
            .iter()
            .filter(|(_, regex)| !table.endpoints().iter().any(|endpoint| regex.is_match(&sample(endpoint))));
        Self {
            expressions: expressions.len(),
            stale: stale.map(|(expression, _)| expression.found(None)).collect(),
            everything,
            unreadable,
            ..Self::of_decisions(table, sends)
        }
    }

    /// The headings of what was found, each with its lines.
    fn sections(&self) -> Vec<(String, Vec<String>)> {
        let mut sections = Vec::new();
        let mut add = |what: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                let it = if lines.len() == 1 { ("", "es") } else { ("s", "") };
                let what = what.replace("{s}", it.0).replace("{does}", it.1);
                sections.push((format!("{} {what}", lines.len()), lines));
            }
        };
        add("endpoint{s} left on main, of a stable path", lines(&self.left_on_main));
        add("endpoint{s} left on main, of an unstable path", lines(&self.left_on_main_unstable));
        add("endpoint{s} of media left on main", lines(&self.left_on_main_media));
        add("endpoint{s} sent to workers, though main alone can serve them", lines(&self.sent_to_workers));
        add(
            "older or unstable path{s} left on main, of endpoints that workers serve by their current path",
            lines(&self.left_on_main_by_version),
        );
        add("expression{s} that match{does} nothing of this Synapse", lines(&self.stale));
        add("expression{s} that match{does} everything, taken for the way to main", lines(&self.everything));
        add("expression{s} that cannot be read", lines(&self.unreadable));
        sections
    }

    /// What was measured, in a sentence or two.
    fn measured(&self) -> String {
        let Counts { stable, unstable, media } = self.worker_capable;
        format!(
            "Synapse {} has {} endpoints that a worker can serve: {stable} with a stable path, {unstable} with unstable \
             paths, {media} of media.",
            self.synapse,
            stable + unstable + media,
        )
    }

    /// As Markdown, below a heading that somebody else writes.
    pub fn markdown(&self) -> String {
        let mut out = format!("{}\n", self.measured());
        for (heading, lines) in self.sections() {
            let _ = write!(out, "\n{heading}:\n\n");
            for line in lines {
                let _ = writeln!(out, "* `{line}`");
            }
        }
        if self.is_right() {
            out.push_str(
                "\nNothing is left on main, and nothing is sent to a worker that cannot serve it.\n",
            );
        }
        out
    }

    /// Whether every endpoint goes where it can be served best, by every version of its path.
    pub fn is_right(&self) -> bool {
        self.left_on_main.is_empty()
            && self.left_on_main_unstable.is_empty()
            && self.left_on_main_media.is_empty()
            && self.left_on_main_by_version.is_empty()
            && self.sent_to_workers.is_empty()
            && self.unreadable.is_empty()
    }
}

/// For people.
impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.measured())?;
        for (heading, lines) in self.sections() {
            writeln!(f, "\n{heading}:")?;
            for line in lines {
                writeln!(f, "  {line}")?;
            }
        }
        if self.is_right() {
            writeln!(f, "\nnothing is left on main, and nothing is sent to a worker that cannot serve it")?;
        }
        Ok(())
    }
}

fn lines<T: fmt::Display>(things: &[T]) -> Vec<String> {
    things.iter().map(ToString::to_string).collect()
}

/// Paths that no Synapse has: who matches all of them matches everything.
const NOWHERE: [&str; 2] = ["/_matrix/client/v3/there-is/no-such-thing", "/_matrix/there-is/no-such-thing"];

impl Expression {
    /// The expressions in some lines of a text.
    pub fn find_all(file: &str, text: &str, part: &RangeInclusive<usize>, target: Target) -> Vec<Self> {
        let text = without_comments(text);
        // Of a Kubernetes `Ingress`, `path` says a prefix; elsewhere it says a whole path.
        let ingress = text.contains("pathType:");
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            if !part.contains(&number) || ["#", "//"].iter().any(|mark| line.trim_start().starts_with(mark)) {
                continue;
            }
            for (before, text, folded) in tokens(line) {
                let matches = regex(before, &text, folded, ingress);
                found.push(Self { place: format!("{file}:{number}"), text, target, matches });
            }
        }
        found
    }

    fn found(&self, error: Option<String>) -> Found {
        Found { place: self.place.clone(), expression: self.text.clone(), error }
    }
}

/// Go templates' comments become empty lines.
fn without_comments(text: &str) -> String {
    static COMMENT: LazyLock<Regex> = LazyLock::new(|| constant(r"(?s)\{\{-?\s*/\*.*?\*/\s*-?\}\}"));
    COMMENT
        .replace_all(text, |comment: &regex_lite::Captures<'_>| "\n".repeat(comment[0].matches('\n').count()))
        .into_owned()
}

/// The expressions in a line: what stands before, the text, and whether case does not count.
fn tokens(line: &str) -> Vec<(&str, String, bool)> {
    // At a word's beginning: behind a blank or quotes. Backquotes are prose's, unless they are an argument.
    static START: LazyLock<Regex> = LazyLock::new(|| {
        constant(r#"(^|[\s"']|\(`)(~\*?)?(\^?\(?(?:\?:)?/\(?(?:\?:)?_(?:matrix|synapse)(?:$|[^A-Za-z0-9_]))"#)
    });
    let mut tokens = Vec::new();
    let mut from = 0;
    while let Some(found) = line.get(from..).and_then(|rest| START.captures(rest)) {
        let at = |index: usize| found.get(index).map_or(from, |group| from + group.start());
        let (opening, text) = (&found[1], &line[at(3)..]);
        let end = match opening.chars().last() {
            Some(quote @ ('"' | '\'' | '`')) => text.find(quote),
            _ => text.find(char::is_whitespace),
        };
        let end = end.unwrap_or(text.len());
        let before = line[..at(1)].trim_end();
        let mut text = text[..end].to_owned();
        if opening == "\"" {
            text = text.replace(r"\\", r"\");
        }
        tokens.push((
            before,
            text,
            before.ends_with("~*") || found.get(2).is_some_and(|m| m.as_str() == "~*"),
        ));
        from = at(3) + end;
    }
    tokens
}

/// What an expression matches. `before` is what stands before it in its line.
fn regex(before: &str, text: &str, folded: bool, ingress: bool) -> Result<Regex, String> {
    let key = before.rsplit([' ', '{', ',', '\t']).next().unwrap_or_default().trim_matches(['"', '\'']);
    let expression = if key == "regex:" {
        // Envoy's expressions match the whole path.
        format!("^(?:{text})$")
    } else if text.contains(['^', '$', '*', '+', '?', '|', '(', '[', '\\']) {
        text.to_owned()
    } else if before.ends_with('=') || (key == "path:" && !ingress) {
        format!("^{}$", regex_lite::escape(text))
    } else {
        format!("^{}", regex_lite::escape(text))
    };
    let expression = if folded { format!("(?i){expression}") } else { expression };
    Regex::new(&expression).map_err(|error| error.to_string())
}

/// A path as a client would send it, with nothing encoded.
fn sample(endpoint: &Endpoint) -> String {
    let mut path = String::new();
    for segment in endpoint.segments() {
        path.push('/');
        match segment {
            Segment::Literal(text) => path.push_str(text),
            Segment::NonEmpty(name) | Segment::Any(name) | Segment::Rest(name) => path.push_str(match name {
                "room_id" | "room_identifier" => "!room:example.org",
                "room_alias" => "#room:example.org",
                "user_id" | "target_user_id" => "@user:example.org",
                "event_id" | "parent_id" | "thread_root_id" => "$event",
                "server_name" | "server" | "destination" => "example.org",
                name => name,
            }),
        }
    }
    path
}

/// An expression of this module's own.
fn constant(expression: &str) -> Regex {
    Regex::new(expression).unwrap_or_else(|error| unreachable!("{expression}: {error}"))
}
