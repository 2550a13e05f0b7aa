//! The virtual functions of a physical one, as its configuration space shows them.

use super::{
    function::{Function, set_masked},
    layout::{Bar, SriovLayout},
    spec,
};

impl Function {
    /// The virtual functions that it can have.
    pub fn sriov(&self) -> Option<SriovLayout> {
        self.sriov.map(|(_, layout)| layout)
    }

    /// Shows that `count` virtual functions are there. With any, the function stays in D0.
    pub fn show_virtual_functions(&self, count: u16) {
        let Some((offset, _)) = self.sriov else {
            return;
        };
        let mut config = self.config.lock();
        config.keeps_awake = count > 0;
        let control = if count > 0 { spec::SRIOV_ENABLED } else { 0 };
        for (at, value) in [
            (offset + spec::SRIOV_CONTROL, control),
            (offset + spec::SRIOV_COUNT, count),
        ] {
            for (at, byte) in (at..).zip(value.to_le_bytes()) {
                set_masked(&mut config.values, at, byte, 0xff);
                set_masked(&mut config.initial, at, byte, 0xff);
            }
        }
        drop(config);
        self.watchers.report();
    }

    /// Puts the BARs of all virtual functions at host addresses from `base` up, and returns the first one
    /// after them. Those of one BAR follow one another by its size.
    pub(super) fn assign_virtual_bars(&self, base: u64) -> u64 {
        let Some((offset, layout)) = self.sriov else {
            return base;
        };
        let mut next = base;
        let mut config = self.config.lock();
        for (index, bar) in layout.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let Some(address) = next.checked_next_multiple_of(bar.size) else {
                break;
            };
            next = address.saturating_add(bar.size * u64::from(layout.total));
            let width = if bar.is_64bit { 8 } else { 4 };
            let bytes = (address | u64::from(bar.flags())).to_le_bytes();
            let at = offset + spec::SRIOV_BAR0 + 4 * index;
            for (at, byte) in (at..).zip(bytes).take(width) {
                set_masked(&mut config.values, at, byte, 0xff);
                set_masked(&mut config.initial, at, byte, 0xff);
            }
        }
        next
    }

    /// Where BAR `index` of the first virtual function is, and one such BAR.
    pub fn virtual_bar(&self, index: u8) -> Option<(u64, Bar)> {
        let (offset, layout) = self.sriov?;
        let bar = layout.bars.get(usize::from(index)).copied().flatten()?;
        let config = self.config.lock();
        let at = offset + spec::SRIOV_BAR0 + 4 * usize::from(index);
        let bytes = config.initial.get(at..)?.first_chunk()?;
        let address = match bar.is_64bit {
            true => u64::from_le_bytes(*bytes),
            false => u64::from_le_bytes(*bytes) & u64::from(u32::MAX),
        };
        Some((address & !0xf, bar))
    }
}
