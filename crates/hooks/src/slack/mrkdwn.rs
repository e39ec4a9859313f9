//! Slack's text: mrkdwn.
//!
//! Every pass over a line looks for an end of each kind once at most, so the work grows with the text and not with its square.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use emojis::Emoji;

use super::Render;
use crate::html::{Html, cut, may_link};

/// The longest text that is looked at, in bytes. Slack takes 40,000 characters.
const MAX_TEXT: usize = 64 << 10;

impl Render<'_> {
    /// Adds mrkdwn.
    pub(super) fn mrkdwn(&mut self, html: &mut Html, text: &str) {
        let mut rest = cut(text, MAX_TEXT).trim_end();
        while let Some((before, after)) = rest.split_once("```") {
            let Some((code, after)) = after.split_once("```") else { break };
            self.lines(html, before.trim_end_matches('\n'));
            html.code_block("", &unformatted(code.strip_prefix('\n').unwrap_or(code)));
            rest = after.strip_prefix('\n').unwrap_or(after);
        }
        self.lines(html, rest);
    }

    fn lines(&mut self, html: &mut Html, text: &str) {
        let mut lines = text.lines().peekable();
        let mut within_text = false;
        while let Some(line) = lines.next() {
            if let Some(all) = line.strip_prefix("&gt;&gt;&gt;").or_else(|| line.strip_prefix(">>>")) {
                let quoted: Vec<&str> = std::iter::once(all.trim_start()).chain(lines.by_ref()).collect();
                self.quote(html, &quoted);
                within_text = false;
            } else if let Some(first) = quoted(line) {
                let mut all = vec![first];
                while let Some(more) = lines.peek().and_then(|line| quoted(line)) {
                    all.push(more);
                    lines.next();
                }
                self.quote(html, &all);
                within_text = false;
            } else if let Some((ordered, first)) = item(line) {
                let mut all = vec![first];
                while let Some((_, more)) = lines
                    .peek()
                    .and_then(|line| item(line))
                    .filter(|(kind, _)| kind.is_some() == ordered.is_some())
                {
                    all.push(more);
                    lines.next();
                }
                html.list(ordered, all.len(), |html, at| self.inline(html, all[at], 0));
                within_text = false;
            } else {
                if within_text {
                    html.line();
                }
                self.inline(html, line, 0);
                within_text = true;
            }
        }
    }

    fn quote(&mut self, html: &mut Html, lines: &[&str]) {
        html.tag("blockquote", |html| {
            for (at, line) in lines.iter().enumerate() {
                if at > 0 {
                    html.line();
                }
                self.inline(html, line, 0);
            }
        });
    }

    /// Adds one line. `within` has the styles that it is in already.
    fn inline(&mut self, html: &mut Html, text: &str, within: u8) {
        let bytes = text.as_bytes();
        // What has no end from here on has none later either.
        let mut endless = within;
        let (mut at, mut shown) = (0, 0);
        while at < bytes.len() {
            let kind = match bytes[at] {
                b'*' => STRONG,
                b'_' => EMPHASIS,
                b'~' => STRUCK,
                b'`' => CODE,
                b'<' => ANGLE,
                b':' => EMOJI,
                _ => 0,
            };
            if kind == 0 || endless & kind != 0 || !may_begin(text, at, kind) {
                at += 1;
                continue;
            }
            let Some(end) = end_of(text, at, kind) else {
                if kind != EMOJI {
                    endless |= kind;
                }
                at += 1;
                continue;
            };
            let inner = &text[at + 1..end];
            let emoji = if kind == EMOJI { emoji(inner) } else { None };
            if kind == EMOJI && emoji.is_none() {
                at += 1;
                continue;
            }
            // Two marks are none of Slack's; they are Markdown's, in what is not written for Slack alone.
            let twice = kind == STRONG && text[shown..at].ends_with('*') && text[end + 1..].starts_with('*');
            html.text(&decode(&text[shown..at - usize::from(twice)]));
            match kind {
                STRONG => {
                    html.tag("strong", |html| self.inline(html, inner, within | kind));
                }
                EMPHASIS => {
                    html.tag("em", |html| self.inline(html, inner, within | kind));
                }
                STRUCK => {
                    html.tag("del", |html| self.inline(html, inner, within | kind));
                }
                CODE => {
                    html.tag("code", |html| {
                        html.text(&unformatted(inner));
                    });
                }
                ANGLE => self.angle(html, inner),
                _ => {
                    html.text(emoji.unwrap_or_default());
                }
            }
            at = end + 1 + usize::from(twice);
            if kind == EMOJI {
                // A tone of skin that follows is not shown.
                let rest = &text[at..];
                let tone =
                    rest.strip_prefix(":skin-tone-").and_then(|rest| rest.find(':')).filter(|end| *end == 1);
                at += tone.map_or(0, |end| ":skin-tone-:".len() + end);
            }
            shown = at;
        }
        html.text(&decode(&text[shown..]));
    }

    /// Adds what stands between `<` and `>`.
    fn angle(&mut self, html: &mut Html, inner: &str) {
        let (target, label) = inner.split_once('|').unwrap_or((inner, ""));
        let (target, label) = (decode(target), decode(label));
        if let Some(user) = target.strip_prefix('@') {
            self.user(html, user, &label);
        } else if let Some(channel) = target.strip_prefix('#') {
            html.text("#").text(if label.is_empty() { channel } else { label.trim_start_matches('#') });
        } else if let Some(command) = target.strip_prefix('!') {
            self.command(html, command, &label);
        } else if may_link(&target) {
            html.link(&target, &emojis(&label));
        } else if !label.is_empty() && target.contains([':', '/']) {
            html.text(&label);
        } else {
            html.text(&format!("<{}>", decode(inner)));
        }
    }

    /// Adds a mention of a user by a Slack ID, or by a Matrix ID without its `@`.
    pub(super) fn user(&mut self, html: &mut Html, user: &str, label: &str) {
        let direct = format!("@{user}");
        let known = self.names.users.get(user);
        let known = known.map(String::as_str).or_else(|| user.contains(':').then_some(direct.as_str()));
        match known {
            Some(known) => {
                html.user(known);
                self.mention(known);
            }
            None if label.is_empty() => {
                html.text(&direct);
            }
            None => {
                html.text("@").text(label.trim_start_matches('@'));
            }
        }
    }

    fn command(&mut self, html: &mut Html, command: &str, label: &str) {
        let mut parts = command.split('^');
        match (parts.next().unwrap_or_default(), parts.next()) {
            (range @ ("here" | "channel" | "everyone"), _) => self.broadcast(html, range),
            ("date", Some(seconds)) => {
                let time = seconds.parse().ok().and_then(time).unwrap_or_default();
                let text = if label.is_empty() { time.as_str() } else { label };
                match parts.nth(1) {
                    Some(link) => html.link(link, text),
                    None => html.text(text),
                };
            }
            ("subteam", Some(group)) => {
                html.text("@").text(if label.is_empty() { group } else { label.trim_start_matches('@') });
            }
            (other, _) => {
                html.text(if label.is_empty() { other } else { label });
            }
        }
    }

    /// Adds a mention of everybody in the room.
    pub(super) fn broadcast(&mut self, html: &mut Html, range: &str) {
        if self.names.mention_room {
            self.room = true;
            html.text("@room");
        } else {
            html.text("@").text(range);
        }
    }
}

const STRONG: u8 = 1;
const EMPHASIS: u8 = 2;
const STRUCK: u8 = 4;
const CODE: u8 = 8;
const ANGLE: u8 = 16;
const EMOJI: u8 = 32;

fn quoted(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("&gt;").or_else(|| line.strip_prefix('>'))?;
    Some(rest.strip_prefix(' ').unwrap_or(rest))
}

/// An item of a list: its number in an ordered one, and its text.
fn item(line: &str) -> Option<(Option<u32>, &str)> {
    let line = line.trim_start();
    for mark in ["• ", "◦ ", "▪ ", "- ", "* "] {
        if let Some(item) = line.strip_prefix(mark) {
            return Some((None, item));
        }
    }
    let (number, item) = line.split_once(". ")?;
    let number = (number.len() <= 3 && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)?;
    Some((Some(number.parse().ok()?), item))
}

fn may_begin(text: &str, at: usize, kind: u8) -> bool {
    if matches!(kind, ANGLE | EMOJI) {
        return true;
    }
    let before = text[..at].chars().next_back();
    let after = text[at + 1..].chars().next();
    !before.is_some_and(char::is_alphanumeric)
        && after.is_some_and(|c| (kind == CODE || !c.is_whitespace()) && c != char::from(text.as_bytes()[at]))
}

/// Where what begins at a place ends: the place of its last byte.
fn end_of(text: &str, at: usize, kind: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let first = at + 1;
    match kind {
        ANGLE => {
            let end = first + text[first..].find('>')?;
            (end > first).then_some(end)
        }
        CODE => Some(first + text[first..].find('`')?),
        EMOJI => {
            let name =
                |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_+-'".contains(byte);
            let length = bytes[first..].iter().take(64).position(|byte| !name(byte))?;
            (length > 0 && bytes[first + length] == b':').then_some(first + length)
        }
        _ => {
            let mark = bytes[at];
            let mut angles = true;
            let mut place = first;
            while place < bytes.len() {
                if bytes[place] == b'<' && angles {
                    match text[place..].find('>') {
                        Some(length) => place += length,
                        None => angles = false,
                    }
                } else if bytes[place] == mark
                    && place > first
                    && !text[..place].ends_with(char::is_whitespace)
                    && !text[place + 1..].starts_with(char::is_alphanumeric)
                {
                    return Some(place);
                }
                place += 1;
            }
            None
        }
    }
}

/// Slack's three entities, as text.
pub(super) fn decode(text: &str) -> Cow<'_, str> {
    if text.contains('&') {
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").into()
    } else {
        text.into()
    }
}

/// Text in code: nothing in it has a meaning but links, which stand for themselves.
fn unformatted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        out.push_str(before);
        let Some((inner, after)) = after.split_once('>') else {
            out.push('<');
            rest = after;
            break;
        };
        let (target, label) = inner.split_once('|').unwrap_or((inner, inner));
        if may_link(target) {
            out.push_str(label);
        } else {
            out.push('<');
            out.push_str(inner);
            out.push('>');
        }
        rest = after;
    }
    out.push_str(rest);
    decode(&out).into_owned()
}

/// Text with its `:names:` of emoji as emoji.
pub(super) fn emojis(text: &str) -> Cow<'_, str> {
    if !text.contains(':') {
        return text.into();
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(':') {
        out.push_str(&rest[..at]);
        if let Some(end) = end_of(rest, at, EMOJI)
            && let Some(emoji) = emoji(&rest[at + 1..end])
        {
            out.push_str(emoji);
            rest = &rest[end + 1..];
        } else {
            out.push(':');
            rest = &rest[at + 1..];
        }
    }
    out.push_str(rest);
    out.into()
}

/// The emoji of a name. Most of Slack's names are those of GitHub; others are Unicode's, or have a prefix.
pub(super) fn emoji(name: &str) -> Option<&'static str> {
    static UNICODE: LazyLock<HashMap<String, &'static Emoji>> = LazyLock::new(|| {
        emojis::iter().map(|emoji| (emoji.name().to_lowercase().replace([' ', '-'], "_"), emoji)).collect()
    });
    let by = |name: &str| emojis::get_by_shortcode(name).or_else(|| UNICODE.get(name).copied());
    by(name)
        .or_else(|| by(name.strip_prefix("large_").or_else(|| name.strip_prefix("flag-"))?))
        .map(Emoji::as_str)
}

/// A time in seconds since 1970 as text.
pub(super) fn time(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}
