//! The charts' generated files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

fn pretty(value: &serde_json::Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap())
}

#[test]
fn the_schema_of_the_values_is_committed() {
    committed::file("charts/synapse/values.schema.json", &pretty(&charts::synapse_schema()));
}

#[test]
fn the_default_values_are_committed() {
    committed::file("charts/synapse/values.yaml", &charts::values_yaml());
}

#[test]
fn what_templates_know_of_the_model_is_committed() {
    committed::file("charts/synapse/files/facts.json", &pretty(&charts::facts()));
}

#[test]
fn the_reference_is_committed() {
    committed::part("docs/kubernetes.md", "values", &charts::reference());
}

#[test]
fn what_templates_have_in_common_is_committed() {
    committed::file("charts/synapse/templates/_common.tpl", charts::COMMON);
}

#[test]
fn the_charts_of_companions_are_committed() {
    for chart in charts::companion_charts() {
        for (path, text) in chart.files() {
            committed::file(&format!("charts/{}/{path}", chart.name), &text);
        }
    }
}
