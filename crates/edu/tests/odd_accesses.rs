//! Accesses to BAR 0 of every width and alignment: registers take 4 bytes at their own offset,
//! those of transfers 8 too, and nothing else has an effect.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use ioasid_core::host::StdSpawner;
use ioasid_edu::{
    Edu,
    spec::{DMA_START, FACTORIAL_INTERRUPT, IDENTIFICATION, offset},
};
use ioasid_vfio::{DeviceModel, EmulatedDma};
use proptest::{collection::vec, prelude::*};

/// What each register reads as.
struct Model(BTreeMap<u64, u64>);

impl Model {
    fn new() -> Self {
        Model(BTreeMap::from([(
            offset::IDENTIFICATION,
            IDENTIFICATION.into(),
        )]))
    }

    fn is_access(at: u64, len: usize) -> bool {
        len == 4 || len == 8 && at >= offset::DMA_SOURCE
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let value = self.0.get(&at).filter(|_| Self::is_access(at, len));
        let mut bytes = value.copied().unwrap_or(0).to_le_bytes().to_vec();
        bytes.resize(len.max(8), 0);
        bytes.truncate(len);
        bytes
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        if !Self::is_access(at, data.len()) {
            return;
        }
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let short = value & u64::from(u32::MAX);
        let interrupts = self.0.get(&offset::INTERRUPT_STATUS).copied().unwrap_or(0);
        let (at, value) = match at {
            offset::LIVENESS => (at, short ^ u64::from(u32::MAX)),
            offset::STATUS => (at, short & u64::from(FACTORIAL_INTERRUPT)),
            offset::INTERRUPT_RAISE => (offset::INTERRUPT_STATUS, interrupts | short),
            offset::INTERRUPT_ACKNOWLEDGE => (offset::INTERRUPT_STATUS, interrupts & !short),
            offset::DMA_SOURCE | offset::DMA_DESTINATION => (at, value),
            offset::DMA_COUNT | offset::DMA_COMMAND => (at, value),
            _ => return,
        };
        self.0.insert(at, value);
    }
}

/// Leaves alone what makes the device's thread work.
fn without_effects(at: u64, data: &mut [u8]) -> bool {
    if at == offset::DMA_COMMAND {
        data[0] &= !(DMA_START as u8);
    }
    at != offset::FACTORIAL
}

proptest! {
    #[test]
    fn an_access_reaches_one_register_whole_or_none(
        accesses in vec((any::<bool>(), 0_u64..0xa8, vec(any::<u8>(), 1..=16)), 1..80),
        aligned in any::<bool>(),
    ) {
        let edu = Edu::emulated(&StdSpawner, EmulatedDma::new()).unwrap();
        let mut model = Model::new();
        for (write, at, mut data) in accesses {
            let at = if aligned { at & !3 } else { at };
            if aligned && data.len() > 4 {
                data.resize(8, 0);
            }
            if write {
                if without_effects(at, &mut data) {
                    edu.write(0, at, &data);
                    model.write(at, &data);
                }
            } else {
                edu.read(0, at, &mut data);
                prop_assert_eq!(&data, &model.read(at, data.len()), "at {:#x}", at);
            }
        }
    }
}
