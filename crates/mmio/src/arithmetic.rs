//! Arithmetic whose result is a register and whose operand is in memory: products, counts, bit fields.
//! Compilers fold even a volatile load into these.

use iced_x86::{Mnemonic, Register};

use crate::cpu::Cpu;
use crate::error::Error;
use crate::exec::{Exec, Progress};
use crate::flags::{self, CF, OF, SF, STATUS, ZF};
use crate::space::Space;

fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// ZF and SF of a result.
fn zero_and_sign(result: u64, bytes: usize) -> u64 {
    flags::logic(result, bytes) & (ZF | SF)
}

/// The low and the high half of a product of operands of `bytes` bytes.
fn halves(product: u128, bytes: usize) -> (u64, u64) {
    let half = |value: u128| u64::try_from(value & u128::from(flags::mask(bytes))).unwrap_or(0);
    (half(product), half(product >> (bytes * 8)))
}

impl<C: Cpu, S: Space> Exec<'_, C, S> {
    /// Carries the instruction out if it is one of this module; none otherwise.
    pub(crate) fn arithmetic(&mut self) -> Option<Result<Progress, Error>> {
        let mnemonic = self.instruction.mnemonic();
        let done = match mnemonic {
            Mnemonic::Mul => self.product(false),
            Mnemonic::Div => self.quotient(false),
            Mnemonic::Idiv => self.quotient(true),
            Mnemonic::Imul if self.instruction.op_count() == 1 => self.product(true),
            Mnemonic::Imul => self.short_product(),
            Mnemonic::Mulx => self.product_of_rdx(),
            Mnemonic::Popcnt | Mnemonic::Lzcnt | Mnemonic::Tzcnt => self.count(mnemonic),
            Mnemonic::Bsf | Mnemonic::Bsr => self.scan(mnemonic),
            Mnemonic::Andn => self.and_not(),
            Mnemonic::Bextr | Mnemonic::Bzhi => self.field(mnemonic),
            Mnemonic::Blsi | Mnemonic::Blsr | Mnemonic::Blsmsk => self.lowest(mnemonic),
            Mnemonic::Rorx | Mnemonic::Shlx | Mnemonic::Shrx | Mnemonic::Sarx => {
                self.shift_only(mnemonic)
            }
            _ => return None,
        };
        Some(done.map(|()| Progress::Done))
    }

    fn multiply(&self, a: u64, b: u64, bytes: usize, signed: bool) -> u128 {
        if signed {
            let wide = |value| i128::from(flags::extend(value, bytes).cast_signed());
            // Two operands of 64 bits fit: the smallest product is 2^126.
            wide(a).wrapping_mul(wide(b)).cast_unsigned()
        } else {
            u128::from(a).wrapping_mul(u128::from(b))
        }
    }

    /// Into rdx and rax, or ax.
    fn product(&mut self, signed: bool) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let (low_register, high_register) = match bytes {
            1 => (Register::AL, Register::AH),
            2 => (Register::AX, Register::DX),
            4 => (Register::EAX, Register::EDX),
            _ => (Register::RAX, Register::RDX),
        };
        let (a, b) = (self.register(low_register)?, self.read(0)?);
        let (low, high) = halves(self.multiply(a, b, bytes, signed), bytes);
        self.set_register(low_register, low)?;
        self.set_register(high_register, high)?;
        let extension = match signed && low & flags::sign(bytes) != 0 {
            true => flags::mask(bytes),
            false => 0,
        };
        self.set_flags(CF | OF, when(high != extension, CF | OF));
        Ok(())
    }

    /// Of rdx and rax, or ax; the flags stay as they are, since none is defined.
    fn quotient(&mut self, signed: bool) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let (low_register, high_register) = match bytes {
            1 => (Register::AL, Register::AH),
            2 => (Register::AX, Register::DX),
            4 => (Register::EAX, Register::EDX),
            _ => (Register::RAX, Register::RDX),
        };
        let (low, high) = (self.register(low_register)?, self.register(high_register)?);
        let divisor = self.read(0)?;
        let (quotient, rest) = if signed {
            let high = i128::from(flags::extend(high, bytes).cast_signed());
            let dividend = (high << (bytes * 8)) | i128::from(low);
            let divisor = i128::from(flags::extend(divisor, bytes).cast_signed());
            let quotient = dividend.checked_div(divisor).ok_or(Error::Divide)?;
            let rest = dividend.checked_rem(divisor).ok_or(Error::Divide)?;
            let (kept, _) = halves(quotient.cast_unsigned(), bytes);
            if i128::from(flags::extend(kept, bytes).cast_signed()) != quotient {
                return Err(Error::Divide);
            }
            (kept, halves(rest.cast_unsigned(), bytes).0)
        } else {
            let dividend = (u128::from(high) << (bytes * 8)) | u128::from(low);
            let divisor = u128::from(divisor);
            let quotient = dividend.checked_div(divisor).ok_or(Error::Divide)?;
            let rest = dividend.checked_rem(divisor).ok_or(Error::Divide)?;
            if quotient > u128::from(flags::mask(bytes)) {
                return Err(Error::Divide);
            }
            (halves(quotient, bytes).0, halves(rest, bytes).0)
        };
        self.set_register(low_register, quotient)?;
        self.set_register(high_register, rest)
    }

    /// Of as many bits as the operands.
    fn short_product(&mut self) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let second = if self.instruction.op_count() == 3 {
            2
        } else {
            0
        };
        let (a, b) = (self.read(1)?, self.read(second)?);
        let product = self.multiply(a, b, bytes, true);
        let (low, _) = halves(product, bytes);
        self.write(0, low)?;
        let fits = i128::from(flags::extend(low, bytes).cast_signed()) == product.cast_signed();
        self.set_flags(CF | OF, when(!fits, CF | OF));
        Ok(())
    }

    fn product_of_rdx(&mut self) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let rdx = self.register(if bytes == 4 {
            Register::EDX
        } else {
            Register::RDX
        })?;
        let value = self.read(2)?;
        let (low, high) = halves(self.multiply(rdx, value, bytes, false), bytes);
        // If both are the same register it gets the upper half.
        self.write(1, low)?;
        self.write(0, high)
    }

    fn count(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let bits = u32::try_from(bytes * 8).unwrap_or(64);
        let value = self.read(1)?;
        if mnemonic == Mnemonic::Popcnt {
            self.write(0, value.count_ones().into())?;
            self.set_zero_only(value == 0);
            return Ok(());
        }
        let count = match mnemonic {
            Mnemonic::Lzcnt => value.leading_zeros().saturating_sub(64 - bits),
            _ => value.trailing_zeros().min(bits),
        };
        self.write(0, count.into())?;
        self.set_flags(CF | ZF, when(value == 0, CF) | when(count == 0, ZF));
        Ok(())
    }

    /// The register stays if there is no bit.
    fn scan(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let value = self.read(1)?;
        if value != 0 {
            let index = match mnemonic {
                Mnemonic::Bsf => value.trailing_zeros(),
                _ => value.ilog2(),
            };
            self.write(0, index.into())?;
        }
        self.set_flags(ZF, when(value == 0, ZF));
        Ok(())
    }

    fn and_not(&mut self) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let (inverted, value) = (self.read(1)?, self.read(2)?);
        let result = !inverted & value;
        self.write(0, result)?;
        self.set_flags(CF | OF | ZF | SF, zero_and_sign(result, bytes));
        Ok(())
    }

    fn field(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let bits = (bytes * 8) as u64;
        let (value, control) = (self.read(1)?, self.read(2)?);
        let lowest = |count: u64| match u32::try_from(count) {
            Ok(count) if count < 64 => (1_u64 << count) - 1,
            _ => u64::MAX,
        };
        if mnemonic == Mnemonic::Bextr {
            let [start, length, ..] = control.to_le_bytes();
            let from = value.checked_shr(start.into()).unwrap_or(0);
            let result = from & lowest(length.into());
            self.write(0, result)?;
            self.set_flags(CF | OF | ZF, when(result == 0, ZF));
        } else {
            let index = control & 0xff;
            let result = value & lowest(index);
            self.write(0, result)?;
            let status = zero_and_sign(result, bytes) | when(index >= bits, CF);
            self.set_flags(CF | OF | ZF | SF, status);
        }
        Ok(())
    }

    fn lowest(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let value = self.read(1)?;
        let (result, carry) = match mnemonic {
            Mnemonic::Blsi => (value & value.wrapping_neg(), value != 0),
            Mnemonic::Blsr => (value & value.wrapping_sub(1), value == 0),
            _ => (value ^ value.wrapping_sub(1), value == 0),
        };
        self.write(0, result)?;
        let status = zero_and_sign(result & flags::mask(bytes), bytes) | when(carry, CF);
        self.set_flags(CF | OF | ZF | SF, status);
        Ok(())
    }

    /// Without flags.
    fn shift_only(&mut self, mnemonic: Mnemonic) -> Result<(), Error> {
        let bytes = self.bytes(0);
        let (value, count) = (self.read(1)?, self.read(2)?);
        let how = match mnemonic {
            Mnemonic::Rorx => flags::Shift::RotateRight,
            Mnemonic::Shlx => flags::Shift::Left,
            Mnemonic::Shrx => flags::Shift::Right,
            _ => flags::Shift::RightSigned,
        };
        let (result, _) = flags::shift(how, value, count, bytes, STATUS);
        self.write(0, result)
    }
}
