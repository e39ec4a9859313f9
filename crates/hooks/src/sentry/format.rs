//! What Sentry sends, as messages.

use serde_json::Value;

use crate::Message;
use crate::html::{Html, cut};
use crate::json::Look as _;

/// What a payload is about: what routes ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) resource: String,
    pub(super) project: String,
    pub(super) project_id: String,
    pub(super) level: String,
    pub(super) environment: String,
}

/// What becomes of a payload: for the rooms of what it is about, messages in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Formatted {
    pub(super) about: About,
    pub(super) messages: Vec<Message>,
}

/// The messages of a payload. `resource` is that of Sentry's header; the legacy plugin sends none.
pub(super) fn format(resource: &str, payload: &Value, include_tags: &[String]) -> Formatted {
    let resource = if resource.is_empty() { guess(payload) } else { resource };
    let data = payload.get("data").unwrap_or(&Value::Null);
    let action = payload.text("/action");
    let actor = payload.any(&["/actor/name", "/actor/id"]);
    let actor = if payload.text("/actor/type") == "application" { "" } else { &*actor };
    let (about, messages) = match resource {
        "issue" => issue(&action, actor, data.get("issue").unwrap_or(&Value::Null)),
        "event_alert" => {
            let rule = data.any(&["/triggered_rule", "/issue_alert/title"]);
            event(data.get("event").unwrap_or(&Value::Null), &rule, include_tags)
        }
        "error" => event(data.get("error").unwrap_or(&Value::Null), "", include_tags),
        "metric_alert" => metric(&action, data),
        "comment" => comment(&action, actor, data),
        "installation" => {
            let mut html = Html::default();
            html.strong("Sentry").text(": the integration was ");
            html.text(if action == "deleted" { "removed from" } else { "installed for" }).text(" ");
            html.text(&data.any(&["/installation/organization/slug", "/installation/app/slug"]));
            (About::default(), vec![html.message()])
        }
        "legacy" => legacy(payload, include_tags),
        other => unknown(other, &action, data),
    };
    Formatted { about: About { resource: resource.to_owned(), ..about }, messages }
}

fn guess(payload: &Value) -> &'static str {
    for (place, resource) in [
        ("/data/metric_alert", "metric_alert"),
        ("/data/comment_id", "comment"),
        ("/data/event", "event_alert"),
        ("/data/error", "error"),
        ("/data/issue", "issue"),
        ("/data/installation", "installation"),
        ("/event", "legacy"),
        ("/project_slug", "legacy"),
    ] {
        if payload.has(place) {
            return resource;
        }
    }
    ""
}

/// The name of an issue's message.
fn key(issue: &str) -> Option<String> {
    (!issue.is_empty()).then(|| format!("issue/{}", cut(issue, 64)))
}

/// Something about an issue: in its thread, which it begins where there is none.
fn of_issue(message: Message, issue: &str) -> Message {
    Message { key: key(issue), thread: key(issue), ..message }
}

fn issue(action: &str, actor: &str, issue: &Value) -> (About, Vec<Message>) {
    let id = issue.text("/id");
    let about = About {
        project: issue.any(&["/project/slug", "/project/name"]).into_owned(),
        project_id: issue.text("/project/id").into_owned(),
        level: issue.text("/level").into_owned(),
        ..About::default()
    };
    let mut html = Html::default();
    match action {
        "created" => {
            level(&mut html, &about.level);
            describe(&mut html, &about, "", issue);
            (about, vec![Message { key: key(&id), ..html.message() }])
        }
        "resolved" => {
            html.text("✅ ").tag("strong", |html| {
                html.coloured(GREEN, "RESOLVED");
            });
            describe(&mut html, &about, "", issue);
            by(&mut html, "resolved", actor);
            for (place, what) in
                [("/statusDetails/inRelease", " in release "), ("/statusDetails/inCommit/id", " in commit ")]
            {
                if issue.has(place) {
                    html.text(what).text(&issue.text(place));
                }
            }
            if issue.text("/statusDetails/inNextRelease") == "true" {
                html.text(" in the next release");
            }
            (about, vec![Message { key: key(&id), edits: key(&id), ..html.message() }])
        }
        _ => {
            let what = match action {
                "assigned" => {
                    let whom = issue.any(&["/assignedTo/name", "/assignedTo/email", "/assignedTo/id"]);
                    if whom.is_empty() {
                        "👤 assigned".to_owned()
                    } else {
                        format!("👤 assigned to {whom}")
                    }
                }
                "archived" | "ignored" => "🔕 archived".to_owned(),
                "unresolved" => match &*issue.text("/substatus") {
                    "regressed" => "🔁 regressed".to_owned(),
                    "escalating" => "📈 escalating".to_owned(),
                    _ => "🔁 unresolved again".to_owned(),
                },
                other => other.replace('_', " "),
            };
            html.strong(&what);
            by(&mut html, "", actor);
            describe(&mut html, &about, "", issue);
            (about, vec![of_issue(html.message(), &id)])
        }
    }
}

/// An event that an alert or the resource `error` brings.
fn event(event: &Value, rule: &str, include_tags: &[String]) -> (About, Vec<Message>) {
    let url = event.any(&["/web_url", "/url"]);
    let about = About {
        project: project_of(event),
        project_id: event.text("/project").into_owned(),
        level: first(&[event.text("/level").into(), tag(event, "level")]),
        environment: first(&[event.text("/environment").into(), tag(event, "environment")]),
        ..About::default()
    };
    let release = first(&[event.any(&["/release", "/release/version"]).into(), tag(event, "release")]);
    let mut html = Html::default();
    level(&mut html, &about.level);
    describe(&mut html, &about, &release, event);
    if let Some(exception) = event.list("/exception/values").last() {
        // Sentry has the newest frame last.
        let frames = exception.list("/stacktrace/frames");
        let frame =
            frames.iter().rev().find(|frame| frame.text("/in_app") == "true").or_else(|| frames.last());
        if let Some(frame) = frame {
            let file = frame.any(&["/filename", "/abs_path", "/module"]);
            html.fresh_line().text("at ").tag("code", |html| {
                html.text(&file).text(":").text(&frame.text("/lineno"));
                let function = frame.text("/function");
                if !function.is_empty() {
                    html.text(" ").text(&function);
                }
            });
        }
    }
    tags(&mut html, event, include_tags);
    if !rule.is_empty() {
        html.fresh_line().text("alert: ").tag("em", |html| {
            html.text(rule);
        });
    }
    let id =
        first(&[event.text("/issue_id").into(), event.text("/groupID").into(), issue_in(&url).to_owned()]);
    (about, vec![of_issue(html.message(), &id)])
}

/// An alert on a metric: its later states are in the thread of the first, and its end takes the first one's place.
fn metric(action: &str, data: &Value) -> (About, Vec<Message>) {
    let alert = data.get("metric_alert").unwrap_or(&Value::Null);
    let project = ["/projects/0", "/alert_rule/projects/0"].map(|place| alert.text(place));
    let about = About {
        project: project.iter().find(|project| !project.is_empty()).cloned().unwrap_or_default().into_owned(),
        level: action.to_owned(),
        environment: alert.text("/alert_rule/environment").into_owned(),
        ..About::default()
    };
    let mut html = Html::default();
    let (mark, colour) = match action {
        "resolved" => ("✅", GREEN),
        "warning" => ("⚠️", ORANGE),
        _ => ("🔥", RED),
    };
    html.text(mark).text(" ").tag("strong", |html| {
        html.coloured(colour, &action.to_uppercase());
    });
    let title = data.any(&["/description_title", "/metric_alert/title", "/metric_alert/alert_rule/name"]);
    // Sentry's title begins with the action too.
    let (before, after) = title.split_once(": ").unwrap_or(("", &title));
    let title = if before.eq_ignore_ascii_case(action) { after } else { &title };
    html.text(": ");
    if !about.project.is_empty() {
        html.text(&about.project).text(" | ");
    }
    html.link(&data.text("/web_url"), title);
    // Sentry writes line breaks as `\n` in its text.
    let text = data.text("/description_text").replace("\\n", "\n");
    html.fresh_line().text(&text);
    let id = alert.any(&["/id", "/identifier"]);
    let key = (!id.is_empty()).then(|| format!("metric/{}", cut(&id, 64)));
    let message = Message { key: key.clone(), ..html.message() };
    let message = if action == "resolved" {
        Message { edits: key, ..message }
    } else {
        Message { thread: key, ..message }
    };
    (about, vec![message])
}

fn comment(action: &str, actor: &str, data: &Value) -> (About, Vec<Message>) {
    let about = About { project: data.text("/project_slug").into_owned(), ..About::default() };
    if action != "created" {
        return (about, Vec::new());
    }
    let mut html = Html::default();
    html.text("💬 ").strong(if actor.is_empty() { "somebody" } else { actor }).text(" commented");
    html.tag("blockquote", |html| {
        html.markdown(&data.text("/comment"));
    });
    (about, vec![of_issue(html.message(), &data.text("/issue_id"))])
}

/// What the legacy plugin "Webhooks" sends.
fn legacy(payload: &Value, include_tags: &[String]) -> (About, Vec<Message>) {
    let event = payload.get("event").unwrap_or(&Value::Null);
    let about = About {
        project: payload.any(&["/project_slug", "/project"]).into_owned(),
        project_id: event.text("/project").into_owned(),
        level: payload.any(&["/level", "/event/level"]).into_owned(),
        environment: first(&[event.text("/environment").into(), tag(event, "environment")]),
        ..About::default()
    };
    let release = first(&[event.text("/release").into(), tag(event, "release")]);
    let mut html = Html::default();
    level(&mut html, &about.level);
    let shown = serde_json::json!({
        "title": payload.any(&["/event/title", "/message", "/event/message"]),
        "culprit": payload.any(&["/culprit", "/event/culprit"]),
        "web_url": payload.text("/url"),
    });
    let name = About {
        project: payload.any(&["/project_name", "/project_slug", "/project"]).into_owned(),
        ..about.clone()
    };
    describe(&mut html, &name, &release, &shown);
    let header = |wanted: &str| {
        let headers = event.list("/request/headers");
        let found = headers.iter().take(200).find(|header| header.text("/0").eq_ignore_ascii_case(wanted));
        found.map(|header| header.text("/1").into_owned()).unwrap_or_default()
    };
    let browser = [event.text("/contexts/browser/name"), event.text("/contexts/browser/version")].join(" ");
    for (name, value) in [
        ("url", event.text("/request/url").into_owned()),
        ("referer", header("referer")),
        ("browser", browser),
    ] {
        if !value.trim().is_empty() {
            html.fresh_line().strong(name).text(": ").text(cut(&value, 500));
        }
    }
    tags(&mut html, event, include_tags);
    (about, vec![of_issue(html.message(), &payload.text("/id"))])
}

/// A resource that is newer than this: a line, if there is anything to say.
fn unknown(resource: &str, action: &str, data: &Value) -> (About, Vec<Message>) {
    let about = About {
        project: data.any(&["/issue/project/slug", "/project/slug", "/project_slug"]).into_owned(),
        project_id: data.any(&["/issue/project/id", "/project/id"]).into_owned(),
        level: data.text("/issue/level").into_owned(),
        ..About::default()
    };
    let title = data.any(&["/alert/title", "/issue/title", "/title", "/name"]);
    if title.is_empty() {
        return (about, Vec::new());
    }
    let mut html = Html::default();
    html.strong(&cut(resource, 100).replace('_', " "))
        .text(" ")
        .text(&cut(action, 100).replace('_', " "))
        .text(": ");
    html.link(&data.any(&["/alert/web_url", "/issue/web_url", "/web_url", "/alert/url"]), &title);
    (about, vec![of_issue(html.message(), &data.any(&["/issue/id", "/issue_id", "/group_id"]))])
}

const RED: &str = "#ff0000";
const ORANGE: &str = "#ff6e2d";
const GREEN: &str = "#2eb886";

fn level(html: &mut Html, level: &str) {
    let colour = if matches!(level, "error" | "fatal" | "") { RED } else { ORANGE };
    let level = if level.is_empty() { "error" } else { cut(level, 30) };
    html.tag("strong", |html| {
        html.coloured(colour, &level.to_uppercase());
    });
}

/// Adds where something happened and what: project, environment, release, the linked title, and the culprit below.
fn describe(html: &mut Html, about: &About, release: &str, what: &Value) {
    html.text(": ");
    for part in [&about.project, &about.environment, release] {
        if !part.is_empty() {
            html.text(cut(part, 200)).text(" | ");
        }
    }
    let title = what.any(&["/title", "/metadata/title", "/message"]);
    let title = if title.is_empty() { "an event" } else { cut(&title, 500) };
    html.link(&what.any(&["/web_url", "/permalink"]), title);
    let name = what.text("/shortId");
    if !name.is_empty() {
        html.text(" (").text(&name).text(")");
    }
    let culprit = what.text("/culprit");
    if !culprit.is_empty() {
        html.line().text("in ").tag("code", |html| {
            html.text(cut(&culprit, 500));
        });
    }
}

fn by(html: &mut Html, what: &str, actor: &str) {
    if !actor.is_empty() {
        if !what.is_empty() {
            html.fresh_line().text(what);
        }
        html.text(" by ").text(actor);
    }
}

/// Adds the wanted ones of an event's tags.
fn tags(html: &mut Html, event: &Value, wanted: &[String]) {
    for name in wanted {
        let value = tag(event, name);
        if !value.is_empty() {
            html.fresh_line().strong(name).text(": ").text(cut(&value, 500));
        }
    }
}

/// The value of an event's tag. They come as pairs or as objects.
fn tag(event: &Value, name: &str) -> String {
    let tags = event.list("/tags");
    let found = tags.iter().take(500).find(|tag| tag.any(&["/0", "/key"]) == name);
    found.map(|tag| tag.any(&["/1", "/value"]).into_owned()).unwrap_or_default()
}

/// The slug of an event's project, which stands in the URLs of the API: `/projects/ORGANISATION/PROJECT/`.
fn project_of(event: &Value) -> String {
    let stated = event.any(&["/project_slug", "/project/slug"]);
    if !stated.is_empty() {
        return stated.into_owned();
    }
    let in_url = |url: &str| {
        let mut parts = url.split_once("/projects/")?.1.split('/');
        parts.next()?;
        parts.next().filter(|slug| !slug.is_empty()).map(str::to_owned)
    };
    ["/url", "/web_url", "/issue_url"].iter().find_map(|place| in_url(&event.text(place))).unwrap_or_default()
}

/// The issue's number in a URL: `/issues/NUMBER/`.
fn issue_in(url: &str) -> &str {
    let id = url.split_once("/issues/").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    if id.bytes().all(|byte| byte.is_ascii_digit()) { id } else { "" }
}

fn first(all: &[String]) -> String {
    all.iter().find(|text| !text.is_empty()).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn payloads_become_messages() {
        insta::glob!("../../tests/fixtures/sentry", "*.json", |path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let resource = name.split('-').next().unwrap_or_default();
            let resource = if resource == "legacy" { "" } else { resource };
            let payload = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            let Formatted { about, messages } = format(resource, &payload, &["browser.name".to_owned()]);
            let mut shown = format!("{about:?}\n");
            for message in messages {
                shown.extend(["===\n", &crate::shown(&message), "\n"]);
            }
            insta::assert_snapshot!(shown);
        });
    }

    proptest! {
        #[test]
        fn whatever_comes_becomes_clean_html_or_nothing(
            payload in crate::formats::tests::any_json(),
            data in crate::formats::tests::any_json(),
            action in "created|resolved|[a-z]{0,8}",
        ) {
            let wrapped = serde_json::json!({"action": action, "data": {
                "issue": data, "event": data, "error": data, "metric_alert": data, "comment": data,
            }});
            for resource in ["", "issue", "event_alert", "error", "metric_alert", "comment", "installation", "legacy", "new"] {
                for payload in [&payload, &wrapped, &data] {
                    for message in format(resource, payload, &["a".to_owned()]).messages {
                        crate::html::assert_clean(&message);
                    }
                }
            }
        }
    }
}
