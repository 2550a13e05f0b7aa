//! A program with a flat memory and a few files, and a `/dev/iommu` file for it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use ioasid_core::{
    Pasid, Prot,
    host::{Caller, FdError, IrqSink},
    memory::{Extent, MemoryGone, OwnPages, PageSource, PinError},
};
use ioasid_iommu::{Device, DeviceConfig, FaultLog, Iommu, IommuConfig};
use ioasid_iommufd::{BoundDevice, Context, EventFile};
use ioasid_uapi::{
    Errno, Program,
    iommufd::{COMMANDS, ioctl},
    spec::iommufd as spec,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::backend::{KIND, Toy};

/// The program's memory starts here.
pub(crate) const BASE: u64 = 0x10_0000;
/// And has this many bytes.
pub(crate) const SIZE: usize = 0x4_0000;
/// Its last page cannot be written.
pub(crate) const READ_ONLY: u64 = BASE + SIZE as u64 - PAGE;
/// Memory for arrays and pages, apart from the struct.
pub(crate) const DATA: u64 = BASE + 0x1_0000;
/// A memfd of [`FILE_SIZE`] bytes.
pub(crate) const FILE: i32 = 3;
/// A file that has no pages.
pub(crate) const PIPE: i32 = 4;
pub(crate) const FILE_SIZE: u64 = 0x1_0000;
pub(crate) const PAGE: u64 = 4096;
/// The first descriptor that the program is given.
pub(crate) const EVENTS: usize = 10;
/// An id that nothing has.
pub(crate) const NOBODY: u32 = 1000;

#[derive(Debug)]
pub(crate) struct TestProgram {
    memory: OwnPages,
    file: OwnPages,
    /// Files of events that it was given; the first has the descriptor [`EVENTS`].
    events: Mutex<Vec<Arc<dyn EventFile>>>,
    descriptors: AtomicUsize,
}

impl TestProgram {
    pub(crate) fn new(iommu: &Iommu) -> Self {
        TestProgram {
            memory: OwnPages::new(iommu.space(), SIZE).unwrap(),
            file: OwnPages::new(iommu.space(), FILE_SIZE as usize).unwrap(),
            events: Mutex::default(),
            descriptors: AtomicUsize::new(usize::MAX),
        }
    }

    /// How many files of events it can be given altogether.
    pub(crate) fn give_descriptors(&self, count: usize) {
        self.descriptors.store(count, Ordering::Relaxed);
    }

    pub(crate) fn event_file(&self, fd: u32) -> Arc<dyn EventFile> {
        Arc::clone(&self.events.lock().unwrap()[fd as usize - EVENTS])
    }

    pub(crate) fn event_files(&self) -> Vec<Arc<dyn EventFile>> {
        self.events.lock().unwrap().clone()
    }

    fn offset(address: u64, len: usize) -> Result<usize, MemoryGone> {
        let gone = MemoryGone { done: 0 };
        let start = address.checked_sub(BASE).ok_or(gone)?;
        let start = usize::try_from(start).map_err(|_| gone)?;
        let end = start.checked_add(len).ok_or(gone)?;
        if end <= SIZE { Ok(start) } else { Err(gone) }
    }
}

impl Caller for TestProgram {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory
            .memory()
            .read(Self::offset(address, dst.len())?, dst);
        Ok(())
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let offset = Self::offset(address, src.len())?;
        if address + src.len() as u64 > READ_ONLY {
            return Err(MemoryGone { done: 0 });
        }
        self.memory.memory().write(offset, src);
        Ok(())
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        Ok(Arc::new(View {
            pages: self.memory.clone(),
            offset: address.wrapping_sub(BASE),
            len,
            address,
            file: false,
        }))
    }

    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        match fd {
            FILE if start.checked_add(len).is_none_or(|end| end > FILE_SIZE) => {
                Err(FdError::BeyondEnd)
            }
            FILE => Ok(Arc::new(View {
                pages: self.file.clone(),
                offset: start,
                len,
                address: start,
                file: true,
            })),
            PIPE => Err(FdError::WrongType),
            _ => Err(FdError::NotOpen),
        }
    }

    fn eventfd(&self, _fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        Err(FdError::NotOpen)
    }
}

impl Program for TestProgram {
    fn iommufd(&self, _fd: i32) -> Result<Arc<Context>, FdError> {
        Err(FdError::NotOpen)
    }

    fn install_event_file(&self, file: Arc<dyn EventFile>, cloexec: bool) -> Result<i32, FdError> {
        assert!(cloexec, "as the kernel does");
        let mut events = self.events.lock().unwrap();
        if events.len() >= self.descriptors.load(Ordering::Relaxed) {
            return Err(FdError::NoneFree);
        }
        events.push(file);
        Ok((EVENTS + events.len() - 1) as i32)
    }
}

/// Part of the program's memory or file.
#[derive(Debug)]
struct View {
    pages: OwnPages,
    offset: u64,
    len: u64,
    address: u64,
    file: bool,
}

impl PageSource for View {
    fn size(&self) -> u64 {
        self.len
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        let start = self.offset.checked_add(offset).ok_or(PinError::Fault)?;
        let end = start.checked_add(len).ok_or(PinError::Fault)?;
        if !self.file && prot.write && end > READ_ONLY - BASE {
            return Err(PinError::Fault);
        }
        self.pages
            .pin(start, len, prot)
            .map_err(|_| PinError::Fault)
    }

    fn alignment_hint(&self) -> u64 {
        self.address
    }

    fn is_file(&self) -> bool {
        self.file
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.pages.read(self.offset.saturating_add(offset), dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.pages.write(self.offset.saturating_add(offset), src)
    }
}

pub(crate) struct Machine {
    pub(crate) iommu: Arc<Iommu>,
    pub(crate) context: Arc<Context>,
    pub(crate) program: TestProgram,
}

/// The request number of a command.
pub(crate) fn request(name: &str) -> u32 {
    let command = COMMANDS.iter().find(|command| command.name == name);
    command.expect("a command").request
}

impl Machine {
    pub(crate) fn new() -> Self {
        Machine::on(&Iommu::new(IommuConfig::default()))
    }

    /// A new program and file on a machine that may have had others.
    pub(crate) fn on(iommu: &Arc<Iommu>) -> Self {
        Machine {
            context: Context::new(iommu),
            program: TestProgram::new(iommu),
            iommu: Arc::clone(iommu),
        }
    }

    fn device(&self, address: &str) -> Arc<Device> {
        let address = address.parse().unwrap();
        match self.iommu.device(address) {
            Some(device) => device,
            None => self.iommu.add_device(DeviceConfig::new(address)).unwrap(),
        }
    }

    /// A whole device, bound.
    pub(crate) fn pdev(&self) -> BoundDevice {
        let device = self.device("0000:6b:01.0");
        self.context.bind_device(&device, FaultLog::new(8)).unwrap()
    }

    /// A child, bound.
    pub(crate) fn mdev(&self) -> BoundDevice {
        let device = self.device("0000:6a:01.0");
        let pasid = Pasid::new(5).unwrap();
        self.context
            .bind_pasid(&device, pasid, FaultLog::new(8))
            .unwrap()
    }

    /// A whole device behind a back end of its own, bound.
    pub(crate) fn toy(&self) -> BoundDevice {
        let device = self.device("0000:6c:01.0");
        let faults = FaultLog::new(8);
        self.context
            .bind_device_with(&device, faults, Arc::new(Toy))
            .unwrap()
    }

    /// Such a device, a page table to nest on, and a virtual IOMMU.
    pub(crate) fn viommu(&self) -> (BoundDevice, u32, u32) {
        let toy = self.toy();
        let ioas = self.ioas();
        let parent = spec::HwptAlloc {
            flags: 1,
            dev_id: toy.id().get(),
            pt_id: ioas,
            ..Default::default()
        };
        let (result, parent) = self.run("HWPT_ALLOC", parent);
        assert_eq!(result, Ok(0));
        let viommu = spec::ViommuAlloc {
            kind: KIND,
            dev_id: toy.id().get(),
            hwpt_id: parent.out_hwpt_id,
            ..Default::default()
        };
        let (result, viommu) = self.run("VIOMMU_ALLOC", viommu);
        assert_eq!(result, Ok(0));
        (toy, parent.out_hwpt_id, viommu.out_viommu_id)
    }

    /// The IOAS that [`Machine::viommu`] has made, two ids before the virtual IOMMU's.
    pub(crate) fn ioas_of(&self, viommu: u32) -> u32 {
        viommu - 2
    }

    pub(crate) fn at(&self, request: u32, address: u64) -> Result<u64, Errno> {
        Ok(ioctl(&self.context, request, address, &self.program)?)
    }

    /// Runs a command with this struct (its `size` is set here); what it has become, and the result.
    pub(crate) fn run<T>(&self, name: &str, mut args: T) -> (Result<u64, Errno>, T)
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let size = size_of::<T>() as u32;
        args.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        self.put(BASE, args.as_bytes());
        let result = self.at(request(name), BASE);
        (result, self.get(BASE))
    }

    /// As [`Machine::run`], for those that write nothing back or whose answer does not matter.
    pub(crate) fn result<T>(&self, name: &str, args: T) -> Result<u64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.run(name, args).0
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.program.write(address, bytes).unwrap();
    }

    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, address: u64) -> T {
        let mut value = T::new_zeroed();
        self.program.read(address, value.as_mut_bytes()).unwrap();
        value
    }

    pub(crate) fn ioas(&self) -> u32 {
        self.context.ioas_alloc().unwrap().get()
    }
}
