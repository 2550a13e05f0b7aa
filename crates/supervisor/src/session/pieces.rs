//! The bytes of a transfer, piece by piece.

use ioasid_host::Process;
use ioasid_uapi::{
    CallError,
    error::{FileError, Operation},
    memory,
};

use crate::calls::call::{Buffers, Direction, Transfer};

/// Most bytes of one call, as in Linux (`MAX_RW_COUNT`).
const MAX_RW_COUNT: u64 = 0x7fff_f000;

/// Most pieces of one call, as in Linux (`UIO_MAXIOV`).
const MAX_PIECES: u64 = 1024;

/// One run of bytes in the program.
pub(crate) struct Piece {
    pub(crate) address: u64,
    pub(crate) len: u64,
}

/// The pieces that a transfer is about.
pub(crate) fn pieces(process: &Process, transfer: &Transfer) -> Result<Vec<Piece>, CallError> {
    // Hints for block devices: the machine's files know none but that of priority.
    if transfer.flags & !u64::from(libc::RWF_HIPRI as u32) != 0 {
        return Err(FileError::FlagsNotSupported {
            operation: operation(transfer.direction),
            flags: transfer.flags,
        }
        .into());
    }
    match transfer.buffers {
        Buffers::One { address, len } => Ok(vec![Piece {
            address,
            len: len.min(MAX_RW_COUNT),
        }]),
        Buffers::Vector { address, count } => vector(process, address, count),
    }
}

/// What a transfer is called.
pub(crate) fn operation(direction: Direction) -> Operation {
    match direction {
        Direction::Read => Operation::Read,
        Direction::Write => Operation::Write,
    }
}

fn vector(process: &Process, address: u64, count: u64) -> Result<Vec<Piece>, CallError> {
    let limit = MAX_PIECES;
    let bad = FileError::BadVector { count, limit };
    if count > MAX_PIECES {
        return Err(bad.into());
    }
    let mut rest = MAX_RW_COUNT;
    let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * 16];
    memory::read(process, address, &mut bytes)?;
    let (entries, _) = bytes.as_chunks::<16>();
    entries
        .iter()
        .map(|entry| {
            let entry = u128::from_le_bytes(*entry);
            let (address, len) = (entry as u64, (entry >> 64) as u64);
            if len.cast_signed() < 0 {
                return Err(bad.clone().into());
            }
            let len = len.min(rest);
            rest -= len;
            Ok(Piece { address, len })
        })
        .collect()
}
