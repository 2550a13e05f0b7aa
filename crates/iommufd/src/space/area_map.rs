//! Areas by their first address.
//!
//! A sorted map whose leaves are vectors. It differs from a `BTreeMap` in how full they are: one that
//! is full is not cut in halves where addresses ascend or descend, as those of most programs do, so an
//! area costs little more than its own size. A leaf that has become nearly empty joins the next.

use std::{collections::BTreeMap, ops::Bound};

use ioasid_core::AddrRange;

/// Areas in a leaf, at most.
const FULL: usize = 16;

/// A leaf with as many areas, or fewer, looks for another to join.
const SPARSE: usize = FULL / 4;

#[derive(Debug)]
struct Slot<T> {
    start: u64,
    last: u64,
    area: T,
}

impl<T> Slot<T> {
    fn range(&self) -> Option<AddrRange> {
        AddrRange::new(self.start, self.last)
    }
}

/// The areas of one address space, none of which overlap.
#[derive(Debug)]
pub(crate) struct AreaMap<T> {
    /// By a number that is not above the first address of the leaf, and above the last of the one
    /// before. No leaf is empty.
    leaves: BTreeMap<u64, Vec<Slot<T>>>,
    len: usize,
}

impl<T> Default for AreaMap<T> {
    fn default() -> Self {
        AreaMap {
            leaves: BTreeMap::new(),
            len: 0,
        }
    }
}

/// Where `start` is in a leaf, or belongs.
fn position<T>(leaf: &[Slot<T>], start: u64) -> Result<usize, usize> {
    leaf.binary_search_by_key(&start, |slot| slot.start)
}

/// A leaf in a row of many.
fn leaf_of<T>(slot: Slot<T>) -> Vec<Slot<T>> {
    let mut leaf = Vec::with_capacity(FULL);
    leaf.push(slot);
    leaf
}

impl<T> AreaMap<T> {
    /// Number of areas.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The last area that starts at or before `address`.
    pub(super) fn at_or_before(&self, address: u64) -> Option<(AddrRange, &T)> {
        // The first area of a leaf may start above the number of the leaf.
        let mut leaves = self.leaves.range(..=address).rev().take(2);
        leaves.find_map(|(_, leaf)| {
            let after = leaf.partition_point(|slot| slot.start <= address);
            let slot = leaf.get(after.checked_sub(1)?)?;
            Some((slot.range()?, &slot.area))
        })
    }

    /// The areas that start at `address` or after it, ascending.
    pub(super) fn starting_from(&self, address: u64) -> impl Iterator<Item = (AddrRange, &T)> {
        let first = self.leaves.range(..=address).next_back();
        let rest = first.map_or(Bound::Unbounded, |(key, _)| Bound::Excluded(*key));
        let first = first.map_or(&[][..], |(_, leaf)| {
            let before = leaf.partition_point(|slot| slot.start < address);
            leaf.get(before..).unwrap_or_default()
        });
        let rest = self.leaves.range((rest, Bound::Unbounded));
        let rest = rest.flat_map(|(_, leaf)| leaf);
        let slots = first.iter().chain(rest);
        slots.filter_map(|slot| Some((slot.range()?, &slot.area)))
    }

    /// The areas that have an address in `range`, ascending. Most look for one: the leaves behind the
    /// first are found when they are come to.
    pub(super) fn overlapping(&self, range: AddrRange) -> impl Iterator<Item = (AddrRange, &T)> {
        let start = range.start();
        let found = self.leaves.range(..=start).next_back();
        let mut before = None;
        let mut first = &[][..];
        if let Some((key, leaf)) = found {
            let at = leaf.partition_point(|slot| slot.start < start);
            first = leaf.get(at..).unwrap_or_default();
            before = match at.checked_sub(1) {
                Some(before) => leaf.get(before),
                // What is before an area that starts here ends before it.
                None if first.first().is_some_and(|slot| slot.start == start) => None,
                None => self
                    .leaves
                    .range(..key)
                    .next_back()
                    .and_then(|(_, leaf)| leaf.last()),
            };
        }
        let before = before.filter(|slot| slot.last >= start);
        let rest = found.map_or(Bound::Unbounded, |(key, _)| Bound::Excluded(*key));
        let rest = std::iter::once_with(move || {
            let leaves = self.leaves.range((rest, Bound::Unbounded));
            leaves.flat_map(|(_, leaf)| leaf)
        });
        let slots = before.into_iter().chain(first).chain(rest.flatten());
        slots
            .map_while(|slot| Some((slot.range()?, &slot.area)))
            .take_while(move |(area, _)| area.start() <= range.last())
    }

    /// Every area, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (AddrRange, &T)> {
        self.starting_from(0)
    }

    /// Every area, ascending.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (AddrRange, &mut T)> {
        let slots = self.leaves.values_mut().flatten();
        slots.filter_map(|slot| Some((slot.range()?, &mut slot.area)))
    }

    fn slot_mut(&mut self, start: u64) -> Option<&mut Slot<T>> {
        let (_, leaf) = self.leaves.range_mut(..=start).next_back()?;
        let index = position(leaf, start).ok()?;
        leaf.get_mut(index)
    }

    /// The area that starts at `start`.
    pub(super) fn get_mut(&mut self, start: u64) -> Option<&mut T> {
        self.slot_mut(start).map(|slot| &mut slot.area)
    }

    /// Lets the area that starts at `start` end at `last`; returns where it ended.
    pub(super) fn set_last(&mut self, start: u64, last: u64) -> Option<u64> {
        let slot = self.slot_mut(start)?;
        Some(std::mem::replace(&mut slot.last, last))
    }

    /// Adds an area where there is none.
    pub(super) fn insert(&mut self, range: AddrRange, area: T) {
        let slot = Slot {
            start: range.start(),
            last: range.last(),
            area,
        };
        self.len += 1;
        let start = slot.start;
        let Some((_, leaf)) = self.leaves.range_mut(..=start).next_back() else {
            // Below all others. The number of the lowest leaf becomes one that nothing is below.
            let mut lowest = match self.leaves.first_entry() {
                Some(leaf) if leaf.get().len() < FULL => leaf.remove(),
                Some(_) => Vec::with_capacity(FULL),
                None => Vec::new(),
            };
            lowest.insert(0, slot);
            self.leaves.insert(0, lowest);
            return;
        };
        let (Ok(index) | Err(index)) = position(leaf, start);
        if leaf.len() < FULL {
            leaf.insert(index, slot);
        } else if index == leaf.len() {
            self.leaves.insert(start, leaf_of(slot));
        } else {
            let right = match index {
                0 => std::mem::replace(leaf, leaf_of(slot)),
                _ => {
                    let mut right = leaf.split_off(FULL / 2);
                    match index.checked_sub(leaf.len()) {
                        Some(index) => right.insert(index, slot),
                        None => leaf.insert(index, slot),
                    }
                    right
                }
            };
            if let Some(first) = right.first() {
                self.leaves.insert(first.start, right);
            }
        }
    }

    /// Takes the area that starts at `start` out.
    pub(super) fn remove(&mut self, start: u64) -> Option<(AddrRange, T)> {
        let (key, leaf) = self.leaves.range_mut(..=start).next_back()?;
        let index = position(leaf, start).ok()?;
        let slot = leaf.remove(index);
        self.len -= 1;
        let (key, left) = (*key, leaf.len());
        if self.len == 0 {
            // With the root, which a map keeps.
            self.leaves = BTreeMap::new();
        } else if left == 0 {
            self.leaves.remove(&key);
        } else if left <= SPARSE {
            self.join(key);
        }
        Some((slot.range()?, slot.area))
    }

    /// Lets the leaf with number `key` be one with the next or the one before, if that leaves room
    /// for more.
    fn join(&mut self, key: u64) {
        let sparse = |(_, leaf): &(&u64, &Vec<Slot<T>>)| leaf.len() <= FULL / 2;
        let after = (Bound::Excluded(key), Bound::Unbounded);
        let next = self.leaves.range(after).next().filter(sparse);
        let before = self.leaves.range(..key).next_back().filter(sparse);
        let (left, right) = match (before, next) {
            (_, Some((&next, _))) => (key, next),
            (Some((&before, _)), None) => (before, key),
            (None, None) => return,
        };
        if let Some(right) = self.leaves.remove(&right)
            && let Some(left) = self.leaves.get_mut(&left)
        {
            left.extend(right);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Ascend(u64, u64),
        Descend(u64, u64),
        Remove(u64),
        Clear(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..400u64).prop_map(Step::Insert),
            2 => (0..400u64, 1..40u64).prop_map(|(from, count)| Step::Ascend(from, count)),
            1 => (0..400u64, 1..40u64).prop_map(|(from, count)| Step::Descend(from, count)),
            4 => (0..400u64).prop_map(Step::Remove),
            2 => (0..400u64, 1..60u64).prop_map(|(from, count)| Step::Clear(from, count)),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn two_from(start: u64) -> AddrRange {
        AddrRange::new(2 * start, 2 * start + 1).unwrap()
    }

    /// The map and a plain one, which say the same.
    #[derive(Default)]
    struct Both {
        map: AreaMap<u64>,
        model: BTreeMap<u64, u64>,
        last: u64,
    }

    impl Both {
        fn insert(&mut self, at: u64) {
            self.last += 1;
            if self.model.insert(at, self.last).is_none() {
                self.map.insert(two_from(at), self.last);
            } else {
                *self.map.get_mut(2 * at).unwrap() = self.last;
            }
        }

        fn remove(&mut self, at: u64) {
            let removed = self.map.remove(2 * at);
            let expected = self.model.remove(&at).map(|value| (two_from(at), value));
            assert_eq!(removed, expected);
        }

        fn compare(&mut self) {
            let model: Vec<_> = self
                .model
                .iter()
                .map(|(at, v)| (two_from(*at), *v))
                .collect();
            assert_eq!(self.map.len(), model.len());
            for from in [0, 3, 100, 411, 801, u64::MAX] {
                let found: Vec<_> = self.map.starting_from(from).map(|(r, v)| (r, *v)).collect();
                let expected = model.iter().filter(|(range, _)| range.start() >= from);
                assert!(found.iter().eq(expected), "from {from}");
                let before = model.iter().rfind(|(range, _)| range.start() <= from);
                let found = self.map.at_or_before(from).map(|(r, v)| (r, *v));
                assert_eq!(found.as_ref(), before, "before {from}");
            }
            for (start, last) in [
                (0, 0),
                (5, 5),
                (6, 300),
                (121, 640),
                (300, 2000),
                (0, u64::MAX),
            ] {
                let range = AddrRange::new(start, last).unwrap();
                let found: Vec<_> = self.map.overlapping(range).map(|(r, v)| (r, *v)).collect();
                let expected = model.iter().filter(|(area, _)| area.overlaps(range));
                assert!(found.iter().eq(expected), "{range}");
            }
            let all: Vec<_> = self.map.iter_mut().map(|(r, v)| (r, *v)).collect();
            assert_eq!(all, model);
            assert!(self.map.leaves.values().all(|leaf| !leaf.is_empty()));
        }
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(steps in steps()) {
            let mut both = Both::default();
            for step in steps {
                match step {
                    Step::Insert(at) => both.insert(at),
                    Step::Ascend(from, count) => (from..from + count).for_each(|at| both.insert(at)),
                    Step::Descend(from, count) => {
                        (from..from + count).rev().for_each(|at| both.insert(at));
                    }
                    Step::Remove(at) => both.remove(at),
                    Step::Clear(from, count) => (from..from + count).for_each(|at| both.remove(at)),
                }
                both.compare();
            }
            let model: Vec<_> = both.model.iter().map(|(at, v)| (two_from(*at), *v)).collect();
            prop_assert_eq!(both.map.iter().map(|(r, v)| (r, *v)).collect::<Vec<_>>(), model);
        }
    }

    #[test]
    fn leaves_are_full_where_addresses_go_one_way() {
        let up: Vec<u64> = (0..1000).collect();
        let down: Vec<u64> = (0..1000).rev().collect();
        for order in [up, down] {
            let mut map = AreaMap::default();
            for at in order {
                map.insert(two_from(at), ());
            }
            assert_eq!(map.leaves.len(), 1000usize.div_ceil(FULL));
        }
    }

    #[test]
    fn leaves_that_have_emptied_are_joined() {
        let mut map = AreaMap::default();
        for at in 0..1600 {
            map.insert(two_from(at), at);
        }
        for at in (0..1600).filter(|at| at % 16 != 0) {
            map.remove(2 * at).unwrap();
        }
        assert!(
            map.len() == 100 && map.leaves.len() <= 25,
            "{}",
            map.leaves.len()
        );
    }
}
