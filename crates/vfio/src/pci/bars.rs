//! Where the BARs of a function are.

use super::{
    function::{Config, Function, set_masked},
    spec,
};

impl Function {
    /// Puts the BARs at host addresses from `base` up, each aligned to its size, in the order of
    /// their indexes, and those of virtual functions after them. Returns the first address after all.
    pub fn assign_bars(&self, base: u64) -> u64 {
        let mut next = base;
        for (index, bar) in (0..).zip(&self.bars) {
            let Some(bar) = bar else { continue };
            let Some(address) = next.checked_next_multiple_of(bar.size) else {
                break;
            };
            next = address.saturating_add(bar.size);
            self.assign_bar(index, address);
        }
        self.assign_virtual_bars(next)
    }

    /// Puts BAR `index` at the host address `address`.
    pub fn assign_bar(&self, index: u8, address: u64) {
        let Some(bar) = self.bar(index) else { return };
        let mut config = self.config.lock();
        let Config {
            values, initial, ..
        } = &mut *config;
        let offset = spec::BAR0 + 4 * usize::from(index);
        let width = if bar.is_64bit { 8 } else { 4 };
        for (byte, value) in address.to_le_bytes().into_iter().take(width).enumerate() {
            let mask = self.writable[offset + byte];
            for image in [&mut *values, &mut *initial] {
                set_masked(image, offset + byte, value, mask);
            }
        }
    }

    /// The address that BAR `index` was given by [`Function::assign_bars`], or 0.
    pub fn bar_address(&self, index: u8) -> u64 {
        let Some(bar) = self.bar(index) else { return 0 };
        let config = self.config.lock();
        let offset = spec::BAR0 + 4 * usize::from(index);
        let mut bytes = [0; 8];
        let width = if bar.is_64bit { 8 } else { 4 };
        if let (Some(to), Some(from)) = (
            bytes.get_mut(..width),
            config.initial.get(offset..offset + width),
        ) {
            to.copy_from_slice(from);
        }
        u64::from_le_bytes(bytes) & !0xf
    }
}
