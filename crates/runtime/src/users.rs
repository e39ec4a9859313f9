//! Accounts, through Synapse's shared-secret registration API
//! (<https://element-hq.github.io/synapse/latest/admin_api/register_api.html>), at the main process's own socket.

use std::time::Duration;

use config::secrets::SecretError;
use hmac::{Hmac, KeyInit, Mac};
use hyper::Method;
use model::{Address, Layout, Stack};
use serde_json::{Value, json};
use sha1::Sha1;

use crate::probe;

const REGISTER: &str = "/_synapse/admin/v1/register";
/// Hashing the password takes Synapse a good part of a second by itself, and longer on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Whether it is there at all shows sooner.
const CONNECT: Duration = Duration::from_secs(5);

/// An account to create.
#[derive(Clone, Copy)]
pub struct Account<'a> {
    /// The localpart: `alice` for `@alice:example.org`.
    pub name: &'a str,
    /// The password.
    pub password: &'a str,
    /// Whether it may use the admin API.
    pub admin: bool,
}

impl std::fmt::Debug for Account<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("name", &self.name)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

/// Why an account could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// The name cannot be a localpart.
    #[error(
        "`{name}` cannot be a user's name: use lower-case letters, digits and `._=-/+`, and give the name alone, \
         without `@` and server"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The password is empty or cannot be sent.
    #[error("the password is {reason}: choose another one")]
    Password {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Somebody has the name.
    #[error(
        "the user `{name}` exists already: choose another name, or change that account with the admin API"
    )]
    Exists {
        /// The name.
        name: String,
    },
    /// Main does not answer.
    #[error(
        "Synapse's main process does not answer at {address} ({source}): start the stack with `matrix-stack up`, \
             or see `matrix-stack status`"
    )]
    NotRunning {
        /// Where it was asked.
        address: Address,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Synapse refused.
    #[error("Synapse refused to create `{name}`: {message} (HTTP {status})")]
    Refused {
        /// The name.
        name: String,
        /// The HTTP status.
        status: u16,
        /// Synapse's words.
        message: String,
    },
    /// Synapse creates no accounts in this stack.
    #[error(
        "accounts of this stack belong to the Matrix Authentication Service: create `{name}` with \
         `mas-cli manage register-user --config FILE`, where FILE is its configuration (`{}`)", .config.display()
    )]
    Mas {
        /// The name.
        name: String,
        /// MAS's configuration.
        config: std::path::PathBuf,
    },
    /// The registration secret cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Creates an account on a running stack, and returns its user ID.
pub async fn add(layout: &Layout, stack: &Stack, account: Account<'_>) -> Result<String, UserError> {
    check(account)?;
    if stack.auth.mas.is_some() {
        let config = layout.config().join(render::companion_file(model::CompanionKind::Mas));
        return Err(UserError::Mas { name: account.name.to_owned(), config });
    }
    let secret = config::secrets::read(&layout.secret_paths(stack).registration_shared_secret.path)?;
    let address = main_address(layout, stack);
    register(&address, secret.expose(), account).await
}

/// Whether main is there to be asked.
pub async fn can_add(layout: &Layout, stack: &Stack) -> bool {
    probe::health(&main_address(layout, stack), CONNECT).await.is_ok()
}

/// Where main takes clients' requests: the addresses of the main process do not depend on the rest of the plan.
fn main_address(layout: &Layout, stack: &Stack) -> Address {
    match &stack.network {
        model::Network::Tcp(tcp) => Address::Tcp { host: tcp.host.to_string(), port: tcp.base_port },
        model::Network::Hosts(hosts) => {
            Address::Tcp { host: hosts.host("main", &hosts.suffix), port: hosts.http_port }
        }
        model::Network::Unix => Address::Unix { path: layout.sockets().join("main.sock") },
    }
}

fn check(account: Account<'_>) -> Result<(), UserError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b);
    if account.name.is_empty()
        || account.name.len() > 200
        || !account.name.bytes().all(allowed)
        || account.name.starts_with('_')
    {
        return Err(UserError::Name { name: account.name.to_owned() });
    }
    match account.password {
        "" => Err(UserError::Password { reason: "empty" }),
        // Synapse's own limit; NUL separates the parts of what is signed.
        text if text.len() > 512 => Err(UserError::Password { reason: "longer than 512 bytes" }),
        text if text.contains('\0') => {
            Err(UserError::Password { reason: "not text (it holds a NUL character)" })
        }
        _ => Ok(()),
    }
}

pub(crate) async fn register(
    address: &Address,
    secret: &str,
    account: Account<'_>,
) -> Result<String, UserError> {
    let not_running = |source| UserError::NotRunning { address: address.clone(), source };
    let refused = |status, answer: &Value| UserError::Refused {
        name: account.name.to_owned(),
        status,
        message: answer["error"].as_str().unwrap_or("no reason given").to_owned(),
    };
    let (status, answer) =
        probe::json(address, None, Method::GET, REGISTER, None, LIMIT).await.map_err(not_running)?;
    let Some(nonce) = answer["nonce"].as_str().filter(|_| status == 200) else {
        return Err(refused(status, &answer));
    };
    let body = json!({
        "nonce": nonce,
        "username": account.name,
        "password": account.password,
        "admin": account.admin,
        // No session and no device for the one who creates the account.
        "inhibit_login": true,
        "mac": signature(secret, nonce, account),
    });
    let (status, answer) =
        probe::json(address, None, Method::POST, REGISTER, Some(&body), LIMIT).await.map_err(not_running)?;
    match (status, answer["user_id"].as_str()) {
        (200, Some(id)) => Ok(id.to_owned()),
        _ if answer["errcode"] == "M_USER_IN_USE" => Err(UserError::Exists { name: account.name.to_owned() }),
        _ => Err(refused(status, &answer)),
    }
}

fn signature(secret: &str, nonce: &str, account: Account<'_>) -> String {
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else {
        unreachable!("HMAC takes keys of any length")
    };
    let kind = if account.admin { "admin" } else { "notadmin" };
    mac.update([nonce, account.name, account.password, kind].join("\0").as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_protocol() {
        // hmac.new(b"secret", b"nonce\0alice\0pw\0admin", "sha1").hexdigest() in Python
        let account = Account { name: "alice", password: "pw", admin: true };
        assert_eq!(signature("secret", "nonce", account), "d7b3ebc9fec30d9bed19eb81e3902aa4ad214333");
    }

    #[test]
    fn names_and_passwords_are_checked() {
        let check = |name, password| check(Account { name, password, admin: false });
        assert!(check("alice", "pw").is_ok());
        for name in ["", "Alice", "@alice:example.org", "a b", "_alice"] {
            assert!(matches!(check(name, "pw"), Err(UserError::Name { .. })), "{name}");
        }
        assert!(check("alice", "").is_err() && check("alice", "a\0b").is_err());
    }

    #[test]
    fn main_is_asked_where_the_plan_has_it() {
        let layout = Layout::new("/data");
        let mut stack = Stack::new("example.org".to_owned().try_into().unwrap());
        stack.database.external = serde_json::from_str(r#"{"host": "postgres"}"#).unwrap();
        stack.redis.external = serde_json::from_str(r#"{"host": "valkey"}"#).unwrap();
        for network in [
            "\"unix\"",
            r#"{"tcp": {"base_port": 9000}}"#,
            r#"{"hosts": {"prefix": "matrix-", "suffix": ".svc"}}"#,
            r#"{"hosts": {"prefix": "matrix-", "suffix": ".svc", "main": "main-1"}}"#,
        ] {
            stack.network = serde_json::from_str(network).unwrap();
            let topology = model::plan(&stack, &layout.sockets(), model::Preset::Small).unwrap();
            let main = topology.instance("main").unwrap().client.clone().unwrap();
            assert_eq!(main_address(&layout, &stack), main, "{network}");
        }
    }

    #[test]
    fn debug_hides_the_password() {
        assert!(
            !format!("{:?}", Account { name: "a", password: "hunter2", admin: false }).contains("hunter2")
        );
    }
}
