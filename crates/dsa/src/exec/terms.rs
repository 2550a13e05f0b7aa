//! What a queue allows a descriptor, and what its steps cause outside of memory.

use crate::spec::{Descriptor, Event};

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
    /// Requests of a dedicated queue are privileged.
    pub(crate) privileged: bool,
    /// The device may send privileged requests (Privileged Mode Enable of its PASID capability).
    pub(crate) privileged_mode: bool,
    /// One past the largest PASID of the device.
    pub(crate) max_pasids: u32,
    /// Translations that the device keeps may be used.
    pub(crate) ats: bool,
}

impl Terms {
    /// Whether the requests of `descriptor`, which is not one of a batch, are privileged: by the queue's
    /// configuration, or, in a shared queue, by the bit that the processor put into it.
    pub(crate) const fn privileges(&self, descriptor: &Descriptor) -> bool {
        let asked = match self.shared {
            true => descriptor.privileged,
            false => self.privileged,
        };
        asked && self.privileged_mode
    }

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
            privileged: false,
            privileged_mode: true,
            max_pasids: 1 << 20,
            ats: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_privileged_by_the_queue_or_by_the_processor_and_the_device() {
        let privileges = |shared, privileged, privileged_mode, by_processor| {
            let terms = Terms {
                shared,
                privileged,
                privileged_mode,
                ..Terms::for_tests()
            };
            terms.privileges(&Descriptor {
                privileged: by_processor,
                ..Descriptor::default()
            })
        };
        for other in [false, true] {
            assert!(privileges(false, true, true, other));
            assert!(!privileges(false, false, true, other));
            assert!(privileges(true, other, true, true));
            assert!(!privileges(true, other, true, false));
            assert!(!privileges(other, true, false, true));
        }
    }
}
