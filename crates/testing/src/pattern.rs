//! Bytes to compare.

/// `len` bytes that differ from seed to seed and from place to place, the same in every run
/// (xorshift64, Marsaglia 2003).
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn patterns_differ_by_seed_and_by_place() {
        let first = pattern(4096, 1);
        assert_eq!(first, pattern(4096, 1));
        assert_ne!(first, pattern(4096, 2));
        assert_ne!(first[..2048], first[2048..]);
    }
}
