//! Stores to all of a BAR.

use std::ops::Range;

use crate::{mapping::Mapping, ram::noise};

/// Stores ones and noise to every place of a BAR: by all of 1, 2, 4 and 8 bytes to its `registers`, by 8
/// bytes behind them. What is in `table`, the interrupts' messages, is put back: a message that goes
/// astray would hit this guest's own kernel.
///
/// Each byte is odd, so that no register of an address points into memory of this guest by chance and
/// is used.
pub(crate) fn stores(bar: &Mapping, registers: usize, table: Range<usize>, seed: u64) -> u64 {
    let table = table.step_by(8);
    let found: Vec<u64> = table.clone().map(|at| bar.load(at, 8)).collect();
    let noise = noise(bar.len(), seed);
    let mut count = 0;
    for width in [1, 2, 4, 8] {
        let end = if width == 8 { bar.len() } else { registers };
        for at in (0..end).step_by(width) {
            let bytes = noise[at..at + width].iter().rev();
            let value = bytes.fold(0, |value, byte| value << 8 | u64::from(byte | 1));
            bar.store(at, width, value);
            count += 1;
            if width >= 4 {
                bar.store(at, width, u64::MAX);
                count += 1;
            }
        }
    }
    for (at, value) in table.zip(found) {
        bar.store(at, 8, value);
    }
    count
}
