//! Machines: the parts of one, and one as a machine file.

use std::sync::Arc;

use ioasid_iommu::{Device, DeviceConfig, Domain, DomainConfig, Iommu, IommuConfig};

/// UUIDs for mediated devices.
pub const MDEVS: [&str; 4] = [
    "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01",
    "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02",
    "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a03",
    "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a04",
];

/// An IOMMU as machines have it where nothing else is said.
pub fn new_iommu() -> Arc<Iommu> {
    Iommu::new(IommuConfig::default())
}

/// A device behind `iommu` with this PCI address.
pub fn add_device(iommu: &Arc<Iommu>, address: &str) -> Arc<Device> {
    let config = DeviceConfig::new(address.parse().unwrap());
    iommu.add_device(config).unwrap()
}

/// An unmanaged domain of the format that `device` has.
pub fn new_domain(iommu: &Arc<Iommu>, device: &Device) -> Arc<Domain> {
    let config = DomainConfig::unmanaged(device.format());
    iommu.alloc_domain(config).unwrap()
}

/// The section of a machine file for a parent of the model `dsa` or `ioat`: one unit for its own driver,
/// and one for each mediated device, by UUID and VM. Without an address the machine chooses one.
pub fn parent(model: &str, address: Option<&str>, mdevs: &[(&str, &str)]) -> String {
    let mut text = format!("[[device]]\nmodel = \"{model}\"\ndriver = \"host\"\n");
    if let Some(address) = address {
        text += &format!("address = \"{address}\"\n");
    }
    text += "[[device.queue]]\nowner = \"host\"\n";
    for (uuid, vm) in mdevs {
        text += "[[device.queue]]\nowner = \"mdev\"\n";
        text += &format!("uuid = \"{uuid}\"\nvm = \"{vm}\"\n");
    }
    text
}

/// The section for a whole device of a VM.
pub fn whole(model: &str, address: &str, vm: &str) -> String {
    format!(
        "[[device]]\nmodel = \"{model}\"\naddress = \"{address}\"\ndriver = \"vfio\"\nvm = \"{vm}\"\n"
    )
}

/// A machine file: a parent of `model` at 0000:6a:01.0 with a mediated device for each of two VMs
/// ([`MDEVS`]), and a whole device at 0000:6b:01.0 for the first.
pub fn two_vms(model: &str) -> String {
    let mdevs = [(MDEVS[0], "vm1"), (MDEVS[1], "vm2")];
    parent(model, Some("0000:6a:01.0"), &mdevs) + &whole(model, "0000:6b:01.0", "vm1")
}
