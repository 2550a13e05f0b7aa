//! Where what a function has lies: BARs, the MSI-X table, virtual functions; and what cannot be so.

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

    /// Whether the table and its pending bits fit into `bar`.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub(super) fn check(&self, bar: Option<Bar>) -> Result<(), MsixError> {
        let bar = bar.ok_or(MsixError::NoBar { bar: self.bar })?;
        let (table, pending) = (self.table, self.pending);
        let table_end = table.saturating_add(self.table_bytes());
        let pending_end = pending.saturating_add(self.pending_bytes());
        if !(1..=2048).contains(&self.count) {
            return Err(MsixError::Count { count: self.count });
        }
        if (table | pending) & 7 != 0 {
            return Err(MsixError::Misaligned { table, pending });
        }
        if table_end > pending && pending_end > table {
            return Err(MsixError::Overlap);
        }
        let (end, size) = (table_end.max(pending_end), bar.size);
        if end > size.min(1 << 32) {
            return Err(MsixError::BeyondBar { end, size });
        }
        Ok(())
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

/// A function cannot look like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The size of a BAR is no power of two of at least 16 bytes, or does not fit its width.
    #[error("BAR {bar} cannot have {size:#x} bytes: a power of two from 16 to {limit:#x}")]
    BarSize {
        /// The BAR.
        bar: u8,
        /// Bytes asked for.
        size: u64,
        /// The most for a BAR of its width.
        limit: u64,
    },
    /// There is no such BAR, or it is in use, perhaps as the upper half of a 64-bit one.
    #[error("BAR {bar} does not exist or is in use")]
    BarTaken {
        /// The BAR.
        bar: u8,
    },
    /// The MSI-X table or its pending bits cannot lie there.
    #[error(transparent)]
    Msix(#[from] MsixError),
    /// No room is left for a capability, or bytes of the device's own overlap one.
    #[error("configuration space has no room for {len} bytes at {offset:#x}")]
    Full {
        /// Offset of the first byte.
        offset: usize,
        /// Bytes asked for.
        len: usize,
    },
}

/// The MSI-X table and its pending bits cannot lie there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsixError {
    /// There is no such BAR.
    #[error("the MSI-X table is in BAR {bar}, which does not exist")]
    NoBar {
        /// The BAR.
        bar: u8,
    },
    /// There are no vectors, or more than 2048.
    #[error("MSI-X cannot have {count} vectors: 1 to 2048")]
    Count {
        /// Vectors asked for.
        count: u16,
    },
    /// An offset is no multiple of 8 bytes.
    #[error(
        "the MSI-X table at {table:#x} and its pending bits at {pending:#x} must be multiples of 8"
    )]
    Misaligned {
        /// Offset of the table.
        table: u64,
        /// Offset of the pending bits.
        pending: u64,
    },
    /// Table and pending bits overlap.
    #[error("the MSI-X table and its pending bits overlap")]
    Overlap,
    /// They do not end inside of the BAR, and of the first 4 GiB.
    #[error("the MSI-X table and its pending bits end at {end:#x}, in a BAR of {size:#x} bytes")]
    BeyondBar {
        /// One past the last byte.
        end: u64,
        /// Bytes of the BAR.
        size: u64,
    },
}
