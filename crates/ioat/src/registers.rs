//! BAR0: an owner's general registers and the blocks of its channels. Accesses of every width reach
//! them, also parts of a register.

use crate::{
    config::MAX_TRANSFER_SHIFT,
    front::Front,
    spec::{
        DmaCap,
        registers::{self as reg, CHANNEL_STRIDE},
    },
};

/// Registers of a channel that can be written: offset and width in bytes, in the order in which a
/// wide store reaches them.
const WRITABLE: [(u64, u64); 8] = [
    (reg::CHANCTRL, 2),
    (reg::CHANCMD, 1),
    (reg::DMACOUNT, 2),
    (reg::CHAINADDR, 8),
    (reg::CHANCMP, 8),
    (reg::CHANERR, 4),
    (reg::CHANERRMSK, 4),
    (reg::DCACTRL, 4),
];

/// One owner's registers.
pub(crate) trait Registers {
    /// General registers and interrupts.
    fn front(&self) -> &Front;
    /// Number of channels.
    fn channels(&self) -> usize;
    /// The registers of channel `index` as bytes.
    fn channel_image(&self, index: usize) -> [u8; CHANNEL_STRIDE as usize];
    /// Writes the bits in `mask` of a register of channel `index`.
    fn write_channel(&self, index: usize, register: u64, value: u64, mask: u64);
}

/// What the model can do.
pub(crate) fn capabilities() -> DmaCap {
    DmaCap::new()
        .with_fill_block(true)
        .with_xor(true)
        .with_pq(true)
}

/// The channel that `offset` belongs to, and the place in its block.
fn place(file: &impl Registers, offset: u64) -> Option<(usize, u64)> {
    let index = usize::try_from((offset / CHANNEL_STRIDE).checked_sub(1)?).ok()?;
    (index < file.channels()).then_some((index, offset % CHANNEL_STRIDE))
}

/// Reads bytes that do not pass the end of a block.
pub(crate) fn read(file: &impl Registers, offset: u64, data: &mut [u8]) {
    let (image, at) = match place(file, offset) {
        Some((index, at)) => (file.channel_image(index), at),
        None if offset < reg::GENERAL_END => {
            let end = offset.saturating_add(data.len() as u64);
            let reads_intrctrl = offset <= reg::INTRCTRL && reg::INTRCTRL < end;
            (general_image(file, reads_intrctrl), offset)
        }
        None => ([0; CHANNEL_STRIDE as usize], 0),
    };
    data.fill(0);
    let from = image.get(at as usize..).unwrap_or_default();
    for (byte, value) in data.iter_mut().zip(from) {
        *byte = *value;
    }
}

/// The general registers as bytes. Reading INTRCTRL has an effect.
fn general_image(file: &impl Registers, reads_intrctrl: bool) -> [u8; CHANNEL_STRIDE as usize] {
    let front = file.front();
    let mut image = [0; CHANNEL_STRIDE as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(reg::CHANCNT, &[file.channels() as u8]);
    put(reg::XFERCAP, &[MAX_TRANSFER_SHIFT]);
    if reads_intrctrl {
        put(reg::INTRCTRL, &[front.read_interrupts()]);
    }
    put(reg::ATTNSTATUS, &front.attention().to_le_bytes());
    put(reg::CBVER, &[reg::VERSION]);
    put(reg::INTRDELAY, &front.delay().to_le_bytes());
    put(
        reg::DMACAPABILITY,
        &capabilities().into_bits().to_le_bytes(),
    );
    image
}

/// Writes bytes that do not pass the end of a block.
pub(crate) fn write(file: &impl Registers, offset: u64, data: &[u8]) {
    if let Some((index, at)) = place(file, offset) {
        for (register, width) in WRITABLE {
            if let Some((value, mask)) = part(register, width, at, data) {
                file.write_channel(index, register, value, mask);
            }
        }
    } else if offset < reg::GENERAL_END {
        if let Some((value, _)) = part(reg::INTRCTRL, 1, offset, data) {
            file.front().set_interrupts(value as u8);
        }
        if let Some((value, mask)) = part(reg::INTRDELAY, 2, offset, data) {
            let old = u64::from(file.front().delay());
            file.front().set_delay((old & !mask | value) as u16);
        }
    }
}

/// What of a store of `data` at `offset` falls on a register: value and mask.
fn part(register: u64, width: u64, offset: u64, data: &[u8]) -> Option<(u64, u64)> {
    let (mut value, mut mask) = (0, 0);
    for (byte, at) in data.iter().zip(offset..) {
        if (register..register + width).contains(&at) {
            let shift = 8 * (at - register);
            value |= u64::from(*byte) << shift;
            mask |= 0xff << shift;
        }
    }
    (mask != 0).then_some((value, mask))
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn a_store_reaches_the_part_of_a_register_that_it_covers() {
        assert_eq!(
            part(0x10, 8, 0x14, &[1, 2, 3, 4]),
            Some((0x0403_0201 << 32, 0xffff_ffff << 32))
        );
        assert_eq!(part(0x04, 1, 0x00, &[0; 4]), None);
        assert_eq!(
            part(0x06, 2, 0x00, &[0, 0, 0, 0, 0, 0, 7, 1]),
            Some((0x107, 0xffff))
        );
    }
}
