//! Structs with an `argsz`, to and from a program's memory.

use ioasid_core::{host::Caller, memory::MemoryGone};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Errno, Program};

/// Bytes that are compared with 0 at a time.
const CHUNK: usize = 4096;

/// The first `min` bytes of a struct whose `argsz` must say at least that; the rest is 0.
pub(super) fn standard<T>(program: &dyn Program, arg: u64, min: usize) -> Result<T, Errno>
where
    T: FromBytes + IntoBytes,
{
    let mut value = T::new_zeroed();
    let head = value.as_mut_bytes().get_mut(..min).ok_or(Errno::EINVAL)?;
    program.read(arg, head)?;
    if (argsz(head) as usize) < min {
        return Err(Errno::EINVAL);
    }
    Ok(value)
}

/// A struct that may be given longer than it is known, if what is not known is 0
/// (`copy_struct_from_user`), and shorter down to `min`.
pub(super) fn extensible<T>(program: &dyn Program, arg: u64, min: usize) -> Result<T, Errno>
where
    T: FromBytes + IntoBytes,
{
    let mut size = [0; 4];
    program.read(arg, &mut size)?;
    let given = u32::from_ne_bytes(size) as usize;
    if given < min {
        return Err(Errno::EINVAL);
    }
    let mut value = T::new_zeroed();
    let known = size_of::<T>();
    expect_zeros(program, arg, known as u64, given as u64)?;
    let head = value.as_mut_bytes().get_mut(..given.min(known));
    program.read(arg, head.unwrap_or_default())?;
    Ok(value)
}

/// The bytes from offset `start` to offset `end` are 0, or E2BIG.
fn expect_zeros(program: &dyn Program, arg: u64, start: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = [0; CHUNK];
    let mut at = start;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = buffer.get_mut(..len).unwrap_or_default();
        program.read(offset(arg, at)?, chunk)?;
        if chunk.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        at += len as u64;
    }
    Ok(())
}

/// Writes the first `len` bytes of `value` (all, if it has fewer).
pub(super) fn write_back<T>(
    program: &dyn Program,
    arg: u64,
    value: &T,
    len: usize,
) -> Result<(), Errno>
where
    T: IntoBytes + zerocopy::Immutable,
{
    let bytes = value.as_bytes();
    let head = bytes.get(..len).unwrap_or(bytes);
    Ok(Caller::write(program, arg, head)?)
}

/// The address `by` bytes after `arg`.
pub(super) fn offset(arg: u64, by: u64) -> Result<u64, Errno> {
    arg.checked_add(by)
        .ok_or_else(|| MemoryGone { done: 0 }.into())
}

fn argsz(head: &[u8]) -> u32 {
    let first = head.first_chunk::<4>();
    first.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}
