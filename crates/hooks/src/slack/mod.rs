//! What Slack's incoming webhooks and its Web API take, as a message.

mod blocks;
mod mrkdwn;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Message;
use crate::html::{Html, is_colour};
use crate::json::Look as _;

/// Attachments that are shown: Slack takes 100 and advises 20.
const MAX_ATTACHMENTS: usize = 50;
/// Fields of an attachment that are shown.
const MAX_FIELDS: usize = 50;
/// User IDs that a message notifies.
const MAX_MENTIONS: usize = 50;

/// What a payload's names mean in Matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The Matrix IDs of users, by their ID at Slack.
    pub users: BTreeMap<String, String>,
    /// Whether `<!here>`, `<!channel>` and `<!everyone>` notify the room.
    pub mention_room: bool,
    /// Whether the `username` that a payload asks for stands before its text.
    pub show_sender: bool,
}

/// The message of a payload: `text`, `blocks` and `attachments`. `None` if there is nothing to see in it.
pub fn message(payload: &Value, names: &Names) -> Option<Message> {
    let mut render = Render { names, mentions: Vec::new(), room: false };
    let mut html = Html::default();
    let blocks = payload.list("/blocks");
    render.blocks(&mut html, blocks);
    // Where there are blocks, the text is what notifications say instead.
    if html.is_empty() {
        let text = payload.text("/text");
        let markdown = payload.text("/markdown_text");
        if !markdown.is_empty() {
            html.markdown(&markdown);
        } else if payload.text("/mrkdwn") == "false" {
            html.text(&mrkdwn::emojis(&mrkdwn::decode(&text)));
        } else {
            render.mrkdwn(&mut html, &text);
        }
    }
    for attachment in payload.list("/attachments").iter().take(MAX_ATTACHMENTS) {
        let mut own = Html::default();
        render.attachment(&mut own, attachment);
        html.block(&own);
    }
    let sender = payload.text("/username");
    if names.show_sender && !sender.is_empty() && !html.is_empty() {
        let mut whole = Html::default();
        whole.strong(&sender).line().html(&html);
        html = whole;
    }
    let message = html.message();
    if message.plain.is_empty() {
        return None;
    }
    Some(Message { mentions: render.mentions, mentions_room: render.room, ..message })
}

/// A payload on its way to HTML, and whom it mentions.
struct Render<'a> {
    names: &'a Names,
    mentions: Vec<String>,
    room: bool,
}

impl Render<'_> {
    fn mention(&mut self, user: &str) {
        if self.mentions.len() < MAX_MENTIONS && !self.mentions.iter().any(|known| known == user) {
            self.mentions.push(user.to_owned());
        }
    }

    fn attachment(&mut self, html: &mut Html, attachment: &Value) {
        let mut body = Html::default();
        self.attachment_body(&mut body, attachment);
        if body.is_empty() && !attachment.has("/pretext") {
            self.mrkdwn(&mut body, &attachment.text("/fallback"));
        }
        if attachment.has("/pretext") {
            self.mrkdwn(html, &attachment.text("/pretext"));
        }
        if !body.is_empty() {
            html.tag("blockquote", |html| {
                html.html(&body);
            });
        }
    }

    fn attachment_body(&mut self, html: &mut Html, attachment: &Value) {
        let colour = match &*attachment.text("/color") {
            "good" => "#2eb886".to_owned(),
            "warning" => "#daa038".to_owned(),
            "danger" => "#a30200".to_owned(),
            other if is_colour(other) => other.to_owned(),
            other if is_colour(&format!("#{other}")) => format!("#{other}"),
            _ => String::new(),
        };
        if attachment.has("/author_name") {
            html.link(&attachment.text("/author_link"), &attachment.text("/author_name"));
        }
        let title = mrkdwn::decode(&attachment.text("/title")).into_owned();
        if !title.is_empty() {
            html.fresh_line();
            if !colour.is_empty() {
                html.coloured(&colour, "■").text(" ");
            }
            let link = attachment.text("/title_link");
            if link.is_empty() {
                html.tag("strong", |html| self.mrkdwn(html, &attachment.text("/title")));
            } else {
                html.tag("strong", |html| {
                    html.link(&link, &mrkdwn::emojis(&title));
                });
            }
        }
        let text = attachment.text("/text");
        if !text.is_empty() {
            html.fresh_line();
            if title.is_empty() && !colour.is_empty() {
                html.coloured(&colour, "■").text(" ");
            }
            self.mrkdwn(html, &text);
        }
        self.blocks(html, attachment.list("/blocks"));
        for field in attachment.list("/fields").iter().take(MAX_FIELDS) {
            let (title, value) = (field.text("/title"), field.text("/value"));
            if title.is_empty() && value.is_empty() {
                continue;
            }
            html.fresh_line();
            if !title.is_empty() {
                html.tag("strong", |html| self.mrkdwn(html, title.trim_end_matches(':')));
                if value.contains('\n') {
                    html.text(":").line();
                } else {
                    html.text(": ");
                }
            }
            self.mrkdwn(html, &value);
        }
        for (place, name) in [("/image_url", "image"), ("/thumb_url", "thumbnail")] {
            if attachment.has(place) && !attachment.text(place).is_empty() {
                html.fresh_line().text("🖼 ").link(&attachment.text(place), name);
            }
        }
        let mut actions = Html::default();
        blocks::links(&mut actions, attachment.list("/actions"));
        html.block(&actions);
        let time =
            attachment.text("/ts").split('.').next().and_then(|ts| ts.parse().ok()).and_then(mrkdwn::time);
        let footer = attachment.text("/footer");
        if !footer.is_empty() {
            html.fresh_line();
            self.mrkdwn(html, &footer);
        }
        if let Some(time) = time {
            if footer.is_empty() {
                html.fresh_line();
            } else {
                html.text(" · ");
            }
            html.text(&time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            users: BTreeMap::from([("U024BE7LH".to_owned(), "@bob:example.org".to_owned())]),
            mention_room: true,
            show_sender: false,
        }
    }

    #[test]
    fn payloads_become_messages() {
        insta::glob!("../../tests/fixtures/slack", "*.json", |path| {
            let payload = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            insta::assert_snapshot!(crate::shown(&message(&payload, &names()).unwrap()));
        });
    }

    #[test]
    fn nobody_is_mentioned_that_nobody_allowed() {
        let payload = serde_json::json!({"text": "<!here> <!channel> @room <@U024BE7LH>"});
        let message = message(&payload, &Names::default()).unwrap();
        assert_eq!((message.mentions_room, message.mentions.len()), (false, 0));
        assert_eq!(message.plain, "@here @channel @room @U024BE7LH");
    }

    #[test]
    fn nothing_to_see_is_no_message() {
        for payload in [
            serde_json::json!({}),
            serde_json::json!({"text": " ", "attachments": [{}, 1, null], "blocks": [{"type": "input"}, []]}),
            serde_json::json!([1]),
            serde_json::json!("text"),
        ] {
            assert_eq!(message(&payload, &names()), None, "{payload}");
        }
    }

    #[test]
    fn large_payloads_are_cut() {
        let parts = [
            "*a ",
            "_*~`<",
            "<",
            "<a|",
            "<@U024BE7LH> ",
            "`",
            "- x\n",
            "&gt; a\n",
            ">>>",
            "```",
            ":a",
            ":tada:",
            "&lt;",
            "**",
            "a*",
            "<https://example.org/|*_~>",
            "\n",
            "\u{202e}",
            "1. ",
            "*_~a~_* ",
        ];
        for part in parts {
            let text = part.repeat((1 << 20) / part.len());
            for payload in [
                serde_json::json!({"text": text}),
                serde_json::json!({"text": "short", "attachments": [{"text": text, "title": text, "footer": text}]}),
                serde_json::json!({"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]}),
                serde_json::json!({"blocks": [{"type": "markdown", "text": text}]}),
            ] {
                if let Some(message) = message(&payload, &names()) {
                    crate::html::assert_clean(&message);
                    assert!(
                        payload["text"] != "short" || message.plain.starts_with("short"),
                        "{part:?} {}",
                        crate::html::cut(&message.plain, 100)
                    );
                }
            }
        }
        let many = vec![
            serde_json::json!({"title": "t", "fields": vec![serde_json::json!({"value": "x"}); 500]});
            500
        ];
        crate::html::assert_clean(&message(&serde_json::json!({"attachments": many}), &names()).unwrap());
    }

    #[test]
    fn the_sender_stands_first_where_that_is_wanted() {
        let payload = serde_json::json!({"text": "up", "username": "<Bot>"});
        let names = Names { show_sender: true, ..names() };
        assert_eq!(message(&payload, &names).unwrap().plain, "<Bot>\nup");
    }
}
