//! One process of a client, held by a pidfd, its directory in `/proc` and its open memory: never by
//! a number, which can be reused.
// UNSAFETY: kcmp(2), which has no safe wrapper.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Weak},
};

use ioasid_core::{
    host::{Account, FdError},
    range::AddrRange,
    sync::Mutex,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags},
};

use super::{
    error::ProcessError,
    procfs::{ProcDir, no_fd},
    resources::Resources,
};
use crate::{
    memory::{address_space::AddressSpace, agent::CopyAgent},
    system::file_id::FileId,
};

/// A file that a program has mapped, seen from one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// Its device and inode.
    pub identity: (u64, u64),
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Bytes of the mapping behind this one.
    pub left: u64,
    /// The program may read it.
    pub readable: bool,
    /// The program may write to it.
    pub writable: bool,
}

/// One process of a client with its address space. As a [`Caller`](ioasid_core::host::Caller) it is
/// the program behind an ioctl.
///
/// Its file descriptors are those of its first thread: a thread that has unshared its descriptor
/// table is not supported.
#[derive(Debug)]
pub struct Process {
    id: i32,
    pidfd: OwnedFd,
    dir: ProcDir,
    memory: Arc<AddressSpace>,
    /// Whether it has its address space from another process (`vfork`): it will leave it at `exec`
    /// while the address space lives on.
    borrows_memory: bool,
    resources: Arc<Resources>,
    /// As it was when it was asked for first, or after [`Process::forget_account`].
    account: Mutex<Option<Account>>,
    this: Weak<Process>,
}

impl Process {
    /// The process `id` (the id of its first thread).
    pub(crate) fn open(id: i32, resources: Arc<Resources>) -> Result<Arc<Self>, ProcessError> {
        let pid = Pid::from_raw(id).ok_or(ProcessError::Gone)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let dir = ProcDir::open(id)?;
        let parent = dir.status("PPid:")?;
        let mem = dir.file("mem", OFlags::RDWR)?;
        let memory = AddressSpace::new(mem, dir.file("maps", OFlags::RDONLY)?);
        let process = Arc::new_cyclic(|this| Process {
            id,
            memory: Arc::clone(&memory),
            borrows_memory: shares_memory(id, parent),
            pidfd,
            dir,
            resources,
            account: Mutex::new(None),
            this: this.clone(),
        });
        // If it is alive now, all that was opened by its number is its own; if the first of the two
        // is still its memory, the second is the same.
        if process.still_same() {
            process.resources.spaces.remember(&memory);
            Ok(process)
        } else {
            Err(ProcessError::Gone)
        }
    }

    /// The process id, for messages. Never used to reach the process.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Whether the process is alive and still has the address space that this object holds: false
    /// once it has called `exec`. (A child of `vfork` is opened anew for each call, so that this
    /// holds for it as well.)
    pub fn still_same(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&now));
        ended == Ok(0) && self.memory.is_alive()
    }

    pub(crate) fn dir(&self) -> &ProcDir {
        &self.dir
    }

    pub(crate) fn borrows_memory(&self) -> bool {
        self.borrows_memory
    }

    pub(crate) fn memory(&self) -> &Arc<AddressSpace> {
        &self.memory
    }

    pub(crate) fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    /// Itself, unless it is being dropped.
    pub(super) fn shared_self(&self) -> Option<Arc<Process>> {
        self.this.upgrade()
    }

    /// Device and inode (`st_dev`, `st_ino`) of the file behind `fd`. Does not ask the file system.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub fn fd_identity(&self, fd: i32) -> Result<(u64, u64), FdError> {
        let FileId { dev, ino } = self.dir.fd_identity(fd)?;
        Ok((dev, ino))
    }

    /// Whether its descriptors may be looked at, as they may be no more once it is not dumpable.
    ///
    /// # Errors
    /// [`ProcessError::Denied`].
    pub fn descriptors_are_open(&self) -> Result<(), ProcessError> {
        self.dir.descriptors_are_open()
    }

    /// How `fd` was opened, with O_CLOEXEC where the descriptor is close-on-exec: the `flags` line
    /// of its `fdinfo`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub fn fd_flags(&self, fd: i32) -> Result<OFlags, FdError> {
        self.dir.fd_flags(fd)
    }

    /// Whether `fd` only names a file (`O_PATH`): every call on it is EBADF.
    pub fn fd_is_a_path(&self, fd: i32) -> bool {
        self.dir.fd_is_a_path(fd)
    }

    /// The other descriptors of the same open file as `fd`, as `dup` makes them. Empty where the
    /// kernel does not say (built without kcmp, or not allowed).
    pub fn duplicates(&self, fd: i32) -> Vec<i32> {
        const KCMP_FILE: libc::c_int = 0;
        let same = |other: &i32| {
            // SAFETY: KCMP_FILE compares two descriptors and takes no pointer.
            let order =
                unsafe { libc::syscall(libc::SYS_kcmp, self.id, self.id, KCMP_FILE, fd, *other) };
            *other != fd && order == 0
        };
        self.dir.fd_numbers().into_iter().filter(same).collect()
    }

    /// A duplicate of `fd`, close-on-exec. Look with [`Process::fd_identity`] first: even closing a
    /// file on FUSE waits for its server.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::NoMemory`] if we are out of descriptors.
    pub fn get_fd(&self, fd: i32) -> Result<OwnedFd, FdError> {
        if fd < 0 {
            return Err(FdError::NotOpen);
        }
        rustix::process::pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty()).map_err(no_fd)
    }

    /// What stands for its address space in an [`Account`].
    pub fn number(&self) -> u64 {
        self.memory.number()
    }

    /// Its user, capabilities or limits are about to change: they are read again when needed.
    pub fn forget_account(&self) {
        *self.account.lock() = None;
    }

    /// What it may lock, as it was when it was asked for first.
    pub(super) fn known_account(&self) -> Account {
        *self
            .account
            .lock()
            .get_or_insert_with(|| self.dir.account(self.number()))
    }

    /// Whether the program itself could write all of `range`.
    pub fn is_writable(&self, range: AddrRange) -> bool {
        self.memory.is_writable(range)
    }

    /// The file that it has mapped at `address` so that stores reach the file, and where in it;
    /// `None` if there is none.
    pub fn mapped_file(&self, address: u64) -> Option<MappedFile> {
        let vma = self.memory.find(address)?;
        let (dev, ino, offset) = vma.shared_file(address)?;
        Some(MappedFile {
            identity: (dev, ino),
            offset,
            left: vma.range.last() - address,
            readable: vma.readable,
            writable: vma.writable,
        })
    }

    /// Whether it has mapped a file with this name, in whatever directory.
    pub fn has_mapped(&self, name: &str) -> bool {
        self.dir.has_mapped(name)
    }

    /// The thread that traces it; 0 if there is none.
    pub fn tracer(&self) -> i32 {
        self.dir.status("TracerPid:").unwrap_or(0)
    }

    /// Another descriptor of the process itself (a pidfd): readable once it has ended.
    ///
    /// # Errors
    /// If we are out of descriptors.
    pub fn handle(&self) -> std::io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// How many filters of system calls it has; `None` where the kernel does not say (before 5.9).
    pub fn seccomp_filters(&self) -> Option<i32> {
        self.dir.status("Seccomp_filters:").ok()
    }

    /// Whether it is stopped, by a signal or a debugger.
    pub fn is_stopped(&self) -> bool {
        self.dir.is_stopped()
    }

    /// Copies inside of its memory go through `agent` from now on.
    pub fn set_copy_agent(&self, agent: Arc<dyn CopyAgent>) {
        self.memory.set_agent(agent);
    }

    /// The process that started it, or took it over.
    pub fn parent(&self) -> i32 {
        self.dir.status("PPid:").unwrap_or(0)
    }

    /// The numbers of its threads.
    pub fn threads(&self) -> Vec<i32> {
        self.dir.threads()
    }

    /// One more than its largest descriptor number (the soft `RLIMIT_NOFILE`).
    pub fn descriptor_limit(&self) -> u32 {
        let limit = self.dir.limit("Max open files");
        limit.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }
}

/// Whether this host lets descriptors be taken from other processes at all (`pidfd_getfd`, which
/// some containers refuse): eventfds, memory files and copies of our own files need it.
pub fn can_take_descriptors() -> bool {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let taken = own.and_then(|own| {
        rustix::process::pidfd_getfd(&own, own.as_raw_fd(), PidfdGetfdFlags::empty())
    });
    !matches!(taken, Err(Errno::PERM | Errno::NOSYS))
}

/// The id of the process that thread `tid` belongs to now.
pub(crate) fn process_of(tid: i32) -> Result<i32, ProcessError> {
    ProcDir::open(tid)?.status("Tgid:")
}

/// Whether two processes have one address space. Where the kernel cannot say (built without kcmp),
/// or nobody may ask it (as in some containers), they may.
fn shares_memory(a: i32, b: i32) -> bool {
    let own = rustix::process::getpid().as_raw_pid();
    let compare = |a: i32, b: i32| {
        const KCMP_VM: libc::c_int = 1;
        // SAFETY: KCMP_VM compares two processes and takes no pointer.
        unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) }
    };
    match compare(a, b) {
        0 => true,
        -1 => compare(own, own) != 0,
        _ => false,
    }
}
