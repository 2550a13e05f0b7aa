//! An ordinary VFIO client of QEMU's educational device (1234:11e8): copies a little memory in and
//! out again. With an emulated device it shows what that is to iommufd: an access object.
//!
//! ```sh
//! ioasid run --machine edu.toml -- target/debug/examples/edu
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use passthrough_client::{Device, DmaMemory, MemoryKind, Vm, discover};

const IDENTIFICATION: u32 = 0x0100_00ed;
const IOVA: u64 = 0x10_0000;
const BYTES: usize = 0x2000;
/// The device's buffer, as its DMA engine addresses it.
const BUFFER: u64 = 0x4_0000;
/// Transfer commands: start, and the direction.
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// `PCI_COMMAND` with memory and bus mastering on.
const COMMAND: u64 = 4;
const ENABLED: u16 = 6;

fn transfer(
    device: &Device,
    from: u64,
    to: u64,
    count: u64,
    command: u64,
) -> Result<(), Box<dyn Error>> {
    for (offset, value) in [
        (0x80, from),
        (0x88, to),
        (0x90, count),
        (0x98, command | START),
    ] {
        device.write(Device::REGISTERS, offset, &value.to_le_bytes());
    }
    let start = Instant::now();
    loop {
        let mut status = [0; 8];
        device.read(Device::REGISTERS, 0x98, &mut status)?;
        if u64::from_le_bytes(status) & START == 0 {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err("the transfer does not end".into());
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = discover::first_mdev()?.ok_or("there is no mediated device")?;
    let vm = Vm::open()?;
    let memory = Arc::new(DmaMemory::new(BYTES, MemoryKind::Private)?);
    let area = vm.map(IOVA, &memory)?;
    let device = vm.open_device(&path)?;

    let mut id = [0; 4];
    device.read(Device::REGISTERS, 0, &mut id)?;
    if u32::from_le_bytes(id) != IDENTIFICATION {
        return Err("not an educational device".into());
    }
    // Attaching names the page table, and there is none: the IOAS comes back. One of its own is refused.
    let attached = device.attach(vm.ioas())?;
    println!("attached to {attached}, the IOAS is {}", vm.ioas());
    if attached != vm.ioas() || vm.alloc_hwpt(&device, 0).is_ok() {
        return Err("this device has a page table: it is not emulated".into());
    }

    device.write(Device::CONFIG, COMMAND, &ENABLED.to_le_bytes());
    memory.write(0, b"copied by software");
    transfer(&device, IOVA, BUFFER, 18, 0)?;
    transfer(&device, BUFFER, IOVA + 0x1000, 18, TO_MEMORY)?;
    let mut copied = [0; 18];
    memory.read(0x1000, &mut copied);
    println!("{}", String::from_utf8_lossy(&copied));
    if &copied != b"copied by software" {
        return Err("what was copied differs".into());
    }

    // After an unmap the device finds nothing.
    vm.unmap(&area)?;
    transfer(&device, BUFFER, IOVA + 0x1800, 18, TO_MEMORY)?;
    memory.read(0x1800, &mut copied);
    if copied != [0; 18] {
        return Err("the device reached memory that is not mapped".into());
    }
    println!("passed");
    Ok(())
}
