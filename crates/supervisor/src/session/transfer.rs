//! `read`, `write` and their kin, on files of ours.

use std::sync::Arc;

use ioasid_core::{host::Caller, range::AddrRange};
use ioasid_host::Process;
use ioasid_uapi::{self as uapi, Errno};
use ioasid_vfio::DeviceFile;

use super::{
    Server,
    calls::{Answer, Outcome},
    event::EventPipe,
    files::Object,
};
use crate::listener::Request;

/// Bytes of one region access that are moved at a time. Larger than any single register or portal
/// access, so those are never split.
const ACCESS_BYTES: u64 = 4096;

/// Most bytes of one call, as in Linux (`MAX_RW_COUNT`).
const MAX_RW_COUNT: u64 = 0x7fff_f000;

/// Most pieces of one call, as in Linux (`UIO_MAXIOV`).
const MAX_PIECES: u64 = 1024;

/// Most bytes that are taken of a write of answers. What is left of the record size stays the same:
/// both numbers are multiples of every record.
const ANSWER_BYTES: u64 = 1 << 20;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the program.
    Read,
    /// From the program.
    Write,
}

/// What the arguments of the call are.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// `read`: address, count.
    Plain,
    /// `pread64`: and an offset.
    At,
    /// `readv`: address and number of pieces.
    Vector,
    /// `preadv`: and an offset.
    VectorAt,
    /// `preadv2`: and flags; offset -1 is none.
    Vector2,
}

impl Shape {
    fn offset(self, args: &[u64; 6]) -> Option<u64> {
        match self {
            Shape::Plain | Shape::Vector => None,
            Shape::At | Shape::VectorAt => Some(args[3]),
            Shape::Vector2 => Some(args[3]).filter(|offset| *offset != u64::MAX),
        }
    }

    fn pieces(self, process: &Process, args: &[u64; 6]) -> Result<Vec<Piece>, Errno> {
        match self {
            Shape::Plain | Shape::At => Ok(vec![Piece {
                address: args[1],
                len: args[2].min(MAX_RW_COUNT),
            }]),
            // Hints for block devices: files like ours know none but that of priority.
            Shape::Vector2 if args[5] & !u64::from(libc::RWF_HIPRI as u32) != 0 => {
                Err(Errno::EOPNOTSUPP)
            }
            Shape::Vector | Shape::VectorAt | Shape::Vector2 => vector(process, args[1], args[2]),
        }
    }
}

/// One run of bytes in the program.
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) len: u64,
}

fn vector(process: &Process, address: u64, count: u64) -> Result<Vec<Piece>, Errno> {
    if count > MAX_PIECES {
        return Err(Errno::EINVAL);
    }
    let mut rest = MAX_RW_COUNT;
    let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * 16];
    process.read(address, &mut bytes)?;
    let (entries, _) = bytes.as_chunks::<16>();
    entries
        .iter()
        .map(|entry| {
            let entry = u128::from_le_bytes(*entry);
            let (address, len) = (entry as u64, (entry >> 64) as u64);
            if len.cast_signed() < 0 {
                return Err(Errno::EINVAL);
            }
            let len = len.min(rest);
            rest -= len;
            Ok(Piece { address, len })
        })
        .collect()
}

impl Server {
    pub(super) fn transfer(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        direction: Direction,
        shape: Shape,
    ) -> Outcome {
        let args = &request.args;
        let identity = self.bound(request, process, args[0])?;
        let file = identity.and_then(|identity| self.files.get_mut(identity));
        let Some(file) = file else {
            return Ok(Answer::Proceed);
        };
        let offset = shape.offset(args);
        if offset.is_some_and(|offset| offset.cast_signed() < 0) {
            return Err(Errno::EINVAL);
        }
        let open_for_it = match direction {
            Direction::Read => file.is_readable(),
            Direction::Write => file.is_writable(),
        };
        if !open_for_it {
            return Err(Errno::EBADF);
        }
        match &file.object {
            // These have neither read nor write.
            Object::Iommufd(_) | Object::Container(_) | Object::Group(_) => Err(Errno::EINVAL),
            Object::Attribute(attribute) => {
                let attribute = Arc::clone(attribute);
                let pieces = shape.pieces(process, args)?;
                let start = offset.unwrap_or(file.position);
                let moved = attribute.transfer(process, direction, &pieces, start)?;
                if offset.is_none() {
                    file.position = start.saturating_add(moved);
                }
                // Whoever looks after this write sees what it did.
                self.follow_changes(request.tid);
                Ok(Answer::Value(moved))
            }
            Object::FailNth(tid) => {
                let pieces = shape.pieces(process, args)?;
                let start = offset.unwrap_or(file.position);
                let failing = &mut self.failing;
                let moved = each(&pieces, |piece, done| {
                    failing.transfer(process, *tid, direction, piece, start.saturating_add(done))
                });
                if let (Ok(Answer::Value(done)), None) = (&moved, offset) {
                    file.position = start.saturating_add(*done);
                }
                moved
            }
            Object::Event(_) if offset.is_some() => Err(Errno::ESPIPE),
            Object::Event(pipe) => {
                let pieces = shape.pieces(process, args)?;
                each(&pieces, |piece, _| {
                    move_events(process, pipe, direction, piece)
                })
            }
            Object::Device(device) => {
                let start = offset.unwrap_or(file.position);
                if start.cast_signed() < 0 {
                    return Err(Errno::EINVAL);
                }
                let pieces = shape.pieces(process, args)?;
                let moved = each(&pieces, |piece, done| {
                    let at = start.checked_add(done).ok_or(Errno::EINVAL)?;
                    move_bytes(process, device, direction, piece, at)
                });
                if let (Ok(Answer::Value(done)), None) = (&moved, offset) {
                    file.position = start.saturating_add(*done);
                }
                moved
            }
        }
    }
}

/// Piece by piece, as the kernel serves files that know no vectors; an error counts only if nothing
/// was moved before it.
fn each(pieces: &[Piece], mut step: impl FnMut(&Piece, u64) -> Result<u64, Errno>) -> Outcome {
    let mut done = 0;
    for piece in pieces {
        match step(piece, done) {
            Ok(moved) => {
                done += moved;
                if moved < piece.len {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(Answer::Value(done))
}

/// Moves bytes between the program and a region.
fn move_bytes(
    process: &Process,
    device: &DeviceFile,
    direction: Direction,
    piece: &Piece,
    start: u64,
) -> Result<u64, Errno> {
    uapi::vfio::check_access(device, start, piece.len)?;
    let mut done = 0;
    let mut buffer = [0u8; ACCESS_BYTES as usize];
    loop {
        let len = usize::try_from((piece.len - done).min(ACCESS_BYTES)).unwrap_or(0);
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        let address = piece.address.wrapping_add(done);
        let at = start.checked_add(done).ok_or(Errno::EINVAL);
        let moved = at.and_then(|at| match direction {
            Direction::Read => {
                let moved = uapi::vfio::pread(device, at, bytes)?;
                process.write(address, bytes.get(..moved).unwrap_or_default())?;
                Ok(moved)
            }
            Direction::Write => {
                process.read(address, bytes)?;
                uapi::vfio::pwrite(device, at, bytes)
            }
        });
        match moved {
            Ok(0) => break,
            Ok(moved) => done += moved as u64,
            Err(errno) if done == 0 => return Err(errno),
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
) -> Result<u64, Errno> {
    let file = pipe.file();
    match direction {
        Direction::Read => {
            // Events that could not be handed over would be lost, so this is asked first.
            let range = AddrRange::from_len(piece.address, piece.len);
            let fits = range.is_some_and(|range| process.is_writable(range));
            if piece.len > 0 && !fits && file.is_readable() {
                return Err(Errno::EFAULT);
            }
            let count = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let events = file.read(count)?;
            process.write(piece.address, &events)?;
            Ok(events.len() as u64)
        }
        Direction::Write => {
            let mut len = piece.len;
            if len > ANSWER_BYTES {
                len = ANSWER_BYTES - ACCESS_BYTES + len % ACCESS_BYTES;
            }
            let mut answers = vec![0; usize::try_from(len).unwrap_or(0)];
            process.read(piece.address, &mut answers)?;
            Ok(file.write(&answers)? as u64)
        }
    }
}
