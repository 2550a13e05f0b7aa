//! Descriptors under way as bytes, and back.
//!
//! What is kept is what the next step cannot find out again: how far a transfer has come, a CRC,
//! the part of a batch that was read, an ending. A piece of a transfer that is on its way through a
//! buffer is done once more: reading it again does no harm, since neither source nor destination of
//! such an operation overlap.
//!
//! A restored descriptor is checked as when it started, and its counts are in range; where its data
//! lies was never to be trusted.

use ioasid_vfio::{
    model::StateError,
    saved::{Reader, Writer, expect},
};

use super::{
    Execution, Terms,
    batch::{self, Batch, WINDOW},
    crc::Crc,
    ending::Ending,
    operation::{Chunk, Operation, Phase, Work, check},
};
use crate::{
    exec::bytes::{put_descriptor, put_record, take_descriptor, take_record},
    spec::{Descriptor, Opcode},
};

/// Where a descriptor is.
const NEW: u8 = 0;
const RUNNING: u8 = 1;
const ENDING: u8 = 2;

impl Execution {
    pub(crate) fn save(&self, out: &mut Writer) {
        match self {
            Execution::Single(operation) => operation.save(out),
            Execution::Batch(batch) => batch.save(out),
        }
    }

    /// A descriptor under way on a queue with `terms`.
    pub(crate) fn load(state: &mut Reader<'_>, terms: &Terms) -> Result<Self, StateError> {
        let descriptor = take_descriptor(state)?;
        if descriptor.opcode == Opcode::Batch as u8 {
            Batch::load(descriptor, state, terms).map(|batch| Execution::Batch(Box::new(batch)))
        } else {
            let operation = Operation::load(descriptor, None, state, terms)?;
            Ok(Execution::Single(Box::new(operation)))
        }
    }
}

/// That `descriptor` has passed its checks, which is how it got as far as it says.
fn checked(
    descriptor: &Descriptor,
    terms: &Terms,
    index: Option<u16>,
) -> Result<Opcode, StateError> {
    check(descriptor, terms, index).map_err(|_| StateError)
}

impl Operation {
    fn save(&self, out: &mut Writer) {
        put_descriptor(out, &self.descriptor);
        out.bool(self.denied);
        out.u64(self.done);
        match &self.phase {
            Phase::Check => out.u8(NEW),
            Phase::Run(work) => {
                out.u8(RUNNING);
                let crc = match work {
                    Work::Crc { crc, .. } => Some(crc.remainder()),
                    _ => None,
                };
                out.bool(crc.is_some());
                out.u32(crc.unwrap_or(0));
            }
            Phase::End(ending) => {
                out.u8(ENDING);
                put_record(out, ending.record());
            }
        }
    }

    fn load(
        descriptor: Descriptor,
        index: Option<u16>,
        state: &mut Reader<'_>,
        terms: &Terms,
    ) -> Result<Self, StateError> {
        let mut operation = Operation::new(descriptor, index);
        operation.denied = state.bool()?;
        operation.done = state.u64()?;
        expect(operation.done <= u64::from(descriptor.size))?;
        operation.phase = match state.u8()? {
            NEW => {
                expect(operation.done == 0)?;
                Phase::Check
            }
            RUNNING => {
                let opcode = checked(&descriptor, terms, index)?;
                let (has_crc, remainder) = (state.bool()?, state.u32()?);
                let sums = matches!(opcode, Opcode::CrcGen | Opcode::CopyCrc);
                expect(sums || !has_crc)?;
                Phase::Run(match has_crc {
                    true => Work::Crc {
                        crc: Crc::resumed(remainder, descriptor.flags.specific()),
                        chunk: Chunk::default(),
                    },
                    false => Work::new(opcode, &descriptor),
                })
            }
            ENDING => Phase::End(Ending::new(take_record(state)?, index)),
            _ => return Err(StateError),
        };
        Ok(operation)
    }
}

impl Batch {
    fn save(&self, out: &mut Writer) {
        put_descriptor(out, &self.descriptor);
        out.bool(self.denied);
        match &self.phase {
            batch::Phase::Check => out.u8(NEW),
            batch::Phase::Run => {
                out.u8(RUNNING);
                out.bool(self.failed);
                out.u64(self.ended);
                out.count(self.window.len());
                self.window
                    .iter()
                    .for_each(|next| put_descriptor(out, next));
                out.bool(self.current.is_some());
                if let Some(current) = &self.current {
                    current.save(out);
                }
            }
            batch::Phase::End(ending) => {
                out.u8(ENDING);
                put_record(out, ending.record());
            }
        }
    }

    fn load(
        descriptor: Descriptor,
        state: &mut Reader<'_>,
        terms: &Terms,
    ) -> Result<Self, StateError> {
        let mut batch = Batch::new(descriptor);
        batch.denied = state.bool()?;
        batch.phase = match state.u8()? {
            NEW => batch::Phase::Check,
            RUNNING => {
                checked(&descriptor, terms, None)?;
                batch.failed = state.bool()?;
                batch.ended = state.u64()?;
                for _ in 0..state.count(WINDOW as usize)? {
                    batch.window.push_back(take_descriptor(state)?);
                }
                if state.bool()? {
                    let index = u16::try_from(batch.ended).unwrap_or(u16::MAX);
                    let current = take_descriptor(state)?;
                    let current = Operation::load(current, Some(index), state, terms)?;
                    batch.current = Some(current);
                }
                let read = batch.window.len() as u64 + u64::from(batch.current.is_some());
                let fetched = batch.ended.checked_add(read).ok_or(StateError)?;
                expect(fetched <= u64::from(descriptor.size))?;
                batch.fetched = fetched;
                batch::Phase::Run
            }
            ENDING => batch::Phase::End(Ending::new(take_record(state)?, None)),
            _ => return Err(StateError),
        };
        Ok(batch)
    }
}
