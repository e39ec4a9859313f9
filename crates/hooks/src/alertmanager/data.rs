//! What Alertmanager sends, and what templates see of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;
use serde::{Deserialize, Deserializer};

use super::config::{ComputedValue, Templating};
use super::time::Time;

type Labels = BTreeMap<String, String>;

/// A notification of Alertmanager's, version 4 of its webhooks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Payload {
    #[serde(deserialize_with = "or_default")]
    pub(super) group_key: String,
    pub(super) truncated_alerts: u64,
    #[serde(deserialize_with = "or_default")]
    pub(super) status: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) receiver: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) group_labels: Labels,
    #[serde(deserialize_with = "or_default")]
    pub(super) common_labels: Labels,
    #[serde(deserialize_with = "or_default")]
    pub(super) common_annotations: Labels,
    #[serde(rename = "externalURL", deserialize_with = "or_default")]
    pub(super) external_url: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) alerts: Vec<Alert>,
}

/// An alert.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Alert {
    #[serde(deserialize_with = "or_default")]
    pub(super) status: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: Labels,
    #[serde(deserialize_with = "or_default")]
    pub(super) annotations: Labels,
    #[serde(deserialize_with = "or_default")]
    pub(super) starts_at: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) ends_at: String,
    #[serde(rename = "generatorURL", deserialize_with = "or_default")]
    pub(super) generator_url: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) fingerprint: String,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Payload {
    /// Something to try templates on.
    pub(super) fn sample(status: &str) -> Self {
        let labels: Labels = [("alertname", "Sample"), ("severity", "warning")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let time = || "2026-01-02T03:04:05Z".to_owned();
        let alert = Alert {
            status: status.to_owned(),
            labels: labels.clone(),
            annotations: [("summary".to_owned(), "a sample".to_owned())].into(),
            starts_at: time(),
            ends_at: time(),
            generator_url: "http://prometheus:9090/graph".to_owned(),
            fingerprint: "0123456789abcdef".to_owned(),
        };
        Self {
            group_key: "{}:{}".to_owned(),
            status: status.to_owned(),
            receiver: "matrix".to_owned(),
            common_labels: labels,
            external_url: "http://alertmanager:9093".to_owned(),
            alerts: vec![alert],
            ..Self::default()
        }
    }
}

/// A notification for templates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    pub(super) payload: &'a Payload,
    pub(super) templating: &'a Templating,
}

impl Shown<'_> {
    /// What a template sees whose alert is this one.
    pub(super) fn data(self, alert: Option<&Alert>) -> Value {
        let Self { payload, templating } = self;
        let none = Alert::default();
        let alert = alert.unwrap_or(&none);
        let external = mapped(&payload.external_url, &templating.external_url_mapping);
        map([
            ("Alert", self.alert(alert)),
            ("Alerts", Value::List(payload.alerts.iter().map(|alert| self.alert(alert)).collect())),
            ("Status", text(&payload.status)),
            ("Receiver", text(&payload.receiver)),
            ("GroupKey", text(&payload.group_key)),
            ("TruncatedAlerts", Value::Int(i64::try_from(payload.truncated_alerts).unwrap_or(i64::MAX))),
            ("GroupLabels", kv(&payload.group_labels)),
            ("CommonLabels", kv(&payload.common_labels)),
            ("CommonAnnotations", kv(&payload.common_annotations)),
            ("SilenceURL", text(&silence_url(&alert.labels, external))),
            ("ExternalURL", text(external)),
            ("GeneratorURL", text(mapped(&alert.generator_url, &templating.generator_url_mapping))),
            ("ComputedValues", kv(&computed(alert, &templating.computed_values))),
        ])
    }

    fn alert(self, alert: &Alert) -> Value {
        let external = mapped(&self.payload.external_url, &self.templating.external_url_mapping);
        let time =
            |written: &str| text(&Time::parse(written).map_or_else(|| written.to_owned(), Time::shown));
        map([
            ("Status", text(&alert.status)),
            ("Labels", kv(&alert.labels)),
            ("Annotations", kv(&alert.annotations)),
            ("StartsAt", time(&alert.starts_at)),
            ("EndsAt", time(&alert.ends_at)),
            ("GeneratorURL", text(&alert.generator_url)),
            ("Fingerprint", text(&alert.fingerprint)),
            ("SilenceURL", text(&silence_url(&alert.labels, external))),
            ("ComputedValues", kv(&computed(alert, &self.templating.computed_values))),
        ])
    }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn kv(labels: &Labels) -> Value {
    let entries = labels.iter().map(|(name, value)| (name.as_str().into(), text(value)));
    Value::Map(Arc::new(entries.collect()))
}

fn map<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Map(Arc::new(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
}

fn mapped<'a>(url: &'a str, mapping: &'a Labels) -> &'a str {
    mapping.get(url).map_or(url, String::as_str)
}

fn computed(alert: &Alert, values: &[ComputedValue]) -> Labels {
    let within =
        |wanted: &Labels, labels: &Labels| wanted.iter().all(|(name, value)| labels.get(name) == Some(value));
    let mut computed = Labels::new();
    for entry in values {
        let status = entry.when_matching_status.as_str();
        if (status.is_empty() || status == alert.status)
            && within(&entry.when_matching_labels, &alert.labels)
            && within(&entry.when_matching_annotations, &alert.annotations)
        {
            computed.extend(entry.values.clone());
        }
    }
    computed
}

/// Where Alertmanager's page is that silences an alert.
fn silence_url(labels: &Labels, external: &str) -> String {
    if external.is_empty() {
        return String::new();
    }
    let base = external.strip_suffix('/').unwrap_or(external);
    let mut filters: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    if filters.is_empty() {
        return format!("{base}/#/silences/new");
    }
    filters.sort();
    let filter = format!("{{{}}}", filters.join(", "));
    let encoded = percent_encoding::utf8_percent_encode(&filter, ENCODED);
    format!("{base}/#/silences/new?filter={encoded}")
}

const ENCODED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    // The cases are those of matrix-alertmanager-receiver's tests.
    #[test]
    fn urls_are_mapped_as_a_whole() {
        let one = labels(&[("alertmanager:9093", "https://alertmanager.example.com")]);
        let two = labels(&[
            ("alertmanager:9093", "https://alertmanager.example.com"),
            ("alerts:12345", "https://x"),
        ]);
        for (url, mapping, expected) in [
            ("alertmanager:9093", &one, "https://alertmanager.example.com"),
            ("alertmanager:9093", &two, "https://alertmanager.example.com"),
            ("alerts:12345", &one, "alerts:12345"),
            ("alerts:12345", &Labels::new(), "alerts:12345"),
            ("", &Labels::new(), ""),
            ("", &one, ""),
        ] {
            assert_eq!(mapped(url, mapping), expected);
        }
    }

    #[test]
    fn silences_name_every_label() {
        let none = labels(&[]);
        assert_eq!(silence_url(&none, ""), "");
        assert_eq!(silence_url(&none, "example.com/"), "example.com/#/silences/new");
        assert_eq!(silence_url(&none, "example.com"), "example.com/#/silences/new");
        assert_eq!(
            silence_url(&labels(&[("something", "value")]), "example.com"),
            "example.com/#/silences/new?filter=%7Bsomething%3D%22value%22%7D"
        );
        assert_eq!(
            silence_url(
                &labels(&[("something", "value"), ("else", "other"), ("more", "labels")]),
                "example.com"
            ),
            "example.com/#/silences/new?filter=%7Belse%3D%22other%22%2C%20more%3D%22labels%22%2C%20something%3D%22value%22%7D"
        );
    }

    #[test]
    fn values_are_computed_where_everything_matches() {
        let alert = Alert {
            status: "firing".to_owned(),
            labels: labels(&[("label", "same")]),
            annotations: labels(&[("annotation", "same")]),
            ..Alert::default()
        };
        let value = || ComputedValue { values: labels(&[("key", "value")]), ..ComputedValue::default() };
        let status = |status: &str| ComputedValue { when_matching_status: status.to_owned(), ..value() };
        let label = |is: &str| ComputedValue { when_matching_labels: labels(&[("label", is)]), ..value() };
        let annotation =
            |is: &str| ComputedValue { when_matching_annotations: labels(&[("annotation", is)]), ..value() };
        let all = ComputedValue {
            when_matching_status: "firing".to_owned(),
            when_matching_labels: labels(&[("label", "same")]),
            ..annotation("same")
        };
        assert_eq!(computed(&alert, &[]), Labels::new());
        for hit in [value(), status("firing"), label("same"), annotation("same"), all] {
            assert_eq!(computed(&alert, &[hit]), labels(&[("key", "value")]));
        }
        for miss in [status("resolved"), label("different"), annotation("different")] {
            assert_eq!(computed(&alert, &[miss]), Labels::new());
        }
        let later = ComputedValue { values: labels(&[("key", "later")]), ..ComputedValue::default() };
        assert_eq!(computed(&alert, &[value(), later]), labels(&[("key", "later")]));
    }
}
