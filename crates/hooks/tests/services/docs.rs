//! The manuals' references, from the types.

use hooks::alertmanager::Config;
use hooks::sentry::{Projects, Route};
use hooks::webhook::{Hook, Senders};
use schemars::{JsonSchema, schema_for};

#[test]
fn references_are_those_of_the_types() {
    fn hold<T: JsonSchema>(page: &str, name: &str) {
        committed::part(page, name, &config::fields_markdown(&schema_for!(T).to_value()));
    }
    hold::<Config>("docs/hooks.md", "alertmanager");
    hold::<Senders>("docs/hooks-slack.md", "fields");
    hold::<Hook>("docs/hooks-slack.md", "hook");
    hold::<Projects>("docs/hooks-sentry.md", "fields");
    hold::<Route>("docs/hooks-sentry.md", "route");
}
