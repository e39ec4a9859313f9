//! Looking into payloads of which nothing is certain.

use std::borrow::Cow;

use serde_json::Value;

/// What a payload says at a place, whatever it is that stands there.
pub(crate) trait Look {
    /// The text at a JSON pointer. A number or a boolean is text too; everything else, and nothing, is empty.
    fn text(&self, pointer: &str) -> Cow<'_, str>;

    /// The first of several places that has text.
    fn any(&self, pointers: &[&str]) -> Cow<'_, str>;

    /// The array at a JSON pointer, empty where there is none.
    fn list(&self, pointer: &str) -> &[Value];

    /// The names and texts of the object at a JSON pointer.
    fn pairs(&self, pointer: &str) -> Vec<(&str, Cow<'_, str>)>;

    /// Whether something is there that is not null.
    fn has(&self, pointer: &str) -> bool;
}

impl Look for Value {
    fn text(&self, pointer: &str) -> Cow<'_, str> {
        self.pointer(pointer).map_or(Cow::Borrowed(""), as_text)
    }

    fn any(&self, pointers: &[&str]) -> Cow<'_, str> {
        pointers
            .iter()
            .map(|pointer| self.text(pointer))
            .find(|text| !text.trim().is_empty())
            .unwrap_or_default()
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn pairs(&self, pointer: &str) -> Vec<(&str, Cow<'_, str>)> {
        let object = self.pointer(pointer).and_then(Value::as_object);
        object.into_iter().flatten().map(|(name, value)| (name.as_str(), as_text(value))).collect()
    }

    fn has(&self, pointer: &str) -> bool {
        self.pointer(pointer).is_some_and(|value| !value.is_null())
    }
}

fn as_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        Value::Number(number) => Cow::Owned(number.to_string()),
        Value::Bool(true) => Cow::Borrowed("true"),
        Value::Bool(false) => Cow::Borrowed("false"),
        Value::Null | Value::Array(_) | Value::Object(_) => Cow::Borrowed(""),
    }
}
