//! Failures that a test asks for: at the nth time that something happens, or with a chance that a seed
//! decides.
//!
//! What can fail says so by [`Injections::at`] and carries the failure out by the means that it has for
//! a real one. Nothing is armed by default; a call costs the look at one number then.

use std::time::Duration;

use crate::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A program maps memory (IOAS_MAP and its like).
    Map,
    /// A device begins with a descriptor, or with a transfer if it has none.
    Descriptor,
    /// A device raises an interrupt.
    Interrupt,
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is refused: a map as if memory were short, a descriptor by a fault of its first DMA.
    Refuse,
    /// It is lost: a descriptor is never completed, an interrupt never arrives.
    Lose,
    /// It begins later.
    Delay(Duration),
    /// Nothing fails; whoever asked is told.
    Nothing,
}

/// When it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The nth time from now on, from 1, and then no more.
    Nth(u64),
    /// Each time, with this chance in a hundred: which times those are follows from the seed.
    Chance {
        /// Of a hundred.
        percent: u8,
        /// The same seed gives the same times.
        seed: u64,
    },
}

/// What is told when it fails.
pub type Tell = Box<dyn Fn() + Send + Sync>;

/// One failure that was asked for.
struct Rule {
    point: Point,
    when: When,
    failure: Failure,
    tell: Option<Tell>,
}

/// The failures that were asked for of one thing: a device, a function, a machine.
#[derive(Default)]
pub struct Injections {
    /// How many there are: 0 costs no lock.
    armed: AtomicUsize,
    rules: Mutex<Vec<Rule>>,
}

impl Injections {
    /// Asks for a failure at `point`. `tell` is called when it happens, by whoever fails: it must not
    /// block.
    pub fn add(&self, point: Point, when: When, failure: Failure, tell: Option<Tell>) {
        let mut rules = self.rules.lock();
        rules.push(Rule {
            point,
            when,
            failure,
            tell,
        });
        self.armed.store(rules.len(), Ordering::Relaxed);
    }

    /// Whether anything was asked for.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed) != 0
    }

    /// `point` is reached: how it is to fail, if it is.
    #[inline]
    pub fn at(&self, point: Point) -> Option<Failure> {
        match self.is_armed() {
            false => None,
            true => self.reached(point),
        }
    }

    /// Every failure counts what it waits for; the first that is due happens.
    #[cold]
    fn reached(&self, point: Point) -> Option<Failure> {
        let mut rules = self.rules.lock();
        let mut due = None;
        for (index, rule) in rules.iter_mut().enumerate() {
            if rule.point == point && rule.when.is_now() && due.is_none() {
                due = Some(index);
            }
        }
        let index = due?;
        let rule = rules.get(index)?;
        let failure = rule.failure;
        if let Some(tell) = &rule.tell {
            tell();
        }
        if matches!(rule.when, When::Nth(_)) {
            rules.remove(index);
            self.armed.store(rules.len(), Ordering::Relaxed);
        }
        Some(failure)
    }
}

impl When {
    fn is_now(&mut self) -> bool {
        match self {
            When::Nth(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            When::Chance { percent, seed } => draw(seed) % 100 < u64::from(*percent),
        }
    }
}

/// The next number of `seed` (SplitMix64).
fn draw(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl std::fmt::Debug for Injections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injections")
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;

    fn times(injections: &Injections, point: Point, of: usize) -> Vec<usize> {
        (1..=of)
            .filter(|_| injections.at(point).is_some())
            .collect()
    }

    #[test]
    fn the_nth_time_fails_and_no_other() {
        let injections = Injections::default();
        injections.add(Point::Descriptor, When::Nth(3), Failure::Refuse, None);
        injections.add(Point::Descriptor, When::Nth(5), Failure::Lose, None);
        assert!(injections.at(Point::Interrupt).is_none());
        let failures: Vec<_> = (0..6).map(|_| injections.at(Point::Descriptor)).collect();
        let expected = [
            None,
            None,
            Some(Failure::Refuse),
            None,
            Some(Failure::Lose),
            None,
        ];
        assert_eq!(failures, expected);
        assert!(!injections.is_armed());
    }

    #[test]
    fn chance_follows_from_the_seed() {
        let failing = |seed| {
            let injections = Injections::default();
            let when = When::Chance { percent: 25, seed };
            injections.add(Point::Map, when, Failure::Refuse, None);
            times(&injections, Point::Map, 400)
        };
        assert_eq!(failing(7), failing(7));
        assert_ne!(failing(7), failing(8));
        assert!((60..140).contains(&failing(7).len()));
    }
}
