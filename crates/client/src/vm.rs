//! One VM's address space: an IOAS of `/dev/iommu`, or a container; what is mapped in it, and the
//! devices that use it.

use std::{
    collections::BTreeMap,
    fmt,
    mem::size_of,
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use iommufd_bindings::iommufd::{
    iommu_hwpt_alloc, iommu_ioas_map, iommu_ioas_unmap,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError, IommufdIoas};
use vfio_ioctls::{VfioContainer, VfioError, VfioIommufd, VfioOps};

use crate::{
    device::Device,
    error::{Error, Result},
    ioctl,
    memory::{DmaMemory, MemoryKind},
};

const READ: u32 = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
const WRITE: u32 = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
const FIXED: u32 = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;

/// Memory and the IOVA at which devices see it.
#[derive(Clone, Debug)]
pub struct Area {
    /// First IOVA.
    pub iova: u64,
    /// The memory, all of it.
    pub memory: Arc<DmaMemory>,
}

impl Area {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.memory.len()
    }

    /// Whether there are no bytes; never true.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }
}

/// What the devices of a VM share; lives until the last of them is gone.
pub(crate) struct Shared {
    pub(crate) ops: Ops,
    /// Keeps memory as long as a device might reach it. The last field: it goes after the IOAS.
    mapped: Mutex<BTreeMap<u64, Arc<DmaMemory>>>,
}

/// What holds the address space.
pub(crate) enum Ops {
    Iommufd(Arc<VfioIommufd>),
    Container(Arc<VfioContainer>),
}

impl Ops {
    /// As the crate wants it to open a device.
    pub(crate) fn of_devices(&self) -> Arc<dyn VfioOps> {
        match self {
            Ops::Iommufd(ops) => Arc::clone(ops) as _,
            Ops::Container(ops) => Arc::clone(ops) as _,
        }
    }

    fn iommufd(&self, what: &'static str) -> Result<&VfioIommufd> {
        match self {
            Ops::Iommufd(ops) => Ok(ops),
            Ops::Container(_) => Err(Error::NotInContainer(what)),
        }
    }
}

/// One open `/dev/iommu` with one IOAS, or one container.
pub struct Vm {
    shared: Arc<Shared>,
}

impl Vm {
    /// Opens `/dev/iommu` and allocates an IOAS.
    ///
    /// # Errors
    /// [`Error::Iommufd`] with the errno of the open or of the ioctl.
    pub fn open() -> Result<Vm> {
        let iommufd = IommuFd::new().map_err(wrap("opening /dev/iommu"))?;
        let iommufd = Arc::new(iommufd);
        let ioas = IommufdIoas::new(Arc::clone(&iommufd)).map_err(wrap("allocating an IOAS"))?;
        let ops =
            VfioIommufd::new(iommufd, Some(Arc::new(ioas)), None).map_err(|error| Error::Vfio {
                doing: "using",
                path: "/dev/iommu".into(),
                error,
            })?;
        Ok(Vm {
            shared: Arc::new(Shared {
                ops: Ops::Iommufd(Arc::new(ops)),
                mapped: Mutex::default(),
            }),
        })
    }

    /// Opens `/dev/vfio/vfio`. It gets its IOMMU, type 1 version 2, with the first device.
    ///
    /// # Errors
    /// [`Error::Vfio`] with the errno of the open or of the ioctl.
    pub fn open_container() -> Result<Vm> {
        let ops = VfioContainer::new(None).map_err(container("opening"))?;
        Ok(Vm {
            shared: Arc::new(Shared {
                ops: Ops::Container(Arc::new(ops)),
                mapped: Mutex::default(),
            }),
        })
    }

    /// Whether it is a container: its devices are attached from the start until they are closed.
    pub fn is_container(&self) -> bool {
        matches!(self.shared.ops, Ops::Container(_))
    }

    /// Id of the IOAS; 0 for a container.
    pub fn ioas(&self) -> u32 {
        match &self.shared.ops {
            Ops::Iommufd(ops) => ops.ioas().id(),
            Ops::Container(_) => 0,
        }
    }

    /// Opens the device in the sysfs directory `path` and binds it to this `/dev/iommu`. It is not
    /// attached to anything yet.
    ///
    /// # Errors
    /// [`Error::Vfio`] if there is no such device, or it is in use.
    pub fn open_device(&self, path: &Path) -> Result<Device> {
        Device::open(path, Arc::clone(&self.shared))
    }

    /// The published crate's `/dev/iommu`, for what this one does not wrap.
    ///
    /// # Errors
    /// [`Error::NotInContainer`].
    pub fn iommufd(&self) -> Result<&Arc<IommuFd>> {
        let ops = self.shared.ops.iommufd("calls of /dev/iommu")?;
        Ok(ops.iommufd())
    }

    /// Allocates a HWPT (a page table made by hand) of the IOAS for `device`. `flags` are
    /// `IOMMU_HWPT_ALLOC_*`; 0 for a plain one.
    ///
    /// # Errors
    /// [`Error::Iommufd`].
    pub fn alloc_hwpt(&self, device: &Device, flags: u32) -> Result<u32> {
        let mut data = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
            flags,
            dev_id: device.id(),
            pt_id: self.ioas(),
            ..Default::default()
        };
        let iommufd = self.shared.ops.iommufd("page tables of its own")?.iommufd();
        iommufd
            .alloc_iommu_hwpt(&mut data)
            .map_err(wrap("allocating a HWPT"))?;
        Ok(data.out_hwpt_id)
    }

    /// Destroys an object of this `/dev/iommu` by its id.
    ///
    /// # Errors
    /// [`Error::Iommufd`]: EBUSY while it is in use, ENOENT if there is none.
    pub fn destroy(&self, id: u32) -> Result<()> {
        let iommufd = self.shared.ops.iommufd("objects")?.iommufd();
        iommufd
            .destroy_iommu_object(id)
            .map_err(wrap("destroying an object"))
    }

    /// Maps `memory` at `iova`, readable and writable, in the way of its kind.
    ///
    /// # Errors
    /// [`Error::Iommufd`]: EEXIST if something is mapped there, EINVAL if the range is not allowed.
    pub fn map(&self, iova: u64, memory: &Arc<DmaMemory>) -> Result<Area> {
        self.map_with(iova, memory, READ | WRITE)
    }

    /// As [`Vm::map`], read-only for devices.
    ///
    /// # Errors
    /// As for [`Vm::map`].
    pub fn map_read_only(&self, iova: u64, memory: &Arc<DmaMemory>) -> Result<Area> {
        self.map_with(iova, memory, READ)
    }

    fn map_with(&self, iova: u64, memory: &Arc<DmaMemory>, prot: u32) -> Result<Area> {
        let ops = match &self.shared.ops {
            Ops::Iommufd(ops) => ops,
            Ops::Container(_) if prot & WRITE == 0 => {
                return Err(Error::NotInContainer("read-only mappings here"));
            }
            Ops::Container(ops) => {
                ioctl::map_in_container(ops, iova, memory).map_err(container("mapping in"))?;
                return Ok(self.mapped_at(iova, memory));
            }
        };
        match (memory.kind(), memory.file()) {
            (MemoryKind::File, Some(file)) => ops
                .ioas()
                .map_file(file.as_raw_fd(), 0, memory.len(), iova, prot & WRITE != 0)
                .map_err(wrap("mapping a file for DMA"))?,
            _ => {
                let map = iommu_ioas_map {
                    size: size_of::<iommu_ioas_map>() as u32,
                    flags: FIXED | prot,
                    ioas_id: self.ioas(),
                    user_va: memory.address(),
                    length: memory.len(),
                    iova,
                    ..Default::default()
                };
                ops.iommufd()
                    .map_iommu_ioas(&map)
                    .map_err(wrap("mapping memory for DMA"))?;
            }
        }
        Ok(self.mapped_at(iova, memory))
    }

    fn mapped_at(&self, iova: u64, memory: &Arc<DmaMemory>) -> Area {
        self.mapped().insert(iova, Arc::clone(memory));
        Area {
            iova,
            memory: Arc::clone(memory),
        }
    }

    /// Unmaps what was mapped as `area`. When it returns, no device reaches the memory any more.
    ///
    /// # Errors
    /// [`Error::Iommufd`], or [`Error::UnmapLength`] if another length was mapped there.
    pub fn unmap(&self, area: &Area) -> Result<()> {
        match self.unmap_range(area.iova, area.len())? {
            unmapped if unmapped == area.len() => Ok(()),
            unmapped => Err(Error::UnmapLength {
                unmapped,
                expected: area.len(),
            }),
        }
    }

    /// Unmaps whatever is mapped in `len` bytes from `iova` and gives back how many bytes that was.
    ///
    /// # Errors
    /// [`Error::Iommufd`]: ENOENT if the range cuts a mapping or holds none.
    pub fn unmap_range(&self, iova: u64, len: u64) -> Result<u64> {
        let last = iova.saturating_add(len.saturating_sub(1));
        let forget = || {
            self.mapped()
                .retain(|start, _| !(iova..=last).contains(start));
        };
        if let Ops::Container(ops) = &self.shared.ops {
            ops.vfio_dma_unmap(iova, len as usize)
                .map_err(container("unmapping in"))?;
            forget();
            return Ok(len);
        }
        let mut data = iommu_ioas_unmap {
            size: size_of::<iommu_ioas_unmap>() as u32,
            ioas_id: self.ioas(),
            iova,
            length: len,
        };
        let iommufd = self.shared.ops.iommufd("IOAS")?.iommufd();
        iommufd
            .unmap_iommu_ioas(&mut data)
            .map_err(wrap("unmapping"))?;
        forget();
        Ok(data.length)
    }

    /// Maps the `len` bytes at `from` a second time at `to`.
    ///
    /// # Errors
    /// [`Error::System`] with the errno.
    pub fn copy_mapping(&self, from: u64, to: u64, len: u64) -> Result<()> {
        let (flags, ioas) = (FIXED | READ | WRITE, self.ioas());
        let iommufd = self.shared.ops.iommufd("copies of mappings")?.iommufd();
        ioctl::copy(&**iommufd, flags, (ioas, to), (ioas, from), len)?;
        let memory = self.mapped().get(&from).cloned();
        if let Some(memory) = memory {
            self.mapped().insert(to, memory);
        }
        Ok(())
    }

    /// The IOVA ranges that may be mapped, both ends inclusive, and the alignment they need.
    ///
    /// # Errors
    /// [`Error::System`] with the errno.
    pub fn iova_ranges(&self) -> Result<(Vec<(u64, u64)>, u64)> {
        let iommufd = self.shared.ops.iommufd("IOAS to ask")?.iommufd();
        ioctl::iova_ranges(&**iommufd, self.ioas())
    }

    fn mapped(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<DmaMemory>>> {
        self.shared
            .mapped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("ioas", &self.ioas())
            .field("mapped", &self.mapped().len())
            .finish_non_exhaustive()
    }
}

fn container(doing: &'static str) -> impl FnOnce(VfioError) -> Error {
    move |error| Error::Vfio {
        doing,
        path: "/dev/vfio/vfio".into(),
        error,
    }
}

fn wrap(doing: &'static str) -> impl FnOnce(IommufdError) -> Error {
    move |error| Error::Iommufd { doing, error }
}
