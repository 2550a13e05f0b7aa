//! What `alioth boot --vfio-group` does before its guest starts: a container, a group, the device, and a
//! device of the guest over it. Words: the group's node, and the device's address.

use std::{
    error::Error,
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
};

use alioth::{
    hv::{IrqFd, MsiSender, Result},
    sys::vfio::VfioIommu,
    vfio::{
        container::Container,
        group::{DevFd, Group},
        pci::VfioPciDev,
    },
};

/// Interrupts of a guest that never runs.
#[derive(Debug)]
struct Nowhere;

#[derive(Debug)]
struct Never(File);

impl AsFd for Never {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl IrqFd for Never {
    fn set_addr_lo(&self, _: u32) -> Result<()> {
        Ok(())
    }
    fn get_addr_lo(&self) -> u32 {
        0
    }
    fn set_addr_hi(&self, _: u32) -> Result<()> {
        Ok(())
    }
    fn get_addr_hi(&self) -> u32 {
        0
    }
    fn set_data(&self, _: u32) -> Result<()> {
        Ok(())
    }
    fn get_data(&self) -> u32 {
        0
    }
    fn set_masked(&self, _: bool) -> Result<bool> {
        Ok(false)
    }
    fn get_masked(&self) -> bool {
        false
    }
}

impl MsiSender for Nowhere {
    type IrqFd = Never;

    fn send(&self, _: u64, _: u32) -> Result<()> {
        Ok(())
    }

    fn create_irqfd(&self) -> Result<Never> {
        Ok(Never(File::open("/dev/null").expect("/dev/null opens")))
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(group), Some(address)) = (words.next(), words.next()) else {
        return Err("which group's node, and which device of it?".into());
    };
    let container = Arc::new(Container::new("/dev/vfio/vfio")?);
    let mut group = Group::new(Path::new(&group))?;
    group.attach(container, VfioIommu::TYPE1_V2)?;
    let device = DevFd::new(Arc::new(group), &address)?;
    VfioPciDev::new(address.into(), device, Nowhere)?;
    println!("alioth: the device is set up");
    Ok(())
}
