//! IOEVENTFD: stores that an eventfd makes (`vfio_pci_ioctl_ioeventfd`,
//! `drivers/vfio/pci/vfio_pci_core.c`).

use ioasid_vfio::{DeviceFile, StoreRequest};

use super::{copy, named, valid};
use crate::{
    CallError, Program,
    error::{FieldError, RequestError},
    fields::names,
    spec::vfio as spec,
};

pub(super) fn set(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let request: spec::Ioeventfd = copy::standard(program, arg, spec::Ioeventfd::MIN)?;
    let size = match request.flags {
        1 => 1,
        2 => 2,
        4 => 4,
        8 => 8,
        other => {
            return Err(RequestError::Invalid(FieldError::Value {
                field: "flags",
                value: other.into(),
                known: names::STORE_BYTES,
            })
            .into());
        }
    };
    if request.fd != -1 {
        valid(named("fd", request.fd))?;
    }
    let store = StoreRequest {
        offset: request.offset,
        data: request.data,
        size,
    };
    let watch = |listener| program.watch_eventfd(request.fd, listener);
    file.store_by_eventfd(store, (request.fd >= 0).then_some(watch))?;
    Ok(0)
}
