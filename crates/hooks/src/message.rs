//! What a formatter makes of a payload.

use serde::{Deserialize, Serialize};

/// A message for a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// The text without markup (`body`).
    pub plain: String,
    /// The same as HTML of the kind that Matrix allows in messages (`formatted_body`), already safe.
    pub html: Option<String>,
    /// Sent as `m.notice`, which bots do not answer to, instead of `m.text`.
    pub notice: bool,
    /// A name of the sender's for this message, by which later ones can edit it or answer in its thread. Unique within a room and a
    /// service.
    pub key: Option<String>,
    /// The key of an earlier message that this one replaces (`m.replace`). Where that is unknown, this is a message of its own.
    pub edits: Option<String>,
    /// The key of the message whose thread this one belongs to (`m.thread`). Where that is unknown, this is a message of its own.
    /// With its own `key` here, a message begins a thread or is in it, and the key stays that of the one that began it.
    pub thread: Option<String>,
    /// User IDs that are notified (`m.mentions`); nobody else is, whatever the text says.
    pub mentions: Vec<String>,
    /// Whether the whole room is notified.
    pub mentions_room: bool,
}
