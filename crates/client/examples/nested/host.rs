//! The calls of `/dev/iommu` and of a VFIO device that the client's library does not have.
// UNSAFETY: an ioctl takes a pointer to the struct that its number is for.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd as _},
};

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_FAULT_QUEUE_ALLOC, IOMMUFD_CMD_HWPT_ALLOC,
    IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP, IOMMUFD_CMD_HWPT_INVALIDATE,
    IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP,
    IOMMUFD_CMD_OPTION, IOMMUFD_TYPE, iommu_destroy, iommu_fault_alloc, iommu_hwpt_alloc,
    iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1, iommu_hwpt_get_dirty_bitmap,
    iommu_hwpt_invalidate, iommu_hwpt_page_response, iommu_hwpt_pgfault,
    iommu_hwpt_set_dirty_tracking, iommu_hwpt_vtd_s1, iommu_hwpt_vtd_s1_invalidate, iommu_ioas_map,
    iommu_ioas_unmap, iommu_option, iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID as ALLOC_PASID,
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID as FAULT_ID,
    iommufd_option_IOMMU_OPTION_HUGE_PAGES, iommufd_option_ops_IOMMU_OPTION_OP_SET,
};
use passthrough_client::{Device, Vm};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_ATTACH_PASID, VFIO_DEVICE_DETACH_PASID, VFIO_TYPE,
    vfio_device_attach_iommufd_pt, vfio_device_detach_iommufd_pt,
};

use crate::tables::Table;

/// An ioctl with its own struct.
fn call<T>(fd: &impl AsRawFd, number: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the struct that the number is for, which says its own size.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), number.into(), argument as *mut T) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn iommufd<T>(vm: &Vm, command: u32, argument: &mut T) -> io::Result<()> {
    let file = vm.iommufd().map_err(io::Error::other)?;
    call(&**file, u32::from(IOMMUFD_TYPE) << 8 | command, argument)
}

/// What an entry of a guest's table of PASIDs says about a first-stage table.
pub(crate) use iommufd_bindings::iommufd::{
    iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_EAFE as EAFE,
    iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_SRE as SRE,
    iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_WPE as WPE,
};

/// Allocates a HWPT for the guest's table `table` on the HWPT `parent`; `options` are [`SRE`], [`WPE`] and
/// [`EAFE`], `faults` is the id of a queue for page requests.
pub(crate) fn nest(
    vm: &Vm,
    device: &Device,
    parent: u32,
    table: &Table,
    options: u32,
    faults: Option<u32>,
) -> io::Result<u32> {
    let first_stage = iommu_hwpt_vtd_s1 {
        flags: options.into(),
        pgtbl_addr: table.root,
        addr_width: table.address_width(),
        __reserved: 0,
    };
    let mut alloc = iommu_hwpt_alloc {
        size: size_of::<iommu_hwpt_alloc>() as u32,
        flags: ALLOC_PASID | if faults.is_some() { FAULT_ID } else { 0 },
        dev_id: device.id(),
        pt_id: parent,
        data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1,
        data_len: size_of::<iommu_hwpt_vtd_s1>() as u32,
        data_uptr: &raw const first_stage as u64,
        fault_id: faults.unwrap_or(0),
        ..Default::default()
    };
    iommufd(vm, IOMMUFD_CMD_HWPT_ALLOC, &mut alloc)?;
    Ok(alloc.out_hwpt_id)
}

/// Says that entries of the guest's table for `pages` pages from `address` have changed; `u64::MAX` pages from 0
/// for all. `leaf`: those that map pages alone.
pub(crate) fn invalidate(
    vm: &Vm,
    hwpt: u32,
    address: u64,
    pages: u64,
    leaf: bool,
) -> io::Result<()> {
    let mut entry = iommu_hwpt_vtd_s1_invalidate {
        addr: address,
        npages: pages,
        flags: leaf.into(),
        __reserved: 0,
    };
    let mut invalidate = iommu_hwpt_invalidate {
        size: size_of::<iommu_hwpt_invalidate>() as u32,
        hwpt_id: hwpt,
        data_uptr: &raw mut entry as u64,
        // IOMMU_HWPT_INVALIDATE_DATA_VTD_S1
        data_type: 0,
        entry_len: size_of::<iommu_hwpt_vtd_s1_invalidate>() as u32,
        entry_num: 1,
        __reserved: 0,
    };
    iommufd(vm, IOMMUFD_CMD_HWPT_INVALIDATE, &mut invalidate)?;
    match invalidate.entry_num {
        1 => Ok(()),
        _ => Err(io::Error::other("the invalidation was not handled")),
    }
}

/// Lets the IOAS map each page of 4 KiB alone.
pub(crate) fn small_pages(vm: &Vm) -> io::Result<()> {
    let mut option = iommu_option {
        size: size_of::<iommu_option>() as u32,
        option_id: iommufd_option_IOMMU_OPTION_HUGE_PAGES,
        op: iommufd_option_ops_IOMMU_OPTION_OP_SET as u16,
        object_id: vm.ioas(),
        ..Default::default()
    };
    iommufd(vm, IOMMUFD_CMD_OPTION, &mut option)
}

/// Maps `len` bytes of this process at `address`.
pub(crate) fn map(vm: &Vm, prot: u32, address: u64, iova: u64, len: u64) -> io::Result<()> {
    let mut map = iommu_ioas_map {
        size: size_of::<iommu_ioas_map>() as u32,
        // IOMMU_IOAS_MAP_FIXED_IOVA
        flags: 1 | prot,
        ioas_id: vm.ioas(),
        user_va: address,
        length: len,
        iova,
        ..Default::default()
    };
    iommufd(vm, IOMMUFD_CMD_IOAS_MAP, &mut map)
}

pub(crate) fn unmap(vm: &Vm, iova: u64, len: u64) -> io::Result<()> {
    let mut unmap = iommu_ioas_unmap {
        size: size_of::<iommu_ioas_unmap>() as u32,
        ioas_id: vm.ioas(),
        iova,
        length: len,
    };
    iommufd(vm, IOMMUFD_CMD_IOAS_UNMAP, &mut unmap)
}

pub(crate) fn destroy(vm: &Vm, id: u32) -> io::Result<()> {
    let mut destroy = iommu_destroy {
        size: size_of::<iommu_destroy>() as u32,
        id,
    };
    iommufd(vm, IOMMUFD_CMD_DESTROY, &mut destroy)
}

/// Attaches the device, or its PASID, to a HWPT or IOAS; what was attached there is replaced.
pub(crate) fn attach(device: &Device, pasid: Option<u32>, pt_id: u32) -> io::Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: size_of::<vfio_device_attach_iommufd_pt>() as u32,
        flags: pasid.map_or(0, |_| VFIO_DEVICE_ATTACH_PASID),
        pt_id,
        pasid: pasid.unwrap_or(0),
    };
    call(
        device.vfio(),
        u32::from(VFIO_TYPE) << 8 | (VFIO_BASE + 19),
        &mut attach,
    )
}

pub(crate) fn detach(device: &Device, pasid: Option<u32>) -> io::Result<()> {
    let mut detach = vfio_device_detach_iommufd_pt {
        argsz: size_of::<vfio_device_detach_iommufd_pt>() as u32,
        flags: pasid.map_or(0, |_| VFIO_DEVICE_DETACH_PASID),
        pasid: pasid.unwrap_or(0),
    };
    call(
        device.vfio(),
        u32::from(VFIO_TYPE) << 8 | (VFIO_BASE + 20),
        &mut detach,
    )
}

/// A queue of page requests.
pub(crate) struct Faults {
    pub(crate) id: u32,
    file: File,
}

impl Faults {
    pub(crate) fn new(vm: &Vm) -> io::Result<Self> {
        let mut alloc = iommu_fault_alloc {
            size: size_of::<iommu_fault_alloc>() as u32,
            ..Default::default()
        };
        iommufd(vm, IOMMUFD_CMD_FAULT_QUEUE_ALLOC, &mut alloc)?;
        // SAFETY: a new descriptor that nobody else has.
        let file = unsafe { File::from_raw_fd(alloc.out_fault_fd.cast_signed()) };
        Ok(Faults {
            id: alloc.out_fault_id,
            file,
        })
    }

    /// Waits for the next page request.
    pub(crate) fn next(&self) -> io::Result<iommu_hwpt_pgfault> {
        let mut bytes = [0; size_of::<iommu_hwpt_pgfault>()];
        loop {
            let mut poll = libc::pollfd {
                fd: self.file.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one pollfd that lives across the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) };
            if ready == 0 {
                return Err(io::Error::other("no page request came"));
            }
            match (&self.file).read(&mut bytes) {
                Ok(0) => {}
                Ok(len) if len == bytes.len() => break,
                Ok(_) => return Err(io::Error::other("half a page request")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        Ok(iommu_hwpt_pgfault {
            flags: word(0),
            dev_id: word(4),
            pasid: word(8),
            grpid: word(12),
            perm: word(16),
            __reserved: word(20),
            addr: u64::from(word(24)) | u64::from(word(28)) << 32,
            length: word(32),
            cookie: word(36),
        })
    }

    /// Answers one: 0 success, 1 invalid.
    pub(crate) fn answer(&self, cookie: u32, code: u32) -> io::Result<()> {
        let mut bytes = [0; size_of::<iommu_hwpt_page_response>()];
        bytes[..4].copy_from_slice(&cookie.to_le_bytes());
        bytes[4..].copy_from_slice(&code.to_le_bytes());
        (&self.file).write_all(&bytes)
    }
}

/// Begins to track dirty pages of a HWPT, or ends it.
pub(crate) fn track_dirty(vm: &Vm, hwpt: u32, on: bool) -> io::Result<()> {
    let mut set = iommu_hwpt_set_dirty_tracking {
        size: size_of::<iommu_hwpt_set_dirty_tracking>() as u32,
        flags: on.into(),
        hwpt_id: hwpt,
        __reserved: 0,
    };
    iommufd(vm, IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING, &mut set)
}

/// The pages of 4 KiB in `len` bytes from `iova` that were written since the last call, which then count as
/// clean.
pub(crate) fn dirty_pages(vm: &Vm, hwpt: u32, iova: u64, len: u64) -> io::Result<Vec<u64>> {
    let pages = len / 4096;
    let mut bits = vec![0_u64; pages.div_ceil(64) as usize];
    let mut get = iommu_hwpt_get_dirty_bitmap {
        size: size_of::<iommu_hwpt_get_dirty_bitmap>() as u32,
        hwpt_id: hwpt,
        flags: 0,
        __reserved: 0,
        iova,
        length: len,
        page_size: 4096,
        data: bits.as_mut_ptr() as u64,
    };
    iommufd(vm, IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP, &mut get)?;
    let dirty = |page: &u64| bits[(page / 64) as usize] >> (page % 64) & 1 == 1;
    Ok((0..pages)
        .filter(dirty)
        .map(|page| iova + 4096 * page)
        .collect())
}
