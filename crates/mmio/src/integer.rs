//! Instructions on general registers: moves, arithmetic, exchanges, bit tests, the stack.

use iced_x86::{Code, ConditionCode, Mnemonic, OpKind, Register};

use crate::cpu::Cpu;
use crate::error::Error;
use crate::exec::{Exec, Progress};
use crate::flags::{self, AF, CF, OF, PF, SF, STATUS, Shift, ZF};
use crate::space::Space;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;

impl<C: Cpu, S: Space> Exec<'_, C, S> {
    /// Carries the instruction out if it is one of this module.
    #[expect(
        clippy::too_many_lines,
        reason = "a decoder: one arm for each group of mnemonics"
    )]
    pub(crate) fn integer(&mut self) -> Result<Progress, Error> {
        let mnemonic = self.instruction.mnemonic();
        match mnemonic {
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri | Mnemonic::Movzx => {
                let value = self.read(1)?;
                self.write(0, value)?;
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let value = self.read(1)?;
                self.write(0, flags::extend(value, self.bytes(1)))?;
            }
            Mnemonic::Movbe => {
                let value = self.read(1)?.swap_bytes();
                let unused = 64_usize.saturating_sub(self.bytes(0) * 8);
                self.write(0, value >> (unused & 63))?;
            }
            Mnemonic::Add
            | Mnemonic::Adc
            | Mnemonic::Sub
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Or
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test => self.binary(mnemonic)?,
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Neg | Mnemonic::Not => {
                self.unary(mnemonic)?;
            }
            Mnemonic::Shl | Mnemonic::Sal => self.shift(Shift::Left)?,
            Mnemonic::Shr => self.shift(Shift::Right)?,
            Mnemonic::Sar => self.shift(Shift::RightSigned)?,
            Mnemonic::Rol => self.shift(Shift::RotateLeft)?,
            Mnemonic::Ror => self.shift(Shift::RotateRight)?,
            Mnemonic::Xchg => {
                let (first, second) = (self.read(0)?, self.read(1)?);
                // Memory first: a fault must leave the register alone.
                let (memory, register) = if self.is_memory(1) { (1, 0) } else { (0, 1) };
                let (to_memory, to_register) = if memory == 1 {
                    (first, second)
                } else {
                    (second, first)
                };
                self.write(memory, to_memory)?;
                self.write(register, to_register)?;
            }
            Mnemonic::Xadd => {
                let bytes = self.bytes(0);
                let (first, second) = (self.read(0)?, self.read(1)?);
                let (sum, status) = flags::add(first, second, false, bytes);
                if self.is_memory(0) {
                    self.write(0, sum)?;
                    self.write(1, first)?;
                } else {
                    self.write(1, first)?;
                    self.write(0, sum)?;
                }
                self.set_flags(STATUS, status);
            }
            Mnemonic::Cmpxchg => self.compare_exchange()?,
            Mnemonic::Cmpxchg8b => self.compare_exchange_8()?,
            Mnemonic::Cmpxchg16b => self.compare_exchange_16()?,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
                self.bit_test(mnemonic)?;
            }
            Mnemonic::Push => {
                let bytes = self.bytes(0);
                let value = self.read(0)?;
                if !self.is_memory(0) || !matches!(bytes, 2 | 8) {
                    return Err(Error::Unsupported);
                }
                let top = self.cpu.gpr(RSP).wrapping_sub(bytes as u64);
                self.store(top, value, bytes)?;
                self.cpu.set_gpr(RSP, top);
            }
            Mnemonic::Pop => {
                let bytes = self.bytes(0);
                if !self.is_memory(0) || !matches!(bytes, 2 | 8) {
                    return Err(Error::Unsupported);
                }
                let top = self.cpu.gpr(RSP);
                let value = self.load(top, bytes)?;
                // An address made of the stack pointer takes it as it is after the pop.
                let address = self.address_with(0, |register| match register {
                    Register::RSP | Register::ESP => bytes as u64,
                    _ => 0,
                })?;
                self.store(address, value, bytes)?;
                self.cpu.set_gpr(RSP, top.wrapping_add(bytes as u64));
            }
            Mnemonic::Jmp | Mnemonic::Call => return self.branch(),
            // No memory is touched by a hint, and the caches of a software device are coherent.
            Mnemonic::Nop
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchit0
            | Mnemonic::Prefetchit1
            | Mnemonic::Clflush
            | Mnemonic::Clflushopt
            | Mnemonic::Clwb
            | Mnemonic::Cldemote => {}
            _ => return self.conditional(),
        }
        Ok(Progress::Done)
    }

    fn binary(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let (a, b) = (self.read(0)?, self.read(1)?);
        let carry = self.flag(CF);
        let (result, status) = match mnemonic {
            Mnemonic::Add => flags::add(a, b, false, bytes),
            Mnemonic::Adc => flags::add(a, b, carry, bytes),
            Mnemonic::Sub | Mnemonic::Cmp => flags::sub(a, b, false, bytes),
            Mnemonic::Sbb => flags::sub(a, b, carry, bytes),
            Mnemonic::And | Mnemonic::Test => (a & b, flags::logic(a & b, bytes)),
            Mnemonic::Or => (a | b, flags::logic(a | b, bytes)),
            Mnemonic::Xor => (a ^ b, flags::logic(a ^ b, bytes)),
            _ => return Err(Error::Unsupported),
        };
        if !matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test) {
            self.write(0, result)?;
        }
        self.set_flags(STATUS, status);
        Ok(())
    }

    fn unary(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let value = self.read(0)?;
        let ((result, status), which) = match mnemonic {
            Mnemonic::Inc => (flags::add(value, 1, false, bytes), STATUS & !CF),
            Mnemonic::Dec => (flags::sub(value, 1, false, bytes), STATUS & !CF),
            Mnemonic::Neg => (flags::sub(0, value, false, bytes), STATUS),
            Mnemonic::Not => ((!value, 0), 0),
            _ => return Err(Error::Unsupported),
        };
        self.write(0, result)?;
        self.set_flags(which, status);
        Ok(())
    }

    fn shift(&mut self, how: Shift) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let (value, count) = (self.read(0)?, self.read(1)?);
        let (result, status) = flags::shift(how, value, count, bytes, self.cpu.flags());
        self.write(0, result)?;
        self.set_flags(STATUS, status);
        Ok(())
    }

    fn compare_exchange(&mut self) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let accumulator = match bytes {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        let expected = self.register(accumulator)?;
        let (found, new) = (self.read(0)?, self.read(1)?);
        let (_, status) = flags::sub(expected, found, false, bytes);
        // Memory is written in both cases (SDM volume 2, CMPXCHG): a device sees a write.
        if expected == found {
            self.write(0, new)?;
        } else {
            self.write(0, found)?;
            self.set_register(accumulator, found)?;
        }
        self.set_flags(STATUS, status);
        Ok(())
    }

    fn compare_exchange_8(&mut self) -> Result<(), Error> {
        let address = self.address(0)?;
        let found = self.load(address, 8)?;
        let pair = |high: u64, low: u64| (high << 32) | (low & flags::mask(4));
        let expected = pair(self.cpu.gpr(RDX), self.cpu.gpr(RAX));
        if expected == found {
            let new = pair(self.cpu.gpr(RCX), self.cpu.gpr(RBX));
            self.store(address, new, 8)?;
        } else {
            self.store(address, found, 8)?;
            self.cpu.set_gpr(RAX, found & flags::mask(4));
            self.cpu.set_gpr(RDX, found >> 32);
        }
        self.set_flags(ZF, if expected == found { ZF } else { 0 });
        Ok(())
    }

    fn compare_exchange_16(&mut self) -> Result<(), Error> {
        let address = self.address(0)?;
        self.aligned(address, 16)?;
        let mut data = [0; 16];
        self.space.load(address, &mut data)?;
        let found = u128::from_le_bytes(data);
        let pair = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let expected = pair(self.cpu.gpr(RDX), self.cpu.gpr(RAX));
        if expected == found {
            let new = pair(self.cpu.gpr(RCX), self.cpu.gpr(RBX));
            self.space.store(address, &new.to_le_bytes())?;
        } else {
            self.space.store(address, &data)?;
            let halves = data.split_at(8);
            let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
            self.cpu.set_gpr(RAX, half(halves.0));
            self.cpu.set_gpr(RDX, half(halves.1));
        }
        self.set_flags(ZF, if expected == found { ZF } else { 0 });
        Ok(())
    }

    fn bit_test(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let bits = (bytes * 8) as u64;
        let offset = self.read(1)?;
        if !self.is_memory(0) || bits == 0 {
            return Err(Error::Unsupported);
        }
        let mut address = self.address(0)?;
        if self.instruction.op_kind(1) == OpKind::Register {
            // A signed bit offset reaches beyond the operand, in steps of the operand's size.
            let offset = flags::extend(offset, bytes).cast_signed();
            let step = offset.div_euclid(bits.cast_signed()) * bytes as i64;
            let base = self.segment_base();
            let reached = address.wrapping_sub(base).wrapping_add_signed(step);
            let narrow = self.instruction.memory_base().size() == 4
                || self.instruction.memory_index().size() == 4;
            address = base.wrapping_add(reached & flags::mask(if narrow { 4 } else { 8 }));
        }
        let value = self.load(address, bytes)?;
        let bit = 1_u64 << (offset % bits);
        let result = match mnemonic {
            Mnemonic::Bts => Some(value | bit),
            Mnemonic::Btr => Some(value & !bit),
            Mnemonic::Btc => Some(value ^ bit),
            _ => None,
        };
        if let Some(result) = result {
            self.store(address, result, bytes)?;
        }
        self.set_flags(CF, if value & bit != 0 { CF } else { 0 });
        Ok(())
    }

    /// Near jumps and calls through memory.
    fn branch(&mut self) -> Result<Progress, Error> {
        let target = match self.instruction.code() {
            Code::Jmp_rm64 if self.is_memory(0) => self.read(0)?,
            Code::Call_rm64 if self.is_memory(0) => {
                let target = self.read(0)?;
                let top = self.cpu.gpr(RSP).wrapping_sub(8);
                self.store(top, self.instruction.next_ip(), 8)?;
                self.cpu.set_gpr(RSP, top);
                target
            }
            _ => return Err(Error::Unsupported),
        };
        self.cpu.set_rip(target);
        Ok(Progress::Jumped)
    }

    /// `cmovCC` (reads its operand in any case) and `setCC`.
    fn conditional(&mut self) -> Result<Progress, Error> {
        let holds = match self.instruction.condition_code() {
            ConditionCode::o => self.flag(OF),
            ConditionCode::no => !self.flag(OF),
            ConditionCode::b => self.flag(CF),
            ConditionCode::ae => !self.flag(CF),
            ConditionCode::e => self.flag(ZF),
            ConditionCode::ne => !self.flag(ZF),
            ConditionCode::be => self.flag(CF | ZF),
            ConditionCode::a => !self.flag(CF | ZF),
            ConditionCode::s => self.flag(SF),
            ConditionCode::ns => !self.flag(SF),
            ConditionCode::p => self.flag(PF),
            ConditionCode::np => !self.flag(PF),
            ConditionCode::l => self.flag(SF) != self.flag(OF),
            ConditionCode::ge => self.flag(SF) == self.flag(OF),
            ConditionCode::le => self.flag(ZF) || self.flag(SF) != self.flag(OF),
            ConditionCode::g => !self.flag(ZF) && self.flag(SF) == self.flag(OF),
            _ => return Err(Error::Unsupported),
        };
        match self.instruction.op_count() {
            1 if self.bytes(0) == 1 => self.write(0, u64::from(holds))?,
            2 if self.is_memory(1) => {
                let value = self.read(1)?;
                let before = self.read(0)?;
                // A 32-bit move that does not happen still clears the upper half.
                self.write(0, if holds { value } else { before })?;
            }
            _ => return Err(Error::Unsupported),
        }
        Ok(Progress::Done)
    }

    /// The flags that `enqcmd` and its like set: ZF as given, the others clear.
    pub(crate) fn set_zero_only(&mut self, zero: bool) {
        self.set_flags(CF | PF | AF | ZF | SF | OF, if zero { ZF } else { 0 });
    }
}
