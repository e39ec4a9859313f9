//! A writer of block-style YAML that people read and that YAML 1.1 and 1.2 parsers agree on.
//!
//! Synapse reads its files with a YAML 1.1 parser, in which `on`, `1:30`, `010` and `1_000` are no strings, so the
//! emitters at hand (which quote by the rules of 1.2) do not fit. Here every string is in double quotes, but for
//! words that neither version takes for anything else.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// Options that belong together, below a line that says what they are for.
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) entries: Map<String, Value>,
}

/// Lists of scalars that end before this column stand on one line.
const FLOW_WIDTH: usize = 100;

/// A document: comment lines, then each section that has entries.
pub(crate) fn document(comment: &str, sections: &[Section]) -> String {
    let mut out = String::new();
    push_comment(&mut out, comment);
    for section in sections.iter().filter(|section| !section.entries.is_empty()) {
        out.push('\n');
        push_comment(&mut out, &section.title);
        push_entries(&mut out, 0, &section.entries);
    }
    out
}

fn push_comment(out: &mut String, text: &str) {
    for line in text.lines() {
        out.push_str("# ");
        out.push_str(line);
        out.push('\n');
    }
}

fn push_entries(out: &mut String, indent: usize, entries: &Map<String, Value>) {
    for (key, value) in entries {
        push_indent(out, indent);
        push_string(out, key);
        out.push(':');
        push_value(out, indent, value);
    }
}

/// What stands behind a key's colon or an item's dash, and the end of the line.
fn push_value(out: &mut String, indent: usize, value: &Value) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            out.push('\n');
            push_entries(out, indent + 2, entries);
        }
        Value::Array(items) if !items.is_empty() => {
            let column = out.len() - out.rfind('\n').map_or(0, |newline| newline + 1);
            if let Some(flow) = flow(items).filter(|flow| column + 1 + flow.len() <= FLOW_WIDTH) {
                out.push(' ');
                out.push_str(&flow);
                out.push('\n');
            } else {
                out.push('\n');
                for item in items {
                    push_indent(out, indent + 2);
                    out.push('-');
                    push_item(out, indent + 2, item);
                }
            }
        }
        scalar => {
            out.push(' ');
            push_scalar(out, scalar);
            out.push('\n');
        }
    }
}

/// A list's item: a mapping starts on the dash's own line.
fn push_item(out: &mut String, indent: usize, item: &Value) {
    match item {
        Value::Object(entries) if !entries.is_empty() => {
            let start = out.len();
            push_entries(out, indent + 2, entries);
            // The dash and a space take the place of the first entry's indent.
            out.replace_range(start..start + indent + 2, " ");
        }
        other => push_value(out, indent, other),
    }
}

fn push_indent(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A list of scalars on one line, as `[a, b]`.
fn flow(items: &[Value]) -> Option<String> {
    let mut out = "[".to_owned();
    for (number, item) in items.iter().enumerate() {
        if item.is_object() || item.is_array() {
            return None;
        }
        if number > 0 {
            out.push_str(", ");
        }
        push_scalar(&mut out, item);
    }
    out.push(']');
    Some(out)
}

fn push_scalar(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => push_number(out, number),
        Value::String(text) => push_string(out, text),
        // Only empty ones come here.
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

/// YAML 1.1 takes a number with an exponent for a string unless it has a point and the exponent a sign.
fn push_number(out: &mut String, number: &Number) {
    let text = number.to_string();
    let Some((mantissa, exponent)) = text.split_once('e') else {
        out.push_str(&text);
        return;
    };
    out.push_str(mantissa);
    if !mantissa.contains('.') {
        out.push_str(".0");
    }
    out.push('e');
    if !exponent.starts_with(['-', '+']) {
        out.push('+');
    }
    out.push_str(exponent);
}

fn push_string(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // What a YAML stream may not hold as it is, or takes for the end of a line.
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Whether a string may stand without quotes: a word or path that no YAML version reads as something else.
fn is_plain(text: &str) -> bool {
    const RESERVED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '/')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b))
        && !RESERVED.iter().any(|word| word.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn yaml(value: Value) -> String {
        let Value::Object(entries) = value else { panic!("not a mapping") };
        let mut out = String::new();
        push_entries(&mut out, 0, &entries);
        out
    }

    #[test]
    fn nests_in_blocks_and_keeps_short_lists_on_a_line() {
        insta::assert_snapshot!(yaml(json!({
            "a": {"b": {"c": 1}, "empty": {}, "none": []},
            "list": [{"first": 1, "second": {"third": [1, 2]}}, {"only": null}, {}, [], "x", [{"deep": true}], [[1], [2]]],
            "short": ["a", "b c", 1.5, false],
            "long": ["a".repeat(60), "b".repeat(60)],
        })));
    }

    #[test]
    fn strings_that_parsers_misread_are_quoted() {
        for text in [
            "on",
            "Yes",
            "NULL",
            "y",
            "~",
            "",
            "1",
            "1:30",
            "010",
            "0o17",
            "1_000",
            "1e3",
            ".inf",
            "=",
            "<<",
            "a: b",
            "a #b",
            " a",
            "-",
            "- a",
            "?",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "[a",
            "{a",
            "2001-01-01",
            "50M",
            "::1",
            "a\nb",
        ] {
            let mut out = String::new();
            push_string(&mut out, text);
            assert!(out.starts_with('"') && out.ends_with('"'), "{text:?} became {out}");
        }
        for text in
            ["main", "/var/lib/x.sock", "sync_1", "synapse.app.generic_worker", "example.org", "X-Request-ID"]
        {
            let mut out = String::new();
            push_string(&mut out, text);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn what_yaml_cannot_hold_is_escaped() {
        let mut out = String::new();
        push_string(&mut out, "\"\\\n\u{0}\u{7f}\u{85}\u{2028}\u{feff}é😀");
        assert_eq!(out, r#""\"\\\n\u0000\u007F\u0085\u2028\uFEFFé😀""#);
    }

    #[test]
    fn numbers_with_exponents_stay_numbers() {
        let number = |value: Value| yaml(json!({"is": value}));
        assert_eq!(number(json!(1e300)), "is: 1.0e+300\n");
        assert_eq!(number(json!(1.5e-9)), "is: 1.5e-9\n");
        assert_eq!(number(json!(0.5)), "is: 0.5\n");
        assert_eq!(number(json!(u64::MAX)), "is: 18446744073709551615\n");
        assert_eq!(number(json!(-3)), "is: -3\n");
    }
}
