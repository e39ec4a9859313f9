//! What Synapse serves: the extracted tables.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::sync::LazyLock;

use model::{App, Instance, Stream};
use serde::{Deserialize, Serialize};

use crate::features::Condition;

/// The committed tables, newest first: minor version and text.
const TABLES: [(&str, &str); 2] =
    [("1.163", include_str!("../tables/1.163.json")), ("1.162", include_str!("../tables/1.162.json"))];

/// The endpoints of one version of Synapse.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    version: Box<str>,
    skipped: Vec<String>,
    endpoints: Vec<Endpoint>,
}

/// One method of one path.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path: literal segments, `{name}` for one segment, `{name+}` for one that is not empty, `{name...}` for the
    /// rest of the path, slashes included.
    pub path: Box<str>,
    /// The kinds of process that register it.
    pub by: Vec<Process>,
    /// The configuration that registers it.
    pub when: Condition,
    /// The streams of which the process that answers has to be a writer, because Synapse fails elsewhere.
    pub writes: Vec<Stream>,
    /// The class in Synapse that answers.
    pub handler: Box<str>,
}

/// The methods that Synapse registers. HEAD is a GET to it, and OPTIONS it answers everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET, and HEAD.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 4] = [Self::Get, Self::Post, Self::Put, Self::Delete];

    /// The method that Synapse would look up for this one. Methods are case-sensitive.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "GET" | "HEAD" => Some(Self::Get),
            "POST" => Some(Self::Post),
            "PUT" => Some(Self::Put),
            "DELETE" => Some(Self::Delete),
            _ => None,
        }
    }

    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind of Synapse process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// The main process.
    Main,
    /// The main process while it runs the media repository itself.
    MainMedia,
    /// A generic worker.
    Worker,
    /// A media process.
    Media,
}

impl Process {
    /// The kind's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::MainMedia => "main_media",
            Self::Worker => "worker",
            Self::Media => "media",
        }
    }

    /// Whether an instance is of this kind.
    pub fn is(self, instance: &Instance) -> bool {
        match self {
            Self::Main => instance.app == App::Main,
            Self::MainMedia => instance.app == App::Main && instance.enable_media_repo,
            Self::Worker => instance.app == App::Generic,
            Self::Media => instance.app == App::Media,
        }
    }
}

/// One segment of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment<'a> {
    /// This text, byte for byte: Synapse looks for it in the path as it was sent, before any percent-decoding.
    Literal(&'a str),
    /// One segment that is not empty.
    NonEmpty(&'a str),
    /// One segment, which may be empty.
    Any(&'a str),
    /// The rest of the path: at least the slash before it was there.
    Rest(&'a str),
}

impl<'a> Segment<'a> {
    /// The segments of a template, from behind its first slash. `None` if it is not one.
    pub fn parse_all(template: &'a str) -> Option<Vec<Self>> {
        let texts: Vec<&str> = template.strip_prefix('/')?.split('/').collect();
        let last = texts.len() - 1;
        texts
            .into_iter()
            .enumerate()
            .map(|(index, text)| {
                let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
                    return (!text.contains(['{', '}'])).then_some(Self::Literal(text));
                };
                if name.contains(['{', '}']) {
                    None
                } else if let Some(name) = name.strip_suffix("...") {
                    (index == last).then_some(Self::Rest(name))
                } else if let Some(name) = name.strip_suffix('+') {
                    Some(Self::NonEmpty(name))
                } else {
                    Some(Self::Any(name))
                }
            })
            .collect()
    }

    /// The name of the parameter, unless it is a literal.
    pub fn parameter(&self) -> Option<&'a str> {
        match self {
            Self::Literal(_) => None,
            Self::NonEmpty(name) | Self::Any(name) | Self::Rest(name) => Some(name),
        }
    }
}

/// What routing depends on, in one line: `GET /path by main, worker, writes typing, when OPTION`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} by {}", self.method, self.path, names(&self.by))?;
        if let [first, more @ ..] = &*self.writes {
            write!(f, ", writes {first}")?;
            for stream in more {
                write!(f, " and {stream}")?;
            }
        }
        if !self.when.is_always() {
            write!(f, ", when {}", self.when.as_str())?;
        }
        Ok(())
    }
}

/// The names of kinds of process, as a list.
pub(crate) fn names(processes: &[Process]) -> String {
    processes.iter().map(|process| process.name()).collect::<Vec<_>>().join(", ")
}

impl Endpoint {
    /// All that routing depends on, as if these options did not exist; none if it depends on them altogether.
    fn key<'a>(&'a self, without: &[&str]) -> Option<impl Eq + Hash + use<'a>> {
        Some((self.method, &*self.path, &*self.by, self.when.without(without)?, &*self.writes))
    }

    /// The segments of the path.
    pub fn segments(&self) -> Vec<Segment<'_>> {
        // `Table::parse` refuses what does not parse.
        Segment::parse_all(&self.path).unwrap_or_default()
    }

    /// Whether a process other than main ever registers it.
    pub fn worker_capable(&self) -> bool {
        self.by.iter().any(|process| matches!(process, Process::Worker | Process::Media))
    }

    /// Whether this instance registers it.
    pub fn registered_by(&self, instance: &Instance) -> bool {
        self.by.iter().any(|process| process.is(instance))
    }

    /// Whether this instance can answer it: registers it, takes requests, and writes the streams that have to be
    /// written.
    pub fn served_by(&self, instance: &Instance) -> bool {
        instance.client.is_some()
            && self.registered_by(instance)
            && self.writes.iter().all(|stream| instance.writes.contains(stream))
    }
}

/// What changed between two tables. An endpoint that changed is both gone and new.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference<'a> {
    /// What the older table alone has.
    pub gone: Vec<&'a Endpoint>,
    /// What the newer table alone has.
    pub new: Vec<&'a Endpoint>,
}

impl Difference<'_> {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty()
    }
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, endpoints) in [('-', &self.gone), ('+', &self.new)] {
            for endpoint in endpoints {
                writeln!(f, "{sign} {endpoint}")?;
            }
        }
        Ok(())
    }
}

/// A table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It is not JSON of the right shape.
    #[error("the endpoint table is not what `matrix-stack routes extract` prints: {0}: extract it again")]
    Json(#[from] serde_json::Error),
    /// A path is no template.
    #[error(
        "the endpoint table has a path that no rule reads: {method} {path}: extract it again with this version of \
         matrix-stack, and report it if that does not help"
    )]
    Path {
        /// The method.
        method: Method,
        /// The path.
        path: Box<str>,
    },
}

#[derive(Deserialize)]
struct RawTable {
    synapse: Box<str>,
    #[serde(default)]
    skipped: Vec<String>,
    endpoints: Vec<RawEndpoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEndpoint {
    method: Method,
    path: Box<str>,
    by: Vec<Process>,
    #[serde(default)]
    when: String,
    #[serde(default)]
    writes: Vec<Stream>,
    handler: Box<str>,
}

impl Table {
    /// Reads a table that [`crate::EXTRACT_PY`] printed.
    pub fn parse(json: &str) -> Result<Self, TableError> {
        let raw: RawTable = serde_json::from_str(json)?;
        let endpoints = raw
            .endpoints
            .into_iter()
            .map(|raw| {
                if Segment::parse_all(&raw.path).is_none() {
                    return Err(TableError::Path { method: raw.method, path: raw.path });
                }
                Ok(Endpoint {
                    method: raw.method,
                    path: raw.path,
                    by: raw.by,
                    when: Condition::parse(&raw.when),
                    writes: raw.writes,
                    handler: raw.handler,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { version: raw.synapse, skipped: raw.skipped, endpoints })
    }

    /// The tables that this program carries, newest Synapse first.
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Table>> = LazyLock::new(|| {
            TABLES
                .iter()
                .map(|(version, text)| {
                    Table::parse(text)
                        .unwrap_or_else(|error| unreachable!("committed table {version}: {error}"))
                })
                .collect()
        });
        &ALL
    }

    /// The table of the newest Synapse that this program knows.
    pub fn newest() -> &'static Self {
        &Self::all()[0]
    }

    /// The table for a version of Synapse, such as `1.163.2`: that of its minor version.
    pub fn for_version(version: &str) -> Option<&'static Self> {
        let wanted = minor(version)?;
        Self::all().iter().find(|table| minor(&table.version) == Some(wanted))
    }

    /// The table that comes closest to a version of Synapse: its own, or else that of the next older version that there
    /// is, or else the oldest.
    pub fn closest(version: &str) -> &'static Self {
        let wanted = minor(version);
        let oldest = &Self::all()[Self::all().len() - 1];
        Self::all().iter().find(|table| minor(&table.version) <= wanted).unwrap_or(oldest)
    }

    /// The version of Synapse that it was extracted from.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Options whose endpoints are missing, because the environment that it was extracted from lacked a library.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// What changed from this table to a newer one. Endpoints of options that either of them had to skip are left out.
    pub fn diff<'a>(&'a self, newer: &'a Self) -> Difference<'a> {
        let skipped: Vec<&str> = self.skipped.iter().chain(&newer.skipped).map(String::as_str).collect();
        let only = |here: &'a Self, there: &Self| {
            let others: HashSet<_> = there.endpoints.iter().filter_map(|e| e.key(&skipped)).collect();
            here.endpoints
                .iter()
                .filter(|e| e.key(&skipped).is_some_and(|key| !others.contains(&key)))
                .collect()
        };
        Difference { gone: only(self, newer), new: only(newer, self) }
    }

    /// Every endpoint, sorted by path and method. One that different configurations register on different processes
    /// stands there once for each.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

/// The minor version of a version: `1.163` of `1.163.2`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(skipped: &str, endpoints: &[&str]) -> Table {
        let text = format!(
            r#"{{"synapse": "1.2.3", "skipped": [{skipped}], "endpoints": [{}]}}"#,
            endpoints.join(",")
        );
        Table::parse(&text).expect("a table")
    }

    #[test]
    fn differences_leave_out_what_was_skipped() {
        let plain = r#"{"method": "GET", "path": "/a/{x}", "by": ["main"], "handler": "A"}"#;
        let moved = r#"{"method": "GET", "path": "/a/{x}", "by": ["main", "worker"], "handler": "A"}"#;
        let either = r#"{"method": "GET", "path": "/b", "by": ["main"], "when": "x | y.z", "handler": "B"}"#;
        let one = r#"{"method": "GET", "path": "/b", "by": ["main"], "when": "x", "handler": "B"}"#;
        let all = table("", &[plain, either]);
        assert!(all.diff(&table(r#""y.z""#, &[plain, one])).is_empty());
        assert!(all.diff(&table(r#""y.z", "x""#, &[plain])).is_empty());
        assert_eq!(
            all.diff(&table("", &[moved, either])).to_string(),
            "- GET /a/{x} by main\n+ GET /a/{x} by main, worker\n"
        );
        assert!(!all.diff(&table("", &[plain, one])).is_empty());
    }

    #[test]
    fn every_version_has_a_table_that_comes_closest() {
        let [newest, .., oldest] = Table::all() else { unreachable!("there are two or more") };
        for table in Table::all() {
            assert_eq!(Table::closest(table.version()), table);
            assert_eq!(Table::for_version(table.version()), Some(table));
        }
        assert_eq!(Table::closest("2.0.0rc1"), newest);
        assert_eq!(Table::closest("1.9.0"), oldest);
        assert_eq!(Table::for_version("1.9.0"), None);
    }

    #[test]
    fn tables_that_are_none_say_what_to_do() {
        let broken = r#"{"synapse": "1", "endpoints": [{"method": "GET", "path": "/a{x}", "by": ["main"], "handler": "A"}]}"#;
        for text in ["", "{}", broken] {
            let error = Table::parse(text).expect_err("no table").to_string();
            assert!(error.contains("extract it again"), "{error}");
        }
    }
}
