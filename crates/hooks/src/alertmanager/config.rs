//! The configuration: that of matrix-alertmanager-receiver, and what is added to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use model::ListenAddress;
use regex_lite::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::data::{Payload, Shown};
use super::template::{Template, Wrong};
use crate::auth::Key;
use crate::settings::{Matrix, Queue};
use crate::webhook::{ConfigError, is_room};

/// The template of alerts for which the configuration has none.
const TEMPLATE: &str = r#"<p><strong><font color="{{if eq .Alert.Status "firing"}}#c0392b{{else}}#1e8449{{end}}">{{.Alert.Status | ToUpper}}</font> {{.Alert.Labels.alertname}}</strong>
{{with .Alert.Labels.severity}} ({{.}}){{end}}{{with .Alert.Annotations.summary}}: {{.}}{{end}}</p>
{{with .Alert.Annotations.description}}<p>{{.}}</p>{{end}}
<p>{{with .GeneratorURL}}<a href="{{.}}">Source</a> {{end}}{{if eq .Alert.Status "firing"}}{{with .SilenceURL}}<a href="{{.}}">Silence</a>{{end}}{{end}}</p>
"#;

/// The configuration of `matrix-stack serve alertmanager`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where requests are taken: an address and a port, or `unix:PATH`. Default: `http.address` and `http.port`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^(unix:/.+|(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5})$"))]
    pub listen: Option<String>,
    /// Where `/health`, `/ready` and `/metrics` are served beside the place where requests are taken.
    #[serde(default)]
    #[schemars(regex(pattern = r"^(unix:/.+|(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5})$"))]
    pub metrics: Option<String>,
    /// How requests are taken.
    #[serde(default)]
    pub http: Http,
    /// The account that messages are sent with, and the rooms.
    pub matrix: Account,
    /// What messages say.
    #[serde(default)]
    pub templating: Templating,
    /// Where messages wait. Default: `alertmanager.sqlite` in `$STATE_DIRECTORY`, else in `/var/lib/matrix-stack`.
    #[serde(default)]
    pub queue: Option<Queue>,
    /// How alerts become messages.
    #[serde(default)]
    pub delivery: Delivery,
}

/// How requests are taken.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Http {
    /// The IP address to listen at; every one if it is empty.
    pub address: String,
    /// The port to listen at, 1 to 65535. Required unless `listen` is there.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What paths begin with; the room is the rest. Default: `/alerts`.
    pub alerts_path_prefix: String,
    /// Where metrics are served. Default: `/metrics`.
    pub metrics_path: String,
    /// Whether metrics are served there.
    pub metrics_enabled: bool,
    /// The user that requests have to name. Default: `alertmanager`.
    pub basic_username: String,
    /// The password that requests have to show. Without it, and without a bearer token, every request is taken.
    #[serde(skip_serializing)]
    pub basic_password: String,
    /// A file with that password.
    pub basic_password_file: Option<PathBuf>,
    /// A file with a token that requests may show instead (`Authorization: Bearer`).
    pub bearer_token_file: Option<PathBuf>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http")
            .field("address", &self.address)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The account that messages are sent with, and the rooms.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Account {
    /// The URL of the homeserver, as clients use it.
    pub homeserver_url: String,
    /// The account, `@bot:example.org`. The token says it too; this is to notice that it is another's.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The account's access token.
    #[serde(default, skip_serializing)]
    pub access_token: Option<String>,
    /// A file with the access token.
    #[serde(default)]
    pub access_token_file: Option<PathBuf>,
    /// An HTTP proxy on the way to the homeserver. It has to allow `CONNECT`.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Rooms by the names that URLs have for them: `ops: "!…"` or `ops: "#ops:example.org"`.
    #[serde(default)]
    pub room_mapping: BTreeMap<String, String>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("homeserver_url", &self.homeserver_url).finish_non_exhaustive()
    }
}

/// What messages say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Templating {
    /// The template of alerts that fire, in the language of Go's `html/template`. Default: name, severity, summary, description and
    /// links.
    pub firing_template: String,
    /// The template of resolved alerts. Default: `firing-template`.
    pub resolved_template: String,
    /// Values for templates (`.ComputedValues`), from the first to the last; later ones overwrite earlier ones of the same name.
    pub computed_values: Vec<ComputedValue>,
    /// Alertmanager's own URLs, as Alertmanager sends them, and what stands in messages instead.
    pub external_url_mapping: BTreeMap<String, String>,
    /// The URLs of the alerts' sources, as Prometheus sends them, and what stands in messages instead.
    pub generator_url_mapping: BTreeMap<String, String>,
}

/// Values for alerts that all of the conditions hold for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ComputedValue {
    /// The values by their names.
    pub values: BTreeMap<String, String>,
    /// Labels that the alert has to have, with these values.
    pub when_matching_labels: BTreeMap<String, String>,
    /// Annotations that the alert has to have, with these values.
    pub when_matching_annotations: BTreeMap<String, String>,
    /// `firing` or `resolved`; empty for both.
    pub when_matching_status: String,
}

/// How alerts become messages.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Delivery {
    /// Whether each alert is a message, or each notification.
    pub messages: Messages,
    /// What the end of an alert is.
    pub resolved: Resolved,
    /// For how many seconds the same again is taken for a double: Alertmanager's second attempt, or the other Alertmanager of a pair.
    /// Later it is a reminder (`repeat_interval`), which is sent.
    #[schemars(range(min = 0, max = 86400))]
    pub doubles_within: u32,
    /// Sends notices, which clients do not notify about and bots do not answer to, rather than ordinary messages.
    pub notice: bool,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            messages: Messages::default(),
            resolved: Resolved::default(),
            doubles_within: 60,
            notice: false,
        }
    }
}

/// What is a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Messages {
    /// Each alert.
    #[default]
    PerAlert,
    /// Each notification, with all alerts of its group: templates have them as `.Alerts`, and the first as `.Alert`.
    PerGroup,
}

/// What the end of an alert is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Resolved {
    /// A message of its own.
    #[default]
    Message,
    /// An edit of the message that said that it fires, and so are reminders.
    Edit,
    /// A message in the thread of the one that said that it fires, and so are reminders.
    Thread,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not written as it has to be.
    #[error(transparent)]
    Written(#[from] config::Report),
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Templates are wrong: a line for each problem.
    #[error("{0}")]
    Template(String),
}

/// A configuration that can be used.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) prefix: String,
    pub(super) metrics_path: Option<String>,
    pub(super) basic: Option<(Key, Key)>,
    pub(super) bearer: Option<Key>,
    pub(super) rooms: BTreeMap<String, String>,
    pub(super) firing: Template,
    pub(super) resolved: Option<Template>,
    pub(super) templating: Templating,
    pub(super) delivery: Delivery,
}

impl Config {
    /// Reads a file, with `${NAME}` replaced by environment variables.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(path: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, variable)
    }

    /// Reads a text, which errors call `name`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(name: &str, text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        static VARIABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\$\{(\w+)\}").ok());
        let text = match &*VARIABLE {
            Some(pattern) => pattern.replace_all(text, |found: &regex_lite::Captures<'_>| {
                variable(&found[1]).unwrap_or_else(|| found[0].to_owned())
            }),
            None => text.into(),
        };
        // Keys may be written in capitals too; but then places are those of what was made of the file.
        let mut json = config::document::<Json>(name, &text).unwrap_or_default();
        let config: Self = if fold(&mut json, &[]) {
            config::document(name, &format!("{json:#}"))?
        } else {
            config::document(name, &text)?
        };
        config.settings(name, &text)?;
        Ok(config)
    }

    /// Where requests are taken.
    pub fn listen(&self) -> Result<ListenAddress, ConfigError> {
        if let Some(listen) = &self.listen {
            return address("listen", listen);
        }
        let wrong =
            |setting: &str, reason: String, mend| ConfigError { setting: setting.to_owned(), reason, mend };
        let port = self.http.port.filter(|port| *port > 0).ok_or_else(|| {
            wrong(
                "http.port",
                "it is not there".to_owned(),
                "write a port, such as 9092, or `listen: 127.0.0.1:9092`",
            )
        })?;
        let host = match self.http.address.trim() {
            "" => "0.0.0.0",
            "localhost" => "127.0.0.1",
            host => host,
        };
        let bare = host.contains(':') && !host.starts_with('[');
        address("http.address", &if bare { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    }

    /// Where health and metrics are served beside that.
    pub fn metrics(&self) -> Result<Option<ListenAddress>, ConfigError> {
        self.metrics.as_deref().map(|metrics| address("metrics", metrics)).transpose()
    }

    /// The account.
    pub fn matrix(&self) -> Matrix {
        let Account { homeserver_url, user_id, access_token, access_token_file, proxy, room_mapping: _ } =
            self.matrix.clone();
        Matrix {
            homeserver_url,
            access_token_file,
            access_token,
            user_id,
            proxy: proxy.filter(|proxy| !proxy.is_empty()),
        }
    }

    /// Where messages wait.
    pub fn queue(&self, variable: impl Fn(&str) -> Option<String>) -> Queue {
        self.queue.clone().unwrap_or_else(|| Queue::usual("alertmanager", variable))
    }

    /// What requests are answered by. The text is that of the file called `name`, to find places in.
    pub(super) fn settings(&self, name: &str, text: &str) -> Result<Settings, Error> {
        let Http { alerts_path_prefix, metrics_path, metrics_enabled, basic_username, .. } = &self.http;
        self.listen()?;
        self.metrics()?;
        let or = |text: &str, default: &str| match text.trim() {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        if self.matrix.homeserver_url.trim().is_empty() {
            return Err(setting("matrix.homeserver-url", "it is empty", "write the homeserver's URL").into());
        }
        if self.matrix.user_id.as_ref().is_some_and(|user| !user.starts_with('@') || !user.contains(':')) {
            return Err(
                setting("matrix.user-id", "it is no user's ID", "write it as `@bot:example.org`").into()
            );
        }
        let token = self.matrix.access_token.as_deref().unwrap_or_default();
        if token.trim().is_empty() && self.matrix.access_token_file.is_none() {
            return Err(setting(
                "matrix.access-token",
                "it is empty",
                "write it, or name a file in `access-token-file`",
            )
            .into());
        }
        for (short, room) in &self.matrix.room_mapping {
            if !is_room(room) {
                let mend = "write a room's ID, `!…`, or an alias, `#name:example.org`";
                return Err(setting(
                    &format!("matrix.room-mapping.{short}"),
                    &format!("`{room}` is no room"),
                    mend,
                )
                .into());
            }
        }
        for (at, computed) in self.templating.computed_values.iter().enumerate() {
            if !["", "firing", "resolved"].contains(&computed.when_matching_status.as_str()) {
                let key = format!("templating.computed-values[{at}].when-matching-status");
                return Err(setting(&key, "there is no such status", "write `firing` or `resolved`").into());
            }
        }
        let secret = |key: &str, file: &Option<PathBuf>| -> Result<Option<Key>, ConfigError> {
            let Some(file) = file else { return Ok(None) };
            let secret = config::secrets::read(file).map_err(|error| {
                setting(key, &error.to_string(), "name a file that holds the secret alone")
            })?;
            Ok(Key::new(secret.expose()))
        };
        let password = match secret("http.basic-password-file", &self.http.basic_password_file)? {
            Some(password) => Some(password),
            None => Key::new(&self.http.basic_password),
        };
        let user = Key::new(&or(basic_username, "alertmanager"));
        let mut wrongs = String::new();
        let mut compile = |key: &str, template: &str| {
            let compiled = Template::new(key, template).and_then(|compiled| {
                for status in ["firing", "resolved"] {
                    let payload = Payload::sample(status);
                    let shown = Shown { payload: &payload, templating: &self.templating };
                    compiled.try_out(&shown.data(payload.alerts.first())).map_err(|wrong| vec![wrong])?;
                }
                Ok(compiled)
            });
            compiled
                .map_err(|found| {
                    for wrong in &found {
                        let _ = writeln!(wrongs, "{}", placed(name, text, template, key, wrong));
                    }
                })
                .ok()
        };
        let templating = &self.templating;
        let firing = compile("firing-template", &or(&templating.firing_template, TEMPLATE));
        let resolved =
            Some(templating.resolved_template.as_str()).filter(|template| !template.trim().is_empty());
        let resolved = resolved.map(|template| compile("resolved-template", template));
        let (Some(firing), true) = (firing, resolved.as_ref().is_none_or(Option::is_some)) else {
            return Err(Error::Template(wrongs.trim_end().to_owned()));
        };
        let slashed = |text: String| if text.starts_with('/') { text } else { format!("/{text}") };
        let mut prefix = slashed(or(alerts_path_prefix, "/alerts"));
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        Ok(Settings {
            prefix,
            metrics_path: metrics_enabled.then(|| slashed(or(metrics_path, "/metrics"))),
            basic: user.zip(password),
            bearer: secret("http.bearer-token-file", &self.http.bearer_token_file)?,
            rooms: self.matrix.room_mapping.clone(),
            firing,
            resolved: resolved.flatten(),
            templating: templating.clone(),
            delivery: self.delivery.clone(),
        })
    }
}

fn address(key: &str, text: &str) -> Result<ListenAddress, ConfigError> {
    let mend = "write an IP address and a port, such as `127.0.0.1:9092`, or `unix:/path`";
    text.parse().map_err(|error: model::NotAnAddress| setting(key, &error.to_string(), mend))
}

fn setting(setting: &str, reason: &str, mend: &'static str) -> ConfigError {
    ConfigError { setting: setting.to_owned(), reason: reason.to_owned(), mend }
}

/// What is wrong with a template, at its place in the file if its line stands there once.
fn placed(name: &str, text: &str, template: &str, key: &str, wrong: &Wrong) -> String {
    let Wrong { line, column, reason } = wrong;
    let of =
        template.lines().nth(line.saturating_sub(1)).map(str::trim).filter(|of| *line > 0 && !of.is_empty());
    let mut places = of.into_iter().flat_map(|of| {
        text.lines()
            .enumerate()
            .filter_map(move |(at, whole)| whole.find(of).map(|byte| (at, whole[..byte].chars().count())))
    });
    let indent =
        template.lines().nth(line.saturating_sub(1)).map_or(0, |line| line.len() - line.trim_start().len());
    match (places.next(), places.next()) {
        (Some((at, before)), None) => {
            let column = (before + column.saturating_sub(indent)).max(1);
            format!("{name}:{}:{column}: templating.{key}: {reason}", at + 1)
        }
        _ if *line > 0 => format!("{name}: templating.{key}, line {line}, column {column}: {reason}"),
        _ => format!("{name}: templating.{key}: {reason}"),
    }
}

/// Writes the keys of the configuration, not those of mappings in it, in small letters, and says whether that changed any.
fn fold(json: &mut Json, path: &[&str]) -> bool {
    /// Whose keys are names that somebody chose.
    const FREE: [&str; 6] = [
        "room-mapping",
        "external-url-mapping",
        "generator-url-mapping",
        "values",
        "when-matching-labels",
        "when-matching-annotations",
    ];
    let free = path.last().is_some_and(|last| FREE.contains(last));
    match json {
        Json::Object(map) if !free => {
            let known: BTreeSet<String> = map.keys().cloned().collect();
            let mut changed = false;
            let mut folded = serde_json::Map::new();
            for (key, mut value) in std::mem::take(map) {
                let lower = key.to_ascii_lowercase();
                let clash = lower != key && known.contains(&lower);
                let key = if clash { key } else { lower };
                changed |= !known.contains(&key);
                let mut below = path.to_vec();
                below.push(&key);
                changed |= fold(&mut value, &below);
                folded.insert(key.clone(), value);
            }
            *map = folded;
            changed
        }
        Json::Array(items) => items.iter_mut().fold(false, |changed, item| fold(item, path) | changed),
        _ => false,
    }
}
