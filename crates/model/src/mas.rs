//! The Matrix Authentication Service (MAS): what people write of it, and where it stands in a stack.
//!
//! The sections that people change are typed here by MAS's own names (its configuration reference, version 1.20); what
//! is not can be set by `auth.mas.extra`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::companion::taken;
use crate::{Address, CompanionKind, Network, PlannedCompanion, Postgres, Problem, Stack};

/// Who says which users there are, and whose an access token is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The Matrix Authentication Service (MAS), to which Synapse leaves logins, sessions and tokens. Default: Synapse does
    /// that itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"public_base_url": "https://auth.example.org"}]))]
    pub mas: Option<Mas>,
}

/// The Matrix Authentication Service, 1.4 or newer. Its sections have its own names; what is not said here is as MAS has
/// it by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mas {
    /// The URL under which browsers and clients reach MAS: a host name of its own, or a path of the homeserver's
    /// (MAS's `http.public_base`). The router takes the requests for it to MAS.
    #[schemars(regex(pattern = r"^https?://[^\s/?#]+(/[A-Za-z0-9_.~-]+)*/?$"), example = &"https://auth.example.org")]
    pub public_base_url: String,
    /// The issuer in OpenID Connect's sense. It must not change once there are sessions. Default: `public_base_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"), example = &"https://auth.example.org/")]
    pub issuer: Option<String>,
    /// Whether `matrix-stack up` runs MAS. If not, MAS runs elsewhere, with the configuration that `matrix-stack render mas`
    /// writes.
    #[serde(default = "yes")]
    pub run: bool,
    /// Host and port where MAS takes requests: those of Synapse, which knows no unix socket for it, and those that the
    /// router takes to it. It listens there where `run` says so.
    #[serde(default = "default_address")]
    #[schemars(regex(pattern = r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+):[0-9]{1,5}$"))]
    pub address: String,
    /// The `mas-cli` program. Default: the one on PATH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/opt/mas/mas-cli")]
    pub program: Option<PathBuf>,
    /// The directory of what comes with the program: `policy.wasm`, `manifest.json`, `assets`, `templates` and
    /// `translations`. Default: `share` beside the program, as MAS's releases have it, where `program` is set; else the
    /// places that were built into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/opt/mas/share")]
    pub share: Option<PathBuf>,
    /// The URL at which MAS reaches the homeserver (MAS's `matrix.endpoint`). Default: where the router listens, if that is
    /// plain HTTP over TCP, else `public_base_url` of the stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/?#]+/?$"), example = &"http://127.0.0.1:8008")]
    pub homeserver_url: Option<String>,
    /// The PostgreSQL server of MAS's database. Its password is `secrets.mas_database_password`, else that of Synapse's.
    /// Default: a database `mas` on the server of Synapse's, where it must exist unless matrix-stack runs PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Postgres>,
    /// How many connections MAS opens to its database at most (MAS's `database.max_connections`).
    #[serde(default = "default_connections")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_connections: u16,
    /// Logins by password.
    #[serde(default, skip_serializing_if = "is_default")]
    pub passwords: Passwords,
    /// Other services that users log in with (MAS's `upstream_oauth2.providers`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [[{
        "id": "01HFVBY12TMNTYTBV8W921M5FA", "issuer": "https://accounts.example.org/", "client_id": "mas",
        "client_secret_file": "/etc/matrix-stack/provider", "token_endpoint_auth_method": "client_secret_basic",
        "scope": "openid profile email",
    }]]))]
    pub upstream_providers: Vec<Provider>,
    /// OAuth 2.0 clients that need no registration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [[{
        "client_id": "01HFVBY12TMNTYTBV8W921M5FB", "client_auth_method": "client_secret_post",
        "client_secret_file": "/etc/matrix-stack/console", "redirect_uris": ["https://console.example.org/callback"],
    }]]))]
    pub clients: Vec<Client>,
    /// How mails are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    /// Who may register, log in and do what.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Policy,
    /// What the pages say of the service.
    #[serde(default, skip_serializing_if = "is_default")]
    pub branding: Branding,
    /// What users may do with their accounts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub account: Account,
    /// A riddle that tells people from programs, where accounts are registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captcha: Option<Captcha>,
    /// How often somebody may do what.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rate_limiting: RateLimiting,
    /// Options of the OAuth 2.0 protocol.
    #[serde(default, skip_serializing_if = "is_default")]
    pub oauth: OAuth,
    /// What MAS may yet change: the lives of tokens and sessions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub experimental: Experimental,
    /// Options of MAS that are not above, such as `telemetry`, put over what is rendered: mappings are merged, anything else
    /// is replaced.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("examples" = [{"telemetry": {"tracing": {"exporter": "otlp"}}}]))]
    pub extra: Map<String, Value>,
}

const fn yes() -> bool {
    true
}

fn default_address() -> String {
    "127.0.0.1:8090".to_owned()
}

const fn default_connections() -> u16 {
    10
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Logins by password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Passwords {
    /// Whether there are any. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub enabled: Option<bool>,
    /// How hard a password has to be to guess, from 0 to 4 as zxcvbn has it. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4), example = 3)]
    pub minimum_complexity: Option<u8>,
    /// How passwords are hashed. The scheme with the highest version hashes new ones, the others still verify old ones.
    /// Default: Argon2id alone. For accounts that were Synapse's: bcrypt with version 1, and Argon2id with version 2.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [[{"version": 1, "algorithm": "bcrypt", "unicode_normalization": true}, {"version": 2, "algorithm": "argon2id"}]]))]
    pub schemes: Vec<Scheme>,
}

/// A way to hash passwords.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scheme {
    /// Its version, which no other has, and which never changes.
    #[schemars(range(min = 1))]
    pub version: u16,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The cost, for bcrypt. Default: 12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4, max = 31), example = 12)]
    pub cost: Option<u32>,
    /// Whether passwords are normalised first (NFKC), as Synapse does. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unicode_normalization: bool,
    /// A file with a secret that is hashed along: for accounts that were Synapse's, its `password_config.pepper`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/etc/matrix-stack/pepper")]
    pub secret_file: Option<PathBuf>,
}

/// What hashes passwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are the algorithms' names")]
pub enum Algorithm {
    Argon2id,
    Bcrypt,
    Pbkdf2,
}

/// Another service that users log in with, by OpenID Connect or OAuth 2.0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its identifier, a ULID, which never changes.
    #[schemars(regex(pattern = "^[0-7][0-9A-Za-z]{25}$"), example = &"01HFVBY12TMNTYTBV8W921M5FA")]
    pub id: String,
    /// Whether users may log in with it. Default: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub enabled: Option<bool>,
    /// What Synapse called it, so that its users find their accounts: `oidc-` and the `idp_id`, or `oidc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"oidc-github")]
    pub synapse_idp_id: Option<String>,
    /// Its issuer, from which all else is discovered, unless `discovery_mode` is `disabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://accounts.example.org/")]
    pub issuer: Option<String>,
    /// What the login page calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"Example")]
    pub human_name: Option<String>,
    /// Whose logo the login page shows, such as `google`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"google")]
    pub brand_name: Option<String>,
    /// What it knows MAS as.
    pub client_id: String,
    /// The file of the secret that goes with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/etc/matrix-stack/google")]
    pub client_secret_file: Option<PathBuf>,
    /// How MAS shows who it is.
    pub token_endpoint_auth_method: TokenAuth,
    /// What `sign_in_with_apple` needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_in_with_apple: Option<Apple>,
    /// The algorithm that signs what shows who MAS is, such as `RS256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"RS256")]
    pub token_endpoint_auth_signing_alg: Option<String>,
    /// The algorithm that signs the ID token. Default: `RS256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"RS256")]
    pub id_token_signed_response_alg: Option<String>,
    /// The scopes to ask for, with spaces between.
    #[schemars(example = &"openid profile email")]
    pub scope: String,
    /// How its endpoints are found. Default: `oidc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"insecure", extend("enum" = ["oidc", "insecure", "disabled", null]))]
    pub discovery_mode: Option<String>,
    /// Whether PKCE is used. Default: `auto`, if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"always", extend("enum" = ["auto", "always", "never", null]))]
    pub pkce_method: Option<String>,
    /// Whether claims are asked of its userinfo endpoint too. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fetch_userinfo: bool,
    /// The algorithm that signs what the userinfo endpoint says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"RS256")]
    pub userinfo_signed_response_alg: Option<String>,
    /// Its authorisation endpoint, where it is not discovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://accounts.example.org/authorize")]
    pub authorization_endpoint: Option<String>,
    /// Its userinfo endpoint, where it is not discovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://accounts.example.org/userinfo")]
    pub userinfo_endpoint: Option<String>,
    /// Its token endpoint, where it is not discovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://accounts.example.org/token")]
    pub token_endpoint: Option<String>,
    /// Where its keys are, where that is not discovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://accounts.example.org/keys")]
    pub jwks_uri: Option<String>,
    /// How it hands its answer to the browser. Default: `query`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"form_post", extend("enum" = ["query", "form_post", null]))]
    pub response_mode: Option<String>,
    /// Which claims become what, by the names of MAS's `claims_imports`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("examples" = [{"localpart": {"action": "require", "template": "{{ user.preferred_username }}"}}]))]
    pub claims_imports: Map<String, Value>,
    /// More parameters for the authorisation request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("examples" = [{"login_hint": "{{ params.login_hint }}"}]))]
    pub additional_authorization_parameters: BTreeMap<String, String>,
    /// What becomes of sessions when the user logs out there. Default: `do_nothing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"logout_all", extend("enum" = ["do_nothing", "logout_browser_only", "logout_all", null]))]
    pub on_backchannel_logout: Option<String>,
}

/// How MAS shows another service who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenAuth {
    /// Not at all.
    None,
    /// By the secret, in a header.
    ClientSecretBasic,
    /// By the secret, in the body.
    ClientSecretPost,
    /// By a token that the secret signs.
    ClientSecretJwt,
    /// By a token that MAS's own keys sign.
    PrivateKeyJwt,
    /// In Apple's own way.
    SignInWithApple,
}

impl TokenAuth {
    fn needs_secret(self) -> bool {
        matches!(self, Self::ClientSecretBasic | Self::ClientSecretPost | Self::ClientSecretJwt)
    }
}

/// What `sign_in_with_apple` needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Apple {
    /// The file of the private key that Apple gave out.
    #[schemars(example = &"/etc/matrix-stack/apple.p8")]
    pub private_key_file: PathBuf,
    /// The team's ID.
    pub team_id: String,
    /// The key's ID.
    pub key_id: String,
}

/// An OAuth 2.0 client that needs no registration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its identifier, a ULID.
    #[schemars(regex(pattern = "^[0-7][0-9A-Za-z]{25}$"), example = &"01HFVBY12TMNTYTBV8W921M5FB")]
    pub client_id: String,
    /// How it shows who it is.
    #[schemars(extend("enum" = ["none", "client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt"]))]
    pub client_auth_method: TokenAuth,
    /// What it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"Console")]
    pub client_name: Option<String>,
    /// Its home page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://console.example.org/")]
    pub client_uri: Option<String>,
    /// The file of its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/etc/matrix-stack/console")]
    pub client_secret_file: Option<PathBuf>,
    /// Its public keys, for `private_key_jwt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"keys": []}]))]
    pub jwks: Option<Map<String, Value>>,
    /// Where its public keys are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://console.example.org/keys.json")]
    pub jwks_uri: Option<String>,
    /// Where it may have browsers sent back to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [["https://console.example.org/callback"]]))]
    pub redirect_uris: Vec<String>,
}

/// How mails are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// Whom they are from.
    #[schemars(example = &"\"Example\" <auth@example.org>")]
    pub from: String,
    /// Whom answers go to.
    #[schemars(example = &"\"Nobody\" <no-reply@example.org>")]
    pub reply_to: String,
    /// What takes them: a server, a program, or nothing.
    #[schemars(example = &"smtp", extend("enum" = ["smtp", "sendmail", "blackhole"]))]
    pub transport: String,
    /// How the connection to the server is secured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"starttls", extend("enum" = ["plain", "tls", "starttls", null]))]
    pub mode: Option<String>,
    /// The server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"mail.example.org")]
    pub hostname: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), example = 587)]
    pub port: Option<u16>,
    /// The user there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"auth")]
    pub username: Option<String>,
    /// The file of the user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/etc/matrix-stack/mail")]
    pub password_file: Option<PathBuf>,
    /// The program, for `sendmail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/usr/sbin/sendmail")]
    pub command: Option<String>,
}

/// Who may register, log in and do what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What the policy decides by: `admin_users`, `admin_clients`, `registration`, `emails`, `requester` and others, by the
    /// names of MAS's `policy.data`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("examples" = [{"admin_users": ["alice"]}]))]
    pub data: Map<String, Value>,
}

/// What the pages say of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Branding {
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"Example")]
    pub service_name: Option<String>,
    /// Where the privacy policy is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://example.org/privacy")]
    pub policy_uri: Option<String>,
    /// Where the terms of service are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://example.org/terms")]
    pub tos_uri: Option<String>,
    /// The last line of each page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"© Example")]
    pub imprint: Option<String>,
}

/// What users may do with their accounts. What is not said is as MAS has it by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Account {
    /// Change their mail addresses. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub email_change_allowed: Option<bool>,
    /// Change their display names. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub displayname_change_allowed: Option<bool>,
    /// Register an account with a password. Default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub password_registration_enabled: Option<bool>,
    /// Whether that takes a mail address. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub password_registration_email_required: Option<bool>,
    /// Whether that takes a registration token. Default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub password_registration_token_required: Option<bool>,
    /// Change their passwords. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub password_change_allowed: Option<bool>,
    /// Get a new password by mail. Default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub password_recovery_enabled: Option<bool>,
    /// Delete their accounts. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub account_deactivation_allowed: Option<bool>,
    /// Log in with a mail address. Default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub login_with_email_allowed: Option<bool>,
}

/// A riddle that tells people from programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Captcha {
    /// Whose.
    #[schemars(example = &"hcaptcha", extend("enum" = ["recaptcha_v2", "cloudflare_turnstile", "hcaptcha"]))]
    pub service: String,
    /// The site's key.
    #[schemars(example = &"10000000-ffff-ffff-ffff-000000000001")]
    pub site_key: String,
    /// The secret key. MAS takes it from its configuration alone.
    #[schemars(example = &"0x0000000000000000000000000000000000000000")]
    pub secret_key: String,
}

/// How often somebody may do what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimiting {
    /// Ask for a new password.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "AccountRecoveryLimits", extend("examples" = [{"per_ip": {"burst": 3, "per_second": 0.0008}}]))]
    pub account_recovery: BTreeMap<String, RateLimit>,
    /// Log in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "LoginLimits", extend("examples" = [{"per_ip": {"burst": 3, "per_second": 0.05}}]))]
    pub login: BTreeMap<String, RateLimit>,
    /// Register, from one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration: Option<RateLimit>,
    /// Prove a mail address.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "EmailLimits", extend("examples" = [{"per_ip": {"burst": 5, "per_second": 0.016}}]))]
    pub email_authentication: BTreeMap<String, RateLimit>,
}

macro_rules! limits {
    ($name:ident { $($(#[$doc:meta])* $field:ident),* }) => {
        /// The limits of one thing to do, by what they count.
        #[derive(JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        #[derive(Default, Serialize, Deserialize)]
        struct $name { $($(#[$doc])* $field: Option<RateLimit>),* }
    };
}

limits!(AccountRecoveryLimits {
    /// From one address.
    per_ip,
    /// For one mail address.
    per_address
});
limits!(LoginLimits {
    /// From one address.
    per_ip,
    /// Into one account.
    per_account
});
limits!(EmailLimits {
    /// From one address.
    per_ip,
    /// For one mail address.
    per_address,
    /// Mails in one attempt.
    emails_per_session,
    /// Codes tried in one attempt.
    attempt_per_session
});

/// How often something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// So often at once.
    #[schemars(range(min = 1), example = 3)]
    pub burst: u32,
    /// So often again in each second.
    #[schemars(range(min = 0.000_001), example = 0.05)]
    pub per_second: f64,
}

/// Options of the OAuth 2.0 protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OAuth {
    /// Whether devices may log in by a code that is typed elsewhere. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub device_code_grant_enabled: Option<bool>,
}

/// The lives of tokens and sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Experimental {
    /// How long an access token lives, in seconds. Default: 300.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86400), example = 300)]
    pub access_token_ttl: Option<u32>,
    /// How long one of a client that knows nothing of OAuth lives, in seconds. Default: 300.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86400), example = 300)]
    pub compat_token_ttl: Option<u32>,
    /// When sessions end that nobody uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_session_expiration: Option<InactiveSessions>,
    /// How many sessions a user may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_limit: Option<SessionLimit>,
}

/// When sessions end that nobody uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InactiveSessions {
    /// After so many seconds.
    #[schemars(range(min = 600, max = 7_776_000), example = 2_592_000)]
    pub ttl: u32,
    /// Those of clients that know nothing of OAuth. Default: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub expire_compat_sessions: Option<bool>,
    /// Those of clients. Default: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub expire_oauth_sessions: Option<bool>,
    /// Those of browsers. Default: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub expire_user_sessions: Option<bool>,
}

/// How many sessions a user may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionLimit {
    /// From so many on, a login in a browser asks to end some.
    #[schemars(range(min = 1), example = 10)]
    pub soft_limit: u32,
    /// From so many on, every login is refused.
    #[schemars(range(min = 1), example = 20)]
    pub hard_limit: u32,
}

/// MAS as the plan has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedMas {
    /// Where Synapse and the router reach it.
    pub address: Address,
    /// The host name (with a port that is not the scheme's own) that is all its own; none where it shares the homeserver's.
    pub host: Option<String>,
    /// The path under which it is reached, without a slash at its end: empty where it has the whole host.
    pub path: String,
}

impl PlannedMas {
    /// Its URL for Synapse (Synapse's `matrix_authentication_service.endpoint`).
    pub fn endpoint(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Mas {
    /// MAS with nothing but its URL.
    pub fn new(public_base_url: impl Into<String>) -> Self {
        Self {
            public_base_url: public_base_url.into(),
            issuer: None,
            run: true,
            address: default_address(),
            program: None,
            share: None,
            homeserver_url: None,
            database: None,
            max_connections: default_connections(),
            passwords: Passwords::default(),
            upstream_providers: Vec::new(),
            clients: Vec::new(),
            email: None,
            policy: Policy::default(),
            branding: Branding::default(),
            account: Account::default(),
            captcha: None,
            rate_limiting: RateLimiting::default(),
            oauth: OAuth::default(),
            experimental: Experimental::default(),
            extra: Map::new(),
        }
    }

    /// The URL under which it is reached, with a slash at its end.
    pub fn public_base(&self) -> String {
        format!("{}/", self.public_base_url.trim_end_matches('/'))
    }

    /// Where what comes with the program lies, as far as that is known.
    pub fn share(&self) -> Option<PathBuf> {
        let beside = || Some(self.program.as_ref()?.parent()?.join("share"));
        self.share.clone().or_else(beside)
    }

    /// Every path with its field.
    pub fn paths(&mut self) -> Vec<(String, &mut PathBuf)> {
        let mut paths =
            vec![("program".to_owned(), self.program.as_mut()), ("share".to_owned(), self.share.as_mut())];
        for (n, scheme) in self.passwords.schemes.iter_mut().enumerate() {
            paths.push((format!("passwords.schemes[{n}].secret_file"), scheme.secret_file.as_mut()));
        }
        for (n, provider) in self.upstream_providers.iter_mut().enumerate() {
            let field = format!("upstream_providers[{n}]");
            paths.push((format!("{field}.client_secret_file"), provider.client_secret_file.as_mut()));
            let apple = provider.sign_in_with_apple.as_mut().map(|apple| &mut apple.private_key_file);
            paths.push((format!("{field}.sign_in_with_apple.private_key_file"), apple));
        }
        for (n, client) in self.clients.iter_mut().enumerate() {
            paths.push((format!("clients[{n}].client_secret_file"), client.client_secret_file.as_mut()));
        }
        let email = self.email.as_mut().and_then(|email| email.password_file.as_mut());
        paths.push(("email.password_file".to_owned(), email));
        paths.into_iter().filter_map(|(field, path)| Some((format!("auth.mas.{field}"), path?))).collect()
    }

    fn planned(&self, stack: &Stack) -> Option<PlannedMas> {
        let (host, port) = self.address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let address =
            Address::Tcp { host: host.to_owned(), port: port.parse().ok().filter(|port| *port > 0)? };
        let (authority, path) = split_url(&self.public_base_url)?;
        let (homeserver, _) = split_url(&stack.base_url())?;
        Some(PlannedMas { address, host: (authority != homeserver).then_some(authority), path })
    }
}

/// The authority of a URL as browsers send it in `Host`, and its path without a slash at its end.
fn split_url(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let own = if scheme == "http" { ":80" } else { ":443" };
    let authority = authority.strip_suffix(own).unwrap_or(authority).to_ascii_lowercase();
    Some((authority, path.trim_end_matches('/').to_owned()))
}

/// Synapse options that mean that Synapse does itself what MAS does, as Synapse's own checks have it (`config/mas.py`);
/// each with what to do instead.
const SYNAPSE_ALONE: [(&str, &str); 17] = [
    ("matrix_authentication_service", "remove it: `auth.mas` sets it"),
    ("oidc_providers", "remove it, and list them as `auth.mas.upstream_providers`"),
    ("oidc_config", "remove it, and list the provider as one of `auth.mas.upstream_providers`"),
    ("cas_config", "remove it: MAS knows no CAS, but what serves CAS mostly serves OpenID Connect too"),
    ("saml2_config", "remove it: MAS knows no SAML; a bridge such as Dex makes OpenID Connect of it"),
    ("jwt_config", "remove it"),
    (
        "password_providers",
        "remove it, and list a provider under `auth.mas.upstream_providers` (Dex has one for LDAP)",
    ),
    ("user_consent", "remove it, and set `auth.mas.branding.tos_uri`"),
    ("enable_registration_captcha", "remove it, and set `auth.mas.captcha`"),
    ("login_via_existing_session", "remove it"),
    ("refresh_token_lifetime", "remove it, and set `auth.mas.experimental.inactive_session_expiration`"),
    ("refreshable_access_token_lifetime", "remove it, and set `auth.mas.experimental.access_token_ttl`"),
    ("nonrefreshable_access_token_lifetime", "remove it, and set `auth.mas.experimental.compat_token_ttl`"),
    ("session_lifetime", "remove it, and set `auth.mas.experimental.inactive_session_expiration`"),
    ("enable_3pid_changes", "remove it, and set `auth.mas.account.email_change_allowed`"),
    (
        "registrations_require_3pid",
        "remove it, and set `auth.mas.account.password_registration_email_required`",
    ),
    ("password_config", "remove it, and set `auth.mas.passwords`"),
];

/// Modules of Synapse that check passwords, by a part of their names: Synapse would never ask them.
const PASSWORD_MODULES: [&str; 3] =
    ["ldap_auth_provider", "rest_auth_provider", "shared_secret_authenticator"];

/// Whether an option says nothing that counts: off, or not there.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() || map.get("enabled") == Some(&Value::Bool(false)),
        _ => false,
    }
}

/// Plans MAS, with its private socket in this directory: where it is, and the process if the stack runs it.
pub(crate) fn plan(
    stack: &Stack,
    socket_dir: &Path,
    problems: &mut Vec<Problem>,
) -> (Option<PlannedMas>, Option<PlannedCompanion>) {
    let Some(mas) = &stack.auth.mas else { return (None, None) };
    let mut refuse = |field: &str, reason: &str, mend: &str| {
        problems.push(Problem::Mas {
            field: field.to_owned(),
            reason: reason.to_owned(),
            mend: mend.to_owned(),
        });
    };
    check_synapse(stack, &mut refuse);
    check(mas, &mut refuse);
    if mas.run && matches!(stack.network, Network::Hosts(_)) {
        refuse(
            "auth.mas.run",
            "`network: hosts` gives each process a host of its own, and `up` runs none of them",
            "set `run: false`, and `address` to where MAS is; on Kubernetes the chart does both",
        );
    }
    let Some(planned) = mas.planned(stack) else {
        refuse(
            "auth.mas.address",
            "the address has no port, or the URL no host",
            "write it as `HOST:PORT`, such as `127.0.0.1:8090`",
        );
        return (None, None);
    };
    if planned.host.is_none() && (planned.path.is_empty() || taken(&planned.path)) {
        refuse(
            "auth.mas.public_base_url",
            "the homeserver itself is reached there",
            "give MAS a host name of its own, such as `https://auth.example.org`, or a path outside `/_matrix`, \
             `/_synapse` and `/.well-known`, such as `/auth`",
        );
    }
    let listens = [Some(&stack.listen.address), stack.listen.metrics.as_ref()];
    if mas.run && listens.into_iter().flatten().any(|address| *address == mas.address) {
        refuse("auth.mas.address", "the router listens there", "give MAS a port of its own");
    }
    let process = mas.run.then(|| PlannedCompanion {
        kind: CompanionKind::Mas,
        path: None,
        address: Some(planned.address.clone()),
        private: Address::Unix { path: socket_dir.join("mas.private.sock") },
        settings: match serde_json::to_value(mas) {
            Ok(Value::Object(settings)) => settings,
            _ => Map::new(),
        },
    });
    (Some(planned), process)
}

/// Refuses what contradicts MAS in Synapse's own options.
fn check_synapse(stack: &Stack, refuse: &mut impl FnMut(&str, &str, &str)) {
    if stack.registration.open {
        refuse(
            "registration.open",
            "with MAS, accounts are registered there, and Synapse refuses to start with a registration of its own",
            "remove it, and set `auth.mas.account.password_registration_enabled: true`",
        );
    }
    let scopes = std::iter::once(("synapse.extra".to_owned(), &stack.synapse.extra))
        .chain(stack.workers.iter().map(|(name, group)| (format!("workers.{name}.extra"), &group.extra)));
    for (scope, extra) in scopes {
        for (option, mend) in SYNAPSE_ALONE {
            if extra.get(option).is_some_and(|value| !is_off(value)) {
                let reason = format!("with MAS, `{option}` of Synapse contradicts: MAS does that");
                refuse(&format!("{scope}.{option}"), &reason, mend);
            }
        }
        let modules = extra.get("modules").and_then(Value::as_array);
        for (n, module) in modules.into_iter().flatten().enumerate() {
            let name = module.get("module").and_then(Value::as_str).unwrap_or_default();
            if PASSWORD_MODULES.iter().any(|known| name.contains(known)) {
                let reason =
                    format!("with MAS, Synapse asks no module for passwords, so `{name}` would do nothing");
                let mend = "remove it, and list a provider under `auth.mas.upstream_providers` (Dex has one for LDAP)";
                refuse(&format!("{scope}.modules[{n}]"), &reason, mend);
            }
        }
    }
}

/// Refuses what MAS itself would refuse when it starts.
fn check(mas: &Mas, refuse: &mut impl FnMut(&str, &str, &str)) {
    if mas.passwords.enabled == Some(false) && mas.upstream_providers.is_empty() {
        refuse(
            "auth.mas.passwords.enabled",
            "nobody could log in: there are neither passwords nor providers",
            "list a provider under `auth.mas.upstream_providers`, or leave passwords enabled",
        );
    }
    let mut versions = BTreeSet::new();
    for (n, scheme) in mas.passwords.schemes.iter().enumerate() {
        if !versions.insert(scheme.version) {
            let field = format!("auth.mas.passwords.schemes[{n}].version");
            refuse(
                &field,
                "another scheme has this version",
                "give each a version of its own, the newest the highest",
            );
        }
    }
    let mut ids = BTreeSet::new();
    for (n, provider) in mas.upstream_providers.iter().enumerate() {
        let field = format!("auth.mas.upstream_providers[{n}]");
        let method = provider.token_endpoint_auth_method;
        if !ids.insert(provider.id.to_ascii_uppercase()) {
            refuse(
                &format!("{field}.id"),
                "another provider has this identifier",
                "give each a ULID of its own",
            );
        }
        if provider.issuer.is_none() && provider.discovery_mode.as_deref() != Some("disabled") {
            let mend = "set it, or `discovery_mode: disabled` and the endpoints";
            refuse(&format!("{field}.issuer"), "nothing can be discovered without an issuer", mend);
        }
        if method.needs_secret() != provider.client_secret_file.is_some() {
            let mend = "set `client_secret_file` for the methods that are called `client_secret_…`, and for no other";
            refuse(
                &format!("{field}.token_endpoint_auth_method"),
                "method and secret do not fit each other",
                mend,
            );
        }
        if (method == TokenAuth::SignInWithApple) != provider.sign_in_with_apple.is_some() {
            let mend = "set `sign_in_with_apple` with that method, and with no other";
            refuse(&format!("{field}.sign_in_with_apple"), "method and key do not fit each other", mend);
        }
    }
    let mut ids = BTreeSet::new();
    for (n, client) in mas.clients.iter().enumerate() {
        let field = format!("auth.mas.clients[{n}]");
        let keys = usize::from(client.jwks.is_some()) + usize::from(client.jwks_uri.is_some());
        let method = client.client_auth_method;
        if !ids.insert(client.client_id.to_ascii_uppercase()) {
            refuse(
                &format!("{field}.client_id"),
                "another client has this identifier",
                "give each a ULID of its own",
            );
        }
        if method.needs_secret() != client.client_secret_file.is_some()
            || usize::from(method == TokenAuth::PrivateKeyJwt) != keys
        {
            let mend = "set `client_secret_file` for the methods that are called `client_secret_…`, one of `jwks` and \
                        `jwks_uri` for `private_key_jwt`, and nothing for `none`";
            refuse(
                &format!("{field}.client_auth_method"),
                "method and credentials do not fit each other",
                mend,
            );
        }
    }
    if let Some(limit) = &mas.experimental.session_limit
        && limit.soft_limit > limit.hard_limit
    {
        let field = "auth.mas.experimental.session_limit.soft_limit";
        refuse(field, "the soft limit is above the hard one", "set it to `hard_limit` or less");
    }
    if let Some(email) = &mas.email
        && (email.transport == "smtp") != (email.hostname.is_some() && email.mode.is_some())
    {
        let mend = "set `hostname` and `mode` with `transport: smtp`, and with no other";
        refuse("auth.mas.email.transport", "transport and server do not fit each other", mend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, Preset, Topology, compare};

    fn plan(stack: &str) -> Result<Topology, Vec<String>> {
        let stack: Stack = serde_json::from_str(stack).unwrap();
        crate::plan(&stack, Path::new("/run/x"), Preset::Small).map_err(|problems| {
            problems.0.iter().map(|problem| format!("{}: {problem}", problem.field())).collect()
        })
    }

    fn refused(stack: &str) -> Vec<String> {
        let fields = plan(stack).unwrap_err();
        fields.iter().map(|text| text.split(": ").next().unwrap().to_owned()).collect()
    }

    #[test]
    fn it_has_a_host_or_a_path_of_its_own() {
        let place = |url: &str| {
            let text = format!(
                r#"{{"server_name": "example.org", "public_base_url": "https://matrix.example.org",
                    "auth": {{"mas": {{"public_base_url": "{url}"}}}}}}"#
            );
            let topology = plan(&text)?;
            let mas = topology.mas().unwrap();
            Ok::<_, Vec<String>>((mas.host.clone(), mas.path.clone()))
        };
        let host = |name: &str| Some(name.to_owned());
        assert_eq!(place("https://auth.example.org/").unwrap(), (host("auth.example.org"), String::new()));
        assert_eq!(place("https://Auth.example.org:443").unwrap(), (host("auth.example.org"), String::new()));
        assert_eq!(
            place("https://a.example.org:8443/x").unwrap(),
            (host("a.example.org:8443"), "/x".to_owned())
        );
        assert_eq!(place("https://matrix.example.org/auth/").unwrap(), (None, "/auth".to_owned()));
        for shared in ["https://matrix.example.org/", "https://matrix.example.org/_matrix/auth"] {
            assert!(place(shared).unwrap_err()[0].starts_with("auth.mas.public_base_url: "), "{shared}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let fields = refused(
            r#"{"server_name": "example.org", "registration": {"open": true},
                "auth": {"mas": {"public_base_url": "https://auth.example.org", "passwords": {"enabled": false}}},
                "synapse": {"extra": {"oidc_providers": [{}], "cas_config": {"enabled": false}, "jwt_config": null,
                    "modules": [{"module": "ldap_auth_provider.LdapAuthProviderModule"}, {"module": "other"}]}},
                "workers": {"sync": {"extra": {"password_config": {"pepper": "x"}}}}}"#,
        );
        assert_eq!(
            fields,
            [
                "registration.open",
                "synapse.extra.oidc_providers",
                "synapse.extra.modules[0]",
                "workers.sync.extra.password_config",
                "auth.mas.passwords.enabled",
            ]
        );
    }

    #[test]
    fn what_mas_would_refuse_is_refused() {
        let fields = refused(
            r#"{"server_name": "example.org", "auth": {"mas": {"public_base_url": "https://auth.example.org",
                "address": "localhost:99999",
                "passwords": {"schemes": [{"version": 1, "algorithm": "bcrypt"}, {"version": 1, "algorithm": "argon2id"}]},
                "upstream_providers": [
                  {"id": "01HFVBY12TMNTYTBV8W921M5FA", "client_id": "a", "scope": "openid",
                   "token_endpoint_auth_method": "client_secret_post"},
                  {"id": "01hfvby12tmntytbv8w921m5fa", "client_id": "a", "scope": "openid", "issuer": "https://a/",
                   "token_endpoint_auth_method": "none"}],
                "clients": [{"client_id": "01HFVBY12TMNTYTBV8W921M5FB", "client_auth_method": "private_key_jwt"}],
                "email": {"from": "a@b", "reply_to": "a@b", "transport": "smtp"},
                "experimental": {"session_limit": {"soft_limit": 3, "hard_limit": 2}}}}}"#,
        );
        assert_eq!(
            fields,
            [
                "auth.mas.passwords.schemes[1].version",
                "auth.mas.upstream_providers[0].issuer",
                "auth.mas.upstream_providers[0].token_endpoint_auth_method",
                "auth.mas.upstream_providers[1].id",
                "auth.mas.clients[0].client_auth_method",
                "auth.mas.experimental.session_limit.soft_limit",
                "auth.mas.email.transport",
                "auth.mas.address",
            ]
        );
    }

    #[test]
    fn a_change_of_its_pages_leaves_synapse_alone() {
        let with = |mas: &str| {
            plan(&format!(r#"{{"server_name": "example.org", "auth": {{"mas": {mas}}}}}"#)).unwrap()
        };
        let actions = |old: &Topology, new: &Topology| {
            let changes = compare(old, new).changes;
            let find = |name: &str| changes.iter().find(|c| c.instance == name).map(|c| c.action);
            (find("main"), find("mas"))
        };
        let old = with(r#"{"public_base_url": "https://auth.example.org"}"#);
        let branded =
            with(r#"{"public_base_url": "https://auth.example.org", "branding": {"service_name": "X"}}"#);
        let moved = with(r#"{"public_base_url": "https://auth.example.org", "address": "127.0.0.1:9999"}"#);
        let none = plan(r#"{"server_name": "example.org"}"#).unwrap();
        assert_eq!(actions(&old, &branded), (Some(Action::Keep), Some(Action::Roll)));
        assert_eq!(actions(&old, &moved), (Some(Action::Restart), Some(Action::Roll)));
        assert_eq!(actions(&none, &old), (Some(Action::Restart), Some(Action::Start)));
        assert!(compare(&none, &old).router);
    }

    #[test]
    fn its_connections_count() {
        let connections = |mas: &str| {
            let text = format!(r#"{{"server_name": "example.org", "preset": "full" {mas}}}"#);
            plan(&text).unwrap().max_connections()
        };
        let with =
            r#", "auth": {"mas": {"public_base_url": "https://auth.example.org", "max_connections": 30}}"#;
        assert_eq!(connections(with), connections("") + 30);
    }
}
