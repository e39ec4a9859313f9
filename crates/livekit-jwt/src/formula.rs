//! What LiveKit calls a Matrix room and a member of a call in it. All clients in a call must be told the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How the names of rooms and participants are made. Clients in one call that get their tokens by different formulas do not meet;
/// so a change splits the calls that are going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Formula {
    /// As MSC4195 says, and lk-jwt-service from 0.4.3 on.
    #[default]
    #[serde(rename = "current")]
    Current,
    /// As lk-jwt-service 0.4.1 and 0.4.2.
    #[serde(rename = "v0.4.1")]
    V041,
    /// As lk-jwt-service 0.4.0.
    #[serde(rename = "v0.4.0")]
    V040,
}

/// The slot that clients mean who name none: that of calls in a room as a whole.
const SLOT: &str = "m.call#ROOM";

/// The SHA-256 of a compact JSON array of these strings, in Base64 without padding.
///
/// Only what JSON demands is escaped: `<`, `>`, `&` and U+2028 stand for themselves, as in canonical JSON.
fn hash(parts: &[&str]) -> String {
    let text = serde_json::Value::from(parts).to_string();
    STANDARD_NO_PAD.encode(Sha256::digest(text))
}

/// The same of the strings with `|` between.
fn joined(parts: &[&str]) -> String {
    STANDARD_NO_PAD.encode(Sha256::digest(parts.join("|")))
}

impl Formula {
    /// The LiveKit room of a slot of a room.
    pub fn room(self, room_id: &str, slot_id: &str) -> String {
        match self {
            Self::Current => hash(&[room_id, slot_id]),
            Self::V041 => joined(&[room_id, slot_id]),
            Self::V040 => hex::encode(Sha256::digest([room_id, slot_id].join("|"))),
        }
    }

    /// The LiveKit room that clients of `/sfu/get` meet in.
    pub fn legacy_room(self, room_id: &str) -> String {
        match self {
            Self::Current | Self::V041 => self.room(room_id, SLOT),
            Self::V040 => room_id.to_owned(),
        }
    }

    /// The LiveKit identity of a member.
    pub fn identity(self, user_id: &str, device_id: &str, member_id: &str) -> String {
        match self {
            Self::Current => hash(&[user_id, device_id, member_id]),
            Self::V041 => joined(&[user_id, device_id, member_id]),
            Self::V040 => member_id.to_owned(),
        }
    }

    /// The LiveKit identity of a client of `/sfu/get`.
    pub fn legacy_identity(user_id: &str, device_id: &str) -> String {
        format!("{user_id}:{device_id}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: (&str, &str) = ("!roomid:example.com", "slot1234");
    const MEMBER: (&str, &str, &str) = ("@alice:example.com", "DEVICE123", "memberABC");

    #[test]
    fn names_are_those_that_others_make() {
        let names = |formula: Formula| {
            [
                formula.room(ROOM.0, ROOM.1),
                formula.identity(MEMBER.0, MEMBER.1, MEMBER.2),
                formula.legacy_room(ROOM.0),
            ]
        };
        // Made with Python's hashlib.
        assert_eq!(
            names(Formula::Current),
            [
                "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc",
                "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU",
                "F4oOprKFBq6JHqy2qYpq6UQQmR7hCvxkQQoUrd0+SbI"
            ]
        );
        assert_eq!(
            names(Formula::V041),
            [
                "H+ryzt8DXSOJZff1bhZNq2Tc1P6vn2M/Syv5EOMs5nQ",
                "ElTP1qTOtsT2iXTPZBkNcKv5tUjitYUsQtL5NNhgc84",
                "Zsr5NzCqk3eh/z5OhgK5yWClX1cx+SY/TMC0+iBclpA"
            ]
        );
        assert_eq!(
            names(Formula::V040),
            [
                "1feaf2cedf035d238965f7f56e164dab64dcd4feaf9f633f4b2bf910e32ce674",
                "memberABC",
                "!roomid:example.com"
            ]
        );
        assert_eq!(Formula::legacy_identity(MEMBER.0, MEMBER.1), "@alice:example.com:DEVICE123");
    }

    #[test]
    fn only_what_json_demands_is_escaped() {
        let parts = ["<&>\u{2028}", "\"\\\u{1f}\u{7f}é"];
        assert_eq!(
            serde_json::Value::from(&parts[..]).to_string(),
            "[\"<&>\u{2028}\",\"\\\"\\\\\\u001f\u{7f}é\"]"
        );
        assert_eq!(Formula::Current.room(parts[0], parts[1]), "3/2zAPc/3mgHTz4D/ysLIEoTHy5YI7dqL0t+IwIP060");
    }

    #[test]
    fn names_are_written_as_in_the_configuration() {
        for (formula, name) in
            [(Formula::Current, "current"), (Formula::V041, "v0.4.1"), (Formula::V040, "v0.4.0")]
        {
            assert_eq!(serde_json::to_value(formula).unwrap(), name);
        }
    }
}
