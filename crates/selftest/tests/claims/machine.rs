//! A program with a flat memory and descriptors that ioctls give it.

use std::sync::{Arc, Mutex};

use ioasid_core::{
    Prot,
    host::{Caller, FdError, IrqSink},
    memory::{Extent, MemoryGone, OwnPages, PageSource, PinError},
};
use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::{Context, EventFile};
use ioasid_selftest::{
    SelfTest,
    spec::{self, TestCmd, op},
};
use ioasid_uapi::{
    Errno, Program,
    iommufd::{COMMANDS, extended_ioctl, ioctl},
    spec::iommufd as uapi,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

pub const PAGE: u64 = 4096;
/// Where structs go.
const ARGS: u64 = BASE;
/// The program's memory starts here.
const BASE: u64 = 0x10_0000;
/// And has this many bytes.
const SIZE: u64 = 0x4_0000;
/// Memory to map and to point at, 16 pages.
pub const BUFFER: u64 = BASE + 0x1_0000;
/// Other memory, 16 pages.
pub const OTHER: u64 = BASE + 0x2_0000;
/// `IOMMU_TEST_CMD`.
pub const TEST_CMD: u32 = 0x3ba0;
/// Where mock page tables begin.
pub const START: u64 = spec::APERTURE_START;
/// An id that nothing has.
pub const NOBODY: u32 = 1000;

#[derive(Debug)]
pub struct TestProgram {
    memory: OwnPages,
    files: Mutex<Vec<Arc<dyn EventFile>>>,
}

impl TestProgram {
    fn offset(address: u64, len: u64) -> Option<usize> {
        let start = address.checked_sub(BASE)?;
        (start.checked_add(len)? <= SIZE).then_some(start as usize)
    }

    /// The last copy of a descriptor goes.
    pub fn close(&self, fd: i32) {
        self.files.lock().unwrap()[fd as usize].closed();
    }
}

impl Caller for TestProgram {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let offset = Self::offset(address, dst.len() as u64).ok_or(MemoryGone { done: 0 })?;
        self.memory.memory().read(offset, dst);
        Ok(())
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let offset = Self::offset(address, src.len() as u64).ok_or(MemoryGone { done: 0 })?;
        self.memory.memory().write(offset, src);
        Ok(())
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        Ok(Arc::new(View {
            pages: self.memory.clone(),
            address,
            len,
        }))
    }

    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn PageSource>, FdError> {
        Err(FdError::NotOpen)
    }

    fn eventfd(&self, _: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        Err(FdError::NotOpen)
    }
}

impl Program for TestProgram {
    fn iommufd(&self, _: i32) -> Result<Arc<Context>, FdError> {
        Err(FdError::NotOpen)
    }

    fn event_file(&self, fd: i32) -> Result<Arc<dyn EventFile>, FdError> {
        let fd = usize::try_from(fd).map_err(|_| FdError::NotOpen)?;
        let files = self.files.lock().unwrap();
        files.get(fd).cloned().ok_or(FdError::NotOpen)
    }

    fn install_event_file(&self, file: Arc<dyn EventFile>, _: bool) -> Result<i32, FdError> {
        let mut files = self.files.lock().unwrap();
        files.push(file);
        Ok(files.len() as i32 - 1)
    }
}

/// Addresses of the program.
#[derive(Debug)]
struct View {
    pages: OwnPages,
    address: u64,
    len: u64,
}

impl View {
    fn offset(&self, offset: u64, len: u64) -> Option<u64> {
        let address = self.address.checked_add(offset)?;
        Some(TestProgram::offset(address, len)? as u64)
    }
}

impl PageSource for View {
    fn size(&self) -> u64 {
        self.len
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        let offset = self.offset(offset, len).ok_or(PinError::Fault)?;
        self.pages.pin(offset, len, prot)
    }

    fn alignment_hint(&self) -> u64 {
        self.address
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let offset = self.offset(offset, dst.len() as u64);
        self.pages.read(offset.ok_or(MemoryGone { done: 0 })?, dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let offset = self.offset(offset, src.len() as u64);
        self.pages.write(offset.ok_or(MemoryGone { done: 0 })?, src)
    }
}

pub struct Machine {
    pub iommu: Arc<Iommu>,
    pub context: Arc<Context>,
    pub program: TestProgram,
}

/// What MOCK_DOMAIN gives.
pub type Mock = spec::MockDomain;

impl Machine {
    pub fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let memory = OwnPages::new(iommu.space(), SIZE as usize).unwrap();
        Machine {
            context: Context::new(&iommu),
            program: TestProgram {
                memory,
                files: Mutex::default(),
            },
            iommu,
        }
    }

    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, address: u64, value: &T) {
        self.program.write(address, value.as_bytes()).unwrap();
    }

    pub fn get<T: FromBytes + IntoBytes>(&self, address: u64) -> T {
        let mut value = T::new_zeroed();
        self.program.read(address, value.as_mut_bytes()).unwrap();
        value
    }

    /// Runs an operation of IOMMU_TEST_CMD: the result and its part of the struct.
    pub fn test<T>(&self, operation: u32, id: u32, args: T) -> (Result<u64, Errno>, T)
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let mut cmd = TestCmd::new_zeroed();
        cmd.size = size_of::<TestCmd>() as u32;
        cmd.op = operation;
        cmd.id = id;
        cmd.args.as_mut_bytes()[..size_of::<T>()].copy_from_slice(args.as_bytes());
        self.put(ARGS, &cmd);
        let result = self.raw(TEST_CMD, ARGS);
        let cmd: TestCmd = self.get(ARGS);
        let (args, _) = T::read_from_prefix(cmd.args.as_bytes()).unwrap();
        (result, args)
    }

    /// As [`Machine::test`], for those whose answer is the result alone.
    pub fn check<T>(&self, operation: u32, id: u32, args: T) -> Result<u64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.test(operation, id, args).0
    }

    /// Any ioctl.
    pub fn raw(&self, request: u32, address: u64) -> Result<u64, Errno> {
        let done = extended_ioctl(&SelfTest, &self.context, request, address, &self.program);
        done.map_err(Errno::from)
    }

    /// As a machine without the mock answers.
    pub fn without_mock(&self, request: u32) -> Result<u64, Errno> {
        ioctl(&self.context, request, ARGS, &self.program).map_err(Errno::from)
    }

    /// Runs one of Linux's own commands.
    pub fn command<T>(&self, name: &str, mut args: T) -> (Result<u64, Errno>, T)
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let command = COMMANDS.iter().find(|command| command.name == name);
        let size = size_of::<T>() as u32;
        args.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        self.put(ARGS, &args);
        let result = self.raw(command.unwrap().request, ARGS);
        (result, self.get(ARGS))
    }

    pub fn ioas(&self) -> u32 {
        self.context.ioas_alloc().unwrap().get()
    }

    /// A mock device on `pt`.
    pub fn mock(&self, pt: u32) -> Mock {
        self.mock_with(pt, 0)
    }

    pub fn mock_with(&self, pt: u32, dev_flags: u32) -> Mock {
        let args = Mock {
            dev_flags,
            ..Mock::default()
        };
        let (result, made) = self.test(op::MOCK_DOMAIN_FLAGS, pt, args);
        assert_eq!(result, Ok(0));
        made
    }

    pub fn destroy(&self, id: u32) -> Result<u64, Errno> {
        let args = uapi::Destroy { size: 0, id };
        self.command("DESTROY", args).0
    }

    /// Maps memory of the program, to be read and written.
    pub fn map(&self, ioas: u32, address: u64, len: u64, iova: u64) -> Result<u64, Errno> {
        let args = uapi::IoasMap {
            flags: uapi::MAP_FIXED_IOVA | uapi::MAP_READABLE | uapi::MAP_WRITEABLE,
            ioas_id: ioas,
            user_va: address,
            length: len,
            iova,
            ..uapi::IoasMap::default()
        };
        self.command("IOAS_MAP", args).0
    }

    pub fn unmap(&self, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        let args = uapi::IoasUnmap {
            ioas_id: ioas,
            iova,
            length,
            ..uapi::IoasUnmap::default()
        };
        self.command("IOAS_UNMAP", args).0
    }

    pub fn check_map(&self, hwpt: u32, iova: u64, length: u64, uptr: u64) -> Result<u64, Errno> {
        let args = spec::CheckMap { iova, length, uptr };
        self.check(op::MD_CHECK_MAP, hwpt, args)
    }

    pub fn check_refs(&self, uptr: u64, length: u64, refs: u32) -> Result<u64, Errno> {
        let args = spec::CheckRefs {
            length,
            uptr,
            refs,
            padding: 0,
        };
        self.check(op::MD_CHECK_REFS, 0, args)
    }
}
