//! What the kernel fills in for `stat` and `statx`: `struct stat` of x86-64
//! (arch/x86/include/uapi/asm/stat.h), which every C library there uses, and `struct statx`
//! (include/uapi/linux/stat.h). The session writes the same structures.

/// `struct stat`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Stat {
    /// Device number of the file system, as `new_encode_dev` encodes it.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Links.
    pub nlink: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Unused.
    pub pad: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes.
    pub size: i64,
    /// Bytes of a good transfer.
    pub blksize: i64,
    /// Blocks of 512 bytes.
    pub blocks: i64,
    /// Last access, modification and change: seconds and nanoseconds each.
    pub times: [u64; 6],
    /// Unused.
    pub unused: [i64; 3],
}

/// `struct statx`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Statx {
    /// Which fields are filled.
    pub mask: u32,
    /// Bytes of a good transfer.
    pub blksize: u32,
    /// `STATX_ATTR_*`.
    pub attributes: u64,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permissions.
    pub mode: u16,
    /// Unused.
    pub pad: u16,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Which attributes are known.
    pub attributes_mask: u64,
    /// Last access, creation, change and modification: seconds and nanoseconds each.
    pub times: [u64; 8],
    /// Device number of a device node.
    pub rdev_major: u32,
    /// Likewise.
    pub rdev_minor: u32,
    /// Device number of the file system.
    pub dev_major: u32,
    /// Likewise.
    pub dev_minor: u32,
    /// What later kernels fill in.
    pub rest: [u64; 14],
}

const STAT: usize = size_of::<Stat>();
const STATX: usize = size_of::<Statx>();
const _: () = assert!(STAT == 144 && STATX == 256);

impl Stat {
    /// As it lies in memory.
    pub fn bytes(&self) -> &[u8; STAT] {
        // SAFETY: 144 bytes of integers without padding between them, which live as long as `self`.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}

impl Statx {
    /// As it lies in memory.
    pub fn bytes(&self) -> &[u8; STATX] {
        // SAFETY: 256 bytes of integers without padding between them, which live as long as `self`.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}
