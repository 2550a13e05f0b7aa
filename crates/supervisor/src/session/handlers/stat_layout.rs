//! What `fstat` and `statx` say of a file of the machine: a node is a character device with a
//! stable number, as QEMU checks before it trusts it.

use ioasid_preload::layout::{Stat, Statx};

use crate::session::identity::Identity;

/// Character device, readable and writable by every user.
const NODE_MODE: u32 = 0o020_666;
/// A file without a name has no type (`fs/anon_inodes.c`).
const ANONYMOUS_MODE: u32 = 0o600;
const STATX_BASIC_STATS: u32 = 0x7ff;
const BLOCK_SIZE: u32 = 4096;

/// What the host says of a file.
pub(crate) fn stat_of(stat: &rustix::fs::Stat) -> Stat {
    Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        nlink: stat.st_nlink,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        pad: 0,
        rdev: stat.st_rdev,
        size: stat.st_size,
        blksize: stat.st_blksize,
        blocks: stat.st_blocks,
        times: [
            stat.st_atime as u64,
            stat.st_atime_nsec,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
            stat.st_ctime as u64,
            stat.st_ctime_nsec,
        ],
        unused: [0; 3],
    }
}

/// Likewise.
pub(crate) fn statx_of(statx: &rustix::fs::Statx) -> Statx {
    let time = |time: &rustix::fs::StatxTimestamp| [time.tv_sec as u64, time.tv_nsec.into()];
    let [a, b] = time(&statx.stx_atime);
    let [c, d] = time(&statx.stx_btime);
    let [e, f] = time(&statx.stx_ctime);
    let [g, h] = time(&statx.stx_mtime);
    Statx {
        mask: statx.stx_mask,
        blksize: statx.stx_blksize,
        attributes: 0,
        nlink: statx.stx_nlink,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        mode: statx.stx_mode,
        pad: 0,
        ino: statx.stx_ino,
        size: statx.stx_size,
        blocks: statx.stx_blocks,
        attributes_mask: 0,
        times: [a, b, c, d, e, f, g, h],
        rdev_major: statx.stx_rdev_major,
        rdev_minor: statx.stx_rdev_minor,
        dev_major: statx.stx_dev_major,
        dev_minor: statx.stx_dev_minor,
        rest: [0; 14],
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Device and inode number.
    pub(crate) place: Identity,
    /// The device number of a node; without one, the file is an anonymous one, which has no type.
    pub(crate) rdev: Option<(u32, u32)>,
}

impl Facts {
    fn mode(self) -> u32 {
        self.rdev.map_or(ANONYMOUS_MODE, |_| NODE_MODE)
    }

    /// As `fstat` reports it.
    pub(crate) fn stat(self) -> Stat {
        let (dev, ino) = self.place;
        Stat {
            dev,
            ino,
            nlink: 1,
            mode: self.mode(),
            rdev: self.rdev.map_or(0, |(a, b)| rustix::fs::makedev(a, b)),
            blksize: BLOCK_SIZE.into(),
            ..Stat::default()
        }
    }

    /// As `statx` reports it.
    pub(crate) fn statx(self) -> Statx {
        let (dev, ino) = self.place;
        let (rdev_major, rdev_minor) = self.rdev.unwrap_or_default();
        Statx {
            mask: STATX_BASIC_STATS,
            blksize: BLOCK_SIZE,
            nlink: 1,
            mode: self.mode() as u16,
            ino,
            rdev_major,
            rdev_minor,
            dev_major: rustix::fs::major(dev),
            dev_minor: rustix::fs::minor(dev),
            ..Statx::default()
        }
    }
}
