//! GitLab's webhooks and system hooks.

use serde_json::Value;

use super::{Formatted, commits, excerpt, first_line, short_ref};
use crate::html::{Html, cut};
use crate::json::Look as _;

pub(super) fn format(payload: &Value) -> Formatted {
    let kind = payload.any(&["/object_kind", "/event_name"]);
    let attributes = payload.get("object_attributes").unwrap_or(&Value::Null);
    let mut html = Html::default();
    let project =
        payload.any(&["/project/path_with_namespace", "/project/name", "/project_name", "/repository/name"]);
    if !project.is_empty() {
        let url = payload.any(&["/project/web_url", "/repository/homepage"]);
        html.tag("strong", |html| {
            html.link(&url, &project);
        });
        html.text(" ");
    }
    html.text(&payload.any(&["/user/name", "/user_name", "/user_username"])).text(" ");
    match &*kind {
        "push" | "tag_push" => push(&mut html, payload),
        "issue" | "work_item" | "merge_request" => {
            let action = match &*attributes.text("/action") {
                // Every edit, label and push.
                "update" => return Formatted::Quiet,
                "open" => "opened",
                "close" => "closed",
                "reopen" => "reopened",
                "merge" => "merged",
                "approved" | "approval" => "approved",
                "unapproved" | "unapproval" => "took back the approval of",
                _ => "changed",
            };
            let (name, mark) = if kind == "merge_request" { ("merge request", "!") } else { ("issue", "#") };
            html.text(&format!("{action} {name} "));
            numbered(&mut html, mark, attributes);
            if action == "opened" {
                excerpt(&mut html, &attributes.text("/description"));
            }
        }
        "note" => {
            html.link(&attributes.text("/url"), "commented");
            for (place, mark) in [("/merge_request", "!"), ("/issue", "#"), ("/snippet", "$")] {
                if let Some(about) = payload.pointer(place).filter(|about| about.is_object()) {
                    html.text(" on ");
                    numbered(&mut html, mark, about);
                }
            }
            if let Some(commit) = payload.get("commit").filter(|commit| commit.is_object()) {
                html.text(" on ")
                    .text(cut(&commit.text("/id"), 8))
                    .text(" ")
                    .text(first_line(&commit.text("/message")));
            }
            excerpt(&mut html, &attributes.text("/note"));
        }
        "pipeline" | "build" | "job" | "deployment" => return run(html, &kind, payload, attributes),
        "release" => {
            let action = payload.text("/action");
            html.text(&format!("{action}d release "))
                .link(&payload.text("/url"), &payload.any(&["/name", "/tag"]));
            if action == "create" {
                excerpt(&mut html, &payload.text("/description"));
            }
        }
        "wiki_page" => {
            html.text(&format!("{}d wiki page ", attributes.text("/action")));
            html.link(&attributes.text("/url"), &attributes.text("/title"));
        }
        other => {
            html.text(&other.replace('_', " "));
            let action = attributes.any(&["/action", "/state", "/status"]);
            if !action.is_empty() {
                html.text(" ").text(&action);
            }
            let title = attributes.any(&["/title", "/name"]);
            if !title.is_empty() {
                html.text(": ").link(&attributes.text("/url"), first_line(&title));
            }
        }
    }
    html.into()
}

fn push(html: &mut Html, payload: &Value) {
    const NOTHING: &str = "0000000000000000000000000000000000000000";
    let name = payload.text("/ref");
    let kind = if name.starts_with("refs/tags/") { "tag" } else { "branch" };
    let all = payload.list("/commits");
    let total = payload.text("/total_commits_count").parse().unwrap_or(all.len()).clamp(all.len(), 1 << 20);
    if payload.text("/after") == NOTHING {
        html.text(&format!("deleted {kind} "));
    } else if payload.text("/before") == NOTHING {
        html.text(&format!("pushed new {kind} "));
    } else {
        let count = if total == 1 { "a commit".to_owned() } else { format!("{total} commits") };
        let (before, after) = (payload.text("/before"), payload.text("/after"));
        let url = format!("{}/-/compare/{before}...{after}", payload.text("/project/web_url"));
        html.text("pushed ").link(&url, &count).text(" to ");
    }
    html.tag("code", |html| {
        html.text(short_ref(&name));
    });
    commits(html, all, total);
}

/// How a pipeline, a job or a deployment ended.
fn run(mut html: Html, kind: &str, payload: &Value, attributes: &Value) -> Formatted {
    let status = match kind {
        "pipeline" => attributes.text("/status"),
        "deployment" => payload.text("/status"),
        _ => payload.text("/build_status"),
    };
    let mark = match &*status {
        "success" => "✅",
        "failed" => "❌",
        "canceled" | "skipped" => "⚪",
        _ => return Formatted::Quiet,
    };
    html.text(mark).text(" ");
    let web = payload.text("/project/web_url").into_owned();
    match kind {
        "pipeline" => {
            let id = attributes.text("/id");
            let url = attributes.text("/url");
            let url = if url.is_empty() { format!("{web}/-/pipelines/{id}") } else { url.into_owned() };
            html.link(&url, &format!("pipeline #{id}"));
        }
        "deployment" => {
            html.text("deployment to ");
            html.link(
                &payload.any(&["/deployable_url", "/environment_external_url"]),
                &payload.text("/environment"),
            );
        }
        _ => {
            let id = payload.text("/build_id");
            html.link(&format!("{web}/-/jobs/{id}"), &format!("job {}", payload.text("/build_name")));
        }
    }
    html.text(": ").strong(&status);
    let name = if kind == "pipeline" { attributes.text("/ref") } else { payload.text("/ref") };
    if !name.is_empty() {
        html.text(" on ").tag("code", |html| {
            html.text(&name);
        });
    }
    if let Ok(seconds) = attributes.any(&["/duration"]).parse::<f64>() {
        html.text(&format!(" after {seconds:.0} s"));
    }
    html.into()
}

fn numbered(html: &mut Html, mark: &str, about: &Value) {
    let title = about.text("/title");
    html.link(
        &about.any(&["/url", "/web_url"]),
        &format!("{mark}{} {}", about.any(&["/iid", "/id"]), first_line(&title)),
    );
}
