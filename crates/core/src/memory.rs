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
//! [`RawBytes::new`] is where the promise is made: the range stays mapped (or its loss is recovered
//! by the `RawCopy`) for the lifetime in the type. Every other operation stays inside the range.
// UNSAFETY: raw copies; see the safety argument above.
#![allow(unsafe_code)]

mod bounce;

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    any::Any,
    fmt,
    marker::PhantomData,
    ptr::NonNull,
    sync::Arc,
    sync::atomic::{Ordering, compiler_fence, fence},
};

use crate::{
    access::Prot,
    failpoint::OutOfMemory,
    host::Worker,
    spa::{RegisterError, SpaRange, SpaSpace},
};

/// Copies between raw addresses, where either side may change or (for some implementations) vanish.
///
/// # Safety
/// `copy` must behave as `memmove` for the first `n` bytes, where `n` is its result, must touch no
/// other byte, and must return `len` unless the memory faulted.
pub unsafe trait RawCopy: Send + Sync {
    /// Copies up to `len` bytes and returns how many were copied.
    ///
    /// # Safety
    /// `src..src+len` must be readable and `dst..dst+len` writable, except that an implementation
    /// with [`RawCopy::recovers`] may be given ranges whose pages are gone.
    unsafe fn copy(&self, dst: *mut u8, src: *const u8, len: usize) -> usize;

    /// Whether a page that is gone ends the copy early instead of killing the process.
    fn recovers(&self) -> bool;
}

/// [`RawCopy`] for memory that never goes away: our own.
#[derive(Clone, Copy, Debug)]
pub struct PlainCopy;

// SAFETY: `ptr::copy` is memmove and completes.
unsafe impl RawCopy for PlainCopy {
    #[inline]
    unsafe fn copy(&self, dst: *mut u8, src: *const u8, len: usize) -> usize {
        // Others change these bytes: a copy made before or after says nothing about this one, so the
        // compiler may neither merge it with another nor move it out of a loop.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the caller promises both ranges; they may overlap.
        unsafe { std::ptr::copy(src, dst, len) };
        compiler_fence(Ordering::SeqCst);
        len
    }

    fn recovers(&self) -> bool {
        false
    }
}

/// The copy stopped because a page behind the memory is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory is gone after {done} bytes")]
pub struct MemoryGone {
    /// Bytes copied before.
    pub done: usize,
}

impl MemoryGone {
    /// The same, for the rest of a copy of which `before` bytes had been made.
    #[must_use]
    pub const fn after(self, before: usize) -> Self {
        MemoryGone {
            done: before + self.done,
        }
    }
}

/// Directly addressable bytes that others may change; valid for `'a`.
#[derive(Clone, Copy)]
pub struct RawBytes<'a> {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    copier: &'static dyn RawCopy,
    alive: PhantomData<&'a ()>,
}

// SAFETY: the bytes may be touched from any thread, and are only touched by raw copies.
unsafe impl Send for RawBytes<'_> {}
// SAFETY: as above.
unsafe impl Sync for RawBytes<'_> {}

impl<'a> RawBytes<'a> {
    /// The `len` bytes from `base`.
    ///
    /// # Safety
    /// For the whole of `'a` the range must stay mapped, readable, and writable if `writable`; pages
    /// behind it may vanish only if `copier` recovers from that. No Rust reference to any of its
    /// bytes may exist.
    pub const unsafe fn new(
        base: NonNull<u8>,
        len: usize,
        writable: bool,
        copier: &'static dyn RawCopy,
    ) -> Self {
        RawBytes {
            base,
            len,
            writable,
            copier,
            alive: PhantomData,
        }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether writes are allowed.
    pub const fn writable(&self) -> bool {
        self.writable
    }

    /// `len` bytes from `offset`; `None` if they do not all lie inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<RawBytes<'a>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, so the result is inside the range or one past its end.
        let base = unsafe { self.base.add(offset) };
        Some(RawBytes { base, len, ..*self })
    }

    /// Copies into `dst`, as many bytes as both have.
    ///
    /// # Errors
    /// [`MemoryGone`] if a page behind the bytes has vanished.
    pub fn read(&self, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let len = self.len.min(dst.len());
        // SAFETY: source inside our range (see `new`), destination an exclusive slice of at least
        // `len` bytes; they cannot overlap, as no reference to our bytes exists.
        let done = unsafe { self.copier.copy(dst.as_mut_ptr(), self.base.as_ptr(), len) };
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    /// Copies from `src`, as many bytes as both have.
    ///
    /// # Errors
    /// [`MemoryGone`] if a page behind the bytes has vanished, or if they are read-only (0 done).
    pub fn write(&self, src: &[u8]) -> Result<(), MemoryGone> {
        if !self.writable {
            return Err(MemoryGone { done: 0 });
        }
        let len = self.len.min(src.len());
        // SAFETY: destination inside our range and writable (see `new`), source a slice of at least
        // `len` bytes.
        let done = unsafe { self.copier.copy(self.base.as_ptr(), src.as_ptr(), len) };
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    /// Copies from other raw bytes, as many as both have; overlap is allowed.
    ///
    /// # Errors
    /// [`MemoryGone`] if a page on either side has vanished, or if these bytes are read-only.
    pub fn copy_from(&self, src: RawBytes<'_>) -> Result<(), MemoryGone> {
        if !self.writable {
            return Err(MemoryGone { done: 0 });
        }
        let len = self.len.min(src.len);
        let copier = if self.copier.recovers() {
            self.copier
        } else {
            src.copier
        };
        // SAFETY: both ranges are valid as promised in `new`; if either may vanish, `copier` is one
        // that recovers, since that side's own copier does.
        let done = unsafe { copier.copy(self.base.as_ptr(), src.base.as_ptr(), len) };
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    /// Writes the first byte after everything written before by this thread: the byte that shows
    /// another CPU that a record is complete.
    ///
    /// # Errors
    /// As [`RawBytes::write`].
    pub fn publish(&self, byte: u8) -> Result<(), MemoryGone> {
        fence(Ordering::Release);
        self.write(std::slice::from_ref(&byte))
    }
}

impl fmt::Debug for RawBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No address: it would leak our layout into logs that clients may read.
        f.debug_struct("RawBytes")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

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
