//! A program that uses the device through `/dev/iommu` and `/dev/vfio`. It knows Linux alone.

use std::{error::Error, fs, path::PathBuf, sync::Arc};

use passthrough_client::{Device, DmaMemory, MemoryKind, Vm};
use vmm_sys_util::eventfd::EventFd;

/// Where the device sees the memory.
const IOVA: u64 = 0x10_0000;

/// The device with the ids of the adder, the one with the lowest address.
fn find() -> Result<PathBuf, Box<dyn Error>> {
    let entries = fs::read_dir("/sys/bus/pci/devices")?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let is_adder = |path: &PathBuf| {
        let id = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
        id("vendor").trim() == "0x1b36" && id("device").trim() == "0x0005"
    };
    let adder = paths.into_iter().find(is_adder);
    adder.ok_or_else(|| "there is no adder".into())
}

fn main() -> Result<(), Box<dyn Error>> {
    let vm = Vm::open()?;
    let memory = Arc::new(DmaMemory::new(0x1000, MemoryKind::Private)?);
    vm.map(IOVA, &memory)?;
    let device = vm.open_device(&find()?)?;
    device.attach(vm.ioas())?;
    let done = EventFd::new(0)?;
    device.enable_vectors(&[done.try_clone()?])?;
    // PCI_COMMAND: memory and bus mastering on.
    device.write(Device::CONFIG, 4, &6_u16.to_le_bytes());

    memory.write(0x10, &40_u64.to_le_bytes());
    device.write64(0, IOVA + 0x10);
    done.read()?;
    let mut sum = [0; 8];
    memory.read(0x10, &mut sum);
    println!("40 has become {}", u64::from_le_bytes(sum));

    // Where nothing is mapped the device is refused, and says that it is done all the same.
    device.write64(0, IOVA + 0x1000);
    done.read()?;
    let mut all = [0; 0x1000];
    memory.read(0, &mut all);
    all[0x10..0x18].copy_from_slice(&[0; 8]);
    if all != [0; 0x1000] {
        return Err("the device reached memory that is not mapped".into());
    }
    println!("and nothing else has changed");
    Ok(())
}
