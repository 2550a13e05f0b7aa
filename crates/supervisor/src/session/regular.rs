//! Calls that make sense for regular files alone: what a node answers to them (fs/open.c, fs/read_write.c,
//! fs/sync.c, mm/memfd.c). The file behind ours is a regular one, and would obey.

use ioasid_host::Process;
use ioasid_uapi::Errno;

use super::{
    Server,
    calls::{Answer, Outcome},
    files::{Object, OpenFile},
};
use crate::listener::Request;

/// Bytes of an attribute of `/sys` that is a text, as its inode says.
const ATTRIBUTE_SIZE: i64 = 4096;

/// The modes of `fallocate`: `FALLOC_FL_KEEP_SIZE`, and those that exclude one another.
const KEEP_SIZE: u64 = 0x01;
const MODES: u64 = 0xfa;
const PUNCH_HOLE: u64 = 0x02;
/// COLLAPSE_RANGE, INSERT_RANGE, WRITE_ZEROES.
const MODES_OF_ALL: u64 = 0xa8;

impl Server {
    /// `lseek`, `ftruncate`, `fallocate`, `fsync`, `fdatasync`, and `fcntl` about seals.
    pub(super) fn regular(&mut self, request: &Request, process: &Process) -> Outcome {
        let args = request.args;
        let identity = self.identity(process, args[0]);
        let Some(file) = identity.and_then(|identity| self.files.get_mut(identity)) else {
            return Ok(Answer::Proceed);
        };
        let in_sys = matches!(file.object, Object::Attribute(_) | Object::FailNth(_));
        match request.nr {
            libc::SYS_lseek => seek(file, in_sys, args[1].cast_signed(), args[2] as u32),
            libc::SYS_ftruncate => match in_sys && file.is_writable() && args[1] <= i64::MAX as u64
            {
                true => Ok(Answer::Value(0)),
                false => Err(Errno::EINVAL),
            },
            libc::SYS_fallocate => {
                let [_, mode, offset, len, ..] = args;
                Err(fallocate(file, in_sys, mode & 0xffff_ffff, (offset, len)))
            }
            libc::SYS_fsync | libc::SYS_fdatasync if in_sys => Ok(Answer::Value(0)),
            libc::SYS_fcntl if args[1] as i32 == libc::F_ADD_SEALS && !file.is_writable() => {
                Err(Errno::EPERM)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

fn seek(file: &mut OpenFile, in_sys: bool, offset: i64, whence: u32) -> Outcome {
    const LAST_WHENCE: u32 = libc::SEEK_HOLE as u32;
    if whence > LAST_WHENCE {
        return Err(Errno::EINVAL);
    }
    if !in_sys {
        return Err(Errno::ESPIPE);
    }
    let from = match whence as i32 {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => file.position.cast_signed(),
        libc::SEEK_END => match &file.object {
            Object::Attribute(attribute) => attribute.size().unwrap_or(ATTRIBUTE_SIZE),
            _ => ATTRIBUTE_SIZE,
        },
        _ => return Err(Errno::EINVAL),
    };
    let to = from
        .checked_add(offset)
        .and_then(|to| u64::try_from(to).ok());
    file.position = to.ok_or(Errno::EINVAL)?;
    Ok(Answer::Value(file.position))
}

fn fallocate(file: &OpenFile, in_sys: bool, mode: u64, (offset, len): (u64, u64)) -> Errno {
    let kind = mode & MODES;
    let kept = mode & KEEP_SIZE != 0;
    if offset.cast_signed() < 0 || len.cast_signed() <= 0 {
        Errno::EINVAL
    } else if mode & !(MODES | KEEP_SIZE) != 0
        || kind.count_ones() > 1
        || (kind == PUNCH_HOLE && !kept)
        || (kind & MODES_OF_ALL != 0 && kept)
    {
        Errno::EOPNOTSUPP
    } else if !file.is_writable() {
        Errno::EBADF
    } else if in_sys {
        Errno::EOPNOTSUPP
    } else {
        Errno::ENODEV
    }
}
