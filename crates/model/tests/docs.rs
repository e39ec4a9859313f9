//! The manual's tables of roles and presets are made from the model.

use std::fmt::Write as _;
use std::path::Path;

use model::{Preset, preset_groups, roles_table_markdown};

fn presets_markdown() -> String {
    let mut out = String::new();
    for preset in Preset::LAYOUTS {
        let groups = preset_groups(preset);
        let processes = 1 + groups.iter().map(|(_, _, count)| u32::from(*count)).sum::<u32>();
        let _ = writeln!(out, "### `{preset}`: {processes} Synapse processes\n");
        if preset == Preset::Full {
            out.push_str("Main, and each role in a group of its own name: two instances where there may be many, else one.\n");
            continue;
        }
        out.push_str("| group | instances | roles |\n|---|---|---|\n| (main) | 1 | `main` |\n");
        for (name, roles, count) in groups {
            let roles: Vec<_> = roles.iter().map(|role| format!("`{role}`")).collect();
            let _ = writeln!(out, "| `{name}` | {count} | {} |", roles.join(", "));
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_manual_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/roles.md");
    let before = std::fs::read_to_string(&path).expect("docs/roles.md");
    let mut after = before.clone();
    for (name, table) in [("roles", roles_table_markdown()), ("presets", presets_markdown())] {
        let opening = format!("<!-- generated: {name} -->\n");
        let start = after.find(&opening).expect("the opening mark") + opening.len();
        let end = start + after[start..].find("<!-- end -->").expect("the closing mark");
        after.replace_range(start..end, &table);
    }
    if std::env::var_os("UPDATE_FILES").is_some() {
        std::fs::write(&path, &after).expect("docs/roles.md is writable");
    }
    assert!(
        before == after || std::env::var_os("UPDATE_FILES").is_some(),
        "docs/roles.md is stale: run the tests with UPDATE_FILES=1"
    );
}
