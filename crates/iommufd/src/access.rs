//! Access objects: memory of an IOAS for whoever needs no page table - an emulated device whose
//! "DMA" is copied by software, or a queue that hardware reads by physical address.
//!
//! An access object has an id in the object table like everything else, is attached to one IOAS at a
//! time, and either copies bytes ([`Access::read`], [`Access::write`]) or pins pages
//! ([`Access::pin`]). A pin keeps system physical addresses valid until it is dropped; an UNMAP of
//! the area asks its holder to drop it ([`AccessUser::unmap`]) and waits for that, with a limit.
//! (drivers/iommu/iommufd/device.c, second half.)

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use ioasid_core::{
    AddrRange, failpoint,
    memory::{MemoryGone, PAGE_SIZE, PinError},
    sync::Mutex,
};

use crate::{
    context::Context,
    error::Error,
    ioas::{Area, Ioas},
    object::{Object, ObjectId},
    pages::Run,
};

/// Whoever uses an [`Access`].
pub trait AccessUser: Send + Sync + fmt::Debug {
    /// Drops every [`PinnedPages`] that has an address in `range`, before it returns. New pins there
    /// are refused from now on. Called with no lock held, from any thread.
    fn unmap(&self, range: AddrRange);
}

/// What an access object is for.
#[derive(Clone, Debug)]
pub enum AccessKind {
    /// Copies bytes, at any address.
    Copies,
    /// Pins whole pages: mappings of the IOAS must be aligned to pages.
    Pins(Arc<dyn AccessUser>),
    /// Pins whole pages for hardware and never lets go of them: UNMAP is refused. The owner of such
    /// an access object is an object of the same file, and does not keep the file.
    Locks,
}

/// The object behind an [`Access`].
pub(crate) struct AccessObject {
    id: ObjectId,
    kind: AccessKind,
    /// What it is attached to. Held through a whole attach or detach.
    ioas: Mutex<Option<Arc<Ioas>>>,
}

impl AccessObject {
    /// Whether mappings must be aligned to pages for it.
    pub(crate) fn pins(&self) -> bool {
        !matches!(self.kind, AccessKind::Copies)
    }

    /// Whether it keeps the file open: its owner is outside.
    pub(crate) fn keeps_file(&self) -> bool {
        !matches!(self.kind, AccessKind::Locks)
    }

    /// Asks the user to let go of the pages in `range`.
    pub(crate) fn tell(&self, range: AddrRange) {
        if let AccessKind::Pins(user) = &self.kind {
            user.unmap(range);
        }
    }

    fn attached(&self) -> Result<Arc<Ioas>, Error> {
        self.ioas.lock().clone().ok_or(Error::NotAttached)
    }
}

impl fmt::Debug for AccessObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessObject")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// An access object of a [`Context`]. Dropping it detaches and takes the object away; pins are to be
/// dropped before.
pub struct Access {
    context: Arc<Context>,
    object: Arc<AccessObject>,
}

impl Context {
    /// An access object that is attached to nothing. While it lives the file's objects stay, even
    /// after its last descriptor is gone ([`AccessKind::Locks`] apart).
    ///
    /// # Errors
    /// [`Error::NoIds`], [`Error::Closed`].
    pub fn create_access(self: &Arc<Self>, kind: AccessKind) -> Result<Access, Error> {
        let mut objects = self.open_objects()?;
        let id = objects.reserve()?;
        let object = Arc::new(AccessObject {
            id,
            kind,
            ioas: Mutex::new(None),
        });
        objects.install(id, Object::Access(Arc::clone(&object)));
        // Its owner is a user: DESTROY cannot take it away.
        objects.hold(id);
        Ok(Access {
            context: Arc::clone(self),
            object,
        })
    }
}

impl Access {
    /// The id of the access object.
    pub fn id(&self) -> ObjectId {
        self.object.id
    }

    /// Attaches to an IOAS.
    ///
    /// # Errors
    /// [`Error::AlreadyAttached`], [`Error::NoObject`], and [`Error::AddressInUse`] if it pins pages
    /// and a mapping is not aligned to pages.
    pub fn attach(&self, ioas: ObjectId) -> Result<(), Error> {
        let mut attached = self.object.ioas.lock();
        if attached.is_some() {
            return Err(Error::AlreadyAttached);
        }
        *attached = Some(self.join(ioas)?);
        Ok(())
    }

    /// Leaves its IOAS for another one. What was pinned is asked back; to itself nothing happens.
    ///
    /// # Errors
    /// [`Error::NotAttached`], and those of [`Access::attach`]: the old IOAS stays then.
    pub fn replace(&self, ioas: ObjectId) -> Result<(), Error> {
        let mut attached = self.object.ioas.lock();
        let old = attached.clone().ok_or(Error::NotAttached)?;
        let new = self.context.ioas(ioas)?;
        if Arc::ptr_eq(&old, &new) {
            return Ok(());
        }
        *attached = Some(self.join(ioas)?);
        drop(attached);
        self.leave(&old);
        Ok(())
    }

    /// Leaves its IOAS, if it has one.
    pub fn detach(&self) {
        let old = self.object.ioas.lock().take();
        if let Some(old) = old {
            self.leave(&old);
        }
    }

    fn join(&self, id: ObjectId) -> Result<Arc<Ioas>, Error> {
        let ioas = {
            let mut objects = self.context.objects.lock();
            let Some(Object::Ioas(ioas)) = objects.object(id) else {
                return Err(Error::NoObject(id));
            };
            objects.hold(id);
            ioas
        };
        let joined = ioas.join(&self.object);
        if let Err(error) = joined {
            self.context.objects.lock().put(id);
            return Err(error);
        }
        Ok(ioas)
    }

    fn leave(&self, ioas: &Ioas) {
        self.object.tell(AddrRange::ALL);
        ioas.state.lock().accesses.remove(&self.object.id);
        self.context.objects.lock().put(ioas.id());
    }

    /// Pins the pages of `len` bytes from `iova` on; to be written too if `write`.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::NotAccessible`] for an object that only copies,
    /// [`Error::Empty`], [`Error::Overflow`], [`Error::NotAttached`]; then area by area
    /// [`Error::NotAccessible`], [`Error::ReadOnlyPages`], [`Error::Pin`], and [`Error::NotMapped`]
    /// where there is none.
    pub fn pin(&self, iova: u64, len: u64, write: bool) -> Result<PinnedPages, Error> {
        if !self.object.pins() {
            return Err(Error::NotAccessible);
        }
        let range = checked(iova, len)?;
        let ioas = self.object.attached()?;
        let locks = matches!(self.object.kind, AccessKind::Locks);
        let mut pinned = PinnedPages {
            range,
            areas: Vec::new(),
        };
        // No unmap between the look at an area and the pin of its pages.
        let _change = ioas.change.lock();
        ioas.walk(range, write, &mut |area, offset, len, is_last| {
            // Whole pages only: at the start, and at the end of all areas but the last.
            let misaligned = |at: u64| !at.is_multiple_of(PAGE_SIZE);
            let end = offset.wrapping_add(len);
            if misaligned(offset) || misaligned(end) && !is_last {
                return Err(Error::NotAccessible);
            }
            failpoint::allocation()?;
            let run = area.pages.pin(offset, len)?;
            pinned.areas.push(PinnedArea {
                usage: Held::new(&area.usage, locks),
                pieces: run.pieces(offset, len),
                _run: run,
            });
            Ok(())
        })?;
        Ok(pinned)
    }

    /// Copies `dst.len()` bytes from `iova`.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Overflow`], [`Error::NotAttached`], then area by area
    /// [`Error::NotAccessible`], [`Error::ReadOnlyPages`] if it was not mapped to be read,
    /// [`Error::Pin`] if the memory is gone, and [`Error::NotMapped`]. What comes before is copied.
    pub fn read(&self, iova: u64, dst: &mut [u8]) -> Result<(), Error> {
        let mut rest = dst;
        self.copy(iova, rest.len() as u64, false, &mut |area, offset, len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            area.pages.read(offset, part)
        })
    }

    /// Copies `src` to `iova`.
    ///
    /// # Errors
    /// As for [`Access::read`].
    pub fn write(&self, iova: u64, src: &[u8]) -> Result<(), Error> {
        let mut rest = src;
        self.copy(iova, rest.len() as u64, true, &mut |area, offset, len| {
            let (part, after) = rest.split_at(len);
            rest = after;
            area.pages.write(offset, part)
        })
    }

    fn copy(
        &self,
        iova: u64,
        len: u64,
        write: bool,
        copy: &mut dyn FnMut(&Area, u64, usize) -> Result<(), MemoryGone>,
    ) -> Result<(), Error> {
        let range = checked(iova, len)?;
        let ioas = self.object.attached()?;
        // The memory may block, and with it maps and unmaps of this IOAS: it is of the same program.
        let _change = ioas.change.lock();
        ioas.walk(range, write, &mut |area, offset, len, _| {
            failpoint::allocation()?;
            // A slice is at most half of the address space.
            copy(area, offset, len as usize).map_err(|_| Error::Pin(PinError::Fault))
        })
    }
}

fn checked(iova: u64, len: u64) -> Result<AddrRange, Error> {
    if len == 0 {
        return Err(Error::Empty);
    }
    AddrRange::from_len(iova, len).ok_or(Error::Overflow)
}

/// Takes one area: the offset in its pages, the bytes, and whether the range ends there.
type Visit<'a> = dyn FnMut(&Area, u64, u64, bool) -> Result<(), Error> + 'a;

impl Ioas {
    fn join(&self, access: &Arc<AccessObject>) -> Result<(), Error> {
        let _change = self.change.lock();
        let mut state = self.state.lock();
        if access.pins() && !state.is_aligned(PAGE_SIZE) {
            return Err(Error::AddressInUse);
        }
        failpoint::allocation()?;
        state.accesses.insert(access.id, Arc::clone(access));
        Ok(())
    }

    /// Calls `visit` with each area that has an address in `range`, in order. The state is not
    /// locked meanwhile.
    ///
    /// # Errors
    /// What `visit` says, [`Error::NotAccessible`] for an area that is about to go,
    /// [`Error::ReadOnlyPages`], and [`Error::NotMapped`] at a hole.
    fn walk(&self, range: AddrRange, write: bool, visit: &mut Visit<'_>) -> Result<(), Error> {
        let mut next = range.start();
        loop {
            let rest = AddrRange::new(next, range.last()).ok_or(Error::NotMapped)?;
            let (area_range, area) = {
                let state = self.state.lock();
                let first = state.space.overlapping(rest).next();
                let first = first.filter(|(area, _)| area.contains(next));
                let (range, area) = first.ok_or(Error::NotMapped)?;
                (range, area.clone())
            };
            if area.usage.refuses_new() || !area.pages.is_accessible() {
                return Err(Error::NotAccessible);
            }
            let allowed = if write {
                area.prot.write && area.pages.writable()
            } else {
                area.prot.read
            };
            if !allowed {
                return Err(Error::ReadOnlyPages);
            }
            let last = area_range.last().min(range.last());
            let offset = area.offset.wrapping_add(next - area_range.start());
            let is_last = last == range.last();
            visit(&area, offset, last - next + 1, is_last)?;
            if is_last {
                return Ok(());
            }
            next = last + 1;
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.detach();
        self.context.objects.lock().forget(self.object.id);
        self.context.finish_close();
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.object, f)
    }
}

/// Who holds the pages of one area besides its domains.
#[derive(Debug, Default)]
pub(crate) struct AreaUse {
    users: AtomicU32,
    locks: AtomicU32,
    leaving: AtomicBool,
}

impl AreaUse {
    /// Whether hardware owns the pages.
    pub(crate) fn is_locked(&self) -> bool {
        self.locks.load(Ordering::Acquire) > 0
    }

    /// Whether an access object holds the pages. If so, nobody new may.
    pub(crate) fn refuse_new(&self) -> bool {
        let held = self.is_used();
        if held {
            self.leaving.store(true, Ordering::Release);
        }
        held
    }

    /// Whether an access object holds the pages.
    pub(crate) fn is_used(&self) -> bool {
        self.users.load(Ordering::Acquire) > 0
    }

    pub(crate) fn refuses_new(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }
}

/// One use of an area, ended by drop.
struct Held {
    usage: Arc<AreaUse>,
    locks: bool,
}

impl Held {
    fn new(usage: &Arc<AreaUse>, locks: bool) -> Self {
        usage.users.fetch_add(1, Ordering::AcqRel);
        if locks {
            usage.locks.fetch_add(1, Ordering::AcqRel);
        }
        Held {
            usage: Arc::clone(usage),
            locks,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.locks {
            self.usage.locks.fetch_sub(1, Ordering::AcqRel);
        }
        self.usage.users.fetch_sub(1, Ordering::AcqRel);
    }
}

struct PinnedArea {
    usage: Held,
    pieces: Vec<(u64, u64)>,
    _run: Arc<Run>,
}

/// Pages that an access object has pinned. Their system physical addresses stay valid until this is
/// dropped.
pub struct PinnedPages {
    range: AddrRange,
    areas: Vec<PinnedArea>,
}

impl PinnedPages {
    /// The addresses in the IOAS.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// The (system physical address, length) pieces behind the range, in order. Neighbours whose
    /// addresses touch are one piece.
    pub fn pieces(&self) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (spa, len) in self
            .areas
            .iter()
            .flat_map(|area| area.pieces.iter().copied())
        {
            match joined.last_mut() {
                Some((start, bytes)) if *start + *bytes == spa => *bytes += len,
                _ => joined.push((spa, len)),
            }
        }
        joined
    }

    /// Whether hardware owns them.
    pub fn are_locked(&self) -> bool {
        self.areas.iter().any(|area| area.usage.locks)
    }
}

impl fmt::Debug for PinnedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPages({})", self.range)
    }
}
