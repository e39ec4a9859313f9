//! Numbers for strings: keys of state (type and state key) and event IDs.

use std::collections::HashMap;
use std::sync::Arc;

/// Numbers strings from 1. Numbers of strings that are swept are given again.
#[derive(Debug, Default)]
pub struct Names {
    numbers: HashMap<Arc<str>, u32>,
    strings: Vec<Option<Arc<str>>>,
    free: Vec<u32>,
}

impl Names {
    /// The number of a string.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let name: Arc<str> = name.into();
        let number = self.free.pop().unwrap_or_else(|| {
            self.strings.push(None);
            u32::try_from(self.strings.len()).expect("fewer than four billion strings are held at once")
        });
        self.strings[number as usize - 1] = Some(name.clone());
        self.numbers.insert(name, number);
        number
    }

    /// The string of a number that was given and not swept.
    pub fn name(&self, number: u32) -> &str {
        self.strings.get(number as usize - 1).and_then(Option::as_deref).expect("the number is in use")
    }

    /// How many strings are held.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Forgets all strings whose numbers are not in use.
    pub fn sweep(&mut self, used: &std::collections::HashSet<u32>) {
        for (index, name) in self.strings.iter_mut().enumerate() {
            let number = u32::try_from(index + 1).expect("it was given as one");
            if !used.contains(&number)
                && let Some(name) = name.take()
            {
                self.numbers.remove(&name);
                self.free.push(number);
            }
        }
    }
}

/// What one row says: the number of a key, and that of an event ID.
pub type Pair = (u32, u32);

/// The strings of the states of one room.
#[derive(Debug, Default)]
pub struct Strings {
    keys: Names,
    /// Event IDs.
    pub events: Names,
    buffer: String,
}

impl Strings {
    /// The numbers for a row.
    pub fn pair(&mut self, kind: &str, state_key: &str, event_id: &str) -> Pair {
        // PostgreSQL's text holds no NUL.
        self.buffer.clear();
        self.buffer.push_str(kind);
        self.buffer.push('\0');
        self.buffer.push_str(state_key);
        (self.keys.number(&self.buffer), self.events.number(event_id))
    }

    /// The row for numbers: type, state key and event ID.
    pub fn row(&self, pair: Pair) -> (&str, &str, &str) {
        let (kind, state_key) = self.keys.name(pair.0).split_once('\0').expect("it was joined here");
        (kind, state_key, self.events.name(pair.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_and_given_again() {
        let mut names = Names::default();
        assert_eq!((names.number("a"), names.number("b"), names.number("a")), (1, 2, 1));
        names.sweep(&[2].into());
        assert_eq!((names.len(), names.name(2)), (1, "b"));
        assert_eq!((names.number("c"), names.number("b"), names.number("d")), (1, 2, 3));
    }

    #[test]
    fn a_row_comes_back() {
        let mut strings = Strings::default();
        let pair = strings.pair("m.room.name", "", "$x");
        assert_eq!(strings.row(pair), ("m.room.name", "", "$x"));
        assert_ne!(pair.0, strings.pair("m.room.nam", "e", "$x").0);
    }
}
