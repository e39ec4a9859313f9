//! The account that messages are sent with, and where they wait.

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The account that messages are sent with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// The URL of the homeserver, as clients use it: `https://matrix.example.org`.
    pub homeserver_url: String,
    /// A file with the account's access token.
    #[serde(default)]
    pub access_token_file: Option<PathBuf>,
    /// The access token itself, where there is no file.
    #[serde(default, skip_serializing)]
    pub access_token: Option<String>,
    /// The account, `@bot:example.org`. The token says it too; this is to notice that it is another's.
    #[serde(default)]
    pub user_id: Option<String>,
    /// An HTTP proxy on the way to the homeserver: `http://proxy:3128`. It has to allow `CONNECT`.
    #[serde(default)]
    pub proxy: Option<String>,
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matrix").field("homeserver_url", &self.homeserver_url).finish_non_exhaustive()
    }
}

/// Where messages wait until they are delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// The file of the store, which is made. It has to outlive the service: on Kubernetes it belongs on a volume.
    pub store: PathBuf,
    /// How many messages may wait; more are refused until some are delivered.
    #[serde(default = "most_messages")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub most_messages: u32,
    /// How many bytes of messages may wait.
    #[serde(default = "most_bytes")]
    #[schemars(range(min = 1_048_576))]
    pub most_bytes: u64,
}

fn most_messages() -> u32 {
    100_000
}

fn most_bytes() -> u64 {
    256 << 20
}

impl Queue {
    /// A store at a path, with the usual bounds.
    pub fn at(store: impl Into<PathBuf>) -> Self {
        Self { store: store.into(), most_messages: most_messages(), most_bytes: most_bytes() }
    }

    /// The store of a service that names none: in the directory that systemd gives it (`$STATE_DIRECTORY`), else in
    /// `/var/lib/matrix-stack`.
    pub fn usual(service: &str, variable: impl Fn(&str) -> Option<String>) -> Self {
        let directory = variable("STATE_DIRECTORY").unwrap_or_else(|| "/var/lib/matrix-stack".to_owned());
        Self::at(Path::new(&directory).join(format!("{service}.sqlite")))
    }
}
