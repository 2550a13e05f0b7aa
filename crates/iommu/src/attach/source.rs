//! Attaching domains. What is attached is a [`DmaSource`]: a device, or a device and a PASID.
//!
//! A source is made once, where a PASID comes in as a number, and is passed on whole. There is one
//! method for each verb; whether the source has a PASID decides which attach it is, and that is
//! looked at in two places only: here for the rules of a group, and in the route table for the cell.
//!
//! Everything that ends a translation here (detach, replace) returns only when no DMA through it is
//! in flight. Checks come before changes, so a failed call leaves the old domain as it was; a
//! replacement has no moment in which the DMA is blocked.

use std::sync::Arc;

use ioasid_core::{
    DomainId, Pasid, PciAddress,
    failpoint::{self, OutOfMemory},
};
use ioasid_pgtable::TableFormat;

use crate::{
    base::source_id::SourceId,
    device::{
        Device, Group,
        group::{GroupState, Route},
    },
    domain::Domain,
    events::fault::FaultSink,
};

/// Why a domain could not be attached. The order is the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The device shares its group, and only a whole group can be attached without a PASID (EINVAL).
    #[error("{device} shares its group with {others} more: attach the group, or use a PASID")]
    NotSingleton {
        /// The device.
        device: PciAddress,
        /// Other devices of its group.
        others: usize,
    },
    /// A device of the group cannot send PASIDs (EOPNOTSUPP).
    #[error("{device} cannot send PASIDs")]
    NoPasidSupport {
        /// The device.
        device: PciAddress,
    },
    /// PASID 0, or one that a device of the group cannot send (EINVAL).
    #[error("PASID {pasid} is not one of 1 to {last}, which {device} can send")]
    PasidRange {
        /// The device.
        device: PciAddress,
        /// The number that was asked for.
        pasid: u32,
        /// The largest PASID that the device can send.
        last: u32,
    },
    /// A device of the group is being reset (EBUSY).
    #[error("{device} is being reset: try again afterwards")]
    Resetting {
        /// The device.
        device: PciAddress,
    },
    /// Something is attached already (EBUSY).
    #[error("{at} is attached to domain {domain} already: detach or replace it")]
    Attached {
        /// The source.
        at: SourceId,
        /// What is attached.
        domain: DomainId,
    },
    /// The device's own driver uses the DMA API (EBUSY).
    #[error("a driver does DMA with {device} or its group: end its use first")]
    DriverInUse {
        /// The device.
        device: PciAddress,
    },
    /// Nothing is attached that could be replaced (EINVAL).
    #[error("nothing is attached to {at} that could be replaced")]
    NotAttached {
        /// The source.
        at: SourceId,
    },
    /// The domain does not suit the device (EINVAL: the caller may try another domain).
    #[error(transparent)]
    Incompatible(#[from] Mismatch),
    /// No memory for the attachment (ENOMEM).
    #[error("no memory for the attachment")]
    NoMemory(#[from] OutOfMemory),
}

/// What a domain asks for that a device, or its IOMMU, does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another page-table format.
    #[error("the page table is {table}, and the IOMMU of {device} walks {walked}")]
    Format {
        /// The device.
        device: PciAddress,
        /// The format that its IOMMU walks.
        walked: TableFormat,
        /// The domain's format.
        table: TableFormat,
    },
    /// Dirty tracking.
    #[error("the domain tracks dirty pages, and the IOMMU of {device} does not")]
    DirtyTracking {
        /// The device.
        device: PciAddress,
    },
    /// Page requests.
    #[error("the domain answers page requests, and {device} makes none")]
    PageRequests {
        /// The device.
        device: PciAddress,
    },
}

/// Where DMA comes from: a device, or a device and a PASID. The presence of the PASID, and nothing
/// else, decides which of the kernel's two attaches is meant.
///
/// | PASID | attach | detach |
/// |---|---|---|
/// | none | `iommu_attach_device`, for a whole group `iommu_attach_group` | `iommu_detach_device` |
/// | one | `iommu_attach_device_pasid` (once `iommu_aux_attach_device`) | `iommu_detach_device_pasid` |
#[derive(Clone, Debug)]
pub struct DmaSource {
    /// The device.
    pub device: Arc<Device>,
    /// The PASID that its requests carry; `None` for those without one.
    pub pasid: Option<Pasid>,
}

impl DmaSource {
    /// The requests of `device` with `pasid`, or those without a PASID.
    pub fn new(device: &Arc<Device>, pasid: Option<Pasid>) -> Self {
        DmaSource {
            device: Arc::clone(device),
            pasid,
        }
    }

    /// The requests of `device` with the PASID of this number.
    ///
    /// # Errors
    /// [`AttachError::NoPasidSupport`], then [`AttachError::PasidRange`] if no device can send it.
    /// Whether this device can is found out by the attach.
    pub fn with_pasid(device: &Arc<Device>, pasid: u32) -> Result<Self, AttachError> {
        let (address, limit) = (device.address(), device.max_pasids());
        if limit == 0 {
            return Err(AttachError::NoPasidSupport { device: address });
        }
        let pasid = Pasid::new(pasid).ok_or(AttachError::PasidRange {
            device: address,
            pasid,
            last: limit - 1,
        })?;
        Ok(DmaSource::new(device, Some(pasid)))
    }

    /// Its name.
    pub fn id(&self) -> SourceId {
        self.device.source_id(self.pasid)
    }

    fn group(&self) -> &Arc<Group> {
        self.device.group()
    }

    /// Attaches `domain` where nothing is attached; faults go to `faults`.
    ///
    /// Without a PASID the domain becomes the primary one of a device that has its group for itself.
    /// Unlike in the kernel, a driver that uses the DMA API keeps its default domain: it ends its use
    /// first. With a PASID it becomes an auxiliary one; devices that share a group get it together.
    ///
    /// # Errors
    /// All of [`AttachError`] but [`AttachError::NotAttached`].
    pub fn attach(
        &self,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
    ) -> Result<(), AttachError> {
        self.change(domain, faults, Change::AttachSingleton)
    }

    /// As [`DmaSource::attach`], for the whole group of the device, which may have others.
    ///
    /// # Errors
    /// As [`DmaSource::attach`], but never [`AttachError::NotSingleton`].
    pub fn attach_group(
        &self,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
    ) -> Result<(), AttachError> {
        self.change(domain, faults, Change::Attach)
    }

    /// Puts `domain` in the place of what is attached, in one step and for the whole group.
    ///
    /// # Errors
    /// As [`DmaSource::attach_group`], with [`AttachError::NotAttached`] instead of
    /// [`AttachError::Attached`] and [`AttachError::DriverInUse`].
    pub fn replace(
        &self,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
    ) -> Result<(), AttachError> {
        self.change(domain, faults, Change::Replace)
    }

    /// Takes away what is attached; nothing happens if nothing is. Afterwards the DMA is blocked, but
    /// without a PASID and an owner of the group the default domain, if any, is in force again.
    pub fn detach(&self) {
        let old = {
            let mut state = self.group().lock();
            match state.routes.get(&self.pasid) {
                Some(route) if !route.default => state.reset_route(self.pasid),
                _ => None,
            }
        };
        self.group().drain(old);
    }

    /// Makes `domain` what this source leads to, for every device of the group; all or nothing.
    fn change(
        &self,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
        change: Change,
    ) -> Result<(), AttachError> {
        let old = {
            let mut state = self.group().lock();
            self.check(&state, domain, change)?;
            failpoint::allocation()?;
            let route = Route {
                domain: Arc::clone(domain),
                default: false,
                faults: Some(Arc::clone(faults)),
            };
            state.set_route(self.pasid, Some(route))
        };
        self.group().drain(old);
        Ok(())
    }

    /// Whether `domain` can be attached to this source, and with it to every device of the group.
    fn check(
        &self,
        state: &GroupState,
        domain: &Domain,
        change: Change,
    ) -> Result<(), AttachError> {
        let (devices, own) = (state.live(), self.device.address());
        if change == Change::AttachSingleton && self.pasid.is_none() && devices.len() != 1 {
            return Err(AttachError::NotSingleton {
                device: own,
                others: devices.len().saturating_sub(1),
            });
        }
        if self.pasid.is_some()
            && let Some(device) = devices.iter().find(|device| device.max_pasids() == 0)
        {
            return Err(AttachError::NoPasidSupport {
                device: device.address(),
            });
        }
        if !state.resetting.is_empty() {
            let resetting = |device: &&Arc<Device>| state.resetting.contains_key(&device.id());
            let device = devices.iter().find(resetting);
            return Err(AttachError::Resetting {
                device: device.map_or(own, |device| device.address()),
            });
        }
        if let Some(pasid) = self.pasid.map(Pasid::get)
            && let Some(device) = devices.iter().find(|device| pasid >= device.max_pasids())
        {
            return Err(AttachError::PasidRange {
                device: device.address(),
                pasid,
                last: device.max_pasids().saturating_sub(1),
            });
        }
        self.check_free(state, change)?;
        let mut devices = devices.iter();
        match devices.find_map(|device| mismatch(domain, device)) {
            Some(mismatch) => Err(mismatch.into()),
            None => Ok(()),
        }
    }

    /// Whether what is attached at present allows the change.
    fn check_free(&self, state: &GroupState, change: Change) -> Result<(), AttachError> {
        let attached = state.routes.get(&self.pasid);
        match (change, attached.filter(|route| !route.default)) {
            (Change::Replace, Some(_)) => Ok(()),
            (Change::Replace, None) => Err(AttachError::NotAttached { at: self.id() }),
            (Change::Attach | Change::AttachSingleton, Some(route)) => Err(AttachError::Attached {
                at: self.id(),
                domain: route.domain.id(),
            }),
            (Change::Attach | Change::AttachSingleton, None)
                if self.pasid.is_none() && state.driver_uses_dma_api() =>
            {
                Err(AttachError::DriverInUse {
                    device: self.device.address(),
                })
            }
            (Change::Attach | Change::AttachSingleton, None) => Ok(()),
        }
    }
}

/// What a change of a route expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Nothing attached.
    Attach,
    /// Nothing attached and, without a PASID, one device in the group.
    AttachSingleton,
    /// Something attached.
    Replace,
}

/// What the domain is made for that the device or its IOMMU cannot do, if anything.
fn mismatch(domain: &Domain, device: &Device) -> Option<Mismatch> {
    // Of a nested domain, the device walks the parent's table too.
    let config = domain.parent().map_or(domain, |parent| parent).config();
    let address = device.address();
    if config.kind.is_paging() && !config.format.is_walked_with(device.format()) {
        return Some(Mismatch::Format {
            device: address,
            walked: device.format(),
            table: config.format,
        });
    }
    if config.kind.is_paging() && config.dirty_tracking && !device.supports_dirty() {
        return Some(Mismatch::DirtyTracking { device: address });
    }
    (!device.supports_page_requests() && domain.handler().lock().is_some())
        .then_some(Mismatch::PageRequests { device: address })
}
