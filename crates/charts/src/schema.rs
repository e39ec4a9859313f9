//! The JSON Schema of the values, and their reference.

use model::OWNED_SYNAPSE_OPTIONS;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::Values;

/// What of the stack the chart sets itself, by type.
const SET_BY_CHART: &[(&str, &[&str])] = &[
    ("Stack", &["network", "data_dir", "secrets"]),
    ("Listen", &["address", "metrics", "tls"]),
    ("Media", &["store_path", "shared_storage"]),
    ("Synapse", &["python"]),
];

/// The JSON Schema of the values of the chart `synapse`, which Helm holds values against.
pub fn synapse_schema() -> Value {
    let mut schema =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Values>().to_value();
    for (kind, fields) in SET_BY_CHART {
        let Some(properties) = schema["$defs"][kind]["properties"].as_object_mut() else { continue };
        for field in *fields {
            properties.shift_remove(*field);
        }
    }
    let stack = &mut schema["$defs"]["Stack"];
    // What is missing is said by the chart, all at once.
    if let Some(stack) = stack.as_object_mut() {
        stack.shift_remove("required");
    }
    stack["properties"]["workers"]["propertyNames"] = json!({
        "pattern": "^[a-z]([a-z0-9_]{0,38}[a-z0-9])?$",
        "not": { "enum": ["main", "master"] },
    });
    let owned: Vec<&str> = OWNED_SYNAPSE_OPTIONS.iter().map(|(option, _)| *option).collect();
    for kind in ["Synapse", "WorkerGroup"] {
        schema["$defs"][kind]["properties"]["extra"]["propertyNames"] = json!({ "not": { "enum": owned } });
    }
    prune(&mut schema);
    schema
}

/// Removes definitions that nothing refers to any more.
pub(crate) fn prune(schema: &mut Value) {
    loop {
        let text = schema.to_string();
        let Some(definitions) = schema["$defs"].as_object_mut() else { return };
        let before = definitions.len();
        definitions.retain(|name, _| text.contains(&format!("\"#/$defs/{name}\"")));
        if definitions.len() == before {
            return;
        }
    }
}

/// The reference of the values in Markdown, without those of the stack.
pub fn reference() -> String {
    let mut schema = synapse_schema();
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.shift_remove("stack");
    }
    config::fields_markdown(&schema)
}
