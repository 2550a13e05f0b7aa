//! A program with a flat memory, a container, an iommufd and two groups: of a whole device and of a
//! child.

use std::sync::Arc;

use ioasid_core::{
    AddrRange, Prot,
    host::{Caller, FdError, IrqSink},
    memory::{Extent, MemoryGone, OwnPages, PageSource, PinError},
    spa::SpaSpace,
    sync::Mutex,
};
use ioasid_iommu::{Device, DeviceConfig, Iommu, IommuConfig};
use ioasid_iommufd::Context;
use ioasid_uapi::{
    Errno, Program,
    vfio::{container_ioctl, group_ioctl},
};
use ioasid_vfio::{
    Container, ContainerFile, DeviceFile, GroupFile, Passthrough, Vfio, VfioDevice,
    pci::{Bar, FunctionBuilder, MsixLayout},
};

use crate::common::{
    BASE, FlatMemory, SIZE,
    device::{Child, Model},
};

pub(crate) const PDEV: &str = "0000:6b:01.0";
pub(crate) const UUID: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";

/// A `/dev/vfio/vfio` file.
pub(crate) const CONTAINER: i32 = 3;
/// A `/dev/iommu` file.
pub(crate) const IOMMUFD: i32 = 4;
/// A file that is neither.
pub(crate) const FILE: i32 = 5;
/// Not open.
pub(crate) const CLOSED: i32 = 99;
/// The first device file that is given out.
pub(crate) const FIRST_DEVICE: u64 = 20;

#[derive(Debug)]
pub(crate) struct TestProgram {
    pub(crate) memory: FlatMemory,
    space: Arc<SpaSpace>,
    container: Mutex<Arc<Container>>,
    pub(crate) context: Arc<Context>,
    pub(crate) devices: Mutex<Vec<Arc<DeviceFile>>>,
    /// It can be given no descriptor.
    pub(crate) full: Mutex<bool>,
}

impl TestProgram {
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.put(address, bytes);
    }

    pub(crate) fn word(&self, address: u64) -> u32 {
        self.memory.word(address)
    }

    pub(crate) fn long(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

impl Caller for TestProgram {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory.read(address, dst)
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.memory.write(address, src)
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        let all = AddrRange::from_len(BASE, SIZE as u64).unwrap();
        let range = AddrRange::from_len(address, len).ok_or(PinError::OutOfRange)?;
        if all.intersect(range) == Some(range) {
            let len = usize::try_from(len).map_err(|_| PinError::NoMemory)?;
            return Ok(Arc::new(OwnPages::new(&self.space, len)?));
        }
        Ok(Arc::new(Hole(len)))
    }

    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn PageSource>, FdError> {
        Err(FdError::NotOpen)
    }

    fn eventfd(&self, _: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        Err(FdError::NotOpen)
    }
}

/// An address range where nothing is.
#[derive(Debug)]
struct Hole(u64);

impl PageSource for Hole {
    fn size(&self) -> u64 {
        self.0
    }

    fn pin(&self, _: u64, _: u64, _: Prot) -> Result<Vec<Extent>, PinError> {
        Err(PinError::Fault)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }
}

impl Program for TestProgram {
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError> {
        match fd {
            IOMMUFD => Ok(Arc::clone(&self.context)),
            CONTAINER | FILE => Err(FdError::WrongType),
            _ => Err(FdError::NotOpen),
        }
    }

    fn container(&self, fd: i32) -> Result<ContainerFile, FdError> {
        match fd {
            CONTAINER => Ok(ContainerFile::Container(Arc::clone(&self.container.lock()))),
            fd => self.iommufd(fd).map(ContainerFile::Iommufd),
        }
    }

    fn install_device_file(&self, file: Arc<DeviceFile>) -> Result<i32, FdError> {
        if *self.full.lock() {
            return Err(FdError::NoneFree);
        }
        let mut devices = self.devices.lock();
        devices.push(file);
        Ok(FIRST_DEVICE as i32 + devices.len() as i32 - 1)
    }
}

/// A device with a vector.
fn model() -> Arc<Model> {
    let function = FunctionBuilder::new(0x1b36, 0x0005)
        .bar(0, Bar::memory64(0x4000))
        .express()
        .msix(MsixLayout::new(0, 0x2000, 0x3000, 1))
        .build();
    Arc::new(Model::new(function.unwrap()))
}

pub(crate) struct Machine {
    pub(crate) iommu: Arc<Iommu>,
    pub(crate) vfio: Arc<Vfio>,
    pub(crate) dma: Arc<Device>,
    pub(crate) whole: Arc<VfioDevice>,
    pub(crate) group: Arc<GroupFile>,
    pub(crate) child_group: Arc<GroupFile>,
    pub(crate) program: TestProgram,
}

impl Machine {
    /// Two open groups in nothing.
    pub(crate) fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let add = |address: &str| {
            let config = DeviceConfig::new(address.parse().unwrap());
            iommu.add_device(config).unwrap()
        };
        let (dma, parent) = (add(PDEV), add("0000:6a:01.0"));
        let vfio = Vfio::new(&iommu);
        let whole = vfio.add(model(), Passthrough::Whole(Arc::clone(&dma)));
        let passthrough = Passthrough::Child(Arc::new(Child(parent)));
        let child = vfio.add_named(UUID.to_owned(), model(), passthrough);
        Machine {
            group: whole.group().open().unwrap(),
            child_group: child.group().open().unwrap(),
            program: TestProgram {
                memory: FlatMemory::default(),
                space: Arc::clone(iommu.space()),
                container: Mutex::new(Container::new(Context::new(&iommu))),
                context: Context::new(&iommu),
                devices: Mutex::default(),
                full: Mutex::new(false),
            },
            iommu,
            vfio,
            dma,
            whole,
        }
    }

    /// The whole device's group in the container, with this backend.
    pub(crate) fn with_iommu(version: u64) -> Self {
        let machine = Machine::new();
        machine.set_container(CONTAINER).unwrap();
        machine.container_at(SET_IOMMU, version).unwrap();
        machine
    }

    pub(crate) fn set_container(&self, fd: i32) -> Result<u64, Errno> {
        self.group(SET_CONTAINER, &fd.to_ne_bytes())
    }

    /// The ioctl `cmd` of the group with these bytes as its argument.
    pub(crate) fn group(&self, cmd: u32, bytes: &[u8]) -> Result<u64, Errno> {
        self.program.put(BASE, bytes);
        self.group_at(cmd, BASE)
    }

    pub(crate) fn group_at(&self, cmd: u32, arg: u64) -> Result<u64, Errno> {
        Ok(group_ioctl(&self.group, cmd, arg, &self.program)?)
    }

    /// The same of the child's group.
    pub(crate) fn child(&self, cmd: u32, bytes: &[u8]) -> Result<u64, Errno> {
        self.program.put(BASE, bytes);
        Ok(group_ioctl(&self.child_group, cmd, BASE, &self.program)?)
    }

    /// The ioctl `cmd` of the container with these bytes as its struct.
    pub(crate) fn container(&self, cmd: u32, bytes: &[u8]) -> Result<u64, Errno> {
        self.program.put(BASE, bytes);
        self.container_at(cmd, BASE)
    }

    pub(crate) fn container_at(&self, cmd: u32, arg: u64) -> Result<u64, Errno> {
        let container = Arc::clone(&self.program.container.lock());
        Ok(container_ioctl(&container, cmd, arg, &self.program)?)
    }
}

use ioasid_uapi::spec::{container::SET_IOMMU, group::SET_CONTAINER};
