//! Register files: which registers an access of any width and alignment touches, and which bytes of
//! each.
//!
//! A device describes its registers once, as a table; [`RegMap`] splits accesses that straddle them
//! and merges the parts of one. What a register does is the device's business: it is asked for
//! whole values and told values with masks. Registers are little-endian, as those of PCI devices
//! are.
//!
//! ```
//! use ioasid_core::regmap::{RegMap, Register};
//!
//! #[derive(Clone, Copy, PartialEq)]
//! enum Reg {
//!     Id,
//!     Control,
//! }
//! static MAP: RegMap<Reg> = RegMap::new(&[
//!     Register::read_only(0x0, 4, Reg::Id),
//!     Register::read_write(0x8, 8, Reg::Control),
//! ]);
//!
//! let mut data = [0xff; 2];
//! MAP.read(0x3, &mut data, |_| 0x1234_5678);
//! assert_eq!(data, [0x12, 0], "the last byte of the id, and a gap");
//!
//! let mut control = 0;
//! MAP.write(0xc, &[7], |_, value, mask| control = control & !mask | value);
//! assert_eq!(control, 7 << 32);
//! ```

use std::ops::Range;

/// What software may do with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegAccess {
    /// Stores have no effect.
    ReadOnly,
    /// Reads as 0.
    WriteOnly,
    /// Both.
    ReadWrite,
}

/// One register.
#[derive(Clone, Copy, Debug)]
pub struct Register<R> {
    /// The device's name for it.
    pub name: R,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes, 1..=8.
    pub width: u64,
    /// What software may do with it.
    pub access: RegAccess,
}

impl<R> Register<R> {
    /// A register that stores do not change.
    pub const fn read_only(offset: u64, width: u64, name: R) -> Self {
        Self::new(offset, width, RegAccess::ReadOnly, name)
    }

    /// A register that reads as 0.
    pub const fn write_only(offset: u64, width: u64, name: R) -> Self {
        Self::new(offset, width, RegAccess::WriteOnly, name)
    }

    /// A register that can be read and written.
    pub const fn read_write(offset: u64, width: u64, name: R) -> Self {
        Self::new(offset, width, RegAccess::ReadWrite, name)
    }

    const fn new(offset: u64, width: u64, access: RegAccess, name: R) -> Self {
        Register {
            name,
            offset,
            width,
            access,
        }
    }
}

/// The registers of a file, or of one block of it, in the order of their offsets.
#[derive(Clone, Copy, Debug)]
pub struct RegMap<R: 'static> {
    registers: &'static [Register<R>],
}

impl<R: Copy> RegMap<R> {
    /// A map of `registers`. In a `static` or `const`, a wrong table does not compile.
    ///
    /// # Panics
    /// If they overlap, are not in the order of their offsets, or are not 1 to 8 bytes wide.
    pub const fn new(registers: &'static [Register<R>]) -> Self {
        let mut end = 0;
        let mut index = 0;
        while index < registers.len() {
            let (offset, width) = (registers[index].offset, registers[index].width);
            assert!(width >= 1 && width <= 8, "a register has 1 to 8 bytes");
            assert!(offset >= end, "registers are in order and do not overlap");
            end = offset + width;
            index += 1;
        }
        RegMap { registers }
    }

    /// The register that starts at `offset`, if there is one.
    pub fn starting_at(&self, offset: u64) -> Option<&'static Register<R>> {
        let found = self
            .registers
            .binary_search_by_key(&offset, |register| register.offset);
        self.registers.get(found.ok()?)
    }

    /// Fills `data` with the bytes from `offset` on. `read` is called once for each register that
    /// can be read and of which a byte is wanted, in order; what is no register reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8], mut read: impl FnMut(R) -> u64) {
        data.fill(0);
        for register in self.touched(offset, data.len()) {
            if register.access == RegAccess::WriteOnly {
                continue;
            }
            let bytes = read(register.name).to_le_bytes();
            let bytes = bytes.iter().take(register.width as usize);
            for (byte, at) in bytes.zip(register.offset..) {
                let place = at
                    .checked_sub(offset)
                    .and_then(|at| usize::try_from(at).ok());
                if let Some(place) = place.and_then(|place| data.get_mut(place)) {
                    *place = *byte;
                }
            }
        }
    }

    /// Stores `data` from `offset` on. `write` is called once for each register that can be written
    /// and that a byte falls on, in order, with the value and the mask of those bytes; the rest of
    /// the value is 0.
    pub fn write(&self, offset: u64, data: &[u8], mut write: impl FnMut(R, u64, u64)) {
        for register in self.touched(offset, data.len()) {
            if register.access == RegAccess::ReadOnly {
                continue;
            }
            let (mut value, mut mask) = (0, 0);
            for shift in 0..register.width {
                let at = (register.offset + shift).checked_sub(offset);
                let at = at.and_then(|at| usize::try_from(at).ok());
                if let Some(byte) = at.and_then(|at| data.get(at)) {
                    value |= u64::from(*byte) << (8 * shift);
                    mask |= 0xff << (8 * shift);
                }
            }
            write(register.name, value, mask);
        }
    }

    /// The registers of which a byte lies in the `len` bytes from `offset` on.
    fn touched(&self, offset: u64, len: usize) -> &'static [Register<R>] {
        let end = offset.saturating_add(len as u64);
        let registers = self.registers;
        let first = registers.partition_point(|one| one.offset + one.width <= offset);
        let behind = match len {
            0 => first,
            _ => registers.partition_point(|one| one.offset < end),
        };
        registers.get(first..behind).unwrap_or_default()
    }
}

/// Equal blocks of registers, one behind the other: a table with an entry each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegBlocks {
    /// Offset of the first.
    pub base: u64,
    /// Bytes of one.
    pub stride: u64,
}

impl RegBlocks {
    /// The block that `offset` belongs to, and the place in it; `None` before the first.
    pub fn find(&self, offset: u64) -> Option<(usize, u64)> {
        let at = offset.checked_sub(self.base)?;
        let index = usize::try_from(at.checked_div(self.stride)?).ok()?;
        Some((index, at % self.stride))
    }
}

/// Splits an access of `len` bytes from `offset` on at the multiples of `unit`: where each part
/// starts, and which of the bytes it is.
pub fn split(offset: u64, len: usize, unit: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0_usize;
    std::iter::from_fn(move || {
        let start = offset.checked_add(done as u64)?;
        let room = unit - start.checked_rem(unit)?;
        let end = done.saturating_add(usize::try_from(room).unwrap_or(usize::MAX));
        let part = done..end.min(len);
        done = part.end;
        (!part.is_empty()).then_some((start, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_split_lies_in_one_unit() {
        let parts: Vec<_> = split(0x1e, 13, 8).collect();
        assert_eq!(parts, [(0x1e, 0..2), (0x20, 2..10), (0x28, 10..13)]);
        assert_eq!(split(5, 0, 8).count(), 0);
        assert_eq!(split(u64::MAX, 4, 8).count(), 1, "nothing lies behind");
    }

    static MAP: RegMap<char> = RegMap::new(&[
        Register::read_only(0, 1, 'a'),
        Register::read_write(1, 2, 'b'),
        Register::write_only(4, 4, 'c'),
        Register::read_write(8, 8, 'd'),
    ]);

    #[test]
    fn an_access_that_straddles_registers_reaches_each_once() {
        let mut seen = Vec::new();
        let mut data = [0xee; 12];
        MAP.read(0, &mut data, |name| {
            seen.push(name);
            0x8877_6655_4433_2211
        });
        assert_eq!(seen, ['a', 'b', 'd']);
        assert_eq!(
            data,
            [0x11, 0x11, 0x22, 0, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44]
        );
        let mut seen = Vec::new();
        MAP.write(2, &[1, 2, 3, 4, 5, 6, 7], |name, value, mask| {
            seen.push((name, value, mask));
        });
        assert_eq!(
            seen,
            [
                ('b', 0x0100, 0xff00),
                ('c', 0x0605_0403, 0xffff_ffff),
                ('d', 0x07, 0xff)
            ]
        );
    }

    #[test]
    fn only_the_start_of_a_register_names_it() {
        assert_eq!(MAP.starting_at(4).map(|register| register.name), Some('c'));
        assert!(MAP.starting_at(5).is_none() && MAP.starting_at(3).is_none());
    }

    #[test]
    fn an_access_at_the_end_of_all_addresses_reaches_nothing() {
        let mut data = [1; 8];
        MAP.read(u64::MAX - 3, &mut data, |_| unreachable!());
        assert_eq!(data, [0; 8]);
        MAP.write(u64::MAX, &data, |_, _, _| unreachable!());
    }

    #[test]
    fn blocks_are_counted_from_their_base() {
        let blocks = RegBlocks {
            base: 0x80,
            stride: 0x20,
        };
        assert_eq!(blocks.find(0x7f), None);
        assert_eq!(blocks.find(0x80), Some((0, 0)));
        assert_eq!(blocks.find(0xc5), Some((2, 5)));
    }
}
