//! Which file of the machine a number is, remembered.
//!
//! Looking at a program's descriptor costs as much as the rest of a request. A reserved number
//! stands for the same file until the program closes it or puts another file in its place, and the
//! filter asks about every call that does. Such a call is carried out by the kernel after our
//! answer, so until its thread makes another call nothing is remembered.

use std::collections::{HashMap, HashSet};

use crate::session::identity::Identity;

/// Descriptors that are remembered before all are forgotten.
const MOST_KNOWN: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// By the number that stands for the process, and the descriptor.
    known: HashMap<(u64, u32), Identity>,
    /// Threads that may be in the middle of a close.
    closing: HashSet<i32>,
}

impl Identities {
    /// What descriptor `fd` of `process` is, if that is known.
    pub(crate) fn get(&self, process: u64, fd: u32) -> Option<Identity> {
        self.known.get(&(process, fd)).copied()
    }

    /// `fd` was looked at and is a file of the machine.
    pub(crate) fn learn(&mut self, process: u64, fd: u32, identity: Identity) {
        if self.closing.is_empty() {
            if self.known.len() >= MOST_KNOWN {
                self.known.clear();
            }
            self.known.insert((process, fd), identity);
        }
    }

    /// `tid` is about to close descriptors, or to replace them.
    pub(crate) fn begin_close(&mut self, tid: i32) {
        self.known.clear();
        self.closing.insert(tid);
    }

    /// `tid` makes a request: what it did before is done.
    pub(crate) fn end_close(&mut self, tid: i32) {
        if !self.closing.is_empty() {
            self.closing.remove(&tid);
        }
    }

    /// `tid` has ended, and what it did with it.
    pub(crate) fn ended(&mut self, tid: i32) {
        self.end_close(tid);
    }

    /// Nothing is known any more.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_remembered_while_a_close_may_be_on_its_way() {
        let mut identities = Identities::default();
        identities.learn(1, 900, (1, 2));
        assert_eq!(identities.get(1, 900), Some((1, 2)));
        assert_eq!(identities.get(2, 900), None);
        identities.begin_close(77);
        assert_eq!(identities.get(1, 900), None);
        // Another thread asks in between: the close may come after this look.
        identities.end_close(78);
        identities.learn(1, 900, (1, 2));
        assert_eq!(identities.get(1, 900), None);
        identities.end_close(77);
        identities.learn(1, 900, (3, 4));
        assert_eq!(identities.get(1, 900), Some((3, 4)));
    }
}
