//! Whose requests are taken, and which rooms they reach.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::format::About;
use crate::auth::Key;
use crate::run::Common;
use crate::webhook::{ConfigError, is_room};
use crate::{Matrix, Queue, run};

/// The configuration of `matrix-stack serve sentry-webhook`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where Sentry reaches the service: an address and a port, or `unix:PATH`. A proxy of yours in front ends TLS.
    #[serde(default = "listen")]
    pub listen: String,
    /// Where `/health`, `/ready` and `/metrics` are served. Default: nowhere.
    #[schemars(example = &"127.0.0.1:9184")]
    #[serde(default)]
    pub metrics: Option<String>,
    /// The account that sends.
    pub matrix: Matrix,
    /// Where messages wait. Default: `sentry-webhook.sqlite` in `$STATE_DIRECTORY`, else in `/var/lib/matrix-stack`.
    #[serde(default)]
    pub queue: Option<Queue>,
    /// Files with client secrets of Sentry's integrations. Each of them is accepted, so that a new one can be added before the old one
    /// goes.
    pub client_secret_files: Vec<PathBuf>,
    /// Which rooms a message reaches: those of the first route that matches it.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// The rooms of what no route matches. Without them it is dropped.
    #[serde(default)]
    pub default_rooms: Vec<String>,
    /// Tags of events that are shown, by their keys.
    #[serde(default)]
    pub include_tags: Vec<String>,
    /// Sends notices, which clients do not notify about and bots do not answer to, rather than ordinary messages.
    #[serde(default)]
    pub notice: bool,
}

/// Rooms for some of the messages. What is left out matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Projects by their slug or their number.
    #[serde(default)]
    pub projects: Vec<String>,
    /// Levels: `fatal`, `error`, `warning`, `info`, `debug`. The alerts on metrics have `critical`, `warning` and `resolved` instead.
    #[serde(default)]
    pub levels: Vec<String>,
    /// Environments. Sentry names none in what it says of issues (created, resolved …), only in alerts and errors.
    #[serde(default)]
    pub environments: Vec<String>,
    /// Sentry's resources: `issue`, `event_alert`, `error`, `metric_alert`, `comment`, `installation`, …, and `legacy` for the plugin.
    #[serde(default)]
    pub resources: Vec<String>,
    /// Rooms, by their IDs (`!…`) or aliases (`#…:…`).
    pub rooms: Vec<String>,
}

/// [`Config`] with their secrets, ready to be asked.
#[derive(Debug)]
pub struct Settings {
    pub(super) secrets: Vec<Key>,
    routes: Vec<Route>,
    default_rooms: Vec<String>,
    pub(super) include_tags: Vec<String>,
    pub(super) notice: bool,
}

fn listen() -> String {
    "127.0.0.1:3000".to_owned()
}

impl Config {
    /// What every service has.
    pub(super) fn common(&self) -> Common<'_> {
        let Self { listen, metrics, matrix, queue, .. } = self;
        Common { listen, metrics: metrics.as_deref(), matrix, queue: queue.as_ref() }
    }

    /// What the environment variables of matrix-sentry-webhooks mean: `APP_PORT`, `SENTRY_CLIENT_SECRET`, `SENTRY_INCLUDE_TAGS`,
    /// `MATRIX_ROOMS`, `MATRIX_HOMESERVER_URL`, `MATRIX_TOKEN` and `MATRIX_USER`; and `STORE`, for the file of the messages that wait.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<(Self, Settings), ConfigError> {
        let list = |name: &str, separator| -> Vec<String> {
            let text = var(name).unwrap_or_default();
            text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let rooms = list("MATRIX_ROOMS", '|');
        let mut routes = Vec::new();
        for pair in &rooms {
            // A slug has no slash.
            let (project, room) = pair.split_once('/').ok_or_else(|| ConfigError {
                setting: "MATRIX_ROOMS".to_owned(),
                reason: format!("`{pair}` names no project or no room"),
                mend: "write `project/!room:example.org`, and `|` between several",
            })?;
            routes.push(Route {
                projects: vec![project.to_owned()],
                rooms: vec![room.to_owned()],
                ..Route::default()
            });
        }
        if routes.is_empty() {
            return Err(ConfigError {
                setting: "MATRIX_ROOMS".to_owned(),
                reason: "it names no room".to_owned(),
                mend: "write `project/!room:example.org`, and `|` between several",
            });
        }
        let include_tags = list("SENTRY_INCLUDE_TAGS", ',');
        let secrets = var("SENTRY_CLIENT_SECRET").as_deref().and_then(Key::new).into_iter().collect();
        let port = var("APP_PORT").filter(|port| !port.is_empty()).unwrap_or_else(|| "3000".to_owned());
        let config = Self {
            listen: format!("0.0.0.0:{port}"),
            metrics: None,
            matrix: run::account_from_env(&var, "MATRIX_HOMESERVER_URL", "MATRIX_USER")?,
            queue: Some(run::queue_from_env(&var, "sentry-webhook")),
            client_secret_files: Vec::new(),
            routes,
            default_rooms: Vec::new(),
            include_tags,
            notice: false,
        };
        let settings = Settings::new(&config, secrets, "SENTRY_CLIENT_SECRET")?;
        Ok((config, settings))
    }

    /// Reads the secrets' files.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut secrets = Vec::new();
        for (at, file) in self.client_secret_files.iter().enumerate() {
            let setting = || format!("client_secret_files[{at}]");
            let secret = config::secrets::read(file).map_err(|error| ConfigError {
                setting: setting(),
                reason: error.to_string(),
                mend: "give the path of a file that holds the client secret alone",
            })?;
            secrets.push(Key::new(secret.expose()).ok_or_else(|| ConfigError {
                setting: setting(),
                reason: format!("`{}` is empty", file.display()),
                mend: "write the client secret of Sentry's integration into it",
            })?);
        }
        Settings::new(self, secrets, "client_secret_files")
    }
}

impl Settings {
    fn new(projects: &Config, secrets: Vec<Key>, source: &str) -> Result<Self, ConfigError> {
        if secrets.is_empty() {
            return Err(ConfigError {
                setting: source.to_owned(),
                reason: "there is no secret, so nobody could be told from anybody".to_owned(),
                mend: "set it to the client secret that Sentry shows for the integration",
            });
        }
        let routes = projects.routes.iter().enumerate();
        let rooms = routes
            .map(|(at, route)| (format!("routes[{at}].rooms"), &route.rooms))
            .chain([("default_rooms".to_owned(), &projects.default_rooms)]);
        for (setting, rooms) in rooms {
            if let Some(room) = rooms.iter().find(|room| !is_room(room)) {
                let reason = format!("`{room}` is no room");
                let mend = "write a room's ID, `!…`, or an alias, `#name:example.org`";
                return Err(ConfigError { setting, reason, mend });
            }
        }
        Ok(Self {
            secrets,
            routes: projects.routes.clone(),
            default_rooms: projects.default_rooms.clone(),
            include_tags: projects.include_tags.clone(),
            notice: projects.notice,
        })
    }

    /// The rooms that something reaches.
    pub(super) fn rooms(&self, about: &About) -> &[String] {
        let any = |allowed: &[String], is: &[&str]| {
            allowed.is_empty() || allowed.iter().any(|allowed| is.contains(&allowed.as_str()))
        };
        let route = self.routes.iter().find(|route| {
            any(&route.projects, &[&about.project, &about.project_id])
                && any(&route.levels, &[&about.level])
                && any(&route.environments, &[&about.environment])
                && any(&route.resources, &[&about.resource])
        });
        route.map_or(&self.default_rooms, |route| &route.rooms)
    }
}
