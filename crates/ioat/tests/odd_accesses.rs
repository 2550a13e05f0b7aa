//! Accesses to BAR0 of every width and alignment against a naive model of it: an array of bytes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_ioat::{
    IoatDevice,
    spec::{
        ChanCtrl,
        registers::{self as reg, CHANNEL_STRIDE},
    },
};
use ioasid_vfio::DeviceModel;
use proptest::{collection::vec, prelude::*};

const CHANNELS: usize = 3;
/// Bytes of a block: of the general registers, and of each channel.
const BLOCK: usize = CHANNEL_STRIDE as usize;
const END: usize = (CHANNELS + 2) * BLOCK;
const INTRCTRL: usize = reg::INTRCTRL as usize;

/// BAR0 as bytes, and which bits of it keep what is written while no channel has anything to do.
struct Model {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl Model {
    fn new(ioat: &IoatDevice) -> Self {
        let mut bytes = vec![0; END];
        for (at, byte) in (0..).zip(&mut bytes) {
            ioat.read(0, at, std::slice::from_mut(byte));
        }
        let mut model = Model {
            bytes,
            writable: vec![0; END],
        };
        model.keep(reg::INTRCTRL, &[0x09]);
        model.keep(reg::INTRDELAY, &0x3fff_u16.to_le_bytes());
        for channel in 1..=CHANNELS as u64 {
            let block = channel * CHANNEL_STRIDE;
            model.keep(block + reg::CHANCTRL, &ChanCtrl::KEPT.to_le_bytes());
            model.keep(block + reg::CHAINADDR, &[0xff; 8]);
            model.keep(block + reg::CHANCMP, &[0xff; 8]);
            model.keep(block + reg::CHANERRMSK, &[0xff; 4]);
            model.keep(block + reg::DCACTRL, &[0xff; 4]);
        }
        model
    }

    fn keep(&mut self, at: u64, bits: &[u8]) {
        self.writable[at as usize..][..bits.len()].copy_from_slice(bits);
    }

    /// What of an access of `len` bytes reaches the block of its first byte; the rest is nothing.
    fn inside(offset: usize, len: usize) -> usize {
        len.min(BLOCK - offset % BLOCK)
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let data = &data[..Self::inside(offset, data.len())];
        let (block, at) = (offset / BLOCK * BLOCK, offset % BLOCK);
        for (at, value) in (offset..).zip(data) {
            let kept = self.writable[at];
            self.bytes[at] = self.bytes[at] & !kept | value & kept;
        }
        let chain = reg::CHAINADDR as usize;
        let is_channel = (1..=CHANNELS).contains(&(offset / BLOCK));
        if is_channel && at < chain + 8 && chain < at + data.len() {
            // The channel is armed, its next descriptor is the first one.
            let next = self.bytes[block + chain..][..8].to_vec();
            self.bytes[block + reg::CDAR as usize..][..8].copy_from_slice(&next);
            self.bytes[block + reg::CHANSTS as usize] = 4;
        }
    }

    fn read(&mut self, offset: usize, len: usize) -> Vec<u8> {
        let inside = Self::inside(offset, len);
        let mut data = self.bytes[offset..offset + inside].to_vec();
        data.resize(len, 0);
        if (offset..offset + inside).contains(&INTRCTRL) {
            self.bytes[INTRCTRL] &= !1;
        }
        data
    }
}

fn device() -> Arc<IoatDevice> {
    new_ioat(&new_iommu(), "0000:6b:01.0", CHANNELS)
}

/// Leaves the command and the count of a channel alone: they would do more than be stored.
fn without_effects(offset: usize, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(data) {
        let register = (at % BLOCK) as u64;
        let command = register == reg::CHANCMD;
        if at >= BLOCK && (command || (reg::DMACOUNT..reg::DMACOUNT + 2).contains(&register)) {
            *byte = 0;
        }
        // Nor is an interrupt rearmed or asked for.
        if at >= BLOCK && register == reg::CHANCTRL {
            *byte &= !1;
        }
    }
}

proptest! {
    #[test]
    fn any_access_does_what_an_array_of_bytes_does(
        accesses in vec((any::<bool>(), 0..END - 16, vec(any::<u8>(), 1..=16)), 1..60),
    ) {
        let ioat = device();
        let mut model = Model::new(&ioat);
        for (write, offset, mut data) in accesses {
            if write {
                without_effects(offset, &mut data);
                ioat.write(0, offset as u64, &data);
                model.write(offset, &data);
            } else {
                ioat.read(0, offset as u64, &mut data);
                let expected = model.read(offset, data.len());
                prop_assert_eq!(&data, &expected, "at {:#x}", offset);
            }
        }
        for block in (0..END).step_by(BLOCK) {
            let mut all = vec![0; BLOCK];
            ioat.read(0, block as u64, &mut all);
            prop_assert_eq!(all, model.read(block, BLOCK));
        }
    }
}
