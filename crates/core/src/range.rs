//! Address ranges. **All ranges in this project are (start, inclusive last)**: the last page of a
//! 64-bit space has no exclusive end.

use std::fmt;

/// A non-empty range of addresses, both ends inclusive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddrRange {
    start: u64,
    last: u64,
}

impl AddrRange {
    /// The whole 64-bit space.
    pub const ALL: AddrRange = AddrRange {
        start: 0,
        last: u64::MAX,
    };

    /// The range from `start` to `last`, both inclusive; `None` if `last < start`.
    pub const fn new(start: u64, last: u64) -> Option<AddrRange> {
        if last < start {
            None
        } else {
            Some(AddrRange { start, last })
        }
    }

    /// The `len` bytes from `start`; `None` if `len` is 0 or the range passes 2^64-1.
    pub const fn from_len(start: u64, len: u64) -> Option<AddrRange> {
        let Some(rest) = len.checked_sub(1) else {
            return None;
        };
        match start.checked_add(rest) {
            Some(last) => Some(AddrRange { start, last }),
            None => None,
        }
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Last address, inclusive.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Number of bytes, saturated at `u64::MAX` for the whole space (whose length is 2^64).
    pub const fn len_saturating(self) -> u64 {
        (self.last - self.start).saturating_add(1)
    }

    /// Whether `address` lies in the range.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address <= self.last
    }

    /// Whether `other` lies wholly in this range.
    pub const fn covers(self, other: AddrRange) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// Whether the two share an address.
    pub const fn overlaps(self, other: AddrRange) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// The addresses in both.
    pub fn intersect(self, other: AddrRange) -> Option<AddrRange> {
        AddrRange::new(self.start.max(other.start), self.last.min(other.last))
    }

    /// Whether start and end lie on a multiple of `align` (a power of two).
    pub const fn is_aligned(self, align: u64) -> bool {
        self.start & (align - 1) == 0 && self.last & (align - 1) == align - 1
    }
}

impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last)
    }
}

impl fmt::Debug for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_of_the_space_is_a_range() {
        let last = AddrRange::from_len(u64::MAX, 1).unwrap();
        assert_eq!((last.start(), last.last()), (u64::MAX, u64::MAX));
        assert_eq!(AddrRange::from_len(u64::MAX, 2), None);
        assert_eq!(AddrRange::from_len(0, 0), None);
        assert_eq!(AddrRange::ALL.len_saturating(), u64::MAX);
    }

    #[test]
    fn overlap_is_symmetric_and_inclusive() {
        let a = AddrRange::new(0, 0xfff).unwrap();
        let b = AddrRange::new(0xfff, 0x1000).unwrap();
        let c = AddrRange::new(0x1000, 0x1fff).unwrap();
        assert!(a.overlaps(b) && b.overlaps(a));
        assert!(!a.overlaps(c) && !c.overlaps(a));
        assert_eq!(a.intersect(b), AddrRange::new(0xfff, 0xfff));
        assert_eq!(a.intersect(c), None);
        assert!(a.is_aligned(0x1000) && !b.is_aligned(0x1000));
    }
}
