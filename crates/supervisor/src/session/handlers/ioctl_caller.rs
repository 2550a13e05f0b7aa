//! The program behind an ioctl, as the crate that understands ioctls sees it.

use std::sync::{Arc, Mutex, PoisonError};

use ioasid_core::{
    failpoint,
    host::{Account, Caller, EventfdWatch, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
    range::AddrRange,
};
use ioasid_host::Process;
use ioasid_iommufd::{Context, EventFile};
use ioasid_uapi::{CallError, Program, error::FileError};
use ioasid_vfio::{ContainerFile, DeviceFile};

use crate::session::{
    answer::Pending,
    descriptors::{Descriptors, files::Files, numbers::Numbers, object::Object},
    steps::Steps,
};

/// A program in the middle of an ioctl.
#[derive(Debug)]
pub(crate) struct IoctlCaller<'a> {
    process: &'a Arc<Process>,
    files: &'a Files,
    numbers: Numbers,
    argument: Mutex<Argument>,
    /// Files that it gets if the ioctl succeeds, each with the number it was promised.
    promised: Mutex<Vec<Promise>>,
    /// A descriptor that should have been a file of the machine and was none.
    not_bound: Mutex<Option<i32>>,
}

/// What came of the descriptors of an ioctl.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// What the program is to be given.
    pub(crate) promises: Vec<Promise>,
    /// A descriptor that the argument names, of another kind of file than the machine's.
    pub(crate) not_bound: Option<i32>,
}

/// A new file and the number that the program will find it at.
#[derive(Debug)]
pub(crate) struct Promise {
    number: u32,
    file: Promised,
    cloexec: bool,
}

/// What an ioctl can give a descriptor to.
#[derive(Clone, Debug)]
enum Promised {
    Event(Arc<dyn EventFile>),
    Device(Arc<DeviceFile>),
}

impl Promised {
    /// No program has it, or will ever have it.
    fn close(&self) {
        match self {
            Promised::Event(file) => file.closed(),
            Promised::Device(file) => file.close(),
        }
    }
}

/// The structure that the ioctl's argument points to, read in one piece: its decoder looks at
/// its size first and then at the rest.
#[derive(Debug)]
struct Argument {
    address: u64,
    bytes: [u8; Argument::SIZE],
    /// How many were read.
    len: usize,
    /// Nothing is to be read any more, or it has been written to since.
    spent: bool,
}

impl Argument {
    /// More than any structure that has a fixed size.
    const SIZE: usize = 80;

    fn new(address: u64) -> Self {
        Argument {
            address,
            bytes: [0; Self::SIZE],
            len: 0,
            spent: false,
        }
    }

    /// Fills `dst` if it is all in here.
    fn read(&mut self, process: &Process, address: u64, dst: &mut [u8]) -> bool {
        if self.len == 0 && !self.spent {
            self.len = self.fetch(process);
            self.spent = self.len == 0;
        }
        match self.part(address, dst.len()) {
            Some(found) => {
                dst.copy_from_slice(found);
                true
            }
            None => false,
        }
    }

    /// Whether these bytes were there when it was read, and nothing was written since.
    fn holds(&self, address: u64, bytes: &[u8]) -> bool {
        self.part(address, bytes.len()) == Some(bytes)
    }

    fn part(&self, address: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(self.address)?).ok()?;
        let read = self.bytes.get(..self.len).filter(|_| !self.spent)?;
        read.get(start..)?.get(..len)
    }

    /// Not beyond the page, whose neighbour need not be there.
    fn fetch(&mut self, process: &Process) -> usize {
        let in_page = 4096 - self.address % 4096;
        let len = usize::try_from(in_page).map_or(Self::SIZE, |n| n.min(Self::SIZE));
        let bytes = self.bytes.get_mut(..len).unwrap_or_default();
        match process.read(self.address, bytes) {
            Ok(()) => len,
            Err(_) => 0,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> IoctlCaller<'a> {
    pub(crate) fn new(
        process: &'a Arc<Process>,
        files: &'a Files,
        numbers: Numbers,
        arg: u64,
    ) -> Self {
        IoctlCaller {
            process,
            files,
            numbers,
            argument: Mutex::new(Argument::new(arg)),
            promised: Mutex::default(),
            not_bound: Mutex::default(),
        }
    }

    /// The number of the file of the machine behind `fd`, if it is one.
    pub(crate) fn number_of(&self, fd: i32) -> Option<u64> {
        let identity = self.process.fd_identity(fd).ok()?;
        Some(self.files.get(identity)?.number)
    }

    /// The file of the machine that the argument names by `fd`.
    fn named(&self, fd: i32) -> Result<&Object, FdError> {
        let identity = self.process.fd_identity(fd)?;
        if self.process.fd_is_a_path(fd) {
            return Err(FdError::NotOpen);
        }
        if let Some(file) = self.files.get(identity) {
            return Ok(&file.object);
        }
        *lock(&self.not_bound) = Some(fd);
        Err(FdError::WrongType)
    }

    /// Promises a number. It is given when the ioctl has succeeded, so that one whose answer cannot
    /// be written leaves no descriptor behind.
    fn promise(&self, file: Promised, cloexec: bool) -> Result<i32, FdError> {
        failpoint::allocation()?;
        let mut promised = lock(&self.promised);
        let taken = |number| promised.iter().any(|promise| promise.number == number);
        let number = self
            .numbers
            .free(self.process)
            .find(|number| !taken(*number))
            .ok_or(FdError::NoneFree)?;
        promised.push(Promise {
            number,
            file,
            cloexec,
        });
        i32::try_from(number).map_err(|_| FdError::NoneFree)
    }

    /// The struct as it was when it was first read, as far as it has been.
    pub(crate) fn argument(&self) -> Vec<u8> {
        let argument = lock(&self.argument);
        argument
            .bytes
            .get(..argument.len)
            .unwrap_or_default()
            .to_vec()
    }

    /// The ioctl is done; nothing is given for one that failed.
    pub(crate) fn finish(self, succeeded: bool) -> Named {
        let not_bound = *lock(&self.not_bound);
        let promised = self.promised.into_inner();
        let mut promises = promised.unwrap_or_else(PoisonError::into_inner);
        if !succeeded {
            promises.drain(..).for_each(Promise::withdraw);
        }
        Named {
            promises,
            not_bound,
        }
    }
}

impl Caller for IoctlCaller<'_> {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        if lock(&self.argument).read(self.process, address, dst) {
            return Ok(());
        }
        self.process.read(address, dst)
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let mut argument = lock(&self.argument);
        if argument.holds(address, src)
            && let Some(range) = AddrRange::from_len(address, src.len() as u64)
            && self.process.is_writable(range)
        {
            // What would be written is there already. A program that maps at an address of its own
            // choice gets its structure back as it was, and such programs map a lot.
            return Ok(());
        }
        argument.spent = true;
        drop(argument);
        self.process.write(address, src)
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        self.process.pages(address, len)
    }

    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        self.process.file_pages(fd, start, len)
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        self.process.eventfd(fd)
    }

    fn watch_eventfd(
        &self,
        fd: i32,
        listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        self.process.watch_eventfd(fd, listener)
    }

    fn flush_interrupts(&self) {
        self.process.flush_interrupts();
    }

    fn account(&self) -> Account {
        self.process.account()
    }
}

impl Program for IoctlCaller<'_> {
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError> {
        match self.named(fd)? {
            Object::Iommufd(context) => Ok(Arc::clone(context)),
            _ => Err(FdError::WrongType),
        }
    }

    fn event_file(&self, fd: i32) -> Result<Arc<dyn EventFile>, FdError> {
        match self.named(fd)? {
            Object::Event(pipe) => Ok(Arc::clone(pipe.file())),
            _ => Err(FdError::WrongType),
        }
    }

    fn pages_or_registers(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        self.process.pages_or_registers(address, len)
    }

    fn container(&self, fd: i32) -> Result<ContainerFile, FdError> {
        match self.named(fd)? {
            Object::Iommufd(context) => Ok(ContainerFile::Iommufd(Arc::clone(context))),
            Object::Container(container) => Ok(ContainerFile::Container(Arc::clone(container))),
            _ => Err(FdError::WrongType),
        }
    }

    fn install_event_file(&self, file: Arc<dyn EventFile>, cloexec: bool) -> Result<i32, FdError> {
        self.promise(Promised::Event(file), cloexec)
    }

    fn install_device_file(&self, file: Arc<DeviceFile>) -> Result<i32, FdError> {
        self.promise(Promised::Device(file), true)
    }
}

/// Gives the program what it was promised; the call still waits.
pub(crate) fn keep(
    descriptors: &mut Descriptors,
    call: Pending<'_>,
    promises: Vec<Promise>,
    steps: Option<&Steps>,
) -> Result<(), CallError> {
    let first = descriptors.files.last_number() + 1;
    let mut promises = promises.into_iter();
    for promise in promises.by_ref() {
        let made = match promise.file.clone() {
            Promised::Event(file) => descriptors.files.create_event(file),
            Promised::Device(file) => descriptors.files.create_device(file),
        };
        let Promise {
            number, cloexec, ..
        } = promise;
        let given = made.and_then(|file| descriptors.replace(call, &file, number, cloexec));
        if let Err(error) = given {
            // If it could be made and not given, the end of our copy has closed it already.
            promise.file.close();
            promises.for_each(Promise::withdraw);
            return Err(match error.raw_os_error() {
                Some(libc::EBADF | libc::EMFILE) => FileError::NoNumber.into(),
                _ => FileError::NoResource.into(),
            });
        }
    }
    descriptors.count();
    if let Some(steps) = steps {
        steps.name_given(first..=descriptors.files.last_number());
    }
    Ok(())
}

impl Promise {
    /// The ioctl failed: no program will ever have the file.
    fn withdraw(self) {
        self.file.close();
    }
}
