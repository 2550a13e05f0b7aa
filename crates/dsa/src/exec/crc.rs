//! CRC-32C as the CRC Generation operation defines it (specification, section 8.3.12): polynomial
//! 0x11EDC6F41. By default seed and result are inverted and everything is bit-reflected, so that
//! seed 0 gives the common CRC-32C; flags switch both off.

use crate::spec::descriptor::{CRC_BYPASS_INVERSION, CRC_BYPASS_REFLECTION};

const POLYNOMIAL: u32 = 0x1edc_6f41;

/// The remainder of each byte, most significant bit first.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            let carry = value & 1 << 31 != 0;
            value <<= 1;
            if carry {
                value ^= POLYNOMIAL;
            }
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
};

/// A CRC in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crc {
    remainder: u32,
    flags: u8,
}

impl Crc {
    /// Starts from `seed` with the operation-specific flags of the descriptor.
    pub(crate) const fn new(seed: u32, flags: u8) -> Self {
        let remainder = if flags & CRC_BYPASS_INVERSION == 0 {
            (!seed).reverse_bits()
        } else {
            seed
        };
        Crc { remainder, flags }
    }

    /// Goes on from what [`Crc::remainder`] gave.
    pub(crate) const fn resumed(remainder: u32, flags: u8) -> Self {
        Crc { remainder, flags }
    }

    /// What [`Crc::resumed`] goes on from, given the same flags.
    pub(crate) const fn remainder(self) -> u32 {
        self.remainder
    }

    /// Takes in `data`.
    pub(crate) fn update(&mut self, data: &[u8]) {
        let reflect = self.flags & CRC_BYPASS_REFLECTION == 0;
        for byte in data {
            let byte = if reflect { byte.reverse_bits() } else { *byte };
            let index = (self.remainder >> 24) as u8 ^ byte;
            self.remainder = self.remainder << 8 ^ TABLE[usize::from(index)];
        }
    }

    /// The value so far.
    pub(crate) const fn value(self) -> u32 {
        if self.flags & CRC_BYPASS_INVERSION == 0 {
            (!self.remainder).reverse_bits()
        } else {
            self.remainder
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_common_crc32c() {
        let mut crc = Crc::new(0, 0);
        crc.update(b"123456789");
        assert_eq!(crc.value(), 0xe306_9283);
    }

    #[test]
    fn a_value_seeds_its_continuation() {
        let mut whole = Crc::new(0, 0);
        whole.update(b"123456789");
        let mut first = Crc::new(0, 0);
        first.update(b"1234");
        let mut second = Crc::new(first.value(), 0);
        second.update(b"56789");
        assert_eq!(second.value(), whole.value());
    }

    #[test]
    fn without_inversion_and_reflection_it_is_plain_division() {
        let mut crc = Crc::new(0, CRC_BYPASS_INVERSION | CRC_BYPASS_REFLECTION);
        crc.update(&[1]);
        assert_eq!(crc.value(), POLYNOMIAL);
    }
}
