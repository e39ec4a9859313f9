//! The service's file, and lk-jwt-service's environment variables in its place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use discovery::Settings;
use model::ListenAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::formula::Formula;
use crate::jwt::{Key, KeyError};
use crate::limit::Rate;

/// The configuration of `matrix-stack serve livekit-jwt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients and SFUs reach the service: an address and a port, or `unix:PATH`. A proxy of yours in front ends TLS.
    #[serde(default = "listen")]
    pub listen: String,
    /// Where `/health`, `/ready` and `/metrics` are served. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"127.0.0.1:9180")]
    pub metrics: Option<String>,
    /// The LiveKit servers (SFUs). Where there are several, a call is given to the one with the fewest participants, and stays
    /// there.
    #[schemars(length(min = 1, max = 64))]
    pub sfus: Vec<SfuConfig>,
    /// Homeservers whose users may begin calls: a LiveKit room is made for them. Users of others may join. `*` alone means all.
    #[serde(default)]
    #[schemars(extend("examples" = [["example.org"]]))]
    pub full_access_homeservers: Vec<String>,
    /// Homeservers whose users get tokens at all. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_homeservers: Vec<String>,
    /// Homeservers whose users get none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_homeservers: Vec<String>,
    /// Where to reach homeservers that shall not be looked for by their names, such as one's own, by server name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub homeservers: BTreeMap<String, HomeserverConfig>,
    /// How LiveKit's names of rooms and members are made.
    #[serde(default)]
    pub formula: Formula,
    /// Refuse a request that has a key which is not known, as lk-jwt-service does. Otherwise newer clients are understood as far as
    /// possible.
    #[serde(default)]
    pub strict_requests: bool,
    /// How long a token lets its holder join, in seconds. Who has joined may stay.
    #[serde(default = "token_seconds")]
    #[schemars(range(min = 60, max = 86_400))]
    pub token_seconds: u64,
    /// Whether users without full access may send sound and pictures on these SFUs. Not needed where every client sends on its own
    /// homeserver's SFU (MSC4195); needed by clients that all meet on one.
    #[serde(default = "yes")]
    pub restricted_users_publish: bool,
    /// Whether participants may change what LiveKit says of them.
    #[serde(default)]
    pub update_own_metadata: bool,
    /// Delayed leaves (MSC4140) that clients give to the service.
    #[serde(default)]
    pub delayed_leaves: DelayedLeaves,
    /// How often somebody may ask.
    #[serde(default)]
    pub limits: Limits,
    /// How homeservers are reached, to ask them who somebody is.
    #[serde(default)]
    pub federation: Settings,
}

/// One SFU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SfuConfig {
    /// The URL that clients are given.
    #[schemars(length(min = 1), example = &"wss://livekit.example.org")]
    pub url: String,
    /// The URL for the service itself. Default: `url`, with `http` for `ws`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"http://livekit:7880")]
    pub api_url: Option<String>,
    /// A file of mode 0600 with a line `key: secret` for each of the SFU's keys. The first one signs; webhooks may be signed with any.
    /// To change keys, give both to the SFU, put the new one first here, and remove the old one an hour later.
    pub keys_file: PathBuf,
}

/// Where one homeserver is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HomeserverConfig {
    /// The URL of its client-server API, to restart and send delayed events. Default: as its `/.well-known/matrix/client` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"http://127.0.0.1:8008")]
    pub client_url: Option<String>,
    /// The URL of its federation API, to ask who a token is of. Default: as other servers find it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"http://127.0.0.1:8008")]
    pub federation_url: Option<String>,
}

/// What is looked after for clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DelayedLeaves {
    /// The file that keeps them over a restart; it is made. Default: they are forgotten when the service stops, and the homeserver
    /// sends each when its time is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/var/lib/matrix-stack/livekit-jwt.sqlite")]
    pub store: Option<PathBuf>,
    /// The URL of a Valkey or Redis that keeps them instead, as `redis://HOST:PORT/DATABASE` or `redis+unix:///PATH`. Several
    /// processes with the same one share the work, and what one is told by an SFU concerns all. The format is
    /// lk-jwt-service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"redis://127.0.0.1:6379/0")]
    pub valkey: Option<String>,
    /// The file with its password, of mode 0600.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/etc/matrix-stack/valkey-password")]
    pub valkey_password_file: Option<PathBuf>,
    /// How often the SFU is asked whether a member is still there, in seconds, for webhooks that were lost. 0: never.
    #[schemars(range(max = 86_400))]
    pub check_seconds: u64,
}

/// How often somebody may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// One user.
    pub user: Rate,
    /// All users of one homeserver that has no full access. Counted before the homeserver is asked who somebody is.
    pub homeserver: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self { user: Rate { per_minute: 60, burst: 30 }, homeserver: Rate { per_minute: 600, burst: 300 } }
    }
}

fn listen() -> String {
    "127.0.0.1:8070".to_owned()
}

fn token_seconds() -> u64 {
    3600
}

fn yes() -> bool {
    true
}

/// Why the service cannot start with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is wrong.
    #[error("{field}: {reason}")]
    Value {
        /// The field or variable.
        field: String,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// An SFU's keys.
    #[error("{field}: {error}")]
    Keys {
        /// The field or variable.
        field: String,
        /// What is wrong.
        error: KeyError,
    },
}

fn wrong(field: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value { field: field.into(), reason: reason.into() }
}

/// A configuration with the keys that it names: what the service is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// Each SFU's keys.
    pub keys: Vec<Vec<Key>>,
}

impl Setup {
    /// Reads the keys that a configuration names, and checks the rest of it.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let mut keys = Vec::new();
        for (at, sfu) in config.sfus.iter().enumerate() {
            let read = Key::read(&sfu.keys_file);
            keys.push(
                read.map_err(|error| ConfigError::Keys { field: format!("sfus[{at}].keys_file"), error })?,
            );
        }
        Self { config, keys }.checked()
    }

    /// The configuration that lk-jwt-service would have with these environment variables. Beside `LIVEKIT_REDIS_URL` there is
    /// `MATRIX_STACK_LIVEKIT_JWT_STORE`, the path of a file.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let url = variable("LIVEKIT_URL").ok_or_else(|| {
            wrong("LIVEKIT_URL", "it is not set; set it to the URL of your LiveKit server for clients, or name a file with `--config`")
        })?;
        let list = |text: String| -> Vec<String> {
            text.split([',', ' ']).filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
        };
        let full =
            ["LIVEKIT_FULL_ACCESS_HOMESERVERS", "LIVEKIT_LOCAL_HOMESERVERS"].into_iter().find_map(&variable);
        let full = full.ok_or_else(|| {
            wrong(
                "LIVEKIT_FULL_ACCESS_HOMESERVERS",
                "it is not set; name the homeservers whose users may begin calls, or `*` for all",
            )
        })?;
        let listen = match (variable("LIVEKIT_JWT_BIND"), variable("LIVEKIT_JWT_PORT")) {
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "LIVEKIT_JWT_PORT",
                    "LIVEKIT_JWT_BIND is set as well; remove LIVEKIT_JWT_PORT",
                ));
            }
            (Some(bind), None) if bind.starts_with(':') => format!("0.0.0.0{bind}"),
            (Some(bind), None) => bind,
            (None, port) => format!("0.0.0.0:{}", port.as_deref().unwrap_or("8080")),
        };
        let check_seconds = variable("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS").map_or(Ok(0), |seconds| {
            seconds.parse().map_err(|_| {
                wrong(
                    "LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS",
                    "it is no number of seconds; 0 switches it off",
                )
            })
        })?;
        let mut homeservers = BTreeMap::new();
        for pair in variable("LIVEKIT_CS_API_URL_OVERRIDES").as_deref().unwrap_or_default().split(',') {
            if pair.trim().is_empty() {
                continue;
            }
            let (server, url) = pair.split_once('=').ok_or_else(|| {
                wrong("LIVEKIT_CS_API_URL_OVERRIDES", "write `server=url` pairs with commas between")
            })?;
            let server_config =
                HomeserverConfig { client_url: Some(url.trim().to_owned()), federation_url: None };
            if homeservers.insert(server.trim().to_owned(), server_config).is_some() {
                return Err(wrong(
                    "LIVEKIT_CS_API_URL_OVERRIDES",
                    format!("{} is there twice", server.trim()),
                ));
            }
        }
        let insecure =
            variable("LIVEKIT_INSECURE_SKIP_VERIFY_TLS").as_deref() == Some("YES_I_KNOW_WHAT_I_AM_DOING");
        let config = Config {
            listen,
            metrics: variable("MATRIX_STACK_LIVEKIT_JWT_METRICS"),
            sfus: vec![SfuConfig { url, api_url: None, keys_file: PathBuf::new() }],
            full_access_homeservers: list(full),
            allowed_homeservers: Vec::new(),
            denied_homeservers: Vec::new(),
            homeservers,
            formula: Formula::default(),
            strict_requests: false,
            token_seconds: token_seconds(),
            restricted_users_publish: true,
            update_own_metadata: variable("LIVEKIT_CAN_UPDATE_OWN_METADATA").as_deref() == Some("true"),
            delayed_leaves: DelayedLeaves {
                store: variable("MATRIX_STACK_LIVEKIT_JWT_STORE").map(PathBuf::from),
                valkey: variable("LIVEKIT_REDIS_URL"),
                valkey_password_file: None,
                check_seconds,
            },
            limits: Limits::default(),
            federation: Settings { insecure_skip_verify_tls: insecure, ..Settings::default() },
        };
        Self { config, keys: vec![keys_of_environment(variable)?] }.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let Config {
            listen,
            metrics,
            sfus,
            homeservers,
            full_access_homeservers,
            token_seconds,
            delayed_leaves,
            ..
        } = &self.config;
        address("listen", listen)?;
        if let Some(metrics) = metrics {
            address("metrics", metrics)?;
        }
        if sfus.is_empty() {
            return Err(wrong("sfus", "there is none; name your LiveKit server"));
        }
        if full_access_homeservers.is_empty() {
            tracing::warn!(
                "full_access_homeservers is empty: nobody can begin a call, unless the SFU makes rooms by itself"
            );
        }
        if full_access_homeservers.len() > 1 && full_access_homeservers.iter().any(|name| name == "*") {
            return Err(wrong(
                "full_access_homeservers",
                "`*` means all, and stands alone; remove it or the others",
            ));
        }
        if delayed_leaves.valkey.is_some() && delayed_leaves.store.is_some() {
            return Err(wrong("delayed_leaves", "both `store` and `valkey` are set; remove one of them"));
        }
        if !(60..=86_400).contains(token_seconds) {
            return Err(wrong("token_seconds", "it is not from 60 to 86400"));
        }
        for (at, sfu) in sfus.iter().enumerate() {
            let schemes = ["ws://", "wss://", "http://", "https://"];
            if !schemes.iter().any(|scheme| sfu.url.starts_with(scheme)) {
                return Err(wrong(
                    format!("sfus[{at}].url"),
                    "it begins with none of ws://, wss://, http:// and https://",
                ));
            }
        }
        let urls = homeservers.iter().flat_map(|(server, urls)| {
            [("client_url", &urls.client_url), ("federation_url", &urls.federation_url)]
                .map(|(name, url)| (server, name, url))
        });
        for (server, name, url) in urls {
            let good = |url: &String| url.starts_with("http://") || url.starts_with("https://");
            if !url.iter().all(good) {
                return Err(wrong(
                    format!("homeservers.{server}.{name}"),
                    "it begins with neither http:// nor https://",
                ));
            }
        }
        Ok(self)
    }
}

/// An address to listen on, which the setting `field` has.
pub(crate) fn address(field: &str, text: &str) -> Result<ListenAddress, ConfigError> {
    text.parse().map_err(|error| {
        wrong(field, format!("{error}; write it like `127.0.0.1:8070` or `unix:/run/x.sock`"))
    })
}

fn keys_of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Key>, ConfigError> {
    let read = |name: &str| -> Result<Option<String>, ConfigError> {
        // As where Kubernetes mounts a Secret for all: whoever set the variable decides who may read the file.
        let text = |path: String| {
            std::fs::read_to_string(&path)
                .map_err(|error| wrong(name, format!("cannot read `{path}`: {error}")))
        };
        variable(name).map(text).transpose()
    };
    if let Some(text) = read("LIVEKIT_KEY_FILE")? {
        let keys = Key::parse("LIVEKIT_KEY_FILE", &text);
        return keys.map_err(|error| ConfigError::Keys { field: "LIVEKIT_KEY_FILE".to_owned(), error });
    }
    let either = |name: &'static str, file: &'static str| match (variable(name), read(file)?) {
        (Some(_), Some(_)) => Err(wrong(file, format!("{name} is set as well; remove one of them"))),
        (Some(value), None) | (None, Some(value)) => Ok(value),
        (None, None) => Err(wrong(name, format!("neither it nor {file} nor LIVEKIT_KEY_FILE is set"))),
    };
    let name = either("LIVEKIT_KEY", "LIVEKIT_KEY_FROM_FILE")?;
    let secret = either("LIVEKIT_SECRET", "LIVEKIT_SECRET_FROM_FILE")?;
    let key = Key::new(&name, &secret)
        .ok_or_else(|| wrong("LIVEKIT_SECRET", "the key or its secret is empty, or has a colon in it"))?;
    Ok(vec![key])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Setup, String> {
        let base = [
            ("LIVEKIT_URL", "wss://sfu.example.org"),
            ("LIVEKIT_KEY", "k"),
            ("LIVEKIT_SECRET", "s"),
            ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org"),
        ];
        Setup::from_environment(|name| {
            let all = variables.iter().chain(&base);
            all.clone().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn environment_variables_are_those_of_others() {
        let plain = environment(&[]).unwrap();
        assert_eq!((plain.config.listen.as_str(), plain.keys[0][0].name.as_str()), ("0.0.0.0:8080", "k"));
        let full = environment(&[
            ("LIVEKIT_JWT_BIND", ":1234"),
            ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org, b.org c.org"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "a.org=http://a:8008, b.org=https://b"),
            ("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "30"),
            ("LIVEKIT_INSECURE_SKIP_VERIFY_TLS", "YES_I_KNOW_WHAT_I_AM_DOING"),
        ])
        .unwrap()
        .config;
        assert_eq!(full.listen, "0.0.0.0:1234");
        assert_eq!(full.full_access_homeservers, ["a.org", "b.org", "c.org"]);
        assert_eq!(full.homeservers["a.org"].client_url.as_deref(), Some("http://a:8008"));
        assert_eq!((full.delayed_leaves.check_seconds, full.federation.insecure_skip_verify_tls), (30, true));
        assert!(
            !environment(&[("LIVEKIT_INSECURE_SKIP_VERIFY_TLS", "yes")])
                .unwrap()
                .config
                .federation
                .insecure_skip_verify_tls
        );
        assert_eq!(environment(&[("LIVEKIT_JWT_PORT", "99")]).unwrap().config.listen, "0.0.0.0:99");

        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        std::fs::write(&file, " new: one\r\nold: two\n").unwrap();
        let keys = environment(&[("LIVEKIT_KEY_FILE", file.to_str().unwrap())]).unwrap().keys;
        assert_eq!(keys[0].iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["new", "old"]);
        for (name, value, error) in [
            ("LIVEKIT_URL", "", "LIVEKIT_URL: it is not set"),
            ("LIVEKIT_URL", "sfu", "sfus[0].url: it begins with none"),
            ("LIVEKIT_SECRET", "", "LIVEKIT_SECRET: neither it nor LIVEKIT_SECRET_FROM_FILE"),
            ("LIVEKIT_KEY", "a:b", "has a colon in it"),
            ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "", "LIVEKIT_FULL_ACCESS_HOMESERVERS: it is not set"),
            ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "*,a.org", "`*` means all"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "a.org", "write `server=url`"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "a.org=x", "homeservers.a.org.client_url"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "a=http://a,a=http://b", "a is there twice"),
            ("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "-1", "no number of seconds"),
            ("LIVEKIT_JWT_BIND", "nonsense", "is not an address and a port"),
        ] {
            let found = environment(&[(name, value)]).unwrap_err();
            assert!(found.contains(error), "{name}={value}: {found}");
        }
        assert!(environment(&[("LIVEKIT_JWT_BIND", ":1"), ("LIVEKIT_JWT_PORT", "1")]).is_err());
    }
}
