//! What clients send, and what they are told where that is refused.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::formula::Formula;

/// The routes that clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// `/sfu/get`: of clients from before MSC4195.
    Legacy,
    /// `/get_token`.
    Token,
    /// `/delegate_delayed_leave`.
    Delegate,
}

impl Kind {
    /// Its path.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Legacy => "/sfu/get",
            Self::Token => "/get_token",
            Self::Delegate => "/delegate_delayed_leave",
        }
    }
}

/// An answer that says no, in Matrix's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The code that programs read.
    pub errcode: &'static str,
    /// The text that people read.
    pub error: String,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// One without a time.
    pub(crate) fn new(status: u16, errcode: &'static str, error: impl Into<String>) -> Self {
        Self { status, errcode, error: error.into(), retry_after: None }
    }

    fn missing(error: &str) -> Self {
        Self::new(400, "M_BAD_JSON", error)
    }
}

/// A request that has all it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The Matrix room.
    pub room_id: String,
    /// The slot in it. None: by the old route.
    pub slot_id: Option<String>,
    /// The token that shows who asks. Do not log it.
    pub access_token: String,
    /// The homeserver that gave it.
    pub server: String,
    /// Who they say they are. None: by the old route.
    pub user_id: Option<String>,
    /// Their device.
    pub device_id: String,
    /// Their membership.
    pub member_id: Option<String>,
    /// A delayed leave to look after.
    pub delay: Option<Delay>,
}

/// A delayed event (MSC4140) that says that a member has left, should nobody hold it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delay {
    /// Its ID.
    pub id: String,
    /// After how long it is sent.
    pub timeout: Duration,
}

impl Asked {
    /// The room as LiveKit knows it.
    pub(crate) fn livekit_room(&self, formula: Formula) -> String {
        match &self.slot_id {
            Some(slot) => formula.room(&self.room_id, slot),
            None => formula.legacy_room(&self.room_id),
        }
    }

    /// The member as LiveKit knows them, once it is known who they are.
    pub(crate) fn identity(&self, formula: Formula, user_id: &str) -> String {
        match &self.member_id {
            Some(member) => formula.identity(user_id, &self.device_id, member),
            None => Formula::legacy_identity(user_id, &self.device_id),
        }
    }
}

// A key that is missing, or null, counts as empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    room: Option<String>,
    room_id: Option<String>,
    slot_id: Option<String>,
    openid_token: Option<RawToken>,
    device_id: Option<String>,
    member: Option<RawMember>,
    delay_id: Option<String>,
    delay_timeout: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawToken {
    access_token: Option<String>,
    matrix_server_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMember {
    id: Option<String>,
    claimed_user_id: Option<String>,
    claimed_device_id: Option<String>,
}

/// The keys that a body may have.
fn known(kind: Kind) -> &'static [&'static str] {
    const LEGACY: &[&str] =
        &["room", "openid_token", "device_id", "delay_id", "delay_timeout", "delay_cs_api_url"];
    const TOKEN: &[&str] =
        &["room_id", "slot_id", "openid_token", "member", "delay_id", "delay_timeout", "delay_cs_api_url"];
    match kind {
        Kind::Legacy => LEGACY,
        Kind::Token | Kind::Delegate => TOKEN,
    }
}

/// The keys of a body that mean nothing here.
pub(crate) fn unknown_keys(kind: Kind, body: &Value) -> Vec<String> {
    let keys_of = |value: &Value, known: &[&str], prefix: &str| -> Vec<String> {
        let names = value.as_object().into_iter().flat_map(|object| object.keys());
        names.filter(|name| !known.contains(&name.as_str())).map(|name| format!("{prefix}{name}")).collect()
    };
    let mut unknown = keys_of(body, known(kind), "");
    let token = ["access_token", "token_type", "matrix_server_name", "expires_in"];
    unknown.extend(keys_of(&body["openid_token"], &token, "openid_token."));
    unknown.extend(keys_of(&body["member"], &["id", "claimed_user_id", "claimed_device_id"], "member."));
    unknown
}

/// Reads a body. `strict`: refuses one with a key that means nothing, as lk-jwt-service does.
pub(crate) fn parse(kind: Kind, body: &[u8], strict: bool) -> Result<Asked, Refusal> {
    const NOT_JSON: &str = "Error reading request";
    let not_json = || Refusal::new(400, "M_NOT_JSON", NOT_JSON);
    let value: Value = serde_json::from_slice(body).map_err(|_| not_json())?;
    if !value.is_object() {
        return Err(not_json());
    }
    let unknown = unknown_keys(kind, &value);
    if !unknown.is_empty() {
        if strict {
            return Err(not_json());
        }
        let keys: String = unknown.join(", ").chars().take(200).collect();
        tracing::debug!(
            path = kind.path(),
            keys,
            "a request has keys that are not known; the client may be newer"
        );
    }
    let raw: Raw = serde_json::from_value(value).map_err(|_| not_json())?;
    let full = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = raw.openid_token.unwrap_or_default();
    let token = full(token.access_token).zip(full(token.matrix_server_name));
    let timeout = raw.delay_timeout.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0);
    let delay = match (full(raw.delay_id), timeout) {
        (Some(id), Some(ms)) => Ok(Some(Delay { id, timeout: Duration::from_millis(ms) })),
        (None, None) if kind != Kind::Delegate => Ok(None),
        _ => Err(Refusal::missing("The request body is missing `delay_id` or `delay_timeout`")),
    };
    if kind == Kind::Legacy {
        let room_id = full(raw.room).ok_or_else(|| Refusal::missing("Missing room parameter"))?;
        let (access_token, server) =
            token.ok_or_else(|| Refusal::missing("Missing OpenID token parameters"))?;
        return Ok(Asked {
            room_id,
            slot_id: None,
            access_token,
            server,
            user_id: None,
            device_id: raw.device_id.unwrap_or_default(),
            member_id: None,
            delay: delay?,
        });
    }
    let room = full(raw.room_id).zip(full(raw.slot_id));
    let (room_id, slot_id) =
        room.ok_or_else(|| Refusal::missing("The request body is missing `room_id` or `slot_id`"))?;
    let member = raw.member.unwrap_or_default();
    let member = full(member.id).zip(full(member.claimed_user_id)).zip(full(member.claimed_device_id));
    let article = if kind == Kind::Token { "a " } else { "" };
    let ((member_id, user_id), device_id) = member.ok_or_else(|| {
        Refusal::missing(&format!(
            "The request body `member` is missing {article}`id`, `claimed_user_id` or `claimed_device_id`"
        ))
    })?;
    let (access_token, server) = token.ok_or_else(|| {
        Refusal::missing(&format!(
            "The request body `openid_token` is missing {article}`access_token` or `matrix_server_name`"
        ))
    })?;
    Ok(Asked {
        room_id,
        slot_id: Some(slot_id),
        access_token,
        server,
        user_id: Some(user_id),
        device_id,
        member_id: Some(member_id),
        delay: delay?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn legacy() -> Value {
        json!({ "room": "!r:a", "openid_token": token(), "device_id": "D" })
    }

    fn modern() -> Value {
        json!({
            "room_id": "!r:a", "slot_id": "m.call#ROOM", "openid_token": token(),
            "member": { "id": "m", "claimed_user_id": "@u:a", "claimed_device_id": "D" },
        })
    }

    fn token() -> Value {
        json!({ "access_token": "t", "token_type": "Bearer", "matrix_server_name": "a", "expires_in": 3600 })
    }

    fn read(kind: Kind, body: &Value) -> Result<Asked, String> {
        parse(kind, body.to_string().as_bytes(), true).map_err(|refusal| {
            assert_eq!(refusal.status, 400);
            format!("{}: {}", refusal.errcode, refusal.error)
        })
    }

    #[test]
    fn whole_requests_are_read() {
        let asked = read(Kind::Legacy, &legacy()).unwrap();
        assert_eq!(
            (asked.room_id.as_str(), asked.device_id.as_str(), asked.delay.clone()),
            ("!r:a", "D", None)
        );
        assert_eq!(asked.identity(Formula::Current, "@u:a"), "@u:a:D");
        assert_eq!(asked.livekit_room(Formula::V040), "!r:a");
        let mut body = modern();
        body["delay_id"] = "d".into();
        body["delay_timeout"] = 8000.into();
        body["delay_cs_api_url"] = "https://ignored".into();
        for kind in [Kind::Token, Kind::Delegate] {
            let asked = read(kind, &body).unwrap();
            assert_eq!(asked.delay, Some(Delay { id: "d".into(), timeout: Duration::from_secs(8) }));
            assert_eq!(asked.identity(Formula::V041, "@u:a"), Formula::V041.identity("@u:a", "D", "m"));
        }
        assert_eq!(read(Kind::Token, &modern()).unwrap().delay, None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |body: Value, path: &str, value: Value| {
            let mut body = body;
            *body.pointer_mut(path).unwrap() = value;
            body
        };
        let delay = "M_BAD_JSON: The request body is missing `delay_id` or `delay_timeout`";
        for (kind, body, error) in [
            (Kind::Legacy, without(legacy(), "/room", json!("")), "M_BAD_JSON: Missing room parameter"),
            (
                Kind::Legacy,
                without(legacy(), "/openid_token", json!({})),
                "M_BAD_JSON: Missing OpenID token parameters",
            ),
            (
                Kind::Legacy,
                without(legacy(), "/openid_token/access_token", json!(null)),
                "M_BAD_JSON: Missing OpenID token parameters",
            ),
            (
                Kind::Token,
                without(modern(), "/room_id", json!("")),
                "M_BAD_JSON: The request body is missing `room_id` or `slot_id`",
            ),
            (
                Kind::Delegate,
                without(modern(), "/slot_id", json!("")),
                "M_BAD_JSON: The request body is missing `room_id` or `slot_id`",
            ),
            (
                Kind::Token,
                without(modern(), "/member/id", json!("")),
                "M_BAD_JSON: The request body `member` is missing a `id`, `claimed_user_id` or `claimed_device_id`",
            ),
            (
                Kind::Delegate,
                without(modern(), "/member", json!(null)),
                "M_BAD_JSON: The request body `member` is missing `id`, `claimed_user_id` or `claimed_device_id`",
            ),
            (
                Kind::Token,
                without(modern(), "/openid_token/matrix_server_name", json!("")),
                "M_BAD_JSON: The request body `openid_token` is missing a `access_token` or `matrix_server_name`",
            ),
            (
                Kind::Delegate,
                without(modern(), "/openid_token", json!({})),
                "M_BAD_JSON: The request body `openid_token` is missing `access_token` or `matrix_server_name`",
            ),
            (Kind::Delegate, modern(), delay),
            (Kind::Token, with(modern(), "delay_id", json!("d")), delay),
            (Kind::Legacy, with(legacy(), "delay_timeout", json!(1)), delay),
            (Kind::Delegate, with(with(modern(), "delay_id", json!("d")), "delay_timeout", json!(-1)), delay),
            (Kind::Token, with(modern(), "room", json!("x")), "M_NOT_JSON: Error reading request"),
            (Kind::Legacy, with(legacy(), "member", json!({})), "M_NOT_JSON: Error reading request"),
            (Kind::Token, without(modern(), "/member/id", json!(1)), "M_NOT_JSON: Error reading request"),
            (Kind::Token, json!([]), "M_NOT_JSON: Error reading request"),
            (Kind::Token, json!("x"), "M_NOT_JSON: Error reading request"),
        ] {
            assert_eq!(read(kind, &body).unwrap_err(), error, "{body}");
        }
        assert_eq!(parse(Kind::Token, b"{", false).unwrap_err().errcode, "M_NOT_JSON");
    }

    fn with(mut body: Value, key: &str, value: Value) -> Value {
        body[key] = value;
        body
    }

    #[test]
    fn newer_clients_are_understood_unless_strictness_is_asked_for() {
        let mut body = with(modern(), "new", json!(1));
        body["member"]["more"] = json!(1);
        assert!(parse(Kind::Token, body.to_string().as_bytes(), false).is_ok());
        assert!(parse(Kind::Token, body.to_string().as_bytes(), true).is_err());
        assert_eq!(unknown_keys(Kind::Token, &body), ["new", "member.more"]);
    }
}
