//! The seccomp filter: which system calls the session is asked about.
//!
//! | call | asked about when |
//! |---|---|
//! | `ioctl` | the type byte of the request is `;`, which only VFIO and iommufd use, or it is KVM_SET_DEVICE_ATTR |
//! | `open`, `openat` | the access mode is `O_RDWR`, as every client of these nodes uses |
//! | `openat2` | always: its flags lie behind a pointer |
//! | `statfs`, `fstatfs` | always: `/sys` is no sysfs for the kernel |
//! | `mount` | always: a new sysfs on `/sys` would have none of our devices |
//! | `execve`, `execveat` | always: the memory of the process changes under us |
//! | `pread64`, `pwrite64` and their kin | the offset is one of a device's regions, or the descriptor is one of ours |
//! | `read`, `write` and their kin, `fstat`, `lseek`, `dup`, `close` | the descriptor is one of ours |
//! | `ftruncate`, `fallocate`, `fsync`, `fdatasync` | likewise |
//! | `mmap` | likewise, or it shares a file |
//! | `dup2`, `dup3` | the new descriptor is |
//! | `close_range` | ours may be in it |
//! | `fcntl` | the descriptor is one of ours, and the command duplicates it, asks how it is open or seals it |
//! | `newfstatat`, `statx` | likewise, and the descriptor itself is meant (`AT_EMPTY_PATH`) |
//!
//! Two kinds of program are asked about more ([`Scope`]). Where `/proc/PID/status` is to show what a
//! program has locked, also:
//!
//! | call | asked about when |
//! |---|---|
//! | `open`, `openat` | it opens for reading, as `fopen` does: without `O_CLOEXEC` and other flags |
//! | `capset` and the calls that change the user | always |
//!
//! where entries of `/sys` can be written:
//!
//! | call | asked about when |
//! |---|---|
//! | `open`, `openat` | it opens for writing |
//!
//! and without namespaces, where a path of ours leads nowhere:
//!
//! | call | asked about when |
//! |---|---|
//! | `open`, `stat`, `access`, `readlink`, `getxattr`, `listxattr` and their kin, `getdents64` | always |
//!
//! Descriptors of ours are the [`RESERVED_FDS`] from BASE up, so ordinary files cost a program nothing
//! but the filter itself (about 30 ns a call). A descriptor that came to another number, by `dup2` or by a
//! message, is served as well by the calls that say where: region N of a device begins at offset
//! N * 2^40, which no other file has, and only the first bytes of files ([`Scope::reach`]) are where region
//! 0 is. Calls of another architecture's ABI pass untouched.

use std::{io, os::fd::OwnedFd};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_SUB, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF,
};

use ioasid_vfio::region::INDEX_SHIFT;

use crate::sys;

/// The type byte of every ioctl of VFIO and iommufd, as it stands in the request number.
pub const TYPE_BYTE: u32 = (b';' as u32) << 8;

/// `KVM_SET_DEVICE_ATTR`: among many other things, tells KVM of a VFIO file.
pub const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;

/// How many descriptor numbers are ours, from BASE up.
pub const RESERVED_FDS: u32 = 512;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Byte offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The low half of argument `index`; the calls that matter take 32-bit values there.
const fn arg(index: u32) -> u32 {
    16 + 8 * index
}

/// One BPF instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Immediate.
    pub k: u32,
}

/// The lowest descriptor number that is ours, for a program with this soft `RLIMIT_NOFILE`.
///
/// Below 1024 so that `select` can be used on it, and never above the limit, which is not changed.
pub fn base(soft_limit: Option<u64>) -> u32 {
    let limit = soft_limit.unwrap_or(u64::MAX).min(1024);
    let limit = u32::try_from(limit).unwrap_or(1024);
    limit.saturating_sub(RESERVED_FDS).max(limit / 2).max(3)
}

/// Installs a filter for this thread and what comes of it, and returns the listener.
///
/// Without CAP_SYS_ADMIN the kernel wants `no_new_privs` first, which is set then.
///
/// # Errors
/// EBUSY if the thread has a listener already, EINVAL before Linux 5.19.
pub fn install(program: &[Instruction]) -> io::Result<OwnedFd> {
    match sys::install_filter(program) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            rustix::thread::set_no_new_privs(true)?;
            sys::install_filter(program)
        }
        other => other,
    }
}

/// The places a jump can lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Next,
    Allow,
    Notify,
    Ioctl,
    OpenFlags1,
    OpenFlags2,
    OpenAccess1,
    OpenAccess2,
    Fcntl,
    Mmap,
    EmptyPath3,
    EmptyPath2,
    CloseRange,
    Offset,
    Fd0,
    Fd1,
    Fd4,
    CompareFd,
}

/// An assembler for forward jumps to named places.
#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn op(&mut self, code: u32, k: u32) -> &mut Self {
        self.code.push(Instruction {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        });
        self
    }

    fn load(&mut self, offset: u32) -> &mut Self {
        self.op(BPF_LD | BPF_W | BPF_ABS, offset)
    }

    fn jump(&mut self, test: u32, k: u32, yes: Label, no: Label) -> &mut Self {
        self.jumps.push((self.code.len(), yes, no));
        self.op(BPF_JMP | test | BPF_K, k)
    }

    fn label(&mut self, label: Label) -> &mut Self {
        self.labels.push((label, self.code.len()));
        self
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, yes, no) in std::mem::take(&mut self.jumps) {
            let skip = |label: Label| -> u8 {
                if label == Label::Next {
                    return 0;
                }
                let target = self.labels.iter().find(|(l, _)| *l == label);
                let distance = target.and_then(|(_, to)| to.checked_sub(at + 1));
                distance
                    .and_then(|d| u8::try_from(d).ok())
                    .expect("the filter is short and jumps forward to labels it has")
            };
            let (jt, jf) = (skip(yes), skip(no));
            self.code[at].jt = jt;
            self.code[at].jf = jf;
        }
        self.code
    }
}

/// `O_LARGEFILE`, which some C libraries add.
const LARGEFILE: u32 = 0x8000;

/// What a program is to be asked about.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The lowest descriptor number that is ours.
    pub base: u32,
    /// The bytes of a file, from its start, that may be region 0 of a device.
    pub reach: u32,
    /// Whether `/proc/PID/status` shows what a program has locked.
    pub status: bool,
    /// Whether entries of `/sys` can be written.
    pub attributes: bool,
    /// Whether paths of ours have to be answered, since the program has no namespace with them.
    pub paths: bool,
}

/// Calls that may change whom locked memory counts for.
const ACCOUNT_CALLS: [libc::c_long; 4] = [
    libc::SYS_capset,
    libc::SYS_setuid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
];

/// Calls that take a path, and one that lists directories.
const PATH_CALLS: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// The filter for a program of this scope.
pub fn program(scope: &Scope) -> Vec<Instruction> {
    use Label::*;
    let base = scope.base;
    let nr = |n: libc::c_long| u32::try_from(n).unwrap_or(u32::MAX);
    let mut a = Assembler::default();
    a.load(ARCH).jump(BPF_JEQ, AUDIT_ARCH, Next, Allow);
    a.load(NR);
    if scope.paths {
        for call in PATH_CALLS {
            a.jump(BPF_JEQ, nr(*call), Notify, Next);
        }
    }
    if scope.status {
        for call in ACCOUNT_CALLS {
            a.jump(BPF_JEQ, nr(call), Notify, Next);
        }
    }
    a.jump(BPF_JEQ, nr(libc::SYS_ioctl), Ioctl, Next);
    for call in [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_dup,
        libc::SYS_close,
    ] {
        a.jump(BPF_JEQ, nr(call), Fd0, Next);
    }
    for call in [
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_preadv2,
        libc::SYS_pwritev2,
    ] {
        a.jump(BPF_JEQ, nr(call), Offset, Next);
    }
    #[cfg(target_arch = "x86_64")]
    a.jump(BPF_JEQ, nr(libc::SYS_dup2), Fd1, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_dup3), Fd1, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_close_range), CloseRange, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_openat), OpenFlags2, Next);
    #[cfg(target_arch = "x86_64")]
    a.jump(BPF_JEQ, nr(libc::SYS_open), OpenFlags1, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_mmap), Mmap, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_fcntl), Fcntl, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_newfstatat), EmptyPath3, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_statx), EmptyPath2, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_openat2), Notify, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_statfs), Notify, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_fstatfs), Notify, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_mount), Notify, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_execve), Notify, Next);
    a.jump(BPF_JEQ, nr(libc::SYS_execveat), Notify, Allow);

    a.label(Ioctl).load(arg(1));
    a.jump(BPF_JEQ, KVM_SET_DEVICE_ATTR, Notify, Next);
    a.op(BPF_ALU | BPF_AND | BPF_K, 0xff00);
    a.jump(BPF_JEQ, TYPE_BYTE, Notify, Allow);

    for (flags, access, index) in [(OpenFlags1, OpenAccess1, 1), (OpenFlags2, OpenAccess2, 2)] {
        a.label(flags);
        if scope.status {
            a.load(arg(index));
            a.op(BPF_ALU | BPF_AND | BPF_K, !LARGEFILE);
            a.jump(BPF_JEQ, libc::O_RDONLY as u32, Notify, access);
            a.label(access);
        }
        a.load(arg(index));
        a.op(BPF_ALU | BPF_AND | BPF_K, libc::O_ACCMODE as u32);
        if scope.attributes {
            a.jump(BPF_JEQ, libc::O_RDONLY as u32, Allow, Notify);
        } else {
            a.jump(BPF_JEQ, libc::O_RDWR as u32, Notify, Allow);
        }
    }

    a.label(Fcntl).load(arg(1));
    a.jump(BPF_JEQ, libc::F_DUPFD as u32, Fd0, Next);
    a.jump(BPF_JEQ, libc::F_GETFL as u32, Fd0, Next);
    a.jump(BPF_JEQ, libc::F_ADD_SEALS as u32, Fd0, Next);
    a.jump(BPF_JEQ, libc::F_GET_SEALS as u32, Fd0, Next);
    a.jump(BPF_JEQ, libc::F_DUPFD_CLOEXEC as u32, Fd0, Allow);

    for (label, index) in [(EmptyPath3, 3), (EmptyPath2, 2)] {
        a.label(label).load(arg(index));
        a.op(BPF_ALU | BPF_AND | BPF_K, libc::AT_EMPTY_PATH as u32);
        a.jump(BPF_JEQ, 0, Allow, Fd0);
    }

    a.label(Mmap).load(arg(3));
    let kind = (libc::MAP_TYPE | libc::MAP_ANONYMOUS) as u32;
    a.op(BPF_ALU | BPF_AND | BPF_K, kind);
    a.jump(BPF_JEQ, libc::MAP_SHARED as u32, Notify, Next);
    a.jump(BPF_JEQ, libc::MAP_SHARED_VALIDATE as u32, Notify, Fd4);

    // Without an offset (-1), or not one of a file: by the descriptor alone.
    a.label(Offset).load(arg(3) + 4);
    a.jump(BPF_JGE, 1 << 31, Fd0, Next);
    a.jump(BPF_JGE, 1 << (INDEX_SHIFT - 32), Notify, Next);
    a.jump(BPF_JEQ, 0, Next, Fd0);
    a.load(arg(3));
    a.jump(BPF_JGE, scope.reach, Fd0, Notify);

    // The range ends above BASE or has no end.
    a.label(CloseRange).load(arg(1));
    a.jump(BPF_JGE, base, Notify, Allow);

    // BPF has no call, and no jump without a condition but this.
    a.label(Fd4).load(arg(4));
    a.jump(BPF_JGE, 0, CompareFd, CompareFd);
    a.label(Fd1).load(arg(1));
    a.jump(BPF_JGE, 0, CompareFd, CompareFd);
    a.label(Fd0).load(arg(0));
    // Numbers below BASE, negative ones too, become large ones.
    a.label(CompareFd).op(BPF_ALU | BPF_SUB | BPF_K, base);
    a.jump(BPF_JGE, RESERVED_FDS, Allow, Notify);

    a.label(Notify).op(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    a.label(Allow).op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    a.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would; true for "notify".
    fn notifies(code: &[Instruction], arch: u32, nr: i64, args: [u64; 6]) -> bool {
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&(nr as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (index, value) in args.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&value.to_ne_bytes());
        }
        let (mut pc, mut acc) = (0, 0u32);
        loop {
            let i = code[pc];
            pc += 1;
            let test = match u32::from(i.code) {
                c if c == BPF_LD | BPF_W | BPF_ABS => {
                    let at = i.k as usize;
                    acc = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
                    continue;
                }
                c if c == BPF_ALU | BPF_AND | BPF_K => {
                    acc &= i.k;
                    continue;
                }
                c if c == BPF_ALU | BPF_SUB | BPF_K => {
                    acc = acc.wrapping_sub(i.k);
                    continue;
                }
                c if c == BPF_RET | BPF_K => return i.k == SECCOMP_RET_USER_NOTIF,
                c if c == BPF_JMP | BPF_JEQ | BPF_K => acc == i.k,
                c if c == BPF_JMP | BPF_JGE | BPF_K => acc >= i.k,
                other => panic!("unknown instruction {other:#x}"),
            };
            pc += usize::from(if test { i.jt } else { i.jf });
        }
    }

    const PLAIN: Scope = Scope {
        base: 512,
        reach: 0x1_0000,
        status: false,
        attributes: false,
        paths: false,
    };

    #[test]
    fn opens_for_writing_matter_where_attributes_can_be_written() {
        let at_cwd = i64::from(libc::AT_FDCWD) as u64;
        for attributes in [false, true] {
            let code = program(&Scope {
                attributes,
                ..PLAIN
            });
            let asked = |flags: i32| {
                let args = [at_cwd, 0, flags as u64, 0, 0, 0];
                notifies(&code, AUDIT_ARCH, libc::SYS_openat, args)
            };
            assert_eq!(asked(libc::O_WRONLY | libc::O_CREAT), attributes);
            assert!(asked(libc::O_RDWR));
            assert!(!asked(libc::O_RDONLY | libc::O_CLOEXEC));
        }
    }

    #[test]
    fn a_wider_scope_asks_about_more_and_never_less() {
        let at_cwd = i64::from(libc::AT_FDCWD) as u64;
        let fopen = (libc::SYS_openat, [at_cwd, 0, 0, 0, 0, 0]);
        let library = (
            libc::SYS_openat,
            [at_cwd, 0, libc::O_CLOEXEC as u64, 0, 0, 0],
        );
        let device = (libc::SYS_openat, [at_cwd, 0, libc::O_RDWR as u64, 0, 0, 0]);
        let stat = (libc::SYS_newfstatat, [at_cwd, 0, 0, 0, 0, 0]);
        let capset = (libc::SYS_capset, [0; 6]);
        for (status, paths) in [(false, false), (true, false), (false, true), (true, true)] {
            let code = program(&Scope {
                status,
                paths,
                ..PLAIN
            });
            let asked = |(nr, args)| notifies(&code, AUDIT_ARCH, nr, args);
            assert!(asked(device));
            assert!(asked((libc::SYS_read, [900, 0, 0, 0, 0, 0])));
            assert_eq!(asked(fopen), status || paths);
            assert_eq!(asked(library), paths);
            assert_eq!(asked(stat), paths);
            assert_eq!(asked(capset), status);
            assert!(!asked((libc::SYS_read, [3, 0, 0, 0, 0, 0])));
        }
    }

    #[test]
    fn asks_about_what_concerns_us_and_nothing_else() {
        let code = program(&PLAIN);
        let at_cwd = i64::from(libc::AT_FDCWD) as u64;
        let rdwr = (libc::O_RDWR | libc::O_CLOEXEC) as u64;
        let empty = libc::AT_EMPTY_PATH as u64;
        let asked: &[(i64, [u64; 6])] = &[
            (libc::SYS_ioctl, [3, 0x3b81, 0, 0, 0, 0]),
            (libc::SYS_ioctl, [3, 0xffff_ffff_0000_3b64, 0, 0, 0, 0]),
            (libc::SYS_ioctl, [3, KVM_SET_DEVICE_ATTR.into(), 0, 0, 0, 0]),
            (libc::SYS_openat, [at_cwd, 0, rdwr, 0, 0, 0]),
            (libc::SYS_openat2, [at_cwd, 0, 0, 0, 0, 0]),
            (libc::SYS_read, [512, 0, 0, 0, 0, 0]),
            (libc::SYS_pwrite64, [1023, 0, 0, 0x1_0000, 0, 0]),
            (libc::SYS_pread64, [1023, 0, 0, u64::MAX, 0, 0]),
            (libc::SYS_preadv2, [512, 0, 0, u64::MAX, 0, 0]),
            // Region 0, and those above.
            (libc::SYS_pread64, [3, 0, 4, 0xffff, 0, 0]),
            (libc::SYS_pwritev, [3, 0, 1, 0, 0, 0]),
            (libc::SYS_pread64, [3, 0, 4, 1 << 40, 0, 0]),
            (libc::SYS_pwrite64, [3, 0, 4, 7 << 40 | 4, 0, 0]),
            (libc::SYS_lseek, [600, 0, 0, 0, 0, 0]),
            (libc::SYS_ftruncate, [600, 0, 0, 0, 0, 0]),
            (libc::SYS_fcntl, [600, libc::F_GET_SEALS as u64, 0, 0, 0, 0]),
            (libc::SYS_fstat, [900, 0, 0, 0, 0, 0]),
            (libc::SYS_newfstatat, [900, 0, 0, empty, 0, 0]),
            (libc::SYS_statx, [900, 0, empty, 0, 0, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 2, 512, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 1, 3, 0]),
            (libc::SYS_dup, [896, 0, 0, 0, 0, 0]),
            (libc::SYS_close, [1023, 0, 0, 0, 0, 0]),
            (libc::SYS_dup2, [3, 900, 0, 0, 0, 0]),
            (libc::SYS_close_range, [3, u64::MAX, 0, 0, 0, 0]),
            (
                libc::SYS_fcntl,
                [896, libc::F_DUPFD_CLOEXEC as u64, 3, 0, 0, 0],
            ),
            (libc::SYS_execve, [0; 6]),
            (libc::SYS_statfs, [0; 6]),
            (libc::SYS_mount, [0; 6]),
            (libc::SYS_fstatfs, [3, 0, 0, 0, 0, 0]),
        ];
        let passed: &[(i64, [u64; 6])] = &[
            (libc::SYS_ioctl, [896, 0x5401, 0, 0, 0, 0]),
            // KVM_RUN and KVM_GET_DEVICE_ATTR.
            (libc::SYS_ioctl, [3, 0xae80, 0, 0, 0, 0]),
            (libc::SYS_ioctl, [3, 0x4018_aee2, 0, 0, 0, 0]),
            (
                libc::SYS_openat,
                [at_cwd, 0, libc::O_CLOEXEC as u64, 0, 0, 0],
            ),
            (
                libc::SYS_openat,
                [at_cwd, 0, libc::O_WRONLY as u64, 0, 0, 0],
            ),
            (libc::SYS_read, [511, 0, 0, 0, 0, 0]),
            (libc::SYS_pread64, [3, 0, 4096, 0x1_0000, 0, 0]),
            (libc::SYS_pwritev2, [3, 0, 1, 1 << 39, 0, 0]),
            (libc::SYS_preadv2, [3, 0, 1, u64::MAX, 0, 0]),
            (libc::SYS_lseek, [3, 0, 0, 0, 0, 0]),
            (libc::SYS_fsync, [3, 0, 0, 0, 0, 0]),
            (libc::SYS_read, [u64::MAX, 0, 0, 0, 0, 0]),
            (libc::SYS_newfstatat, [at_cwd, 0, 0, empty, 0, 0]),
            (libc::SYS_newfstatat, [900, 0, 0, 0, 0, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 0x21, u64::MAX, 0]),
            (libc::SYS_mmap, [896, 4096, 3, 2, 3, 0]),
            (libc::SYS_fcntl, [896, libc::F_GETFD as u64, 0, 0, 0, 0]),
            (libc::SYS_close, [511, 0, 0, 0, 0, 0]),
            (libc::SYS_close, [1024, 0, 0, 0, 0, 0]),
            (libc::SYS_dup2, [900, 3, 0, 0, 0, 0]),
            (libc::SYS_close_range, [3, 20, 0, 0, 0, 0]),
            (libc::SYS_getppid, [0; 6]),
        ];
        for (nr, args) in asked {
            assert!(notifies(&code, AUDIT_ARCH, *nr, *args), "{nr} {args:?}");
        }
        for (nr, args) in passed {
            assert!(!notifies(&code, AUDIT_ARCH, *nr, *args), "{nr} {args:?}");
        }
        for (nr, args) in asked {
            assert!(!notifies(&code, 0x4000_0003, *nr, *args), "i386 {nr}");
        }
    }

    #[test]
    fn base_follows_the_soft_limit_and_stays_selectable() {
        assert_eq!(base(Some(1024)), 512);
        assert_eq!(base(Some(1 << 20)), 512);
        assert_eq!(base(None), 512);
        assert_eq!(base(Some(512)), 256);
        assert_eq!(base(Some(64)), 32);
        assert_eq!(base(Some(0)), 3);
    }
}
