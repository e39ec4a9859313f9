//! LiveKit's tokens: JSON Web Tokens with HMAC-SHA-256 (RFC 7519, `HS256`).

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Millis;

/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 60;

/// One key of an SFU.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: String,
    secret: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

/// The keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] config::secrets::SecretError),
    /// It holds something else.
    #[error("{place}: {reason}; write one `key: secret` a line, as in LiveKit's own `keys`")]
    Malformed {
        /// Where the keys are from.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

impl Key {
    /// A key from its two parts.
    pub fn new(name: &str, secret: &str) -> Option<Self> {
        let (name, secret) = (name.trim(), secret.trim());
        let good = !name.is_empty() && !secret.is_empty() && !name.contains(':') && !secret.contains(':');
        good.then(|| Self { name: name.to_owned(), secret: secret.to_owned() })
    }

    /// The keys in a file of mode 0600: one `key: secret` a line. The first one signs, all of them are believed.
    pub fn read(path: &Path) -> Result<Vec<Self>, KeyError> {
        Self::parse(&path.display().to_string(), config::secrets::read(path)?.expose())
    }

    /// The keys in such a text.
    pub fn parse(place: &str, text: &str) -> Result<Vec<Self>, KeyError> {
        let wrong = |reason: String| KeyError::Malformed { place: place.to_owned(), reason };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let keys: Result<Vec<Self>, KeyError> = lines
            .map(|(at, line)| {
                line.split_once(':').and_then(|(name, secret)| Self::new(name, secret)).ok_or_else(|| {
                    wrong(format!("line {} is not a key and its secret with a colon between", at + 1))
                })
            })
            .collect();
        match keys {
            Ok(keys) if keys.is_empty() => Err(wrong("there is no key".to_owned())),
            keys => keys,
        }
    }

    fn mac(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(self.secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(text.as_bytes());
        mac
    }

    /// A token with these claims.
    fn sign(&self, claims: &Value) -> String {
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(self.mac(&text).finalize().into_bytes());
        format!("{text}.{signature}")
    }

    /// A token that lasts for so many seconds from `now` on.
    pub fn token(&self, identity: Option<&str>, video: &Video<'_>, now: Millis, seconds: u64) -> String {
        let now = now / 1000;
        let mut claims = json!({ "iss": self.name, "nbf": now, "exp": now + seconds, "video": video });
        if let Some(identity) = identity {
            claims["sub"] = identity.into();
        }
        self.sign(&claims)
    }
}

/// What a token allows.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Video<'a> {
    /// The room that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<&'a str>,
    /// Making rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_create: Option<bool>,
    /// Listing rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_list: Option<bool>,
    /// Asking about the room, and changing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_admin: Option<bool>,
    /// Joining it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_join: Option<bool>,
    /// Sending sound and pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish: Option<bool>,
    /// Receiving them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
    /// Changing what others see of oneself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_update_own_metadata: Option<bool>,
    /// Being there without others seeing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<bool>,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It is no token of this kind.
    #[error("it is no token of HS256")]
    Malformed,
    /// No key of ours.
    #[error("its key is not known")]
    Key,
    /// The signature is not that of the key.
    #[error("its signature is wrong")]
    Signature,
    /// It is not valid now.
    #[error("it is over, or not valid yet")]
    Time,
    /// It is of something else.
    #[error("it is of another message")]
    Body,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    nbf: u64,
    exp: u64,
    #[serde(default)]
    sha256: String,
}

/// Whether an SFU that has one of these keys sent this: `header` is the value of `Authorization`, a token with the hash of the body.
pub(crate) fn verify_webhook(keys: &[Key], header: &str, body: &[u8], now: Millis) -> Result<(), Refused> {
    let token = header.strip_prefix("Bearer ").unwrap_or(header).trim();
    let (text, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (head, claims) = text.split_once('.').ok_or(Refused::Malformed)?;
    let decode =
        |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| Refused::Malformed);
    let head: Value = serde_json::from_slice(&decode(head)?).map_err(|_| Refused::Malformed)?;
    if head["alg"] != "HS256" {
        return Err(Refused::Malformed);
    }
    let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| Refused::Malformed)?;
    let signature = decode(signature)?;
    let mut named = keys.iter().filter(|key| key.name == claims.iss).peekable();
    if named.peek().is_none() {
        return Err(Refused::Key);
    }
    // Compared in constant time.
    if !named.any(|key| key.mac(text).verify_slice(&signature).is_ok()) {
        return Err(Refused::Signature);
    }
    let now = now / 1000;
    if claims.exp.saturating_add(LEEWAY) < now || claims.nbf > now + LEEWAY {
        return Err(Refused::Time);
    }
    let hash = STANDARD.decode(claims.sha256).map_err(|_| Refused::Body)?;
    if hash == Sha256::digest(body).as_slice() { Ok(()) } else { Err(Refused::Body) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What an SFU sends along with a body.
    pub(crate) fn webhook_header(key: &Key, body: &[u8], now: Millis) -> String {
        let now = now / 1000;
        let hash = STANDARD.encode(Sha256::digest(body));
        key.sign(&json!({ "iss": key.name, "nbf": now, "exp": now + 300, "sha256": hash }))
    }

    fn key(name: &str) -> Key {
        Key::new(name, "a secret that is long enough for it").unwrap()
    }

    #[test]
    fn keys_are_lines() {
        let names = |text: &str| {
            Key::parse("x", text).map(|keys| keys.into_iter().map(|key| key.name).collect::<Vec<_>>())
        };
        assert_eq!(names("new: secret\r\n\n old :  other  \n").unwrap(), ["new", "old"]);
        for bad in ["", "a", "a:", ":b", "a: b: c", "a: b\nc"] {
            let error = names(bad).unwrap_err().to_string();
            assert!(error.contains("write one `key: secret` a line"), "{error}");
        }
        assert_eq!(format!("{:?}", Key::parse("x", "a: secret").unwrap()), "[Key(a)]");
    }

    #[test]
    fn a_webhook_is_believed_that_one_of_the_keys_has_signed() {
        let (now, body) = (1_700_000_000_000, b"{}");
        let keys = [key("new"), key("old")];
        for key in &keys {
            assert_eq!(verify_webhook(&keys, &webhook_header(key, body, now), body, now), Ok(()));
        }
        let header = webhook_header(&keys[0], body, now);
        assert_eq!(verify_webhook(&keys, &format!("Bearer {header}"), body, now), Ok(()));
        assert_eq!(verify_webhook(&keys[1..], &header, body, now), Err(Refused::Key));
        assert_eq!(verify_webhook(&keys, &header, b"{ }", now), Err(Refused::Body));
        assert_eq!(verify_webhook(&keys, &header, body, now + 361_000), Err(Refused::Time));
        assert_eq!(verify_webhook(&keys, &header, body, now - 61_000), Err(Refused::Time));
        let other = Key::new("new", "another secret").unwrap();
        assert_eq!(
            verify_webhook(&keys, &webhook_header(&other, body, now), body, now),
            Err(Refused::Signature)
        );
        for bad in ["", "a.b.c", "Bearer ", "eyJhbGciOiJub25lIn0.e30.", "..."] {
            assert_eq!(verify_webhook(&keys, bad, body, now), Err(Refused::Malformed), "{bad}");
        }
    }
}
