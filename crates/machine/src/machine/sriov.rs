//! Virtual functions of SR-IOV: those that a program has asked for, by writing to `sriov_numvfs` of
//! the physical one (`drivers/pci/iov.c`, `drivers/pci/pci-sysfs.c`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ioasid_core::{PciAddress, host::StdSpawner, sync::Mutex};
use ioasid_iommu::{Device, Iommu};
use ioasid_vfio::{AttributeError, Passthrough, Vfio, VfioDevice, pci::SriovLayout};

use super::device::MachineDevice;
use crate::model::{self, Driver, Site};

/// Virtual functions that exist.
#[derive(Debug, Default)]
pub(super) struct VirtualFunctions {
    /// By the address of the physical function.
    made: Mutex<BTreeMap<PciAddress, Vec<VirtualFunction>>>,
}

/// A virtual function that exists.
#[derive(Clone, Debug)]
pub(super) struct VirtualFunction {
    pub(super) address: PciAddress,
    pub(super) physical: PciAddress,
    pub(super) node: Arc<VfioDevice>,
    device: Arc<Device>,
}

impl VirtualFunctions {
    /// All of them, by physical function and number.
    pub(super) fn all(&self) -> Vec<VirtualFunction> {
        self.made.lock().values().flatten().cloned().collect()
    }

    /// Gives `physical` `count` of them, out of none, or takes them all away.
    ///
    /// # Errors
    /// [`AttributeError::NoDevice`] if no program can have `physical`;
    /// [`AttributeError::OutOfRange`] for more than there can be, [`AttributeError::Busy`] if there
    /// are some already or one of them is in use, [`AttributeError::NoMemory`].
    pub(super) fn set(
        &self,
        iommu: &Arc<Iommu>,
        vfio: &Vfio,
        physical: &MachineDevice,
        count: u16,
    ) -> Result<(), AttributeError> {
        let node = physical.vfio.as_ref().ok_or(AttributeError::NoDevice)?;
        let function = node.model().function();
        let layout = function.sriov();
        let total = layout.map_or(0, |layout| layout.total);
        if count > total {
            return Err(AttributeError::OutOfRange);
        }
        let mut made = self.made.lock();
        let there = made.entry(physical.address).or_default();
        if there.len() == usize::from(count) {
            return Ok(());
        }
        if count == 0 {
            remove_all(iommu, vfio, there)?;
        } else if there.is_empty() {
            for index in 0..count {
                match make(iommu, vfio, physical, node, layout, index) {
                    Ok(new) => there.push(new),
                    Err(error) => {
                        // Nobody has seen them.
                        let _ = remove_all(iommu, vfio, there);
                        return Err(error);
                    }
                }
            }
        } else {
            return Err(AttributeError::Busy);
        }
        function.show_virtual_functions(count);
        Ok(())
    }
}

fn make(
    iommu: &Arc<Iommu>,
    vfio: &Vfio,
    physical: &MachineDevice,
    physical_node: &Arc<VfioDevice>,
    layout: Option<SriovLayout>,
    index: u16,
) -> Result<VirtualFunction, AttributeError> {
    let functions = layout.map(|layout| model::VirtualFunctions {
        total: layout.total,
        offset: layout.offset,
        stride: layout.stride,
    });
    let address = functions.and_then(|functions| functions.address(physical.address, index));
    let address = address.ok_or(AttributeError::OutOfRange)?;
    let site = Site {
        iommu,
        spawner: &StdSpawner,
        address: Some(address),
        driver: Driver::Vfio,
    };
    let built = physical.section.own.build_virtual(&site);
    let Some((whole, device)) = built.ok().and_then(|built| built.function) else {
        if let Some(device) = iommu.device(address) {
            let _ = iommu.remove_device(&device);
        }
        return Err(AttributeError::NoMemory);
    };
    for bar in 0..6 {
        if let Some((first, one)) = physical_node.model().function().virtual_bar(bar) {
            let own = first + one.size * u64::from(index);
            whole.function().assign_bar(bar, own);
        }
    }
    let node = vfio.add(whole, Passthrough::Whole(Arc::clone(&device)));
    node.set_physical(physical_node);
    Ok(VirtualFunction {
        address,
        physical: physical.address,
        node,
        device,
    })
}

/// Takes all away, the last first. One that is in use stays, and those before it.
fn remove_all(
    iommu: &Iommu,
    vfio: &Vfio,
    there: &mut Vec<VirtualFunction>,
) -> Result<(), AttributeError> {
    if there.iter().any(|function| function.node.open_files() > 0) {
        for function in there.iter() {
            function.node.ask_for_release();
        }
        return Err(AttributeError::Busy);
    }
    while let Some(last) = there.last() {
        vfio.remove(&last.node, Duration::ZERO)
            .map_err(|_| AttributeError::Busy)?;
        let _ = iommu.remove_device(&last.device);
        there.pop();
    }
    Ok(())
}
