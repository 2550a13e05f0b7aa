//! `read`, `write` and their variants, on files of the machine.

use ioasid_core::range::AddrRange;
use ioasid_host::Process;
use ioasid_uapi::{
    self as uapi, CallError,
    error::{FileError, RequestError},
    memory,
};
use ioasid_vfio::DeviceFile;

use crate::{
    calls::call::{Direction, Transfer},
    session::{
        answer::{Answer, Outcome, Pending},
        descriptors::{
            event::EventPipe,
            object::{Object, OpenFile},
        },
        pieces::{Piece, operation, pieces},
        state::State,
        steps::Steps,
    },
};

/// Bytes of one region access that are moved at a time. Larger than any single register or portal
/// access, so those are never split.
const ACCESS_BYTES: u64 = 4096;

/// Most bytes that are taken of a write of answers. What is left of the record size stays the same:
/// both numbers are multiples of every record.
const ANSWER_BYTES: u64 = 1 << 20;

pub(crate) fn transfer(state: &mut State, call: Pending<'_>, transfer: &Transfer) -> Outcome {
    let identity = state.bound(call, transfer.fd)?;
    let files = &mut state.descriptors.files;
    let Some(file) = identity.and_then(|identity| files.get_mut(identity)) else {
        return Ok(Answer::Proceed);
    };
    check(file, transfer)?;
    let (process, direction, offset) = (call.process, transfer.direction, transfer.offset);
    let start = offset.unwrap_or(file.position);
    let steps = state.steps.as_deref();
    let moved = match &file.object {
        // These have neither read nor write.
        Object::Iommufd(_) | Object::Container(_) | Object::Group(_) => {
            let operation = operation(direction);
            return Err(FileError::NoOperation { operation }.into());
        }
        Object::Event(_) if offset.is_some() => return Err(FileError::NoOffsets.into()),
        Object::Event(pipe) => {
            let pieces = pieces(process, transfer)?;
            let moved = each(&pieces, |piece, _| {
                move_events(process, pipe, direction, piece, steps)
            })?;
            return Ok(Answer::Value(moved));
        }
        Object::Attribute(attribute) => {
            let pieces = pieces(process, transfer)?;
            attribute.transfer(process, direction, &pieces, start)?
        }
        Object::FailNth(tid) => {
            let (faults, pieces) = (&mut state.faults, pieces(process, transfer)?);
            each(&pieces, |piece, done| {
                faults.transfer(process, *tid, direction, piece, start.saturating_add(done))
            })?
        }
        Object::Device(device) => {
            if start.cast_signed() < 0 {
                return Err(beyond(start, 0).into());
            }
            let pieces = pieces(process, transfer)?;
            each(&pieces, |piece, done| {
                let at = start.checked_add(done).ok_or_else(|| beyond(start, done))?;
                move_bytes(process, device, direction, piece, at, steps)
            })?
        }
    };
    if offset.is_none() {
        file.position = start.saturating_add(moved);
    }
    if matches!(file.object, Object::Attribute(_)) {
        // A program that looks after this write sees what it did.
        state.follow_changes(call.tid);
    }
    Ok(Answer::Value(moved))
}

/// Whether the file may be read or written, there.
fn check(file: &OpenFile, transfer: &Transfer) -> Result<(), CallError> {
    if let Some(offset) = transfer.offset.filter(|offset| offset.cast_signed() < 0) {
        return Err(beyond(offset, 0).into());
    }
    let open_for_it = match transfer.direction {
        Direction::Read => file.is_readable(),
        Direction::Write => file.is_writable(),
    };
    match open_for_it {
        true => Ok(()),
        false => {
            let operation = operation(transfer.direction);
            Err(FileError::NotOpenFor { operation }.into())
        }
    }
}

/// No file has `len` bytes from `offset` on.
fn beyond(offset: u64, len: u64) -> FileError {
    FileError::BadOffset { offset, len }
}

/// Piece by piece, as the kernel serves files that know no vectors; an error counts only if nothing
/// was moved before it.
fn each(
    pieces: &[Piece],
    mut step: impl FnMut(&Piece, u64) -> Result<u64, CallError>,
) -> Result<u64, CallError> {
    let mut done = 0;
    for piece in pieces {
        match step(piece, done) {
            Ok(moved) => {
                done += moved;
                if moved < piece.len {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Moves bytes between the program and a region.
fn move_bytes(
    process: &Process,
    device: &DeviceFile,
    direction: Direction,
    piece: &Piece,
    start: u64,
    steps: Option<&Steps>,
) -> Result<u64, CallError> {
    uapi::vfio::check_access(device, start, piece.len)?;
    let mut done = 0;
    let mut buffer = [0u8; ACCESS_BYTES as usize];
    loop {
        let len = usize::try_from((piece.len - done).min(ACCESS_BYTES)).unwrap_or(0);
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        let address = piece.address.wrapping_add(done);
        let at = start.checked_add(done);
        let at = at.ok_or_else(|| CallError::from(beyond(start, done)));
        let moved = at.and_then(|at| match direction {
            Direction::Read => {
                let moved = uapi::vfio::pread(device, at, bytes)?;
                let bytes = bytes.get(..moved).unwrap_or_default();
                memory::write(process, address, bytes)?;
                if let Some(steps) = steps {
                    steps.wrote(address, bytes, true);
                }
                Ok(moved)
            }
            Direction::Write => {
                memory::read(process, address, bytes)?;
                if let Some(steps) = steps {
                    steps.read(address, bytes, true);
                }
                uapi::vfio::pwrite(device, at, bytes)
            }
        });
        match moved {
            Ok(0) => break,
            Ok(moved) => done += moved as u64,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        if done >= piece.len {
            break;
        }
    }
    Ok(done)
}

/// Moves whole events to the program, or answers from it.
fn move_events(
    process: &Process,
    pipe: &EventPipe,
    direction: Direction,
    piece: &Piece,
    steps: Option<&Steps>,
) -> Result<u64, CallError> {
    let file = pipe.file();
    match direction {
        Direction::Read => {
            // Events that could not be handed over would be lost, so this is asked first.
            let range = AddrRange::from_len(piece.address, piece.len);
            let fits = range.is_some_and(|range| process.is_writable(range));
            if piece.len > 0 && !fits && file.is_readable() {
                let (address, len) = (piece.address, piece.len);
                return Err(RequestError::Unwritable { address, len }.into());
            }
            let count = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let events = file.read(count)?;
            memory::write(process, piece.address, &events)?;
            if let Some(steps) = steps {
                steps.wrote(piece.address, &events, true);
            }
            Ok(events.len() as u64)
        }
        Direction::Write => {
            let mut len = piece.len;
            if len > ANSWER_BYTES {
                len = ANSWER_BYTES - ACCESS_BYTES + len % ACCESS_BYTES;
            }
            let mut answers = vec![0; usize::try_from(len).unwrap_or(0)];
            memory::read(process, piece.address, &mut answers)?;
            if let Some(steps) = steps {
                steps.read(piece.address, &answers, true);
            }
            Ok(file.write(&answers)? as u64)
        }
    }
}
