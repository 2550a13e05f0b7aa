//! Counters of DMA, in shards: engines do not share cache lines.

use std::fmt;

use ioasid_core::sync::atomic::{AtomicU64, Ordering};

/// Shards of a counter; more ports than that share them.
const SHARDS: usize = if cfg!(ioasid_shuttle) { 1 } else { 8 };

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
    shards: [Shard; SHARDS],
}

/// Which shard of every domain's counters a port uses.
#[derive(Clone, Copy)]
pub(crate) struct ShardIndex(usize);

/// The number of the next port. Not a model checker's atomic: nothing is ordered by it.
static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl ShardIndex {
    /// For a new port: neighbours in time have different ones.
    pub(crate) fn new() -> Self {
        ShardIndex(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % SHARDS)
    }
}

impl DmaCounters {
    /// Adds what one guard did.
    #[inline]
    pub(crate) fn add(&self, index: ShardIndex, operations: u64, bytes: u64) {
        let shard = &self.shards[index.0];
        shard.operations.fetch_add(operations, Ordering::Relaxed);
        shard.bytes.fetch_add(bytes, Ordering::Relaxed);
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
