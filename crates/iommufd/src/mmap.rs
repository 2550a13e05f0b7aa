//! Memory that a program maps from the `/dev/iommu` file itself: pages that a virtual IOMMU shares
//! with its owner.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    failpoint,
    memory::{Backing, OwnMemory, PAGE_SIZE},
    sync::Mutex,
};

use crate::{context::Context, error::Error, object::ObjectId, teardown::OpenFile};

#[derive(Debug)]
struct Region {
    memory: Arc<OwnMemory>,
    owner: ObjectId,
}

/// The offsets of one file that can be mapped.
#[derive(Debug, Default)]
pub(crate) struct MmapOffsets(Mutex<BTreeMap<u64, Region>>);

impl MmapOffsets {
    /// The first page is never given: an offset of 0 can mean "none".
    const FIRST: u64 = PAGE_SIZE;

    /// Takes the lowest free offsets.
    fn add(&self, owner: ObjectId, memory: Arc<OwnMemory>) -> Result<u64, Error> {
        let mut regions = self.0.lock();
        let mut offset = Self::FIRST;
        for (start, region) in regions.iter() {
            if start - offset >= memory.size() {
                break;
            }
            offset = start + region.memory.size();
        }
        offset.checked_add(memory.size()).ok_or(Error::NoSpace)?;
        failpoint::allocation()?;
        regions.insert(offset, Region { memory, owner });
        Ok(offset)
    }

    /// Gives back what `owner` took.
    pub(crate) fn remove(&self, owner: ObjectId) {
        self.0.lock().retain(|_, region| region.owner != owner);
    }

    fn find(&self, offset: u64, len: u64) -> Option<(Arc<OwnMemory>, ObjectId)> {
        let regions = self.0.lock();
        let region = regions.get(&offset)?;
        (region.memory.size() == len).then(|| (Arc::clone(&region.memory), region.owner))
    }
}

/// Where a virtual IOMMU that is being made can put memory for the program.
#[derive(Debug)]
pub struct MmapSpace<'a> {
    pub(crate) offsets: &'a MmapOffsets,
    pub(crate) owner: ObjectId,
}

impl MmapSpace<'_> {
    /// Lets the program map `memory`, whole pages, and returns the offset in the file at which. It
    /// is given back with the virtual IOMMU.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn add(&self, memory: Arc<OwnMemory>) -> Result<u64, Error> {
        self.offsets.add(self.owner, memory)
    }
}

/// What a program asks of mmap on a `/dev/iommu` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapRequest {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether stores of the program are to be seen by others.
    pub shared: bool,
    /// Whether the pages are to be executable.
    pub executable: bool,
}

/// Memory that a program has mapped. As long as it lives, the object that owns the memory cannot be
/// destroyed.
pub struct Mapped {
    file: OpenFile,
    owner: ObjectId,
    memory: Arc<OwnMemory>,
}

impl Mapped {
    /// The memory.
    pub fn memory(&self) -> &Arc<OwnMemory> {
        &self.memory
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped")
            .field("owner", &self.owner)
            .field("len", &self.memory.size())
            .finish_non_exhaustive()
    }
}

impl Clone for Mapped {
    /// A part of the mapping that was split off, or the copy of it in a forked process.
    fn clone(&self) -> Self {
        let context = self.file.context();
        context.objects.lock().hold(self.owner);
        Mapped {
            file: OpenFile::new(context),
            owner: self.owner,
            memory: Arc::clone(&self.memory),
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.file.context().objects.lock().put(self.owner);
    }
}

impl Context {
    /// mmap on the file: only what a virtual IOMMU offers, and only the whole of it.
    ///
    /// # Errors
    /// [`Error::BadMapping`] if the length is no multiple of a page or the mapping is private,
    /// [`Error::Executable`], [`Error::NoSuchOffset`].
    pub fn mmap(self: &Arc<Self>, request: MmapRequest) -> Result<Mapped, Error> {
        if !request.len.is_multiple_of(PAGE_SIZE) || !request.shared {
            return Err(Error::BadMapping);
        }
        if request.executable {
            return Err(Error::Executable);
        }
        let mut objects = self.objects.lock();
        let found = self.mmap_offsets().find(request.offset, request.len);
        let (memory, owner) = found.ok_or(Error::NoSuchOffset)?;
        if objects.object(owner).is_none() {
            // It is being made, or on its way out.
            return Err(Error::NoSuchOffset);
        }
        objects.hold(owner);
        drop(objects);
        Ok(Mapped {
            file: OpenFile::new(self),
            owner,
            memory,
        })
    }
}
