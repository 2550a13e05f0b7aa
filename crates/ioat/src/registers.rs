//! BAR0: an owner's general registers and the blocks of its channels. Accesses of every width reach
//! them, also parts of a register; none reaches past the end of a block.

use ioasid_core::regmap::RegBlocks;

use crate::{
    channel::Channel,
    config::MAX_TRANSFER_SHIFT,
    endpoint::Endpoint,
    spec::{
        DmaCap,
        map::{CHANNEL, Chan, GENERAL, General},
        registers::{self as reg, CHANNEL_STRIDE},
    },
};

/// The blocks of channels.
const CHANNELS: RegBlocks = RegBlocks {
    base: CHANNEL_STRIDE,
    stride: CHANNEL_STRIDE,
};

/// One owner's registers.
pub(crate) trait Registers {
    /// General registers and interrupts.
    fn endpoint(&self) -> &Endpoint;
    /// Number of channels.
    fn channels(&self) -> usize;
    /// Shows channel `index` to `read`, or one as after power-up where it is not the owner's.
    fn read_channel(&self, index: usize, read: impl FnOnce(&Channel));
    /// Writes the bits in `mask` of a register of channel `index`.
    fn write_channel(&self, index: usize, register: Chan, value: u64, mask: u64);
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
    CHANNELS
        .find(offset)
        .filter(|(index, _)| *index < file.channels())
}

/// Reads the bytes of one block.
pub(crate) fn read(file: &impl Registers, offset: u64, data: &mut [u8]) {
    if let Some((index, at)) = place(file, offset) {
        file.read_channel(index, |channel| {
            CHANNEL.read(at, data, |register| channel.read(register));
        });
    } else if offset < reg::GENERAL_END {
        GENERAL.read(offset, data, |register| read_general(file, register));
    } else {
        data.fill(0);
    }
}

/// Reading INTRCTRL has an effect.
fn read_general(file: &impl Registers, register: General) -> u64 {
    let endpoint = file.endpoint();
    match register {
        General::ChanCnt => file.channels() as u64,
        General::XferCap => MAX_TRANSFER_SHIFT.into(),
        General::IntrCtrl => endpoint.read_interrupts().into(),
        General::AttnStatus => endpoint.attention().into(),
        General::CbVer => reg::VERSION.into(),
        General::IntrDelay => endpoint.delay().into(),
        General::DmaCap => capabilities().into_bits().into(),
    }
}

/// Writes the bytes of one block.
pub(crate) fn write(file: &impl Registers, offset: u64, data: &[u8]) {
    if let Some((index, at)) = place(file, offset) {
        CHANNEL.write(at, data, |register, value, mask| {
            file.write_channel(index, register, value, mask);
        });
    } else if offset < reg::GENERAL_END {
        let endpoint = file.endpoint();
        GENERAL.write(offset, data, |register, value, mask| match register {
            General::IntrCtrl => endpoint.set_interrupts(value as u8),
            General::IntrDelay => {
                let old = u64::from(endpoint.delay());
                endpoint.set_delay((old & !mask | value) as u16);
            }
            _ => {}
        });
    }
}
