//! Attaching domains. The IOMMU knows a device and perhaps a PASID, and nothing else: the presence
//! of the PASID, and nothing else, decides between [`attach_device`] and [`attach_device_pasid`].
//!
//! Everything that ends a translation here (detach, replace) returns only when no DMA through it is
//! in flight. Checks come before changes, so a failed call leaves the old domain as it was; a
//! replacement has no moment in which the route is blocked.

use std::sync::Arc;

use ioasid_core::{Pasid, failpoint::OutOfMemory};

use crate::{
    device::Device,
    domain::Domain,
    fault::FaultSink,
    group::{Change, Group},
};

/// Why a domain could not be attached. The order is the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device shares its group, and only a whole group can be attached without a PASID (EINVAL).
    #[error("the device shares its group with others")]
    NotSingleton,
    /// A device of the group cannot send PASIDs (EOPNOTSUPP).
    #[error("the device has no PASIDs")]
    NoPasidSupport,
    /// PASID 0, or one that a device of the group cannot send (EINVAL).
    #[error("the PASID is outside what the device can send")]
    PasidRange,
    /// Something is attached there, the device's driver uses the DMA API, or a device of the group is
    /// being reset (EBUSY).
    #[error("the route is in use")]
    Busy,
    /// Nothing is attached that could be replaced (EINVAL).
    #[error("nothing is attached")]
    NotAttached,
    /// The domain has another page-table format, or dirty tracking or page requests that the device
    /// does not support (EINVAL: the caller may try another domain).
    #[error("the domain does not suit the device")]
    Incompatible,
    /// No memory for the attachment (ENOMEM).
    #[error("no memory for the attachment")]
    NoMemory,
}

impl From<OutOfMemory> for AttachError {
    fn from(_: OutOfMemory) -> Self {
        AttachError::NoMemory
    }
}

/// Where DMA comes from: a device, and the PASID it is tagged with or none.
#[derive(Clone, Debug)]
pub struct Route {
    /// The device.
    pub device: Arc<Device>,
    /// The tag.
    pub pasid: Option<Pasid>,
}

impl Route {
    /// Attaches `domain`; faults of the route go to `faults`.
    ///
    /// # Errors
    /// Those of [`attach_device`] without a PASID, of [`attach_device_pasid`] with one.
    pub fn attach(
        &self,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
    ) -> Result<(), AttachError> {
        match self.pasid {
            None => attach_device(domain, &self.device, faults),
            Some(pasid) => attach_device_pasid(domain, &self.device, pasid.get(), faults),
        }
    }

    /// Puts `domain` in the place of the attached one, in one step.
    ///
    /// # Errors
    /// Those of [`replace_device`] and [`replace_device_pasid`].
    pub fn replace(
        &self,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
    ) -> Result<(), AttachError> {
        match self.pasid {
            None => replace_device(domain, &self.device, faults),
            Some(pasid) => replace_device_pasid(domain, &self.device, pasid.get(), faults),
        }
    }

    /// Takes away what is attached; nothing happens if nothing is.
    pub fn detach(&self) {
        self.device.group().detach(self.pasid);
    }
}

/// Makes `domain` the primary domain of a device that has its group for itself
/// (`iommu_attach_device`).
///
/// Unlike in the kernel, a driver that uses the DMA API keeps its default domain: it ends its use
/// first.
///
/// # Errors
/// [`AttachError::NotSingleton`], [`AttachError::Busy`], [`AttachError::Incompatible`].
pub fn attach_device(
    domain: &Arc<Domain>,
    device: &Arc<Device>,
    faults: &Arc<dyn FaultSink>,
) -> Result<(), AttachError> {
    device
        .group()
        .change(None, domain, faults, Change::AttachSingleton)
}

/// Puts `domain` in the place of the primary domain of the device's group, in one step.
///
/// # Errors
/// [`AttachError::NotAttached`], [`AttachError::Incompatible`].
pub fn replace_device(
    domain: &Arc<Domain>,
    device: &Arc<Device>,
    faults: &Arc<dyn FaultSink>,
) -> Result<(), AttachError> {
    replace_group(domain, device.group(), faults)
}

/// Takes the primary domain of the device's group away: blocked if a user owns the group, else the
/// default domain.
pub fn detach_device(device: &Arc<Device>) {
    device.group().detach(None);
}

/// The PASID `pasid` of `device`: first whether it has any, then the number.
fn checked(device: &Device, pasid: u32) -> Result<Option<Pasid>, AttachError> {
    if device.max_pasids() == 0 {
        return Err(AttachError::NoPasidSupport);
    }
    Pasid::new(pasid).map(Some).ok_or(AttachError::PasidRange)
}

/// Makes `domain` an auxiliary domain of the device, for DMA tagged with `pasid`
/// (`iommu_attach_device_pasid`). Devices that share a group get it together.
///
/// # Errors
/// [`AttachError::NoPasidSupport`], [`AttachError::PasidRange`], [`AttachError::Busy`],
/// [`AttachError::Incompatible`].
pub fn attach_device_pasid(
    domain: &Arc<Domain>,
    device: &Arc<Device>,
    pasid: u32,
    faults: &Arc<dyn FaultSink>,
) -> Result<(), AttachError> {
    let pasid = checked(device, pasid)?;
    device.group().change(pasid, domain, faults, Change::Attach)
}

/// Puts `domain` in the place of the auxiliary domain at `pasid`, in one step.
///
/// # Errors
/// Those of [`attach_device_pasid`], with [`AttachError::NotAttached`] instead of
/// [`AttachError::Busy`].
pub fn replace_device_pasid(
    domain: &Arc<Domain>,
    device: &Arc<Device>,
    pasid: u32,
    faults: &Arc<dyn FaultSink>,
) -> Result<(), AttachError> {
    let pasid = checked(device, pasid)?;
    device
        .group()
        .change(pasid, domain, faults, Change::Replace)
}

/// Takes the auxiliary domain at `pasid` away; nothing happens if there is none, or no such PASID.
pub fn detach_device_pasid(device: &Arc<Device>, pasid: u32) {
    if let Some(pasid) = Pasid::new(pasid) {
        device.group().detach(Some(pasid));
    }
}

/// Makes `domain` the primary domain of every device of a group (`iommu_attach_group`).
///
/// # Errors
/// [`AttachError::Busy`], [`AttachError::Incompatible`].
pub fn attach_group(
    domain: &Arc<Domain>,
    group: &Arc<Group>,
    faults: &Arc<dyn FaultSink>,
) -> Result<(), AttachError> {
    group.change(None, domain, faults, Change::Attach)
}

/// Puts `domain` in the place of the primary domain of a group, in one step.
///
/// # Errors
/// [`AttachError::NotAttached`], [`AttachError::Incompatible`].
pub fn replace_group(
    domain: &Arc<Domain>,
    group: &Arc<Group>,
    faults: &Arc<dyn FaultSink>,
) -> Result<(), AttachError> {
    group.change(None, domain, faults, Change::Replace)
}

/// As [`detach_device`], for a group.
pub fn detach_group(group: &Arc<Group>) {
    group.detach(None);
}
