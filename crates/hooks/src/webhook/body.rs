//! What a request's body is, whatever its headers say.

use serde_json::{Map, Value};

use crate::formats::Text;

/// A body.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Body {
    /// JSON, or a form with `payload=` and JSON in it.
    Json(Value),
    /// Any other form.
    Form(Value),
    /// Anything else.
    Text(Text, String),
    /// Neither.
    Invalid,
}

/// Fields of a form that are taken.
const MAX_FIELDS: usize = 200;

pub(super) fn read(content_type: &str, bytes: &[u8]) -> Body {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // Many send JSON and say that it is a form, as curl does by itself, or text.
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    let like_json = matches!(first, Some(b'{' | b'['));
    let form = media == "application/x-www-form-urlencoded";
    if like_json || media.is_empty() || media.ends_with("json") {
        if let Ok(json) = serde_json::from_slice(bytes) {
            return Body::Json(json);
        }
        if !form && !media.starts_with("text/") {
            return Body::Invalid;
        }
    }
    if form {
        return read_form(bytes);
    }
    let text = || String::from_utf8_lossy(bytes).into_owned();
    match media.as_str() {
        "text/markdown" | "text/x-markdown" => Body::Text(Text::Markdown, text()),
        "text/html" => Body::Text(Text::Html, text()),
        "text/xml" | "application/xml" => Body::Text(Text::Xml, text()),
        media if media.ends_with("+xml") => Body::Text(Text::Xml, text()),
        media if media.starts_with("text/") => Body::Text(Text::Plain, text()),
        _ => Body::Invalid,
    }
}

fn read_form(bytes: &[u8]) -> Body {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(bytes).take(MAX_FIELDS) {
        if name == "payload" {
            return serde_json::from_str(&value).map_or(Body::Invalid, Body::Json);
        }
        fields.insert(name.into_owned(), value.into_owned().into());
    }
    if fields.is_empty() { Body::Invalid } else { Body::Form(Value::Object(fields)) }
}

/// The arguments of a Web API method. In a form, what is not text is JSON; an error is that field's name.
pub(super) fn arguments(body: Body) -> Result<Value, &'static str> {
    match body {
        Body::Json(json) if json.is_object() => Ok(json),
        Body::Form(Value::Object(mut fields)) => {
            for name in ["attachments", "blocks"] {
                if let Some(Value::String(text)) = fields.get(name) {
                    let parsed = if text.is_empty() {
                        Value::Null
                    } else {
                        serde_json::from_str(text).map_err(|_| name)?
                    };
                    fields.insert(name.to_owned(), parsed);
                }
            }
            Ok(Value::Object(fields))
        }
        // Methods without arguments need no body.
        Body::Invalid => Ok(Value::Object(Map::new())),
        _ => Err("json"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_are_what_they_look_like() {
        const FORM: &str = "application/x-www-form-urlencoded";
        let text = |kind, text: &str| Body::Text(kind, text.to_owned());
        for (content_type, body, expected) in [
            ("application/json; charset=utf-8", "{\"a\":1}", Body::Json(json!({"a": 1}))),
            ("", "\u{feff} {\"a\":1}", Body::Json(json!({"a": 1}))),
            (FORM, "{\"text\":\"a=b&c\"}", Body::Json(json!({"text": "a=b&c"}))),
            ("text/plain", "{\"a\":1}", Body::Json(json!({"a": 1}))),
            ("text/plain", "{not json}", text(Text::Plain, "{not json}")),
            (FORM, "payload=%7B%22text%22%3A%22a+b%22%7D", Body::Json(json!({"text": "a b"}))),
            (FORM, "payload=%7B", Body::Invalid),
            (FORM, "text=a+b&x=%26", Body::Form(json!({"text": "a b", "x": "&"}))),
            (FORM, "", Body::Invalid),
            ("text/markdown", "# a", text(Text::Markdown, "# a")),
            ("text/html", "<b>", text(Text::Html, "<b>")),
            ("application/atom+xml", "<a/>", text(Text::Xml, "<a/>")),
            ("application/json", "{", Body::Invalid),
            ("", "", Body::Invalid),
            ("application/octet-stream", "x", Body::Invalid),
        ] {
            assert_eq!(read(content_type, body.as_bytes()), expected, "{content_type} {body}");
        }
        assert_eq!(read("", "[".repeat(100_000).as_bytes()), Body::Invalid, "nested too deeply");
    }

    #[test]
    fn what_is_no_text_in_a_form_is_json() {
        let form = read("application/x-www-form-urlencoded", b"text=x&blocks=%5B%5D&attachments=");
        assert_eq!(arguments(form), Ok(json!({"text": "x", "blocks": [], "attachments": null})));
        let form = read("application/x-www-form-urlencoded", b"text=x&blocks=%5B");
        assert_eq!(arguments(form), Err("blocks"));
    }
}
