//! The seccomp filter: which system calls the session is asked about.
//!
#![doc = include_str!("intercepted.md")]
//!
//! Reserved descriptors are the [`RESERVED_FDS`] from BASE up, so ordinary files cost a program
//! nothing but the filter itself (about 30 ns a call). A descriptor that came to another number, by
//! `dup2` or by a message, is served as well by the calls that say where: region N of a device
//! begins at offset N * 2^40, which no other file has, and only the first bytes of files
//! ([`Scope::reach`]) are where region 0 is. Calls of another architecture's ABI pass untouched.
//!
//! Why what is asked about:
//!
//! * `ioctl`: only VFIO and iommufd use the type byte `;`. KVM gets VFIO files by
//!   KVM_SET_DEVICE_ATTR.
//! * `open`, `openat`: the access mode is `O_RDWR`, as every client of the nodes uses. In the scope
//!   `attributes`, where entries of `/sys` can be written, an open for writing is asked about too.
//!   In the scope `status`, where `/proc/PID/status` shows what a program has locked, also one that
//!   opens for reading as `fopen` does: without `O_CLOEXEC` and other flags.
//! * `openat2`: its flags lie behind a pointer.
//! * `statfs`, `fstatfs`: `/sys` is no sysfs for the kernel.
//! * `mount`: a new sysfs on `/sys` would have none of the machine's devices.
//! * `execve`, `execveat`: the memory of the process changes under the session.
//! * `unshare` that leaves a user namespace or what threads share, and `setns`: some want a process that
//!   shares its memory with no other, and an agent (`session::agents`) does.
//! * In the scope `status`: calls after which locked memory counts for another user.
//! * In the scope `paths`, a program without namespaces: paths of the machine lead nowhere.

use std::{io, os::fd::OwnedFd};

use Target::{Next, To};
use ioasid_vfio::region::INDEX_SHIFT;
use libc::{
    BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_K, BPF_RET, BPF_SUB, SECCOMP_RET_ALLOW,
    SECCOMP_RET_USER_NOTIF,
};

use super::{
    assembler::{Assembler, Target},
    table::{Asked, ScopeBit, TABLE},
};
pub use crate::system::seccomp::Instruction;
use crate::system::seccomp::install_filter;

/// The type byte of every ioctl of VFIO and iommufd, as it stands in the request number.
pub const TYPE_BYTE: u32 = (b';' as u32) << 8;

/// `KVM_SET_DEVICE_ATTR`: among many other things, gives KVM a VFIO file.
pub const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;

/// How many descriptor numbers are reserved, from BASE up.
pub const RESERVED_FDS: u32 = 512;

/// x86-64 in `AUDIT_ARCH_*`.
const AUDIT_ARCH: u32 = 0xc000_003e;

/// Byte offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The low half of argument `index`; the calls that matter take 32-bit values there.
const fn arg(index: u32) -> u32 {
    16 + 8 * index
}

/// The lowest reserved descriptor number, for a program with this soft `RLIMIT_NOFILE`.
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
    match install_filter(program) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            rustix::thread::set_no_new_privs(true)?;
            install_filter(program)
        }
        other => other,
    }
}

/// `O_LARGEFILE`, which some C libraries add.
const LARGEFILE: u32 = 0x8000;

/// What `unshare` does for a process alone that shares its memory with no other
/// (`check_unshare_flags`, kernel/fork.c).
const ALONE: u32 =
    (libc::CLONE_NEWUSER | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM) as u32;

/// What a program is to be asked about.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The lowest reserved descriptor number.
    pub base: u32,
    /// The bytes of a file, from its start, that may be region 0 of a device.
    pub reach: u32,
    /// Whether `/proc/PID/status` shows what a program has locked.
    pub status: bool,
    /// Whether entries of `/sys` can be written.
    pub attributes: bool,
    /// Whether paths of the machine have to be answered, since the program has no namespace with
    /// them.
    pub paths: bool,
}

/// The places that a jump can lead to. A number is that of an argument.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Allow,
    Notify,
    Ioctl,
    OpenFlags(u32),
    OpenAccess(u32),
    Fcntl,
    Mmap,
    EmptyPath(u32),
    CloseRange,
    Unshare,
    Offset,
    Descriptor(u32),
    CompareDescriptor,
}

/// Where the filter looks at more of a call.
fn looks_at(asked: Asked) -> Option<Label> {
    Some(match asked {
        Asked::Never => return None,
        Asked::Always => Label::Notify,
        Asked::Descriptor(index) => Label::Descriptor(index),
        Asked::Ioctl => Label::Ioctl,
        Asked::Offset => Label::Offset,
        Asked::OpenFlags(index) => Label::OpenFlags(index),
        Asked::Fcntl => Label::Fcntl,
        Asked::EmptyPath(index) => Label::EmptyPath(index),
        Asked::Mmap => Label::Mmap,
        Asked::CloseRange => Label::CloseRange,
        Asked::Unshare => Label::Unshare,
    })
}

/// The filter for a program of this scope.
pub fn program(scope: &Scope) -> Vec<Instruction> {
    use Label::*;
    let mut a = Assembler::new();
    a.load(ARCH).jump(BPF_JEQ, AUDIT_ARCH, Next, To(Allow));
    a.load(NR);
    by_number(&mut a, scope);
    conditions(&mut a, scope);
    a.label(Notify).op(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    a.label(Allow).op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    a.finish()
}

/// Finds the call by its number, which is loaded.
fn by_number(a: &mut Assembler<Label>, scope: &Scope) {
    let bits = [
        (scope.paths, ScopeBit::Paths),
        (scope.status, ScopeBit::Status),
    ];
    let mut tests = Vec::new();
    for (_, bit) in bits.iter().filter(|(set, _)| *set) {
        let always = TABLE.iter().filter(|call| call.always_in == Some(*bit));
        tests.extend(always.map(|call| (call.number, Label::Notify)));
    }
    tests.extend(
        TABLE
            .iter()
            .filter_map(|call| Some((call.number, looks_at(call.asked)?))),
    );
    let last = tests.len().saturating_sub(1);
    for (index, (number, label)) in tests.into_iter().enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let other = if index == last {
            To(Label::Allow)
        } else {
            Next
        };
        a.jump(BPF_JEQ, number, To(label), other);
    }
}

/// What else of a call decides.
fn conditions(a: &mut Assembler<Label>, scope: &Scope) {
    use Label::*;
    let base = scope.base;
    a.label(Ioctl).load(arg(1));
    a.jump(BPF_JEQ, KVM_SET_DEVICE_ATTR, To(Notify), Next);
    a.op(BPF_ALU | BPF_AND | BPF_K, 0xff00);
    a.jump(BPF_JEQ, TYPE_BYTE, To(Notify), To(Allow));

    for index in [1, 2] {
        a.label(OpenFlags(index));
        if scope.status {
            a.load(arg(index));
            a.op(BPF_ALU | BPF_AND | BPF_K, !LARGEFILE);
            let access = To(OpenAccess(index));
            a.jump(BPF_JEQ, libc::O_RDONLY as u32, To(Notify), access);
            a.label(OpenAccess(index));
        }
        a.load(arg(index));
        a.op(BPF_ALU | BPF_AND | BPF_K, libc::O_ACCMODE as u32);
        if scope.attributes {
            a.jump(BPF_JEQ, libc::O_RDONLY as u32, To(Allow), To(Notify));
        } else {
            a.jump(BPF_JEQ, libc::O_RDWR as u32, To(Notify), To(Allow));
        }
    }

    let first = To(Descriptor(0));
    a.label(Fcntl).load(arg(1));
    a.jump(BPF_JEQ, libc::F_DUPFD as u32, first, Next);
    a.jump(BPF_JEQ, libc::F_GETFL as u32, first, Next);
    a.jump(BPF_JEQ, libc::F_ADD_SEALS as u32, first, Next);
    a.jump(BPF_JEQ, libc::F_GET_SEALS as u32, first, Next);
    a.jump(BPF_JEQ, libc::F_DUPFD_CLOEXEC as u32, first, To(Allow));

    for index in [3, 2] {
        a.label(EmptyPath(index)).load(arg(index));
        a.op(BPF_ALU | BPF_AND | BPF_K, libc::AT_EMPTY_PATH as u32);
        a.jump(BPF_JEQ, 0, To(Allow), first);
    }

    a.label(Mmap).load(arg(3));
    let kind = (libc::MAP_TYPE | libc::MAP_ANONYMOUS) as u32;
    a.op(BPF_ALU | BPF_AND | BPF_K, kind);
    a.jump(BPF_JEQ, libc::MAP_SHARED as u32, To(Notify), Next);
    let validate = libc::MAP_SHARED_VALIDATE as u32;
    a.jump(BPF_JEQ, validate, To(Notify), To(Descriptor(4)));

    // Without an offset (-1), or not one of a file: by the descriptor alone.
    a.label(Offset).load(arg(3) + 4);
    a.jump(BPF_JGE, 1 << 31, first, Next);
    a.jump(BPF_JGE, 1 << (INDEX_SHIFT - 32), To(Notify), Next);
    a.jump(BPF_JEQ, 0, Next, first);
    a.load(arg(3));
    a.jump(BPF_JGE, scope.reach, first, To(Notify));

    // The range ends above BASE or has no end.
    a.label(CloseRange).load(arg(1));
    a.jump(BPF_JGE, base, To(Notify), To(Allow));

    a.label(Unshare).load(arg(0));
    a.op(BPF_ALU | BPF_AND | BPF_K, ALONE);
    a.jump(BPF_JEQ, 0, To(Allow), To(Notify));

    // BPF has no call, and no jump without a condition but this.
    let compare = To(CompareDescriptor);
    a.label(Descriptor(4)).load(arg(4));
    a.jump(BPF_JGE, 0, compare, compare);
    a.label(Descriptor(1)).load(arg(1));
    a.jump(BPF_JGE, 0, compare, compare);
    a.label(Descriptor(0)).load(arg(0));
    // Numbers below BASE, negative ones too, become large ones.
    a.label(CompareDescriptor)
        .op(BPF_ALU | BPF_SUB | BPF_K, base);
    a.jump(BPF_JGE, RESERVED_FDS, To(Allow), To(Notify));
}

#[cfg(test)]
mod tests {
    use libc::{BPF_ABS, BPF_JMP, BPF_LD, BPF_W};

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
            (libc::SYS_setns, [3, 0, 0, 0, 0, 0]),
            (
                libc::SYS_unshare,
                [
                    (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64,
                    0,
                    0,
                    0,
                    0,
                    0,
                ],
            ),
            (libc::SYS_statfs, [0; 6]),
            (libc::SYS_mount, [0; 6]),
            (libc::SYS_fstatfs, [3, 0, 0, 0, 0, 0]),
        ];
        let passed: &[(i64, [u64; 6])] = &[
            (libc::SYS_unshare, [libc::CLONE_NEWNS as u64, 0, 0, 0, 0, 0]),
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
