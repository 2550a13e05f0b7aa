//! Where what a function has lies: BARs, the MSI-X table, virtual functions.

use super::spec;

/// Memory behind one base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes, a power of two from 16.
    pub size: u64,
    /// The BAR takes two registers.
    pub is_64bit: bool,
    /// Reads have no side effects.
    pub prefetchable: bool,
    /// I/O ports, not memory: it cannot be mapped, and `PCI_COMMAND.MEM` does not concern it.
    pub is_io: bool,
    /// Aligned stores of 64 bytes reach the model as one store. VFIO on hardware has no such access
    /// by file descriptor (there, a portal is mapped and written with `MOVDIR64B`).
    pub wide_stores: bool,
}

impl Bar {
    /// A 64-bit prefetchable BAR of `size` bytes.
    pub const fn memory64(size: u64) -> Self {
        Bar {
            size,
            is_64bit: true,
            prefetchable: true,
            is_io: false,
            wide_stores: false,
        }
    }

    /// A 32-bit BAR of `size` bytes whose reads may have side effects.
    pub const fn memory32(size: u64) -> Self {
        Bar {
            is_64bit: false,
            prefetchable: false,
            ..Bar::memory64(size)
        }
    }

    /// I/O ports.
    pub const fn io(size: u64) -> Self {
        Bar {
            is_io: true,
            ..Bar::memory32(size)
        }
    }

    /// The bits below the address.
    pub(super) const fn flags(&self) -> u32 {
        (if self.is_io { spec::BAR_IO } else { 0 })
            | (if self.is_64bit { spec::BAR_64BIT } else { 0 })
            | (if self.prefetchable {
                spec::BAR_PREFETCHABLE
            } else {
                0
            })
    }

    /// The same BAR, with stores of 64 bytes.
    #[must_use]
    pub const fn with_wide_stores(mut self) -> Self {
        self.wide_stores = true;
        self
    }
}

/// Where the MSI-X table and its pending bits lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// The BAR of both.
    pub bar: u8,
    /// Offset of the table in the BAR, in bytes.
    pub table: u64,
    /// Offset of the pending bits in the BAR, in bytes.
    pub pending: u64,
    /// Vectors, 1..=2048.
    pub count: u16,
    /// Offset of the capability; chosen by the builder.
    pub(super) capability: usize,
}

impl MsixLayout {
    /// `count` vectors with their table and pending bits in `bar`.
    pub const fn new(bar: u8, table: u64, pending: u64, count: u16) -> Self {
        MsixLayout {
            bar,
            table,
            pending,
            count,
            capability: 0,
        }
    }

    /// Bytes of the table.
    pub const fn table_bytes(&self) -> u64 {
        self.count as u64 * spec::MSIX_ENTRY
    }

    /// Bytes of the pending bits.
    pub const fn pending_bytes(&self) -> u64 {
        self.count.div_ceil(64) as u64 * 8
    }
}

/// The virtual functions that a physical one can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SriovLayout {
    /// How many there can be.
    pub total: u16,
    /// Routing id of the first one, less that of the physical function.
    pub offset: u16,
    /// Routing ids from one to the next.
    pub stride: u16,
    /// Their device id; the vendor is the physical function's.
    pub device: u16,
    /// Their BARs: each takes the size for every one of them.
    pub bars: [Option<Bar>; 6],
}
