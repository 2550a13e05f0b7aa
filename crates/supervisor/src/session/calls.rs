//! The system calls that the filter asks about, one function each.
//!
//! A call that turns out not to concern a file of ours is carried out by the kernel, which also
//! gives the errno for a bad descriptor or pointer.

use std::sync::Arc;

use ioasid_core::host::Caller;
use ioasid_host::{Process, ProcessError};
use ioasid_uapi::{self as uapi, Errno};
use rustix::fs::OFlags;
use zerocopy::{Immutable, IntoBytes};

use super::{
    Server,
    asking::{Asked, Asking},
    files::{Identity, Node, Object, OpenFile},
    kvm, mmio,
    paths::is_about_a_path,
    stat,
    transfer::{Direction, Shape},
};
use crate::{
    launch::{GREETING, GREETING_ANSWER, GREETING_QUESTION},
    listener::Request,
};

/// How a call ends.
pub(super) enum Answer {
    /// It returns this.
    Value(u64),
    /// The kernel carries it out.
    Proceed,
    /// It has been answered already, with a descriptor.
    Answered,
    /// It fails as a call of ours did that was made in its place.
    Fails(rustix::io::Errno),
}

pub(super) type Outcome = Result<Answer, Errno>;

impl Server {
    /// Answers one request.
    pub(super) fn dispatch(&mut self, request: &Request) {
        self.attach_current(request.tid);
        self.follow_changes(request.tid);
        let outcome = self.with_failing(request);
        // Whoever polls after this call finds what the call has changed.
        self.files.sync_events();
        let listener = &self.shared.listener;
        match outcome {
            Ok(Answer::Value(value)) => listener.reply(request.id, value.cast_signed()),
            Ok(Answer::Proceed) => listener.proceed(request.id),
            Ok(Answer::Answered) => {}
            Ok(Answer::Fails(errno)) => listener.fail(request.id, errno.raw_os_error()),
            Err(errno) => listener.fail(request.id, errno.get()),
        }
    }

    pub(super) fn outcome(&mut self, request: &Request) -> Outcome {
        let tid = i32::try_from(request.tid).unwrap_or(0);
        self.identities.settle(tid);
        match request.nr {
            libc::SYS_execve | libc::SYS_execveat => {
                self.client.forget_memory_of(tid);
                return Ok(Answer::Proceed);
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => {
                self.identities.unsettle(tid);
                return Ok(Answer::Proceed);
            }
            libc::SYS_close | libc::SYS_close_range | libc::SYS_dup3 => {
                self.identities.unsettle(tid);
                return Ok(Answer::Proceed);
            }
            _ => {}
        }
        for first in [true, false] {
            let Some(process) = self.process(request, tid) else {
                break;
            };
            let outcome = self.call(request, &process);
            // Only if nobody can read it: what its program was before an `exec` that we were told of
            // too early. Nothing has been done then.
            if first && matches!(outcome, Err(Errno::EFAULT)) && !process.still_same() {
                self.client.forget_memory_of(tid);
                continue;
            }
            return outcome;
        }
        if is_greeting(request) {
            return Err(Errno::EPERM);
        }
        Ok(Answer::Proceed)
    }

    /// The process that asks, if it may be looked at.
    fn process(&mut self, request: &Request, tid: i32) -> Option<Arc<Process>> {
        if let Some(process) = self.client.known_process(tid) {
            return Some(process);
        }
        if tid == 0 {
            return None;
        }
        let process = match self.client.process(tid) {
            Ok(process) => process,
            Err(error) => {
                if matches!(error, ProcessError::Denied(_) | ProcessError::NoMemory(_)) {
                    self.warn_of_closed_memory(&error);
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

    /// Says once that a process of the program cannot be served, and why.
    pub(super) fn warn_of_closed_memory(&self, error: &dyn std::fmt::Display) {
        if !self.warned.replace(true) {
            tracing::warn!(
                program = %self.shared.name,
                %error,
                "a process cannot use the machine: its memory is closed to us"
            );
        }
    }

    fn call(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let args = request.args;
        match request.nr {
            libc::SYS_ioctl => self.ioctl(request, process),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.open(request, process, libc::AT_FDCWD, args[0], args[1]),
            libc::SYS_openat => self.open(request, process, args[0] as i32, args[1], args[2]),
            libc::SYS_openat2 => {
                // struct open_how: flags, mode, resolve.
                let mut how = [[0; 8]; 3];
                if args[3] < size_of_val(&how) as u64 {
                    return Ok(Answer::Proceed);
                }
                process.read(args[2], how.as_flattened_mut())?;
                let [flags, _, resolve] = how.map(u64::from_ne_bytes);
                if resolve != 0 && self.overlay.is_none() {
                    // The kernel keeps its own rules and opens the placeholder, which is bound late.
                    return Ok(Answer::Proceed);
                }
                self.open(request, process, args[0] as i32, args[1], flags)
            }
            libc::SYS_read => self.transfer(request, process, Direction::Read, Shape::Plain),
            libc::SYS_write => self.transfer(request, process, Direction::Write, Shape::Plain),
            libc::SYS_pread64 => self.transfer(request, process, Direction::Read, Shape::At),
            libc::SYS_pwrite64 => self.transfer(request, process, Direction::Write, Shape::At),
            libc::SYS_readv => self.transfer(request, process, Direction::Read, Shape::Vector),
            libc::SYS_writev => self.transfer(request, process, Direction::Write, Shape::Vector),
            libc::SYS_preadv => self.transfer(request, process, Direction::Read, Shape::VectorAt),
            libc::SYS_pwritev => self.transfer(request, process, Direction::Write, Shape::VectorAt),
            libc::SYS_preadv2 => self.transfer(request, process, Direction::Read, Shape::Vector2),
            libc::SYS_pwritev2 => self.transfer(request, process, Direction::Write, Shape::Vector2),
            libc::SYS_fstat => self.stat(request, process, args[0], args[1]),
            libc::SYS_newfstatat if means_descriptor(process, args[1], args[3]) => {
                self.stat(request, process, args[0], args[2])
            }
            libc::SYS_statx if means_descriptor(process, args[1], args[2]) => {
                self.statx(request, process, args[0], args[4])
            }
            libc::SYS_mount => self.mount(request, process),
            libc::SYS_statfs => self.statfs(request, process, args[0], args[1]),
            libc::SYS_fstatfs => self.fstatfs(request, process, args[0], args[1]),
            _ if self.overlay.is_some() && is_about_a_path(request.nr) => {
                self.path_call(request, process)
            }
            libc::SYS_dup => self.duplicate(request, process, self.base, false),
            libc::SYS_fcntl if args[1] as i32 == libc::F_GETFL => self.flags(process, args[0]),
            libc::SYS_fcntl if matches!(args[1] as i32, libc::F_ADD_SEALS | libc::F_GET_SEALS) => {
                self.regular(request, process)
            }
            libc::SYS_lseek
            | libc::SYS_ftruncate
            | libc::SYS_fallocate
            | libc::SYS_fsync
            | libc::SYS_fdatasync => self.regular(request, process),
            libc::SYS_fcntl => {
                let least = u32::try_from(args[2]).unwrap_or(u32::MAX).max(self.base);
                let cloexec = args[1] as i32 == libc::F_DUPFD_CLOEXEC;
                self.duplicate(request, process, least, cloexec)
            }
            libc::SYS_capset | libc::SYS_setuid | libc::SYS_setreuid | libc::SYS_setresuid => {
                process.forget_account();
                Ok(Answer::Proceed)
            }
            libc::SYS_mmap => self.mmap(request, process),
            _ => Ok(Answer::Proceed),
        }
    }

    /// The inode behind a descriptor.
    pub(super) fn identity(&mut self, process: &Process, fd: u64) -> Option<Identity> {
        let number = fd as u32;
        let ours = self.numbers().contains(number);
        if ours && let Some(identity) = self.identities.get(process.number(), number) {
            return Some(identity);
        }
        let identity = process.fd_identity(fd as i32).ok()?;
        if self.files.get(identity).is_some() {
            // It is no open file: the kernel says EBADF.
            if process.fd_is_a_path(fd as i32) {
                return None;
            }
            if ours {
                self.identities.learn(process.number(), number, identity);
            }
        }
        Some(identity)
    }

    /// The file of ours behind a descriptor.
    pub(super) fn file(&mut self, process: &Process, fd: u64) -> Option<&OpenFile> {
        let identity = self.identity(process, fd)?;
        self.files.get(identity)
    }

    fn ioctl(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [fd, cmd, arg, ..] = request.args;
        let cmd = cmd as u32;
        if is_greeting(request) {
            return greet(process, arg);
        }
        if kvm::is_attribute(request) {
            return self.kvm_attribute(request, process);
        }
        if mmio::is_access(request) {
            return self.access(request, process);
        }
        let Some(identity) = self.bound(request, process, fd)? else {
            if let Err(error @ ProcessError::Denied(_)) = process.descriptors_are_open() {
                self.warn_of_closed_memory(&error);
            }
            return Ok(Answer::Proceed);
        };
        self.tell_of_number(fd as u32);
        if !self.mappings.is_empty() && uapi::iommufd::command_name(cmd) == Some("DESTROY") {
            self.forget_mappings(identity);
        }
        let (mut result, mut asked) = self.carry_out(process, identity, cmd, arg);
        // It failed for a descriptor that is no file of ours yet, before anything was done.
        if result.is_err()
            && let Some(named) = asked.stranger
            && self.bound(request, process, named)?.is_some()
        {
            (result, asked) = self.carry_out(process, identity, cmd, arg);
        }
        if result.is_ok() && !asked.promises.is_empty() {
            self.keep(request, asked.promises)?;
        }
        result.map(Answer::Value)
    }

    /// An ioctl on a file of ours, and what came of its descriptors.
    fn carry_out(
        &self,
        process: &Arc<Process>,
        identity: Identity,
        cmd: u32,
        arg: u64,
    ) -> (Result<u64, Errno>, Asked) {
        let Some(file) = self.files.get(identity) else {
            return (Err(Errno::EBADF), Asked::default());
        };
        let program = Asking::new(process, &self.files, self.numbers(), arg);
        let result = match &file.object {
            Object::Iommufd(context) => match self.view.extension() {
                Some(extension) => {
                    uapi::iommufd::extended_ioctl(extension, context, cmd, arg, &program)
                }
                None => uapi::iommufd::ioctl(context, cmd, arg, &program),
            },
            Object::Device(device) => uapi::vfio::device_ioctl(device, cmd, arg, &program),
            Object::Container(container) => {
                uapi::vfio::container_ioctl(container, cmd, arg, &program)
            }
            Object::Group(group) => uapi::vfio::group_ioctl(group, cmd, arg, &program),
            Object::Event(_) | Object::FailNth(_) | Object::Attribute(_) => Err(Errno::ENOTTY),
        };
        let asked = program.finish(result.is_ok());
        (result, asked)
    }

    /// Where a file lies: what `st_dev` and `st_ino` say, the same for every open of a node.
    fn place(&self, file: &OpenFile, identity: Identity) -> Identity {
        let Some(Node { name, .. }) = &file.node else {
            return identity;
        };
        let found = self.placeholders.iter().find(|p| p.node == *name);
        found.map_or((0, 0), |p| (p.dev, p.ino))
    }

    fn stat(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        fd: u64,
        address: u64,
    ) -> Outcome {
        let stat = self.facts(process, fd).map(|facts| facts.stat());
        let of_link = || self.stat_of_link(request, fd).map(Into::into);
        tell(process, stat.or_else(of_link), address)
    }

    fn statx(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        fd: u64,
        address: u64,
    ) -> Outcome {
        let statx = self.facts(process, fd).map(|facts| facts.statx());
        let of_link = || self.statx_of_link(request, fd).map(Into::into);
        tell(process, statx.or_else(of_link), address)
    }

    fn facts(&mut self, process: &Process, fd: u64) -> Option<stat::Facts> {
        let identity = self.identity(process, fd)?;
        let file = self.files.get(identity)?;
        let rdev = file.node.as_ref().map(|node| node.rdev);
        Some(stat::Facts {
            place: self.place(file, identity),
            rdev,
        })
    }

    /// `fcntl(F_GETFL)`: how a file of ours was opened, whatever stands behind it.
    fn flags(&mut self, process: &Process, fd: u64) -> Outcome {
        let Some(access) = self.file(process, fd).map(|file| file.access()) else {
            return Ok(Answer::Proceed);
        };
        let Ok(file) = process.get_fd(fd as i32) else {
            return Ok(Answer::Proceed);
        };
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|_| Errno::EBADF)?;
        let flags = flags.difference(OFlags::ACCMODE).union(access);
        Ok(Answer::Value(flags.bits().into()))
    }
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

/// Answers a call that asks for a struct, at `address`, with what is known of a file of ours; the kernel
/// answers if it is none.
pub(super) fn tell(
    process: &Process,
    known: Option<impl IntoBytes + Immutable>,
    address: u64,
) -> Outcome {
    let Some(known) = known else {
        return Ok(Answer::Proceed);
    };
    process.write(address, known.as_bytes())?;
    Ok(Answer::Value(0))
}

/// Whether a call with a path and flags is about its descriptor alone.
fn means_descriptor(process: &Process, address: u64, flags: u64) -> bool {
    let mut first = [0];
    flags & libc::AT_EMPTY_PATH as u64 != 0
        && (address == 0 || (process.read(address, &mut first).is_ok() && first == [0]))
}
