//! A program's memory, with the address in every refusal.

use ioasid_core::host::Caller;

use crate::{
    Program,
    error::{CallError, RequestError},
};

/// Bytes that are compared with 0 at a time.
const CHUNK: usize = 4096;

/// Fills `into` from `address` on.
///
/// # Errors
/// [`RequestError::Unreadable`].
pub fn read(
    program: &(impl Caller + ?Sized),
    address: u64,
    into: &mut [u8],
) -> Result<(), RequestError> {
    let len = into.len() as u64;
    let read = program.read(address, into);
    read.map_err(|_| RequestError::Unreadable { address, len })
}

/// Writes `bytes` from `address` on.
///
/// # Errors
/// [`RequestError::Unwritable`].
pub fn write(
    program: &(impl Caller + ?Sized),
    address: u64,
    bytes: &[u8],
) -> Result<(), RequestError> {
    let len = bytes.len() as u64;
    let written = program.write(address, bytes);
    written.map_err(|_| RequestError::Unwritable { address, len })
}

/// The address `offset` bytes after `base`.
pub(crate) fn address(base: u64, offset: u64) -> Result<u64, RequestError> {
    let address = base.checked_add(offset);
    address.ok_or(RequestError::BeyondMemory { base, offset })
}

/// The bytes from offset `from` to offset `to` of the struct at `base` are 0: they are beyond the first
/// `from`, which are known.
pub(crate) fn expect_zeros(
    program: &dyn Program,
    base: u64,
    from: u64,
    to: u64,
) -> Result<(), CallError> {
    let mut buffer = [0; CHUNK];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = buffer.get_mut(..len).unwrap_or_default();
        read(program, address(base, at)?, chunk)?;
        if let Some(offset) = chunk.iter().position(|byte| *byte != 0) {
            return Err(RequestError::UnknownBytes {
                offset: at + offset as u64,
                known: from,
            }
            .into());
        }
        at += len as u64;
    }
    Ok(())
}
