//! The state of every process, for `status`, and the order in which it is told.

use indexmap::IndexMap;
use std::time::Instant;

use crate::client::State;
use crate::proc::ProcessId;

/// What is known of one process.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What it is, which never changes.
    pub(crate) about: About,
    /// How it is.
    pub(crate) state: State,
    /// Which process it is, while there is one.
    pub(crate) process: Option<ProcessId>,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// When it was started the last time.
    pub(crate) since: Option<Instant>,
    /// How it ended the last time.
    pub(crate) last_exit: Option<String>,
    /// Whether it is left out when healthy processes are counted: a fork server that cannot be used.
    pub(crate) optional: bool,
}

/// What a process is.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) roles: Vec<String>,
    pub(crate) address: Option<String>,
    /// Texts of which its command line holds at least one.
    pub(crate) marks: Vec<String>,
    /// The number of the signal that asks it to stop.
    pub(crate) stop: i32,
}

/// All processes, in the order in which they are listed.
#[derive(Debug, Default)]
pub(crate) struct Board(IndexMap<String, Entry>);

impl Board {
    pub(crate) fn new(abouts: impl IntoIterator<Item = About>) -> Self {
        let entry = |about: About| {
            let name = about.name.clone();
            let entry = Entry {
                about,
                state: State::Waiting,
                process: None,
                restarts: 0,
                since: None,
                last_exit: None,
                optional: false,
            };
            (name, entry)
        };
        Self(abouts.into_iter().map(entry).collect())
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.0.get_mut(name)
    }

    /// How many are healthy, of how many.
    pub(crate) fn healthy(&self) -> (usize, usize) {
        let counted = || self.0.values().filter(|entry| !entry.optional);
        (counted().filter(|entry| entry.state == State::Healthy).count(), counted().count())
    }

    /// How many processes there are.
    pub(crate) fn running(&self) -> usize {
        self.0.values().filter(|entry| entry.process.is_some()).count()
    }

    /// The processes that `target` means: the one of that name, or those of that group or role.
    pub(crate) fn named(&self, target: &str) -> Vec<String> {
        let means = |about: &About| {
            about.name == target || about.group == target || about.roles.iter().any(|role| role == target)
        };
        self.0.values().filter(|entry| means(&entry.about)).map(|entry| entry.about.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str, group: &str, roles: &[&str]) -> About {
        About {
            name: name.into(),
            group: group.into(),
            roles: roles.iter().map(ToString::to_string).collect(),
            address: None,
            marks: Vec::new(),
            stop: 15,
        }
    }

    #[test]
    fn names_groups_and_roles_are_found() {
        let board = Board::new([
            about("main", "main", &["main"]),
            about("sync_1", "sync", &["sync", "initial_sync"]),
            about("sync_2", "sync", &["sync", "initial_sync"]),
        ]);
        assert_eq!(board.named("sync_2"), ["sync_2"]);
        assert_eq!(board.named("sync"), ["sync_1", "sync_2"]);
        assert_eq!(board.named("initial_sync"), ["sync_1", "sync_2"]);
        assert!(board.named("nobody").is_empty());
    }

    #[test]
    fn a_process_that_is_not_needed_is_not_missed() {
        let mut board =
            Board::new([about("forkserver", "forkserver", &[]), about("main", "main", &["main"])]);
        assert_eq!(board.healthy(), (0, 2));
        board.get_mut("forkserver").unwrap().optional = true;
        board.get_mut("main").unwrap().state = State::Healthy;
        assert_eq!(board.healthy(), (1, 1));
    }
}
