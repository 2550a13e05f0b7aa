//! System calls that the published crates do not wrap, or wrap without giving back the answer.
// UNSAFETY: an ioctl takes a pointer to a struct of the size that its number implies; a file made
// of a borrowed descriptor must not close it.
#![allow(unsafe_code)]

use std::{
    fs::File,
    mem::{ManuallyDrop, size_of},
    os::fd::{AsRawFd, FromRawFd},
};

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_COPY, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_copy,
    iommu_ioas_iova_ranges, iommu_iova_range,
};
use libc::c_ulong;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_SET, VFIO_TYPE,
    vfio_device_attach_iommufd_pt,
};
use vfio_ioctls::{VfioContainer, VfioError};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::{
    error::{Error, Result},
    memory::DmaMemory,
};

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`, include/uapi/linux/vfio.h.
const ATTACH: c_ulong = (VFIO_TYPE as c_ulong) << 8 | (VFIO_BASE as c_ulong + 19);
/// `VFIO_DEVICE_FEATURE`, include/uapi/linux/vfio.h.
const FEATURE: c_ulong = (VFIO_TYPE as c_ulong) << 8 | (VFIO_BASE as c_ulong + 17);
/// `IOMMU_IOAS_IOVA_RANGES`, include/uapi/linux/iommufd.h.
const IOVA_RANGES: c_ulong =
    (IOMMUFD_TYPE as c_ulong) << 8 | IOMMUFD_CMD_IOAS_IOVA_RANGES as c_ulong;
/// `IOMMU_IOAS_COPY`, include/uapi/linux/iommufd.h.
const COPY: c_ulong = (IOMMUFD_TYPE as c_ulong) << 8 | IOMMUFD_CMD_IOAS_COPY as c_ulong;

/// Attaches the device behind `fd` to the IOAS or HWPT `pt_id` and gives back the id of the page
/// table that it got. (`VfioDevice::attach_hwpt` drops that number.)
pub(crate) fn attach(fd: &impl AsRawFd, pt_id: u32) -> Result<u32> {
    let mut data = vfio_device_attach_iommufd_pt {
        argsz: size_of::<vfio_device_attach_iommufd_pt>() as u32,
        flags: 0,
        pt_id,
        pasid: 0,
    };
    // SAFETY: `data` is the struct of this ioctl, says its own size and lives across the call.
    match unsafe { ioctl_with_mut_ref(fd, ATTACH, &mut data) } {
        0 => Ok(data.pt_id),
        _ => Err(Error::last_os("attaching the device")),
    }
}

/// `VFIO_DEVICE_FEATURE` with `struct vfio_device_feature_mig_state`.
#[repr(C)]
struct Migration {
    argsz: u32,
    flags: u32,
    device_state: u32,
    data_fd: i32,
}

/// Takes the device behind `fd` to a state of migration; the file of its data, if it has some there.
pub(crate) fn migrate(fd: &impl AsRawFd, device_state: u32) -> Result<Option<File>> {
    let mut data = Migration {
        argsz: size_of::<Migration>() as u32,
        flags: VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
        device_state,
        data_fd: -1,
    };
    // SAFETY: `data` is the struct of this ioctl, says its own size and lives across the call.
    if unsafe { ioctl_with_mut_ref(fd, FEATURE, &mut data) } != 0 {
        return Err(Error::last_os("migrating the device"));
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let file = |fd| unsafe { File::from_raw_fd(fd) };
    Ok((data.data_fd >= 0).then(|| file(data.data_fd)))
}

/// The usable IOVA ranges of an IOAS, both ends inclusive, and the alignment that IOVAs need.
pub(crate) fn iova_ranges(fd: &impl AsRawFd, ioas: u32) -> Result<(Vec<(u64, u64)>, u64)> {
    let doing = "asking for the IOVA ranges";
    let mut ranges = vec![iommu_iova_range::default(); 64];
    let mut data = iommu_ioas_iova_ranges {
        size: size_of::<iommu_ioas_iova_ranges>() as u32,
        ioas_id: ioas,
        num_iovas: ranges.len() as u32,
        allowed_iovas: ranges.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: `data` is the struct of this ioctl and says its own size; `allowed_iovas` points at
    // `num_iovas` ranges that live across the call.
    if unsafe { ioctl_with_mut_ref(fd, IOVA_RANGES, &mut data) } != 0 {
        return Err(Error::last_os(doing));
    }
    ranges.truncate(data.num_iovas as usize);
    let ranges = ranges.iter().map(|range| (range.start, range.last));
    Ok((ranges.collect(), data.out_iova_alignment))
}

/// Maps what `src_ioas` has at `src_iova` at `dst_iova` of `dst_ioas` as well.
pub(crate) fn copy(
    fd: &impl AsRawFd,
    flags: u32,
    (dst_ioas, dst_iova): (u32, u64),
    (src_ioas, src_iova): (u32, u64),
    length: u64,
) -> Result<u64> {
    let mut data = iommu_ioas_copy {
        size: size_of::<iommu_ioas_copy>() as u32,
        flags,
        dst_ioas_id: dst_ioas,
        src_ioas_id: src_ioas,
        length,
        dst_iova,
        src_iova,
    };
    // SAFETY: `data` is the struct of this ioctl, says its own size and lives across the call.
    match unsafe { ioctl_with_mut_ref(fd, COPY, &mut data) } {
        0 => Ok(data.dst_iova),
        _ => Err(Error::last_os("copying a mapping")),
    }
}

/// Maps `memory` at `iova` of a container.
pub(crate) fn map_in_container(
    container: &VfioContainer,
    iova: u64,
    memory: &DmaMemory,
) -> std::result::Result<(), VfioError> {
    let (address, len) = (memory.address() as *mut u8, memory.len() as usize);
    // SAFETY: `DmaMemory` never has a reference to its bytes, and the caller keeps it until it is
    // unmapped.
    unsafe { container.vfio_dma_map(iova, len, address) }
}

/// The descriptor of `owner` as a file, for reads and writes that report their errno.
pub(crate) fn as_file(owner: &impl AsRawFd) -> ManuallyDrop<File> {
    // SAFETY: `owner` keeps the descriptor open across the caller's use of the file, which is one
    // expression; `ManuallyDrop` keeps the file from closing it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(owner.as_raw_fd()) })
}
