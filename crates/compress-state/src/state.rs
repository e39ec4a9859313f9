//! What a state group resolves to: a map that shares with its relatives what it has in common with them.
//!
//! Keys are small numbers given one after another, so the map is a trie of 16 ways whose leaves hold events. A change
//! copies the path to one leaf. Two maps that came from each other are compared in the time of what differs.

use std::collections::HashSet;
use std::sync::Arc;

use crate::names::Pair;

const BITS: u32 = 4;
const WAYS: usize = 1 << BITS;

#[derive(Clone, Debug)]
enum Node {
    /// Events by the last bits of their keys; 0 is none.
    Leaf([u32; WAYS]),
    Branch([Option<Arc<Node>>; WAYS]),
}

/// The state at a group.
#[derive(Clone, Debug, Default)]
pub struct State {
    root: Option<Arc<Node>>,
    /// How many levels of branches stand above the leaves.
    height: u32,
    len: u32,
}

impl State {
    /// How many keys it has.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The event at a key.
    pub fn get(&self, key: u32) -> Option<u32> {
        let mut node = self.root.as_deref()?;
        if key >> (BITS * self.height) >= 1 << BITS {
            return None;
        }
        let mut height = self.height;
        loop {
            let way = way(key, height);
            match node {
                Node::Leaf(events) => return Some(events[way]).filter(|event| *event != 0),
                Node::Branch(children) => node = children[way].as_deref()?,
            }
            height -= 1;
        }
    }

    /// Sets the event at a key.
    pub fn set(&mut self, key: u32, event: u32) {
        debug_assert_ne!(event, 0, "0 is no event");
        self.put(key, event);
    }

    /// Takes a key away.
    pub fn remove(&mut self, key: u32) {
        self.put(key, 0);
    }

    fn put(&mut self, key: u32, event: u32) {
        let old = self.get(key).unwrap_or(0);
        if old == event {
            return;
        }
        self.len = self.len + u32::from(old == 0) - u32::from(event == 0);
        while key >> (BITS * self.height) >= 1 << BITS {
            self.raise();
        }
        let mut place = &mut self.root;
        for height in (0..=self.height).rev() {
            let node = place.get_or_insert_with(|| {
                Arc::new(if height == 0 {
                    Node::Leaf([0; WAYS])
                } else {
                    Node::Branch([const { None }; WAYS])
                })
            });
            match Arc::make_mut(node) {
                Node::Leaf(events) => {
                    events[way(key, height)] = event;
                    return;
                }
                Node::Branch(children) => place = &mut children[way(key, height)],
            }
        }
    }

    fn raise(&mut self) {
        if let Some(root) = self.root.take() {
            let mut children = [const { None }; WAYS];
            children[0] = Some(root);
            self.root = Some(Arc::new(Node::Branch(children)));
        }
        self.height += 1;
    }

    /// The state with these pairs and nothing else, sharing with a relative.
    #[must_use]
    pub fn like(relative: &Self, pairs: &[Pair]) -> Self {
        let mut state = relative.clone();
        let kept = pairs.iter().filter(|(key, _)| relative.get(*key).is_some()).count();
        // Pairs may name a key twice, and then more are kept than there are: the slow way is right too.
        if kept != relative.len as usize || !distinct(pairs) {
            let keys: HashSet<u32> = pairs.iter().map(|(key, _)| *key).collect();
            let mut gone = Vec::new();
            relative.each(&mut |key, _| {
                if !keys.contains(&key) {
                    gone.push(key);
                }
            });
            for key in gone {
                state.remove(key);
            }
        }
        for &(key, event) in pairs {
            state.set(key, event);
        }
        state
    }

    /// The state with these pairs over it.
    #[must_use]
    pub fn with(&self, pairs: &[Pair]) -> Self {
        let mut state = self.clone();
        for &(key, event) in pairs {
            state.set(key, event);
        }
        state
    }

    /// Every pair, by key.
    pub fn each(&self, see: &mut impl FnMut(u32, u32)) {
        fn walk(node: &Node, first: u32, see: &mut impl FnMut(u32, u32)) {
            match node {
                Node::Leaf(events) => {
                    for (key, &event) in (first << BITS..).zip(events) {
                        if event != 0 {
                            see(key, event);
                        }
                    }
                }
                Node::Branch(children) => {
                    for (number, child) in (first << BITS..).zip(children) {
                        if let Some(child) = child {
                            walk(child, number, see);
                        }
                    }
                }
            }
        }
        if let Some(root) = &self.root {
            walk(root, 0, see);
        }
    }

    /// Every pair.
    pub fn pairs(&self) -> Vec<Pair> {
        let mut pairs = Vec::with_capacity(self.len as usize);
        self.each(&mut |key, event| pairs.push((key, event)));
        pairs
    }

    /// What a group needs over a base: the pairs that it has and the base has not. Nothing if the base has a key that the group
    /// lacks, which no delta can take away, or if it would be more than `limit` pairs.
    pub fn over(&self, base: &Self, limit: usize) -> Option<Vec<Pair>> {
        let mut delta = Vec::new();
        // A key that only the base has makes this impossible.
        let fits = differences(base, self, &mut |key, _, event| {
            if event == 0 || delta.len() == limit {
                return false;
            }
            delta.push((key, event));
            true
        });
        fits.then_some(delta)
    }

    /// Whether both say the same.
    pub fn same(&self, other: &Self) -> bool {
        differences(self, other, &mut |_, _, _| false)
    }

    /// Marks the events that this holds. What was seen before by way of `seen` is not walked again.
    pub(crate) fn mark(&self, seen: &mut HashSet<*const ()>, events: &mut HashSet<u32>) {
        fn walk(node: &Arc<Node>, seen: &mut HashSet<*const ()>, used: &mut HashSet<u32>) {
            if !seen.insert(Arc::as_ptr(node).cast()) {
                return;
            }
            match &**node {
                Node::Leaf(events) => used.extend(events.iter().filter(|event| **event != 0)),
                Node::Branch(children) => children.iter().flatten().for_each(|child| walk(child, seen, used)),
            }
        }
        if let Some(root) = &self.root {
            walk(root, seen, events);
        }
    }
}

fn distinct(pairs: &[Pair]) -> bool {
    // Rows come from an index on their keys, so this is nearly always seen at once.
    let mut keys: Vec<u32> = pairs.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    keys.windows(2).all(|two| two[0] != two[1])
}

fn way(key: u32, height: u32) -> usize {
    (key >> (BITS * height)) as usize & (WAYS - 1)
}

/// Tells each key at which two states differ, with the event in each of them or 0, until told to stop. Whether it was never
/// told to.
fn differences(old: &State, new: &State, see: &mut impl FnMut(u32, u32, u32) -> bool) -> bool {
    fn walk(
        old: Option<&Arc<Node>>,
        new: Option<&Arc<Node>>,
        first: u32,
        see: &mut impl FnMut(u32, u32, u32) -> bool,
    ) -> bool {
        match (old, new) {
            (None, None) => return true,
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return true,
            _ => {}
        }
        let (old, new) = (old.map(|node| &**node), new.map(|node| &**node));
        let leaf = matches!(old.or(new), Some(Node::Leaf(_)));
        for index in 0..WAYS {
            let number = (first << BITS) | u32::try_from(index).expect("small");
            let same = if leaf {
                let at = |node: Option<&Node>| match node {
                    Some(Node::Leaf(events)) => events[index],
                    _ => 0,
                };
                let (old, new) = (at(old), at(new));
                old == new || see(number, old, new)
            } else {
                fn at(node: Option<&Node>, index: usize) -> Option<&Arc<Node>> {
                    match node {
                        Some(Node::Branch(children)) => children[index].as_ref(),
                        _ => None,
                    }
                }
                walk(at(old, index), at(new, index), number, see)
            };
            if !same {
                return false;
            }
        }
        true
    }
    let raised = |state: &State, height: u32| {
        let mut state = state.clone();
        while state.height < height {
            state.raise();
        }
        state
    };
    let height = old.height.max(new.height);
    let (old, new) = (raised(old, height), raised(new, height));
    walk(old.root.as_ref(), new.root.as_ref(), 0, see)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pairs() -> impl Strategy<Value = Vec<Pair>> {
        prop::collection::vec((prop_oneof![1..40_u32, 1..70_000_u32], 1..5_u32), 0..60)
    }

    fn plain(pairs: &[Pair]) -> BTreeMap<u32, u32> {
        pairs.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn it_is_a_map(a in pairs(), b in pairs()) {
            let (first, relative) = (State::default().with(&a), State::default().with(&b));
            prop_assert_eq!(first.pairs(), plain(&a).into_iter().collect::<Vec<_>>());
            prop_assert_eq!(first.len() as usize, plain(&a).len());
            prop_assert!(State::like(&relative, &a).same(&first));
            prop_assert_eq!(first.same(&relative), plain(&a) == plain(&b));
        }

        #[test]
        fn a_delta_gives_the_state_again(a in pairs(), b in pairs(), related: bool) {
            let base = State::default().with(&a);
            let state = if related { base.with(&b) } else { State::default().with(&b) };
            let lost = base.pairs().iter().any(|(key, _)| state.get(*key).is_none());
            match state.over(&base, usize::MAX) {
                None => prop_assert!(lost),
                Some(delta) => {
                    prop_assert!(!lost && base.with(&delta).same(&state));
                    let enough = state.over(&base, delta.len()).is_some();
                    prop_assert!(enough && (delta.is_empty() || state.over(&base, delta.len() - 1).is_none()));
                }
            }
        }
    }
}
