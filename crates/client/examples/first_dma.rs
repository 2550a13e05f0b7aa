//! A first DMA on QEMU's educational device: into its buffer, and out again to another address.

use std::io::{Write as _, stdout};
use std::os::{fd::AsRawFd as _, unix::fs::FileExt as _};
use std::{fs::File, path::Path, sync::Arc};

use iommufd_ioctls::IommuFd;
use rustix::fs::{MemfdFlags, memfd_create};
use vfio_ioctls::{VfioDevice, VfioIommufd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let iommu = Arc::new(VfioIommufd::new(Arc::new(IommuFd::new()?), None, None)?);
    let path = Path::new("/sys/bus/pci/devices/0000:69:01.0");
    let device = VfioDevice::new(path, iommu.clone(), true)?;
    let memory = File::from(memfd_create("memory", MemfdFlags::empty())?);
    memory.write_all_at(&[b"hello".as_slice(), &[0; 4091]].concat(), 0)?;
    let file = memory.as_raw_fd();
    iommu.ioas().map_file(file, 0, 4096, 0x10_0000, true)?;
    device.region_write(7, &[6, 0], 4); // PCI command: memory, Bus Master
    for (from, to, start) in [(0x10_0000, 0x4_0000, 1), (0x4_0000, 0x10_0800, 3)] {
        let registers = [from, to, 5, start].map(u64::to_le_bytes).concat();
        device.region_write(0, &registers, 0x80);
        let mut command = [1; 4];
        while command[0] & 1 != 0 {
            device.region_read(0, &mut command, 0x98);
        }
    }
    let mut copied = [0; 5];
    memory.read_exact_at(&mut copied, 0x800)?;
    writeln!(stdout(), "the device copied: {}", copied.escape_ascii())?;
    Ok(())
}
