//! Descriptors (64 bytes) and completion records (32 bytes).

use std::ops::BitOr;

/// What a descriptor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opcode(pub u8);

impl Opcode {
    /// Nothing; completes in order.
    pub const NOOP: Opcode = Opcode(0);
    /// A list of descriptors.
    pub const BATCH: Opcode = Opcode(1);
    /// Completes when every earlier descriptor of the queue has.
    pub const DRAIN: Opcode = Opcode(2);
    /// Copy.
    pub const MEMMOVE: Opcode = Opcode(3);
    /// Fill with a repeated 8-byte pattern.
    pub const FILL: Opcode = Opcode(4);
    /// Compare two areas.
    pub const COMPARE: Opcode = Opcode(5);
}

/// The flags field of a descriptor, 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u32);

impl Flags {
    /// None.
    pub const NONE: Flags = Flags(0);
    /// Starts only when the earlier descriptors of its batch are done.
    pub const FENCE: Flags = Flags(1 << 0);
    /// A page fault blocks the descriptor until it is resolved, instead of ending it.
    pub const BLOCK_ON_FAULT: Flags = Flags(1 << 1);
    /// The completion address is valid (CRAV).
    pub const RECORD_VALID: Flags = Flags(1 << 2);
    /// Write a completion record even on success (RCR).
    pub const REQUEST_RECORD: Flags = Flags(1 << 3);
    /// Raise an interrupt on completion (RCI).
    pub const REQUEST_INTERRUPT: Flags = Flags(1 << 4);
    /// Writes go to the cache.
    pub const CACHE_CONTROL: Flags = Flags(1 << 8);
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// One work descriptor. Every field may be set to anything, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// PASID, 20 bits. A dedicated queue ignores it and uses its own.
    pub pasid: u32,
    /// Runs with supervisor rights; ignored by a dedicated queue.
    pub privileged: bool,
    /// Flags.
    pub flags: Flags,
    /// Operation.
    pub opcode: Opcode,
    /// Address of the completion record, 32-byte aligned.
    pub completion: u64,
    /// Bytes 16..24: source address, pattern of a FILL, or address of a descriptor list.
    pub source: u64,
    /// Bytes 24..32: destination address, or second source of a COMPARE.
    pub destination: u64,
    /// Bytes 32..36: transfer size in bytes, or number of descriptors of a BATCH.
    pub size: u32,
    /// Interrupt handle: here an index into the device's own MSI-X table.
    pub interrupt: u16,
    /// Bytes 40..64, used by other operations; zero.
    pub rest: [u8; 24],
}

impl Descriptor {
    /// Size in memory and on a portal, bytes.
    pub const SIZE: usize = 64;

    /// A descriptor of the given operation with nothing else set.
    pub const fn new(opcode: Opcode) -> Descriptor {
        Descriptor {
            pasid: 0,
            privileged: false,
            flags: Flags::NONE,
            opcode,
            completion: 0,
            source: 0,
            destination: 0,
            size: 0,
            interrupt: 0,
            rest: [0; 24],
        }
    }

    /// Copies `size` bytes from `source` to `destination`.
    pub const fn memmove(destination: u64, source: u64, size: u32) -> Descriptor {
        Descriptor {
            source,
            destination,
            size,
            ..Descriptor::new(Opcode::MEMMOVE)
        }
    }

    /// Fills `size` bytes from `destination` with `pattern`.
    pub const fn fill(destination: u64, pattern: u64, size: u32) -> Descriptor {
        Descriptor {
            source: pattern,
            destination,
            size,
            ..Descriptor::new(Opcode::FILL)
        }
    }

    /// Compares `size` bytes at two addresses.
    pub const fn compare(first: u64, second: u64, size: u32) -> Descriptor {
        Descriptor {
            source: first,
            destination: second,
            size,
            ..Descriptor::new(Opcode::COMPARE)
        }
    }

    /// Runs the `count` descriptors in the list at `list` (64-byte aligned).
    pub const fn batch(list: u64, count: u32) -> Descriptor {
        Descriptor {
            source: list,
            size: count,
            ..Descriptor::new(Opcode::BATCH)
        }
    }

    /// As it lies in memory.
    pub fn encode(&self) -> [u8; Descriptor::SIZE] {
        let mut bytes = [0; Descriptor::SIZE];
        let who = (self.pasid & 0xf_ffff) | u32::from(self.privileged) << 31;
        let what = (self.flags.0 & 0xff_ffff) | u32::from(self.opcode.0) << 24;
        bytes[0..4].copy_from_slice(&who.to_le_bytes());
        bytes[4..8].copy_from_slice(&what.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.completion.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.source.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.destination.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.size.to_le_bytes());
        bytes[36..38].copy_from_slice(&self.interrupt.to_le_bytes());
        bytes[40..64].copy_from_slice(&self.rest);
        bytes
    }
}

/// The status byte of a completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u8);

impl Status {
    /// Not complete yet.
    pub const NONE: Status = Status(0);
    /// Done without error.
    pub const SUCCESS: Status = Status(0x01);
    /// A page could not be read; [`Completion::fault_address`] says which.
    pub const PAGE_FAULT: Status = Status(0x03);
    /// A page could not be written.
    pub const PAGE_FAULT_ON_WRITE: Status = Status(0x83);
    /// A descriptor of the batch failed.
    pub const BATCH_FAILED: Status = Status(0x05);
    /// The descriptor list of a batch could not be read.
    pub const BATCH_FAULT: Status = Status(0x06);
    /// The interrupt handle is not one of the device's.
    pub const BAD_INTERRUPT: Status = Status(0x19);
}

/// A completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Status; not 0.
    pub status: Status,
    /// Result of a COMPARE: 0 if equal.
    pub result: u8,
    /// Bytes done (for COMPARE: offset of the first difference), or descriptors done of a BATCH.
    pub done: u32,
    /// Address of the fault, if the status says so.
    pub fault_address: u64,
}

impl Completion {
    /// Size in memory, bytes; also its alignment.
    pub const SIZE: usize = 32;

    /// From its bytes in memory.
    pub fn decode(bytes: &[u8; Completion::SIZE]) -> Completion {
        let (mut done, mut address) = ([0; 4], [0; 8]);
        done.copy_from_slice(&bytes[4..8]);
        address.copy_from_slice(&bytes[8..16]);
        Completion {
            status: Status(bytes[0]),
            result: bytes[1],
            done: u32::from_le_bytes(done),
            fault_address: u64::from_le_bytes(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_laid_out_as_the_specification_says() {
        let mut descriptor = Descriptor::memmove(0x1111_2222_3333_4444, 0x5555_6666, 0x1000);
        descriptor.pasid = 0xfff_ffff;
        descriptor.privileged = true;
        descriptor.flags = Flags::RECORD_VALID | Flags::REQUEST_RECORD | Flags::REQUEST_INTERRUPT;
        descriptor.completion = 0x9000;
        descriptor.interrupt = 0x0201;
        let bytes = descriptor.encode();
        assert_eq!(bytes[0..4], [0xff, 0xff, 0x0f, 0x80], "20 bits of PASID");
        assert_eq!(bytes[4..8], [0x1c, 0, 0, 3]);
        assert_eq!(bytes[8..16], 0x9000u64.to_le_bytes());
        assert_eq!(bytes[16..24], 0x5555_6666u64.to_le_bytes());
        assert_eq!(bytes[24..32], 0x1111_2222_3333_4444u64.to_le_bytes());
        assert_eq!(bytes[32..36], 0x1000u32.to_le_bytes());
        assert_eq!(bytes[36..40], [1, 2, 0, 0]);
        assert_eq!(bytes[40..64], [0; 24]);
    }

    #[test]
    fn fill_compare_and_batch_use_the_shared_fields() {
        let fill = Descriptor::fill(0x2000, 0xa5, 64).encode();
        assert_eq!((fill[7], fill[16], fill[25]), (4, 0xa5, 0x20));
        let compare = Descriptor::compare(0x1000, 0x2000, 64).encode();
        assert_eq!((compare[7], compare[17], compare[25]), (5, 0x10, 0x20));
        let batch = Descriptor::batch(0x3000, 2).encode();
        assert_eq!((batch[7], batch[17], batch[32]), (1, 0x30, 2));
    }

    #[test]
    fn a_completion_record_decodes() {
        let mut bytes = [0; 32];
        bytes[0] = 0x83;
        bytes[1] = 1;
        bytes[4..8].copy_from_slice(&77u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&0x1_0000_2000u64.to_le_bytes());
        assert_eq!(
            Completion::decode(&bytes),
            Completion {
                status: Status::PAGE_FAULT_ON_WRITE,
                result: 1,
                done: 77,
                fault_address: 0x1_0000_2000
            }
        );
    }
}
