//! A program with a flat memory and a few file descriptors, and a device for it.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use ioasid_core::{
    host::{Caller, CountingIrq, EventfdWatch, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
    sync::Mutex,
};
use ioasid_iommu::{Device, DeviceConfig, Iommu, IommuConfig};
use ioasid_iommufd::Context;
use ioasid_uapi::{Errno, Program, vfio::device_ioctl};
use ioasid_vfio::{
    DeviceFile, EmulatedDma, Passthrough, Vfio,
    pci::{
        Bar, FunctionBuilder, MsixLayout, SriovLayout,
        spec::{DEVCAP2_ATOMIC_32, DEVCAP2_ATOMIC_128},
    },
};

use crate::common::{
    BASE, FlatMemory,
    device::{Child, Model},
};

/// A `/dev/iommu` file.
pub(crate) const IOMMUFD: i32 = 3;
/// A file that is neither that nor an eventfd.
pub(crate) const FILE: i32 = 4;
/// The first of four eventfds.
pub(crate) const EVENTFD: i32 = 10;
/// Not open.
pub(crate) const CLOSED: i32 = 99;

#[derive(Debug)]
pub(crate) struct TestProgram {
    pub(crate) memory: FlatMemory,
    pub(crate) context: Arc<Context>,
    pub(crate) eventfds: [Arc<CountingIrq>; 4],
    /// What listens to eventfds.
    pub(crate) listeners: Mutex<Vec<(i32, Arc<dyn IrqSink>)>>,
}

/// An eventfd that somebody listens to.
#[derive(Debug)]
struct Watch;

impl EventfdWatch for Watch {}

impl TestProgram {
    /// Fills the memory with words from `address` on.
    pub(crate) fn put(&self, address: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.memory.put(address, &bytes);
    }

    /// The word at `address`.
    pub(crate) fn word(&self, address: u64) -> u32 {
        self.memory.word(address)
    }
}

impl Caller for TestProgram {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory.read(address, dst)
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.memory.write(address, src)
    }

    fn pages(&self, _address: u64, _len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        Err(PinError::NoMemory)
    }

    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn PageSource>, FdError> {
        Err(FdError::NotOpen)
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        match fd {
            EVENTFD..14 => Ok(self.eventfds[(fd - EVENTFD) as usize].clone()),
            IOMMUFD | FILE => Err(FdError::WrongType),
            _ => Err(FdError::NotOpen),
        }
    }

    fn watch_eventfd(
        &self,
        fd: i32,
        listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        self.eventfd(fd)?;
        self.listeners.lock().push((fd, listener));
        Ok(Box::new(Watch))
    }
}

impl Program for TestProgram {
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError> {
        match fd {
            IOMMUFD => Ok(Arc::clone(&self.context)),
            FILE | EVENTFD..14 => Err(FdError::WrongType),
            _ => Err(FdError::NotOpen),
        }
    }
}

/// BAR 0 with MSI-X, BAR 2 with wide stores.
fn plain() -> Model {
    let function = FunctionBuilder::new(0x1b36, 0x0005)
        .bar(0, Bar::memory64(0x4000))
        .bar(2, Bar::memory64(0x4000).with_wide_stores())
        .express()
        .msix(MsixLayout::new(0, 0x2000, 0x3000, 4))
        .build();
    Model::new(function.unwrap())
}

/// One with all kinds of interrupts, that completes atomic operations and can have virtual functions.
fn rich() -> Model {
    let function = FunctionBuilder::new(0x1b36, 0x0005)
        .bar(0, Bar::memory64(0x4000))
        .bar(2, Bar::memory64(0x4000))
        .intx()
        .express()
        .atomics(DEVCAP2_ATOMIC_32 | DEVCAP2_ATOMIC_128)
        .msi(2)
        .msix(MsixLayout::new(0, 0x2000, 0x3000, 4))
        .sriov(SriovLayout {
            total: 4,
            offset: 1,
            stride: 1,
            device: 6,
            bars: [None; 6],
        })
        .build();
    Model::new(function.unwrap())
}

/// One program with one open file of one device.
pub(crate) struct Machine {
    pub(crate) iommu: Arc<Iommu>,
    pub(crate) dma: Arc<Device>,
    pub(crate) file: Arc<DeviceFile>,
    pub(crate) program: TestProgram,
    model: Arc<Model>,
}

impl Machine {
    /// With a whole device that has more than others.
    pub(crate) fn rich() -> Self {
        Self::of(rich(), |dma| Passthrough::Whole(Arc::clone(dma)))
    }

    /// What was stored to the device since the last time.
    pub(crate) fn stores(&self) -> Vec<(u8, u64, Vec<u8>)> {
        std::mem::take(&mut self.model.stores.lock())
    }

    /// With a whole device.
    pub(crate) fn whole() -> Self {
        Self::new(|dma| Passthrough::Whole(Arc::clone(dma)))
    }

    /// With a whole device that can be migrated, and a program with no free descriptor.
    pub(crate) fn movable() -> Self {
        Self::of(plain().that_moves(), |dma| {
            Passthrough::Whole(Arc::clone(dma))
        })
    }

    /// With a child.
    pub(crate) fn child() -> Self {
        Self::new(|dma| Passthrough::Child(Arc::new(Child(Arc::clone(dma)))))
    }

    /// With an emulated device.
    pub(crate) fn emulated() -> Self {
        Self::new(|_| Passthrough::Emulated(EmulatedDma::new()))
    }

    fn new(passthrough: impl FnOnce(&Arc<Device>) -> Passthrough) -> Self {
        Self::of(plain(), passthrough)
    }

    fn of(model: Model, passthrough: impl FnOnce(&Arc<Device>) -> Passthrough) -> Self {
        let model = Arc::new(model);
        let iommu = Iommu::new(IommuConfig::default());
        let config = DeviceConfig::new("0000:6b:01.0".parse().unwrap());
        let dma = iommu.add_device(config).unwrap();
        let device = Vfio::new(&iommu).add(model.clone(), passthrough(&dma));
        Machine {
            file: device.open().unwrap(),
            dma,
            program: TestProgram {
                memory: FlatMemory::default(),
                context: Context::new(&iommu),
                eventfds: std::array::from_fn(|_| CountingIrq::new()),
                listeners: Mutex::default(),
            },
            model,
            iommu,
        }
    }

    /// Bound already.
    pub(crate) fn bound(self) -> Self {
        self.file.bind(&self.program.context).unwrap();
        self
    }

    /// The ioctl `cmd` with these words as its struct.
    pub(crate) fn call(&self, cmd: u32, words: &[u32]) -> Result<u64, Errno> {
        self.program.put(BASE, words);
        self.at(cmd, BASE)
    }

    /// The ioctl `cmd` with its struct at `address`.
    pub(crate) fn at(&self, cmd: u32, address: u64) -> Result<u64, Errno> {
        Ok(device_ioctl(&self.file, cmd, address, &self.program)?)
    }

    /// The words of the struct after a call.
    pub(crate) fn words<const N: usize>(&self) -> [u32; N] {
        std::array::from_fn(|at| self.program.word(BASE + 4 * at as u64))
    }
}
