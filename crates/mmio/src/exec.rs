//! One decoded instruction with the thread and the memory it works on: its operands.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{Cpu, Segment};
use crate::error::Error;
use crate::flags;
use crate::space::Space;

pub(crate) struct Exec<'a, C, S> {
    pub(crate) instruction: Instruction,
    pub(crate) cpu: &'a mut C,
    pub(crate) space: &'a mut S,
}

/// What became of an instruction that did not fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Done; the next one follows.
    Done,
    /// A `rep` with more to do.
    Repeat,
    /// Done, and the instruction pointer is set.
    Jumped,
}

/// A general register as an operand names it.
#[derive(Clone, Copy)]
struct Gpr {
    number: u8,
    bytes: usize,
    /// ah, ch, dh, bh: bits 15:8.
    high: bool,
}

impl Gpr {
    fn new(register: Register) -> Result<Gpr, Error> {
        if !register.is_gpr() {
            return Err(Error::Unsupported);
        }
        let full = register.full_register();
        Ok(Gpr {
            number: u8::try_from(full.number() & 15).unwrap_or(0),
            bytes: register.size(),
            high: matches!(
                register,
                Register::AH | Register::CH | Register::DH | Register::BH
            ),
        })
    }
}

impl<C: Cpu, S: Space> Exec<'_, C, S> {
    /// Whether operand `op` is in memory.
    pub(crate) fn is_memory(&self, op: u32) -> bool {
        matches!(
            self.instruction.op_kind(op),
            OpKind::Memory
                | OpKind::MemorySegRSI
                | OpKind::MemorySegESI
                | OpKind::MemoryESRDI
                | OpKind::MemoryESEDI
        )
    }

    /// Bytes of operand `op`; an immediate has those of operand 0.
    pub(crate) fn bytes(&self, op: u32) -> usize {
        match self.instruction.op_kind(op) {
            OpKind::Register => self.instruction.op_register(op).size(),
            _ if self.is_memory(op) => self.instruction.memory_size().size(),
            _ if op != 0 => self.bytes(0),
            _ => 0,
        }
    }

    /// The linear address of memory operand `op`.
    pub(crate) fn address(&self, op: u32) -> Result<u64, Error> {
        self.address_with(op, |_| 0)
    }

    /// As [`Self::address`], with something added to the registers it is made of (`pop` takes the
    /// stack pointer after it has moved).
    pub(crate) fn address_with(
        &self,
        op: u32,
        added: impl Fn(Register) -> u64,
    ) -> Result<u64, Error> {
        self.instruction
            .try_virtual_address(op, 0, |register, _, _| match register {
                Register::FS => Some(self.cpu.segment_base(Segment::Fs)),
                Register::GS => Some(self.cpu.segment_base(Segment::Gs)),
                Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
                _ => {
                    let value = self.register(register).ok()?;
                    Some(value.wrapping_add(added(register)) & flags::mask(register.size()))
                }
            })
            .ok_or(Error::Unsupported)
    }

    /// The base that is added to the offset of memory operand `op`.
    pub(crate) fn segment_base(&self) -> u64 {
        match self.instruction.memory_segment() {
            Register::FS => self.cpu.segment_base(Segment::Fs),
            Register::GS => self.cpu.segment_base(Segment::Gs),
            _ => 0,
        }
    }

    /// A general register, zero-extended.
    pub(crate) fn register(&self, register: Register) -> Result<u64, Error> {
        let gpr = Gpr::new(register)?;
        let value = self.cpu.gpr(gpr.number);
        let value = if gpr.high { value >> 8 } else { value };
        Ok(value & flags::mask(gpr.bytes))
    }

    /// Writes a general register: 32 bits clear the upper half, fewer keep the rest.
    pub(crate) fn set_register(&mut self, register: Register, value: u64) -> Result<(), Error> {
        let gpr = Gpr::new(register)?;
        let (kept, shift) = match (gpr.bytes, gpr.high) {
            (4 | 8, _) => (0, 0),
            (_, true) => (!0xff00, 8),
            (bytes, false) => (!flags::mask(bytes), 0),
        };
        let before = self.cpu.gpr(gpr.number);
        let value = (value & flags::mask(gpr.bytes)) << shift;
        self.cpu.set_gpr(gpr.number, (before & kept) | value);
        Ok(())
    }

    /// The 64-bit register `index` (a number of [`Cpu::gpr`]), or its lower half.
    pub(crate) fn counter(&self, index: u8, narrow: bool) -> u64 {
        let value = self.cpu.gpr(index);
        if narrow {
            value & flags::mask(4)
        } else {
            value
        }
    }

    /// Writes register `index`, of which only the lower half counts if `narrow`.
    pub(crate) fn set_counter(&mut self, index: u8, narrow: bool, value: u64) {
        let value = if narrow {
            value & flags::mask(4)
        } else {
            value
        };
        self.cpu.set_gpr(index, value);
    }

    /// Reads 1, 2, 4 or 8 bytes of memory as a number.
    pub(crate) fn load(&mut self, address: u64, bytes: usize) -> Result<u64, Error> {
        let mut data = [0; 8];
        let part = data.get_mut(..bytes).ok_or(Error::Unsupported)?;
        if part.is_empty() {
            return Err(Error::Unsupported);
        }
        self.space.load(address, part)?;
        Ok(u64::from_le_bytes(data))
    }

    /// Writes 1, 2, 4 or 8 bytes of memory.
    pub(crate) fn store(&mut self, address: u64, value: u64, bytes: usize) -> Result<(), Error> {
        let data = value.to_le_bytes();
        let part = data.get(..bytes).ok_or(Error::Unsupported)?;
        if part.is_empty() {
            return Err(Error::Unsupported);
        }
        Ok(self.space.store(address, part)?)
    }

    /// Operand `op` as a number: zero-extended, an immediate sign-extended as its encoding says.
    pub(crate) fn read(&mut self, op: u32) -> Result<u64, Error> {
        if self.is_memory(op) {
            let address = self.address(op)?;
            return self.load(address, self.bytes(op));
        }
        match self.instruction.op_kind(op) {
            OpKind::Register => self.register(self.instruction.op_register(op)),
            _ => self
                .instruction
                .try_immediate(op)
                .map_err(|_| Error::Unsupported),
        }
    }

    /// Writes operand `op`.
    pub(crate) fn write(&mut self, op: u32, value: u64) -> Result<(), Error> {
        if self.is_memory(op) {
            let address = self.address(op)?;
            return self.store(address, value, self.bytes(op));
        }
        match self.instruction.op_kind(op) {
            OpKind::Register => self.set_register(self.instruction.op_register(op), value),
            _ => Err(Error::Unsupported),
        }
    }

    /// Sets the flags in `which` to those of `values`.
    pub(crate) fn set_flags(&mut self, which: u64, values: u64) {
        let before = self.cpu.flags();
        self.cpu.set_flags((before & !which) | (values & which));
    }

    /// Whether any of `flags` is set.
    pub(crate) fn flag(&self, flags: u64) -> bool {
        self.cpu.flags() & flags != 0
    }

    /// Refuses an address that is not a multiple of `alignment`.
    pub(crate) fn aligned(&self, address: u64, alignment: usize) -> Result<(), Error> {
        let alignment = alignment as u64;
        if alignment != 0 && !address.is_multiple_of(alignment) {
            return Err(Error::Misaligned { address, alignment });
        }
        Ok(())
    }
}
