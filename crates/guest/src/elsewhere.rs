//! Addresses that are not the guest's.

use anyhow::Result;

use crate::{
    function::Function,
    ram::{self, PAGE},
};

/// The interrupt window of x86.
const INTERRUPTS: u64 = 0xfee0_0000;
/// QEMU's firmware, at the end of the first 4 GiB.
const FIRMWARE: u64 = 0xfffc_0000;

/// Where the guest has nothing, or nothing that it may write.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    /// The end of its memory.
    end: u64,
    /// Its own BAR, which is a device and no memory.
    bar: u64,
}

impl Elsewhere {
    /// In the guest that has `function`.
    ///
    /// # Errors
    /// If the kernel does not tell where its memory ends.
    pub(crate) fn of(function: &Function) -> Result<Self> {
        Ok(Self {
            end: ram::end()?,
            bar: function.bar_address()?,
        })
    }

    /// Where larger guests have memory, devices, the interrupt window, and beyond all that: pages, others
    /// for each `seed`.
    pub(crate) fn nothing(&self, seed: u64) -> impl Iterator<Item = u64> {
        let shift = seed % 16 * PAGE as u64;
        let beyond = (0..24).map(move |index| index * (0x9e_0000 + 0x1000));
        let beyond = beyond.map(move |offset| offset + shift);
        let end = self.end;
        let fixed = [
            self.bar,
            0xfec0_0000,
            0xfed0_0000,
            INTERRUPTS,
            INTERRUPTS + 0x1000,
            INTERRUPTS + 0xf_f000,
            1 << 32,
            1 << 36,
            1 << 40,
            1 << 46,
            1 << 47,
            1 << 52,
            1 << 56,
            0xffff_8880_0000_0000,
            !0xfff,
        ];
        beyond.map(move |offset| end + offset).chain(fixed)
    }

    /// What may be read alone.
    pub(crate) fn read_only(&self) -> impl Iterator<Item = u64> {
        (FIRMWARE..1 << 32).step_by(8 * PAGE)
    }
}
