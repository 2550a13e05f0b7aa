//! String instructions, alone and repeated (Intel SDM volume 2, REP/REPE/REPNE).

use iced_x86::{Mnemonic, OpKind};

use crate::MAX_ITERATIONS;
use crate::cpu::Cpu;
use crate::error::Error;
use crate::exec::{Exec, Progress};
use crate::flags::{self, DF, STATUS, ZF};
use crate::space::Space;

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// What one iteration does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

impl<C: Cpu, S: Space> Exec<'_, C, S> {
    /// Carries a string instruction out; none, if it is not one.
    pub(crate) fn string(&mut self) -> Option<Result<Progress, Error>> {
        // `movsd` and `cmpsd` are names of vector instructions too: the operands decide.
        let implicit = (0..2).any(|op| {
            self.instruction.op_count() > op
                && matches!(
                    self.instruction.op_kind(op),
                    OpKind::MemorySegRSI
                        | OpKind::MemorySegESI
                        | OpKind::MemoryESRDI
                        | OpKind::MemoryESEDI
                )
        });
        if !implicit {
            return None;
        }
        let what = match self.instruction.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => What::Move,
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => What::Store,
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => What::Load,
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => What::Compare,
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => What::Scan,
            _ => return Some(Err(Error::Unsupported)),
        };
        Some(self.repeat(what))
    }

    fn repeat(&mut self, what: What) -> Result<Progress, Error> {
        let narrow = (0..2).any(|op| {
            matches!(
                self.instruction.op_kind(op),
                OpKind::MemorySegESI | OpKind::MemoryESEDI
            )
        });
        let (equal, unequal) = (
            self.instruction.has_rep_prefix(),
            self.instruction.has_repne_prefix(),
        );
        if !equal && !unequal {
            let status = self.iterate(what, narrow)?;
            self.compared(status);
            return Ok(Progress::Done);
        }
        for _ in 0..MAX_ITERATIONS {
            let left = self.counter(RCX, narrow);
            if left == 0 {
                return Ok(Progress::Done);
            }
            // A fault leaves the counters of the iterations before, and the flags of before all.
            let status = self.iterate(what, narrow)?;
            self.set_counter(RCX, narrow, left.wrapping_sub(1));
            let ends = status.is_some_and(|status| (status & ZF != 0) != equal);
            if left == 1 || ends {
                self.compared(status);
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Repeat)
    }

    fn compared(&mut self, status: Option<u64>) {
        if let Some(status) = status {
            self.set_flags(STATUS, status);
        }
    }

    /// One iteration; the status flags of a comparison.
    fn iterate(&mut self, what: What, narrow: bool) -> Result<Option<u64>, Error> {
        let bytes = self.instruction.memory_size().size();
        let (source, destination, status) = match what {
            What::Move => {
                let value = self.read(1)?;
                self.write(0, value)?;
                (true, true, None)
            }
            What::Store => {
                let value = self.read(1)?;
                self.write(0, value)?;
                (false, true, None)
            }
            What::Load => {
                let value = self.read(1)?;
                self.write(0, value)?;
                (true, false, None)
            }
            What::Compare | What::Scan => {
                let (a, b) = (self.read(0)?, self.read(1)?);
                let (_, status) = flags::sub(a, b, false, bytes);
                (what == What::Compare, true, Some(status))
            }
        };
        let step = if self.flag(DF) {
            (bytes as u64).wrapping_neg()
        } else {
            bytes as u64
        };
        for (moves, index) in [(source, RSI), (destination, RDI)] {
            if moves {
                let at = self.counter(index, narrow).wrapping_add(step);
                self.set_counter(index, narrow, at);
            }
        }
        Ok(status)
    }
}
