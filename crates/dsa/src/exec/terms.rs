//! What a queue allows a descriptor, and what its steps cause outside of memory.

use crate::spec::Event;

/// What steps cause outside of memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// MSI-X vectors to raise, checked.
    pub(crate) interrupts: Vec<u16>,
    /// Errors without a completion record.
    pub(crate) errors: Vec<Event>,
    pub(crate) counts: Counts,
}

/// What steps have done, for the statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Descriptors that ended, those of batches included.
    pub(crate) ended: u64,
    /// Of them, those that did not succeed.
    pub(crate) failed: u64,
    /// Page faults that ended a descriptor or hit its completion record.
    pub(crate) faults: u64,
}

impl Counts {
    /// Adds those of another step.
    pub(crate) const fn add(&mut self, other: Counts) {
        self.bytes += other.bytes;
        self.ended += other.ended;
        self.failed += other.failed;
        self.faults += other.faults;
    }
}

/// What the queue allows a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Largest transfer in bytes.
    pub(crate) max_transfer: u64,
    /// Largest batch in descriptors.
    pub(crate) max_batch: u64,
    /// Block On Fault may be set.
    pub(crate) block_on_fault: bool,
    /// Pages are requested; otherwise a descriptor that would wait for one ends with the fault.
    pub(crate) page_requests: bool,
    /// MSI-X vectors of the client's device that its descriptors may name, as bits.
    pub(crate) vectors: u64,
    /// The queue is shared: PASID and privilege are those that the processor put into the
    /// descriptor.
    pub(crate) shared: bool,
    /// Privileged descriptors are allowed in a shared queue.
    pub(crate) privileged: bool,
    /// One past the largest PASID of the device.
    pub(crate) max_pasids: u32,
    /// Translations that the device keeps may be used.
    pub(crate) ats: bool,
}

impl Terms {
    /// Whether an interrupt handle is one of the client's.
    pub(crate) fn permits(&self, handle: u16) -> bool {
        self.vectors
            .checked_shr(handle.into())
            .is_some_and(|vectors| vectors & 1 == 1)
    }
}

#[cfg(test)]
impl Terms {
    /// Terms that allow nothing special, for tests of the parts.
    pub(crate) const fn for_tests() -> Self {
        Terms {
            max_transfer: 1,
            max_batch: 2,
            block_on_fault: false,
            page_requests: false,
            vectors: 1,
            shared: false,
            privileged: true,
            max_pasids: 1 << 20,
            ats: true,
        }
    }
}
