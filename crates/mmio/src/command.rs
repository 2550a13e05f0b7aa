//! Stores of 64 bytes that a device sees as one: `movdir64b`, `enqcmd`, `enqcmds`.

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::error::Error;
use crate::exec::{Exec, Progress};
use crate::space::Space;

/// The first four bytes of a command (Intel SDM volume 2, ENQCMD): the processor fills them in.
mod spec {
    /// PASID, bits 19:0.
    pub(super) const PASID: u32 = 0xf_ffff;
    /// Reserved, bits 30:20.
    pub(super) const RESERVED: u32 = 0x7ff0_0000;
}

impl<C: Cpu, S: Space> Exec<'_, C, S> {
    /// Carries the instruction out if it is one of this module; none otherwise.
    pub(crate) fn command(&mut self) -> Option<Result<Progress, Error>> {
        match self.instruction.mnemonic() {
            mnemonic @ (Mnemonic::Movdir64b | Mnemonic::Enqcmd | Mnemonic::Enqcmds) => {
                Some(self.give(mnemonic))
            }
            _ => None,
        }
    }

    fn give(&mut self, mnemonic: Mnemonic) -> Result<Progress, Error> {
        // Operand 0 is a register that holds the destination, in the segment ES; 1 is the source.
        let destination = self.register(self.instruction.op0_register())?;
        self.aligned(destination, 64)?;
        if mnemonic == Mnemonic::Enqcmds && !self.cpu.is_privileged() {
            return Err(Error::Privileged);
        }
        let source = self.address(1)?;
        let mut command = [0; 64];
        self.space.load(source, &mut command)?;
        if mnemonic == Mnemonic::Movdir64b {
            self.space.store(destination, &command)?;
            return Ok(Progress::Done);
        }
        let (head, _) = command
            .split_first_chunk_mut::<4>()
            .ok_or(Error::Unsupported)?;
        if mnemonic == Mnemonic::Enqcmd {
            // The processor's PASID, and PRIV (bit 31) clear.
            *head = (self.cpu.pasid() & spec::PASID).to_le_bytes();
        } else if u32::from_le_bytes(*head) & spec::RESERVED != 0 {
            return Err(Error::Privileged);
        }
        let retry = self.space.enqueue(destination, &command)?;
        self.set_zero_only(retry);
        Ok(Progress::Done)
    }
}
