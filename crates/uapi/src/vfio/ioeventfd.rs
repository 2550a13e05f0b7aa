//! IOEVENTFD: stores that an eventfd makes (`vfio_pci_ioctl_ioeventfd`,
//! `drivers/vfio/pci/vfio_pci_core.c`).

use ioasid_vfio::{DeviceFile, StoreRequest};

use super::copy;
use crate::{Errno, Program, spec::vfio as spec};

pub(super) fn set(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    let request: spec::Ioeventfd = copy::standard(program, arg, spec::Ioeventfd::MIN)?;
    let size = u8::try_from(request.flags).map_err(|_| Errno::EINVAL)?;
    if !matches!(size, 1 | 2 | 4 | 8) || request.fd < -1 {
        return Err(Errno::EINVAL);
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
