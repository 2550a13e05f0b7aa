//! What has been read of guests' tables in memory of another process, where each entry costs a system call.
//!
//! It is kept in lines of 64 bytes, as a processor's cache does, with the counts of changes that were seen
//! before the line was read. Who looks one up does so under a guard that is published, and a change counts
//! before its barrier looks for guards: so a line with the counts of now has been read after every change
//! that has returned. It may be older than a change that nobody has to say: an entry made present, or a right
//! given. So a walk that ends with a fault is believed only once it has read its lines anew.

use std::collections::HashMap;

use ioasid_core::sync::Mutex;

/// Bytes of a line, and entries in it.
pub(crate) const LINE: u64 = 64;
const WORDS: usize = 8;

/// Lines that are kept of one domain: 320 KiB.
const MOST: usize = 4096;

/// Counts of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Of all.
    pub(crate) all: u64,
    /// Of those that can concern entries which lead to tables.
    pub(crate) tables: u64,
}

#[derive(Clone, Copy)]
struct Line {
    words: [u64; WORDS],
    counts: Counts,
}

/// Lines of one guest's table by guest-physical address.
#[derive(Default)]
pub(crate) struct Lines(Mutex<HashMap<u64, Line>>);

/// An entry that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptEntry {
    /// It holds, whatever it is.
    Any(u64),
    /// It holds if it leads to a table.
    Table(u64),
}

impl Lines {
    /// The entry at `address` (a multiple of 8), if it holds now.
    pub(crate) fn entry(&self, address: u64, now: Counts) -> Option<KeptEntry> {
        let lines = self.0.lock();
        let line = lines.get(&(address & !(LINE - 1)))?;
        let entry = line.words[word(address)];
        if line.counts == now {
            Some(KeptEntry::Any(entry))
        } else if line.counts.tables == now.tables {
            Some(KeptEntry::Table(entry))
        } else {
            None
        }
    }

    /// Keeps `bytes` (whole lines) from `address` (of a line), which were read after `counts`.
    pub(crate) fn keep(&self, address: u64, bytes: &[u8], counts: Counts) {
        let mut lines = self.0.lock();
        if lines.len() >= MOST {
            lines.clear();
        }
        for (number, bytes) in bytes.chunks_exact(LINE as usize).enumerate() {
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            lines.insert(address + number as u64 * LINE, Line { words, counts });
        }
    }

    /// Drops the line of the entry at `address`, and says what the entry was, however old.
    pub(crate) fn forget(&self, address: u64) -> Option<u64> {
        let line = self.0.lock().remove(&(address & !(LINE - 1)))?;
        Some(line.words[word(address)])
    }
}

/// Which entry of its line is at `address`.
const fn word(address: u64) -> usize {
    (address % LINE / 8) as usize
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn entries_hold_as_long_as_their_counts() {
        let lines = Lines::default();
        let read = Counts { all: 5, tables: 2 };
        let bytes: Vec<u8> = (0..16_u64).flat_map(|n| (n + 1).to_le_bytes()).collect();
        lines.keep(0x1040, &bytes, read);
        assert_eq!(lines.entry(0x1048, read), Some(KeptEntry::Any(2)));
        assert_eq!(lines.entry(0x10b8, read), Some(KeptEntry::Any(16)));
        assert_eq!(lines.entry(0x10c0, read), None);
        assert_eq!(lines.entry(0x1038, read), None);
        let leaves = Counts { all: 6, ..read };
        assert_eq!(lines.entry(0x1048, leaves), Some(KeptEntry::Table(2)));
        let tables = Counts { all: 6, tables: 3 };
        assert_eq!(lines.entry(0x1048, tables), None);
        assert_eq!(lines.forget(0x1050), Some(3));
        assert_eq!(lines.entry(0x1048, read), None);
        assert_eq!(lines.entry(0x1080, read), Some(KeptEntry::Any(9)));
    }

    #[test]
    fn a_guest_with_many_tables_fills_no_memory() {
        let lines = Lines::default();
        let counts = Counts { all: 0, tables: 0 };
        for number in 0..3 * MOST as u64 {
            lines.keep(number * LINE, &[1; LINE as usize], counts);
        }
        assert!(lines.0.lock().len() <= MOST);
        assert!(lines.entry((3 * MOST as u64 - 1) * LINE, counts).is_some());
    }
}
