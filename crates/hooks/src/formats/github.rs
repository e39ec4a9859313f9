//! GitHub's webhooks, which Gitea and Forgejo send too.

use serde_json::Value;

use super::{Formatted, commits, excerpt, first_line, short_ref};
use crate::html::{Html, cut};
use crate::json::Look as _;

pub(super) fn format(event: &str, payload: &Value) -> Formatted {
    let action = payload.text("/action");
    let mut html = Html::default();
    let repository = payload.any(&["/repository/full_name", "/organization/login"]);
    if !repository.is_empty() {
        let url = payload.any(&["/repository/html_url"]);
        html.tag("strong", |html| {
            html.link(&url, &repository);
        });
        html.text(" ");
    }
    html.text(&payload.any(&["/sender/login", "/pusher/name", "/pusher/login"])).text(" ");
    match discussed(&mut html, event, &action, payload) {
        Discussed::Shown => return html.into(),
        Discussed::Quiet => return Formatted::Quiet,
        Discussed::Other => {}
    }
    match event {
        "push" => push(&mut html, payload),
        "release" => {
            // One release comes as created, published and released.
            if !matches!(&*action, "published" | "deleted" | "") {
                return Formatted::Quiet;
            }
            let name = payload.any(&["/release/name", "/release/tag_name"]);
            html.text(&action).text(" release ").link(&payload.text("/release/html_url"), &name);
            excerpt(&mut html, &payload.text("/release/body"));
        }
        "create" | "delete" => {
            html.text(if event == "create" { "created " } else { "deleted " });
            html.text(&payload.text("/ref_type")).text(" ").tag("code", |html| {
                html.text(&payload.text("/ref"));
            });
        }
        "workflow_run" | "workflow_job" | "check_run" | "check_suite" => {
            // The run stands for its jobs.
            if action != "completed" || event != "workflow_run" {
                return Formatted::Quiet;
            }
            let run = payload.get(event).unwrap_or(&Value::Null);
            result(&mut html, &run.text("/name"), &run.text("/html_url"), &run.text("/conclusion"));
            html.text(" on ").tag("code", |html| {
                html.text(&run.text("/head_branch"));
            });
        }
        "status" => {
            let state = payload.text("/state");
            if state == "pending" {
                return Formatted::Quiet;
            }
            result(&mut html, &payload.text("/context"), &payload.text("/target_url"), &state);
            html.text(" ").text(&payload.text("/description"));
        }
        "deployment_status" => {
            let state = payload.text("/deployment_status/state");
            let url = payload.any(&["/deployment_status/environment_url", "/deployment_status/target_url"]);
            result(&mut html, &payload.text("/deployment/environment"), &url, &state);
        }
        "fork" => {
            html.text("forked it as ");
            html.link(&payload.text("/forkee/html_url"), &payload.text("/forkee/full_name"));
        }
        "star" | "watch" => {
            html.text(if action == "deleted" { "took back a star" } else { "starred it" });
        }
        "ping" => {
            html.text("connected this webhook. ").tag("em", |html| {
                html.text(&payload.text("/zen"));
            });
        }
        other => {
            let what = if other.is_empty() { "an event".to_owned() } else { other.replace('_', " ") };
            html.text(&what);
            if !action.is_empty() {
                html.text(" ").text(&action.replace('_', " "));
            }
            let place = format!("/{other}");
            if payload.has(&place) {
                subject(&mut html, ": ", payload, &place);
            }
        }
    }
    html.into()
}

/// Whether an event belongs to something that people discuss.
enum Discussed {
    /// It does, and is shown.
    Shown,
    /// It does, and is not worth showing.
    Quiet,
    /// It does not.
    Other,
}

/// Adds what happened to a pull request, an issue or a discussion.
fn discussed(html: &mut Html, event: &str, action: &str, payload: &Value) -> Discussed {
    match event {
        "pull_request" => {
            if matches!(
                action,
                "synchronize" | "labeled" | "unlabeled" | "edited" | "assigned" | "unassigned"
            ) {
                return Discussed::Quiet;
            }
            let merged = payload.text("/pull_request/merged") == "true";
            html.text(if action == "closed" && merged { "merged" } else { action });
            subject(html, " pull request ", payload, "/pull_request");
            if action == "opened" {
                excerpt(html, &payload.text("/pull_request/body"));
            }
        }
        "issues" => {
            if matches!(action, "labeled" | "unlabeled" | "edited" | "milestoned" | "demilestoned") {
                return Discussed::Quiet;
            }
            html.text(action);
            subject(html, " issue ", payload, "/issue");
            if action == "opened" {
                excerpt(html, &payload.text("/issue/body"));
            }
        }
        "issue_comment" | "commit_comment" | "pull_request_review_comment" | "discussion_comment" => {
            if matches!(action, "edited" | "deleted") {
                return Discussed::Quiet;
            }
            html.link(&payload.text("/comment/html_url"), "commented");
            for about in ["/issue", "/pull_request", "/discussion"] {
                if payload.has(about) {
                    subject(html, " on ", payload, about);
                    break;
                }
            }
            if payload.has("/comment/commit_id") && event == "commit_comment" {
                html.text(" on ").text(cut(&payload.text("/comment/commit_id"), 8));
            }
            excerpt(html, &payload.text("/comment/body"));
        }
        "pull_request_review" => {
            if matches!(action, "edited" | "dismissed") {
                return Discussed::Quiet;
            }
            let state = payload.text("/review/state").replace('_', " ");
            html.link(&payload.text("/review/html_url"), if state.is_empty() { "reviewed" } else { &state });
            subject(html, " ", payload, "/pull_request");
            excerpt(html, &payload.text("/review/body"));
        }
        "discussion" => {
            html.text(action);
            subject(html, " discussion ", payload, "/discussion");
        }
        _ => return Discussed::Other,
    }
    Discussed::Shown
}

fn push(html: &mut Html, payload: &Value) {
    let all = payload.list("/commits");
    let name = payload.text("/ref");
    let kind = if name.starts_with("refs/tags/") { "tag " } else { "" };
    if payload.text("/deleted") == "true" {
        html.text("deleted ").text(kind);
    } else if all.is_empty() {
        html.text("pushed ").text(kind);
    } else {
        let forced = if payload.text("/forced") == "true" { "force-pushed" } else { "pushed" };
        let count = if all.len() == 1 { "a commit".to_owned() } else { format!("{} commits", all.len()) };
        html.text(forced).text(" ").link(&payload.any(&["/compare", "/compare_url"]), &count).text(" to ");
    }
    html.tag("code", |html| {
        html.text(short_ref(&name));
    });
    commits(html, all, all.len());
}

/// Adds an issue, a pull request or the like: its number and title, linked.
fn subject(html: &mut Html, before: &str, payload: &Value, place: &str) {
    let subject = payload.pointer(place).unwrap_or(&Value::Null);
    let number = subject.text("/number");
    let title = subject.any(&["/title", "/name"]);
    let label = if number.is_empty() {
        first_line(&title).to_owned()
    } else {
        format!("#{number} {}", first_line(&title))
    };
    html.text(before).link(&subject.text("/html_url"), &label);
}

/// Adds how something ended.
fn result(html: &mut Html, name: &str, url: &str, result: &str) {
    let mark = match result {
        "success" => "✅",
        "failure" | "error" | "timed_out" | "startup_failure" => "❌",
        _ => "⚪",
    };
    html.text(mark).text(" ").link(url, name).text(": ").strong(&result.replace('_', " "));
}
