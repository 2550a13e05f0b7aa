//! DMA ownership: one user of a group, or the drivers of its devices.

use std::{fmt, sync::Arc};

use ioasid_core::{
    DomainId, Pasid,
    failpoint::{self, OutOfMemory},
};

use crate::{
    device::{Group, OwnerId, ReservedKind},
    domain::{dma_space::DmaSpace, registry::DomainError},
};

/// Why a group could not be claimed, by a user or by a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// A domain is attached that the claim would take away (EBUSY).
    #[error("group {group} is attached to domain {domain} ({}): detach it first", pasid_text(*.pasid))]
    Attached {
        /// The group.
        group: u32,
        /// Where it is attached.
        pasid: Option<Pasid>,
        /// What is attached.
        domain: DomainId,
    },
    /// A driver asked, and a user owns the group (EBUSY).
    #[error("a user owns group {group}, so no driver can use the DMA API")]
    Owned {
        /// The group.
        group: u32,
    },
    /// A user asked, and another one owns the group (EPERM).
    #[error("another user owns group {group}")]
    OtherOwner {
        /// The group.
        group: u32,
    },
    /// A user asked, and a driver uses the DMA API on the group (EPERM).
    #[error("a driver does DMA with a device of group {group}: unbind it first")]
    DriverInUse {
        /// The group.
        group: u32,
    },
    /// The device was removed, so its group has no device to make a default domain for (ENOMEM).
    #[error("group {group} has no device")]
    NoDevice {
        /// The group.
        group: u32,
    },
    /// There is no default domain (ENOMEM).
    #[error("no default domain for the group: {0}")]
    NoDomain(DomainError),
    /// No memory for the claim (ENOMEM).
    #[error("no memory for the claim")]
    NoMemory(#[from] OutOfMemory),
}

fn pasid_text(pasid: Option<Pasid>) -> String {
    pasid.map_or("no PASID".into(), |pasid| format!("PASID {pasid}"))
}

impl Group {
    /// Claims the group for a user: DMA without a PASID is blocked from here until the user attaches
    /// a domain. The same owner may claim again; the group is given back with the last claim.
    ///
    /// # Errors
    /// [`OwnershipError::OtherOwner`] and [`OwnershipError::DriverInUse`] if the group is in use,
    /// [`OwnershipError::Attached`] if a domain is attached (`__iommu_take_dma_ownership`).
    pub fn claim_dma_owner(
        self: &Arc<Self>,
        owner: OwnerId,
    ) -> Result<DmaOwnership, OwnershipError> {
        let group = self.id();
        let old = {
            let mut state = self.lock();
            match state.owner {
                Some(other) if state.uses > 0 && other != owner => {
                    return Err(OwnershipError::OtherOwner { group });
                }
                None if state.uses > 0 => return Err(OwnershipError::DriverInUse { group }),
                _ => {}
            }
            if state.uses == 0
                && let Some((pasid, route)) = state.first_attached()
            {
                return Err(OwnershipError::Attached {
                    group,
                    pasid,
                    domain: route.domain.id(),
                });
            }
            failpoint::allocation()?;
            state.uses += 1;
            if state.uses == 1 {
                state.owner = Some(owner);
                state.reset_route(None)
            } else {
                None
            }
        };
        self.drain(old);
        Ok(DmaOwnership {
            group: Arc::clone(self),
            owner,
        })
    }

    fn release_dma_owner(&self) {
        let old: Vec<_> = {
            let mut state = self.lock();
            state.uses -= 1;
            if state.uses > 0 {
                return;
            }
            state.owner = None;
            // An owner detaches before it gives a group back; what is still attached goes here, so
            // that no domain of a user survives the claim.
            let mut routes: Vec<_> = state.routes.keys().copied().collect();
            if !routes.contains(&None) {
                routes.push(None);
            }
            routes
                .into_iter()
                .filter_map(|pasid| state.reset_route(pasid))
                .collect()
        };
        self.drain(old);
    }

    /// Counts one use of the DMA API and gives the default domain, which is made the first time.
    pub(crate) fn begin_dma_api(&self) -> Result<Arc<DmaSpace>, OwnershipError> {
        let group = self.id();
        let (space, old) = {
            let mut state = self.lock();
            if state.owner.is_some() {
                return Err(OwnershipError::Owned { group });
            }
            if let Some(route) = state.routes.get(&None).filter(|route| !route.default) {
                return Err(OwnershipError::Attached {
                    group,
                    pasid: None,
                    domain: route.domain.id(),
                });
            }
            let space = match &state.default {
                Some(space) => Arc::clone(space),
                None => {
                    let devices = state.live();
                    let first = devices.first().ok_or(OwnershipError::NoDevice { group })?;
                    let reserved = devices
                        .iter()
                        .flat_map(|device| device.reserved_regions())
                        .filter(|region| region.kind != ReservedKind::DirectRelaxable)
                        .map(|region| region.range);
                    let space = DmaSpace::new(self.domains(), first.format(), reserved)
                        .map_err(OwnershipError::NoDomain)?;
                    state.default = Some(Arc::clone(&space));
                    space
                }
            };
            state.uses += 1;
            let old = if state.routes.contains_key(&None) {
                None
            } else {
                state.reset_route(None)
            };
            (space, old)
        };
        self.drain(old);
        Ok(space)
    }

    /// Ends one use of the DMA API. The default domain stays, as in the kernel.
    pub(crate) fn end_dma_api(&self) {
        self.lock().uses -= 1;
    }
}

/// One claim of a group by a user. Dropping the last one gives the group back: whatever is still
/// attached is detached, and the default domain, if there is one, is the primary one again.
pub struct DmaOwnership {
    group: Arc<Group>,
    owner: OwnerId,
}

impl DmaOwnership {
    /// The group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The owner.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }
}

impl Drop for DmaOwnership {
    fn drop(&mut self) {
        self.group.release_dma_owner();
    }
}

impl fmt::Debug for DmaOwnership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaOwnership")
            .field("group", &self.group.id())
            .field("owner", &self.owner)
            .finish()
    }
}
