//! XOR, and P and Q of RAID 6: piece by piece, all sources of a piece and then its results.
//!
//! Q is a sum in the field of 256 elements with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (H. P. Anvin,
//! "The mathematics of RAID-6"), each source times its coefficient.

use ioasid_iommu::DmaGuard;

use super::Failure;
use crate::spec::{ChanErr, Descriptor, Opcode};

/// Bytes of a piece: all sources and results of one fit what a guard allows for reads and writes.
const PIECE: u64 = 4 << 10;
/// The polynomial, less x^8.
const POLYNOMIAL: u8 = 0x1d;

/// A parity operation under way.
#[derive(Debug)]
pub(crate) struct Parity {
    sources: Vec<Source>,
    results: Vec<Sum>,
    /// The results are compared with what is there.
    check: bool,
    size: u64,
    /// Bytes before the piece.
    at: u64,
    /// Which source comes next in the piece, then which result.
    turn: usize,
    /// Bytes that are done of that one.
    done: u64,
    buffer: Vec<u8>,
    /// Differences that a check found.
    error: ChanErr,
}

#[derive(Debug)]
struct Source {
    address: u64,
    /// Every byte times the coefficient.
    products: Box<[u8; 256]>,
}

/// P or Q of one piece.
#[derive(Debug)]
struct Sum {
    address: u64,
    /// Sources are multiplied by their coefficients.
    weighted: bool,
    bytes: Vec<u8>,
}

/// The product in the field.
fn product(mut a: u8, mut b: u8) -> u8 {
    let mut sum = 0;
    while b != 0 {
        if b & 1 != 0 {
            sum ^= a;
        }
        let carry = a & 0x80 != 0;
        a <<= 1;
        if carry {
            a ^= POLYNOMIAL;
        }
        b >>= 1;
    }
    sum
}

impl Parity {
    /// The operation of a descriptor that has been checked.
    pub(crate) fn new(op: Opcode, descriptor: &Descriptor, extension: &Descriptor) -> Self {
        let sources = (0..descriptor.source_count())
            .filter_map(|index| descriptor.source_at(op, extension, index))
            .map(|(address, coefficient)| Source {
                address,
                products: Box::new(std::array::from_fn(|byte| product(byte as u8, coefficient))),
            });
        let control = descriptor.control();
        let two = matches!(op, Opcode::Pq | Opcode::PqVal);
        let sum = |address, weighted| Sum {
            address,
            weighted,
            bytes: Vec::new(),
        };
        let p = (!two || !control.p_disable()).then(|| sum(descriptor.destination(), false));
        let q = (two && !control.q_disable()).then(|| sum(descriptor.q_address(), true));
        Parity {
            sources: sources.collect(),
            results: p.into_iter().chain(q).collect(),
            check: matches!(op, Opcode::XorVal | Opcode::PqVal),
            size: descriptor.size().into(),
            at: 0,
            turn: 0,
            done: 0,
            buffer: Vec::new(),
            error: ChanErr::new(),
        }
    }

    /// Goes on to the end of the transfer, or as far as the guard goes.
    pub(crate) fn run(&mut self, moved: &mut u64, guard: &mut DmaGuard<'_>) -> Result<(), Failure> {
        while self.at < self.size {
            let len = (self.size - self.at).min(PIECE);
            if self.turn == 0 && self.done == 0 {
                self.buffer.resize(len as usize, 0);
                for sum in &mut self.results {
                    sum.bytes.clear();
                    sum.bytes.resize(len as usize, 0);
                }
            }
            while self.turn < self.sources.len() + self.results.len() {
                let before = self.done;
                let stopped = self.transfer(guard);
                *moved += self.done - before;
                stopped?;
                self.settle();
                (self.turn, self.done) = (self.turn + 1, 0);
            }
            self.turn = 0;
            self.at += len;
        }
        match self.error.into_bits() {
            0 => Ok(()),
            _ => Err(Failure::Error(self.error)),
        }
    }

    /// Moves the bytes of the turn.
    fn transfer(&mut self, guard: &mut DmaGuard<'_>) -> Result<(), Failure> {
        let Parity {
            sources, results, ..
        } = self;
        if let Some(source) = sources.get(self.turn) {
            let at = source.address.wrapping_add(self.at);
            guard.read_on(at, &mut self.buffer, &mut self.done)?;
        } else if let Some(sum) = results.get(self.turn - sources.len()) {
            let at = sum.address.wrapping_add(self.at);
            match self.check {
                true => guard.read_on(at, &mut self.buffer, &mut self.done)?,
                false => guard.write_on(at, &sum.bytes, &mut self.done)?,
            }
        }
        Ok(())
    }

    /// Takes the bytes of the turn into account.
    fn settle(&mut self) {
        if let Some(source) = self.sources.get(self.turn) {
            for sum in &mut self.results {
                for (to, byte) in sum.bytes.iter_mut().zip(&self.buffer) {
                    *to ^= match sum.weighted {
                        true => source.products[usize::from(*byte)],
                        false => *byte,
                    };
                }
            }
        } else if self.check
            && let Some(sum) = self.results.get(self.turn - self.sources.len())
            && sum.bytes != self.buffer
        {
            match sum.weighted {
                true => self.error.set_xor_q(true),
                false => self.error.set_xor_p_or_crc(true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::product;

    #[test]
    fn two_generates_the_field() {
        let mut power = 1;
        let mut seen = [false; 256];
        for _ in 0..255 {
            assert!(!std::mem::replace(&mut seen[usize::from(power)], true));
            power = product(power, 2);
        }
        assert_eq!(power, 1);
    }

    #[test]
    fn products_are_those_of_raid_6() {
        assert_eq!(product(0x80, 2), 0x1d);
        assert_eq!(product(7, 1), 7);
        assert_eq!(product(0xff, 0), 0);
        assert_eq!(product(3, 7), 9);
    }
}
