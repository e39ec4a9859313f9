//! A rollout, its core by itself and the whole of it against a stand-in for Kubernetes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apiserver;
mod core;
mod shell;
mod stacks;

/// `docs/rollout.md` lists the rules as they are.
#[test]
fn the_page_lists_the_rules() {
    let mut table = String::from("| API group | resource | verbs | what for |\n|---|---|---|---|\n");
    for rollout::Rule { group, resource, verbs, purpose } in rollout::RULES {
        let group = if group.is_empty() { "core" } else { group };
        table += &format!("| {group} | `{resource}` | {} | {purpose} |\n", verbs.join(", "));
    }
    committed::part("docs/rollout.md", "rules", &table);
}
