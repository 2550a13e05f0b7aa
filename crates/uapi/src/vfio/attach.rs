//! BIND_IOMMUFD, ATTACH_IOMMUFD_PT, DETACH_IOMMUFD_PT (`drivers/vfio/device_cdev.c`).

use std::sync::Arc;

use ioasid_core::host::FdError;
use ioasid_iommufd::{Context, ObjectId};
use ioasid_vfio::{DeviceFile, UserPasid, error::TokenError};

use super::{copy, long_enough, named, valid};
use crate::{
    CallError, Program,
    error::{FieldError, RequestError, Wanted},
    fields::names,
    memory,
    spec::vfio as spec,
};

/// Offset of `out_devid` in the struct of BIND_IOMMUFD.
const OUT_DEVID: u64 = std::mem::offset_of!(spec::BindIommufd, out_devid) as u64;
/// Offset of `pt_id` in the struct of ATTACH_IOMMUFD_PT.
const PT_ID: u64 = std::mem::offset_of!(spec::AttachIommufdPt, pt_id) as u64;

pub(super) fn bind(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let request: spec::BindIommufd = copy::extensible(program, arg, spec::BindIommufd::MIN)?;
    valid(named("iommufd", request.iommufd))?;
    valid(FieldError::flags("flags", request.flags, names::BIND))?;
    let id = file.bind_with(|| {
        check_token(file, &request, program)?;
        context(request.iommufd, program)
    })?;
    let answer = write_id(program, (arg, OUT_DEVID), id);
    answer.inspect_err(|_| file.unbind())?;
    Ok(0)
}

/// A device that knows of no tokens refuses one before it is read.
fn check_token(
    file: &DeviceFile,
    request: &spec::BindIommufd,
    program: &dyn Program,
) -> Result<(), CallError> {
    let given = request.flags & spec::BindIommufd::TOKEN != 0;
    let mut token = [0; 16];
    if given {
        if !file.device().knows_tokens() {
            return Err(TokenError::Unneeded.into());
        }
        memory::read(program, request.token_uuid_ptr, &mut token)?;
    }
    Ok(file.device().check_token(given.then_some(&token))?)
}

fn context(fd: i32, program: &dyn Program) -> Result<Arc<Context>, CallError> {
    let wanted = Wanted::Iommufd;
    let file = program.iommufd(fd).map_err(|error| match error {
        FdError::WrongType => RequestError::WrongFile { fd, wanted },
        error => RequestError::Descriptor { fd, wanted, error },
    });
    Ok(file?)
}

pub(super) fn attach(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    use spec::AttachIommufdPt;
    let request: AttachIommufdPt = copy::standard(program, arg, AttachIommufdPt::MIN)?;
    let head = Head {
        argsz: request.argsz,
        flags: request.flags,
        min: AttachIommufdPt::MIN,
    };
    let pasid = pasid(file, &head, arg, program)?;
    let id = file.attach(ObjectId::from_raw(request.pt_id), pasid)?;
    let answer = write_id(program, (arg, PT_ID), id);
    // An attachment that the program does not learn of is no attachment.
    answer.inspect_err(|_| {
        let _ = file.detach(pasid);
    })?;
    Ok(0)
}

pub(super) fn detach(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    use spec::DetachIommufdPt;
    let request: DetachIommufdPt = copy::standard(program, arg, DetachIommufdPt::MIN)?;
    let head = Head {
        argsz: request.argsz,
        flags: request.flags,
        min: DetachIommufdPt::MIN,
    };
    let pasid = pasid(file, &head, arg, program)?;
    file.detach(pasid)?;
    Ok(0)
}

/// What the structs of both requests begin with.
struct Head {
    argsz: u32,
    flags: u32,
    /// Bytes before the PASID.
    min: usize,
}

/// The flag of both requests: there is a PASID.
const PASID: u32 = spec::AttachIommufdPt::PASID;
const _: () = assert!(PASID == spec::DetachIommufdPt::PASID);

/// The PASID that a request is about, if it is not the device itself. That the device takes none of its
/// user's choice shows before the size of the struct, and that before the bytes.
fn pasid(
    file: &DeviceFile,
    head: &Head,
    arg: u64,
    program: &dyn Program,
) -> Result<Option<UserPasid>, CallError> {
    valid(FieldError::flags("flags", head.flags, names::PASID))?;
    if head.flags & PASID == 0 {
        return Ok(None);
    }
    let pasids = file.user_pasids()?;
    let mut number = [0; 4];
    long_enough(head.argsz, head.min + number.len())?;
    memory::read(program, copy::offset(arg, head.min as u64)?, &mut number)?;
    Ok(Some(pasids.pasid(u32::from_ne_bytes(number))))
}

// The PASID comes last in both.
const _: () = assert!(size_of::<spec::AttachIommufdPt>() == spec::AttachIommufdPt::MIN + 4);
const _: () = assert!(size_of::<spec::DetachIommufdPt>() == spec::DetachIommufdPt::MIN + 4);

/// Writes an id into a field of a struct.
fn write_id(
    program: &dyn Program,
    (base, offset): (u64, u64),
    id: ObjectId,
) -> Result<(), CallError> {
    let field = copy::offset(base, offset)?;
    Ok(memory::write(program, field, &id.get().to_ne_bytes())?)
}
