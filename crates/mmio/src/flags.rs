//! The status flags of RFLAGS and the arithmetic that sets them (Intel SDM volume 1, 3.4.3.1).
//!
//! Flags that the manual leaves undefined are given the values that current processors give: after
//! a logical operation AF is clear, after a bit test everything but CF stays.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Even parity of the lowest byte.
pub const PF: u64 = 1 << 2;
/// Carry out of the lowest four bits.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Direction of string instructions: set means downwards.
pub const DF: u64 = 1 << 10;
/// Signed overflow.
pub const OF: u64 = 1 << 11;
/// All that arithmetic sets.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// The bits of an operand of `bytes` bytes (1, 2, 4 or 8).
pub(crate) fn mask(bytes: usize) -> u64 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The top bit of an operand of `bytes` bytes.
pub(crate) fn sign(bytes: usize) -> u64 {
    mask(bytes) ^ (mask(bytes) >> 1)
}

fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

fn of_result(result: u64, bytes: usize) -> u64 {
    when(result.to_le_bytes()[0].count_ones().is_multiple_of(2), PF)
        | when(result == 0, ZF)
        | when(result & sign(bytes) != 0, SF)
}

/// `a + b + carry`: the result and all status flags.
pub(crate) fn add(a: u64, b: u64, carry: bool, bytes: usize) -> (u64, u64) {
    let (a, b) = (a & mask(bytes), b & mask(bytes));
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = a.wrapping_add(b).wrapping_add(u64::from(carry)) & mask(bytes);
    let flags = of_result(result, bytes)
        | when(wide > u128::from(mask(bytes)), CF)
        | when((a ^ b ^ result) & 0x10 != 0, AF)
        | when((a ^ result) & (b ^ result) & sign(bytes) != 0, OF);
    (result, flags)
}

/// `a - b - borrow`: the result and all status flags.
pub(crate) fn sub(a: u64, b: u64, borrow: bool, bytes: usize) -> (u64, u64) {
    let (a, b) = (a & mask(bytes), b & mask(bytes));
    let result = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & mask(bytes);
    let flags = of_result(result, bytes)
        | when(u128::from(a) < u128::from(b) + u128::from(borrow), CF)
        | when((a ^ b ^ result) & 0x10 != 0, AF)
        | when((a ^ b) & (a ^ result) & sign(bytes) != 0, OF);
    (result, flags)
}

/// The status flags of a logical operation with this result.
pub(crate) fn logic(result: u64, bytes: usize) -> u64 {
    of_result(result & mask(bytes), bytes)
}

/// Which way a shift or rotation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    Right,
    RightSigned,
    RotateLeft,
    RotateRight,
}

/// A shift or rotation by `count`; with the flags before, as a count of 0 leaves them.
pub(crate) fn shift(how: Shift, a: u64, count: u64, bytes: usize, before: u64) -> (u64, u64) {
    let a = a & mask(bytes);
    let bits = u32::try_from(bytes * 8).unwrap_or(64);
    let count = u32::try_from(count & if bytes == 8 { 63 } else { 31 }).unwrap_or(0);
    if count == 0 {
        return (a, before);
    }
    let top = |value: u64| value & sign(bytes) != 0;
    let wide = u128::from(a);
    match how {
        Shift::Left => {
            let shifted = wide << count;
            let result = low(shifted) & mask(bytes);
            let carry = (shifted >> bits) & 1 != 0;
            let flags = of_result(result, bytes) | when(carry, CF) | when(top(result) != carry, OF);
            (result, flags)
        }
        Shift::Right => {
            let result = low(wide >> count);
            let carry = (wide >> (count - 1)) & 1 != 0;
            let flags = of_result(result, bytes) | when(carry, CF) | when(top(a), OF);
            (result, flags)
        }
        Shift::RightSigned => {
            let signed = i128::from(extend(a, bytes).cast_signed());
            let result = low((signed >> count).cast_unsigned()) & mask(bytes);
            let carry = (signed >> (count - 1)) & 1 != 0;
            (result, of_result(result, bytes) | when(carry, CF))
        }
        Shift::RotateLeft | Shift::RotateRight => {
            let left = match (how, count % bits) {
                (_, 0) => 0,
                (Shift::RotateLeft, by) => by,
                (_, by) => bits - by,
            };
            let turned = wide << left;
            let result = low(turned | (turned >> bits)) & mask(bytes);
            let (carry, overflow) = if how == Shift::RotateLeft {
                (result & 1 != 0, top(result) != (result & 1 != 0))
            } else {
                (top(result), top(result) != top(result << 1))
            };
            let kept = before & STATUS & !(CF | OF);
            (result, kept | when(carry, CF) | when(overflow, OF))
        }
    }
}

/// The lowest 64 bits.
fn low(value: u128) -> u64 {
    u64::try_from(value & u128::from(u64::MAX)).unwrap_or(0)
}

/// Sign extension to 64 bits of an operand of `bytes` bytes.
pub(crate) fn extend(value: u64, bytes: usize) -> u64 {
    let value = value & mask(bytes);
    (value ^ sign(bytes)).wrapping_sub(sign(bytes))
}
