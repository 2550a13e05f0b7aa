//! Power states of a device as `vfio-pci` shows them, and what its DMA does in them.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::Arc;

use common::{CONFIG, Machine};
use ioasid_core::{Prot, memory::OwnPages};
use ioasid_iommu::{DmaPort, Stop};
use ioasid_iommufd::{Context, MapArgs};
use ioasid_vfio::{DeviceFile, DeviceModel, Error, VfioDevice, error::RegionError};

const OTHER: &str = "0000:6a:02.0";
const IOVA: u64 = 0x4000_0000;
/// Bytes of configuration space that no capability describes.
const SCRATCH: u64 = CONFIG + 0xf0;

fn bound(device: &Arc<VfioDevice>, context: &Arc<Context>) -> Arc<DeviceFile> {
    let file = device.open().unwrap();
    file.bind(context).unwrap();
    file
}

/// File offset of the capability `id`.
fn capability(file: &DeviceFile, id: u8) -> u64 {
    let mut at = 0x34;
    loop {
        let mut byte = [0];
        file.read(CONFIG + at, &mut byte).unwrap();
        let mut header = [0];
        file.read(CONFIG + u64::from(byte[0]), &mut header).unwrap();
        if header[0] == id {
            return CONFIG + u64::from(byte[0]);
        }
        at = u64::from(byte[0]) + 1;
    }
}

fn power(file: &DeviceFile) -> u8 {
    let mut byte = [0];
    file.read(capability(file, 1) + 4, &mut byte).unwrap();
    byte[0] & 3
}

fn set_power(file: &DeviceFile, state: u8) {
    file.write(capability(file, 1) + 4, &[state]).unwrap();
}

fn answers(file: &DeviceFile) -> bool {
    let mut register = [0; 8];
    match (file.read(0, &mut register), file.write(0, &[0; 8])) {
        (Ok(8), Ok(8)) => true,
        (Err(read), Err(write)) => {
            let off = Error::from(RegionError::MemoryDisabled);
            assert_eq!((&read, &write), (&off, &off));
            false
        }
        other => panic!("{other:?}"),
    }
}

/// Whether a request of the device is issued.
fn issues(port: &mut DmaPort) -> bool {
    match port.enter(None).write(IOVA, &[1]).stop {
        None => true,
        Some(Stop::Withheld) => false,
        Some(other) => panic!("{other}"),
    }
}

#[test]
fn every_reset_ends_in_d0() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    let by_config = |file: &DeviceFile| {
        file.write(capability(file, 0x10) + 9, &[0xa8]).unwrap();
    };
    let by_host = |file: &DeviceFile| file.device().reset_by_host();
    let ways: [&dyn Fn(&DeviceFile); 3] = [&|file| file.reset().unwrap(), &by_config, &by_host];
    for reset in ways {
        file.write(CONFIG + 4, &[0x06]).unwrap();
        file.write(SCRATCH, &[7; 4]).unwrap();
        set_power(&file, 3);
        assert!(!answers(&file) && power(&file) == 3);
        reset(&file);
        assert!(answers(&file) && power(&file) == 0);
        let (mut command, mut scratch) = ([0; 2], [0xff; 4]);
        file.read(CONFIG + 4, &mut command).unwrap();
        file.read(SCRATCH, &mut scratch).unwrap();
        assert_eq!(command, [0x06, 0], "saved and restored around it");
        assert_eq!(scratch, [0; 4], "no capability: nobody has saved it");
        assert_eq!(machine.take_journal(), ["reset"]);
    }
}

#[test]
fn d1_and_d2_are_not_there_and_no_soft_reset_keeps_everything() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    file.write(0, &7_u64.to_le_bytes()).unwrap();
    for state in [1, 2] {
        set_power(&file, state);
        assert!(power(&file) == 0 && answers(&file));
    }
    file.write(0, &7_u64.to_le_bytes()).unwrap();
    file.write(CONFIG + 4, &[0x06, 0x04]).unwrap();
    set_power(&file, 3);
    set_power(&file, 0);
    let (mut command, mut register) = ([0; 2], [0; 8]);
    file.read(CONFIG + 4, &mut command).unwrap();
    file.read(0, &mut register).unwrap();
    assert_eq!((command, u64::from_le_bytes(register)), ([0x06, 0x04], 7));
    assert!(machine.take_journal().is_empty(), "not reset");
    // Configuration space answers in D3 too, and its bits count afterwards.
    set_power(&file, 3);
    file.write(CONFIG + 4, &[0x04]).unwrap();
    set_power(&file, 0);
    assert!(!answers(&file));
}

#[test]
fn low_power_takes_the_device_out_of_d3() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    set_power(&file, 3);
    file.enter_low_power(None).unwrap();
    assert!(answers(&file) && power(&file) == 0);
    file.exit_low_power().unwrap();
}

#[test]
fn a_device_issues_what_its_command_register_and_its_power_state_allow() {
    let machine = Machine::new();
    let dma = machine.dma(OTHER);
    let (device, model) = machine.whole(&dma);
    let context = Context::new(&machine.iommu);
    let file = bound(&device, &context);
    let ioas = context.ioas_alloc().unwrap();
    let memory = OwnPages::new(machine.iommu.space(), 4096).unwrap();
    let args = MapArgs::fixed(IOVA, 4096, Prot::RW);
    context.ioas_map(ioas, Arc::new(memory), args).unwrap();
    file.attach(ioas, None).unwrap();
    let mut port = dma.port();
    assert!(!issues(&mut port), "off at first");
    file.write(CONFIG + 4, &[0x06]).unwrap();
    assert!(issues(&mut port));
    file.write(CONFIG + 4, &[0x02]).unwrap();
    assert!(!issues(&mut port));
    file.detach(None).unwrap();
    file.attach(ioas, None).unwrap();
    assert!(!issues(&mut port), "attaching does not let it");
    file.write(CONFIG + 4, &[0x06]).unwrap();
    set_power(&file, 3);
    assert!(!issues(&mut port) && !model.function().bus_master());
    file.reset().unwrap();
    assert!(
        issues(&mut port),
        "the bit is kept by a reset, which ends D3"
    );
    file.close();
    assert!(!issues(&mut port));
    assert_eq!(dma.fault_log().total(), 0, "none of it is a fault");
}

#[test]
fn a_child_issues_what_its_own_bit_allows_and_leaves_its_pasid_clean() {
    let machine = Machine::new();
    let parent = machine.dma(OTHER);
    let context = Context::new(&machine.iommu);
    let ioas = context.ioas_alloc().unwrap();
    let memory = OwnPages::new(machine.iommu.space(), 4096).unwrap();
    let args = MapArgs::fixed(IOVA, 4096, Prot::RW);
    context.ioas_map(ioas, Arc::new(memory), args).unwrap();
    let (device, _) = machine.child(&parent);
    for _ in 0..2 {
        let file = bound(&device, &context);
        file.attach(ioas, None).unwrap();
        let attachments = parent.attachments();
        let pasid = attachments.iter().find_map(|(pasid, _)| *pasid).unwrap();
        let mut port = parent.port();
        let mut issues = || match port.enter(Some(pasid)).write(IOVA, &[1]).stop {
            None => true,
            Some(Stop::Withheld) => false,
            Some(other) => panic!("{other}"),
        };
        assert!(!issues());
        file.write(CONFIG + 4, &[0x06]).unwrap();
        assert!(issues());
        file.write(CONFIG + 4, &[0x02]).unwrap();
        assert!(!issues());
        file.close();
        let fault = parent.port().enter(Some(pasid)).write(IOVA, &[1]).stop;
        assert!(
            matches!(fault, Some(Stop::Fault(_))),
            "nobody's PASID: {fault:?}"
        );
    }
}

#[test]
fn an_access_past_the_end_of_configuration_space_is_refused_as_a_whole() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    assert_eq!(file.check_access(CONFIG, 4096), Ok(()));
    assert_eq!(file.check_access(CONFIG + 4095, 1), Ok(()));
    assert_eq!(file.check_access(CONFIG + 4096, 0), Ok(()));
    for (at, len) in [(0, 4097), (0, 8192), (4095, 2), (4096, 1), (8, u64::MAX)] {
        let refused = file.check_access(CONFIG + at, len);
        let (offset, size) = (at, 4096);
        let beyond = RegionError::BeyondConfig { offset, len, size };
        assert_eq!(refused, Err(beyond.into()));
    }
    assert_eq!(file.check_access(0, 1 << 20), Ok(()), "a BAR cuts it short");
}
