//! Fewer rows for the same state groups in Synapse's database.
//!
//! Synapse stores the state of a room at each of its events as a group: a row for each key that differs from the group before,
//! or, after 100 of those, all of the room's state again. In large rooms this is most of the database. Here groups get other
//! bases, so that far fewer rows say the same.
//!
//! [`tree`] chooses bases, over [`state`] and [`names`]; these do no I/O. [`room`] reads and writes one room, [`run`]
//! many; [`estimate`] says beforehand what that saves, and [`unused`] finds what is not needed at all.

pub mod clock;
pub mod connect;
pub mod estimate;
pub mod names;
pub mod progress;
pub mod room;
pub mod run;
pub mod state;
pub mod tree;
pub mod unused;

pub use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// Why compressing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the database is wrong.
    #[error("this is no address of a database: {reason}; write one as `postgresql://user@host/database`")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// No connection.
    #[error("cannot connect to the database {place}: {reason}")]
    Connect {
        /// The database.
        place: String,
        /// What the system or the server said.
        reason: String,
    },
    /// There are no state groups.
    #[error("this database has no table `state_groups_state`: name the one that Synapse uses")]
    NotSynapse,
    /// The server refused something.
    #[error("PostgreSQL would not {what}: {reason}")]
    Database {
        /// What was asked.
        what: &'static str,
        /// What it said.
        reason: String,
        /// Its code.
        code: Option<SqlState>,
    },
    /// Another run has the room.
    #[error("another run is compressing {room_id}; wait for its end")]
    Taken {
        /// The room.
        room_id: String,
    },
    /// The database changed meanwhile.
    #[error("{what} by somebody else meanwhile")]
    Changed {
        /// What changed.
        what: &'static str,
    },
    /// Locks were held too long.
    #[error("locks were held for too long")]
    TooSlow,
    /// Synapse does not delete groups by itself.
    #[error(
        "this Synapse has no table `state_groups_pending_deletion`: it deletes groups safely from version 1.126 on"
    )]
    OldSynapse,
    /// Rows came in an order that they must not have.
    #[error("PostgreSQL returned rows in an unexpected order, so nothing was written; please report this")]
    Order,
    /// A group would resolve to something else.
    #[error(
        "group {group} would not resolve to what it did, so nothing of this piece was written; please report this"
    )]
    Verification {
        /// The group.
        group: i64,
    },
    /// SQL could not be written.
    #[error("cannot write the SQL: {0}")]
    Output(std::io::Error),
}

/// An error of the server's, with what was asked.
pub(crate) fn failed(what: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::Database { what, reason: reason(&error), code: error.code().cloned() }
}

/// What the server or the system said, without what the library puts around it.
pub(crate) fn reason(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(database), _) => database.message().to_owned(),
        (None, Some(source)) => source.to_string(),
        (None, None) => error.to_string(),
    }
}
