//! A message as the content of an event.

use serde_json::{Map, Value, json};

use crate::Message;

/// The field that tells one of our messages from every other: its transaction ID, which homeservers do not show to all of a user's
/// devices, and do not keep.
pub(crate) const ID: &str = "io.matrix-stack.id";

/// How long the content of an event may be, in bytes. The whole event may have 65,536, and servers add hashes, signatures and the
/// events before it.
const MOST: usize = 60_000;

/// How long the text is that an edit shows to clients that know no edits, in bytes.
const FALLBACK: usize = 4_000;

/// What a message belongs to, as events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relation {
    /// The event that it replaces.
    pub(crate) edits: Option<String>,
    /// The root of the thread that it is in.
    pub(crate) thread: Option<String>,
}

/// The content of a message's event as JSON, short enough for any homeserver: the HTML is dropped first, then the text is cut.
pub(crate) fn content(message: &Message, relation: &Relation, id: &str) -> String {
    let whole = json(message, relation, id);
    if whole.len() <= MOST {
        return whole;
    }
    let mut message = Message { html: None, ..message.clone() };
    loop {
        let text = json(&message, relation, id);
        if text.len() <= MOST || message.plain.is_empty() {
            return text;
        }
        // What is not text stays as it is; a letter has at most six bytes of JSON.
        let over = text.len() - MOST;
        let most = message.plain.len().saturating_sub((over / 6).max(16));
        message.plain =
            format!("{}…", crate::html::cut(message.plain.trim_end_matches('…'), most.saturating_sub(4)));
        if most < 8 {
            message.plain.clear();
        }
    }
}

fn json(message: &Message, relation: &Relation, id: &str) -> String {
    let mut content = body(message);
    if let Some(event) = &relation.edits {
        let new = content;
        content = Map::new();
        let fallback = format!("* {}", crate::html::cut(&message.plain, FALLBACK));
        content.insert("msgtype".to_owned(), new["msgtype"].clone());
        content.insert("body".to_owned(), fallback.into());
        content.insert("m.mentions".to_owned(), json!({}));
        content.insert("m.new_content".to_owned(), new.into());
        content.insert("m.relates_to".to_owned(), json!({ "rel_type": "m.replace", "event_id": event }));
    } else if let Some(root) = &relation.thread {
        let relates = json!({
            "rel_type": "m.thread",
            "event_id": root,
            "is_falling_back": true,
            "m.in_reply_to": { "event_id": root },
        });
        content.insert("m.relates_to".to_owned(), relates);
    }
    content.insert(ID.to_owned(), id.into());
    Value::Object(content).to_string()
}

fn body(message: &Message) -> Map<String, Value> {
    let mut content = Map::new();
    content.insert("msgtype".to_owned(), if message.notice { "m.notice" } else { "m.text" }.into());
    content.insert("body".to_owned(), message.plain.clone().into());
    if let Some(html) = &message.html {
        content.insert("format".to_owned(), "org.matrix.custom.html".into());
        content.insert("formatted_body".to_owned(), html.clone().into());
    }
    let mut mentions = Map::new();
    if !message.mentions.is_empty() {
        mentions.insert("user_ids".to_owned(), message.mentions.clone().into());
    }
    if message.mentions_room {
        mentions.insert("room".to_owned(), true.into());
    }
    // Without it, clients look for names in the text.
    content.insert("m.mentions".to_owned(), mentions.into());
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &Message, relation: &Relation) -> Value {
        let text = content(message, relation, "ms1");
        assert!(text.len() <= MOST, "{}", text.len());
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn messages_edits_and_threads_are_as_specified() {
        let message = Message {
            plain: "down".to_owned(),
            html: Some("<b>down</b>".to_owned()),
            mentions: vec!["@a:x".to_owned()],
            ..Message::default()
        };
        let new = json!({
            "msgtype": "m.text", "body": "down", "format": "org.matrix.custom.html", "formatted_body": "<b>down</b>",
            "m.mentions": { "user_ids": ["@a:x"] },
        });
        let mut plain = new.clone();
        plain[ID] = "ms1".into();
        assert_eq!(of(&message, &Relation::default()), plain);
        let edit = of(&message, &Relation { edits: Some("$e".to_owned()), thread: None });
        assert_eq!(edit["m.new_content"], new);
        assert_eq!(edit["body"], "* down");
        assert_eq!(edit["m.relates_to"], json!({ "rel_type": "m.replace", "event_id": "$e" }));
        let thread = of(&message, &Relation { edits: None, thread: Some("$t".to_owned()) });
        assert_eq!(thread["m.relates_to"]["m.in_reply_to"]["event_id"], "$t");
        assert_eq!(thread["m.relates_to"]["rel_type"], "m.thread");
    }

    #[test]
    fn every_message_fits_into_an_event() {
        let html = |letter: &str, length: usize| Message {
            plain: letter.repeat(1000),
            html: Some(letter.repeat(length)),
            ..Message::default()
        };
        assert_eq!(of(&html("x", 70_000), &Relation::default())["formatted_body"], Value::Null);
        assert_eq!(of(&html("x", 50_000), &Relation::default())["body"], "x".repeat(1000));
        for letter in ["x", "ä", "\u{1}", "🦀", "\"", "\n"] {
            let message = Message { plain: letter.repeat(100_000), ..Message::default() };
            for relation in [Relation::default(), Relation { edits: Some("$e".to_owned()), thread: None }] {
                let content = of(&message, &relation);
                let body = if relation.edits.is_some() {
                    &content["m.new_content"]["body"]
                } else {
                    &content["body"]
                };
                let body = body.as_str().unwrap();
                assert!(body.ends_with('…') && body.len() > 5_000, "{letter:?}: {}", body.len());
            }
        }
    }
}
