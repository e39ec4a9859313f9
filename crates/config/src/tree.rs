//! YAML text as a tree in which every node knows where it stands.
//!
//! The YAML is version 1.2 with its core schema: one document, text keys, each once. Anchors, aliases, merge keys
//! and tags are refused: a stack is short enough without them, and they would make a value stand in one place and
//! count in another.

use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use serde_json::Number;

use crate::report::MAX_KEPT;

/// The largest file, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// The deepest nesting.
const MAX_DEPTH: usize = 32;

/// A problem and the bytes that it is about.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) span: Option<Range<usize>>,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) mend: String,
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    /// Text, and whether it was written without quotes.
    Text {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// Something that is already in the list of problems.
    Refused,
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) span: Range<usize>,
}

/// Reads a text. `Err` is a syntax error, after which nothing is known.
pub(crate) fn build(text: &str) -> Result<(Option<Node>, Vec<Problem>), Problem> {
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        offsets: (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect()),
        text,
        problems: Vec::new(),
    };
    let root = builder.document().map_err(|error| builder.syntax(&error))?;
    Ok((root, builder.problems))
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    /// The byte at which each character starts, as the parser counts in characters; `None` where both are the same.
    offsets: Option<Vec<usize>>,
    text: &'t str,
    problems: Vec<Problem>,
}

impl<'t> Builder<'t> {
    fn byte(&self, character: usize) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.get(character).copied().unwrap_or(self.text.len()),
            None => character.min(self.text.len()),
        }
    }

    fn bytes(&self, span: Span) -> Range<usize> {
        let start = self.byte(span.start.index());
        start..self.byte(span.end.index()).max(start)
    }

    fn next(&mut self) -> Result<(Event<'t>, Range<usize>), ScanError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.bytes(span))),
            Some(Err(error)) => Err(error),
            None => Ok((Event::StreamEnd, self.text.len()..self.text.len())),
        }
    }

    fn refuse(&mut self, span: Range<usize>, message: &str, mend: &str) {
        self.problems.push(Problem {
            span: Some(span),
            path: String::new(),
            message: message.to_owned(),
            mend: mend.to_owned(),
        });
    }

    fn document(&mut self) -> Result<Option<Node>, ScanError> {
        let mut root = None;
        let mut documents = 0;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
                (event, span) => {
                    documents += 1;
                    let start = span.clone();
                    let node = self.node(event, span, 0)?;
                    if documents == 1 {
                        root = Some(node);
                    } else if documents == 2 {
                        self.refuse(
                            start,
                            "a second YAML document starts here",
                            "keep one document in the file: remove the `---` above and what follows, or join both",
                        );
                    }
                }
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Range<usize>, depth: usize) -> Result<Node, ScanError> {
        if depth >= MAX_DEPTH && matches!(event, Event::SequenceStart(..) | Event::MappingStart(..)) {
            self.refuse(span.clone(), "this is nested too deeply", "use at most 32 levels");
            self.skip()?;
            return Ok(Node { span, value: Value::Refused });
        }
        let (anchor, tagged) = match &event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(anchor, tag)
            | Event::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if anchor != 0 {
            self.refuse(
                span.clone(),
                "YAML anchors (`&name`) are not supported",
                "write the value out where it is used",
            );
        }
        if tagged {
            self.refuse(
                span.clone(),
                "YAML tags (`!name`) are not supported",
                "remove the tag; quotes make a value text",
            );
        }
        let start = span.start;
        let (value, end) = match event {
            Event::Alias(_) => {
                self.refuse(
                    span.clone(),
                    "YAML aliases (`*name`) are not supported",
                    "write the value out here",
                );
                (Value::Refused, span.end)
            }
            Event::Scalar(text, ScalarStyle::Plain, ..) => (self.plain(&text, &span), span.end),
            Event::Scalar(text, ..) => (Value::Text { text: text.into_owned(), plain: false }, span.end),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, end) => break (Value::List(items), end.end),
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => self.mapping(depth)?,
            _ => (Value::Null, span.end),
        };
        let value = if tagged { Value::Refused } else { value };
        Ok(Node { span: start..end.max(start), value })
    }

    fn mapping(&mut self, depth: usize) -> Result<(Value, usize), ScanError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen = std::collections::HashMap::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, end) => return Ok((Value::Map(entries), end.end)),
                (Event::Scalar(text, _, 0, None), span) => Some(Key { text: text.into_owned(), span }),
                (event, span) => {
                    let at = span.clone();
                    self.node(event, span, depth + 1)?;
                    self.refuse(at, "a key must be plain text", "write `key: value`, with text as the key");
                    None
                }
            };
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            let Some(key) = key else { continue };
            if key.text == "<<" {
                self.refuse(
                    key.span,
                    "YAML merge keys (`<<`) are not supported",
                    "write the values out here",
                );
                continue;
            }
            if let Some(first) = seen.get(&key.text) {
                // More problems than a report keeps need no words: counting lines takes time.
                if self.problems.len() < MAX_KEPT {
                    let line = self.text[..*first].matches('\n').count() + 1;
                    let message = format!("`{}` is given twice", key.text);
                    self.refuse(
                        key.span,
                        &message,
                        &format!("remove one of them; the first is in line {line}"),
                    );
                }
                continue;
            }
            seen.insert(key.text.clone(), key.span.start);
            entries.push((key, node));
        }
    }

    /// Skips to the end of a collection that has just begun.
    fn skip(&mut self) -> Result<(), ScanError> {
        let mut open = 1usize;
        while open > 0 {
            match self.next()?.0 {
                Event::SequenceStart(..) | Event::MappingStart(..) => open += 1,
                Event::SequenceEnd | Event::MappingEnd => open -= 1,
                Event::StreamEnd => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// A scalar without quotes, by the core schema.
    fn plain(&mut self, text: &str, span: &Range<usize>) -> Value {
        if let Some(value) = resolve(text) {
            return value;
        }
        // A number's text may be as long as the file.
        let message = if text.len() <= 40 {
            format!("`{text}` is not a number that can be used here")
        } else {
            "this number is too large".to_owned()
        };
        self.refuse(
            span.clone(),
            &message,
            "write a finite number that fits into 64 bits, or put it in quotes to make it text",
        );
        Value::Refused
    }

    /// A syntax error in plain words.
    fn syntax(&self, error: &ScanError) -> Problem {
        let at = self.byte(error.marker().index());
        let info = error.info();
        let has = |part: &str| info.contains(part);
        let line_start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[line_start..].lines().next().unwrap_or_default();
        let indent = line.len() - line.trim_start().len();
        let mut span = at..at + self.text[at..].chars().next().map_or(0, char::len_utf8);
        let (message, mend) = if let Some(tab) = line[..indent].find('\t') {
            span = line_start + tab..line_start + tab + 1;
            ("a tab cannot indent YAML", "indent with spaces, two for each level")
        } else if has("tab") {
            ("there is a tab where YAML allows only spaces", "replace the tab with spaces")
        } else if has("quoted scalar") && (has("end of stream") || has("document indicator")) {
            ("these quotes are never closed", "add the closing quote")
        } else if has("escape") {
            (
                "after a backslash in double quotes stands a character that means nothing there",
                "write `\\\\` for a backslash, or use single quotes",
            )
        } else if has("indentation in quoted scalar") {
            (
                "this quoted text goes on in a line that is not indented enough",
                "add the closing quote, or indent the line",
            )
        } else if has("trailing content after double-quoted") {
            (
                "something follows the closing quote",
                "put quotes around the whole value, and write `\\\"` for a quote in it",
            )
        } else if has("flow mapping") {
            (
                "a `{` before this is not closed, or misses a comma",
                "close it with `}` and put commas between its parts",
            )
        } else if has("flow sequence") || has("flow construct") || has("illegal placement of ':'") {
            (
                "a `[` before this is not closed, or misses a comma",
                "close it with `]` and put commas between its parts",
            )
        } else if has("mapping values are not allowed") {
            (
                "a `: ` in this place makes a key out of what was text or a value",
                "put the value in quotes, or check the indentation of this line and the one above",
            )
        } else if has("simple key expect") {
            // The parser only notices on a later line.
            let before = self.text[..line_start].trim_end();
            let start = before.rfind('\n').map_or(0, |newline| newline + 1);
            span = start + before[start..].len() - before[start..].trim_start().len()..before.len();
            ("this line has no `: ` after its key", "write `key: value`, with a space after the colon")
        } else if has("block mapping") || has("block collection") || has("invalid indentation") {
            (
                "this line is indented differently from its neighbours",
                "indent the keys of one mapping by the same number of spaces",
            )
        } else if has("block sequence entries") {
            ("a list item `- ` cannot stand here", "put each `- item` on a line of its own, below its key")
        } else if has("unknown anchor") {
            (
                "YAML aliases (`*name`) are not supported",
                "write the value out here; put text that starts with `*` in quotes",
            )
        } else if has("unprintable") || has("byte order mark") {
            ("there is an invisible control character here", "remove it")
        } else if has("unexpected character") || has("cannot start") {
            ("text without quotes cannot start with this character", "put the text in quotes")
        } else {
            return Problem {
                span: Some(span),
                path: String::new(),
                message: format!("this is not YAML: {info}"),
                mend: "check this line's quotes, brackets and indentation".to_owned(),
            };
        };
        Problem { span: Some(span), path: String::new(), message: message.to_owned(), mend: mend.to_owned() }
    }
}

/// The core schema of YAML 1.2 (section 10.3.2). `None` for a number that JSON cannot hold.
pub(crate) fn resolve(text: &str) -> Option<Value> {
    let text_value = || Some(Value::Text { text: text.to_owned(), plain: true });
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Some(Value::Bool(false)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return None;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix)
            && !digits.is_empty()
            && digits.chars().all(|c| c.is_digit(radix))
        {
            return u64::from_str_radix(digits, radix).ok().map(|number| Value::Number(number.into()));
        }
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let number = text.trim_start_matches('+');
        let number =
            number.parse::<u64>().map(Number::from).or_else(|_| number.parse::<i64>().map(Number::from));
        return number.ok().map(Value::Number);
    }
    if is_float(unsigned) {
        return text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number);
    }
    text_value()
}

/// Whether the text, already without sign, matches `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`.
fn is_float(text: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(text);
    let mut rest = &text[whole..];
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        fraction = digits(after);
        rest = &after[fraction..];
    }
    if whole == 0 && fraction == 0 {
        return false;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        let json = |text: &str| match resolve(text) {
            Some(Value::Null) => "null".to_owned(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Text { text, .. }) => format!("{text:?}"),
            _ => "refused".to_owned(),
        };
        for (text, expected) in [
            ("", "null"),
            ("~", "null"),
            ("True", "true"),
            ("yes", "\"yes\""),
            ("12", "12"),
            ("+12", "12"),
            ("-12", "-12"),
            ("0x1F", "31"),
            ("0o17", "15"),
            ("1.5", "1.5"),
            (".5", "0.5"),
            ("1e3", "1000.0"),
            ("1.", "1.0"),
            (".", "\".\""),
            ("1e", "\"1e\""),
            ("1.2.3", "\"1.2.3\""),
            ("-", "\"-\""),
            (".inf", "refused"),
            ("99999999999999999999", "refused"),
            ("127.0.0.1:8008", "\"127.0.0.1:8008\""),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }
}
