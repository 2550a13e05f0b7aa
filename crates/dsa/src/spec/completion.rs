//! The completion record: 32 bytes that the device writes when a descriptor is done
//! (specification, section 8.2).

/// Bytes in a completion record, and its alignment.
pub const RECORD_SIZE: usize = 32;

/// Set in the status byte if the access that faulted was a write.
pub const FAULT_ON_WRITE: u8 = 0x80;

/// What became of a descriptor (section 5.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Success = 0x01,
    /// Done, and the result is not the expected one (the descriptor asked for a check).
    SuccessFalsePredicate = 0x02,
    /// A page fault stopped it: `bytes_completed` were done, `fault_addr` could not be reached.
    PageFault = 0x03,
    /// Batch: at least one descriptor did not succeed.
    BatchFail = 0x05,
    /// Batch: the list of descriptors could not be read.
    BatchPageFault = 0x06,
    /// The opcode is not supported, or not allowed in a batch.
    BadOpcode = 0x10,
    /// A flag that must be 0 is set.
    InvalidFlags = 0x11,
    /// A reserved field is not 0.
    ReservedNotZero = 0x12,
    /// The transfer size is 0 or over the queue's limit.
    TransferSize = 0x13,
    /// The number of descriptors is below 2 or over the queue's limit.
    DescriptorCount = 0x14,
    /// Source and destination overlap where that is not allowed.
    Overlap = 0x16,
    /// Dualcast: bits 0..=11 of the two destinations differ.
    DualcastAlignment = 0x17,
    /// The list of a batch is not aligned to 64 bytes.
    ListAlignment = 0x18,
    /// The interrupt handle is not one of this client's.
    InterruptHandle = 0x19,
    /// The completion record could not be written; reported in SWERR only.
    RecordFault = 0x1a,
    /// The completion record is not aligned to 32 bytes.
    RecordAlignment = 0x1b,
    /// A privileged descriptor in a shared queue of a device whose PASID capability has Privileged Mode
    /// not enabled; reported in SWERR only.
    Privilege = 0x1d,
}

/// A completion record. The fields that depend on the operation are in `result` and `specific`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompletionRecord {
    /// A [`Status`], perhaps with [`FAULT_ON_WRITE`]; 0 as long as the descriptor is not done.
    pub status: u8,
    /// Compare: 0 equal, 1 different. Memory Move with a fault: 1 if it went from the end
    /// backwards.
    pub result: u8,
    /// Bytes done (on success 0, except for Compare with a difference), or descriptors of a batch.
    pub completed: u32,
    /// Address that could not be reached.
    pub fault_addr: u64,
    /// CRC: the value. Invalid flags: which.
    pub specific: u64,
}

impl CompletionRecord {
    /// The bytes as they stand in memory.
    pub fn to_bytes(self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        bytes[0] = self.status;
        bytes[1] = self.result;
        bytes[4..8].copy_from_slice(&self.completed.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.fault_addr.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.specific.to_le_bytes());
        bytes
    }

    /// The record in `bytes`.
    pub fn from_bytes(bytes: &[u8; RECORD_SIZE]) -> Self {
        let quadword = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        };
        CompletionRecord {
            status: bytes[0],
            result: bytes[1],
            completed: (quadword(0) >> 32) as u32,
            fault_addr: quadword(8),
            specific: quadword(16),
        }
    }

    /// Whether the operation succeeded (with any predicate).
    pub const fn succeeded(&self) -> bool {
        self.status == Status::Success as u8 || self.status == Status::SuccessFalsePredicate as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = CompletionRecord {
            status: 0x83,
            result: 1,
            completed: 0x0102_0304,
            fault_addr: 0x1122_3344_5566_7788,
            specific: 0x99aa_bbcc_ddee_ff00,
        };
        let bytes = record.to_bytes();
        assert_eq!(bytes[..8], [0x83, 1, 0, 0, 4, 3, 2, 1]);
        assert_eq!(CompletionRecord::from_bytes(&bytes), record);
    }
}
