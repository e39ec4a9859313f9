//! Who takes messages, and answers for them.

use crate::Message;

/// A message on its way to a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The room's ID or an alias of it.
    pub room: String,
    /// The message.
    pub message: Message,
    /// What tells this delivery from another: the same again (for a day at least) is taken for the same and sent once.
    pub dedup: Option<String>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// A number that grows with each message taken.
    pub id: i64,
    /// It was taken before, by its `dedup`.
    pub duplicate: bool,
}

/// Why nothing was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// So much waits that more would only grow old.
    #[error("too many messages wait to be delivered; send again later")]
    Full,
    /// The store failed.
    #[error("the message cannot be kept: {0}")]
    Store(String),
}

/// Takes messages: what it says it has taken is durable, and will arrive.
pub trait Outbox: Clone + Send + Sync + 'static {
    /// Takes all of these, or none.
    fn accept(
        &self,
        deliveries: Vec<Delivery>,
    ) -> impl Future<Output = Result<Vec<Accepted>, Refused>> + Send;
}
