//! The system calls that the filter asks about, one function each.
//!
//! A call that turns out not to concern a file of ours is carried out by the kernel, which also
//! gives the errno for a bad descriptor or pointer.

use std::{io, os::fd::AsFd, sync::Arc};

use ioasid_core::{
    host::{Caller, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
};
use ioasid_host::{Process, ProcessError};
use ioasid_iommufd::Context;
use ioasid_uapi::{self as uapi, Errno, Program};
use zerocopy::IntoBytes;

use super::{
    Server,
    files::{Files, Identity, Object},
    path, stat,
};
use crate::{
    filter::RESERVED_FDS,
    launch::{GREETING, GREETING_ANSWER, GREETING_QUESTION},
    listener::Request,
    wire::NodeName,
};

/// Device number of `/dev/iommu`: a misc device with a dynamic minor.
const IOMMU_RDEV: (u32, u32) = (10, 126);

/// Bytes of one region access that are moved at a time. Larger than any single register or portal
/// access, so those are never split.
const ACCESS_BYTES: u64 = 4096;

/// Most bytes of one `read` or `write`, as in Linux (`MAX_RW_COUNT`).
const MAX_RW_COUNT: u64 = 0x7fff_f000;

/// How a call ends.
enum Answer {
    /// It returns this.
    Value(u64),
    /// The kernel carries it out.
    Proceed,
    /// It has been answered already, with a descriptor.
    Answered,
}

type Outcome = Result<Answer, Errno>;

impl Server {
    /// Answers one request.
    pub(super) fn dispatch(&mut self, request: &Request) {
        let outcome = match self.process(request) {
            Some(process) => self.call(request, &process),
            None if is_greeting(request) => Err(Errno::EPERM),
            None => Ok(Answer::Proceed),
        };
        let listener = &self.shared.listener;
        match outcome {
            Ok(Answer::Value(value)) => listener.reply(request.id, value.cast_signed()),
            Ok(Answer::Proceed) => listener.proceed(request.id),
            Ok(Answer::Answered) => {}
            Err(errno) => listener.fail(request.id, errno.get()),
        }
    }

    /// The process that asks, if it may be looked at.
    fn process(&mut self, request: &Request) -> Option<Arc<Process>> {
        let tid = i32::try_from(request.tid).ok().filter(|tid| *tid > 0)?;
        let process = match self.client.process(tid) {
            Ok(process) => process,
            Err(error) => {
                if !self.warned && !matches!(error, ProcessError::Gone) {
                    self.warned = true;
                    tracing::warn!(
                        program = %self.shared.name,
                        %error,
                        "a process cannot use the machine: its memory is closed to us"
                    );
                }
                return None;
            }
        };
        // While it waits, its number cannot have passed to another process: this is the right one.
        self.shared
            .listener
            .is_waiting(request.id)
            .then_some(process)
    }

    fn call(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let args = request.args;
        match request.nr {
            libc::SYS_ioctl => self.ioctl(request, process),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.open(request, process, libc::AT_FDCWD, args[0], args[1]),
            libc::SYS_openat => self.open(request, process, args[0] as i32, args[1], args[2]),
            libc::SYS_openat2 => {
                // struct open_how begins with the flags.
                let mut flags = [0; 8];
                process.read(args[2], &mut flags)?;
                let flags = u64::from_ne_bytes(flags);
                self.open(request, process, args[0] as i32, args[1], flags)
            }
            libc::SYS_read => self.transfer(request, process, Direction::Read, None),
            libc::SYS_write => self.transfer(request, process, Direction::Write, None),
            libc::SYS_pread64 => self.transfer(request, process, Direction::Read, Some(args[3])),
            libc::SYS_pwrite64 => self.transfer(request, process, Direction::Write, Some(args[3])),
            libc::SYS_fstat => self.stat(process, args[0], args[1]),
            libc::SYS_newfstatat if is_empty_path(process, args[1]) => {
                self.stat(process, args[0], args[2])
            }
            libc::SYS_statx if is_empty_path(process, args[1]) => {
                self.statx(process, args[0], args[4])
            }
            libc::SYS_dup => self.duplicate(request, process, self.base, false),
            libc::SYS_fcntl => {
                let least = u32::try_from(args[2]).unwrap_or(u32::MAX).max(self.base);
                let cloexec = args[1] as i32 == libc::F_DUPFD_CLOEXEC;
                self.duplicate(request, process, least, cloexec)
            }
            libc::SYS_mmap => self.mmap(process, args[4]),
            _ => Ok(Answer::Proceed),
        }
    }

    fn identity(process: &Process, fd: u64) -> Option<Identity> {
        process.fd_identity(fd as i32).ok()
    }

    fn ioctl(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [fd, cmd, arg, ..] = request.args;
        let cmd = cmd as u32;
        if is_greeting(request) {
            return greet(process, arg);
        }
        let Some(mut identity) = Self::identity(process, fd) else {
            return Ok(Answer::Proceed);
        };
        if let Some(node) = self.placeholders.get(&identity).cloned() {
            identity = self.bind_late(request, fd as u32, node)?;
        }
        let Some(file) = self.files.get(identity) else {
            return Ok(Answer::Proceed);
        };
        let program = Asking {
            process,
            files: &self.files,
        };
        let value = match &file.object {
            Object::Iommufd(context) => uapi::iommufd::ioctl(context, cmd, arg, &program)?,
            Object::Device(device) => uapi::vfio::device_ioctl(device, cmd, arg, &program)?,
        };
        Ok(Answer::Value(value))
    }

    /// Puts a file of ours in the place of a placeholder that was opened past us.
    fn bind_late(&mut self, request: &Request, fd: u32, node: NodeName) -> Result<Identity, Errno> {
        let cloexec = path::is_cloexec(request.tid, fd);
        let file = self.open_node(node)?;
        let stat = rustix::fs::fstat(&file).map_err(|_| Errno::EIO)?;
        self.shared
            .listener
            .replace_fd(request.id, file.as_fd(), fd, cloexec)
            .map_err(|_| Errno::EBADF)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    fn open(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        dirfd: i32,
        path: u64,
        flags: u64,
    ) -> Outcome {
        let has = |flag: i32| flags & flag as u64 != 0;
        if has(libc::O_PATH) || has(libc::O_DIRECTORY) || (has(libc::O_CREAT) && has(libc::O_EXCL))
        {
            // Never an open of a node, if it succeeds at all.
            return Ok(Answer::Proceed);
        }
        let Some(path) = path::read_path(process, path) else {
            return Ok(Answer::Proceed);
        };
        let follow = !has(libc::O_NOFOLLOW);
        let Some(identity) = path::look_up(process, request.tid, dirfd, &path, follow) else {
            return Ok(Answer::Proceed);
        };
        // A file of ours that is opened again through /proc is a new open of its node.
        let again = || self.files.get(identity).map(|file| file.node.clone());
        let Some(node) = self.placeholders.get(&identity).cloned().or_else(again) else {
            return Ok(Answer::Proceed);
        };
        let file = self.open_node(node)?;
        self.hand_over(
            request,
            process,
            file.as_fd(),
            self.base,
            has(libc::O_CLOEXEC),
        )
    }

    fn open_node(&mut self, node: NodeName) -> Result<std::os::fd::OwnedFd, Errno> {
        let (object, rdev) = match &node {
            NodeName::Iommu => (Object::Iommufd(self.view.new_context()), IOMMU_RDEV),
            NodeName::Device(name) => {
                let nodes = self.view.nodes(self.shared.vm.as_deref());
                let info = nodes.into_iter().find(|info| info.name == *name);
                // It was removed since the program's /dev was made.
                let info = info.ok_or(Errno::ENODEV)?;
                let file = info.device.open().map_err(Errno::from)?;
                (Object::Device(file), (info.major, info.minor))
            }
        };
        let file = match self.files.create(object.clone(), node, rdev) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "no file can be made for a program");
                object.close();
                return Err(Errno::ENOMEM);
            }
        };
        let open = self.files.len();
        self.shared
            .open_files
            .store(open, std::sync::atomic::Ordering::Relaxed);
        Ok(file)
    }

    /// Gives `file` a number of ours in the program's table, and that number as the answer.
    fn hand_over(
        &self,
        request: &Request,
        process: &Process,
        file: std::os::fd::BorrowedFd<'_>,
        least: u32,
        cloexec: bool,
    ) -> Outcome {
        let listener = &self.shared.listener;
        let ours = least..self.base.saturating_add(RESERVED_FDS);
        let is_free = |number: &u32| {
            let number = i32::try_from(*number);
            number.is_ok_and(|n| matches!(process.fd_identity(n), Err(FdError::NotOpen)))
        };
        if let Some(number) = ours.into_iter().find(is_free)
            && listener
                .reply_with_fd(request.id, file, Some(number), cloexec)
                .is_ok()
        {
            return Ok(Answer::Answered);
        }
        // Ours are used up, or over a limit that was lowered: any number then. Ioctls work there.
        match listener.reply_with_fd(request.id, file, None, cloexec) {
            Ok(_) => Ok(Answer::Answered),
            Err(error) if is(&error, libc::ENOENT) => Ok(Answer::Answered),
            // Its table is full: what the kernel says is what `open` says.
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::ENOMEM.get());
                listener.fail(request.id, errno);
                Ok(Answer::Answered)
            }
        }
    }

    /// `dup` and `fcntl(F_DUPFD)`: the copy gets a number of ours too, so that `read` on it works.
    fn duplicate(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        least: u32,
        cloexec: bool,
    ) -> Outcome {
        let fd = request.args[0];
        let ours = Self::identity(process, fd).is_some_and(|id| self.files.get(id).is_some());
        if !ours {
            return Ok(Answer::Proceed);
        }
        let Ok(file) = process.get_fd(fd as i32) else {
            return Ok(Answer::Proceed);
        };
        self.hand_over(request, process, file.as_fd(), least, cloexec)
    }

    fn transfer(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        direction: Direction,
        offset: Option<u64>,
    ) -> Outcome {
        let [fd, address, count, ..] = request.args;
        let file = Self::identity(process, fd).and_then(|id| self.files.get_mut(id));
        let Some(file) = file else {
            return Ok(Answer::Proceed);
        };
        let Object::Device(device) = &file.object else {
            // iommufd has neither read nor write.
            return Err(Errno::EINVAL);
        };
        let device = Arc::clone(device);
        let start = offset.unwrap_or(file.position);
        if start.cast_signed() < 0 {
            return Err(Errno::EINVAL);
        }
        let count = count.min(MAX_RW_COUNT);
        let mut done = 0;
        let mut buffer = [0u8; ACCESS_BYTES as usize];
        while done < count || count == 0 {
            let piece = usize::try_from((count - done).min(ACCESS_BYTES)).unwrap_or(0);
            let piece = buffer.get_mut(..piece).unwrap_or_default();
            let at = start.checked_add(done).ok_or(Errno::EINVAL);
            let moved = at.and_then(|at| match direction {
                Direction::Read => {
                    let moved = uapi::vfio::pread(&device, at, piece)?;
                    let piece = piece.get(..moved).unwrap_or_default();
                    process.write(address.wrapping_add(done), piece)?;
                    Ok(moved)
                }
                Direction::Write => {
                    process.read(address.wrapping_add(done), piece)?;
                    uapi::vfio::pwrite(&device, at, piece)
                }
            });
            match moved {
                Ok(0) => break,
                Ok(moved) => done += moved as u64,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        if offset.is_none() {
            file.position = start.saturating_add(done);
        }
        Ok(Answer::Value(done))
    }

    /// Where a node lies: what `st_dev` and `st_ino` say, the same for every open of it.
    fn place(&self, node: &NodeName) -> Identity {
        let found = self.placeholders.iter().find(|(_, n)| *n == node);
        found.map_or((0, 0), |(identity, _)| *identity)
    }

    fn stat(&self, process: &Arc<Process>, fd: u64, address: u64) -> Outcome {
        let file = Self::identity(process, fd).and_then(|id| self.files.get(id));
        let Some(file) = file else {
            return Ok(Answer::Proceed);
        };
        let stat = stat::stat(self.place(&file.node), file.rdev);
        process.write(address, stat.as_bytes())?;
        Ok(Answer::Value(0))
    }

    fn statx(&self, process: &Arc<Process>, fd: u64, address: u64) -> Outcome {
        let file = Self::identity(process, fd).and_then(|id| self.files.get(id));
        let Some(file) = file else {
            return Ok(Answer::Proceed);
        };
        let statx = stat::statx(self.place(&file.node), file.rdev);
        process.write(address, statx.as_bytes())?;
        Ok(Answer::Value(0))
    }

    /// No region has the mmap flag, and mapping one without it is EINVAL.
    fn mmap(&self, process: &Arc<Process>, fd: u64) -> Outcome {
        match Self::identity(process, fd).and_then(|id| self.files.get(id)) {
            Some(_) => Err(Errno::EINVAL),
            None => Ok(Answer::Proceed),
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

fn is_greeting(request: &Request) -> bool {
    let [fd, cmd, ..] = request.args;
    request.nr == libc::SYS_ioctl && fd as i32 == -1 && cmd as u32 == GREETING
}

/// The launcher's greeting: shows that its memory can be read and written.
fn greet(process: &Process, address: u64) -> Outcome {
    let mut word = [0; 8];
    process.read(address, &mut word)?;
    if word != GREETING_QUESTION {
        return Err(Errno::ENOTTY);
    }
    process.write(address, &GREETING_ANSWER)?;
    Ok(Answer::Value(0))
}

fn is_empty_path(process: &Process, address: u64) -> bool {
    let mut first = [0];
    address == 0 || (process.read(address, &mut first).is_ok() && first == [0])
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}

/// The program behind an ioctl.
#[derive(Debug)]
struct Asking<'a> {
    process: &'a Arc<Process>,
    files: &'a Files,
}

impl Caller for Asking<'_> {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.process.read(address, dst)
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
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
}

impl Program for Asking<'_> {
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError> {
        let identity = self.process.fd_identity(fd)?;
        match self.files.get(identity).map(|file| &file.object) {
            Some(Object::Iommufd(context)) => Ok(Arc::clone(context)),
            _ => Err(FdError::WrongType),
        }
    }
}
