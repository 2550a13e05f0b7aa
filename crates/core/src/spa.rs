//! The system physical address (SPA) space: where page-table entries lead.
//!
//! An SPA has meaning only inside a *registered* range. Looking one up is one load: the space is cut
//! into windows of 1 GiB, and a registration owns whole windows. It starts at a chosen offset inside
//! its first window (the *phase*), so that memory whose own address is congruent modulo 1 GiB can be
//! mapped with leaves of every size. A number that is not registered resolves to nothing, in every
//! kind of domain: no device ever reaches the supervisor's own memory.
//!
//! Page tables are not in this space: a device cannot address them.
// UNSAFETY: a window keeps what its own backing said about itself; see `Window::new`.
#![allow(unsafe_code)]

use std::{fmt, mem, sync::Arc};

use crate::{
    failpoint::{self, OutOfMemory},
    grace::{Grace, Guard, ProtectedTable},
    host::Worker,
    memory::{Backing, InnerCopy, Memory, MemoryGone, RawBytes, RemoteMemory, RemotePlace},
    range::AddrRange,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

mod kept;

pub use kept::{KeptPlaces, KeptSlots};

/// Width of a system physical address in bits: 256 TiB. A model checker makes a new space for every
/// interleaving and gets one of 64 windows.
pub const SPA_BITS: u32 = if cfg!(ioasid_shuttle) { 36 } else { 48 };

/// Bytes in a window, the unit of registration: the largest leaf of the formats in common use.
pub const WINDOW_SIZE: u64 = 1 << WINDOW_SHIFT;

const WINDOW_SHIFT: u32 = 30;
const WINDOWS: usize = 1 << (SPA_BITS - WINDOW_SHIFT);

/// Why memory could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The space is full.
    #[error("no free run of {windows} windows of 1 GiB in the system physical address space")]
    SpaceFull {
        /// Windows that were asked for.
        windows: usize,
    },
    /// The backing is empty, or ends beyond the largest address.
    #[error("{size:#x} bytes at offset {phase:#x} of a window cannot be registered")]
    BadSize {
        /// Size of the backing in bytes.
        size: u64,
        /// Offset in the first window.
        phase: u64,
    },
    /// No memory for the registration.
    #[error("no memory to register a range")]
    NoMemory(#[from] OutOfMemory),
}

struct Window {
    range: AddrRange,
    /// The bytes, if they are directly addressable: asked for once, not for each lookup. Valid as
    /// long as the window; never lent for longer.
    direct: Option<RawBytes<'static>>,
    backing: Arc<dyn Backing>,
}

impl Window {
    fn new(range: AddrRange, backing: Arc<dyn Backing>) -> Self {
        let direct = match backing.memory() {
            Memory::Direct(bytes) => {
                // SAFETY: the bytes are valid while the backing is borrowed. This borrow lasts as
                // long as the window, whose reference keeps the backing alive and in place, and ends
                // with it: `direct` is private and leaves `SpaSpace::resolve_direct` with the
                // lifetime of a guard that keeps the window.
                let bytes = unsafe { mem::transmute::<RawBytes<'_>, RawBytes<'static>>(bytes) };
                Some(bytes)
            }
            Memory::Remote(_) => None,
        };
        Window {
            range,
            direct,
            backing,
        }
    }
}

/// What an SPA means.
#[derive(Clone, Debug)]
pub enum Resolved<'g> {
    /// Bytes that can be copied at once.
    Direct(RawBytes<'g>),
    /// Bytes of another process.
    Remote {
        /// The memory. It outlives the guard, which cannot be kept while a copy blocks.
        memory: SharedRemote,
        /// Offset of the address inside it, in bytes.
        offset: u64,
        /// Bytes from there to the end of what was asked for or of the registration.
        len: u64,
    },
}

/// A counted reference to a registered [`RemoteMemory`].
#[derive(Clone, Debug)]
pub struct SharedRemote(Arc<dyn Backing>);

impl SharedRemote {
    fn memory(&self) -> Option<&dyn RemoteMemory> {
        match self.0.memory() {
            Memory::Remote(memory) => Some(memory),
            // A backing is reached always the same way, so this does not happen.
            Memory::Direct(_) => None,
        }
    }

    /// As [`RemoteMemory::read`]; may block for ever.
    ///
    /// # Errors
    /// [`MemoryGone`] if the other process has unmapped it or is gone.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let memory = self.memory().ok_or(MemoryGone { done: 0 })?;
        memory.read(offset, dst)
    }

    /// As [`RemoteMemory::write`]; may block for ever.
    ///
    /// # Errors
    /// As for reading.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let memory = self.memory().ok_or(MemoryGone { done: 0 })?;
        memory.write(offset, src)
    }

    /// As [`RemoteMemory::read_into`]; may block for ever.
    ///
    /// # Errors
    /// As for [`RemoteMemory::read_into`].
    pub fn read_into(
        &self,
        offset: u64,
        dst: RawBytes<'_>,
        buffer: &mut [u8],
    ) -> Result<(), MemoryGone> {
        let memory = self.memory().ok_or(MemoryGone { done: 0 })?;
        memory.read_into(offset, dst, buffer)
    }

    /// As [`RemoteMemory::write_from`]; may block for ever.
    ///
    /// # Errors
    /// As for [`RemoteMemory::write_from`].
    pub fn write_from(
        &self,
        offset: u64,
        src: RawBytes<'_>,
        buffer: &mut [u8],
    ) -> Result<(), MemoryGone> {
        let memory = self.memory().ok_or(MemoryGone { done: 0 })?;
        memory.write_from(offset, src, buffer)
    }

    /// As [`RemoteMemory::place`].
    pub fn place(&self, offset: u64) -> Option<RemotePlace> {
        self.memory()?.place(offset)
    }

    /// As [`RemoteMemory::copy_inside`].
    pub fn copy_inside(&self, copies: &mut [InnerCopy]) -> bool {
        self.memory()
            .is_some_and(|memory| memory.copy_inside(copies))
    }

    /// The thread that serves the owner of this memory.
    pub fn worker(&self) -> Option<&Arc<dyn Worker>> {
        self.memory().map(RemoteMemory::worker)
    }
}

/// Directly addressable bytes, kept for a copy that outlasts the guard under which they were found.
#[derive(Clone, Debug)]
pub struct KeptBytes {
    backing: Arc<dyn Backing>,
    offset: usize,
    len: usize,
}

impl KeptBytes {
    /// The bytes.
    ///
    /// # Errors
    /// [`MemoryGone`]: never, as a backing is reached always the same way.
    pub fn bytes(&self) -> Result<RawBytes<'_>, MemoryGone> {
        let bytes = match self.backing.memory() {
            Memory::Direct(bytes) => bytes.slice(self.offset, self.len),
            Memory::Remote(_) => None,
        };
        bytes.ok_or(MemoryGone { done: 0 })
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there are none; never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The registered ranges of one machine.
pub struct SpaSpace {
    windows: ProtectedTable<Window>,
    free: Mutex<FreeWindows>,
    /// How many registrations have gone: what [`KeptPlaces`] look at.
    gone: AtomicU64,
}

/// Which windows are taken. Window 0 is never given, so that SPA 0 is never registered.
struct FreeWindows {
    taken: Vec<u64>,
    next: usize,
    used: usize,
}

impl FreeWindows {
    fn is_taken(&self, window: usize) -> bool {
        self.taken[window / 64] & 1 << (window % 64) != 0
    }

    fn set(&mut self, first: usize, count: usize, taken: bool) {
        for window in first..first + count {
            let bit = 1 << (window % 64);
            if taken {
                self.taken[window / 64] |= bit;
            } else {
                self.taken[window / 64] &= !bit;
            }
        }
        if taken {
            self.used += count;
        } else {
            self.used -= count;
        }
    }

    /// First free run of `count`, searched from the last one given, then from the start.
    fn find(&self, count: usize) -> Option<usize> {
        let search = |from: usize| {
            let (mut start, mut window) = (from, from);
            while start + count <= WINDOWS {
                if window == start + count {
                    return Some(start);
                }
                if window % 64 == 0 && window == start && self.taken[window / 64] == u64::MAX {
                    window += 64;
                    start = window;
                } else if self.is_taken(window) {
                    window += 1;
                    start = window;
                } else {
                    window += 1;
                }
            }
            None
        };
        search(self.next).or_else(|| search(1))
    }
}

impl SpaSpace {
    /// An empty space whose readers are those of `grace`.
    pub fn new(grace: Arc<Grace>) -> Arc<Self> {
        let mut free = FreeWindows {
            taken: vec![0; WINDOWS / 64],
            next: 1,
            used: 0,
        };
        free.set(0, 1, true);
        Arc::new(SpaSpace {
            windows: ProtectedTable::new(grace, WINDOWS),
            free: Mutex::new(free),
            gone: AtomicU64::new(0),
        })
    }

    /// Gives `backing` a range whose start is `phase` modulo 1 GiB.
    ///
    /// # Errors
    /// [`RegisterError`]; [`RegisterError::SpaceFull`] if there is no free run of windows.
    pub fn register(
        self: &Arc<Self>,
        backing: Arc<dyn Backing>,
        phase: u64,
    ) -> Result<SpaRange, RegisterError> {
        let phase = phase & (WINDOW_SIZE - 1);
        let size = backing.size();
        let count = match size.checked_add(phase) {
            Some(end) if size > 0 => end.div_ceil(WINDOW_SIZE) as usize,
            _ => return Err(RegisterError::BadSize { size, phase }),
        };
        failpoint::allocation()?;
        let full = RegisterError::SpaceFull { windows: count };
        let first = {
            let mut free = self.free.lock();
            let first = free.find(count).ok_or(full)?;
            free.set(first, count, true);
            free.next = first + count;
            first
        };
        let start = ((first as u64) << WINDOW_SHIFT) + phase;
        let range = AddrRange::from_len(start, size).ok_or(full)?;
        let window = Arc::new(Window::new(range, backing));
        for index in first..first + count {
            self.windows.swap(index, Some(Arc::clone(&window)));
        }
        Ok(SpaRange {
            space: Arc::clone(self),
            window,
            range,
            first,
            count,
        })
    }

    /// What the `len` bytes at `spa` are: as many of them as lie in one registration. `None` if
    /// `spa` is not registered or `len` is 0.
    pub fn resolve<'g>(&'g self, guard: &'g Guard<'_>, spa: u64, len: u64) -> Option<Resolved<'g>> {
        if let Some(bytes) = self.resolve_direct(guard, spa, len) {
            return Some(Resolved::Direct(bytes));
        }
        let index = usize::try_from(spa >> WINDOW_SHIFT).ok()?;
        let window = self.windows.load(index, guard)?;
        if !window.range.contains(spa) || len == 0 || window.direct.is_some() {
            return None;
        }
        let offset = spa - window.range.start();
        let len = len.min((window.range.last() - spa).saturating_add(1));
        Some(Resolved::Remote {
            memory: SharedRemote(Arc::clone(&window.backing)),
            offset,
            len,
        })
    }

    /// As [`SpaSpace::resolve`] for bytes that can be copied at once; `None` for all others.
    #[inline(always)]
    pub fn resolve_direct<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        spa: u64,
        len: u64,
    ) -> Option<RawBytes<'g>> {
        let index = usize::try_from(spa >> WINDOW_SHIFT).ok()?;
        let window = self.windows.load(index, guard)?;
        let bytes = window.direct.as_ref()?;
        if !window.range.contains(spa) || len == 0 {
            return None;
        }
        let offset = usize::try_from(spa - window.range.start()).ok()?;
        let rest = bytes.len().checked_sub(offset)?;
        bytes.slice(offset, rest.min(usize::try_from(len).ok()?))
    }

    /// As [`SpaSpace::resolve_direct`], for a copy that outlasts the guard. It keeps the memory, not its
    /// address: that changes of the domain wait for the copy is the caller's business.
    pub fn keep_direct(&self, guard: &Guard<'_>, spa: u64, len: u64) -> Option<KeptBytes> {
        let len = self.resolve_direct(guard, spa, len)?.len();
        let index = usize::try_from(spa >> WINDOW_SHIFT).ok()?;
        let window = self.windows.load(index, guard)?;
        let offset = usize::try_from(spa.checked_sub(window.range.start())?).ok()?;
        let backing = Arc::clone(&window.backing);
        Some(KeptBytes {
            backing,
            offset,
            len,
        })
    }

    /// Panics if `guard` does not protect lookups here.
    #[inline]
    fn assert_reader(&self, guard: &Guard<'_>) {
        self.windows.assert_reader(guard);
    }

    /// The grace period that protects lookups.
    pub fn grace(&self) -> &Arc<Grace> {
        self.windows.grace()
    }

    /// Windows in use.
    pub fn used_windows(&self) -> usize {
        self.free.lock().used - 1
    }
}

impl fmt::Debug for SpaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpaSpace")
            .field("windows", &self.used_windows())
            .finish_non_exhaustive()
    }
}

/// A registered range. Dropping it makes the addresses meaningless at once; the backing goes after
/// the grace period.
pub struct SpaRange {
    space: Arc<SpaSpace>,
    window: Arc<Window>,
    range: AddrRange,
    first: usize,
    count: usize,
}

impl SpaRange {
    /// First address.
    pub fn start(&self) -> u64 {
        self.range.start()
    }

    /// The addresses.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// The bytes, for software that holds the registration: no guard is needed, and remote memory
    /// may block as long as it likes.
    pub fn memory(&self) -> Memory<'_> {
        self.window.backing.memory()
    }
}

impl Drop for SpaRange {
    fn drop(&mut self) {
        for index in self.first..self.first + self.count {
            self.space.windows.swap(index, None);
        }
        // After the cells are empty and before readers are looked for: see `KeptPlaces`.
        self.space.gone.fetch_add(1, Ordering::SeqCst);
        let windows = FreeLater {
            _window: Arc::clone(&self.window),
            space: Arc::clone(&self.space),
            first: self.first,
            count: self.count,
        };
        self.space.grace().retire(Box::new(windows));
    }
}

/// Gives windows back after the grace period: until then a reader may still hold their numbers, and
/// the bytes that it has kept.
struct FreeLater {
    _window: Arc<Window>,
    space: Arc<SpaSpace>,
    first: usize,
    count: usize,
}

impl Drop for FreeLater {
    fn drop(&mut self) {
        self.space.free.lock().set(self.first, self.count, false);
    }
}

impl fmt::Debug for SpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpaRange({})", self.range)
    }
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;
    use crate::memory::{OwnMemory, PAGE_SIZE};

    const PAGE: usize = PAGE_SIZE as usize;

    fn space() -> Arc<SpaSpace> {
        SpaSpace::new(Grace::new())
    }

    #[test]
    fn a_registered_range_resolves_and_nothing_else_does() {
        let space = space();
        let memory = OwnMemory::new(8192);
        memory.write(PAGE, b"here");
        let range = space.register(memory, 0x12_3000).unwrap();
        assert_eq!(range.start() % WINDOW_SIZE, 0x12_3000);
        let mut slot = space.grace().slot();
        let guard = slot.enter();
        let Some(Resolved::Direct(bytes)) =
            space.resolve(&guard, range.start() + PAGE_SIZE, 1 << 20)
        else {
            panic!("registered memory resolves")
        };
        assert_eq!(bytes.len(), 4096, "clipped to the registration");
        let mut found = [0; 4];
        bytes.read(&mut found).unwrap();
        assert_eq!(&found, b"here");
        for outside in [
            0,
            range.start() - 1,
            range.range().last() + 1,
            u64::MAX,
            1 << SPA_BITS,
        ] {
            assert!(space.resolve(&guard, outside, 1).is_none(), "{outside:#x}");
        }
    }

    #[test]
    fn a_dropped_range_is_gone_for_lookups_and_its_memory_after_the_guards() {
        let space = space();
        let memory = OwnMemory::new(PAGE);
        let range = space.register(memory.clone(), 0).unwrap();
        let start = range.start();
        let mut slot = space.grace().slot();
        let guard = slot.enter();
        let held = space.resolve(&guard, start, 1);
        drop(range);
        assert!(space.resolve(&guard, start, 1).is_none());
        assert!(held.is_some());
        assert!(Arc::strong_count(&memory) > 1, "a guard is in flight");
        drop(guard);
        space.grace().collect();
        assert_eq!(Arc::strong_count(&memory), 1);
        assert_eq!(space.used_windows(), 0);
    }

    #[test]
    fn windows_are_reused_and_the_space_can_be_full() {
        let space = space();
        let memory = OwnMemory::new(PAGE);
        let mut ranges: Vec<_> = (1..WINDOWS)
            .map(|_| space.register(memory.clone(), 0).unwrap())
            .collect();
        assert!(space.register(memory.clone(), 0).is_err());
        let freed = ranges.swap_remove(77).start();
        assert_eq!(space.register(memory, 0).unwrap().start(), freed);
    }
}
