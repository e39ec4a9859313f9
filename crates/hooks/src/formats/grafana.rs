//! Grafana's webhooks. Those of unified alerting are Alertmanager's with a `title` and a `message`.

use serde_json::Value;

use super::Formatted;
use crate::html::Html;
use crate::json::Look as _;

/// Alerts that are shown.
const MAX_ALERTS: usize = 20;

pub(super) fn format(payload: &Value) -> Formatted {
    let alerts = payload.list("/alerts");
    let status = payload.any(&["/status", "/state"]);
    let mut html = Html::default();
    let (mark, colour) = match &*status {
        "resolved" | "ok" => ("✅", "#2eb886"),
        "firing" | "alerting" => ("🔥", "#a30200"),
        "pending" | "no_data" => ("⚠️", "#daa038"),
        _ => ("", ""),
    };
    let title = payload.any(&["/title", "/ruleName", "/commonLabels/alertname", "/groupLabels/alertname"]);
    if !mark.is_empty() {
        html.text(mark).text(" ");
    }
    if !title.is_empty() {
        html.tag("strong", |html| {
            html.link(&payload.any(&["/ruleUrl", "/externalURL"]), &title);
        });
    } else if !status.is_empty() {
        html.tag("strong", |html| {
            html.coloured(colour, &status.to_uppercase());
        });
    }
    // Where Grafana made a text of the alerts, they are not shown twice.
    let text = payload.text("/message");
    if alerts.is_empty() || !is_default_text(&text) {
        html.markdown_block(&text.replace('\n', "  \n"));
    }
    for found in payload.list("/evalMatches").iter().take(MAX_ALERTS) {
        html.fresh_line().text(&found.text("/metric")).text(": ").text(&found.text("/value"));
    }
    if is_default_text(&text) {
        let shown = &alerts[..alerts.len().min(MAX_ALERTS)];
        if !shown.is_empty() {
            html.list(None, shown.len(), |html, at| alert(html, &shown[at]));
        }
        let hidden = alerts.len() - shown.len()
            + payload.text("/truncatedAlerts").parse().unwrap_or(0_usize).min(1 << 20);
        if hidden > 0 {
            html.text(&format!("… and {hidden} more"));
        }
    }
    let image = payload.text("/imageUrl");
    if !image.is_empty() {
        html.fresh_line().text("🖼 ").link(&image, "image");
    }
    let Formatted::Message(mut message) = html.into() else { return Formatted::Empty };
    let group = payload.text("/groupKey");
    if !group.is_empty() {
        message.key = Some(format!("alerts/{group}"));
        if status == "resolved" {
            message.edits.clone_from(&message.key);
        }
    }
    Formatted::Message(message)
}

/// Nothing, or what Grafana writes unless it is told otherwise.
fn is_default_text(text: &str) -> bool {
    let text = text.trim();
    text.is_empty() || text.starts_with("**Firing**") || text.starts_with("**Resolved**")
}

fn alert(html: &mut Html, alert: &Value) {
    let name = alert.any(&["/labels/alertname", "/fingerprint"]);
    let status = alert.text("/status");
    let colour = if status == "resolved" { "#2eb886" } else { "#a30200" };
    html.coloured(colour, &status.to_uppercase()).text(" ");
    html.link(&alert.any(&["/panelURL", "/dashboardURL", "/generatorURL"]), &name);
    let about = alert.any(&["/annotations/summary", "/annotations/description", "/annotations/message"]);
    if !about.is_empty() {
        html.text(": ").text(&about);
    }
    let labels: Vec<String> = alert
        .pairs("/labels")
        .iter()
        .filter(|(name, _)| *name != "alertname" && !name.starts_with("__"))
        .take(20)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !labels.is_empty() {
        html.text(" ").tag("code", |html| {
            html.text(&labels.join(", "));
        });
    }
    for (place, name) in [("/silenceURL", "silence"), ("/imageURL", "image")] {
        let url = alert.text(place);
        if !url.is_empty() {
            html.text(" · ").link(&url, name);
        }
    }
}
