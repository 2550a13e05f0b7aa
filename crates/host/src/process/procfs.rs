//! The directory of one process in `/proc`: what it shows of the process.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
};

use ioasid_core::{
    host::{Account, FdError},
    memory::PAGE_SIZE,
    range::AddrRange,
};
use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxFlags},
    io::Errno,
};

use super::error::ProcessError;
use crate::{
    memory::maps::Vma,
    system::file_id::{FileId, identify},
};

/// `/proc/PID`, open: bound to the process, not to its number.
#[derive(Debug)]
pub(crate) struct ProcDir(OwnedFd);

impl ProcDir {
    /// That of the process or thread `id`.
    pub(crate) fn open(id: i32) -> Result<Self, ProcessError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = format!("/proc/{id}");
        Ok(ProcDir(rustix::fs::openat(
            CWD,
            path,
            flags,
            Mode::empty(),
        )?))
    }

    /// Opens the file `name` in it.
    pub(crate) fn file(&self, name: &str, flags: OFlags) -> Result<File, ProcessError> {
        let flags = flags | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        Ok(File::from(file))
    }

    /// The text of the file `name`.
    fn text(&self, name: &str) -> Option<String> {
        let mut text = Vec::new();
        let mut file = self.file(name, OFlags::RDONLY).ok()?;
        file.read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// A number in `status`.
    pub(crate) fn status(&self, name: &str) -> Result<i32, ProcessError> {
        self.text("status")
            .and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            })
            .ok_or(ProcessError::Gone)
    }

    /// Whether `status` calls it stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        let text = self.text("status").unwrap_or_default();
        let state = text.lines().find_map(|line| line.strip_prefix("State:"));
        state.is_some_and(|state| state.trim_start().starts_with(['T', 't']))
    }

    /// Whether `tid` is one of its threads now.
    pub(crate) fn has_thread(&self, tid: i32) -> bool {
        rustix::fs::accessat(
            &self.0,
            format!("task/{tid}"),
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok()
    }

    /// Device and inode (`st_dev`, `st_ino`) of the file behind `fd`. Does not ask the file system.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub(crate) fn fd_identity(&self, fd: i32) -> Result<FileId, FdError> {
        let (id, _) = identify(self.0.as_fd(), &fd_path(fd)?).map_err(no_fd)?;
        Ok(id)
    }

    /// Whether its descriptors may be looked at, as they may be no more once it is not dumpable.
    ///
    /// # Errors
    /// [`ProcessError::Denied`].
    pub(crate) fn descriptors_are_open(&self) -> Result<(), ProcessError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.0, "fd", flags, Mode::empty());
        opened.map(drop).map_err(ProcessError::from)
    }

    /// How `fd` was opened, with O_CLOEXEC where the descriptor is close-on-exec: the `flags` line
    /// of its `fdinfo`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub(crate) fn fd_flags(&self, fd: i32) -> Result<OFlags, FdError> {
        let text = self.text(&format!("fdinfo/{fd}")).ok_or(FdError::NotOpen)?;
        let octal = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let bits = octal.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
        bits.map(OFlags::from_bits_retain).ok_or(FdError::NotOpen)
    }

    /// Whether `fd` only names a file (`O_PATH`): every call on it is EBADF.
    pub(crate) fn fd_is_a_path(&self, fd: i32) -> bool {
        // The link's own mode shows what the file is open for (`tid_fd_update_inode`,
        // fs/proc/fd.c), which is the cheaper look. Nothing is also what `O_ACCMODE` leaves.
        let look = AtFlags::SYMLINK_NOFOLLOW;
        let link = fd_path(fd).and_then(|path| {
            let found = rustix::fs::statx(&self.0, path, look, StatxFlags::MODE);
            found.map_err(no_fd)
        });
        link.is_ok_and(|link| u32::from(link.stx_mode) & 0o700 == 0)
            && self
                .fd_flags(fd)
                .is_ok_and(|flags| flags.contains(OFlags::PATH))
    }

    /// What `/proc/PID/fd` shows of `fd`.
    pub(crate) fn link(&self, fd: i32) -> Result<Vec<u8>, FdError> {
        let link = rustix::fs::readlinkat(&self.0, fd_path(fd)?, Vec::new());
        Ok(link.map_err(no_fd)?.into_bytes())
    }
    /// The numbers of its open descriptors.
    pub(crate) fn fd_numbers(&self) -> Vec<i32> {
        self.numbers_in("fd")
    }

    /// The numbers of its threads.
    pub(crate) fn threads(&self) -> Vec<i32> {
        self.numbers_in("task")
    }

    fn numbers_in(&self, name: &str) -> Vec<i32> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(&self.0, name, flags, Mode::empty()).and_then(Dir::new)
        else {
            return Vec::new();
        };
        dir.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
            .collect()
    }

    /// The kernel's details of the mapping that starts at `start`: its lines in `/proc/PID/smaps`.
    /// Walks all page tables of the process: only for what is shown nowhere else.
    pub(crate) fn details(&self, start: u64) -> Option<String> {
        let text = self.text("smaps")?;
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

    /// Whether every page of `range` is in memory, where the processor would find it without a
    /// fault.
    pub(crate) fn is_present(&self, range: AddrRange) -> bool {
        /// Bit of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
        const PRESENT: u64 = 1 << 63;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&self.0, "pagemap", flags, Mode::empty()) else {
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
        rustix::fs::openat(&self.0, path, access | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// The mounts that it sees.
    pub(crate) fn mountinfo(&self) -> Option<String> {
        self.text("mountinfo")
    }

    /// Whether it has mapped a file with this name, in whatever directory.
    pub(crate) fn has_mapped(&self, name: &str) -> bool {
        let maps = self.text("maps").unwrap_or_default();
        maps.lines().any(|line| {
            line.strip_suffix(name)
                .is_some_and(|path| path.ends_with('/'))
        })
    }

    /// The soft limit called `name` in `/proc/PID/limits`; `None` if there is none.
    pub(crate) fn limit(&self, name: &str) -> Option<u64> {
        let text = self.text("limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Its user and limits; `number` stands for its address space.
    pub(crate) fn account(&self, number: u64) -> Account {
        /// Bit of CAP_IPC_LOCK (`include/uapi/linux/capability.h`).
        const IPC_LOCK: u32 = 14;
        let status = self.text("status").unwrap_or_default();
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|values: &str| values.split_whitespace().next())
        };
        let user = field("Uid:").and_then(|uid| uid.parse().ok());
        let capabilities = field("CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
        Account {
            process: number,
            user: user.unwrap_or(0),
            unlimited: capabilities.is_some_and(|set| set >> IPC_LOCK & 1 != 0),
            limit: self.limit("Max locked memory"),
        }
    }
}

/// Path of a descriptor in the directory of its process.
fn fd_path(fd: i32) -> Result<String, FdError> {
    match fd {
        0.. => Ok(format!("fd/{fd}")),
        _ => Err(FdError::NotOpen),
    }
}

/// What the program hears of a descriptor that cannot be taken or looked at.
pub(super) fn no_fd(errno: Errno) -> FdError {
    match errno {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => FdError::NoMemory,
        _ => FdError::NotOpen,
    }
}
