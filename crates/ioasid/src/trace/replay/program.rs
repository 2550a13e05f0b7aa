//! The program of a replay: it answers each call as the traced program did, and notes where the call
//! does something else.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ioasid_core::{
    host::{Account, Caller, CountingIrq, EventfdWatch, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
};
use ioasid_iommufd::{Context, EventFile};
use ioasid_trace::schema::{
    Bytes, Exchange, Hex,
    errors::{descriptor_error, pin_error},
};
use ioasid_uapi::Program;
use ioasid_vfio::{ContainerFile, DeviceFile};

use super::{
    expected::Expected,
    files::{Files, Object},
    memory::{Memory, Pages, Source},
};

/// The program of a replay, in the middle of a call.
#[derive(Debug)]
pub(crate) struct ReplayedProgram<'a> {
    pub(crate) expected: &'a Arc<Expected>,
    pub(crate) memory: &'a Arc<Memory>,
    pub(crate) files: &'a Files,
}

/// Nobody signals an eventfd of a replay.
#[derive(Debug)]
struct Silent;

impl EventfdWatch for Silent {}

/// Numbers for address spaces that no trace has.
static UNKNOWN: AtomicU64 = AtomicU64::new(u64::MAX);

impl ReplayedProgram<'_> {
    /// The pages that the trace says.
    fn pages_of<E: Copy>(
        &self,
        (at, len): (u64, u64),
        fd: Option<i32>,
        error_of: impl Fn(&str) -> Option<E>,
        unknown: E,
    ) -> Result<Arc<dyn PageSource>, E> {
        let made = self.expected.take(|step| match step {
            Exchange::Pages {
                at: known,
                len: bytes,
                fd: of,
                from_file,
                of_device,
                hint,
                error,
            } if (known.0, bytes.0, *of) == (at, len, fd) => {
                if let Some(error) = error {
                    return Some(Err(error_of(error).unwrap_or(unknown)));
                }
                Some(Ok(Source {
                    start: at,
                    len,
                    fd,
                    from_file: *from_file,
                    of_device: *of_device,
                    hint: hint.map_or(0, |hint| hint.0),
                }))
            }
            _ => None,
        });
        let Some(made) = made else {
            let (at, len) = (Hex(at), Hex(len));
            self.expected
                .unexpected(format_args!("pages of {len} bytes at {at}"));
            return Err(unknown);
        };
        let source = made?;
        Ok(Arc::new(Pages {
            memory: Arc::clone(self.memory),
            expected: Arc::clone(self.expected),
            source,
        }))
    }

    /// What the trace says of a descriptor: the file of the machine that it is, if it is one.
    fn look_up(&self, fd: i32) -> Result<Option<Object>, FdError> {
        let found = self.expected.take(|step| match step {
            Exchange::Descriptor {
                fd: known,
                file,
                error,
            } if *known == fd => {
                let error = error.as_ref();
                Some(match error {
                    Some(word) => Err(descriptor_error(word).unwrap_or(FdError::NotOpen)),
                    None => Ok(*file),
                })
            }
            _ => None,
        });
        let Some(found) = found else {
            self.expected
                .unexpected(format_args!("a look at descriptor {fd}"));
            return Err(FdError::NotOpen);
        };
        Ok(found?.and_then(|file| self.files.get(file)))
    }

    /// Gives the program what the trace says.
    fn give(&self, object: Object) -> Result<i32, FdError> {
        let given = self.expected.take(|step| match step {
            Exchange::Gave {
                fd: Some(fd),
                error: None,
                ..
            } => Some(Ok(*fd)),
            Exchange::Gave { error, .. } => {
                let error = error.as_ref().and_then(|word| descriptor_error(word));
                Some(Err(error.unwrap_or(FdError::NoneFree)))
            }
            _ => None,
        });
        let Some(given) = given else {
            self.expected.unexpected("a new descriptor");
            return Err(FdError::NoneFree);
        };
        if given.is_ok() {
            self.expected.give(object);
        }
        given
    }
}

impl Caller for ReplayedProgram<'_> {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let len = dst.len();
        let read = self.expected.take(|step| match step {
            Exchange::Read { at, bytes } if at.0 == address && bytes.0.len() == len => {
                Some(Some(bytes.clone()))
            }
            Exchange::Unreadable { at, len: bytes } if at.0 == address && bytes.0 == len as u64 => {
                Some(None)
            }
            _ => None,
        });
        match read {
            Some(Some(bytes)) => {
                dst.copy_from_slice(&bytes.0);
                Ok(())
            }
            Some(None) => Err(MemoryGone { done: 0 }),
            None if self.expected.compares(address) => {
                let at = Hex(address);
                self.expected
                    .unexpected(format_args!("a read of {len} bytes at {at}"));
                Err(MemoryGone { done: 0 })
            }
            None => {
                dst.fill(0);
                Ok(())
            }
        }
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let written = self.expected.take(|step| match step {
            Exchange::Wrote { at, bytes } if at.0 == address && bytes.0.len() == src.len() => {
                Some(Some(bytes.clone()))
            }
            Exchange::Unwritable { at, len } if at.0 == address && len.0 == src.len() as u64 => {
                Some(None)
            }
            _ => None,
        });
        let (at, len) = (Hex(address), src.len());
        let got = || format!("{len} bytes written at {at}: {}", hex(src));
        match written {
            Some(Some(bytes)) => {
                if *bytes.0 != *src && self.expected.compares(address) {
                    let expected = format!("{len} bytes written at {at}: {bytes}");
                    self.expected.differs(expected, got());
                }
                Ok(())
            }
            Some(None) => Err(MemoryGone { done: 0 }),
            None => {
                if self.expected.compares(address) {
                    self.expected.unexpected(got());
                }
                Ok(())
            }
        }
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        self.pages_of((address, len), None, pin_error, PinError::Fault)
    }

    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        self.pages_of((start, len), Some(fd), descriptor_error, FdError::NotOpen)
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        self.look_up(fd)?;
        Ok(CountingIrq::new())
    }

    fn watch_eventfd(
        &self,
        fd: i32,
        _listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        self.look_up(fd)?;
        Ok(Box::new(Silent))
    }

    fn account(&self) -> Account {
        let account = self.expected.take(|step| match step {
            Exchange::Account {
                process,
                user,
                unlimited,
                limit,
            } => Some(Account {
                process: process.0,
                user: *user,
                unlimited: *unlimited,
                limit: limit.map(|limit| limit.0),
            }),
            _ => None,
        });
        account.unwrap_or_else(|| Account {
            process: UNKNOWN.fetch_sub(1, Ordering::Relaxed),
            ..Account::default()
        })
    }
}

impl Program for ReplayedProgram<'_> {
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError> {
        match self.look_up(fd)? {
            Some(Object::Iommufd(context)) => Ok(context),
            _ => Err(FdError::WrongType),
        }
    }

    fn container(&self, fd: i32) -> Result<ContainerFile, FdError> {
        match self.look_up(fd)? {
            Some(Object::Iommufd(context)) => Ok(ContainerFile::Iommufd(context)),
            Some(Object::Container(container)) => Ok(ContainerFile::Container(container)),
            _ => Err(FdError::WrongType),
        }
    }

    fn event_file(&self, fd: i32) -> Result<Arc<dyn EventFile>, FdError> {
        match self.look_up(fd)? {
            Some(Object::Events(file)) => Ok(file),
            _ => Err(FdError::WrongType),
        }
    }

    fn install_device_file(&self, file: Arc<DeviceFile>) -> Result<i32, FdError> {
        self.give(Object::Device(file))
    }

    fn install_event_file(&self, file: Arc<dyn EventFile>, _cloexec: bool) -> Result<i32, FdError> {
        self.give(Object::Events(file))
    }
}

fn hex(bytes: &[u8]) -> String {
    Bytes::from(bytes).to_string()
}
