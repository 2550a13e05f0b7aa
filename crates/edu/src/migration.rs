//! Migration: the registers and the buffer. A copy that is under way ends first; one that has not
//! begun is made on the other side.

use ioasid_vfio::{
    model::{Migrate, StateError},
    saved::{Reader, Writer, expect},
};

use crate::{
    device::{Edu, Registers},
    spec::{self, BUFFER_SIZE},
};

/// What a state is of, and the version of its format.
const MAGIC: &[u8; 8] = b"edu\0\0\0\0\0";
const VERSION: u32 = 1;

impl Migrate for Edu {
    fn pause(&self) {
        self.core.set_paused(true);
    }

    fn resume(&self) {
        self.core.set_paused(false);
    }

    fn save(&self) -> Vec<u8> {
        let registers = self.core.registers();
        let mut out = Writer::default();
        out.bytes(MAGIC);
        out.u32(VERSION);
        out.u32(spec::IDENTIFICATION);
        out.u32(registers.liveness);
        out.u32(registers.factorial);
        out.bool(registers.operand.is_some());
        out.u32(registers.operand.unwrap_or(0));
        out.bool(registers.factorial_interrupt);
        out.u32(registers.interrupts);
        out.u64(registers.source);
        out.u64(registers.destination);
        out.u64(registers.count);
        out.u64(registers.command);
        out.bytes(&*registers.buffer);
        out.finish()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let mut from = Reader::new(state);
        expect(from.array()? == *MAGIC && from.u32()? == VERSION)?;
        expect(from.u32()? == spec::IDENTIFICATION)?;
        let (liveness, factorial) = (from.u32()?, from.u32()?);
        let (computes, operand) = (from.bool()?, from.u32()?);
        let registers = Registers {
            liveness,
            factorial,
            operand: computes.then_some(operand),
            factorial_interrupt: from.bool()?,
            interrupts: from.u32()?,
            source: from.u64()?,
            destination: from.u64()?,
            count: from.u64()?,
            command: from.u64()?,
            buffer: Box::new(from.array::<BUFFER_SIZE>()?),
        };
        from.finish()?;
        self.core.set_registers(registers);
        Ok(())
    }
}
