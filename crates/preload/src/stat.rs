//! Functions of the C library that report what a path leads to, or a descriptor.
//!
//! A node of `/dev` is a file that stands for it: in a user namespace it cannot even be a character
//! device. So what the kernel says of such a file is put right here, with what the session says of
//! it. Everything else is what the kernel says.

use core::{
    ffi::{c_char, c_int, c_uint},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    call::{Kind, Shape},
    interpose::fail,
    layout::{Stat, Statx},
    sys::{self, EBADF, EINVAL},
};

const AT_FDCWD: c_int = -100;
const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const AT_EMPTY_PATH: c_int = 0x1000;

const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// The directory that this library lies in, if the program has a `/dev` with nodes of the
/// machine's.
const DIRECTORY: &core::ffi::CStr = c"/dev/.ioasid";

/// The file system with the nodes, as [`device`] has it; 0 if there is none.
static NODES: AtomicU64 = AtomicU64::new(0);

/// Learns where the nodes are.
pub fn install() {
    let mut stat = Stat::default();
    // SAFETY: a path that ends with 0 and a structure of this function.
    if unsafe { sys::newfstatat(AT_FDCWD, DIRECTORY.as_ptr(), (&raw mut stat).cast(), 0) } == 0 {
        NODES.store(stat.dev, Ordering::Relaxed);
    }
}

/// A device number as the kernel shows it (`new_encode_dev` in include/linux/kdev_t.h).
fn device(major: u32, minor: u32) -> u64 {
    (u64::from(minor) & 0xff) | u64::from(major) << 8 | (u64::from(minor) & !0xff) << 12
}

/// The number of the node that a file with these facts stands for, or was opened by, as
/// `(major, minor)`.
fn node(dev: u64, ino: u64, mode: u32, nlink: u64) -> Option<(u32, u32)> {
    let nodes = NODES.load(Ordering::Relaxed);
    let placeholder = nodes != 0 && dev == nodes && matches!(mode & TYPE, REGULAR | CHARACTER);
    // An open node is a memfd: a file without a name, on a file system without a device. The
    // session knows which of these are nodes; where its filter asks about a descriptor, the
    // kernel's answer came from it and is no regular file.
    let memory = nlink == 0 && mode & TYPE == REGULAR && dev >> 8 & 0xfff == 0;
    if !placeholder && !memory {
        return None;
    }
    let shape = Shape {
        kind: Kind::Node,
        size: 1,
    };
    let answer = sys::access(ino, shape.encode(), dev, &mut [0; 64]);
    let answer = u64::try_from(answer).ok()?;
    Some(((answer >> 32) as u32, answer as u32))
}

/// # Safety
/// As `fstatat`'s.
unsafe fn at(directory: c_int, path: *const c_char, to: *mut Stat, flags: c_int) -> c_int {
    // SAFETY: the caller's promise; the kernel checks both pointers.
    let result = unsafe { sys::newfstatat(directory, path, to.cast(), flags) };
    if result != 0 {
        return fail(result.wrapping_neg() as i32);
    }
    // SAFETY: the kernel has just filled it.
    let stat = unsafe { &mut *to };
    if let Some((major, minor)) = node(stat.dev, stat.ino, stat.mode, stat.nlink) {
        stat.mode = CHARACTER | (stat.mode & !TYPE);
        stat.rdev = device(major, minor);
    }
    0
}

/// `stat(2)` and its kin.
macro_rules! functions {
    ($($plain:ident, $old:ident: $flags:expr;)*) => {$(
        /// `stat` or `lstat`.
        ///
        /// # Safety
        /// As the C library's.
        #[cfg_attr(feature = "image", unsafe(no_mangle))]
        pub unsafe extern "C" fn $plain(path: *const c_char, to: *mut Stat) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { at(AT_FDCWD, path, to, $flags) }
        }

        /// The same, as programs call it that were built with a GNU C library before 2.33.
        ///
        /// # Safety
        /// As the C library's.
        #[cfg_attr(feature = "image", unsafe(no_mangle))]
        pub unsafe extern "C" fn $old(version: c_int, path: *const c_char, to: *mut Stat) -> c_int {
            if !(0..=1).contains(&version) {
                return fail(EINVAL);
            }
            // SAFETY: the caller's promise.
            unsafe { at(AT_FDCWD, path, to, $flags) }
        }
    )*};
}

functions! {
    stat, __xstat: 0;
    stat64, __xstat64: 0;
    lstat, __lxstat: AT_SYMLINK_NOFOLLOW;
    lstat64, __lxstat64: AT_SYMLINK_NOFOLLOW;
}

macro_rules! functions_at {
    ($($plain:ident, $old:ident;)*) => {$(
        /// `fstatat`.
        ///
        /// # Safety
        /// As the C library's.
        #[cfg_attr(feature = "image", unsafe(no_mangle))]
        pub unsafe extern "C" fn $plain(
            directory: c_int,
            path: *const c_char,
            to: *mut Stat,
            flags: c_int,
        ) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { at(directory, path, to, flags) }
        }

        /// The same, as programs call it that were built with a GNU C library before 2.33.
        ///
        /// # Safety
        /// As the C library's.
        #[cfg_attr(feature = "image", unsafe(no_mangle))]
        pub unsafe extern "C" fn $old(
            version: c_int,
            directory: c_int,
            path: *const c_char,
            to: *mut Stat,
            flags: c_int,
        ) -> c_int {
            if !(0..=1).contains(&version) {
                return fail(EINVAL);
            }
            // SAFETY: the caller's promise.
            unsafe { at(directory, path, to, flags) }
        }
    )*};
}

functions_at! {
    fstatat, __fxstatat;
    fstatat64, __fxstatat64;
}

/// A node that was opened past the session, or whose descriptor has a number that the filter does
/// not ask about.
///
/// # Safety
/// As `fstat`'s.
unsafe fn of_descriptor(fd: c_int, to: *mut Stat) -> c_int {
    // AT_FDCWD would be taken for the working directory.
    if fd < 0 {
        return fail(EBADF);
    }
    // SAFETY: the caller's promise.
    unsafe { at(fd, c"".as_ptr(), to, AT_EMPTY_PATH) }
}

macro_rules! functions_of_descriptors {
    ($($plain:ident, $old:ident;)*) => {$(
        /// `fstat(2)`.
        ///
        /// # Safety
        /// As the C library's.
        #[cfg_attr(feature = "image", unsafe(no_mangle))]
        pub unsafe extern "C" fn $plain(fd: c_int, to: *mut Stat) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { of_descriptor(fd, to) }
        }

        /// The same, as programs call it that were built with a GNU C library before 2.33.
        ///
        /// # Safety
        /// As the C library's.
        #[cfg_attr(feature = "image", unsafe(no_mangle))]
        pub unsafe extern "C" fn $old(version: c_int, fd: c_int, to: *mut Stat) -> c_int {
            if !(0..=1).contains(&version) {
                return fail(EINVAL);
            }
            // SAFETY: the caller's promise.
            unsafe { of_descriptor(fd, to) }
        }
    )*};
}

functions_of_descriptors! {
    fstat, __fxstat;
    fstat64, __fxstat64;
}

/// `statx(2)`.
///
/// # Safety
/// As the C library's.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn statx(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    to: *mut Statx,
) -> c_int {
    // SAFETY: the caller's promise; the kernel checks both pointers.
    let result = unsafe { sys::statx(directory, path, flags, mask, to.cast()) };
    if result != 0 {
        return fail(result.wrapping_neg() as i32);
    }
    // SAFETY: the kernel has just filled it.
    let statx = unsafe { &mut *to };
    let dev = device(statx.dev_major, statx.dev_minor);
    let nlink = statx.nlink.into();
    if let Some((major, minor)) = node(dev, statx.ino, statx.mode.into(), nlink) {
        statx.mode = (CHARACTER | (u32::from(statx.mode) & !TYPE)) as u16;
        (statx.rdev_major, statx.rdev_minor) = (major, minor);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device(10, 126), 0xa7e);
        assert_eq!(device(0x1ff, 0x12345), 0x1231_ff45);
    }

    #[test]
    fn a_path_to_an_ordinary_file_is_reported_as_it_is() {
        install();
        let mut found = core::mem::MaybeUninit::<Stat>::uninit();
        // SAFETY: a path that ends with 0, and room for the structure, which is filled then.
        let found = unsafe {
            assert_eq!(stat(c"/proc/self/status".as_ptr(), found.as_mut_ptr()), 0);
            found.assume_init()
        };
        assert_eq!(found.mode, REGULAR | 0o444);
        assert_eq!(found.rdev, 0);
        let mut same = core::mem::MaybeUninit::<Stat>::uninit();
        // SAFETY: room for the structure, which nothing is written to.
        assert_eq!(unsafe { fstat(AT_FDCWD, same.as_mut_ptr()) }, -1);
    }
}
