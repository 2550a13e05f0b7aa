//! A descriptor that an engine has given up, as bytes, and back.
//!
//! What is kept is what the next step cannot find out again: how far a transfer has come, and the
//! sums of parity once a part of them may have been written. What was read of a descriptor that has
//! not been read as a whole is read again, and so are the sources of a piece whose sums are not
//! complete: nothing of it has been written.
//!
//! A restored descriptor is checked as when it was read, and its counts are in range; where its
//! data lies was never to be trusted.

use ioasid_vfio::{
    model::StateError,
    saved::{Reader, Writer, expect},
};

use super::{
    Execution, Phase, Terms, Work,
    parity::{Parity, Progress},
};
use crate::spec::{ChanCtrl, ChanErr, DESCRIPTOR_SIZE, Descriptor};

/// Where a descriptor is.
const NEW: u8 = 0;
const EXTENDED: u8 = 1;
const RUNNING: u8 = 2;

impl Execution {
    pub(crate) fn save(&self, out: &mut Writer) {
        // The registers may have changed since it was begun.
        out.u16(self.terms.control.into_bits());
        out.u64(self.terms.completion);
        out.u32(self.terms.mask.into_bits());
        match &self.phase {
            Phase::ReadExtension(_) => {
                out.u8(EXTENDED);
                out.bytes(&self.descriptor.to_bytes());
            }
            Phase::Work(work) => {
                out.u8(RUNNING);
                out.bytes(&self.descriptor.to_bytes());
                out.bytes(&self.extension.to_bytes());
                work.save(out);
            }
            // An engine gives up none that is complete but for its completion word.
            Phase::Begin | Phase::Read(_) | Phase::Check | Phase::Complete(_) => out.u8(NEW),
        }
    }

    /// The descriptor that was begun with `terms`, but for what the state says of them.
    pub(crate) fn load(terms: Terms, state: &mut Reader<'_>) -> Result<Self, StateError> {
        let mut execution = Execution::new(Terms {
            control: ChanCtrl::from_bits(state.u16()? & ChanCtrl::STATE),
            completion: state.u64()?,
            mask: ChanErr::from_bits(state.u32()?),
            ..terms
        });
        let phase = state.u8()?;
        if phase == NEW {
            return Ok(execution);
        }
        execution.descriptor = descriptor(state)?;
        execution.next = execution.descriptor.next();
        let op = execution.check().map_err(|_| StateError)?;
        let extended = execution.descriptor.has_extension(op);
        execution.phase = match phase {
            EXTENDED => Phase::Check,
            RUNNING => {
                execution.extension = descriptor(state)?;
                if extended {
                    (execution.count, execution.next) = (2, execution.extension.next());
                }
                let mut work = Work::new(op, &execution.descriptor, &execution.extension);
                work.load(u64::from(execution.descriptor.size()), state)?;
                Phase::Work(work)
            }
            _ => return Err(StateError),
        };
        Ok(execution)
    }
}

fn descriptor(state: &mut Reader<'_>) -> Result<Descriptor, StateError> {
    let bytes = state.array::<DESCRIPTOR_SIZE>()?;
    Ok(Descriptor::from_bytes(&bytes))
}

impl Work {
    fn save(&self, out: &mut Writer) {
        match self {
            Work::Null => {}
            Work::Copy(done) | Work::Fill(done) => out.u64(*done),
            Work::Parity(parity) => {
                let progress = parity.progress();
                out.u64(progress.at);
                out.u32(progress.error.into_bits());
                out.count(progress.sums.len());
                for sum in progress.sums {
                    out.count(sum.len());
                    out.bytes(sum);
                }
                out.u8(progress.turn);
                out.u64(progress.done);
            }
        }
    }

    /// Goes on where a transfer of `size` bytes has come to.
    fn load(&mut self, size: u64, state: &mut Reader<'_>) -> Result<(), StateError> {
        match self {
            Work::Null => Ok(()),
            Work::Copy(done) | Work::Fill(done) => {
                *done = state.u64()?;
                expect(*done <= size)
            }
            Work::Parity(parity) => {
                let at = state.u64()?;
                let error = ChanErr::from_bits(state.u32()?);
                let mut sums = Vec::new();
                for _ in 0..state.count(Parity::MAX_SUMS)? {
                    let len = state.count(Parity::MAX_PIECE)?;
                    sums.push(state.bytes(len)?);
                }
                let resumed = parity.resume(&Progress {
                    at,
                    error,
                    sums,
                    turn: state.u8()?,
                    done: state.u64()?,
                });
                expect(resumed)
            }
        }
    }
}
