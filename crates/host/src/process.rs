//! One process of a client, held by a pidfd, its directory in `/proc` and its open memory: never by
//! a number, which can be reused.
// UNSAFETY: kcmp(2), which has no safe wrapper.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::{
    host::{Account, Caller, EventfdWatch, FdError, IrqSink},
    memory::{MemoryGone, PAGE_SIZE, PageSource, PinError},
    range::AddrRange,
    sync::Mutex,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxFlags, fcntl_getfl},
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags},
};

use crate::{
    address_space::AddressSpace,
    client::{ProcessError, Shared},
    file::{FileId, FilePages, MemoryFile, identify, is_memory_device},
    irq::EventFd,
    maps::Vma,
    pages::ProcessPages,
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

/// One process of a client with its address space. As a [`Caller`] it is the program behind an
/// ioctl.
///
/// Its file descriptors are those of its first thread: a thread that has unshared its descriptor
/// table is not supported.
#[derive(Debug)]
pub struct Process {
    id: i32,
    pidfd: OwnedFd,
    /// `/proc/PID`: bound to the process, not to its number.
    dir: OwnedFd,
    memory: Arc<AddressSpace>,
    /// Whether it has its address space from another process (`vfork`): it will leave it at `exec`
    /// while the address space lives on.
    borrows_memory: bool,
    client: Arc<Shared>,
    /// As it was when it was asked for first, or after [`Process::forget_account`].
    account: Mutex<Option<Account>>,
    this: std::sync::Weak<Process>,
}

impl Process {
    /// The process `id` (the id of its first thread).
    pub(crate) fn open(id: i32, client: Arc<Shared>) -> Result<Arc<Self>, ProcessError> {
        let pid = Pid::from_raw(id).ok_or(ProcessError::Gone)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(refused)?;
        let dir = open_dir(id)?;
        let parent = status(&dir, "PPid:")?;
        let open = |name, flags| {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(refused)
        };
        let mem = open("mem", OFlags::RDWR)?;
        let maps = open("maps", OFlags::RDONLY)?;
        let memory = AddressSpace::new(File::from(mem), File::from(maps));
        let process = Arc::new_cyclic(|this| Process {
            id,
            memory: Arc::clone(&memory),
            borrows_memory: shares_memory(id, parent),
            pidfd,
            dir,
            client,
            account: Mutex::new(None),
            this: this.clone(),
        });
        // If it is alive now, all that was opened by its number is its own; if the first of the two
        // is still its memory, the second is the same.
        if process.still_same() {
            process.client.remember_space(&memory);
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

    /// As [`Caller::pages`], where an address at which the process has mapped registers of a device
    /// will do too.
    ///
    /// # Errors
    /// As [`Caller::pages`].
    pub fn pages_or_registers(
        &self,
        address: u64,
        len: u64,
    ) -> Result<Arc<dyn PageSource>, PinError> {
        let process = self.this.upgrade().ok_or(PinError::Fault)?;
        Ok(Arc::new(ProcessPages {
            process,
            address,
            len,
            registers: true,
        }))
    }

    /// Whether `tid` is one of its threads now.
    pub(crate) fn has_thread(&self, tid: i32) -> bool {
        rustix::fs::accessat(
            &self.dir,
            format!("task/{tid}"),
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok()
    }

    pub(crate) fn borrows_memory(&self) -> bool {
        self.borrows_memory
    }

    pub(crate) fn memory(&self) -> &Arc<AddressSpace> {
        &self.memory
    }

    pub(crate) fn client(&self) -> &Arc<Shared> {
        &self.client
    }

    /// Device and inode (`st_dev`, `st_ino`) of the file behind `fd`. Does not ask the file system.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub fn fd_identity(&self, fd: i32) -> Result<(u64, u64), FdError> {
        let (id, _) = identify(self.dir.as_fd(), &fd_path(fd)?).map_err(no_fd)?;
        Ok((id.dev, id.ino))
    }

    /// Whether its descriptors may be looked at, as they may be no more once it is not dumpable.
    ///
    /// # Errors
    /// [`ProcessError::Denied`].
    pub fn descriptors_are_open(&self) -> Result<(), ProcessError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, "fd", flags, Mode::empty());
        opened.map(drop).map_err(refused)
    }

    /// How `fd` was opened, with O_CLOEXEC where the descriptor is close-on-exec: the `flags` line of its
    /// `fdinfo`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub fn fd_flags(&self, fd: i32) -> Result<OFlags, FdError> {
        let text = read_text(&self.dir, &format!("fdinfo/{fd}")).ok_or(FdError::NotOpen)?;
        let octal = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let bits = octal.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
        bits.map(OFlags::from_bits_retain).ok_or(FdError::NotOpen)
    }

    /// Whether `fd` only names a file (`O_PATH`): every call on it is EBADF.
    pub fn fd_is_a_path(&self, fd: i32) -> bool {
        // The link's own mode shows what the file is open for (`tid_fd_update_inode`, fs/proc/fd.c), which
        // is the cheaper look. Nothing is also what `O_ACCMODE` leaves.
        let look = AtFlags::SYMLINK_NOFOLLOW;
        let link = fd_path(fd).and_then(|path| {
            let found = rustix::fs::statx(&self.dir, path, look, StatxFlags::MODE);
            found.map_err(no_fd)
        });
        link.is_ok_and(|link| u32::from(link.stx_mode) & 0o700 == 0)
            && self
                .fd_flags(fd)
                .is_ok_and(|flags| flags.contains(OFlags::PATH))
    }

    /// The other descriptors of the same open file as `fd`, as `dup` makes them. Empty where the kernel does
    /// not tell (built without kcmp, or nobody may ask it).
    pub fn duplicates(&self, fd: i32) -> Vec<i32> {
        const KCMP_FILE: libc::c_int = 0;
        let same = |other: &i32| {
            // SAFETY: KCMP_FILE compares two descriptors and takes no pointer.
            let order =
                unsafe { libc::syscall(libc::SYS_kcmp, self.id, self.id, KCMP_FILE, fd, *other) };
            *other != fd && order == 0
        };
        self.fd_numbers().into_iter().filter(same).collect()
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

    /// A duplicate of `fd` if it is a memory file.
    fn memory_file(&self, fd: i32) -> Result<Arc<MemoryFile>, FdError> {
        let (dev, ino) = self.fd_identity(fd)?;
        let id = FileId { dev, ino };
        if !is_memory_device(dev, || self.mountinfo()) {
            return Err(if self.fd_is_a_path(fd) {
                FdError::NotOpen
            } else {
                FdError::WrongType
            });
        }
        let taken = self.get_fd(fd)?;
        // `fget` of the kernel, unlike `pidfd_getfd`, does not give such a one.
        if fcntl_getfl(&taken).is_ok_and(|flags| flags.contains(OFlags::PATH)) {
            return Err(FdError::NotOpen);
        }
        // The client may have put another file in its place meanwhile.
        if identify(taken.as_fd(), "").is_ok_and(|(found, _)| found == id) {
            MemoryFile::new(taken).ok_or(FdError::WrongType)
        } else {
            self.client.discard(taken);
            Err(FdError::WrongType)
        }
    }

    /// The kernel's details of the mapping that starts at `start`: its lines in `/proc/PID/smaps`. Walks
    /// all page tables of the process: only for what nothing else tells.
    pub(crate) fn details(&self, start: u64) -> Option<String> {
        let text = read_text(&self.dir, "smaps")?;
        let first = format!("{start:08x}-");
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&first));
        let header = lines.next()?;
        let is_detail = |line: &&str| line.starts_with(|first: char| first.is_ascii_uppercase());
        let details = lines.take_while(is_detail);
        Some(
            std::iter::once(header)
                .chain(details)
                .collect::<Vec<_>>()
                .join("\n"),
        )
    }

    /// Whether every page of `range` is in memory, where the processor would find it without a fault.
    pub(crate) fn is_present(&self, range: AddrRange) -> bool {
        /// Bit of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
        const PRESENT: u64 = 1 << 63;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&self.dir, "pagemap", flags, Mode::empty()) else {
            return false;
        };
        let (first, last) = (range.start() / PAGE_SIZE, range.last() / PAGE_SIZE);
        let mut entry = [0; 8];
        (first..=last).all(|page| {
            rustix::io::pread(&file, &mut entry, page * 8) == Ok(8)
                && u64::from_ne_bytes(entry) & PRESENT != 0
        })
    }

    /// The file behind a mapping, opened through the mapping itself. The kernel allows that to
    /// CAP_CHECKPOINT_RESTORE of the first user namespace only. The caller has made sure that the
    /// file is a memory file.
    pub(crate) fn open_mapped(&self, vma: &Vma) -> Option<OwnedFd> {
        let (start, end) = (vma.range.start(), vma.range.last().checked_add(1)?);
        let access = if vma.writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let path = format!("map_files/{start:x}-{end:x}");
        rustix::fs::openat(&self.dir, path, access | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// The numbers of its open descriptors.
    pub(crate) fn fd_numbers(&self) -> Vec<i32> {
        self.numbers_in("fd")
    }

    fn numbers_in(&self, name: &str) -> Vec<i32> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(&self.dir, name, flags, Mode::empty()).and_then(Dir::new)
        else {
            return Vec::new();
        };
        dir.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
            .collect()
    }

    /// The mounts that it sees.
    pub(crate) fn mountinfo(&self) -> Option<String> {
        read_text(&self.dir, "mountinfo")
    }

    /// What stands for its address space in an [`Account`].
    pub fn number(&self) -> u64 {
        self.memory.number()
    }

    /// Its user, capabilities or limits are about to change: they are read again when needed.
    pub fn forget_account(&self) {
        *self.account.lock() = None;
    }

    fn read_account(&self) -> Account {
        /// Bit of CAP_IPC_LOCK (`include/uapi/linux/capability.h`).
        const IPC_LOCK: u32 = 14;
        let status = read_text(&self.dir, "status").unwrap_or_default();
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|values: &str| values.split_whitespace().next())
        };
        let user = field("Uid:").and_then(|uid| uid.parse().ok());
        let capabilities = field("CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
        Account {
            process: self.number(),
            user: user.unwrap_or(0),
            unlimited: capabilities.is_some_and(|set| set >> IPC_LOCK & 1 != 0),
            limit: self.limit("Max locked memory"),
        }
    }

    /// The soft limit called `name` in `/proc/PID/limits`; `None` if there is none.
    fn limit(&self, name: &str) -> Option<u64> {
        let text = read_text(&self.dir, "limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
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
        let maps = read_text(&self.dir, "maps").unwrap_or_default();
        maps.lines().any(|line| {
            line.strip_suffix(name)
                .is_some_and(|path| path.ends_with('/'))
        })
    }

    /// The thread that traces it; 0 if there is none.
    pub fn tracer(&self) -> i32 {
        status(&self.dir, "TracerPid:").unwrap_or(0)
    }

    /// The process that started it, or took it over.
    pub fn parent(&self) -> i32 {
        status(&self.dir, "PPid:").unwrap_or(0)
    }

    /// The numbers of its threads.
    pub fn threads(&self) -> Vec<i32> {
        self.numbers_in("task")
    }

    /// One more than its largest descriptor number (the soft `RLIMIT_NOFILE`).
    pub fn descriptor_limit(&self) -> u32 {
        let limit = self.limit("Max open files");
        limit.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }

    fn link(&self, fd: i32) -> Result<Vec<u8>, FdError> {
        let link = rustix::fs::readlinkat(&self.dir, fd_path(fd)?, Vec::new());
        Ok(link.map_err(no_fd)?.into_bytes())
    }
}

impl Caller for Process {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory.read(address, dst)
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let Some(range) = AddrRange::from_len(address, src.len() as u64) else {
            return if src.is_empty() {
                Ok(())
            } else {
                Err(MemoryGone { done: 0 })
            };
        };
        if !self.memory.is_writable(range) {
            return Err(MemoryGone { done: 0 });
        }
        self.memory.write(address, src)
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        let process = self.this.upgrade().ok_or(PinError::Fault)?;
        Ok(Arc::new(ProcessPages {
            process,
            address,
            len,
            registers: false,
        }))
    }

    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        let file = self.memory_file(fd)?;
        self.client.remember_file(&file);
        Ok(Arc::new(FilePages {
            client: Arc::clone(&self.client),
            file,
            start,
            len,
        }))
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        let taken = self.take_eventfd(fd)?;
        let thread = Arc::clone(&self.client.interrupts);
        Ok(Arc::new(EventFd::new(taken, thread)))
    }

    fn watch_eventfd(
        &self,
        fd: i32,
        listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        let taken = self.take_eventfd(fd)?;
        let watch = self.client.watcher.watch("eventfds", taken, listener);
        watch.map_err(|_| FdError::NoMemory)
    }

    fn flush_interrupts(&self) {
        self.client.interrupts.flush();
    }

    fn account(&self) -> Account {
        *self
            .account
            .lock()
            .get_or_insert_with(|| self.read_account())
    }
}

impl Process {
    /// A copy of the program's eventfd `fd`.
    fn take_eventfd(&self, fd: i32) -> Result<OwnedFd, FdError> {
        // Only an anonymous inode has a name that does not start with a slash.
        const EVENTFD: &[u8] = b"anon_inode:[eventfd]";
        if self.link(fd)? != EVENTFD {
            return Err(FdError::WrongType);
        }
        let taken = self.get_fd(fd)?;
        let path = format!("/proc/self/fd/{}", taken.as_raw_fd());
        let link = rustix::fs::readlinkat(CWD, path, Vec::new());
        if !link.is_ok_and(|link| link.as_bytes() == EVENTFD) {
            self.client.discard(taken);
            return Err(FdError::WrongType);
        }
        Ok(taken)
    }
}

/// Whether this host lets descriptors be taken from other processes at all (`pidfd_getfd`, which some
/// containers refuse): eventfds, memory files and copies of our own files need it.
pub fn can_take_descriptors() -> bool {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let taken = own.and_then(|own| {
        rustix::process::pidfd_getfd(&own, own.as_raw_fd(), PidfdGetfdFlags::empty())
    });
    !matches!(taken, Err(Errno::PERM | Errno::NOSYS))
}

/// The id of the process that thread `tid` belongs to now.
pub(crate) fn process_of(tid: i32) -> Result<i32, ProcessError> {
    status(&open_dir(tid)?, "Tgid:")
}

/// A number in `/proc/PID/status`.
fn status(dir: &OwnedFd, name: &str) -> Result<i32, ProcessError> {
    read_text(dir, "status")
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        })
        .ok_or(ProcessError::Gone)
}

fn open_dir(id: i32) -> Result<OwnedFd, ProcessError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, format!("/proc/{id}"), flags, Mode::empty()).map_err(refused)
}

fn read_text(dir: &OwnedFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Path of a descriptor in the directory of its process.
fn fd_path(fd: i32) -> Result<String, FdError> {
    match fd {
        0.. => Ok(format!("fd/{fd}")),
        _ => Err(FdError::NotOpen),
    }
}

/// Whether two processes have one address space. Where the kernel cannot tell (built without kcmp),
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

fn refused(errno: Errno) -> ProcessError {
    match errno {
        Errno::ACCESS | Errno::PERM => ProcessError::Denied,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => ProcessError::NoMemory,
        _ => ProcessError::Gone,
    }
}

fn no_fd(errno: Errno) -> FdError {
    match errno {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => FdError::NoMemory,
        _ => FdError::NotOpen,
    }
}
