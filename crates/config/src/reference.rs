//! The configuration reference, `docs/configuration.md`, from the JSON Schema.

use std::collections::HashMap;
use std::fmt::Write as _;

use model::OWNED_SYNAPSE_OPTIONS;
use serde_json::Value as Json;

use crate::check::{choices, is_required, non_null, range, type_name};
use crate::init::description;

/// The reference of `stack.yaml` in Markdown: every field with its path, type, default and meaning.
pub fn reference_markdown() -> String {
    let root = crate::schema();
    let mut out = String::from(
        "# Configuration: `stack.yaml`\n\
         \n\
         <!-- Generated from the types in crates/model/src/stack.rs: change their doc comments, then run\n     \
         `UPDATE_FILES=1 cargo test -p matrix-stack-config`. -->\n\
         \n\
         `stack.yaml` describes a whole homeserver. Only `server_name` is required; `matrix-stack init` writes a file\n\
         with everything else in comments, and `matrix-stack check` shows all problems of a file at once, each with its\n\
         line. The format is YAML 1.2 without anchors, aliases, merge keys and tags. Unknown keys are refused. Relative\n\
         paths count from the file's directory.\n\
         \n\
         ```yaml\n\
         server_name: example.org\n\
         public_base_url: https://matrix.example.org\n\
         preset: medium\n\
         workers:\n  sync:\n    count: 3\n\
         ```\n",
    );
    let sections = root["properties"].as_object();
    let is_section = |schema: &Json| {
        let schema = non_null(&root, schema).0;
        type_name(schema) == Some("object")
            || choices(schema).is_some_and(|all| all.iter().any(|(_, inner)| inner.is_some()))
    };
    out.push_str("\n## The stack\n\n");
    let mut table = Table::new(&root);
    for (name, field) in sections.into_iter().flatten().filter(|(_, field)| !is_section(field)) {
        table.field(name, field, is_required(&root, name));
    }
    out.push_str(&table.finish());
    for (name, field) in sections.into_iter().flatten().filter(|(_, field)| is_section(field)) {
        let _ = write!(out, "\n## `{name}`\n\n{}\n\n", description(field, field));
        let mut table = Table::new(&root);
        table.inside(name, field);
        out.push_str(&table.finish());
    }
    for (name, schema) in
        root["$defs"].as_object().into_iter().flatten().filter(|(_, schema)| is_named_choice(schema))
    {
        let _ =
            write!(out, "\n## {name}\n\n{}\n\n| value | meaning |\n|---|---|\n", description(schema, schema));
        for variant in schema["oneOf"].as_array().into_iter().flatten() {
            let value = variant["const"].as_str().unwrap_or_default();
            let _ = writeln!(out, "| `{value}` | {} |", cell(&description(variant, variant)));
        }
    }
    out.push_str(
        "\n## Synapse options that matrix-stack sets itself\n\n\
         They are refused in `synapse.extra` and `workers.NAME.extra`.\n\n| option | instead |\n|---|---|\n",
    );
    for (option, instead) in OWNED_SYNAPSE_OPTIONS {
        let _ = writeln!(out, "| `{option}` | {instead} |");
    }
    out
}

/// All fields of a schema as a table in Markdown, for the manuals of other things that are written as the stack is.
pub fn fields_markdown(schema: &Json) -> String {
    let mut table = Table::new(schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        table.field(name, field, is_required(schema, name));
    }
    table.finish()
}

/// Whether the schema is an enumeration whose values have explanations of their own.
fn is_named_choice(schema: &Json) -> bool {
    schema["oneOf"]
        .as_array()
        .is_some_and(|variants| variants.iter().all(|variant| variant["const"].is_string()))
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A table of fields.
struct Table<'s> {
    root: &'s Json,
    rows: Vec<String>,
    /// Where a type's fields stand already in this table.
    seen: HashMap<&'s str, String>,
}

impl<'s> Table<'s> {
    fn new(root: &'s Json) -> Self {
        Self { root, rows: Vec::new(), seen: HashMap::new() }
    }

    fn finish(self) -> String {
        format!("| field | type | default | meaning |\n|---|---|---|---|\n{}\n", self.rows.join("\n"))
    }

    /// A field and the fields inside it.
    fn field(&mut self, path: &str, field: &'s Json, required: bool) {
        let schema = non_null(self.root, field).0;
        let meaning = description(field, schema);
        let (meaning, default) = match meaning.split_once(" Default: ") {
            Some((meaning, default)) => (meaning.to_owned(), default.trim_end_matches('.').to_owned()),
            None if required => (meaning, "required".to_owned()),
            None => {
                let default = match field.get("default") {
                    Some(Json::Object(_)) | None => String::new(),
                    Some(Json::String(text)) => format!("`{text}`").replace("``", "empty"),
                    Some(value) => format!("`{value}`"),
                };
                (meaning, default)
            }
        };
        let named = type_ref(field);
        let (kind, inside) = match named.and_then(|name| self.seen.get(name)) {
            Some(same) => (format!("like `{same}`"), false),
            None => (self.kind(field), true),
        };
        self.rows.push(format!("| `{path}` | {} | {} | {} |", cell(&kind), cell(&default), cell(&meaning)));
        if inside {
            if let Some(name) = named {
                self.seen.insert(name, path.to_owned());
            }
            self.inside(path, field);
        }
    }

    /// The fields inside a field.
    fn inside(&mut self, path: &str, field: &'s Json) {
        let schema = non_null(self.root, field).0;
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            self.field(&format!("{path}.{name}"), inner, is_required(schema, name));
        }
        if schema["additionalProperties"].is_object() {
            self.field(&format!("{path}.NAME"), &schema["additionalProperties"], false);
        }
        for variant in schema["oneOf"].as_array().into_iter().flatten().filter(|_| !is_named_choice(schema)) {
            if let Some(value) = variant["const"].as_str() {
                let meaning = cell(&description(variant, variant));
                self.rows.push(format!("| `{path}: {value}` | | | {meaning} |"));
            }
            for (name, inner) in variant["properties"].as_object().into_iter().flatten() {
                self.rows.push(format!(
                    "| `{path}.{name}` | mapping | | {} |",
                    cell(&description(variant, variant))
                ));
                self.inside(&format!("{path}.{name}"), inner);
            }
        }
    }

    /// A type in words.
    fn kind(&self, field: &'s Json) -> String {
        let schema = non_null(self.root, field).0;
        if let Some(choices) = choices(schema) {
            return match type_ref(field).filter(|_| is_named_choice(schema)) {
                Some(name) => format!("[{name}](#{})", name.to_lowercase()),
                None => choices.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", "),
            };
        }
        let range = match range(schema) {
            (Some(least), Some(most)) => format!(", {least} to {most}"),
            (Some(least), None) => format!(", at least {least}"),
            (None, Some(most)) => format!(", at most {most}"),
            (None, None) => String::new(),
        };
        match type_name(schema) {
            Some("boolean") => "`true` or `false`".to_owned(),
            Some("integer") => format!("whole number{range}"),
            Some("number") => format!("number{range}"),
            Some("string") if schema["format"] == "ip" => "IP address".to_owned(),
            Some("string") => "text".to_owned(),
            Some("array") => format!("list of {}", self.kind(&schema["items"])),
            Some("object") if schema["additionalProperties"] == true => "mapping of anything".to_owned(),
            _ => "mapping".to_owned(),
        }
    }
}

/// The name of a field's type, where it has one.
fn type_ref(field: &Json) -> Option<&str> {
    let reference = field["$ref"].as_str().or_else(|| field["anyOf"][0]["$ref"].as_str())?;
    reference.strip_prefix("#/$defs/")
}
