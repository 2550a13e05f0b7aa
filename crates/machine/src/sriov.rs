//! Virtual functions of SR-IOV: how many of them a program has asked for, by writing to
//! `sriov_numvfs` of the physical one (`drivers/pci/iov.c`, `drivers/pci/pci-sysfs.c`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ioasid_core::{PciAddress, Rid, host::StdSpawner, sync::Mutex};
use ioasid_dsa::{DsaConfig, DsaDevice, MAX_TRANSFER_SHIFT, QueueConfig, Role};
use ioasid_iommu::{Device, DeviceConfig, Iommu};
use ioasid_vfio::{DeviceModel, Passthrough, Vfio, VfioDevice};

use crate::attribute::AttributeError;

/// Most virtual functions of one physical one.
pub(crate) const MAX_VIRTUAL: u16 = 31;

/// Virtual functions that exist.
#[derive(Debug, Default)]
pub(crate) struct VirtualFunctions {
    /// By the address of the physical function.
    made: Mutex<BTreeMap<PciAddress, Vec<VirtualFunction>>>,
}

/// A virtual function that exists.
#[derive(Clone, Debug)]
pub(crate) struct VirtualFunction {
    pub(crate) address: PciAddress,
    pub(crate) physical: PciAddress,
    pub(crate) node: Arc<VfioDevice>,
    device: Arc<Device>,
}

/// The address of virtual function `index`, or none if its bus has no room for it.
pub(crate) fn address_of(physical: PciAddress, index: u16) -> Option<PciAddress> {
    let step = Role::ROUTING_STEP;
    let offset = index.checked_mul(step)?.checked_add(step)?;
    let rid = physical.rid.0.checked_add(offset)?;
    (rid >> 8 == physical.rid.0 >> 8).then_some(PciAddress {
        rid: Rid(rid),
        ..physical
    })
}

impl VirtualFunctions {
    /// All of them, by physical function and number.
    pub(crate) fn all(&self) -> Vec<VirtualFunction> {
        self.made.lock().values().flatten().cloned().collect()
    }

    /// Gives `physical` so many, out of none, or takes them all away.
    ///
    /// # Errors
    /// [`AttributeError::OutOfRange`] for more than there can be, [`AttributeError::Busy`] if there
    /// are some already or one of them is in use, [`AttributeError::NoMemory`].
    pub(crate) fn set(
        &self,
        iommu: &Arc<Iommu>,
        vfio: &Vfio,
        physical: &Arc<VfioDevice>,
        address: PciAddress,
        count: u16,
    ) -> Result<(), AttributeError> {
        let function = physical.model().function();
        let total = function.sriov().map_or(0, |layout| layout.total);
        if count > total {
            return Err(AttributeError::OutOfRange);
        }
        let mut made = self.made.lock();
        let there = made.entry(address).or_default();
        if there.len() == usize::from(count) {
            return Ok(());
        }
        if count == 0 {
            remove_all(iommu, vfio, there)?;
        } else if there.is_empty() {
            for index in 0..count {
                match make(iommu, vfio, physical, address, index) {
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
    physical: &Arc<VfioDevice>,
    at: PciAddress,
    index: u16,
) -> Result<VirtualFunction, AttributeError> {
    let address = address_of(at, index).ok_or(AttributeError::OutOfRange)?;
    let parent = iommu.device(at).ok_or(AttributeError::NoDevice)?;
    let config = DeviceConfig {
        pasid_bits: parent.pasid_bits(),
        pasid_privileged: parent.pasid_features().1,
        format: iommu.config().format,
        dirty: true,
        page_requests: true,
        ..DeviceConfig::new(address)
    };
    let device = iommu
        .add_device(config)
        .map_err(|_| AttributeError::NoMemory)?;
    let config = DsaConfig {
        queues: vec![QueueConfig::default()],
        engines: 1,
        device_tlb: true,
        max_transfer_shift: MAX_TRANSFER_SHIFT,
        role: Role::Virtual,
    };
    let dsa = DsaDevice::new(iommu, Arc::clone(&device), config, &StdSpawner).map_err(|_| {
        let _ = iommu.remove_device(&device);
        AttributeError::NoMemory
    })?;
    for bar in 0..6 {
        if let Some((first, one)) = physical.model().function().virtual_bar(bar) {
            let own = first + one.size * u64::from(index);
            dsa.function().assign_bar(bar, own);
        }
    }
    let node = vfio.add(dsa, Passthrough::Whole(Arc::clone(&device)));
    node.set_physical(physical);
    Ok(VirtualFunction {
        address,
        physical: at,
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
