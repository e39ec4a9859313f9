//! What is wrong with a file, shown where it is wrong.

use std::fmt::{self, Write as _};
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

/// How many problems a report shows; it counts the rest.
const MAX_SHOWN: usize = 50;

/// How many problems a report keeps. Finding a place takes a look at the whole file.
pub(crate) const MAX_KEPT: usize = 1000;

/// A line longer than this (in bytes) is left out of a report, which then only names its number.
const MAX_LINE: usize = 2000;

/// One thing that is wrong with a stack, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub mend: String,
    /// The field, as a dotted path such as `workers.typing.count`; empty for the file as a whole.
    pub path: String,
    /// Where it stands in the file; `None` for something that is not in the file at all.
    pub place: Option<Place>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// The line's text, without its end.
    text: String,
    /// The bytes of the line's text to point at.
    marked: Range<usize>,
}

/// Everything that is wrong with a stack: at least one [`Finding`], in the order of the file.
///
/// Its `Display` is plain text: each problem with file, line, column, the line itself, a caret and the mend, and
/// then their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    name: String,
    findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn new(name: impl Into<String>, mut findings: Vec<Finding>) -> Self {
        // What stands nowhere comes last. The sort is stable.
        findings
            .sort_by_key(|f| f.place.as_ref().map_or((usize::MAX, 0), |place| (place.line, place.column)));
        Self { name: name.into(), findings }
    }

    /// A report of one problem with the file as a whole.
    pub(crate) fn of_file(
        name: impl Into<String>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let finding =
            Finding { message: message.into(), mend: mend.into(), path: String::new(), place: None };
        Self::new(name, vec![finding])
    }

    /// The problems, in the order of the file.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The report with ANSI colours, for a terminal. No meaning is in the colour alone.
    pub fn coloured(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let renderer = renderer.clone().decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        for finding in self.findings.iter().take(MAX_SHOWN) {
            text.push_str(&finding.render(&self.name, &renderer));
            text.push_str("\n\n");
        }
        let count = self.findings.len();
        let problems = match count {
            1 => "problem",
            MAX_KEPT.. => "problems or more",
            _ => "problems",
        };
        let _ = write!(text, "{}: {count} {problems}", self.name);
        if count > MAX_SHOWN {
            let _ = write!(text, ", the first {MAX_SHOWN} shown");
        }
        text
    }
}

impl Finding {
    fn render(&self, name: &str, renderer: &Renderer) -> String {
        let title = Level::ERROR.primary_title(self.message.as_str());
        let mend = Level::HELP.message(self.mend.as_str());
        let group = match &self.place {
            Some(place) if place.text.len() <= MAX_LINE => {
                let mark = AnnotationKind::Primary.span(place.marked.clone());
                // A field at the top needs no path: its line says it all.
                let mark = if self.path.contains('.') { mark.label(self.path.as_str()) } else { mark };
                let line =
                    Snippet::source(place.text.as_str()).line_start(place.line).path(name).annotation(mark);
                title.element(line).element(mend)
            }
            Some(place) => {
                title.element(Origin::path(name).line(place.line).char_column(place.column)).element(mend)
            }
            None if self.path.is_empty() => title.element(Origin::path(name)).element(mend),
            None => {
                let field = Level::NOTE.message(format!("this is about `{}`", self.path));
                title.element(Origin::path(name)).element(field).element(mend)
            }
        };
        renderer.render(&[group])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for Report {}

/// A file's name and text.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Source {
    /// The place of a span of bytes, cut to its first line.
    pub(crate) fn place(&self, span: &Range<usize>) -> Place {
        let text = &self.text;
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let mut end = span.end.clamp(start, line_start + line.len().max(start - line_start));
        while !text.is_char_boundary(end) {
            end += 1;
        }
        Place {
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            marked: (start - line_start).min(line.len())..(end - line_start).min(line.len()),
            text: line.to_owned(),
        }
    }
}
