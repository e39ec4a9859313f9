//! The plain text that stands for clean HTML.

/// The text of clean HTML.
pub(super) fn plain(html: &str) -> String {
    let mut out = Plain::default();
    let mut rest = html;
    loop {
        let (text, tag) = rest.split_once('<').unwrap_or((rest, ""));
        out.text(text);
        if tag.is_empty() {
            break;
        }
        // Clean HTML has every `>` of an attribute's value written out as it is, and every `"` as `&quot;`.
        let end = end_of_tag(tag);
        out.tag(&tag[..end]);
        rest = tag.get(end + 1..).unwrap_or_default();
    }
    out.done()
}

/// Where a tag's `>` is: not one in an attribute.
fn end_of_tag(tag: &str) -> usize {
    let mut quoted = false;
    tag.bytes()
        .position(|byte| {
            quoted ^= byte == b'"';
            byte == b'>' && !quoted
        })
        .unwrap_or(tag.len())
}

/// Text being made of HTML.
#[derive(Default)]
struct Plain {
    out: String,
    /// The lists that this is in: the number of an ordered one's next item.
    lists: Vec<Option<u32>>,
    /// The links that this is in: where they go, and where their text begins.
    links: Vec<(String, usize)>,
    quotes: usize,
    pre: bool,
    cells: usize,
}

impl Plain {
    fn text(&mut self, text: &str) {
        let text = unescape(text);
        if self.pre {
            for (at, line) in text.split('\n').enumerate() {
                if at > 0 {
                    self.newline();
                }
                self.push(line);
            }
            return;
        }
        for (at, word) in text.split([' ', '\n', '\t']).enumerate() {
            if at > 0 && !self.out.is_empty() && !self.out.ends_with(['\n', ' ']) {
                self.out.push(' ');
            }
            self.push(word);
        }
    }

    fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.quotes > 0 && (self.out.is_empty() || self.out.ends_with('\n')) {
            self.out.extend(std::iter::repeat_n("> ", self.quotes.min(8)));
        }
        self.out.push_str(text);
    }

    fn newline(&mut self) {
        self.trim();
        if self.quotes > 0 && self.out.ends_with('\n') {
            let marks = "> ".repeat(self.quotes.min(8));
            self.out.push_str(marks.trim_end());
        }
        self.out.push('\n');
    }

    fn trim(&mut self) {
        let end = self.out.trim_end_matches(' ').len();
        self.out.truncate(end);
    }

    /// Begins a line, unless this is the beginning of one.
    fn fresh(&mut self) {
        self.trim();
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
    }

    fn tag(&mut self, tag: &str) {
        let (closes, tag) = tag.strip_prefix('/').map_or((false, tag), |tag| (true, tag));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        match (name, closes) {
            ("br", _) => self.newline(),
            ("hr", _) => {
                self.fresh();
                self.push("---");
                self.newline();
            }
            ("a", false) => self.links.push((unescape(attribute(attributes, "href")), self.out.len())),
            ("a", true) => {
                if let Some((href, start)) = self.links.pop()
                    && !href.is_empty()
                    && !href.starts_with("https://matrix.to/")
                {
                    let label = self.out.get(start..).unwrap_or_default().trim().to_owned();
                    if label.is_empty() {
                        self.push(&href);
                    } else if label != href {
                        self.push(&format!(" ({href})"));
                    }
                }
            }
            ("ul", false) => self.begin_list(None),
            ("ol", false) => self.begin_list(Some(attribute(attributes, "start").parse().unwrap_or(1))),
            ("ul" | "ol", true) => {
                self.lists.pop();
                self.fresh();
            }
            ("li", false) => {
                self.fresh();
                let indent = "  ".repeat(self.lists.len().saturating_sub(1).min(8));
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number = number.saturating_add(1);
                        format!("{}. ", *number - 1)
                    }
                    _ => "- ".to_owned(),
                };
                self.push(&format!("{indent}{mark}"));
            }
            ("td" | "th", false) => {
                if self.cells > 0 {
                    self.push(" | ");
                }
                self.cells += 1;
            }
            ("tr", _) => {
                self.cells = 0;
                self.fresh();
            }
            ("blockquote", false) => {
                self.fresh();
                self.quotes += 1;
            }
            ("blockquote", true) => {
                self.fresh();
                self.quotes = self.quotes.saturating_sub(1);
            }
            ("pre", _) => {
                self.fresh();
                self.pre = !closes;
            }
            (
                "p" | "div" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "table" | "details" | "summary"
                | "caption",
                _,
            ) => self.fresh(),
            _ => {}
        }
    }

    fn begin_list(&mut self, number: Option<u32>) {
        self.fresh();
        self.lists.push(number);
    }

    fn done(mut self) -> String {
        self.out.truncate(self.out.trim_end().len());
        self.out
    }
}

/// An attribute's value in clean HTML.
fn attribute<'a>(attributes: &'a str, name: &str) -> &'a str {
    attributes
        .split_once(name)
        .and_then(|(_, rest)| rest.strip_prefix("=\""))
        .and_then(|rest| rest.split_once('"'))
        .map_or("", |(value, _)| value)
}

/// Text of clean HTML, which knows these entities alone.
fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&nbsp;", " ")
        .replace("&amp;", "&")
}
