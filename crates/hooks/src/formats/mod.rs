//! Payloads of known senders, and of unknown ones, as messages.

mod generic;
mod github;
mod gitlab;
mod grafana;

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Message;
use crate::html::Html;
use crate::json::Look as _;
use crate::slack::{self, Names};

pub use generic::Text;

/// How a payload is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// By its headers and its shape.
    #[default]
    Auto,
    /// Slack: `text`, `blocks`, `attachments`.
    Slack,
    /// GitHub, Gitea and Forgejo.
    Github,
    /// GitLab's webhooks and system hooks.
    Gitlab,
    /// GitLab's integration for Google Chat: a text with Slack's kind of links.
    GitlabGchat,
    /// A card for Microsoft Teams, as GitLab's integration sends it.
    GitlabTeams,
    /// Grafana's webhooks, those before unified alerting included, and Alertmanager's.
    Grafana,
    /// GitHub Release Notifier.
    Grn,
    /// `html`, `markdown`, `body` or `text`; anything else is shown as JSON.
    Generic,
}

impl FromStr for Format {
    type Err = ();

    /// The name as the query `formatter=` has it, with those of matrix-webhook.
    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "auto" => Self::Auto,
            "slack" => Self::Slack,
            "github" | "gitea" | "forgejo" => Self::Github,
            "gitlab" | "gitlab_webhook" => Self::Gitlab,
            "gitlab_gchat" => Self::GitlabGchat,
            "gitlab_teams" | "teams" => Self::GitlabTeams,
            "grafana" | "grafana_9x" | "alertmanager" => Self::Grafana,
            "grn" => Self::Grn,
            "generic" | "identity" => Self::Generic,
            _ => return Err(()),
        })
    }
}

/// What became of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formatted {
    /// A message.
    Message(Box<Message>),
    /// Nothing that anybody would want to read, such as a job that was queued.
    Quiet,
    /// Nothing to see.
    Empty,
}

impl From<Option<Message>> for Formatted {
    fn from(message: Option<Message>) -> Self {
        message.map_or(Self::Empty, |message| Self::Message(Box::new(message)))
    }
}

impl From<Html> for Formatted {
    fn from(html: Html) -> Self {
        Some(html.message()).filter(|message| !message.plain.is_empty()).into()
    }
}

/// Which events the headers of a request name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events<'a> {
    /// `X-GitHub-Event`, which Gitea and Forgejo send too.
    pub github: &'a str,
    /// `X-Gitlab-Event`.
    pub gitlab: &'a str,
}

/// The message of a payload.
pub fn format(format: Format, payload: &Value, events: Events<'_>, names: &Names) -> Formatted {
    let format = if format == Format::Auto { detect(payload, events) } else { format };
    match format {
        Format::Slack => slack::message(payload, names).into(),
        Format::Github => github::format(events.github, payload),
        Format::Gitlab => gitlab::format(payload),
        Format::GitlabGchat => {
            let text = payload.any(&["/text", "/body"]);
            slack::message(&serde_json::json!({ "text": text }), names).into()
        }
        Format::GitlabTeams => teams(payload),
        Format::Grafana => grafana::format(payload),
        Format::Grn => grn(payload),
        Format::Generic | Format::Auto => generic::format(payload),
    }
}

fn detect(payload: &Value, events: Events<'_>) -> Format {
    let array = |name| payload.get(name).is_some_and(Value::is_array);
    if !events.github.is_empty() {
        Format::Github
    } else if !events.gitlab.is_empty() || payload.has("/object_kind") || payload.has("/event_name") {
        Format::Gitlab
    } else if array("alerts") || payload.has("/evalMatches") || payload.has("/ruleName") {
        Format::Grafana
    } else if array("attachments") || array("blocks") {
        Format::Slack
    } else if array("sections") {
        Format::GitlabTeams
    } else {
        Format::Generic
    }
}

/// A card: a title and sections, each with what was done, its text and its facts.
fn teams(payload: &Value) -> Formatted {
    let mut html = Html::default();
    let title = payload.any(&["/title", "/summary"]);
    if !title.is_empty() {
        html.tag("strong", |html| {
            html.markdown(&title);
        });
    }
    html.markdown_block(&payload.text("/text"));
    for section in payload.list("/sections").iter().take(20) {
        let line = ["/activityTitle", "/activitySubtitle", "/activityText"].map(|part| section.text(part));
        html.markdown_block(&line.join(" "));
        html.markdown_block(&section.text("/text"));
        let facts = section.list("/facts");
        for fact in facts.iter().take(50) {
            html.fresh_line().strong(&fact.text("/name")).text(": ").markdown(&fact.text("/value"));
        }
    }
    html.into()
}

fn grn(payload: &Value) -> Formatted {
    let (package, version) = (payload.text("/package_name"), payload.text("/version"));
    if package.is_empty() && version.is_empty() {
        return generic::format(payload);
    }
    let mut html = Html::default();
    let url = format!("https://github.com/{package}/releases/tag/{version}");
    html.strong(&package).text(" ").link(&url, &version);
    if payload.has("/author") {
        html.text(" by ").text(&payload.text("/author"));
    }
    html.fresh_line().text(&payload.text("/title"));
    html.into()
}

/// The first line of a text, as far as it is worth showing.
fn first_line(text: &str) -> &str {
    crate::html::cut(text.trim().lines().next().unwrap_or_default(), 300)
}

/// Adds a comment's or a release's text as a quote.
fn excerpt(html: &mut Html, markdown: &str) {
    let markdown = markdown.trim();
    if !markdown.is_empty() {
        html.tag("blockquote", |html| {
            html.markdown(crate::html::cut(markdown, 2000));
        });
    }
}

/// Adds commits: each one's first line, linked.
fn commits(html: &mut Html, commits: &[Value], total: usize) {
    const SHOWN: usize = 10;
    let shown = &commits[..commits.len().min(SHOWN)];
    if shown.is_empty() {
        return;
    }
    html.list(None, shown.len(), |html, at| {
        let commit = &shown[at];
        let id = commit.any(&["/id", "/sha"]);
        html.link(&commit.text("/url"), crate::html::cut(&id, 8)).text(" ");
        html.text(first_line(&commit.any(&["/message", "/title"])));
        let author = commit.any(&["/author/name", "/author/username"]);
        if !author.is_empty() {
            html.text(" (").text(&author).text(")");
        }
    });
    if total > shown.len() {
        html.text(&format!("… and {} more", total - shown.len()));
    }
}

/// The name of a branch or tag.
fn short_ref(name: &str) -> &str {
    name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")).unwrap_or(name)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn payloads_become_messages() {
        insta::glob!("../../tests/fixtures/formats", "*.json", |path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let payload = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            let github = name.strip_prefix("github-").unwrap_or_default().replace('-', "_");
            let shown = match format(
                Format::Auto,
                &payload,
                Events { github: &github, gitlab: "" },
                &Names::default(),
            ) {
                Formatted::Message(message) => crate::shown(&message),
                other => format!("{other:?}"),
            };
            insta::assert_snapshot!(shown);
        });
    }

    const KEYS: &[&str] = &[
        "text",
        "type",
        "blocks",
        "attachments",
        "elements",
        "fields",
        "title",
        "title_link",
        "url",
        "image_url",
        "value",
        "alerts",
        "labels",
        "annotations",
        "status",
        "commits",
        "message",
        "id",
        "project",
        "object_kind",
        "object_attributes",
        "action",
        "repository",
        "sender",
        "pull_request",
        "number",
        "body",
        "html",
        "sections",
        "facts",
        "data",
        "issue",
        "event",
        "level",
        "exception",
        "values",
        "style",
        "rows",
        "accessory",
        "event_name",
        "ref",
        "ts",
        "tags",
        "metric_alert",
        "alert_rule",
        "projects",
        "comment",
        "error",
        "footer",
        "color",
        "options",
        "web_url",
    ];
    const WORDS: &[&str] = &[
        "mrkdwn",
        "section",
        "header",
        "rich_text",
        "rich_text_section",
        "rich_text_list",
        "table",
        "actions",
        "link",
        "push",
        "issue",
        "pipeline",
        "created",
        "resolved",
        "firing",
        "<b>*x*</b>",
        "javascript:alert(1)",
        "&lt;",
        "`<`>",
        "https://example.org/\"'>",
        "<@U1>",
        "<!here>",
        ":rocket:",
        "**md** <img src=x>",
        "#ff0000",
        "ordered",
        "danger",
    ];

    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            proptest::sample::select(WORDS).prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            let key = prop_oneof![
                proptest::sample::select(KEYS).prop_map(str::to_owned),
                proptest::sample::select(WORDS).prop_map(str::to_owned)
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((key, inner), 0..8)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_becomes_clean_html_or_nothing(payload in any_json(), event in "[a-z_]{0,12}|push|issues|release") {
            let names = Names { mention_room: true, ..Names::default() };
            for how in [
                Format::Auto, Format::Slack, Format::Github, Format::Gitlab, Format::GitlabGchat, Format::GitlabTeams,
                Format::Grafana, Format::Grn, Format::Generic,
            ] {
                let events = Events { github: &event, gitlab: "" };
                if let Formatted::Message(message) = format(how, &payload, events, &names) {
                    crate::html::assert_clean(&message);
                }
            }
        }
    }
}
