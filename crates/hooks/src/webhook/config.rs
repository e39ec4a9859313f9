//! Who may send what where.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::auth::Key;
use crate::formats::Format;
use crate::run::Common;
use crate::slack::Names;
use crate::{Matrix, Queue, run};

/// The configuration of `matrix-stack serve webhook`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where senders reach the service: an address and a port, or `unix:PATH`. A proxy of yours in front ends TLS.
    #[serde(default = "listen")]
    pub listen: String,
    /// Where `/health`, `/ready` and `/metrics` are served. Default: nowhere.
    #[schemars(example = &"127.0.0.1:9185")]
    #[serde(default)]
    pub metrics: Option<String>,
    /// The account that sends.
    pub matrix: Matrix,
    /// Where messages wait. Default: `webhook.sqlite` in `$STATE_DIRECTORY`, else in `/var/lib/matrix-stack`.
    #[serde(default)]
    pub queue: Option<Queue>,
    /// A file with the key that opens every room: in the body (`key`), the query (`?key=`), the path, or a header
    /// (`Authorization: Bearer`, `X-Api-Key`, `X-Gitlab-Token`); or the secret that the body is signed with.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// The room of messages that name none: its ID (`!…`) or an alias (`#…:…`).
    #[serde(default)]
    pub default_room: Option<String>,
    /// Rooms by the names that senders use for them, such as Slack's channels: `alerts: "!…"` stands for `#alerts` too.
    #[serde(default)]
    pub rooms: BTreeMap<String, String>,
    /// Matrix IDs of users by their IDs at Slack, for mentions.
    #[serde(default)]
    pub users: BTreeMap<String, String>,
    /// Whether Slack's `<!here>`, `<!channel>` and `<!everyone>` notify the room. Nothing else does.
    #[serde(default)]
    pub mention_room: bool,
    /// Whether the `username` that a Slack payload asks for stands before its text.
    #[serde(default)]
    pub show_sender: bool,
    /// Sends notices, which clients do not notify about and bots do not answer to, rather than ordinary messages.
    #[serde(default)]
    pub notice: bool,
    /// Requests that each key may make in a minute, in bursts of as many at most; 0 for any number.
    #[serde(default)]
    pub requests_per_minute: u32,
    /// Senders with keys of their own.
    #[serde(default)]
    pub hooks: Vec<Hook>,
}

/// A sender with a key of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// What the log calls it.
    pub name: String,
    /// A file with its key, which can stand wherever `api_key_file`'s can: in a URL like `/services/T0/B0/KEY` or `/webhook/KEY` too.
    pub key_file: PathBuf,
    /// Its room; with it, the sender cannot choose another.
    #[serde(default)]
    pub room: Option<String>,
    /// How its payloads are read.
    #[serde(default)]
    pub format: Format,
    /// `mention_room` for this sender.
    #[serde(default)]
    pub mention_room: Option<bool>,
    /// `show_sender` for this sender.
    #[serde(default)]
    pub show_sender: Option<bool>,
    /// `notice` for this sender.
    #[serde(default)]
    pub notice: Option<bool>,
}

/// What is wrong with a configuration: the setting, the reason and the mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{setting}`: {reason}; {mend}")]
pub struct ConfigError {
    /// The setting.
    pub setting: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub mend: &'static str,
}

/// [`Config`] with its keys, ready to be asked.
#[derive(Debug)]
pub struct Settings {
    pub(super) grants: Vec<Grant>,
    pub(super) default_room: Option<String>,
    rooms: BTreeMap<String, String>,
}

/// What a key allows.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) name: String,
    key: Key,
    /// The only room, if there is one.
    pub(super) room: Option<String>,
    pub(super) format: Format,
    pub(super) names: Names,
    pub(super) notice: bool,
    bucket: Option<Bucket>,
}

fn listen() -> String {
    "127.0.0.1:4785".to_owned()
}

impl Config {
    /// What every service has.
    pub(super) fn common(&self) -> Common<'_> {
        let Self { listen, metrics, matrix, queue, .. } = self;
        Common { listen, metrics: metrics.as_deref(), matrix, queue: queue.as_ref() }
    }

    /// What matrix-webhook's environment variables mean: `HOST`, `PORT`, `MATRIX_URL`, `MATRIX_ID`, `MATRIX_TOKEN`, `PROXY` and the one
    /// `API_KEY`; and `STORE`, for the file of the messages that wait.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<(Self, Settings), ConfigError> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let key = set("API_KEY").as_deref().and_then(Key::new).ok_or_else(|| ConfigError {
            setting: "API_KEY".to_owned(),
            reason: "it is not set".to_owned(),
            mend: "set it to the key that senders show, or write a configuration file with `hooks`",
        })?;
        let host = set("HOST").unwrap_or_else(|| "0.0.0.0".to_owned());
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let port = set("PORT").unwrap_or_else(|| "4785".to_owned());
        let config = Self {
            listen: format!("{host}:{port}"),
            metrics: None,
            matrix: run::account_from_env(&var, "MATRIX_URL", "MATRIX_ID")?,
            queue: Some(run::queue_from_env(&var, "webhook")),
            api_key_file: None,
            default_room: None,
            rooms: BTreeMap::new(),
            users: BTreeMap::new(),
            mention_room: false,
            show_sender: false,
            notice: false,
            requests_per_minute: 0,
            hooks: Vec::new(),
        };
        let settings = Settings::new(&config, vec![key])?;
        Ok((config, settings))
    }

    /// Reads the keys' files.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let files = self.api_key_file.iter().map(|file| ("api_key_file".to_owned(), file)).chain(
            self.hooks.iter().enumerate().map(|(at, hook)| (format!("hooks[{at}].key_file"), &hook.key_file)),
        );
        let mut keys = Vec::new();
        for (setting, file) in files {
            let secret = config::secrets::read(file).map_err(|error| ConfigError {
                setting: setting.clone(),
                reason: error.to_string(),
                mend: "give the path of a file that holds the key alone",
            })?;
            let key = Key::new(secret.expose()).ok_or_else(|| ConfigError {
                setting,
                reason: format!("`{}` is empty", file.display()),
                mend: "write a long random key into it",
            })?;
            keys.push(key);
        }
        Settings::new(self, keys)
    }
}

impl Settings {
    /// Config with the keys of `api_key_file` (or from elsewhere, where there is none) and of each hook, in this order.
    fn new(senders: &Config, keys: Vec<Key>) -> Result<Self, ConfigError> {
        let error =
            |setting: String, reason: &str, mend| ConfigError { setting, reason: reason.to_owned(), mend };
        if keys.is_empty() {
            let reason = "there is no key, so nobody could send anything";
            return Err(error("api_key_file".to_owned(), reason, "set it, or add `hooks`"));
        }
        let rooms = senders
            .rooms
            .iter()
            .map(|(name, room)| (format!("rooms.{name}"), room))
            .chain(senders.default_room.iter().map(|room| ("default_room".to_owned(), room)))
            .chain(
                senders
                    .hooks
                    .iter()
                    .enumerate()
                    .filter_map(|(at, hook)| Some((format!("hooks[{at}].room"), hook.room.as_ref()?))),
            );
        for (setting, room) in rooms {
            if !is_room(room) {
                let reason = format!("`{room}` is no room");
                return Err(error(
                    setting,
                    &reason,
                    "write a room's ID, `!…`, or an alias, `#name:example.org`",
                ));
            }
        }
        let names = |mention: Option<bool>, show: Option<bool>| Names {
            users: senders.users.clone(),
            mention_room: mention.unwrap_or(senders.mention_room),
            show_sender: show.unwrap_or(senders.show_sender),
        };
        let mut keys = keys.into_iter();
        let mut grants = Vec::new();
        let bucket = || Bucket::new(senders.requests_per_minute);
        if keys.len() > senders.hooks.len() {
            grants.extend(keys.next().map(|key| Grant {
                name: "api_key".to_owned(),
                key,
                room: None,
                format: Format::Auto,
                names: names(None, None),
                notice: senders.notice,
                bucket: bucket(),
            }));
        }
        for (at, (hook, key)) in senders.hooks.iter().zip(keys).enumerate() {
            if grants.iter().any(|grant| grant.key == key) {
                let reason = "another sender has the same key";
                return Err(error(
                    format!("hooks[{at}].key_file"),
                    reason,
                    "give each sender a key of its own",
                ));
            }
            grants.push(Grant {
                name: hook.name.clone(),
                key,
                room: hook.room.clone(),
                format: hook.format,
                names: names(hook.mention_room, hook.show_sender),
                notice: hook.notice.unwrap_or(senders.notice),
                bucket: bucket(),
            });
        }
        Ok(Self { grants, default_room: senders.default_room.clone(), rooms: senders.rooms.clone() })
    }

    /// What a key allows.
    pub(super) fn grant(&self, shown: &str) -> Option<&Grant> {
        // All of them, so that the time does not tell which one it was.
        self.grants.iter().filter(|grant| grant.key.is(shown)).last()
    }

    /// What the key allows that a body is signed with.
    pub(super) fn signed(&self, body: &[u8], signature: &str) -> Option<&Grant> {
        self.grants.iter().filter(|grant| grant.key.signed(body, signature)).last()
    }

    /// The room that a name means.
    pub(super) fn room(&self, name: &str) -> Option<&str> {
        let name = name.trim();
        let short = name.trim_start_matches('#');
        let known =
            self.rooms.iter().find(|(known, _)| *known == name || known.trim_start_matches('#') == short);
        known.map(|(_, room)| room.as_str())
    }

    /// The room that a name means, or that it is.
    pub(super) fn room_or_id(&self, name: &str) -> Option<String> {
        let name = name.trim();
        self.room(name).map(str::to_owned).or_else(|| is_room(name).then(|| name.to_owned()))
    }
}

impl Grant {
    /// Takes one request; else how many seconds to wait for the next.
    pub(super) fn take(&self, now: Instant) -> Result<(), u64> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.take(now))
    }
}

/// A room's ID or an alias. The IDs of newer rooms have no server in them.
pub(crate) fn is_room(room: &str) -> bool {
    let plain =
        room.len() <= 255 && !room.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
    let alias = room.strip_prefix('#').and_then(|alias| alias.split_once(':'));
    plain
        && (room.strip_prefix('!').is_some_and(|id| !id.is_empty())
            || alias.is_some_and(|(_, server)| !server.is_empty()))
}

/// Requests that may come: as many as a minute has at once, then as they are refilled.
#[derive(Debug)]
struct Bucket {
    per_minute: u32,
    /// Requests left, and since when.
    left: Mutex<(f64, Option<Instant>)>,
}

impl Bucket {
    fn new(per_minute: u32) -> Option<Self> {
        (per_minute > 0).then(|| Self { per_minute, left: Mutex::new((f64::from(per_minute), None)) })
    }

    fn take(&self, now: Instant) -> Result<(), u64> {
        let most = f64::from(self.per_minute);
        let mut state = self.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (left, since) = *state;
        let passed = since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        let left = (left + passed * most / 60.0).min(most);
        if left < 1.0 {
            *state = (left, Some(now));
            // At least one request a minute, so a minute at most.
            return Err(60 / u64::from(self.per_minute).clamp(1, 60));
        }
        *state = (left - 1.0, Some(now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_come_as_often_as_is_allowed() {
        let bucket = Bucket::new(2).unwrap();
        let start = Instant::now();
        assert_eq!(bucket.take(start), Ok(()));
        assert_eq!(bucket.take(start), Ok(()));
        assert_eq!(bucket.take(start), Err(30));
        assert_eq!(bucket.take(start + Duration::from_secs(31)), Ok(()));
        assert_eq!(bucket.take(start + Duration::from_secs(32)), Err(30));
        assert!(Bucket::new(0).is_none());
    }

    #[test]
    fn rooms_are_told_from_other_names() {
        for room in ["!abc:example.org", "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", "#ops:example.org"] {
            assert!(is_room(room), "{room}");
        }
        for other in ["", "!", "#ops", "#:", "ops", "@a:b", "!a b", "!a/b"] {
            assert!(!is_room(other), "{other}");
        }
    }
}
