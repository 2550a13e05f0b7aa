//! Where something is attached: a bound device itself, or a PASID of it that the program chose.
//!
//! A PASID is parsed once, by [`AttachPoint::of`], and its presence decides everything from there
//! on: which rules hold, what mappings must stay away from, and which DMA of the machine is meant.
//! That a default-PASID child has no PASIDs for programs is decided there, and nowhere else in this
//! crate.

use std::sync::Arc;

use ioasid_core::Pasid;
use ioasid_iommu::{DmaSource, Domain, ReservedKind};

use super::device::{DeviceObject, GroupKey};
use crate::{
    base::error::{AttachError, Error, ReservedBy},
    space::iova::ReservedRange,
};

/// What attachments are kept under: a group (or a child), and a PASID that a program chose.
pub(crate) type Slot = (GroupKey, Option<Pasid>);

/// A bound device itself, or a PASID of it that the program chose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachPoint<'a> {
    device: &'a DeviceObject,
    pasid: Option<Pasid>,
}

impl<'a> AttachPoint<'a> {
    /// The device itself; for a default-PASID child, that PASID of its parent.
    pub(crate) fn itself(device: &'a DeviceObject) -> Self {
        AttachPoint {
            device,
            pasid: None,
        }
    }

    /// A PASID by the number that a program sent. As the kernel counts, 0 is the device itself.
    ///
    /// # Errors
    /// [`AttachError::NoPasids`] for a child, [`AttachError::NoSuchPasid`] for what is no PASID;
    /// whether the device can send it is found out by the attach.
    pub(crate) fn of(device: &'a DeviceObject, pasid: u32) -> Result<Self, AttachError> {
        if pasid == 0 {
            return Ok(AttachPoint::itself(device));
        }
        if device.child().is_some() {
            return Err(AttachError::NoPasids(device.id()));
        }
        match Pasid::new(pasid) {
            Some(pasid) => Ok(AttachPoint::at(device, Some(pasid))),
            None => Err(device.no_such_pasid(pasid)),
        }
    }

    /// A point where something may be attached already.
    pub(crate) fn at(device: &'a DeviceObject, pasid: Option<Pasid>) -> Self {
        AttachPoint { device, pasid }
    }

    pub(crate) fn device(self) -> &'a DeviceObject {
        self.device
    }

    /// The PASID that the program chose.
    pub(crate) fn pasid(self) -> Option<Pasid> {
        self.pasid
    }

    /// What its attachment is kept under.
    pub(crate) fn slot(self) -> Slot {
        (self.device.group_key(), self.pasid)
    }

    /// The DMA that is meant. From here on a child is a PASID of its device like any other.
    pub(crate) fn source(self) -> DmaSource {
        DmaSource::new(self.device.device(), self.device.child().or(self.pasid))
    }

    /// Whether mappings must stay away from the device's reserved regions: only if the DMA has no
    /// PASID.
    pub(crate) fn reserves(self) -> bool {
        self.pasid.is_none() && self.device.child().is_none()
    }

    /// What mappings must stay away from.
    pub(crate) fn reserved(self) -> Vec<ReservedRange> {
        if !self.reserves() {
            return Vec::new();
        }
        let regions = self.device.device().reserved_regions().iter();
        regions
            .filter(|region| region.kind != ReservedKind::DirectRelaxable)
            .map(|region| ReservedRange {
                range: region.range,
                by: ReservedBy::Device {
                    device: self.device.id(),
                    address: self.device.device().address(),
                    kind: region.kind,
                },
            })
            .collect()
    }

    /// Attaches `domain` where none is.
    pub(crate) fn attach(self, domain: &Arc<Domain>) -> Result<(), Error> {
        Ok(self.source().attach_group(domain, self.device.faults())?)
    }

    /// Puts `domain` in the place of what is attached, in one step.
    pub(crate) fn replace(self, domain: &Arc<Domain>) -> Result<(), Error> {
        Ok(self.source().replace(domain, self.device.faults())?)
    }

    /// Detaches; returns after the barrier.
    pub(crate) fn detach(self) {
        self.source().detach();
    }
}
