//! The state of every process, for `status`, and the order in which it is told.

use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use model::Topology;

use crate::client::State;
use crate::proc::ProcessId;

/// What is known of one process.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What it is.
    pub(crate) about: About,
    /// With whose configuration it was started the last time.
    pub(crate) topology: Option<Arc<Topology>>,
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
    /// A process is to be supervised from now on. One of this name that was supervised before keeps its history.
    pub(crate) fn enter(&mut self, about: About) {
        if let Some(entry) = self.0.get_mut(&about.name) {
            entry.about = about;
            entry.state = State::Waiting;
            return;
        }
        let name = about.name.clone();
        let entry = Entry {
            about,
            topology: None,
            state: State::Waiting,
            process: None,
            restarts: 0,
            since: None,
            last_exit: None,
            optional: false,
        };
        self.0.insert(name, entry);
    }

    /// A process is no more.
    pub(crate) fn forget(&mut self, name: &str) {
        self.0.shift_remove(name);
    }

    /// Lists these in this order, behind all others.
    pub(crate) fn arrange<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if let Some(entry) = self.0.shift_remove(name) {
                self.0.insert(name.to_owned(), entry);
            }
        }
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
        let mut board = Board::default();
        board.enter(about("main", "main", &["main"]));
        board.enter(about("sync_1", "sync", &["sync", "initial_sync"]));
        board.enter(about("sync_2", "sync", &["sync", "initial_sync"]));
        assert_eq!(board.named("sync_2"), ["sync_2"]);
        assert_eq!(board.named("sync"), ["sync_1", "sync_2"]);
        assert_eq!(board.named("initial_sync"), ["sync_1", "sync_2"]);
        assert!(board.named("nobody").is_empty());
    }

    #[test]
    fn a_process_that_is_not_needed_is_not_missed() {
        let mut board = Board::default();
        board.enter(about("forkserver", "forkserver", &[]));
        board.enter(about("main", "main", &["main"]));
        assert_eq!(board.healthy(), (0, 2));
        board.get_mut("forkserver").unwrap().optional = true;
        board.get_mut("main").unwrap().state = State::Healthy;
        assert_eq!(board.healthy(), (1, 1));
    }

    #[test]
    fn who_comes_back_keeps_its_history_and_who_is_gone_has_none() {
        let mut board = Board::default();
        for name in ["postgres", "main", "sync_1", "sync_2"] {
            board.enter(about(name, name, &[]));
            board.get_mut(name).unwrap().restarts = 3;
        }
        board.forget("sync_1");
        board.enter(about("sync_1", "sync", &[]));
        board.enter(about("sync_2", "sync", &[]));
        board.arrange(["main", "sync_1", "sync_2"]);
        let listed: Vec<_> =
            board.entries().map(|entry| (entry.about.name.as_str(), entry.restarts)).collect();
        assert_eq!(listed, [("postgres", 3), ("main", 3), ("sync_1", 0), ("sync_2", 3)]);
    }
}
