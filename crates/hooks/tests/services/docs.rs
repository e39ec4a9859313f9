//! The manuals' references, from the types.

use hooks::alertmanager;
use hooks::sentry::{self, Route};
use hooks::webhook::{self, Hook};
use schemars::{JsonSchema, schema_for};

#[test]
fn references_are_those_of_the_types() {
    fn hold<T: JsonSchema>(page: &str, name: &str) {
        committed::part(page, name, &config::fields_markdown(&schema_for!(T).to_value()));
    }
    hold::<alertmanager::Config>("docs/hooks.md", "alertmanager");
    hold::<webhook::Config>("docs/hooks-slack.md", "fields");
    hold::<Hook>("docs/hooks-slack.md", "hook");
    hold::<sentry::Config>("docs/hooks-sentry.md", "fields");
    hold::<Route>("docs/hooks-sentry.md", "route");
}
