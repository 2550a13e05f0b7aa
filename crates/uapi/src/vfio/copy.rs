//! Structs with an `argsz`, to and from a program's memory.

use zerocopy::{FromBytes, IntoBytes};

use super::long_enough;
use crate::{CallError, Program, error::RequestError, memory};

/// The first `min` bytes of a struct whose `argsz` must say at least that; the rest is 0.
pub(super) fn standard<T>(program: &dyn Program, arg: u64, min: usize) -> Result<T, CallError>
where
    T: FromBytes + IntoBytes,
{
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let (head, _) = bytes.split_at_mut(min.min(bytes.len()));
    memory::read(program, arg, head)?;
    long_enough(argsz(head), min)?;
    Ok(value)
}

/// A struct that may be given longer than it is known, if what is not known is 0
/// (`copy_struct_from_user`), and shorter down to `min`.
pub(super) fn extensible<T>(program: &dyn Program, arg: u64, min: usize) -> Result<T, CallError>
where
    T: FromBytes + IntoBytes,
{
    let mut size = [0; 4];
    memory::read(program, arg, &mut size)?;
    let given = u32::from_ne_bytes(size);
    long_enough(given, min)?;
    let given = given as usize;
    let mut value = T::new_zeroed();
    let known = size_of::<T>();
    memory::expect_zeros(program, arg, known as u64, given as u64)?;
    let head = value.as_mut_bytes().get_mut(..given.min(known));
    memory::read(program, arg, head.unwrap_or_default())?;
    Ok(value)
}

/// Writes the first `len` bytes of `value` (all, if it has fewer).
pub(super) fn write_back<T>(
    program: &dyn Program,
    arg: u64,
    value: &T,
    len: usize,
) -> Result<(), CallError>
where
    T: IntoBytes + zerocopy::Immutable,
{
    let bytes = value.as_bytes();
    let head = bytes.get(..len).unwrap_or(bytes);
    Ok(memory::write(program, arg, head)?)
}

/// The address `by` bytes after `arg`.
pub(super) fn offset(arg: u64, by: u64) -> Result<u64, RequestError> {
    memory::address(arg, by)
}

fn argsz(head: &[u8]) -> u32 {
    let first = head.first_chunk::<4>();
    first.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}
