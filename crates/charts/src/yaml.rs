//! `values.yaml`: the defaults, each below what it means.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{Values, synapse_schema};

/// The longest line of a comment.
const WIDTH: usize = 110;

/// `values.yaml` of the chart `synapse`.
pub fn values_yaml() -> String {
    let comment = "# The values of the chart `synapse`. Generated from crates/charts/src/values.rs: change them there, then run\n\
         # `UPDATE_FILES=1 cargo test -p matrix-stack-charts`.\n\
         # Set `stack.server_name`, `stack.database.external.host` and `secrets.databasePassword`; the rest can stay.\n";
    let defaults = serde_json::to_value(Values::default()).unwrap_or_default();
    document(comment, &synapse_schema(), &defaults, "stack")
}

/// Defaults below a comment, each below what the schema says it means; but for one part that is described elsewhere.
pub(crate) fn document(comment: &str, schema: &Value, defaults: &Value, whole: &str) -> String {
    let mut out = comment.to_owned();
    mapping(&mut out, schema, schema, defaults, 0, whole);
    out
}

/// A mapping whose fields the schema describes.
fn mapping(out: &mut String, root: &Value, schema: &Value, value: &Value, depth: usize, whole: &str) {
    let indent = "  ".repeat(depth);
    for (name, value) in value.as_object().into_iter().flatten() {
        let field = &schema["properties"][name];
        let described = deref(root, field);
        let text = [field, described].into_iter().find_map(|schema| schema["description"].as_str());
        if depth == 0 {
            out.push('\n');
        }
        for line in text.into_iter().flat_map(|text| wrapped(text, WIDTH - indent.len())) {
            let _ = writeln!(out, "{indent}# {line}");
        }
        let nested = value.as_object().is_some_and(|object| {
            !object.is_empty() && object.keys().all(|key| !described["properties"][key].is_null())
        });
        if nested && name != whole {
            let _ = writeln!(out, "{indent}{name}:");
            mapping(out, root, described, value, depth + 1, whole);
        } else {
            // JSON is YAML.
            let _ = writeln!(out, "{indent}{name}: {value}");
        }
    }
}

fn deref<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let reference = schema["$ref"].as_str().or_else(|| schema["anyOf"][0]["$ref"].as_str());
    match reference.and_then(|path| path.strip_prefix("#/$defs/")) {
        Some(name) => &root["$defs"][name],
        None => schema,
    }
}

/// Text in lines of at most this many characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + word.len() + 1 > width {
            lines.push(word.to_owned());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}
