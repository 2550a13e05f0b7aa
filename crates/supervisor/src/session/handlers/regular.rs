//! Calls that make sense for regular files alone: what a node answers to them (fs/open.c,
//! fs/read_write.c, fs/sync.c, mm/memfd.c). The memfd behind a node is a regular one, and would
//! obey.

use ioasid_uapi::error::{FileError, Operation};

use crate::session::{
    answer::{Answer, Outcome, Pending},
    descriptors::{
        Descriptors,
        object::{Object, OpenFile},
    },
};

/// Bytes of an attribute of `/sys` that is a text, as its inode says.
const ATTRIBUTE_SIZE: i64 = 4096;

/// The modes of `fallocate`: `FALLOC_FL_KEEP_SIZE`, and those that exclude one another.
const KEEP_SIZE: u64 = 0x01;
const MODES: u64 = 0xfa;
const PUNCH_HOLE: u64 = 0x02;
/// COLLAPSE_RANGE, INSERT_RANGE, WRITE_ZEROES.
const MODES_OF_ALL: u64 = 0xa8;

/// Calls `answer` with the file of the machine that the call is about.
fn with_file(
    descriptors: &mut Descriptors,
    call: Pending<'_>,
    fd: i32,
    answer: impl FnOnce(&mut OpenFile) -> Outcome,
) -> Outcome {
    match descriptors.file(call.process, fd) {
        Some(file) => answer(file),
        None => Ok(Answer::Proceed),
    }
}

/// Whether it is a file of `/sys` or `/proc`, which takes more than a node does.
fn is_attribute(file: &OpenFile) -> bool {
    match file.object {
        Object::Attribute(_) | Object::FailNth(_) => true,
        Object::Iommufd(_)
        | Object::Container(_)
        | Object::Group(_)
        | Object::Device(_)
        | Object::Event(_) => false,
    }
}

/// `lseek`.
pub(crate) fn seek(
    descriptors: &mut Descriptors,
    call: Pending<'_>,
    fd: i32,
    (offset, whence): (i64, u32),
) -> Outcome {
    with_file(descriptors, call, fd, |file| {
        move_position(file, offset, whence)
    })
}

/// `ftruncate`.
pub(crate) fn truncate(
    descriptors: &mut Descriptors,
    call: Pending<'_>,
    fd: i32,
    len: u64,
) -> Outcome {
    with_file(descriptors, call, fd, |file| {
        match is_attribute(file) && file.is_writable() && len <= i64::MAX as u64 {
            true => Ok(Answer::Value(0)),
            false => Err(nothing(Operation::Truncate).into()),
        }
    })
}

/// `fallocate`.
pub(crate) fn allocate(
    descriptors: &mut Descriptors,
    call: Pending<'_>,
    fd: i32,
    mode: u32,
    range: (u64, u64),
) -> Outcome {
    with_file(descriptors, call, fd, |file| {
        Err(fallocate(file, is_attribute(file), mode.into(), range).into())
    })
}

/// `fsync` and `fdatasync`.
pub(crate) fn sync(descriptors: &mut Descriptors, call: Pending<'_>, fd: i32) -> Outcome {
    with_file(descriptors, call, fd, |file| match is_attribute(file) {
        true => Ok(Answer::Value(0)),
        false => Err(nothing(Operation::Sync).into()),
    })
}

/// `fcntl(F_ADD_SEALS)`.
pub(crate) fn add_seals(descriptors: &mut Descriptors, call: Pending<'_>, fd: i32) -> Outcome {
    with_file(descriptors, call, fd, |file| match file.is_writable() {
        true => Err(nothing(Operation::Seal).into()),
        false => Err(FileError::NotOpenFor {
            operation: Operation::Seal,
        }
        .into()),
    })
}

/// `fcntl(F_GET_SEALS)`.
pub(crate) fn get_seals(descriptors: &mut Descriptors, call: Pending<'_>, fd: i32) -> Outcome {
    with_file(descriptors, call, fd, |_| {
        Err(nothing(Operation::Seal).into())
    })
}

fn move_position(file: &mut OpenFile, offset: i64, whence: u32) -> Outcome {
    const LAST_WHENCE: u32 = libc::SEEK_HOLE as u32;
    if whence > LAST_WHENCE {
        return Err(FileError::BadWhence { whence }.into());
    }
    if !is_attribute(file) {
        return Err(nothing(Operation::Seek).into());
    }
    let from = match whence as i32 {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => file.position.cast_signed(),
        libc::SEEK_END => match &file.object {
            Object::Attribute(attribute) => attribute.size().unwrap_or(ATTRIBUTE_SIZE),
            _ => ATTRIBUTE_SIZE,
        },
        // SEEK_DATA and SEEK_HOLE: a file of kernfs knows neither (`seq_lseek`).
        _ => return Err(FileError::BadWhence { whence }.into()),
    };
    let to = from
        .checked_add(offset)
        .and_then(|to| u64::try_from(to).ok());
    file.position = to.ok_or(FileError::BadOffset {
        offset: offset.cast_unsigned(),
        len: 0,
    })?;
    Ok(Answer::Value(file.position))
}

fn fallocate(file: &OpenFile, in_sys: bool, mode: u64, (offset, len): (u64, u64)) -> FileError {
    let kind = mode & MODES;
    let kept = mode & KEEP_SIZE != 0;
    if offset.cast_signed() < 0 || len.cast_signed() <= 0 {
        FileError::BadOffset { offset, len }
    } else if mode & !(MODES | KEEP_SIZE) != 0
        || kind.count_ones() > 1
        || (kind == PUNCH_HOLE && !kept)
        || (kind & MODES_OF_ALL != 0 && kept)
    {
        FileError::FlagsNotSupported {
            operation: Operation::Allocate,
            flags: mode,
        }
    } else if !file.is_writable() {
        FileError::NotOpenFor {
            operation: Operation::Allocate,
        }
    } else {
        FileError::NoExtents { in_sys }
    }
}

/// An operation that a node does not have.
fn nothing(operation: Operation) -> FileError {
    FileError::NoOperation { operation }
}
