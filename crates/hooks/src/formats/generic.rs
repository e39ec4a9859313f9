//! Payloads of senders that are not known.

use serde_json::Value;

use super::Formatted;
use crate::html::{Html, cut};
use crate::json::Look as _;

/// What a body is that is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// Text as it stands.
    Plain,
    /// Markdown.
    Markdown,
    /// HTML.
    Html,
    /// XML, shown as code.
    Xml,
}

impl Text {
    /// The message of a body.
    pub fn format(self, body: &str) -> Formatted {
        let mut html = Html::default();
        match self {
            Self::Plain => html.text(body.trim_end()),
            Self::Markdown => html.markdown(body),
            Self::Html => html.foreign(body),
            Self::Xml if body.trim().is_empty() => &mut html,
            Self::Xml => html.code_block("xml", body),
        };
        html.into()
    }
}

/// `html` (or `formatted_body`), else `markdown`, else the first of the usual names for a text, which is Markdown too, with a title
/// before it; where there is none of that, everything as JSON.
pub(super) fn format(payload: &Value) -> Formatted {
    let mut html = Html::default();
    let text = payload.any(&["/body", "/text", "/message", "/msg", "/content", "/description", "/summary"]);
    let foreign = payload.any(&["/html", "/formatted_body"]);
    if !foreign.trim().is_empty() {
        html.foreign(&foreign);
        let mut message = html.message();
        if !text.trim().is_empty() {
            let mut given = Html::default();
            given.text(&text);
            message.plain = given.message().plain;
        }
        return Some(message).filter(|message| !message.plain.is_empty()).into();
    }
    let markdown = payload.any(&["/markdown", "/md"]);
    let text = if markdown.trim().is_empty() { text } else { markdown };
    let title = payload.any(&["/title", "/subject"]);
    let link = payload.any(&["/url", "/link", "/title_link"]);
    if !title.is_empty() {
        html.tag("strong", |html| {
            html.link(&link, &title);
        });
    }
    html.markdown_block(&text);
    if html.is_empty() {
        let empty = match payload {
            Value::Object(object) => object.is_empty(),
            Value::Array(array) => array.is_empty(),
            Value::String(text) => {
                html.text(text);
                return html.into();
            }
            other => other.is_null(),
        };
        if empty {
            return Formatted::Empty;
        }
        let json = serde_json::to_string_pretty(payload).unwrap_or_default();
        html.code_block("json", cut(&json, 8000));
    }
    html.into()
}
