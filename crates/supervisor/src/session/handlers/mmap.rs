//! `mmap` of files of the machine.
//!
//! The registers of a device: the kernel maps the memfd behind the descriptor, in which nothing is,
//! past its end, so that every access raises a signal ([`crate::session::registers`]). What a
//! virtual IOMMU shares with the owner of a `/dev/iommu` file:
//! [`crate::session::descriptors::mappings`].

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use ioasid_iommufd::{Mapped, MmapRequest};
use ioasid_uapi::{
    CallError,
    error::{FileError, Operation},
};
use ioasid_vfio::MapRequest;

use crate::{
    calls::call::Mmap,
    session::{
        answer::{Answer, Outcome, Pending},
        descriptors::{Descriptors, object::Object},
        identity::Identity,
        state::{State, unusable},
    },
};

pub(crate) fn mmap(state: &mut State, call: Pending<'_>, arguments: Mmap) -> Outcome {
    let Mmap {
        len,
        prot,
        flags,
        fd,
        offset,
    } = arguments;
    let Some(found) = state.descriptors.identity(call.process, fd) else {
        return Ok(Answer::Proceed);
    };
    let Some(identity) = state.bound_as(call, fd, found)? else {
        // As on a kernel that is locked down.
        return match state.paths.is_bar(found) {
            true => Err(FileError::Lockdown.into()),
            false => Ok(Answer::Proceed),
        };
    };
    let Some(file) = state.descriptors.files.get(identity) else {
        return Ok(Answer::Proceed);
    };
    let shared = is_shared(flags);
    let stores = shared && prot & libc::PROT_WRITE as u64 != 0;
    if !file.is_readable() || (stores && !file.is_writable()) {
        let operation = Operation::Map;
        return Err(FileError::NotOpenFor { operation }.into());
    }
    match &file.object {
        Object::Container(_)
        | Object::Group(_)
        | Object::Event(_)
        | Object::FailNth(_)
        | Object::Attribute(_) => Err(FileError::NoOperation {
            operation: Operation::Map,
        }
        .into()),
        Object::Device(device) => {
            device.mmap_check(MapRequest {
                offset,
                len,
                shared,
                writable: file.is_writable(),
            })?;
            state.registers.prepare(call.process, identity, device)?;
            Ok(Answer::Proceed)
        }
        Object::Iommufd(context) => {
            let held = Arc::clone(context).mmap(MmapRequest {
                offset,
                len,
                shared,
                executable: prot & libc::PROT_EXEC as u64 != 0,
            })?;
            fill(&state.descriptors, call, (fd, identity), offset, &held)?;
            state.descriptors.mappings.add(identity, offset, len, held);
            Ok(Answer::Proceed)
        }
    }
}

/// Puts the bytes where the kernel will map them, unless they are there already.
fn fill(
    descriptors: &Descriptors,
    call: Pending<'_>,
    (fd, identity): (i32, Identity),
    offset: u64,
    held: &Mapped,
) -> Result<(), CallError> {
    if descriptors.mappings.has(identity, offset) {
        return Ok(());
    }
    let file = File::from(
        call.process
            .get_fd(fd)
            .map_err(|error| unusable(fd, error))?,
    );
    let mut bytes = vec![0; held.memory().bytes().len()];
    held.memory().read(0, &mut bytes);
    // Makes the file larger where it is too small.
    let written = file.write_all_at(&bytes, offset);
    Ok(written.map_err(|_| FileError::NoResource)?)
}

fn is_shared(flags: u64) -> bool {
    let kind = flags & libc::MAP_TYPE as u64;
    kind == libc::MAP_SHARED as u64 || kind == libc::MAP_SHARED_VALIDATE as u64
}
