//! Counting DMA without a counter that all engines pull to and fro.

use std::fmt;

use ioasid_core::sync::atomic::{AtomicU64, Ordering};

/// Parts of a tally; more ports than that share them.
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
pub(crate) struct Tally {
    shards: [Shard; SHARDS],
}

/// Which part of every tally a port counts in.
#[derive(Clone, Copy)]
pub(crate) struct Place(usize);

/// The number of the next port. Not a model checker's atomic: nothing is ordered by it.
static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl Place {
    /// For a new port: neighbours in time have different ones.
    pub(crate) fn new() -> Self {
        Place(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % SHARDS)
    }
}

impl Tally {
    /// Adds what one guard did.
    #[inline]
    pub(crate) fn add(&self, place: Place, operations: u64, bytes: u64) {
        let shard = &self.shards[place.0];
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

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally")
            .field("operations", &self.operations())
            .field("bytes", &self.bytes())
            .finish()
    }
}
