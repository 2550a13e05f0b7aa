//! The descriptors of a program tree that are files of the machine.

pub(crate) mod attribute;
pub(crate) mod event;
pub(crate) mod files;
mod identities;
pub(crate) mod mappings;
pub(crate) mod memfd;
pub(crate) mod numbers;
pub(crate) mod object;

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use files::Files;
use identities::Identities;
use ioasid_host::{Client, Process};
use ioasid_uapi::{CallError, error::FileError};
use mappings::Mappings;
use numbers::Numbers;
use object::{Node, Object, OpenFile};
use rustix::{fs::OFlags, io::Errno as HostErrno};

use super::{
    answer::{Answer, Outcome, Pending},
    identity::Identity,
    program::Program,
};

/// The open files, which numbers stand for them, and what is mapped of them.
#[derive(Debug)]
pub(crate) struct Descriptors {
    program: Arc<Program>,
    pub(crate) files: Files,
    identities: Identities,
    pub(crate) mappings: Mappings,
    numbers: Numbers,
    /// That a file is on a number that is not reserved was logged.
    reported_number: Cell<bool>,
    /// Open files of devices when they were last counted.
    devices: Cell<usize>,
}

impl Descriptors {
    /// None yet; the lowest reserved number is `base`.
    pub(crate) fn new(program: &Arc<Program>, client: &Arc<Client>, base: u32) -> io::Result<Self> {
        Ok(Descriptors {
            program: Arc::clone(program),
            files: Files::new(client)?,
            identities: Identities::default(),
            mappings: Mappings::default(),
            numbers: Numbers { base },
            reported_number: Cell::new(false),
            devices: Cell::new(0),
        })
    }

    pub(crate) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// The inode behind a descriptor.
    pub(crate) fn identity(&mut self, process: &Process, fd: i32) -> Option<Identity> {
        let number = fd.cast_unsigned();
        let reserved = self.numbers.contains(number);
        if reserved && let Some(identity) = self.identities.get(process.number(), number) {
            return Some(identity);
        }
        let identity = process.fd_identity(fd).ok()?;
        if self.files.get(identity).is_some() {
            // It is no open file: the kernel says EBADF.
            if process.fd_is_a_path(fd) {
                return None;
            }
            if reserved {
                self.identities.learn(process.number(), number, identity);
            }
        }
        Some(identity)
    }

    /// The file of the machine behind a descriptor.
    pub(crate) fn file(&mut self, process: &Process, fd: i32) -> Option<&mut OpenFile> {
        let identity = self.identity(process, fd)?;
        self.files.get_mut(identity)
    }

    /// Thread `tid` makes a call: a close that it was in the middle of is done.
    pub(crate) fn end_close(&mut self, tid: i32) {
        self.identities.end_close(tid);
    }

    /// Thread `tid` is about to close descriptors, or to replace them.
    pub(crate) fn begin_close(&mut self, tid: i32) {
        self.identities.begin_close(tid);
    }

    /// Thread `tid` has ended.
    pub(crate) fn thread_ended(&mut self, tid: i32) {
        self.identities.ended(tid);
    }

    /// What programs have closed since the last call, in the order of closing.
    pub(crate) fn take_closed(&mut self) -> Vec<Object> {
        let closed = self.files.take_closed();
        if !closed.is_empty() {
            self.identities.forget();
            let files = &self.files;
            self.mappings.keep(|file| files.get(file).is_some());
            self.count();
            self.note_bound();
        }
        self.let_go(closed)
    }

    /// Everything that is open, in the order in which it is to be closed.
    pub(crate) fn take_all(&mut self) -> Vec<Object> {
        self.mappings.clear();
        let files = self.files.take_all();
        self.program.set_open_files(0);
        self.program.set_devices(Vec::new());
        self.let_go(files)
    }

    /// The program has let go of `files`.
    fn let_go(&self, files: Vec<OpenFile>) -> Vec<Object> {
        let observers = &self.program.observers;
        if observers.wants_steps() {
            files.iter().for_each(|file| observers.closed(file.number));
        }
        files.into_iter().map(|file| file.object).collect()
    }

    /// The number of open files may have changed.
    pub(crate) fn count(&self) {
        self.program.set_open_files(self.files.len());
        let devices = self.files.devices();
        if devices != self.devices.replace(devices) {
            self.program.set_devices(self.files.device_names());
        }
    }

    /// The devices that are open may be bound, or no more.
    pub(crate) fn note_bound(&self) {
        let devices = self.files.iter().filter_map(|file| match &file.object {
            Object::Device(device) => device.device().requester(),
            _ => None,
        });
        self.program.observers.set_bound(devices);
    }

    /// Makes a file for `object`, an open of `node` with `flags`.
    pub(crate) fn create(
        &mut self,
        object: Object,
        node: Node,
        flags: OFlags,
    ) -> Result<OwnedFd, CallError> {
        match self.files.create(object.clone(), node, flags) {
            Ok(file) => {
                self.count();
                Ok(file)
            }
            Err(error) => {
                tracing::warn!(%error, "no file can be made for a program");
                object.close();
                Err(FileError::NoResource.into())
            }
        }
    }

    /// Logs once what does not work on a number that the filter does not know.
    pub(crate) fn report_number(&self, fd: i32) {
        let number = fd.cast_unsigned();
        if !self.numbers.contains(number) && !self.reported_number.replace(true) {
            tracing::info!(
                program = %self.program.name,
                "descriptor {number} is a file of the machine on a number below {}: a read or write without an \
                 offset does not reach it there; all else works",
                self.numbers.base
            );
        }
    }

    /// Gives `file` a reserved number in the program's table, at least `least`, and that number as
    /// the answer.
    pub(crate) fn hand_over(
        &self,
        call: Pending<'_>,
        file: BorrowedFd<'_>,
        least: u32,
        cloexec: bool,
    ) -> Outcome {
        let listener = &self.program.listener;
        if let Some(number) = self.numbers.first_free(call.process, least)
            && let Ok(fd) = listener.reply_with_fd(call.id, file, Some(number), cloexec)
        {
            return Ok(Answer::Answered(Some(fd)));
        }
        // They are used up, or over a limit that was lowered: any number then. Ioctls work there.
        match listener.reply_with_fd(call.id, file, None, cloexec) {
            Ok(fd) => Ok(Answer::Answered(Some(fd))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Answer::Answered(None)),
            // Its table is full: what the kernel says is what `open` says.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                Err(FileError::NoNumber.into())
            }
            Err(error) => {
                let errno = HostErrno::from_io_error(&error).unwrap_or(HostErrno::NOMEM);
                Ok(Answer::Fails(errno))
            }
        }
    }

    /// Answers an open with `file`, on any number.
    pub(crate) fn give(&self, call: Pending<'_>, file: BorrowedFd<'_>, cloexec: bool) -> Answer {
        match self
            .program
            .listener
            .reply_with_fd(call.id, file, None, cloexec)
        {
            Ok(fd) => Answer::Answered(Some(fd)),
            Err(error) => {
                Answer::Fails(HostErrno::from_io_error(&error).unwrap_or(HostErrno::MFILE))
            }
        }
    }

    /// Puts `file` in the place of descriptor `number`; the call still waits.
    ///
    /// # Errors
    /// As [`crate::listener::Listener::replace_fd`].
    pub(crate) fn replace(
        &self,
        call: Pending<'_>,
        file: &OwnedFd,
        number: u32,
        cloexec: bool,
    ) -> io::Result<()> {
        let listener = &self.program.listener;
        listener
            .replace_fd(call.id, file.as_fd(), number, cloexec)
            .map(drop)
    }
}
