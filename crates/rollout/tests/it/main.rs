//! A rollout, its core by itself and the whole of it against a stand-in for Kubernetes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apiserver;
mod core;
mod shell;
mod stacks;

/// `docs/rollout.md` lists the rules as they are.
#[test]
fn the_page_lists_the_rules() {
    let row = |rule: &rollout::Rule| {
        let group = if rule.group.is_empty() { "core" } else { rule.group };
        format!("| {group} | `{}` | {} | {} |", rule.resource, rule.verbs.join(", "), rule.purpose)
    };
    let head = ["| API group | resource | verbs | what for |".to_owned(), "|---|---|---|---|".to_owned()];
    let table: Vec<String> = head.into_iter().chain(rollout::RULES.iter().map(row)).collect();
    committed::part("docs/rollout.md", "rules", &table.join("\n"));
}
