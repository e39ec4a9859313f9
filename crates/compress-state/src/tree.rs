//! Which base each group gets.
//!
//! A group is stored as what it adds to its base, or whole. Groups come in the order of their IDs. For each, every base that
//! may be a good one is measured: where it lies now, the heads of the levels, and the places where the room's state last
//! jumped. The one with the fewest rows wins, as long as the way to a whole state stays within the bound; where nothing is
//! better than what is there, the group stays as it is.
//!
//! Levels are what keeps the ways short. A head of a higher level is an older group with a shorter way, and is meant to be
//! the base again when a run of small steps has used up its hops.

use std::collections::{HashMap, HashSet, VecDeque};
use std::str::FromStr;

use serde::Serialize;

use crate::names::Pair;
use crate::state::State;

/// The longest way to a whole state that Synapse makes itself: it stores a new group whole when its predecessor has 99 hops
/// (`MAX_STATE_DELTA_HOPS` in `synapse/storage/databases/state/store.py`, which counts the groups on the way).
pub const MAX_HOPS: u32 = 99;

/// How many hops each level may use, the finest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Levels(Vec<u32>);

impl Default for Levels {
    fn default() -> Self {
        Self(vec![50, 33, 16])
    }
}

/// Why levels were refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no list of levels: write 1 to 8 numbers from 1 to 1000 with commas between, such as `50,33,16`"
)]
pub struct LevelsError(String);

impl FromStr for Levels {
    type Err = LevelsError;

    fn from_str(text: &str) -> Result<Self, LevelsError> {
        let sizes: Option<Vec<u32>> = text
            .split(',')
            .map(|size| size.trim().parse().ok().filter(|size| (1..=1000).contains(size)))
            .collect();
        match sizes {
            Some(sizes) if (1..=8).contains(&sizes.len()) => Ok(Self(sizes)),
            _ => Err(LevelsError(text.to_owned())),
        }
    }
}

impl Levels {
    /// Of a peer's sizes, as its table of progress has them.
    pub fn new(sizes: Vec<u32>) -> Option<Self> {
        ((1..=8).contains(&sizes.len()) && sizes.iter().all(|size| (1..=1000).contains(size)))
            .then_some(Self(sizes))
    }

    /// How deep a group of each level may lie. Levels share what hops there are: the finest may use what the others left.
    fn bounds(&self) -> Vec<u32> {
        let below = |level: usize| self.0[level..].iter().sum::<u32>().min(MAX_HOPS);
        (0..self.0.len()).map(below).collect()
    }
}

/// A group that others can lie upon.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its ID.
    pub group: i64,
    /// How many hops it is from a whole state.
    pub depth: u32,
    /// What it resolves to.
    pub state: State,
}

/// A group as it is stored now.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its ID.
    pub id: i64,
    /// What it resolves to.
    pub state: State,
    /// The group under it now; it must have been placed or given to [`Tree::know`].
    pub prev: Option<i64>,
    /// How many rows it has now.
    pub rows: usize,
    /// Whether it is left as it is and nothing new is laid upon it: it is broken, or about to be deleted.
    pub pinned: bool,
}

/// What becomes of a group.
#[derive(Clone, Debug)]
pub enum Placed {
    /// It stays as it is.
    Kept,
    /// It is stored as these rows over a base, or whole.
    Moved {
        /// The base.
        base: Option<Base>,
        /// The rows.
        rows: Vec<Pair>,
    },
}

/// How many states are remembered. A group's predecessor is nearly always one of the last.
const REMEMBERED: usize = 4096;
/// How many rows of states of their own may be remembered, which is what bounds the memory in rooms whose groups have little
/// in common: about 40 bytes each.
const REMEMBERED_ROWS: usize = 1 << 20;
/// How many jumps are remembered.
const JUMPS: usize = 16;
/// A group that differs in more rows than this from its predecessors is a jump.
const JUMP: usize = 8;

/// The groups that have been placed, as far as others may lie upon them.
#[derive(Clone, Debug)]
pub struct Tree {
    bounds: Vec<u32>,
    heads: Vec<Option<Base>>,
    jumps: VecDeque<Base>,
    last: Option<Base>,
    known: Known,
}

/// States by group, of which the oldest are forgotten.
#[derive(Clone, Debug, Default)]
struct Known {
    bases: HashMap<i64, (Base, usize)>,
    order: VecDeque<i64>,
    rows: usize,
}

impl Known {
    fn add(&mut self, base: Base, rows: usize) {
        let group = base.group;
        if let Some((_, old)) = self.bases.insert(group, (base, rows)) {
            self.rows -= old;
        } else {
            self.order.push_back(group);
        }
        self.rows += rows;
        while (self.bases.len() > REMEMBERED || self.rows > REMEMBERED_ROWS) && self.order.len() > 1 {
            if let Some((_, rows)) = self.order.pop_front().and_then(|oldest| self.bases.remove(&oldest)) {
                self.rows -= rows;
            }
        }
    }
}

/// Where a tree was before a transaction.
#[derive(Clone, Debug)]
pub struct Mark {
    heads: Vec<Option<Base>>,
    jumps: VecDeque<Base>,
    last: Option<Base>,
}

impl Tree {
    /// A tree that has nothing yet.
    pub fn new(levels: &Levels) -> Self {
        let bounds = levels.bounds();
        Self {
            heads: vec![None; bounds.len()],
            bounds,
            jumps: VecDeque::new(),
            last: None,
            known: Known::default(),
        }
    }

    /// Goes on where an earlier run ended: with the heads of the levels, the finest first. A head that is gone is `None`.
    pub fn resume(&mut self, heads: impl IntoIterator<Item = Option<Base>>) {
        for (place, head) in self.heads.iter_mut().zip(heads) {
            *place = head;
        }
        self.last = self.heads[0].clone();
        for head in self.heads.clone().into_iter().flatten() {
            let rows = head.state.len() as usize;
            self.known.add(head, rows);
        }
    }

    /// The heads of the levels, the finest first.
    pub fn heads(&self) -> Vec<Option<i64>> {
        self.heads.iter().map(|head| head.as_ref().map(|base| base.group)).collect()
    }

    /// A group's state and depth, if it is remembered.
    pub fn known(&self, group: i64) -> Option<&Base> {
        self.known.bases.get(&group).map(|(base, _)| base)
    }

    /// Tells of a group that is not remembered.
    pub fn know(&mut self, base: Base) {
        let rows = base.state.len() as usize;
        self.known.add(base, rows);
    }

    /// The state that the next one will most likely be like.
    pub fn relative(&self) -> State {
        self.last.as_ref().map(|base| base.state.clone()).unwrap_or_default()
    }

    /// Forgets what was placed with an ID from this one on, since it did not come to be.
    pub fn forget_from(&mut self, group: i64) {
        let gone: Vec<i64> = self.known.bases.keys().copied().filter(|id| *id >= group).collect();
        for id in gone {
            if let Some((_, rows)) = self.known.bases.remove(&id) {
                self.known.rows -= rows;
            }
        }
        self.known.order.retain(|id| *id < group);
    }

    /// Where it is now, to go back to by [`Tree::restore`].
    pub fn mark(&self) -> Mark {
        Mark { heads: self.heads.clone(), jumps: self.jumps.clone(), last: self.last.clone() }
    }

    /// Goes back, after a transaction that failed.
    pub fn restore(&mut self, mark: Mark, from: i64) {
        (self.heads, self.jumps, self.last) = (mark.heads, mark.jumps, mark.last);
        self.forget_from(from);
    }

    /// Every event that a remembered state holds.
    pub fn events(&self) -> HashSet<u32> {
        let (mut seen, mut events) = (HashSet::new(), HashSet::new());
        let known = self.known.bases.values().map(|(base, _)| base);
        for base in known.chain(self.heads.iter().flatten()).chain(&self.jumps).chain(&self.last) {
            base.state.mark(&mut seen, &mut events);
        }
        events
    }

    /// Chooses a group's base. `last` says that it is the newest of its room, upon which Synapse lays the next ones: it is
    /// kept shallow then, if that is cheap.
    pub fn place(&mut self, group: &Group, last: bool) -> Placed {
        let prev = group.prev.and_then(|prev| self.known(prev).cloned());
        if group.pinned || (group.prev.is_some() && prev.is_none()) {
            let depth = prev.map_or(MAX_HOPS, |base| base.depth + 1);
            // Deep enough that nothing is laid upon it.
            let depth = if group.pinned { depth.max(MAX_HOPS) } else { depth };
            let base = Base { group: group.id, depth, state: group.state.clone() };
            self.known.add(base, group.rows);
            return Placed::Kept;
        }
        let bound = self.bounds[0];
        let upper = self.upper_bound();
        let whole = group.state.len() as usize;
        let kept_depth = prev.as_ref().map_or(0, |base| base.depth + 1);
        let kept =
            (kept_depth <= bound && (group.rows <= whole || group.prev.is_none())).then_some(kept_depth);
        let mut search = Search { group, kept, best: None };
        if let Some(base) = &prev {
            search.consider(base, 0, bound);
        }
        for (level, head) in self.heads.iter().enumerate() {
            if let Some(head) = head {
                search.consider(head, level, self.bounds[level]);
            }
        }
        // Whether it is far from its predecessor, which then has not just used up its hops.
        let jumped = prev.as_ref().is_none_or(|base| group.state.over(&base.state, JUMP).is_none())
            && self.last.as_ref().is_none_or(|base| group.state.over(&base.state, JUMP).is_none());
        if jumped && search.rows() > JUMP {
            for base in self.jumps.iter().rev() {
                // So that a good part of the hops is left for those that come after.
                search.consider(base, 0, upper);
            }
        }
        // The newest group is laid upon a higher level if that takes few rows.
        if last && search.depth() > upper {
            let mut again = Search { group, kept: None, best: None };
            for (level, head) in self.heads.iter().enumerate().skip(1) {
                if let Some(head) = head {
                    again.consider(head, level, self.bounds[level]);
                }
            }
            if again.best.is_some() && again.rows() <= search.rows().saturating_add(whole / 4) {
                search = again;
            }
        }
        let Search { best, .. } = search;
        match (best, kept) {
            (Some(best), _) => self.settle(group, prev, jumped, best),
            (None, Some(depth)) => {
                // A whole state that stays is the head of all levels, as a new one is.
                let level = if group.prev.is_none() { self.heads.len() - 1 } else { 0 };
                let found = Found { base: None, depth, level, rows: Vec::new() };
                self.settle(group, prev, jumped, found);
                Placed::Kept
            }
            (None, None) => {
                let level = self.heads.len() - 1;
                self.settle(
                    group,
                    prev,
                    jumped,
                    Found { base: None, depth: 0, level, rows: group.state.pairs() },
                )
            }
        }
    }

    /// How deep a group of the second level may lie.
    fn upper_bound(&self) -> u32 {
        self.bounds[self.bounds.len().min(2) - 1]
    }

    fn settle(&mut self, group: &Group, prev: Option<Base>, jumped: bool, found: Found) -> Placed {
        let base = Base { group: group.id, depth: found.depth, state: group.state.clone() };
        let mut jumps = Vec::new();
        if jumped {
            jumps.extend(self.last.take());
            jumps.extend(prev);
            jumps.push(base.clone());
        }
        for (index, head) in self.heads.iter_mut().enumerate() {
            if index <= found.level || head.is_none() {
                jumps.extend(head.replace(base.clone()).filter(|_| jumped && index > 0));
            }
        }
        for jump in jumps {
            if jump.depth < self.upper_bound() && self.jumps.iter().all(|known| known.group != jump.group) {
                self.jumps.push_back(jump);
            }
        }
        while self.jumps.len() > JUMPS {
            self.jumps.pop_front();
        }
        let weight = found.rows.len().max(group.rows).clamp(1, group.state.len().max(1) as usize);
        self.known.add(base.clone(), weight);
        self.last = Some(base);
        Placed::Moved { base: found.base, rows: found.rows }
    }
}

/// Where a group could lie.
struct Found {
    base: Option<Base>,
    depth: u32,
    /// The level whose head it becomes.
    level: usize,
    rows: Vec<Pair>,
}

struct Search<'g> {
    group: &'g Group,
    /// How deep it lies now, if it may stay.
    kept: Option<u32>,
    best: Option<Found>,
}

impl Search<'_> {
    fn rows(&self) -> usize {
        let without = || if self.kept.is_some() { self.group.rows } else { self.group.state.len() as usize };
        self.best.as_ref().map_or_else(without, |best| best.rows.len())
    }

    fn depth(&self) -> u32 {
        self.best.as_ref().map_or(self.kept.unwrap_or(0), |best| best.depth)
    }

    /// Measures a base. A hop counts as a row: once hops are used up, about so many rows have to be written to renew them.
    fn consider(&mut self, base: &Base, level: usize, bound: u32) {
        let depth = base.depth + 1;
        if depth > bound || base.group >= self.group.id {
            return;
        }
        let hops = depth as usize;
        // It has to cost less than what there is, and than the best so far.
        let mut limit = match (&self.best, self.kept) {
            // What has no hops more than now has them for nothing.
            (None, Some(kept)) => self.group.rows.checked_sub(1 + hops.saturating_sub(kept as usize)),
            (None, None) => (self.group.state.len() as usize).checked_sub(1 + hops),
            (Some(best), _) => (best.rows.len() + best.depth as usize).checked_sub(1 + hops),
        };
        if let (Some(_), Some(kept), Some(most)) = (&self.best, self.kept, limit) {
            limit =
                self.group.rows.checked_sub(1 + hops.saturating_sub(kept as usize)).map(|now| now.min(most));
        }
        if let Some(limit) = limit
            && let Some(rows) = self.group.state.over(&base.state, limit)
        {
            self.best = Some(Found { base: Some(base.clone()), depth, level, rows });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Stored = BTreeMap<i64, (Option<i64>, Vec<Pair>)>;

    /// What Synapse makes of a group: the rows on the way to a whole state, where the newer ones win.
    fn resolve(stored: &Stored, group: i64) -> (BTreeMap<u32, u32>, u32) {
        let (mut state, mut depth, mut next) = (BTreeMap::new(), 0, Some(group));
        while let Some(id) = next {
            let (prev, rows) = &stored[&id];
            for &(key, event) in rows {
                state.entry(key).or_insert(event);
            }
            depth += u32::from(prev.is_some());
            assert!(prev.is_none_or(|prev| prev < id), "{id} lies upon {prev:?}");
            next = *prev;
        }
        (state, depth)
    }

    fn rows(stored: &Stored) -> usize {
        stored.values().map(|(_, rows)| rows.len()).sum()
    }

    /// Compresses as the shell does, in one piece, and says how many groups were moved.
    fn compress(stored: &Stored, levels: &Levels) -> (Stored, usize) {
        let (mut tree, mut out, mut moved) = (Tree::new(levels), stored.clone(), 0);
        let newest = *stored.keys().last().expect("some group");
        for (&id, (prev, rows)) in stored {
            let state = match prev {
                None => State::like(&tree.relative(), rows),
                Some(prev) => {
                    if tree.known(*prev).is_none() {
                        let (state, depth) = resolve(&out, *prev);
                        let pairs: Vec<Pair> = state.into_iter().collect();
                        let base = Base { group: *prev, depth, state: State::like(&tree.relative(), &pairs) };
                        tree.know(base);
                    }
                    tree.known(*prev).expect("just told").state.with(rows)
                }
            };
            let group = Group { id, state, prev: *prev, rows: rows.len(), pinned: false };
            if let Placed::Moved { base, rows } = tree.place(&group, id == newest) {
                out.insert(id, (base.map(|base| base.group), rows));
                moved += 1;
            }
        }
        (out, moved)
    }

    fn check(stored: &Stored, levels: &Levels) -> Stored {
        let (out, _) = compress(stored, levels);
        let every = stored.len().div_ceil(500);
        for &id in stored.keys().step_by(every) {
            let ((before, _), (after, depth)) = (resolve(stored, id), resolve(&out, id));
            assert_eq!(before, after, "the state of {id}");
            assert!(depth <= levels.bounds()[0], "{id} is {depth} hops deep");
        }
        out
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A change upon the group so many back.
        Change(usize, Vec<Pair>),
        /// A whole state: that of a group so many back, without some keys and with others.
        Whole(usize, Vec<u32>, Vec<Pair>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let changes = || prop::collection::vec((1..60_u32, 1..30_u32), 0..4);
        prop_oneof![
            8 => (Just(1_usize), changes()).prop_map(|(back, changes)| Step::Change(back, changes)),
            1 => (1..20_usize, changes()).prop_map(|(back, changes)| Step::Change(back, changes)),
            1 => (1..20_usize, prop::collection::vec(1..60_u32, 0..3), changes())
                .prop_map(|(back, gone, changes)| Step::Whole(back, gone, changes)),
        ]
    }

    /// As Synapse stores such a history: a chain of 99 hops at most.
    fn store(steps: Vec<Step>) -> Stored {
        let mut stored = Stored::new();
        stored.insert(1, (None, (1..50).map(|key| (key, 1)).collect()));
        for (id, step) in (2_i64..).zip(steps) {
            let older = |back: usize| (id - i64::try_from(back).expect("small")).max(1);
            let group = match step {
                Step::Change(back, changes) => {
                    let prev = older(back);
                    let changes: BTreeMap<u32, u32> = changes.into_iter().collect();
                    let (mut state, depth) = resolve(&stored, prev);
                    if depth < MAX_HOPS {
                        (Some(prev), changes.into_iter().collect())
                    } else {
                        state.extend(changes);
                        (None, state.into_iter().collect())
                    }
                }
                Step::Whole(back, gone, changes) => {
                    let (mut state, _) = resolve(&stored, older(back));
                    state.retain(|key, _| !gone.contains(key));
                    state.extend(changes);
                    (None, state.into_iter().collect())
                }
            };
            stored.insert(id, group);
        }
        stored
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn no_state_changes_and_no_way_is_too_long(
            steps in prop::collection::vec(step(), 1..400),
            levels in prop_oneof![
                Just(Levels::default()),
                prop::collection::vec(1..9_u32, 1..4).prop_map(Levels),
                Just(Levels(vec![100, 50, 25])),
            ],
        ) {
            let stored = store(steps);
            let out = check(&stored, &levels);
            if levels.bounds()[0] == MAX_HOPS {
                prop_assert!(rows(&out) <= rows(&stored), "{} rows became {}", rows(&stored), rows(&out));
            }
        }

        #[test]
        fn again_is_no_worse(steps in prop::collection::vec(step(), 1..400)) {
            let levels = Levels::default();
            let once = check(&store(steps), &levels);
            let twice = check(&once, &levels);
            prop_assert!(rows(&twice) <= rows(&once));
        }
    }

    /// A room whose members come and go: what Synapse stores of it shrinks to a few rows for each group.
    #[test]
    fn slow_churn_becomes_small() {
        let change = |id: u32| Step::Change(1, vec![(1 + id * 7919 % 3000, id)]);
        let mut stored = store((2..12_000).map(change).collect());
        stored.insert(1, (None, (1..=3000).map(|key| (key, 1)).collect()));
        // The whole states in between are of the larger room.
        for id in 2..12_000 {
            if stored[&id].0.is_none() {
                let mut state = resolve(&stored, id - 1).0;
                state.extend(stored[&id].1.iter().copied().filter(|(_, event)| i64::from(*event) == id));
                stored.insert(id, (None, state.into_iter().collect()));
            }
        }
        let out = check(&stored, &Levels::default());
        let (before, after) = (rows(&stored), rows(&out));
        assert!(after * 6 < before && after < 5 * 12_000, "{before} rows became {after}");
        let (_, moved) = compress(&out, &Levels::default());
        assert!(moved < 200, "{moved} groups were moved again");
    }

    #[test]
    fn levels_are_numbers() {
        assert_eq!("100, 50,25".parse::<Levels>().expect("levels").bounds(), [99, 75, 25]);
        for wrong in ["", "0", "1,x", "1001", "1,1,1,1,1,1,1,1,1"] {
            assert!(wrong.parse::<Levels>().is_err(), "{wrong}");
        }
    }
}
