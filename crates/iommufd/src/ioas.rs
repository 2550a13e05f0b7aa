//! An I/O address space.

use ioasid_core::{AddrRange, Prot};

use crate::object::ObjectId;

/// Where and how to map pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapArgs {
    /// The IOVA, or `None` to let the IOAS choose one.
    pub iova: Option<u64>,
    /// Bytes to map.
    pub len: u64,
    /// Bytes of the page source to skip: where the mapping starts inside it.
    pub offset: u64,
    /// What devices may do.
    pub prot: Prot,
}

impl MapArgs {
    /// `len` bytes from the start of the source, at `iova`.
    pub const fn fixed(iova: u64, len: u64, prot: Prot) -> Self {
        MapArgs { iova: Some(iova), len, offset: 0, prot }
    }

    /// `len` bytes from the start of the source, where there is room.
    pub const fn anywhere(len: u64, prot: Prot) -> Self {
        MapArgs { iova: None, len, offset: 0, prot }
    }
}

/// What to copy from one IOAS to another (or the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyArgs {
    /// The IOAS to map in.
    pub dst: ObjectId,
    /// The IOAS that has the pages.
    pub src: ObjectId,
    /// The IOVA in `dst`, or `None` to let it choose one.
    pub dst_iova: Option<u64>,
    /// The IOVA in `src`.
    pub src_iova: u64,
    /// Bytes.
    pub len: u64,
    /// What devices may do.
    pub prot: Prot,
}

/// What can be mapped in an IOAS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IovaRanges {
    /// The ranges, ascending.
    pub ranges: Vec<AddrRange>,
    /// What start and length of a mapping must be multiples of, in bytes; 1 if anything goes.
    pub alignment: u64,
}
