//! Fewer rows for the same state groups in Synapse's database.
//!
//! Synapse stores the state of a room at each of its events as a group: a row for each key that differs from the group before,
//! or, after 100 of those, all of the room's state again. In large rooms this is most of the database. Here groups get other
//! bases, so that far fewer rows say the same.
//!
//! [`tree`] chooses bases, over [`state`] and [`names`]; these do no I/O.

pub mod names;
pub mod state;
pub mod tree;
