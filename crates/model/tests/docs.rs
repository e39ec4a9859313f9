//! The manual's tables of roles and presets are made from the model.

use std::fmt::Write as _;

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
    committed::part("docs/roles.md", "roles", &roles_table_markdown());
    committed::part("docs/roles.md", "presets", &presets_markdown());
}
