//! The `stack.yaml` that `matrix-stack init` writes. Its words are the types' doc comments, its values their
//! defaults and examples.

use std::fmt::Write as _;

use model::{Preset, ServerName};
use serde_json::Value as Json;

use crate::check::{choices, deref, non_null};
use crate::tree::{self, Value};

/// The file to write beside `stack.yaml`, with [`crate::schema`] in it, so that editors complete and check it. The
/// first line of [`init_yaml`] names it.
pub const SCHEMA_FILE: &str = "stack.schema.json";

/// How wide comments may be.
const WIDTH: usize = 100;

/// A commented `stack.yaml`: every section with its explanation, and every field with its default, or with an
/// example where it has none, behind a `#`.
pub fn init_yaml(server_name: &ServerName, preset: Option<Preset>) -> String {
    let root = crate::schema();
    let mut out = format!("# yaml-language-server: $schema={SCHEMA_FILE}\n\n");
    for line in [
        "A Matrix homeserver: what `matrix-stack up` runs. `matrix-stack check` says whether it is right.",
        "Lines with `##` explain. A `#` right before a key shows the default, or an example where there is none: \
         remove it (and that of the section's name above it) to set the field.",
    ] {
        prose(&mut out, line, 0);
    }
    for (name, field) in root["properties"].as_object().into_iter().flatten() {
        out.push('\n');
        let live = match name.as_str() {
            "server_name" => Some(Json::from(server_name.as_str())),
            "preset" => preset.map(|preset| Json::from(preset.name())),
            _ => None,
        };
        Writer { root: &root, out: &mut out, comment: live.is_none(), explained: Vec::new() }.field(
            name,
            field,
            live.as_ref(),
            0,
        );
    }
    out
}

struct Writer<'s, 'o> {
    root: &'s Json,
    out: &'o mut String,
    /// Whether the fields stand behind a `#`.
    comment: bool,
    /// The types whose fields have been explained already in this section.
    explained: Vec<&'s Json>,
}

impl<'s> Writer<'s, '_> {
    fn line(&mut self, indent: usize, text: &str) {
        let mark = if self.comment { "#" } else { "" };
        let _ = writeln!(self.out, "{:indent$}{mark}{text}", "");
    }

    /// A field with its explanation; `value` is what to show, where it is not the field's own example or default.
    fn field(&mut self, name: &str, field: &'s Json, value: Option<&Json>, indent: usize) {
        let (schema, _) = non_null(self.root, field);
        prose(self.out, &description(field, schema), indent);
        for variant in schema["oneOf"].as_array().into_iter().flatten().filter(|_| has_fields(schema)) {
            let choice = match variant["properties"].as_object().and_then(|fields| fields.iter().next()) {
                Some((name, inner)) => format!("{{{name}: {}}}", self.defaults(inner)),
                None => variant["const"].as_str().unwrap_or_default().to_owned(),
            };
            prose(self.out, &format!("- `{choice}`: {}", description(variant, variant)), indent);
        }
        let example = value.or_else(|| field["examples"].get(0)).or_else(|| schema["examples"].get(0));
        if let Some(fields) = schema["properties"].as_object() {
            self.line(indent, &format!("{name}:"));
            let again = self.explained.contains(&schema);
            self.explained.push(schema);
            for (name, field) in fields {
                let example = example.and_then(|example| example.get(name));
                match first(field, example).filter(|_| again) {
                    Some(value) => self.value(name, value, indent + 2),
                    None => self.field(name, field, example, indent + 2),
                }
            }
        } else if let (Json::Object(_), Some((group, value))) = (
            &schema["additionalProperties"],
            example.and_then(Json::as_object).and_then(|example| example.iter().next()),
        ) {
            let inner = deref(self.root, &schema["additionalProperties"]);
            self.line(indent, &format!("{name}:"));
            prose(self.out, &description(inner, inner), indent + 2);
            self.line(indent + 2, &format!("{group}:"));
            for (name, field) in inner["properties"].as_object().into_iter().flatten() {
                self.field(name, field, value.get(name), indent + 4);
            }
        } else {
            let value = first(field, value).or(example).unwrap_or(&Json::Null);
            self.value(name, value, indent);
        }
    }

    /// The fields of a mapping with their defaults, in one line.
    fn defaults(&self, field: &'s Json) -> String {
        let fields = non_null(self.root, field).0["properties"].as_object().into_iter().flatten();
        let fields =
            fields.filter_map(|(name, field)| Some(format!("{name}: {}", flow(field.get("default")?))));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
    }

    fn value(&mut self, name: &str, value: &Json, indent: usize) {
        match value {
            Json::Object(members) if !members.is_empty() => {
                self.line(indent, &format!("{}:", text(name)));
                for (name, value) in members {
                    self.value(name, value, indent + 2);
                }
            }
            _ => self.line(indent, &format!("{}: {}", text(name), flow(value))),
        }
    }
}

/// What to show of a field: the value that is given, else its default, else its example.
fn first<'s>(field: &'s Json, given: Option<&'s Json>) -> Option<&'s Json> {
    given.or_else(|| field.get("default")).or_else(|| field["examples"].get(0))
}

/// Whether some choices are followed by a mapping of their own.
fn has_fields(schema: &Json) -> bool {
    choices(schema).is_some_and(|choices| choices.iter().any(|(_, inner)| inner.is_some()))
}

/// What the field says of itself, else what its type says, in one line.
pub(crate) fn description(field: &Json, schema: &Json) -> String {
    let text = field["description"].as_str().or_else(|| schema["description"].as_str()).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A comment, wrapped.
fn prose(out: &mut String, text: &str, indent: usize) {
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && indent + 3 + line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{:indent$}## {line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(out, "{:indent$}## {line}", "");
    }
}

/// A value in one line.
fn flow(value: &Json) -> String {
    match value {
        Json::String(value) => text(value),
        Json::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Text in YAML: plain where it is text without quotes too, else in quotes as JSON has them.
fn text(text: &str) -> String {
    let letters = |c: char| c.is_ascii_alphanumeric() || "._/-:".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '_')
        && text.chars().all(letters)
        && !text.ends_with(':')
        && matches!(tree::resolve(text), Some(Value::Text { .. }));
    if plain { text.to_owned() } else { Json::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_where_it_would_be_something_else() {
        for (plain, yaml) in [
            ("example.org:8448", "example.org:8448"),
            ("[::1]:80", "\"[::1]:80\""),
            ("1.5", "\"1.5\""),
            ("true", "\"true\""),
            ("", "\"\""),
            ("a: b", "\"a: b\""),
            ("a:", "\"a:\""),
        ] {
            assert_eq!(text(plain), yaml);
        }
    }
}
