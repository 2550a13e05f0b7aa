//! BIND_IOMMUFD, ATTACH_IOMMUFD_PT, DETACH_IOMMUFD_PT (`drivers/vfio/device_cdev.c`).

use std::sync::Arc;

use ioasid_core::host::{Caller, FdError};
use ioasid_iommufd::{Context, ObjectId};
use ioasid_vfio::DeviceFile;

use super::copy;
use crate::{Errno, Program, spec::vfio as spec};

/// Offset of `out_devid` in the struct of BIND_IOMMUFD.
const OUT_DEVID: u64 = std::mem::offset_of!(spec::BindIommufd, out_devid) as u64;
/// Offset of `pt_id` in the struct of ATTACH_IOMMUFD_PT.
const PT_ID: u64 = std::mem::offset_of!(spec::AttachIommufdPt, pt_id) as u64;

pub(super) fn bind(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    let request: spec::BindIommufd = copy::extensible(program, arg, spec::BindIommufd::MIN)?;
    if request.iommufd < 0 || request.flags & !spec::BindIommufd::TOKEN != 0 {
        return Err(Errno::EINVAL);
    }
    let id = file.bind_with(|| {
        check_token(file, &request, program)?;
        context(request.iommufd, program)
    })?;
    let answer = copy::offset(arg, OUT_DEVID).and_then(|at| write_id(program, at, id));
    answer.inspect_err(|_| file.unbind())?;
    Ok(0)
}

/// What knows of no tokens refuses one unseen.
fn check_token(
    file: &DeviceFile,
    request: &spec::BindIommufd,
    program: &dyn Program,
) -> Result<(), Errno> {
    let given = request.flags & spec::BindIommufd::TOKEN != 0;
    let mut token = [0; 16];
    if given {
        if !file.device().knows_tokens() {
            return Err(Errno::EINVAL);
        }
        Caller::read(program, request.token_uuid_ptr, &mut token)?;
    }
    Ok(file.device().check_token(given.then_some(&token))?)
}

fn context(fd: i32, program: &dyn Program) -> Result<Arc<Context>, Errno> {
    program.iommufd(fd).map_err(|error| match error {
        FdError::WrongType => Errno::EBADFD,
        error => error.into(),
    })
}

pub(super) fn attach(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    use spec::AttachIommufdPt;
    let request: AttachIommufdPt = copy::standard(program, arg, AttachIommufdPt::MIN)?;
    if request.flags & !AttachIommufdPt::PASID != 0 {
        return Err(Errno::EINVAL);
    }
    let mut pasid = None;
    if request.flags & AttachIommufdPt::PASID != 0 {
        pasid = Some(pasid_behind(
            file,
            request.argsz,
            AttachIommufdPt::MIN,
            arg,
            program,
        )?);
    }
    let id = file.attach(ObjectId::from_raw(request.pt_id), pasid)?;
    let answer = copy::offset(arg, PT_ID).and_then(|at| write_id(program, at, id));
    // An attachment that the program does not learn of is no attachment.
    answer.inspect_err(|_| {
        let _ = file.detach(pasid);
    })?;
    Ok(0)
}

pub(super) fn detach(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    use spec::DetachIommufdPt;
    let request: DetachIommufdPt = copy::standard(program, arg, DetachIommufdPt::MIN)?;
    if request.flags & !DetachIommufdPt::PASID != 0 {
        return Err(Errno::EINVAL);
    }
    let mut pasid = None;
    if request.flags & DetachIommufdPt::PASID != 0 {
        pasid = Some(pasid_behind(
            file,
            request.argsz,
            DetachIommufdPt::MIN,
            arg,
            program,
        )?);
    }
    file.detach(pasid)?;
    Ok(0)
}

/// The PASID that follows the first `min` bytes of a struct. A child has none for programs, which shows
/// before the size of the struct, and that before the bytes.
fn pasid_behind(
    file: &DeviceFile,
    argsz: u32,
    min: usize,
    arg: u64,
    program: &dyn Program,
) -> Result<u32, Errno> {
    if file.device().is_child() {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut pasid = [0; 4];
    if (argsz as usize) < min + pasid.len() {
        return Err(Errno::EINVAL);
    }
    Caller::read(program, copy::offset(arg, min as u64)?, &mut pasid)?;
    Ok(u32::from_ne_bytes(pasid))
}

// The PASID comes last in both.
const _: () = assert!(size_of::<spec::AttachIommufdPt>() == spec::AttachIommufdPt::MIN + 4);
const _: () = assert!(size_of::<spec::DetachIommufdPt>() == spec::DetachIommufdPt::MIN + 4);

fn write_id(program: &dyn Program, address: u64, id: ObjectId) -> Result<(), Errno> {
    Ok(Caller::write(program, address, &id.get().to_ne_bytes())?)
}
