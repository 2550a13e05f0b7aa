//! Memory that a program maps from the `/dev/iommu` file itself: pages that a virtual IOMMU shares
//! with its owner.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{
    failpoint,
    memory::{Backing, OwnMemory, PAGE_SIZE},
    sync::Mutex,
};

use crate::base::{
    error::{Error, MmapError},
    id::ObjectId,
};

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
        let end = offset.checked_add(memory.size());
        end.ok_or(MmapError::NoSpace { len: memory.size() })?;
        failpoint::allocation()?;
        regions.insert(offset, Region { memory, owner });
        Ok(offset)
    }

    /// Gives back what `owner` took.
    pub(crate) fn remove(&self, owner: ObjectId) {
        self.0.lock().retain(|_, region| region.owner != owner);
    }

    /// What is mapped by exactly this offset and length, and its owner.
    pub(crate) fn find(&self, offset: u64, len: u64) -> Option<(Arc<OwnMemory>, ObjectId)> {
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
    /// [`MmapError::NoSpace`].
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
