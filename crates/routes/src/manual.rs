//! The manual's list of endpoints.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use model::{ROLES, Role};

use crate::matcher::{Matcher, Route};
use crate::policy::{normal_form, version};

/// Every endpoint by the role that answers it, as Markdown. Versions of a path that are treated alike share a row, and so
/// do methods.
pub fn endpoints_markdown(matcher: &Matcher) -> String {
    let mut out = String::new();
    for role in ROLES.iter().map(|spec| spec.role) {
        let rows = rows(matcher, role);
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            out,
            "## `{role}`\n\n| methods | path | versions | class | writes | if |\n|---|---|---|---|---|---|\n"
        );
        for ((path, alike), methods) in rows {
            let cell = |text: &str| if text.is_empty() { "–".to_owned() } else { format!("`{text}`") };
            let _ = writeln!(
                out,
                "| {} | `{path}` | {} | `{}` | {} | {} |",
                methods.join(" "),
                alike.versions.join(" "),
                alike.class,
                cell(&alike.writes),
                // Bars would end the cell.
                cell(alike.when).replace('|', "\\|"),
            );
        }
        out.push('\n');
    }
    out
}

/// What the rows of a path differ by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Alike<'m> {
    class: &'static str,
    writes: String,
    when: &'m str,
    versions: Vec<&'static str>,
}

type Rows<'m> = BTreeMap<(String, Alike<'m>), Vec<&'static str>>;

fn rows(matcher: &Matcher, role: Role) -> Rows<'_> {
    let mut versions: BTreeMap<_, Vec<&'static str>> = BTreeMap::new();
    for route in matcher.routes().iter().filter(|route| route.primary() == role) {
        let (Some(method), Some(template)) = (route.method, route.template.as_deref()) else { continue };
        let Route { class, when, streams, .. } = route;
        let writes = streams.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let alike = Alike { class: class.name, writes, when: when.as_str(), versions: Vec::new() };
        versions.entry((path(template), alike, method)).or_default().extend(version(template));
    }
    let mut rows: Rows<'_> = BTreeMap::new();
    for ((path, alike, method), versions) in versions {
        rows.entry((path, Alike { versions, ..alike })).or_default().push(method.name());
    }
    rows
}

/// A path with `…` for its version.
fn path(template: &str) -> String {
    match version(template) {
        None => template.to_owned(),
        Some(version) => {
            let (_, rest) = normal_form(template);
            let prefix = &template[..template.len() - rest.len() - version.len() - 1];
            format!("{prefix}…/{rest}")
        }
    }
}
