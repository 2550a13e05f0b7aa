//! The descriptor: 64 bytes that a client stores to a portal (specification, section 8.1).

use bitfield_struct::bitfield;

use super::completion::RECORD_SIZE;

/// Bytes in a descriptor, and its alignment in a batch list.
pub const DESCRIPTOR_SIZE: usize = 64;

/// What to do (section 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Nothing.
    Noop = 0x00,
    /// Run a list of descriptors.
    Batch = 0x01,
    /// Wait for the earlier descriptors of the queue.
    Drain = 0x02,
    /// Copy.
    MemoryMove = 0x03,
    /// Fill with an 8-byte pattern.
    Fill = 0x04,
    /// Compare two buffers.
    Compare = 0x05,
    /// Compare a buffer with an 8-byte pattern.
    ComparePattern = 0x06,
    /// Copy to two destinations.
    Dualcast = 0x09,
    /// CRC-32C of a buffer.
    CrcGen = 0x10,
    /// Copy, and CRC-32C of what was copied.
    CopyCrc = 0x11,
    /// Flush the caches of a range.
    CacheFlush = 0x20,
}

impl Opcode {
    /// Every opcode of this model.
    pub const ALL: [Opcode; 11] = [
        Opcode::Noop,
        Opcode::Batch,
        Opcode::Drain,
        Opcode::MemoryMove,
        Opcode::Fill,
        Opcode::Compare,
        Opcode::ComparePattern,
        Opcode::Dualcast,
        Opcode::CrcGen,
        Opcode::CopyCrc,
        Opcode::CacheFlush,
    ];

    /// The opcode with this code.
    pub fn from_code(code: u8) -> Option<Opcode> {
        Opcode::ALL.into_iter().find(|o| *o as u8 == code)
    }

    /// Its name in a word.
    pub const fn name(self) -> &'static str {
        match self {
            Opcode::Noop => "noop",
            Opcode::Batch => "batch",
            Opcode::Drain => "drain",
            Opcode::MemoryMove => "memmove",
            Opcode::Fill => "fill",
            Opcode::Compare => "compare",
            Opcode::ComparePattern => "compare-pattern",
            Opcode::Dualcast => "dualcast",
            Opcode::CrcGen => "crc",
            Opcode::CopyCrc => "copy-crc",
            Opcode::CacheFlush => "cache-flush",
        }
    }

    /// The first quadword of the operations capability register.
    pub fn capabilities() -> u64 {
        Opcode::ALL.iter().fold(0, |caps, o| caps | 1 << *o as u8)
    }
}

/// The flags of a descriptor (section 8.1.2): bits 0..=23 of its second dword.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Flags {
    /// In a batch: wait for the descriptors before, and stop if one of them failed.
    pub fence: bool,
    /// A page fault suspends the descriptor until it has been handled.
    pub block_on_fault: bool,
    /// The completion record address is valid.
    pub record_valid: bool,
    /// Write a completion record on success too.
    pub request_record: bool,
    /// Raise an interrupt when done.
    pub request_interrupt: bool,
    /// Steering tag selector of the completion record.
    pub record_steering: bool,
    __: bool,
    /// Compare the result with the expected one.
    pub check_result: bool,
    /// Hint where the data should go; for Cache Flush, whether to invalidate.
    pub cache_control: bool,
    /// Traffic classes of the three addresses and of the record.
    #[bits(4)]
    pub traffic_classes: u8,
    /// Strict ordering of writes.
    pub strict_ordering: bool,
    /// Read the destination back before completion.
    pub dest_readback: bool,
    /// Steering tag selector of the destination.
    pub dest_steering: bool,
    /// Operation-specific flags.
    pub specific: u8,
    __: u8,
}

/// CRC: the seed is read from memory.
pub const CRC_READ_SEED: u8 = 1 << 0;
/// CRC: seed and result are neither inverted nor reflected.
pub const CRC_BYPASS_INVERSION: u8 = 1 << 1;
/// CRC: the bits of the data are not reflected.
pub const CRC_BYPASS_REFLECTION: u8 = 1 << 2;

/// A descriptor. Fields that operations give different names have methods for each name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// PASID that the client wrote; ignored by dedicated queues.
    pub pasid: u32,
    /// Privileged bit that the client wrote; ignored by dedicated queues.
    pub privileged: bool,
    /// Flags.
    pub flags: Flags,
    /// An [`Opcode`], unchecked.
    pub opcode: u8,
    /// Where the completion record goes; aligned to 32 bytes.
    pub record_addr: u64,
    /// Source address, fill pattern, or list of a batch.
    pub source: u64,
    /// Destination, second source, or comparison pattern.
    pub destination: u64,
    /// Bytes, or descriptors of a batch.
    pub size: u32,
    /// Interrupt handle: an MSI-X vector index of the client's device.
    pub int_handle: u16,
    /// Bytes 40..=47: expected result, second destination, CRC seed.
    pub specific0: u64,
    /// Bytes 48..=55: address of the CRC seed.
    pub specific1: u64,
    /// Bytes 56..=63.
    pub specific2: u64,
}

impl Descriptor {
    /// The descriptor in `bytes`.
    pub fn from_bytes(bytes: &[u8; DESCRIPTOR_SIZE]) -> Self {
        let quadword = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        };
        let (first, sizes) = (quadword(0), quadword(32));
        Descriptor {
            pasid: (first & 0xf_ffff) as u32,
            privileged: first & 1 << 31 != 0,
            flags: Flags::from_bits((first >> 32) as u32 & 0xff_ffff),
            opcode: (first >> 56) as u8,
            record_addr: quadword(8),
            source: quadword(16),
            destination: quadword(24),
            size: sizes as u32,
            int_handle: (sizes >> 32) as u16,
            specific0: quadword(40),
            specific1: quadword(48),
            specific2: quadword(56),
        }
    }

    /// The bytes as a client stores them.
    pub fn to_bytes(self) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let first = u64::from(self.pasid & 0xf_ffff)
            | u64::from(self.privileged) << 31
            | u64::from(self.flags.into_bits() & 0xff_ffff) << 32
            | u64::from(self.opcode) << 56;
        let sizes = u64::from(self.size) | u64::from(self.int_handle) << 32;
        let fields = [
            first,
            self.record_addr,
            self.source,
            self.destination,
            sizes,
            self.specific0,
            self.specific1,
            self.specific2,
        ];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// A descriptor that asks for `opcode` and for a completion record at `record_addr`.
    pub fn new(opcode: Opcode, record_addr: u64) -> Self {
        Descriptor {
            opcode: opcode as u8,
            flags: Flags::new()
                .with_record_valid(true)
                .with_request_record(true),
            record_addr,
            ..Descriptor::default()
        }
    }

    /// Copies `size` bytes from `source` to `destination`.
    pub fn memory_move(destination: u64, source: u64, size: u32, record_addr: u64) -> Self {
        Descriptor {
            source,
            destination,
            size,
            ..Descriptor::new(Opcode::MemoryMove, record_addr)
        }
    }

    /// Fills `size` bytes at `destination` with `pattern`.
    pub fn fill(destination: u64, pattern: u64, size: u32, record_addr: u64) -> Self {
        Descriptor {
            source: pattern,
            destination,
            size,
            ..Descriptor::new(Opcode::Fill, record_addr)
        }
    }

    /// Compares `size` bytes at the two addresses.
    pub fn compare(a: u64, b: u64, size: u32, record_addr: u64) -> Self {
        Descriptor {
            source: a,
            destination: b,
            size,
            ..Descriptor::new(Opcode::Compare, record_addr)
        }
    }

    /// Runs the `count` descriptors at `list`.
    pub fn batch(list: u64, count: u32, record_addr: u64) -> Self {
        Descriptor {
            source: list,
            size: count,
            ..Descriptor::new(Opcode::Batch, record_addr)
        }
    }

    /// With an interrupt on MSI-X vector `vector` when done.
    #[must_use]
    pub fn with_interrupt(mut self, vector: u16) -> Self {
        self.flags.set_request_interrupt(true);
        self.int_handle = vector;
        self
    }

    /// With the fence flag.
    #[must_use]
    pub fn with_fence(mut self) -> Self {
        self.flags.set_fence(true);
        self
    }

    /// With the block-on-fault flag.
    #[must_use]
    pub fn with_block_on_fault(mut self) -> Self {
        self.flags.set_block_on_fault(true);
        self
    }

    /// Whether the completion record address has the alignment that it must have.
    pub const fn record_aligned(&self) -> bool {
        self.record_addr.is_multiple_of(RECORD_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_reads_back_as_it_was_written() {
        let descriptor = Descriptor {
            pasid: 0xabcde,
            privileged: true,
            specific0: 1,
            specific1: 2,
            specific2: 3,
            ..Descriptor::memory_move(0x2000, 0x1000, 77, 0x40).with_interrupt(5)
        };
        let bytes = descriptor.to_bytes();
        assert_eq!(bytes[..8], [0xde, 0xbc, 0x0a, 0x80, 0x1c, 0, 0, 3]);
        assert_eq!(bytes[32..38], [77, 0, 0, 0, 5, 0]);
        assert_eq!(Descriptor::from_bytes(&bytes), descriptor);
    }

    #[test]
    fn flags_have_the_numbers_of_the_kernel_header() {
        assert_eq!(Flags::new().with_fence(true).into_bits(), 0x1);
        assert_eq!(Flags::new().with_block_on_fault(true).into_bits(), 0x2);
        assert_eq!(Flags::new().with_record_valid(true).into_bits(), 0x4);
        assert_eq!(Flags::new().with_request_record(true).into_bits(), 0x8);
        assert_eq!(Flags::new().with_request_interrupt(true).into_bits(), 0x10);
        assert_eq!(Flags::new().with_check_result(true).into_bits(), 0x80);
        assert_eq!(Flags::new().with_cache_control(true).into_bits(), 0x100);
        assert_eq!(Flags::new().with_dest_readback(true).into_bits(), 0x4000);
        assert_eq!(Flags::new().with_specific(1).into_bits(), 0x1_0000);
    }

    #[test]
    fn the_capability_register_names_every_opcode() {
        assert_eq!(Opcode::capabilities(), 0x1_0003_027f);
    }
}
