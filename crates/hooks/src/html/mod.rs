//! HTML of the kind that Matrix allows in messages, and the text that stands for it where HTML is not shown.
//!
//! The HTML is the one source: whatever a formatter builds is cleaned once more at the end, the plain text is derived from what
//! is left, and both are cut to what fits into an event.

mod plain;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use ammonia::Builder;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::Message;
use plain::plain;

/// What a formatter may build, in bytes; more is not taken. It bounds the work that a payload can cause.
const MAX_BUILT: usize = 64 << 10;

/// The HTML of a message, in bytes of JSON. An event is at most 65,536 bytes long, and an edit holds everything twice.
const MAX_HTML: usize = 16 << 10;

/// The plain text of a message, in bytes of JSON.
const MAX_PLAIN: usize = 10 << 10;

/// Tags in HTML that comes from elsewhere. A parser has to repair what is nested wrongly, with work and memory that grow with the
/// square of their number.
const MAX_FOREIGN_TAGS: usize = 1000;

/// How deeply tags may be nested: the bound that Matrix recommends.
const MAX_DEPTH: usize = 100;

/// The elements of Matrix's list (client-server API, `m.room.message`), less `img`: what a webhook shows lies elsewhere than in
/// the media repository.
const TAGS: &str = "a b blockquote br caption code del details div em font h1 h2 h3 h4 h5 h6 hr i li ol p pre s span \
                    strike strong sub summary sup table tbody td th thead tr tt u ul";

/// The schemes of links that Matrix allows.
const SCHEMES: [&str; 5] = ["ftp", "http", "https", "magnet", "mailto"];

/// How HTML ends after which a new line begins anyhow.
const BLOCK_ENDS: &str =
    "<blockquote> <br> <hr> </blockquote> </div> </h3> </h4> </ol> </p> </pre> </table> </ul> <summary>";

/// How HTML begins before which a line ends anyhow.
const BLOCK_STARTS: &str = "<blockquote> <details> <div> <h <ol <p> <pre> <table> <ul>";

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let attributes: HashMap<&str, HashSet<&str>> = HashMap::from([
        ("a", HashSet::from(["href"])),
        ("code", HashSet::from(["class"])),
        ("font", HashSet::from(["color", "data-mx-bg-color", "data-mx-color"])),
        ("ol", HashSet::from(["start"])),
        ("span", HashSet::from(["data-mx-bg-color", "data-mx-color", "data-mx-spoiler"])),
    ]);
    let mut builder = Builder::empty();
    builder
        .tags(TAGS.split(' ').collect())
        .clean_content_tags(HashSet::from(["head", "script", "style", "template", "title"]))
        .tag_attributes(attributes)
        .url_schemes(HashSet::from(SCHEMES))
        .url_relative(ammonia::UrlRelative::Deny)
        .link_rel(None)
        .attribute_filter(|_, attribute, value| {
            let fine = match attribute {
                "class" => value.strip_prefix("language-").is_some_and(|name| {
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-_#.".contains(c))
                }),
                "color" | "data-mx-color" | "data-mx-bg-color" => is_colour(value),
                "start" => value.len() < 10 && value.bytes().all(|byte| byte.is_ascii_digit()),
                _ => true,
            };
            fine.then_some(Cow::Borrowed(value))
        });
    builder
});

/// HTML under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Html(String);

impl Html {
    /// Adds text. Its line breaks stay.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        for (at, line) in cut(text, self.room()).lines().enumerate() {
            if at > 0 {
                self.0.push_str("<br>");
            }
            escape(&mut self.0, line);
        }
        self
    }

    /// Adds text as it stands: line breaks of it are that of `<pre>`.
    pub(crate) fn verbatim(&mut self, text: &str) -> &mut Self {
        let text = cut(text, self.room());
        escape(&mut self.0, text);
        self
    }

    /// Adds an element with what `inner` puts into it.
    pub(crate) fn tag(&mut self, name: &'static str, inner: impl FnOnce(&mut Self)) -> &mut Self {
        if self.room() == 0 {
            return self;
        }
        let _ = write!(self.0, "<{name}>");
        inner(self);
        let _ = write!(self.0, "</{name}>");
        self
    }

    /// Adds strong text.
    pub(crate) fn strong(&mut self, text: &str) -> &mut Self {
        self.tag("strong", |html| {
            html.text(text);
        })
    }

    /// Adds a line break.
    pub(crate) fn line(&mut self) -> &mut Self {
        if self.room() > 0 {
            self.0.push_str("<br>");
        }
        self
    }

    /// Adds a line break, unless nothing stands on this line yet.
    pub(crate) fn fresh_line(&mut self) -> &mut Self {
        if !self.0.is_empty() && !BLOCK_ENDS.split(' ').any(|end| self.0.ends_with(end)) {
            self.line();
        }
        self
    }

    /// Adds a rule.
    pub(crate) fn rule(&mut self) -> &mut Self {
        if self.room() > 0 {
            self.0.push_str("<hr>");
        }
        self
    }

    /// Adds a link; where the URL is none that may be linked to, the label alone. An empty label is the URL.
    pub(crate) fn link(&mut self, url: &str, label: &str) -> &mut Self {
        let url = url.trim();
        let label = if label.trim().is_empty() { url } else { label };
        if may_link(url) && url.len() < self.room() {
            self.0.push_str("<a href=\"");
            escape(&mut self.0, url);
            self.0.push_str("\">");
            self.text(label);
            self.0.push_str("</a>");
            self
        } else {
            self.text(label)
        }
    }

    /// Adds a square in a colour of the form `#rrggbb`; nothing for another.
    pub(crate) fn coloured(&mut self, colour: &str, text: &str) -> &mut Self {
        if is_colour(colour) {
            let _ = write!(self.0, "<span data-mx-color=\"{colour}\">");
            self.text(text);
            self.0.push_str("</span>");
            self
        } else {
            self.text(text)
        }
    }

    /// Adds code as a block.
    pub(crate) fn code_block(&mut self, language: &'static str, code: &str) -> &mut Self {
        self.0.push_str("<pre><code");
        if !language.is_empty() {
            let _ = write!(self.0, " class=\"language-{language}\"");
        }
        self.0.push('>');
        self.verbatim(code.trim_end());
        self.0.push_str("</code></pre>");
        self
    }

    /// Adds a list; `first` is the number of an ordered one's first item.
    pub(crate) fn list(
        &mut self,
        first: Option<u32>,
        items: usize,
        mut item: impl FnMut(&mut Self, usize),
    ) -> &mut Self {
        let tag = if first.is_some() { "ol" } else { "ul" };
        match first {
            Some(first) if first != 1 => drop(write!(self.0, "<ol start=\"{first}\">")),
            _ => drop(write!(self.0, "<{tag}>")),
        }
        for at in 0..items {
            self.tag("li", |html| item(html, at));
        }
        let _ = write!(self.0, "</{tag}>");
        self
    }

    /// Adds a link to a user, as the clients show it.
    pub(crate) fn user(&mut self, user: &str) -> &mut Self {
        let encoded = percent_encoding::utf8_percent_encode(user, percent_encoding::NON_ALPHANUMERIC);
        self.link(&format!("https://matrix.to/#/{encoded}"), user)
    }

    /// Adds what was built apart, as much of it as there is room for.
    pub(crate) fn html(&mut self, other: &Self) -> &mut Self {
        if other.0.len() <= self.room() {
            self.0.push_str(&other.0);
        } else if self.room() > 0 {
            self.0.push_str(&fit(clean(&other.0), self.room()));
        }
        self
    }

    /// Adds what was built apart, on lines of its own; nothing if it is empty.
    pub(crate) fn block(&mut self, other: &Self) -> &mut Self {
        if other.is_empty() {
            return self;
        }
        if !BLOCK_STARTS.split(' ').any(|start| other.0.starts_with(start)) {
            self.fresh_line();
        }
        self.html(other)
    }

    /// Adds HTML from elsewhere, less what Matrix does not allow.
    pub(crate) fn foreign(&mut self, html: &str) -> &mut Self {
        let html = fit(clean(few_tags(cut(html, self.room()))), self.room());
        self.html(&Self(html))
    }

    /// Adds Markdown.
    pub(crate) fn markdown(&mut self, text: &str) -> &mut Self {
        let text = cut(text, self.room());
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
        // Images become links: what they show lies elsewhere.
        let events = Parser::new_ext(text, options).map(|event| match event {
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                Event::Start(Tag::Link { link_type, dest_url, title, id })
            }
            Event::End(TagEnd::Image) => Event::End(TagEnd::Link),
            // What Matrix does not know as HTML was hardly meant as HTML; comments and images go without a word.
            Event::InlineHtml(tag) | Event::Html(tag) if !is_known(&tag) => Event::Text(tag),
            Event::TaskListMarker(done) => Event::Text(if done { "☑ " } else { "☐ " }.into()),
            other => other,
        });
        let mut html = String::new();
        pulldown_cmark::html::push_html(&mut html, events);
        let html = html.trim_end();
        // One paragraph alone is a line.
        let html = match html.strip_prefix("<p>").and_then(|html| html.strip_suffix("</p>")) {
            Some(inner) if !inner.contains("<p>") => inner,
            _ => html,
        };
        self.foreign(html)
    }

    /// Adds Markdown on lines of its own; nothing if it is empty.
    pub(crate) fn markdown_block(&mut self, text: &str) -> &mut Self {
        let mut own = Self::default();
        own.markdown(text.trim());
        self.block(&own)
    }

    /// Whether there is nothing to see.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The message that shows this.
    pub(crate) fn message(&self) -> Message {
        let html = fit(clean(&self.0), MAX_HTML);
        let mut plain = plain(&html);
        if json_len(&plain) > MAX_PLAIN {
            plain = shorten(&plain, MAX_PLAIN - 8);
            plain.push('…');
        }
        // What has lines alone needs no HTML, and what is nested too deeply is not shown by clients.
        let bare = html.replace("<br>", "");
        let html =
            (bare.contains('<') && depth(&html) <= MAX_DEPTH && json_len(&html) <= MAX_HTML).then_some(html);
        Message { plain, html, ..Message::default() }
    }

    fn room(&self) -> usize {
        MAX_BUILT.saturating_sub(self.0.len())
    }
}

/// Whether a link may go there.
pub(crate) fn may_link(url: &str) -> bool {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && !url.contains(|c: char| c.is_control() || c == ' ')
}

/// Whether a tag is one that [`clean`] knows what to do with.
fn is_known(tag: &str) -> bool {
    let name = tag.trim_start().trim_start_matches(['<', '/']);
    let name =
        name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_ascii_lowercase();
    name.is_empty() || name == "img" || TAGS.split(' ').any(|known| known == name)
}

/// `#rrggbb`.
pub(crate) fn is_colour(value: &str) -> bool {
    value
        .strip_prefix('#')
        .is_some_and(|hex| hex.len() == 6 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The beginning of a text, at most so many bytes of it.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let most = most.min(text.len());
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// What is left of HTML when only that stays which Matrix allows, in the one form that [`plain`] reads.
fn clean(html: &str) -> String {
    CLEANER.clean(html).to_string()
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // Neither seen nor harmless: they hide text, or turn what follows it around.
            c if c.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c) => {}
            c => out.push(c),
        }
    }
}

fn few_tags(html: &str) -> &str {
    html.match_indices('<').nth(MAX_FOREIGN_TAGS).map_or(html, |(at, _)| &html[..at])
}

/// Clean HTML cut to so many bytes of JSON.
fn fit(mut html: String, bound: usize) -> String {
    let mut most = bound - bound / 16;
    // The end tags that are then missing are added again, so that one round is enough unless somebody nests deeply.
    for _ in 0..4 {
        if json_len(&html) <= bound {
            break;
        }
        let mut head = shorten(&html, most);
        if let Some(open) = head.rfind('<')
            && !head[open..].contains('>')
        {
            head.truncate(open);
        }
        if let Some(open) = head.rfind('&')
            && !head[open..].contains(';')
        {
            head.truncate(open);
        }
        head.push('…');
        html = clean(&head);
        most /= 2;
    }
    html
}

/// The length of a text as a JSON string, without its quotes.
fn json_len(text: &str) -> usize {
    text.chars().map(json_char).sum()
}

fn json_char(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\t' | '\r' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    }
}

fn shorten(text: &str, most: usize) -> String {
    let mut length = 0;
    let fits = |c: &char| {
        length += json_char(*c);
        length <= most
    };
    text.chars().take_while(fits).collect()
}

/// How deeply clean HTML is nested.
fn depth(html: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for (at, _) in html.match_indices('<') {
        let tag = &html[at + 1..];
        if tag.starts_with('/') {
            depth = depth.saturating_sub(1);
        } else if !tag.starts_with("br") && !tag.starts_with("hr") {
            depth += 1;
            deepest = deepest.max(depth);
        }
    }
    deepest
}

/// Fails unless a message's HTML is of the allowed kind and, with its text, fits into an edit.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_clean(message: &Message) {
    assert!(!message.plain.is_empty());
    let html = message.html.as_deref().unwrap_or_default();
    assert_eq!(clean(html), html);
    assert!(json_len(html) + json_len(&message.plain) <= 28 << 10);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn built(build: impl FnOnce(&mut Html)) -> Message {
        let mut html = Html::default();
        build(&mut html);
        html.message()
    }

    #[test]
    fn text_stays_text() {
        let message = built(|html| {
            html.text("<b>&amp; \"@room\"\n</b>\u{202e}\0");
        });
        assert_eq!(message.plain, "<b>&amp; \"@room\"\n</b>");
        assert_eq!(message.html, None);
        assert!(!message.mentions_room && message.mentions.is_empty());
    }

    #[test]
    fn the_plain_text_says_what_the_html_shows() {
        let message = built(|html| {
            html.markdown(
                "# Title\n\nOne *two* [three](https://example.org/?a=1&b=2) <https://example.org/>\n\n- a\n- b\n  1. c\n\n> quoted\n> more\n\n\
                 ```rust\nfn main() {\n    x < 1;\n}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n![shot](https://example.org/i.png)\n",
            );
        });
        insta::assert_snapshot!(message.plain);
        insta::assert_snapshot!(message.html.unwrap());
    }

    #[test]
    fn links_go_where_links_may_go() {
        for url in [
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "data:text/html,x",
            " java\nscript:x",
            "//example.org",
            "/x",
        ] {
            let message = built(|html| {
                html.link(url, "label").strong("!");
            });
            assert_eq!(message.html.as_deref(), Some("label<strong>!</strong>"), "{url}");
            let message = built(|html| {
                html.markdown(&format!("[label](<{url}>) **!**"))
                    .foreign(&format!("<a href=\"{url}\">x</a>"));
            });
            assert!(!message.html.unwrap().contains("href"), "{url}");
        }
        let message = built(|html| {
            html.link("https://example.org/\"><script>alert(1)</script>", "a\"b");
        });
        assert!(!message.html.unwrap().contains("<script"));
    }

    #[test]
    fn foreign_html_is_cleaned() {
        let message = built(|html| {
            html.foreign(
                "<h1 onclick=x style='color:red'>Hi</h1><script>alert(1)</script><img src=https://example.org/x onerror=y>\
                 <iframe src=x></iframe><font color=#ff0000 data-x=1>red</font><font color='url(x)'>x</font>\
                 <code class='language-rust evil'>c</code><ol start=3><li>three</ol><b>open",
            );
        });
        insta::assert_snapshot!(message.html.unwrap());
    }

    #[test]
    fn what_is_too_long_is_cut_to_what_fits_into_an_edit() {
        for text in
            ["a\"".repeat(200_000), "<&>".repeat(100_000), "ä\n".repeat(300_000), "\\".repeat(1 << 20)]
        {
            for build in [
                |html: &mut Html, text: &str| drop(html.text(text).strong("x").line().text(text).clone()),
                |html: &mut Html, text: &str| drop(html.markdown(text).clone()),
                |html: &mut Html, text: &str| drop(html.foreign(text).clone()),
                |html: &mut Html, text: &str| drop(html.code_block("json", text).clone()),
            ] {
                let message = built(|html| build(html, &text));
                assert_clean(&message);
            }
        }
    }

    #[test]
    fn nesting_costs_little() {
        let nested = "<b><i><blockquote>".repeat(50_000);
        let misnested = (0..30_000).map(|n| format!("<p><font color=#{n:06x}>")).collect::<Vec<_>>().concat();
        for html in
            [nested.clone(), misnested, "[".repeat(500_000), "> ".repeat(500_000), "*_".repeat(300_000)]
        {
            built(|out| {
                out.foreign(&html);
            });
            built(|out| {
                out.markdown(&html);
            });
        }
        let message = built(|out| {
            out.foreign(&format!("{nested}deep"));
        });
        assert_eq!(message.html, None, "clients show nothing that deep");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_clean_in_the_end(text in "(?s)[a-z<>&\"'/=!@#: \\n\\\\\\PC]{0,200}") {
            let message = built(|html| {
                html.text(&text).link(&text, &text).foreign(&text).markdown(&text).coloured(&text, &text).code_block("", &text);
            });
            if let Some(html) = message.html {
                prop_assert_eq!(clean(&html), html);
            }
        }
    }
}
