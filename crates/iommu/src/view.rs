//! From an I/O virtual address to bytes, under one guard: route, page walk, registered range.

use std::sync::Arc;

use ioasid_core::{
    Access, Pasid,
    grace::Guard,
    memory::{MemoryGone, RawBytes, RemoteMemory},
    spa::Resolved,
};
use ioasid_pgtable::WalkFault;

use crate::{
    device::{Attachment, Device},
    domain::Translator,
    fault::{Fault, FaultReason},
    transfer::Stop,
};

/// The smallest leaf of every format: the step of a backward run.
const PAGE_MASK: u64 = 0xfff;

/// What one guard sees.
pub(crate) struct View<'a> {
    // Dropped before the marker is cleared: a waiter that has seen the guard go finds its
    // references gone as well.
    pub(crate) attachment: Option<Arc<Attachment>>,
    pub(crate) device: &'a Arc<Device>,
    pub(crate) pasid: Option<Pasid>,
    /// Whether memory that may block can be touched.
    pub(crate) blocking: bool,
    pub(crate) guard: Guard<'a>,
}

/// Bytes that an address leads to, all in one registration.
pub(crate) enum Place<'g> {
    Direct(RawBytes<'g>),
    Remote {
        memory: &'g dyn RemoteMemory,
        offset: u64,
        len: u64,
    },
}

impl<'g> Place<'g> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Place::Direct(bytes) => bytes.len() as u64,
            Place::Remote { len, .. } => *len,
        }
    }

    /// `len` bytes from `skip`; both within the place.
    pub(crate) fn part(&self, skip: u64, part: u64) -> Place<'g> {
        match self {
            Place::Direct(bytes) => {
                let slice = bytes.slice(skip as usize, part as usize);
                Place::Direct(slice.expect("a part lies inside its place"))
            }
            Place::Remote { memory, offset, .. } => Place::Remote {
                memory: *memory,
                offset: offset + skip,
                len: part,
            },
        }
    }

    pub(crate) fn read(&self, dst: &mut [u8]) -> Result<(), MemoryGone> {
        match self {
            Place::Direct(bytes) => bytes.read(dst),
            Place::Remote { memory, offset, .. } => memory.read(*offset, dst),
        }
    }

    pub(crate) fn write(&self, src: &[u8]) -> Result<(), MemoryGone> {
        match self {
            Place::Direct(bytes) => bytes.write(src),
            Place::Remote { memory, offset, .. } => memory.write(*offset, src),
        }
    }

    /// The reason of a fault after a failed write.
    pub(crate) fn write_refused(&self) -> FaultReason {
        match self {
            Place::Direct(bytes) if !bytes.writable() => FaultReason::Permission,
            _ => FaultReason::MemoryGone,
        }
    }
}

impl View<'_> {
    pub(crate) fn fault(&self, iova: u64, access: Access, reason: FaultReason) -> Fault {
        Fault {
            device: self.device.address(),
            pasid: self.pasid,
            iova,
            access,
            reason,
        }
    }

    /// `base + offset`, which must not pass the end of the address space.
    pub(crate) fn at(&self, base: u64, offset: u64, access: Access) -> Result<u64, Fault> {
        base.checked_add(offset)
            .ok_or_else(|| self.fault(u64::MAX, access, FaultReason::AddressWidth))
    }

    /// One walk: the system physical address of `iova`, and for how many of `want` bytes it holds.
    #[inline]
    fn translate(&self, iova: u64, want: u64, access: Access) -> Result<(u64, u64), Fault> {
        let Some(attachment) = &self.attachment else {
            let reason = match self.pasid {
                Some(_) => FaultReason::NotAttached,
                None => FaultReason::Blocked,
            };
            return Err(self.fault(iova, access, reason));
        };
        let mut want = want;
        if self.pasid.is_none() {
            for window in self.device.interrupt_windows() {
                if window.contains(iova) {
                    return Err(self.fault(iova, access, FaultReason::InterruptWindow));
                }
                if let Some(before) = window.start().checked_sub(iova) {
                    want = want.min(before);
                }
            }
        }
        match &attachment.space.translator {
            Translator::Paging(table) => match table.translate(iova, access) {
                Ok(found) => Ok((found.spa, found.len.min(want))),
                Err(error) => Err(self.fault(iova, access, walk_reason(error))),
            },
            Translator::Identity => Ok((iova, want)),
            Translator::Blocked => Err(self.fault(iova, access, FaultReason::Blocked)),
        }
    }

    /// Up to `want` bytes from `iova` that are contiguous in system physical memory: neighbouring
    /// leaves are joined. Only the first byte's fault counts; a later one ends the run.
    fn run(&self, iova: u64, want: u64, access: Access) -> Result<(u64, u64), Fault> {
        let (spa, mut len) = self.translate(iova, want, access)?;
        while len < want {
            let Some(next) = iova.checked_add(len) else {
                break;
            };
            match self.translate(next, want - len, access) {
                Ok((found, more)) if Some(found) == spa.checked_add(len) => len += more,
                _ => break,
            }
        }
        Ok((spa, len))
    }

    /// As [`View::run`] for the bytes that *end* with `last`.
    fn run_back(&self, last: u64, want: u64, access: Access) -> Result<(u64, u64), Fault> {
        let piece = |last: u64, want: u64| {
            let start = (last & !PAGE_MASK).max(last.saturating_sub(want - 1));
            (start, last - start + 1)
        };
        let (mut start, mut len) = piece(last, want);
        let (mut spa, found) = self.translate(start, len, access)?;
        if found < len {
            // Something begins inside the page: an interrupt window. The last byte lies in it.
            return Err(self.fault(last, access, FaultReason::InterruptWindow));
        }
        while len < want && start > 0 {
            let (before, more) = piece(start - 1, want - len);
            match self.translate(before, more, access) {
                Ok((found, run)) if run == more && found.checked_add(more) == Some(spa) => {
                    (spa, start, len) = (found, before, len + more);
                }
                _ => break,
            }
        }
        Ok((spa, len))
    }

    /// The registered bytes at a system physical address, as far as one registration goes.
    fn place(&self, spa: u64, len: u64, iova: u64, access: Access) -> Result<Place<'_>, Stop> {
        match self.device.shared().space.resolve(&self.guard, spa, len) {
            Some(Resolved::Direct(bytes)) => Ok(Place::Direct(bytes)),
            Some(Resolved::Remote {
                memory,
                offset,
                len,
            }) if self.blocking => Ok(Place::Remote {
                memory,
                offset,
                len,
            }),
            Some(Resolved::Remote { memory, .. }) => Err(Stop::Remote(Arc::clone(memory.worker()))),
            Some(_) | None => Err(self.fault(iova, access, FaultReason::Unregistered).into()),
        }
    }

    /// Up to `want` (not 0) bytes from `iova`.
    #[inline]
    pub(crate) fn locate(&self, iova: u64, want: u64, access: Access) -> Result<Place<'_>, Stop> {
        let (spa, len) = self.run(iova, want, access)?;
        self.place(spa, len, iova, access)
    }

    /// Up to `want` (not 0) bytes that end with `last`.
    pub(crate) fn locate_back(
        &self,
        last: u64,
        want: u64,
        access: Access,
    ) -> Result<Place<'_>, Stop> {
        let (spa, len) = self.run_back(last, want, access)?;
        let mut skip = 0;
        loop {
            match self.place(spa + skip, len - skip, last, access) {
                Ok(place) if skip + place.len() == len => return Ok(place),
                // The run goes on in the next registration.
                Ok(place) => skip += place.len(),
                // The front of the run is no memory, but its last page may be.
                Err(Stop::Fault(_)) if len - skip > (last & PAGE_MASK) + 1 => {
                    return self.locate_back(last, (last & PAGE_MASK) + 1, access);
                }
                Err(stop) => return Err(stop),
            }
        }
    }
}

fn walk_reason(fault: WalkFault) -> FaultReason {
    match fault {
        WalkFault::Permission => FaultReason::Permission,
        WalkFault::OutOfRange => FaultReason::AddressWidth,
        _ => FaultReason::NotPresent,
    }
}
