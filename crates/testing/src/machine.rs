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

/// A machine file: a parent at 0000:6a:01.0 of the model `dsa` or `ioat` with one unit for its own
/// driver and one for each of two VMs ([`MDEVS`]), and a whole device at 0000:6b:01.0 for the first.
pub fn two_vms(model: &str) -> String {
    let [first, second, ..] = MDEVS;
    format!(
        r#"
[[device]]
model = "{model}"
address = "0000:6a:01.0"
driver = "host"

  [[device.queue]]
  owner = "host"

  [[device.queue]]
  owner = "mdev"
  uuid = "{first}"
  vm = "vm1"

  [[device.queue]]
  owner = "mdev"
  uuid = "{second}"
  vm = "vm2"

[[device]]
model = "{model}"
address = "0000:6b:01.0"
driver = "vfio"
vm = "vm1"
"#
    )
}
