//! Counters of DMA, in shards: engines do not share cache lines.

use std::fmt;

use ioasid_core::sync::atomic::{AtomicU64, Ordering};

/// Shards that belong to one port each: to add to one is a load and a store.
const OWNED: usize = if cfg!(ioasid_shuttle) { 0 } else { 16 };
/// Shards that all other ports share.
const SHARED: usize = if cfg!(ioasid_shuttle) { 1 } else { 4 };

/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    operations: AtomicU64,
    bytes: AtomicU64,
}

/// Operations and bytes, added up by many ports.
#[derive(Default)]
pub(crate) struct DmaCounters {
    shards: [Shard; OWNED + SHARED],
}

/// Which shard of every domain's counters a port uses.
#[derive(Debug)]
pub(crate) struct ShardIndex {
    index: usize,
    owned: bool,
}

/// Bit n: shard n has an owner. Not a model checker's atomic: there nobody owns one.
static TAKEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
/// The number of the next port that owns none.
static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl ShardIndex {
    /// For a new port: one of its own, if there is one left.
    pub(crate) fn new() -> Self {
        let free =
            |taken: u32| (taken.trailing_ones() < OWNED as u32).then_some(taken | (taken + 1));
        // What the last owner has added is visible: see `drop`.
        match TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, free) {
            Ok(taken) => ShardIndex {
                index: taken.trailing_ones() as usize,
                owned: true,
            },
            Err(_) => ShardIndex {
                index: OWNED + NEXT.fetch_add(1, Ordering::Relaxed) % SHARED,
                owned: false,
            },
        }
    }
}

impl Drop for ShardIndex {
    fn drop(&mut self) {
        if self.owned {
            TAKEN.fetch_and(!(1 << self.index), Ordering::Release);
        }
    }
}

impl DmaCounters {
    /// Adds what one guard did.
    #[inline]
    pub(crate) fn add(&self, index: &mut ShardIndex, operations: u64, bytes: u64) {
        let shard = &self.shards[index.index];
        let counters = [(&shard.operations, operations), (&shard.bytes, bytes)];
        for (counter, more) in counters {
            if index.owned {
                // Nobody else writes it; two locked instructions would be a third of a short guard.
                let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
                counter.store(sum, Ordering::Relaxed);
            } else {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// The operations of all ports.
    pub(crate) fn operations(&self) -> u64 {
        let all = self.shards.iter();
        all.fold(0, |sum, shard| {
            sum.wrapping_add(shard.operations.load(Ordering::Relaxed))
        })
    }

    /// The bytes of all ports.
    pub(crate) fn bytes(&self) -> u64 {
        let all = self.shards.iter();
        all.fold(0, |sum, shard| {
            sum.wrapping_add(shard.bytes.load(Ordering::Relaxed))
        })
    }
}

impl fmt::Debug for DmaCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaCounters")
            .field("operations", &self.operations())
            .field("bytes", &self.bytes())
            .finish()
    }
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_with_more_ports_than_shards_and_when_owners_change() {
        const THREADS: u64 = 8;
        const PORTS: u64 = 200;
        let counters = DmaCounters::default();
        let idle: Vec<_> = (0..OWNED / 2).map(|_| ShardIndex::new()).collect();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..PORTS {
                        let mut ports: Vec<_> = (0..3).map(|_| ShardIndex::new()).collect();
                        for port in &mut ports {
                            counters.add(port, 1, 10);
                        }
                    }
                });
            }
        });
        drop(idle);
        let expected = THREADS * PORTS * 3;
        assert_eq!(counters.operations(), expected);
        assert_eq!(counters.bytes(), 10 * expected);
    }
}
