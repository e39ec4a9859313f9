//! Slack's Block Kit, as far as a message shows it.

use serde_json::Value;

use super::Render;
use super::mrkdwn::{decode, emoji, emojis, time};
use crate::html::Html;
use crate::json::Look as _;

/// Blocks that are shown: Slack takes 50.
const MAX_BLOCKS: usize = 50;
/// Elements of a block, rows of a table: Slack takes 100 rows.
const MAX_ELEMENTS: usize = 100;
/// Columns of a table, as in Slack.
const MAX_COLUMNS: usize = 20;

impl Render<'_> {
    /// Adds blocks.
    pub(super) fn blocks(&mut self, html: &mut Html, blocks: &[Value]) {
        for block in blocks.iter().take(MAX_BLOCKS) {
            let mut own = Html::default();
            self.block(&mut own, block);
            html.block(&own);
        }
    }

    fn block(&mut self, html: &mut Html, block: &Value) {
        match &*block.text("/type") {
            "header" => {
                let mut own = Html::default();
                self.text_object(&mut own, block.pointer("/text"));
                if !own.is_empty() {
                    html.tag("h3", |html| {
                        html.html(&own);
                    });
                }
            }
            "section" => self.section(html, block),
            "divider" => {
                html.rule();
            }
            "image" => image(html, block),
            "context" => {
                for (at, element) in block.list("/elements").iter().take(MAX_ELEMENTS).enumerate() {
                    if at > 0 {
                        html.text(" ");
                    }
                    if element.text("/type") == "image" {
                        html.text(&element.text("/alt_text"));
                    } else {
                        self.text_object(html, Some(element));
                    }
                }
            }
            "actions" => links(html, block.list("/elements")),
            "rich_text" => self.rich_text(html, block.list("/elements")),
            "markdown" => {
                html.markdown(&block.text("/text"));
            }
            "table" => self.table(html, block.list("/rows")),
            "video" => {
                let url = block.any(&["/title_url", "/video_url"]);
                html.text("▶ ").link(&url, &block.any(&["/title/text", "/alt_text"]));
                for more in ["/author_name", "/provider_name"] {
                    if block.has(more) {
                        html.text(" · ").text(&block.text(more));
                    }
                }
                if block.has("/description") {
                    html.line();
                    self.text_object(html, block.pointer("/description"));
                }
            }
            // One that is newer than this: whatever text it has.
            _ => {
                for part in ["/title", "/text", "/body", "/subtitle", "/description", "/label"] {
                    let mut own = Html::default();
                    self.text_object(&mut own, block.pointer(part));
                    html.block(&own);
                }
            }
        }
    }

    fn section(&mut self, html: &mut Html, block: &Value) {
        self.text_object(html, block.pointer("/text"));
        for field in block.list("/fields").iter().take(MAX_ELEMENTS) {
            html.fresh_line();
            // The usual field is a title in a line of its own, which would take two lines here.
            let text = field.text("/text").replacen("*\n", "* ", 1);
            if field.text("/type") == "plain_text" {
                html.text(&emojis(&decode(&text)));
            } else {
                self.mrkdwn(html, &text);
            }
        }
        if let Some(accessory) = block.pointer("/accessory") {
            let mut own = Html::default();
            if accessory.text("/type") == "image" {
                image(&mut own, accessory);
            } else {
                links(&mut own, std::slice::from_ref(accessory));
            }
            html.block(&own);
        }
    }

    /// Adds a text object: `plain_text` or `mrkdwn`. A string alone is taken for the latter.
    pub(super) fn text_object(&mut self, html: &mut Html, object: Option<&Value>) {
        match object {
            Some(Value::String(text)) => self.mrkdwn(html, text),
            Some(object) if object.text("/type") == "plain_text" => {
                html.text(&emojis(&decode(&object.text("/text"))));
            }
            Some(object) => self.mrkdwn(html, &object.text("/text")),
            None => {}
        }
    }

    fn rich_text(&mut self, html: &mut Html, elements: &[Value]) {
        for element in elements.iter().take(MAX_ELEMENTS) {
            let inner = element.list("/elements");
            match &*element.text("/type") {
                "rich_text_section" => {
                    html.fresh_line();
                    self.rich_elements(html, inner);
                }
                "rich_text_quote" => {
                    html.tag("blockquote", |html| self.rich_elements(html, inner));
                }
                "rich_text_preformatted" => {
                    let mut code = String::new();
                    for part in inner.iter().take(MAX_ELEMENTS) {
                        code.push_str(&part.any(&["/text", "/url"]));
                    }
                    html.code_block("", &code);
                }
                "rich_text_list" => {
                    let first = element.text("/offset").parse().unwrap_or(0_u32).saturating_add(1);
                    let ordered = (element.text("/style") == "ordered").then_some(first);
                    let indent = element.text("/indent").parse().unwrap_or(0_usize).min(8);
                    let inner = &inner[..inner.len().min(MAX_ELEMENTS)];
                    self.nested(html, indent, ordered, inner);
                }
                _ => {}
            }
        }
    }

    fn nested(&mut self, html: &mut Html, indent: usize, ordered: Option<u32>, items: &[Value]) {
        if indent > 0 {
            html.tag("ul", |html| self.nested(html, indent - 1, ordered, items));
        } else {
            html.list(ordered, items.len(), |html, at| self.rich_elements(html, items[at].list("/elements")));
        }
    }

    fn rich_elements(&mut self, html: &mut Html, elements: &[Value]) {
        for element in elements.iter().take(MAX_ELEMENTS) {
            let mut own = Html::default();
            match &*element.text("/type") {
                "text" => {
                    own.text(&element.text("/text"));
                }
                "link" => {
                    own.link(&element.text("/url"), &element.text("/text"));
                }
                "user" => self.user(&mut own, &element.text("/user_id"), ""),
                "usergroup" => {
                    own.text("@").text(&element.text("/usergroup_id"));
                }
                "channel" => {
                    own.text("#").text(&element.text("/channel_id"));
                }
                "broadcast" => self.broadcast(&mut own, &element.text("/range")),
                "color" => {
                    own.coloured(&element.text("/value"), &element.text("/value"));
                }
                "emoji" => {
                    let name = element.text("/name");
                    match emoji(&name) {
                        Some(emoji) => own.text(emoji),
                        None => own.text(":").text(&name).text(":"),
                    };
                }
                "date" => {
                    let time = element.text("/timestamp").parse().ok().and_then(time);
                    own.text(&time.unwrap_or_else(|| element.text("/fallback").into_owned()));
                }
                _ => {}
            }
            for (style, tag) in [
                ("code", "code"),
                ("bold", "strong"),
                ("italic", "em"),
                ("strike", "del"),
                ("underline", "u"),
            ] {
                if element.text(&format!("/style/{style}")) == "true" {
                    let mut outer = Html::default();
                    outer.tag(tag, |outer| {
                        outer.html(&own);
                    });
                    own = outer;
                }
            }
            html.html(&own);
        }
    }

    fn table(&mut self, html: &mut Html, rows: &[Value]) {
        html.tag("table", |html| {
            for (at, row) in rows.iter().take(MAX_ELEMENTS).enumerate() {
                html.tag("tr", |html| {
                    for cell in row.list("").iter().take(MAX_COLUMNS) {
                        html.tag(if at == 0 { "th" } else { "td" }, |html| {
                            if cell.text("/type") == "rich_text" {
                                for section in cell.list("/elements").iter().take(MAX_ELEMENTS) {
                                    self.rich_elements(html, section.list("/elements"));
                                }
                            } else {
                                html.text(&cell.any(&["/text", "/value"]));
                            }
                        });
                    }
                });
            }
        });
    }
}

fn image(html: &mut Html, image: &Value) {
    let url = image.any(&["/image_url", "/slack_file/url"]);
    html.text("🖼 ").link(&url, &emojis(&image.any(&["/title/text", "/alt_text"])));
}

/// Adds the buttons, and the choices of menus, that lead somewhere.
pub(super) fn links(html: &mut Html, elements: &[Value]) {
    let options = |element: &'_ Value| element.list("/options").to_vec();
    let mut first = true;
    for element in elements.iter().take(MAX_ELEMENTS) {
        for link in std::iter::once(element.clone()).chain(options(element)).filter(|link| link.has("/url")) {
            if !std::mem::take(&mut first) {
                html.text(" | ");
            }
            html.link(
                &link.text("/url"),
                &emojis(&decode(&link.any(&["/text/text", "/text", "/name", "/alt_text"]))),
            );
        }
    }
}
