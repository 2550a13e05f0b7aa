//! XOR, and P and Q of RAID 6: piece by piece, all sources of a piece and then its results.
//!
//! Q is a sum in the field of 256 elements with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (H. P.
//! Anvin, "The mathematics of RAID-6"), each source times its coefficient.

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

/// How far a parity operation has come.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    /// Bytes before the piece.
    pub(crate) at: u64,
    /// Differences that a check found.
    pub(crate) error: ChanErr,
    /// The results of the piece, once all sources are in them.
    pub(crate) sums: Vec<&'a [u8]>,
    /// Which of them is being written or checked.
    pub(crate) turn: u8,
    /// Bytes of it that were written.
    pub(crate) done: u64,
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

    /// Most results.
    pub(crate) const MAX_SUMS: usize = 2;
    /// Most bytes of a piece.
    pub(crate) const MAX_PIECE: usize = PIECE as usize;

    /// How far it has come.
    pub(crate) fn progress(&self) -> Progress<'_> {
        let summed = self.turn.checked_sub(self.sources.len());
        let sums = summed.map_or(&[][..], |_| &self.results);
        Progress {
            at: self.at,
            error: self.error,
            sums: sums.iter().map(|sum| sum.bytes.as_slice()).collect(),
            turn: summed.unwrap_or(0) as u8,
            // What a check has read of a result is read again.
            done: match summed {
                Some(_) if !self.check => self.done,
                _ => 0,
            },
        }
    }

    /// Goes on from there. Whether that can be.
    pub(crate) fn resume(&mut self, progress: &Progress<'_>) -> bool {
        let Progress {
            at, error, turn, ..
        } = *progress;
        let allowed = match self.check {
            true => ChanErr::MASKABLE.into_bits(),
            false => 0,
        };
        let starts = progress.sums.is_empty() && turn == 0 && progress.done == 0;
        if at >= self.size || !at.is_multiple_of(PIECE) || error.into_bits() & !allowed != 0 {
            return false;
        }
        (self.at, self.error) = (at, error);
        if starts {
            return true;
        }
        let len = (self.size - at).min(PIECE) as usize;
        let summed = progress.sums.len() == self.results.len()
            && progress.sums.iter().all(|sum| sum.len() == len);
        if !summed || usize::from(turn) >= self.results.len() || progress.done > len as u64 {
            return false;
        }
        for (sum, bytes) in self.results.iter_mut().zip(&progress.sums) {
            sum.bytes = bytes.to_vec();
        }
        self.buffer.resize(len, 0);
        self.turn = self.sources.len() + usize::from(turn);
        self.done = progress.done;
        // What a check has not read of a result is missing from the buffer.
        !self.check || self.done == 0
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
                self.account();
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
    fn account(&mut self) {
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
