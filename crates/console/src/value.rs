//! Values of Synapse's answers: where they stand in it, and how a person reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// What a value means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// As it is.
    Text,
    /// An ID, which is a link to the page of the list that is called so.
    Id(&'static str),
    /// Milliseconds since 1970; 0 is never.
    Millis,
    /// Seconds since 1970.
    Seconds,
    /// True or false, or 1 and 0.
    Flag,
    Bytes,
    Number,
    /// Anything, as JSON.
    Json,
}

const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as part of a path or a query.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// What stands in a value at this place, `a.b`; the value itself at the empty place.
pub(crate) fn at<'v>(value: &'v Value, place: &str) -> &'v Value {
    place.split('.').filter(|part| !part.is_empty()).fold(value, |value, part| &value[part])
}

/// The items at a place of an answer. `*` stands for all of an object or a list; what it finds in an object that is no
/// object itself comes with its key, as `key` and `value`.
pub(crate) fn items(answer: &Value, place: &str) -> Vec<Value> {
    let mut found = vec![answer.clone()];
    for part in place.split('.').filter(|part| !part.is_empty()) {
        let each = found.into_iter();
        found = if part == "*" {
            each.flat_map(|value| match value {
                Value::Array(items) => items,
                Value::Object(entries) => entries
                    .into_iter()
                    .map(|(key, value)| match value {
                        Value::Object(_) | Value::Array(_) => value,
                        value => serde_json::json!({ "key": key, "value": value }),
                    })
                    .collect(),
                _ => Vec::new(),
            })
            .collect()
        } else {
            each.map(|mut value| value[part].take()).collect()
        };
    }
    let list = |value| match value {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        // Nothing is said.
        Value::Object(entries) if entries.is_empty() => Vec::new(),
        other => vec![other],
    };
    found.into_iter().flat_map(list).collect()
}

/// A value as a plain text: for an ID, say.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A value for a person. Whatever it holds is shown, never run; and it cannot turn the direction of what stands beside it.
pub(crate) fn shown(value: &Value, kind: Kind) -> Markup {
    let text = plain(value);
    if matches!(value, Value::Null) || text.is_empty() {
        return html! { span.none { "–" } };
    }
    html! {
        @match kind {
            Kind::Text => bdi { (text) },
            Kind::Id(list) => a href={ "/" (list) "/" (encoded(&text)) } { bdi { (text) } },
            Kind::Millis => (time(value.as_u64())),
            Kind::Seconds => (time(value.as_u64().map(|seconds| seconds.saturating_mul(1000)))),
            Kind::Flag => @if value.as_bool().unwrap_or(value.as_u64().is_some_and(|number| number > 0)) { "yes" } @else { span.none { "no" } },
            Kind::Bytes => (value.as_u64().map_or(text, bytes)),
            Kind::Number => (text),
            Kind::Json => pre { (serde_json::to_string_pretty(value).unwrap_or(text)) },
        }
    }
}

fn time(millis: Option<u64>) -> Markup {
    let Some(text) = millis.filter(|millis| *millis > 0).and_then(utc) else {
        return html! { span.none { "never" } };
    };
    // To the second, as people read it.
    let short = text.split('.').next().unwrap_or_default().replace('T', " ");
    html! { time datetime=(text) { (short) } }
}

/// Bytes in the largest unit of which there is one.
pub(crate) fn bytes(bytes: u64) -> String {
    let unit = [("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, shift)| bytes >> shift > 0);
    let Some((unit, shift)) = unit else { return format!("{bytes} B") };
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A moment as RFC 3339 has it, in UTC; none if it is beyond all calendars.
pub(crate) fn utc(millis: u64) -> Option<String> {
    Some(router::timestamp(UNIX_EPOCH.checked_add(Duration::from_millis(millis))?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_text_is_shown_and_never_run() {
        let text = "<img src=x onerror=alert(1)>\"'\u{202e}&";
        for kind in [Kind::Text, Kind::Id("users"), Kind::Number, Kind::Json, Kind::Bytes] {
            let html = shown(&json!(text), kind).into_string();
            assert!(!html.contains("<img") && html.contains("&lt;img"), "{html}");
        }
        assert!(!shown(&json!(u64::MAX), Kind::Seconds).into_string().is_empty());
        let html = shown(&json!("@a/../b?c#\":x"), Kind::Id("users")).into_string();
        assert!(html.contains("href=\"/users/%40a%2F..%2Fb%3Fc%23%22%3Ax\""), "{html}");
    }

    #[test]
    fn items_are_found_wherever_they_stand() {
        let answer = json!({ "a": { "x": { "b": [1, 2] }, "y": { "b": [3] } }, "m": { "!r": "join" }, "l": ["z"], "e": {} });
        assert_eq!(items(&answer, "a.*.b"), [json!(1), json!(2), json!(3)]);
        assert_eq!(items(&answer, "m.*"), [json!({ "key": "!r", "value": "join" })]);
        assert_eq!(items(&answer, "l"), [json!("z")]);
        assert!(items(&answer, "e").is_empty() && items(&answer, "none.*.x").is_empty());
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([0, 1023, 1536, 5 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }
}
