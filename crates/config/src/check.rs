//! Checks a tree against the JSON Schema of a stack, and finds everything that is wrong with it at once.
//!
//! This knows the part of JSON Schema that `schemars` writes for the types of a stack. A general validator would
//! know all of it, but neither where a value stands in the file nor how to say what to write instead.

use std::net::IpAddr;
use std::ops::Range;

use model::{OWNED_SYNAPSE_OPTIONS, ServerName};
use serde_json::{Map, Value as Json};

use crate::tree::{Key, Node, Problem, Value};

/// Checks a tree, which stands at this path. The second half of the answer is the tree as JSON, without what is wrong with it.
pub(crate) fn check(schema: &Json, root: &Node, source: &str, path: &str) -> (Vec<Problem>, Option<Json>) {
    let mut checker = Checker { root: schema, source, problems: Vec::new() };
    let at = At { path: path.to_owned(), key: None, required: true };
    let json = checker.check(schema, root, &at);
    (checker.problems, json)
}

/// Follows `$ref` to the definition. The other members beside it only describe.
pub(crate) fn deref<'s>(root: &'s Json, mut schema: &'s Json) -> &'s Json {
    while let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        schema = &root["$defs"][name];
    }
    schema
}

/// The schema of a value that may be left out, without the `null` that stands for leaving it out.
pub(crate) fn non_null<'s>(root: &'s Json, schema: &'s Json) -> (&'s Json, bool) {
    let schema = deref(root, schema);
    match schema["anyOf"].as_array().map(Vec::as_slice) {
        Some([inner, null]) if null["type"] == "null" => (deref(root, inner), true),
        _ => (schema, schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "null"))),
    }
}

/// The type that a schema names, `null` aside.
pub(crate) fn type_name(schema: &Json) -> Option<&str> {
    match &schema["type"] {
        Json::String(name) => Some(name),
        Json::Array(names) => names.iter().filter_map(Json::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// The choices of an enumeration: names that stand alone, and names that are followed by a mapping of their own.
pub(crate) fn choices(schema: &Json) -> Option<Vec<(&str, Option<&Json>)>> {
    if let Some(names) = schema["enum"].as_array() {
        return Some(names.iter().filter_map(|name| Some((name.as_str()?, None))).collect());
    }
    let mut choices = Vec::new();
    for variant in schema["oneOf"].as_array()? {
        if let Some(name) = variant["const"].as_str() {
            choices.push((name, None));
        } else if let Some(names) = variant["enum"].as_array() {
            choices.extend(names.iter().filter_map(|name| Some((name.as_str()?, None))));
        } else {
            choices.extend(
                variant["properties"].as_object()?.iter().map(|(name, inner)| (name.as_str(), Some(inner))),
            );
        }
    }
    Some(choices)
}

/// The name among `names` that is most like `wrong`, if one is alike.
fn closest<'n>(wrong: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Long names only cost time: none of ours is nearly as long.
    if wrong.len() > 100 {
        return None;
    }
    let normal = wrong.to_lowercase().replace('-', "_");
    // One slip for each three letters.
    let slips = |name: &str| strsim::damerau_levenshtein(&normal, name);
    let likeness = |name: &str| strsim::jaro_winkler(&normal, name);
    names
        .into_iter()
        .filter(|name| slips(name) <= (name.len().max(normal.len()) / 3).max(1) || likeness(name) >= 0.9)
        .min_by_key(|name| slips(name))
}

fn list<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Text cut to a length that fits a message.
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut cut: String = line.chars().take(60).collect();
    if cut.len() < text.trim_end().len() {
        cut.push('…');
    }
    cut
}

/// Where a node stands.
struct At<'t> {
    path: String,
    key: Option<&'t Key>,
    required: bool,
}

impl At<'_> {
    /// The name to call the node in a message.
    fn name(&self) -> String {
        match self.key {
            _ if self.path.is_empty() => "the file".to_owned(),
            Some(key) => format!("`{}`", short(&key.text)),
            None => format!("`{}`", short(self.path.rsplit('.').next().unwrap_or(&self.path))),
        }
    }

    fn below<'t>(&self, key: &'t Key) -> At<'t> {
        At { path: join(&self.path, &key.text), key: Some(key), required: false }
    }

    fn item(&self, index: usize) -> At<'static> {
        At { path: format!("{}[{index}]", self.path), key: None, required: true }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

struct Checker<'s> {
    root: &'s Json,
    source: &'s str,
    problems: Vec<Problem>,
}

impl<'s> Checker<'s> {
    fn problem(&mut self, span: &Range<usize>, path: &str, message: String, mend: String) {
        self.problems.push(Problem { span: Some(span.clone()), path: path.to_owned(), message, mend });
    }

    /// The value as it was written, for a message.
    fn written(&self, node: &Node) -> &'s str {
        self.source.get(node.span.clone()).unwrap_or_default().trim()
    }

    fn check(&mut self, schema: &'s Json, node: &Node, at: &At<'_>) -> Option<Json> {
        let described = schema;
        let (schema, nullable) = non_null(self.root, schema);
        match &node.value {
            Value::Refused => return None,
            Value::Null if nullable => return Some(Json::Null),
            _ => {}
        }
        if let Some(choices) = choices(schema) {
            return self.choose(&choices, node, at);
        }
        match type_name(schema) {
            Some("object") => self.object(described, schema, node, at),
            Some("array") => self.list(schema, node, at),
            Some("string") => self.text(described, schema, node, at),
            Some("integer" | "number") => self.number(schema, node, at),
            Some("boolean") => self.boolean(node, at),
            _ => self.free(node, at),
        }
    }

    fn wrong_type(&mut self, expected: &str, node: &Node, at: &At<'_>, mend: String) -> Option<Json> {
        let found = match &node.value {
            Value::Null => {
                let message = format!("{} has no value", at.name());
                let mend =
                    if at.required { mend } else { format!("{mend}, or remove the key to use the default") };
                let span = at.key.map_or(&node.span, |key| &key.span);
                self.problem(span, &at.path, message, mend);
                return None;
            }
            Value::Bool(_) => format!("`{}`", self.written(node)),
            Value::Number(_) => format!("the number `{}`", short(self.written(node))),
            Value::Text { text, .. } => format!("the text `{}`", short(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Refused => return None,
        };
        let message = format!("{} must be {expected}, but this is {found}", at.name());
        self.problem(&self.best_span(node, at), &at.path, message, mend);
        None
    }

    /// The value itself where it stands on one line, else its key.
    fn best_span(&self, node: &Node, at: &At<'_>) -> Range<usize> {
        best_span(self.source, node, at.key)
    }

    fn object(&mut self, described: &'s Json, schema: &'s Json, node: &Node, at: &At<'_>) -> Option<Json> {
        let properties = schema["properties"].as_object();
        let Value::Map(entries) = &node.value else {
            let example = described["examples"][0].as_object();
            let mend = match properties.or(example).and_then(|fields| fields.keys().next()) {
                Some(first) if at.path.is_empty() => {
                    format!("write a line for each field, such as `{first}: ...`")
                }
                Some(first) => format!("write lines such as `{first}: ...` below it, indented"),
                None => "write lines such as `key: value` below it, indented".to_owned(),
            };
            return self.wrong_type("a mapping (`key: value` lines)", node, at, mend);
        };
        let mut object = Map::new();
        for (key, node) in entries {
            let mut below = at.below(key);
            below.required = is_required(schema, &key.text);
            let value = match (properties.and_then(|p| p.get(&key.text)), &schema["additionalProperties"]) {
                (Some(schema), _) => self.check(schema, node, &below),
                (None, Json::Bool(false)) => {
                    self.unknown_key(properties, key, at);
                    None
                }
                (None, Json::Object(_)) => self.check(&schema["additionalProperties"], node, &below),
                (None, _) => self.free(node, &below),
            };
            if let Some(value) = value {
                object.insert(key.text.clone(), value);
            }
        }
        let mut complete = true;
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|(key, _)| key.text == required) {
                let message = match at.key {
                    Some(key) => format!("`{required}` is missing in `{}`", short(&key.text)),
                    None => format!("`{required}` is missing"),
                };
                let field = properties.and_then(|p| p.get(required)).unwrap_or(&Json::Null);
                let mend = format!(
                    "add `{required}: {}`",
                    example(self.root, field).unwrap_or_else(|| "...".to_owned())
                );
                let span = at.key.or(entries.first().map(|(key, _)| key)).map(|key| key.span.clone());
                self.problems.push(Problem { span, path: join(&at.path, required), message, mend });
            }
            complete &= object.contains_key(required);
        }
        (complete || at.path.is_empty()).then_some(Json::Object(object))
    }

    fn unknown_key(&mut self, properties: Option<&'s Map<String, Json>>, key: &Key, at: &At<'_>) {
        let place = if at.path.is_empty() { String::new() } else { format!(" in `{}`", short(&at.path)) };
        let known: Vec<&str> = properties.into_iter().flat_map(Map::keys).map(String::as_str).collect();
        let mend = if let Some(name) = closest(&key.text, known.iter().copied()) {
            format!("did you mean `{name}`?")
        } else if let Some((_, mend)) = OWNED_SYNAPSE_OPTIONS.iter().find(|(option, _)| *option == key.text) {
            (*mend).to_owned()
        } else if let Some(section) = self.section_with(&key.text).filter(|section| *section != at.path) {
            format!("`{}` belongs under `{section}`", key.text)
        } else if at.path.is_empty() || at.path == "synapse" {
            format!("known here: {}; Synapse's own options go under `synapse.extra`", list(known))
        } else {
            format!("known here: {}", list(known))
        };
        self.problem(
            &key.span,
            &join(&at.path, &key.text),
            format!("unknown key `{}`{place}", short(&key.text)),
            mend,
        );
    }

    /// The only top-level section that has a field of this name.
    fn section_with(&self, field: &str) -> Option<&'s str> {
        let sections = self.root["properties"].as_object()?;
        let mut with = sections
            .iter()
            .filter(|(_, schema)| !non_null(self.root, schema).0["properties"][field].is_null())
            .map(|(name, _)| name.as_str());
        with.next().filter(|_| with.next().is_none())
    }

    fn choose(&mut self, choices: &[(&'s str, Option<&'s Json>)], node: &Node, at: &At<'_>) -> Option<Json> {
        let names = || choices.iter().map(|(name, _)| *name);
        let one_of = format!("use one of {}", list(names()));
        let span = self.best_span(node, at);
        match &node.value {
            Value::Text { text, .. } => match choices.iter().find(|(name, _)| name == text) {
                Some((_, None)) => Some(Json::String(text.clone())),
                Some((name, Some(_))) => {
                    let message = format!("`{name}` needs its fields");
                    let mend = match at.key {
                        Some(key) => format!("write `{}: {{{name}: {{}}}}` for its defaults", key.text),
                        None => format!("write `{{{name}: {{}}}}` for its defaults"),
                    };
                    self.problem(&span, &at.path, message, mend);
                    None
                }
                None => {
                    let mend = match closest(text, names()) {
                        Some(name) => format!("did you mean `{name}`? {one_of}"),
                        None => one_of,
                    };
                    self.problem(&span, &at.path, format!("{} cannot be `{}`", at.name(), short(text)), mend);
                    None
                }
            },
            Value::Map(entries) if choices.iter().any(|(_, inner)| inner.is_some()) => {
                let [(key, value)] = entries.as_slice() else {
                    self.problem(
                        &span,
                        &at.path,
                        format!("{} must be exactly one choice", at.name()),
                        one_of,
                    );
                    return None;
                };
                let below = at.below(key);
                match choices.iter().find(|(name, _)| *name == key.text) {
                    Some((name, Some(inner))) => {
                        let value = self.check(inner, value, &below)?;
                        Some(Json::Object(Map::from_iter([((*name).to_owned(), value)])))
                    }
                    Some((name, None)) => {
                        let message = format!("`{name}` has no fields");
                        let mend = format!("write `{}: {name}`", at.key.map_or("", |key| &key.text));
                        self.problem(&key.span, &below.path, message, mend);
                        None
                    }
                    None => {
                        let mend = match closest(&key.text, names()) {
                            Some(name) => format!("did you mean `{name}`? {one_of}"),
                            None => one_of,
                        };
                        let message = format!("{} cannot be `{}`", at.name(), short(&key.text));
                        self.problem(&key.span, &below.path, message, mend);
                        None
                    }
                }
            }
            _ => self.wrong_type("one of the names below", node, at, one_of),
        }
    }

    fn list(&mut self, schema: &'s Json, node: &Node, at: &At<'_>) -> Option<Json> {
        let Value::List(items) = &node.value else {
            let mend = match &node.value {
                Value::Text { text, plain: true } => format!("write `[{}]`", short(text)),
                _ => "write `[first, second]`, or a `- item` line for each".to_owned(),
            };
            return self.wrong_type("a list", node, at, mend);
        };
        let items: Vec<_> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.check(&schema["items"], item, &at.item(index)))
            .collect();
        items.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
    }

    fn text(&mut self, described: &'s Json, schema: &'s Json, node: &Node, at: &At<'_>) -> Option<Json> {
        let example = example(self.root, described);
        let such_as = example.as_ref().map(|example| format!(", such as `{example}`")).unwrap_or_default();
        let Value::Text { text, .. } = &node.value else {
            let mend = match &node.value {
                Value::Bool(_) | Value::Number(_) => {
                    format!("put it in quotes: `\"{}\"`", self.written(node))
                }
                _ => format!("write text{such_as}"),
            };
            return self.wrong_type("text", node, at, mend);
        };
        let fault = match schema["format"].as_str() {
            Some("matrix-server-name") => match ServerName::try_from(text.clone()) {
                Ok(_) => return Some(Json::String(text.clone())),
                Err(error) => {
                    // The message is "what; mend" for those who see it alone.
                    let error = error.to_string();
                    let (message, mend) =
                        error.split_once(": ").unwrap_or((&error, "use a domain such as `example.org`"));
                    Some((message.to_owned(), mend.to_owned()))
                }
            },
            Some("ip") if text.parse::<IpAddr>().is_err() => {
                let message = format!("{} must be an IP address, but this is `{}`", at.name(), short(text));
                Some((message, "write an address, such as `127.0.0.1` or `::1`".to_owned()))
            }
            _ => None,
        };
        let length = |bound: &str| schema[bound].as_u64().and_then(|bound| usize::try_from(bound).ok());
        let fault = fault.or_else(|| {
            let characters = text.chars().count();
            if length("minLength").is_some_and(|least| characters < least) {
                return Some((format!("{} is empty", at.name()), format!("write text{such_as}")));
            }
            if let Some(most) = length("maxLength").filter(|most| characters > *most) {
                let message = format!("{} has {characters} characters", at.name());
                return Some((message, format!("use at most {most}")));
            }
            let pattern = schema["pattern"].as_str()?;
            // Every pattern is ours; a test compiles them all.
            let fits = regex_lite::Regex::new(pattern).is_ok_and(|regex| regex.is_match(text));
            (!fits).then(|| {
                let message = format!("{} cannot be `{}`", at.name(), short(text));
                let mend = match &example {
                    Some(example) => format!("write it like `{example}`"),
                    None => format!("write text that matches `{pattern}`"),
                };
                (message, mend)
            })
        });
        if let Some((message, mend)) = fault {
            self.problem(&self.best_span(node, at), &at.path, message, mend);
            return None;
        }
        Some(Json::String(text.clone()))
    }

    fn number(&mut self, schema: &'s Json, node: &Node, at: &At<'_>) -> Option<Json> {
        let whole = type_name(schema) == Some("integer");
        let expected = if whole { "a whole number" } else { "a number" };
        let (least, most) = (&schema["minimum"], &schema["maximum"]);
        let use_range = match range(schema) {
            (Some(least), Some(most)) => format!("use {expected} from {least} to {most}"),
            (Some(least), None) => format!("use {expected} of at least {least}"),
            (None, Some(most)) => format!("use {expected} of at most {most}"),
            (None, None) => format!("use {expected}"),
        };
        let Value::Number(number) = &node.value else {
            let mend = match &node.value {
                Value::Text { text, plain: false } if text.parse::<f64>().is_ok() => {
                    "remove the quotes".to_owned()
                }
                _ => use_range,
            };
            return self.wrong_type(expected, node, at, mend);
        };
        if whole && number.is_f64() {
            return self.wrong_type(expected, node, at, use_range);
        }
        let written = self.written(node);
        if number.as_f64().is_some_and(|value| {
            least.as_f64().is_some_and(|least| value < least)
                || most.as_f64().is_some_and(|most| value > most)
        }) {
            let message = format!("{} cannot be {}", at.name(), short(written));
            self.problem(&node.span, &at.path, message, use_range);
            return None;
        }
        if let Some(mend) = octal(written) {
            let message = format!("`{}` is ambiguous: some read a leading zero as octal", short(written));
            self.problem(&node.span, &at.path, message, mend);
            return None;
        }
        Some(Json::Number(number.clone()))
    }

    fn boolean(&mut self, node: &Node, at: &At<'_>) -> Option<Json> {
        if let Value::Bool(value) = node.value {
            return Some(Json::Bool(value));
        }
        let mend = match &node.value {
            Value::Text { text, plain } => match (old_boolean(text), *plain) {
                (Some(value), _) => format!("write `{value}`"),
                (None, false) if matches!(text.as_str(), "true" | "false") => "remove the quotes".to_owned(),
                _ => "write `true` or `false`".to_owned(),
            },
            _ => "write `true` or `false`".to_owned(),
        };
        self.wrong_type("`true` or `false`", node, at, mend)
    }

    /// A value that is passed through to Synapse, which reads YAML 1.1: what means one thing there and another
    /// here must be written clearly. (`allow_guest_access: no` as text would mean yes.)
    fn free(&mut self, node: &Node, at: &At<'_>) -> Option<Json> {
        match &node.value {
            Value::Null => Some(Json::Null),
            Value::Bool(value) => Some(Json::Bool(*value)),
            Value::Number(number) => {
                let written = self.written(node);
                if let Some(mend) = octal(written) {
                    let message = format!(
                        "`{}` is ambiguous: Synapse would read a leading zero as octal",
                        short(written)
                    );
                    self.problem(&node.span, &at.path, message, mend);
                    return None;
                }
                Some(Json::Number(number.clone()))
            }
            Value::Text { text, plain } => {
                if let (true, Some(value)) = (*plain, old_boolean(text)) {
                    let message =
                        format!("`{text}` without quotes is text in YAML 1.2, but `{value}` for Synapse");
                    self.problem(
                        &node.span,
                        &at.path,
                        message,
                        format!("write `{value}`, or `\"{text}\"` for the text"),
                    );
                    return None;
                }
                Some(Json::String(text.clone()))
            }
            Value::List(items) => {
                let items: Vec<_> =
                    items.iter().enumerate().map(|(index, item)| self.free(item, &at.item(index))).collect();
                items.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
            }
            Value::Map(entries) => {
                let mut object = Map::new();
                let mut complete = true;
                for (key, node) in entries {
                    match self.free(node, &at.below(key)) {
                        Some(value) => drop(object.insert(key.text.clone(), value)),
                        None => complete = false,
                    }
                }
                complete.then_some(Json::Object(object))
            }
            Value::Refused => None,
        }
    }
}

/// Whether the schema of a mapping requires the field.
pub(crate) fn is_required(schema: &Json, field: &str) -> bool {
    schema["required"].as_array().is_some_and(|names| names.iter().any(|name| name == field))
}

/// The bounds of a number, as text.
pub(crate) fn range(schema: &Json) -> (Option<String>, Option<String>) {
    // Through `f64` and its shortest form, as bounds of fractions are written `100.0` in the schema.
    let bound = |name: &str| schema[name].as_f64().map(|bound| bound.to_string());
    (bound("minimum"), bound("maximum"))
}

/// The value itself where it stands on one line, else its key.
pub(crate) fn best_span(source: &str, node: &Node, key: Option<&Key>) -> Range<usize> {
    let Some(key) = key else { return node.span.clone() };
    let between = source.get(key.span.end..node.span.end.max(key.span.end)).unwrap_or("\n");
    if node.span.is_empty() || between.trim_end().contains('\n') {
        key.span.clone()
    } else {
        node.span.clone()
    }
}

/// What a YAML 1.1 reader takes this text for, if it takes it for a boolean.
fn old_boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" => Some(true),
        "no" | "off" => Some(false),
        _ => None,
    }
}

/// The mend for a number that a YAML 1.1 reader takes for octal.
fn octal(written: &str) -> Option<String> {
    let digits = written.strip_prefix(['-', '+']).unwrap_or(written);
    (digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| "write it without the leading zero, or `0o...` for octal".to_owned())
}

/// What a value may look like: its example, else its default.
fn example(root: &Json, schema: &Json) -> Option<String> {
    let (inner, _) = non_null(root, schema);
    let example = [schema, inner].into_iter().find_map(|schema| {
        schema["examples"].get(0).or_else(|| schema.get("default").filter(|d| *d != ""))
    })?;
    match example {
        Json::String(text) => Some(text.clone()),
        Json::Object(_) => None,
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_of_the_schema_compiles() {
        fn walk(json: &Json, seen: &mut usize) {
            match json {
                Json::Object(object) => {
                    if let Some(Json::String(pattern)) = object.get("pattern") {
                        regex_lite::Regex::new(pattern).unwrap();
                        *seen += 1;
                    }
                    object.values().for_each(|value| walk(value, seen));
                }
                Json::Array(items) => items.iter().for_each(|value| walk(value, seen)),
                _ => {}
            }
        }
        let mut seen = 0;
        walk(&crate::schema(), &mut seen);
        assert!(seen >= 5, "{seen} patterns");
    }

    #[test]
    fn names_that_are_alike_are_suggested() {
        let known = ["workers", "server_name", "well_known", "listen"];
        assert_eq!(closest("worker", known), Some("workers"));
        assert_eq!(closest("server-name", known), Some("server_name"));
        assert_eq!(closest("Listen", known), Some("listen"));
        assert_eq!(closest("tpc", ["unix", "tcp", "hosts"]), Some("tcp"));
        assert_eq!(closest("kubernetes", known), None);
    }
}
