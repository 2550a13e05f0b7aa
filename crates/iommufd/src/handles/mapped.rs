//! Memory of the `/dev/iommu` file itself that a program has mapped.

use std::{fmt, sync::Arc};

use ioasid_core::memory::{Backing, OwnMemory, PAGE_SIZE};

use crate::{
    base::{
        error::{Error, MmapError},
        id::{ObjectId, Use},
    },
    file::context::{Context, OpenFile},
    hardware::mmap::MmapRequest,
};

/// Memory that a program has mapped. As long as it lives, the object that owns the memory cannot be
/// destroyed.
pub struct Mapped {
    owner: ObjectId,
    memory: Arc<OwnMemory>,
    /// The use of the owner ends before that of the context.
    used: Use,
    file: OpenFile,
}

impl Mapped {
    /// mmap on the file of `context`.
    pub(crate) fn new(context: &Arc<Context>, request: MmapRequest) -> Result<Self, Error> {
        let MmapRequest { offset, len, .. } = request;
        if !len.is_multiple_of(PAGE_SIZE) {
            return Err(MmapError::NotWholePages { len }.into());
        }
        if !request.shared {
            return Err(MmapError::Private.into());
        }
        if request.executable {
            return Err(MmapError::Executable.into());
        }
        let nothing = MmapError::NoSuchOffset { offset, len };
        let objects = context.objects().lock();
        let found = context.mmap_offsets().find(offset, len);
        let (memory, owner) = found.ok_or(nothing)?;
        if objects.object(owner).is_none() {
            // It is being made, or on its way out.
            return Err(nothing.into());
        }
        let used = objects.use_of(owner)?;
        drop(objects);
        Ok(Mapped {
            owner,
            memory,
            used,
            file: OpenFile::new(context),
        })
    }

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
        Mapped {
            owner: self.owner,
            memory: Arc::clone(&self.memory),
            used: self.used.clone(),
            file: OpenFile::new(self.file.context()),
        }
    }
}
