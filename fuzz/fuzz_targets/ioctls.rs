//! Raw bytes as a program: ioctls on `/dev/iommu`, reads and writes of its event files, and the attach
//! commands of three devices (a plain one, a child at its own PASID, one with a back end).
//!
//! An input is a row of steps of [`STEP`] bytes: what to do, a byte for it, and a struct. Whatever they
//! are, there is an answer, and when the file closes nothing is left behind.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use std::{cell::RefCell, sync::Arc};

use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::{BoundDevice, MmapRequest, ObjectId, PageFault};
use ioasid_uapi::{iommufd::COMMANDS, spec::container};
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/uapi/tests/iommufd/backend.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod backend;
#[path = "../../crates/uapi/tests/iommufd/machine.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod machine;

use machine::{BASE, DATA, Machine, PAGE, READ_ONLY};

/// Bytes of a step: two, and the largest struct.
const STEP: usize = 2 + 48;
/// Steps of one input that are run.
const STEPS: usize = 64;

thread_local! {
    /// One machine for all inputs: an empty one is large.
    static IOMMU: RefCell<Arc<Iommu>> = RefCell::new(Iommu::new(IommuConfig::default()));
}

const CONTAINER: [u32; 6] = [
    container::GET_API_VERSION,
    container::CHECK_EXTENSION,
    container::SET_IOMMU,
    container::IOMMU_GET_INFO,
    container::IOMMU_MAP_DMA,
    container::IOMMU_UNMAP_DMA,
];

/// A number of the program, 0 where it has none.
fn word(bytes: &[u8], index: usize) -> u32 {
    let bytes = bytes.get(index * 4..index * 4 + 4);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()))
}

/// Where the struct lies: mostly where the program has put it.
fn address(how: u8, len: usize) -> u64 {
    match how {
        0..=239 => BASE,
        240..=247 => READ_ONLY - u64::from(how - 240),
        248..=251 => BASE + machine::SIZE as u64 - len as u64,
        _ => u64::from(how) << 56,
    }
}

fn ioctl(m: &Machine, command: u8, how: u8, bytes: &[u8]) {
    let command = &COMMANDS[usize::from(command) % COMMANDS.len()];
    // The size is right unless the program insists on its own.
    if how % 16 != 15 {
        m.put(BASE, &(command.size as u32).to_ne_bytes());
    }
    let _ = m.at(command.request, address(how, bytes.len()));
}

fn on_device(devices: &mut [Option<BoundDevice>; 3], m: &Machine, how: u8, bytes: &[u8]) {
    let number = usize::from(how) % devices.len();
    let (pt, pasid) = (ObjectId::from_raw(word(bytes, 0)), word(bytes, 1));
    let Some(device) = &devices[number] else {
        devices[number] = Some(match number {
            0 => m.pdev(),
            1 => m.mdev(),
            _ => m.toy(),
        });
        return;
    };
    match usize::from(how) / devices.len() % 8 {
        0 => drop(device.attach(pt)),
        1 => drop(device.attach_pasid(pt, pasid)),
        2 => drop(device.attach_first(pt, pasid)),
        3 => drop(device.replace(pt, pasid)),
        4 => device.detach(),
        5 => device.detach_pasid(pasid),
        6 => {
            let fault = PageFault {
                pasid: (pasid != 0).then_some(pasid),
                group: word(bytes, 2),
                perm: word(bytes, 3),
                address: word(bytes, 4).into(),
            };
            let id = ObjectId::from_raw(word(bytes, 0));
            let _ = m.context.report_page_fault(id, fault, Box::new(|_| {}));
        }
        _ => devices[number] = None,
    }
}

fn on_file(m: &Machine, how: u8, bytes: &[u8]) {
    let files = m.program.event_files();
    let Some(file) = files.get(usize::from(how >> 2)) else {
        let _ = m.context.mmap(MmapRequest {
            offset: u64::from(word(bytes, 0)) * PAGE,
            len: u64::from(word(bytes, 1)) * PAGE,
            shared: true,
            executable: how & 1 != 0,
        });
        return;
    };
    match how & 3 {
        0 => drop(file.read(word(bytes, 0) as usize % 4096)),
        1 => drop(file.write(bytes)),
        2 => file.closed(),
        _ => drop(file.is_readable()),
    }
}

fuzz_target!(|input: &[u8]| {
    let iommu = IOMMU.with(|iommu| Arc::clone(&iommu.borrow()));
    let m = Machine::on(&iommu);
    // Structs and arrays of the program, at the addresses that the steps can name in few bytes.
    m.put(DATA, input.get(..4096).unwrap_or(input));
    let mut devices = [Some(m.pdev()), Some(m.mdev()), Some(m.toy())];
    for step in input.chunks(STEP).take(STEPS) {
        let [what, how, bytes @ ..] = step else { break };
        m.put(BASE, &[0; STEP]);
        m.put(BASE, bytes);
        match what {
            0..=179 => ioctl(&m, *what, *how, bytes),
            180..=199 => {
                let command = CONTAINER[usize::from(*what) % CONTAINER.len()];
                let _ = m.at(command, address(*how, bytes.len()));
            }
            200..=229 => on_device(&mut devices, &m, *how, bytes),
            230..=249 => on_file(&m, *how, bytes),
            _ => drop(m.at(word(bytes, 0), address(*how, bytes.len()))),
        }
    }
    drop(devices);
    m.context.close();
    for file in m.program.event_files() {
        file.closed();
    }
    assert_eq!(iommu.paging_domains(), 0, "page tables are left behind");
    assert_eq!(iommu.pending_page_requests(), 0, "a device waits for ever");
});
