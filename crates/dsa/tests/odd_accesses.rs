//! Accesses to BAR0 of every width and alignment against a naive model of it: an array of bytes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_dsa::{
    DsaConfig, DsaDevice,
    spec::{
        registers::{self as reg},
        tables::{GRPCFG_SIZE, WQCFG_SIZE},
    },
};
use ioasid_vfio::DeviceModel;
use proptest::{collection::vec, prelude::*};

const QUEUES: u64 = 4;
const ENGINES: u64 = 2;
/// Past the last entry of the permission table.
const END: usize = reg::MSIXPERM as usize + 0x80;

/// BAR0 as bytes, and which bits of it keep what is written while the device is disabled.
struct Model {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl Model {
    fn new(dsa: &DsaDevice) -> Self {
        let mut bytes = vec![0; END];
        for (at, byte) in (0..).zip(&mut bytes) {
            dsa.read(0, at, std::slice::from_mut(byte));
        }
        let mut model = Model {
            bytes,
            writable: vec![0; END],
        };
        model.keep(reg::GENCFG, &0x30ff_u32.to_le_bytes());
        model.keep(reg::GENCTRL, &7_u32.to_le_bytes());
        model.keep(reg::EVLCFG, &[0xff; 16]);
        model.keep(reg::EVLSTATUS, &0xffff_u32.to_le_bytes());
        for group in 0..ENGINES {
            for quadword in [0, 4, 5] {
                let at = reg::GRPCFG + group * GRPCFG_SIZE + 8 * quadword;
                model.keep(at, &[0xff; 8]);
            }
        }
        for queue in 0..QUEUES {
            let entry = reg::WQCFG + queue * WQCFG_SIZE;
            for (dword, bits) in [(0, 0xffff), (1, 0xffff), (2, 0x3fff_ffff), (3, 0x1ff_u32)] {
                model.keep(entry + 4 * dword, &bits.to_le_bytes());
            }
        }
        for vector in 0..=QUEUES {
            model.keep(reg::MSIXPERM + 8 * vector, &[0xff; 8]);
        }
        model
    }

    fn keep(&mut self, at: u64, bits: &[u8]) {
        self.writable[at as usize..][..bits.len()].copy_from_slice(bits);
    }

    /// Stores of whole dwords alone have an effect.
    fn write(&mut self, offset: usize, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        let whole = data.len() / 4 * 4;
        for (at, value) in (offset..).zip(&data[..whole]) {
            // A new ring is empty.
            if (reg::EVLCFG..reg::EVLSTATUS).contains(&(at as u64)) {
                self.bytes[reg::EVLSTATUS as usize..][..8].fill(0);
            }
            let kept = self.writable[at];
            self.bytes[at] = self.bytes[at] & !kept | value & kept;
        }
    }
}

fn device() -> Arc<DsaDevice> {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6b:01.0");
    new_dsa(&iommu, &device, DsaConfig::with_queues(QUEUES as usize))
}

/// Where something is, and around it.
fn offsets() -> impl Strategy<Value = usize> {
    let places = [
        0..0x140,
        reg::GRPCFG as usize..reg::GRPCFG as usize + 0xc0,
        reg::WQCFG as usize..reg::WQCFG as usize + 0xa0,
        reg::MSIXPERM as usize..END - 16,
    ];
    prop::sample::select(places.to_vec()).prop_flat_map(|place| place)
}

proptest! {
    #[test]
    fn any_access_does_what_an_array_of_bytes_does(
        accesses in vec((any::<bool>(), offsets(), vec(any::<u8>(), 1..=16)), 1..60),
    ) {
        let dsa = device();
        let mut model = Model::new(&dsa);
        let command = reg::CMD as usize..reg::CMD as usize + 4;
        for (write, offset, mut data) in accesses {
            let end = offset + data.len();
            // A command would do more than be stored.
            if write && (end <= command.start || command.end <= offset) {
                dsa.write(0, offset as u64, &data);
                model.write(offset, &data);
            } else {
                dsa.read(0, offset as u64, &mut data);
                prop_assert_eq!(&data, &model.bytes[offset..end], "at {:#x}", offset);
            }
        }
        let mut all = vec![0; END];
        dsa.read(0, 0, &mut all);
        prop_assert!(all == model.bytes);
    }
}
