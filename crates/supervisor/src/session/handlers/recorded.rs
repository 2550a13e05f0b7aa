//! A program whose ioctl is traced: what the ioctl does with its memory and its descriptors is noted,
//! so that a replay can give the same answers.

use std::sync::Arc;

use ioasid_core::{
    Prot,
    host::{Account, Caller, EventfdWatch, FdError, IrqSink},
    memory::{self, MemoryGone, PageSource, PinError},
};
use ioasid_iommufd::{Context, EventFile};
use ioasid_trace::schema::{
    Exchange, Extent, Hex,
    errors::{descriptor_word, pin_word},
};
use ioasid_uapi::Program;
use ioasid_vfio::{ContainerFile, DeviceFile};

use super::ioctl_caller::IoctlCaller;
use crate::session::steps::Steps;

/// A program in the middle of an ioctl that is traced.
#[derive(Debug)]
pub(crate) struct Recorded<'a> {
    program: &'a IoctlCaller<'a>,
    steps: &'a Arc<Steps>,
}

impl<'a> Recorded<'a> {
    /// `program`, whose steps are noted in `steps`.
    pub(crate) fn new(program: &'a IoctlCaller<'a>, steps: &'a Arc<Steps>) -> Self {
        Recorded { program, steps }
    }

    /// Notes a source of pages, which notes what is pinned of it.
    fn pages_of<E: Copy>(
        &self,
        (at, len): (u64, u64),
        fd: Option<i32>,
        made: Result<Arc<dyn PageSource>, E>,
        word: impl FnOnce(E) -> &'static str,
    ) -> Result<Arc<dyn PageSource>, E> {
        let source = made.as_ref().ok();
        let hint = source.map_or(0, |pages| pages.alignment_hint());
        self.steps.add(Exchange::Pages {
            at: Hex(at),
            len: Hex(len),
            fd,
            from_file: source.is_some_and(|pages| pages.is_file()),
            of_device: source.is_some_and(|pages| pages.is_device()),
            hint: (hint != 0).then_some(Hex(hint)),
            error: made.as_ref().err().map(|error| word(*error).into()),
        });
        let pages = made?;
        Ok(Arc::new(RecordedPages {
            pages,
            start: at,
            steps: Arc::clone(self.steps),
        }))
    }

    fn looked_up<T>(&self, fd: i32, found: Result<T, FdError>) -> Result<T, FdError> {
        self.steps.add(Exchange::Descriptor {
            fd,
            file: self.program.number_of(fd),
            error: found.as_ref().err().map(|e| descriptor_word(*e).into()),
        });
        found
    }

    fn gave(&self, given: Result<i32, FdError>) -> Result<i32, FdError> {
        self.steps.add(Exchange::Gave {
            fd: given.as_ref().ok().copied(),
            file: None,
            error: given.as_ref().err().map(|e| descriptor_word(*e).into()),
        });
        given
    }
}

impl Caller for Recorded<'_> {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let read = self.program.read(address, dst);
        self.steps.read(address, dst, read.is_ok());
        read
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let written = self.program.write(address, src);
        self.steps.wrote(address, src, written.is_ok());
        written
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        let made = self.program.pages(address, len);
        self.pages_of((address, len), None, made, pin_word)
    }

    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        let made = self.program.file_pages(fd, start, len);
        self.pages_of((start, len), Some(fd), made, descriptor_word)
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        self.looked_up(fd, self.program.eventfd(fd))
    }

    fn watch_eventfd(
        &self,
        fd: i32,
        listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        self.looked_up(fd, self.program.watch_eventfd(fd, listener))
    }

    fn flush_interrupts(&self) {
        self.program.flush_interrupts();
    }

    fn account(&self) -> Account {
        let account = self.program.account();
        self.steps.add(Exchange::Account {
            process: Hex(account.process),
            user: account.user,
            unlimited: account.unlimited,
            limit: account.limit.map(Hex),
        });
        account
    }
}

impl Program for Recorded<'_> {
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError> {
        self.looked_up(fd, self.program.iommufd(fd))
    }

    fn container(&self, fd: i32) -> Result<ContainerFile, FdError> {
        self.looked_up(fd, self.program.container(fd))
    }

    fn event_file(&self, fd: i32) -> Result<Arc<dyn EventFile>, FdError> {
        self.looked_up(fd, self.program.event_file(fd))
    }

    fn pages_or_registers(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        let made = self.program.pages_or_registers(address, len);
        self.pages_of((address, len), None, made, pin_word)
    }

    fn install_device_file(&self, file: Arc<DeviceFile>) -> Result<i32, FdError> {
        self.gave(self.program.install_device_file(file))
    }

    fn install_event_file(&self, file: Arc<dyn EventFile>, cloexec: bool) -> Result<i32, FdError> {
        self.gave(self.program.install_event_file(file, cloexec))
    }
}

/// Pages that note what is pinned of them, by this call or a later one.
#[derive(Debug)]
struct RecordedPages {
    pages: Arc<dyn PageSource>,
    /// The address or offset of the first byte.
    start: u64,
    steps: Arc<Steps>,
}

impl RecordedPages {
    fn not_pinned(&self, offset: u64, len: u64, error: PinError) {
        self.steps.add(Exchange::NotPinned {
            at: Hex(self.start.wrapping_add(offset)),
            len: Hex(len),
            error: pin_word(error).into(),
        });
    }
}

impl PageSource for RecordedPages {
    fn size(&self) -> u64 {
        self.pages.size()
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<memory::Extent>, PinError> {
        let pinned = self.pages.pin(offset, len, prot);
        match &pinned {
            Ok(extents) => self.steps.add(Exchange::Pinned {
                at: Hex(self.start.wrapping_add(offset)),
                len: Hex(len),
                extents: extents
                    .iter()
                    .map(|extent| Extent {
                        spa: Hex(extent.spa),
                        len: Hex(extent.len),
                    })
                    .collect(),
            }),
            Err(error) => self.not_pinned(offset, len, *error),
        }
        pinned
    }

    fn alignment_hint(&self) -> u64 {
        self.pages.alignment_hint()
    }

    fn is_file(&self) -> bool {
        self.pages.is_file()
    }

    fn is_device(&self) -> bool {
        self.pages.is_device()
    }

    fn on_revoke(&self, on_revoke: Box<dyn Fn() + Send + Sync>) {
        self.pages.on_revoke(on_revoke);
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let read = self.pages.read(offset, dst);
        if read.is_err() {
            self.not_pinned(offset, dst.len() as u64, PinError::Fault);
        }
        read
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let written = self.pages.write(offset, src);
        if written.is_err() {
            self.not_pinned(offset, src.len() as u64, PinError::Fault);
        }
        written
    }
}
