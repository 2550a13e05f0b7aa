//! Where a device is built: its address, and what the machine has for it.

use std::sync::Arc;

use ioasid_core::{PciAddress, host::Spawner};
use ioasid_iommu::{Device, DeviceConfig, DeviceError, Iommu};

use super::Driver;

/// What a model is given to build one device with.
#[derive(Debug)]
pub struct Site<'a> {
    pub(crate) iommu: &'a Arc<Iommu>,
    pub(crate) spawner: &'a dyn Spawner,
    pub(crate) address: Option<PciAddress>,
    pub(crate) driver: Driver,
}

/// What a site cannot give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// An `[[emulated]]` section has no PCI function.
    #[error("an emulated device has no place behind the IOMMU")]
    NoFunction,
    /// The model says that it has virtual functions and builds none.
    #[error("the model builds no virtual functions")]
    NotVirtual,
    /// The IOMMU refuses the device.
    #[error(transparent)]
    Iommu(#[from] DeviceError),
}

impl Site<'_> {
    /// The IOMMU of the machine.
    pub fn iommu(&self) -> &Arc<Iommu> {
        self.iommu
    }

    /// For the threads of the device.
    pub fn spawner(&self) -> &dyn Spawner {
        self.spawner
    }

    /// The device's PCI address; none for an `[[emulated]]` section.
    pub fn address(&self) -> Option<PciAddress> {
        self.address
    }

    /// What is to drive the device.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Adds the device to the IOMMU, with what `adapt` makes of its configuration: 20-bit PASIDs
    /// without their features, the machine's page-table format, dirty tracking, page requests and a
    /// group of its own.
    ///
    /// # Errors
    /// [`SiteError::NoFunction`], [`SiteError::Iommu`].
    pub fn add_device(
        &self,
        adapt: impl FnOnce(&mut DeviceConfig),
    ) -> Result<Arc<Device>, SiteError> {
        let address = self.address.ok_or(SiteError::NoFunction)?;
        let mut config = DeviceConfig {
            format: self.iommu.config().format,
            ..DeviceConfig::new(address)
        };
        adapt(&mut config);
        Ok(self.iommu.add_device(config)?)
    }
}
