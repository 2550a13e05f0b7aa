//! Bytes that someone else may change at any moment.
//!
//! The other side of a DMA is a program: it may write the same bytes while the engine copies them,
//! truncate the file behind them, or unmap them. So there is never a `&[u8]` over such memory, only
//! [`RawBytes`]: a pointer, a length, and copies through a [`RawCopy`], which reports how far it came
//! instead of trusting the memory to be there. (The argument is vm-memory's: a Rust reference
//! promises that nobody else writes; volatile copies promise nothing.)
//!
//! A [`Backing`] is memory that can be registered in the system physical address space
//! ([`crate::spa`]): either directly addressable, or [`RemoteMemory`], which belongs to another
//! process, is copied with two copies, and may block for ever. [`PageSource`] is where the pages of
//! a mapping come from before they have a system physical address.
//!
//! # Safety argument
//! [`OwnMemory`] is allocated once, freed on drop, and reached through [`RawBytes`] alone.
// UNSAFETY: an allocation; see the safety argument above.
#![allow(unsafe_code)]

mod bounce;
mod raw;

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    any::Any,
    fmt,
    ptr::NonNull,
    sync::Arc,
};

pub use raw::{Exchange, MemoryGone, PlainCopy, RawBytes, RawCopy};

use crate::{
    access::Prot,
    failpoint::OutOfMemory,
    host::Worker,
    spa::{RegisterError, SpaRange, SpaSpace},
};

/// Memory of another process. Every call may block for ever, so it is made only on the worker of
/// the client that owns the memory, never by an engine that serves others.
pub trait RemoteMemory: Send + Sync + fmt::Debug {
    /// Reads `dst.len()` bytes from `offset`.
    ///
    /// # Errors
    /// [`MemoryGone`] if the other process has unmapped it or is gone.
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone>;

    /// Writes `src` at `offset`.
    ///
    /// # Errors
    /// As for reading.
    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone>;

    /// Reads from `offset` into `dst`, as many bytes as that has: through `buffer`, which is not empty,
    /// unless the memory has a better way.
    ///
    /// # Errors
    /// [`MemoryGone`] as for reading, or if a page of `dst` is gone or all of it is read-only. What was
    /// read before has arrived.
    fn read_into(
        &self,
        offset: u64,
        dst: RawBytes<'_>,
        buffer: &mut [u8],
    ) -> Result<(), MemoryGone> {
        bounce::pull(dst, buffer, |done, buffer| {
            self.read(offset.saturating_add(done), buffer)
        })
    }

    /// Writes all bytes of `src` at `offset`; as [`RemoteMemory::read_into`].
    ///
    /// # Errors
    /// [`MemoryGone`] as for writing, or if a page of `src` is gone.
    fn write_from(
        &self,
        offset: u64,
        src: RawBytes<'_>,
        buffer: &mut [u8],
    ) -> Result<(), MemoryGone> {
        bounce::push(src, buffer, |done, buffer| {
            self.write(offset.saturating_add(done), buffer)
        })
    }

    /// The thread that serves the owner of this memory.
    fn worker(&self) -> &Arc<dyn Worker>;

    /// Where the byte at `offset` lies in the program, if it lies in one.
    fn place(&self, offset: u64) -> Option<RemotePlace> {
        let _ = offset;
        None
    }

    /// Makes these copies inside of the program whose memory this is, one after the other, where something
    /// makes them in place. It stops at the first that does not come to its end, whose cause is for
    /// [`RemoteMemory::read`] and [`RemoteMemory::write`] to find out. False if nothing does, or they are not
    /// worth it: then all are to be made another way, whatever part of them has been. May block as reading
    /// does.
    fn copy_inside(&self, copies: &mut [InnerCopy]) -> bool {
        let _ = copies;
        false
    }
}

/// A copy between two places of one program, which do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InnerCopy {
    /// Its address of the destination.
    pub dst: u64,
    /// Its address of the source.
    pub src: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes copied, the first ones.
    pub done: u64,
}

/// A byte of a program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemotePlace {
    /// Stands for the address space; no other has this number.
    pub space: u64,
    /// The address there.
    pub address: u64,
}

/// How the bytes of a backing are reached.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// By address.
    Direct(RawBytes<'a>),
    /// Through calls that may block.
    Remote(&'a dyn RemoteMemory),
}

/// Memory that can be registered in the system physical address space.
pub trait Backing: Send + Sync + fmt::Debug + 'static {
    /// Size in bytes, not 0; does not change.
    fn size(&self) -> u64;

    /// How its bytes are reached; always the same way.
    fn memory(&self) -> Memory<'_>;
}

/// Why pages could not be had. The variants are what the kernel tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Not mapped, or not with the permission that the mapping needs (EFAULT).
    #[error("the memory is not mapped with the permission that is asked for")]
    Fault,
    /// Out of memory, of system physical addresses, or over a limit (ENOMEM).
    #[error("no memory, or over a limit")]
    NoMemory,
    /// The range lies outside the object (EINVAL).
    #[error("the range lies outside the memory object")]
    OutOfRange,
    /// The exporter has taken the memory back (ENODEV).
    #[error("the memory was taken back")]
    Revoked,
}

/// To a program the address space is a kind of memory.
impl From<RegisterError> for PinError {
    fn from(_: RegisterError) -> Self {
        PinError::NoMemory
    }
}

impl From<OutOfMemory> for PinError {
    fn from(_: OutOfMemory) -> Self {
        PinError::NoMemory
    }
}

/// A run of pages that has a system physical address. The address stays valid while the extent (or
/// a clone of it) lives.
#[derive(Clone, Debug)]
pub struct Extent {
    /// First system physical address.
    pub spa: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// Keeps the range registered.
    pub hold: Arc<SpaRange>,
}

/// What a source has found out for one pin that spares the next the question.
///
/// Pins that follow one another in one call, as those of an attach do, share it. What it says is as old
/// as the beginning of the call: the pins are as if all were made then.
#[derive(Debug)]
pub struct PinBatch {
    known: Option<Box<dyn Any + Send>>,
    single: bool,
}

impl PinBatch {
    /// For many pins.
    pub const fn new() -> Self {
        PinBatch {
            known: None,
            single: false,
        }
    }

    /// For one pin: nothing is kept.
    pub const fn single() -> Self {
        PinBatch {
            known: None,
            single: true,
        }
    }

    /// What a source of the same kind has kept.
    pub fn known<T: Any>(&self) -> Option<&T> {
        self.known.as_ref()?.downcast_ref()
    }

    /// Keeps what `known` gives for the next pin.
    pub fn keep<T: Any + Send>(&mut self, known: impl FnOnce() -> T) {
        if !self.single {
            self.known = Some(Box::new(known()));
        }
    }
}

impl Default for PinBatch {
    fn default() -> Self {
        PinBatch::new()
    }
}

/// Where the pages of a mapping come from: a process's address range, a file, own memory.
pub trait PageSource: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// Gives `len` bytes from `offset` system physical addresses: what `pin_user_pages` does in the
    /// kernel. The extents cover the range in order and without gaps.
    ///
    /// # Errors
    /// See [`PinError`].
    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError>;

    /// As [`PageSource::pin`], one of many in a call.
    ///
    /// # Errors
    /// See [`PinError`].
    fn pin_next(
        &self,
        batch: &mut PinBatch,
        offset: u64,
        len: u64,
        prot: Prot,
    ) -> Result<Vec<Extent>, PinError> {
        let _ = batch;
        self.pin(offset, len, prot)
    }

    /// The low bits of the addresses of this source as its owner sees them, so that a chosen IOVA
    /// can be congruent to them (`iopt_alloc_iova` in the kernel): the user address of offset 0, or
    /// 0 where there is none.
    fn alignment_hint(&self) -> u64 {
        0
    }

    /// Whether the pages come from a file (`IOMMU_IOAS_CHANGE_PROCESS` allows only those).
    fn is_file(&self) -> bool {
        false
    }

    /// Whether the pages are a device's, handed on by a dma-buf: they are not pinned or counted, the
    /// processor does not touch them, and their exporter can take them back.
    fn is_device(&self) -> bool {
        false
    }

    /// Calls `on_revoke` once if the exporter takes the pages back; at once if it has.
    fn on_revoke(&self, on_revoke: Box<dyn Fn() + Send + Sync>) {
        drop(on_revoke);
    }

    /// Copies bytes out, for in-kernel users such as access objects. May block as the memory does.
    ///
    /// # Errors
    /// [`MemoryGone`] if the pages are not there.
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone>;

    /// Copies bytes in; as [`PageSource::read`].
    ///
    /// # Errors
    /// [`MemoryGone`] if the pages are not there or not writable.
    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone>;
}

/// Log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Page size of this machine's model: the smallest leaf of every format.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Zeroed, page-aligned memory of our own process.
pub struct OwnMemory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is reached only through raw copies, from any thread.
unsafe impl Send for OwnMemory {}
// SAFETY: as above.
unsafe impl Sync for OwnMemory {}

impl OwnMemory {
    /// `len` bytes, rounded up to whole pages, aligned to 2 MiB when that large.
    ///
    /// # Panics
    /// If `len` is 0 or does not fit an allocation: never called with a peer's number.
    pub fn new(len: usize) -> Arc<Self> {
        assert!(len > 0, "own memory of length 0");
        let page = PAGE_SIZE as usize;
        let align = if len >= 2 << 20 { 2 << 20 } else { page };
        let layout = Layout::from_size_align(len.next_multiple_of(page), align)
            .expect("own memory fits an allocation");
        // SAFETY: the layout's size is not 0.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        Arc::new(OwnMemory { base, layout })
    }

    /// The bytes.
    pub fn bytes(&self) -> RawBytes<'_> {
        // SAFETY: allocated in `new`, freed in `drop`, never lent as a reference.
        unsafe { RawBytes::new(self.base, self.layout.size(), true, &PlainCopy) }
    }

    /// Copies `dst.len()` bytes from `offset`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        let bytes = self
            .bytes()
            .slice(offset, dst.len())
            .expect("inside the memory");
        bytes.read(dst).expect("own memory stays");
    }

    /// Copies `src` to `offset`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn write(&self, offset: usize, src: &[u8]) {
        let bytes = self
            .bytes()
            .slice(offset, src.len())
            .expect("inside the memory");
        bytes.write(src).expect("own memory stays");
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for OwnMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnMemory")
            .field("len", &self.layout.size())
            .finish_non_exhaustive()
    }
}

impl Backing for OwnMemory {
    fn size(&self) -> u64 {
        self.layout.size() as u64
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Direct(self.bytes())
    }
}

/// Own memory with a system physical address: the page source of in-process users and tests.
#[derive(Clone, Debug)]
pub struct OwnPages {
    memory: Arc<OwnMemory>,
    range: Arc<SpaRange>,
}

impl OwnPages {
    /// `len` zeroed bytes, rounded up to whole pages, registered in `space`.
    ///
    /// # Errors
    /// [`PinError::NoMemory`] if the space has no free range.
    pub fn new(space: &Arc<SpaSpace>, len: usize) -> Result<Self, PinError> {
        let memory = OwnMemory::new(len);
        let range = space.register(memory.clone(), 0)?;
        Ok(OwnPages {
            memory,
            range: Arc::new(range),
        })
    }

    /// The memory itself.
    pub fn memory(&self) -> &Arc<OwnMemory> {
        &self.memory
    }

    /// First system physical address.
    pub fn spa(&self) -> u64 {
        self.range.start()
    }
}

impl PageSource for OwnPages {
    fn size(&self) -> u64 {
        Backing::size(&*self.memory)
    }

    fn pin(&self, offset: u64, len: u64, _prot: Prot) -> Result<Vec<Extent>, PinError> {
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= self.size() => Ok(vec![Extent {
                spa: self.range.start() + offset,
                len,
                hold: Arc::clone(&self.range),
            }]),
            _ => Err(PinError::OutOfRange),
        }
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|o| self.memory.bytes().slice(o, dst.len()));
        bytes.ok_or(MemoryGone { done: 0 })?.read(dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|o| self.memory.bytes().slice(o, src.len()));
        bytes.ok_or(MemoryGone { done: 0 })?.write(src)
    }
}
