//! One device that programs can open.

use std::{fmt, sync::Arc, time::Duration};

use ioasid_core::{
    PciAddress,
    inspect::{Inspect, Node},
    observe::Watch,
};
use ioasid_iommu::{FaultLog, Requests};

use super::{file::DeviceFile, group::VfioGroup};
use crate::{
    base::error::{BindError, RegionError, TokenError},
    device::{Feature, Token, Watched, core::DeviceCore},
    model::{DeviceModel, Passthrough},
};

/// A device under `/dev/vfio/devices`.
pub struct VfioDevice {
    index: u32,
    name: String,
    bus_name: String,
    group: Arc<VfioGroup>,
    core: Arc<DeviceCore>,
}

/// What GET_INFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device can be reset.
    pub reset: bool,
    /// Number of region indexes.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
    /// Widths of the atomic operations that the device completes: 1 for 32 bits, 2 for 64, 4 for 128.
    pub atomics: u32,
}

impl VfioDevice {
    pub(crate) fn new(
        index: u32,
        bus_name: String,
        group: Arc<VfioGroup>,
        model: Arc<dyn DeviceModel>,
        passthrough: Passthrough,
        watch: &Arc<Watch>,
    ) -> Arc<Self> {
        let name = format!("vfio{index}");
        let known_as = if bus_name.is_empty() {
            &name
        } else {
            &bus_name
        };
        let watched = Watched::new(known_as, watch);
        Arc::new(VfioDevice {
            index,
            name,
            bus_name,
            group,
            core: DeviceCore::new(model, passthrough, watched),
        })
    }

    /// The name under `/dev/vfio/devices`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number in the name.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its name on its bus: a PCI address, or the UUID of a mediated device; empty if it has none.
    pub fn bus_name(&self) -> &str {
        &self.bus_name
    }

    /// Its name on its bus, or the one under `/dev/vfio/devices` if it has none.
    pub fn known_as(&self) -> &str {
        match self.bus_name.is_empty() {
            true => &self.name,
            false => &self.bus_name,
        }
    }

    /// The number of its group; a child's is not its parent's.
    pub fn group_number(&self) -> u32 {
        self.group.number()
    }

    /// Its group.
    pub fn group(&self) -> &Arc<VfioGroup> {
        &self.group
    }

    pub(super) fn core(&self) -> &Arc<DeviceCore> {
        &self.core
    }

    /// The model behind it.
    pub fn model(&self) -> &Arc<dyn DeviceModel> {
        self.core.hardware().model()
    }

    /// How it reaches its address space.
    pub fn passthrough(&self) -> &Passthrough {
        self.core.hardware().passthrough()
    }

    /// Whether it is a mediated device: a child with a default PASID, or an emulated one.
    pub fn is_child(&self) -> bool {
        self.core.is_child()
    }

    /// The device behind the IOMMU that issues its requests, and which of that device's they are. None
    /// for a child that is not bound, and for an emulated device.
    pub fn requester(&self) -> Option<(PciAddress, Requests)> {
        let (device, requests) = self.core.hardware().requester()?;
        Some((device.address(), requests))
    }

    /// The faults of its DMA.
    pub fn faults(&self) -> &Arc<FaultLog> {
        self.core.faults()
    }

    /// Says whether BARs can be mapped. They cannot until whatever serves mappings says so.
    pub fn set_mappable(&self, mappable: bool) {
        self.core.registers().set_mappable(mappable);
    }

    /// Opens it. The file can do nothing until it is bound.
    ///
    /// # Errors
    /// [`BindError::Gone`] while the device is being removed.
    pub fn open(self: &Arc<Self>) -> Result<Arc<DeviceFile>, BindError> {
        let number = self.core.users().open()?;
        Ok(Arc::new(DeviceFile::new(Arc::clone(self), number)))
    }

    /// Open files, bound or not.
    pub fn open_files(&self) -> usize {
        self.core.users().counts().open
    }

    /// Whether a program has bound it.
    pub fn is_bound(&self) -> bool {
        self.core.users().counts().bound
    }

    /// Resets it as the host may at any time (`reset` in sysfs), whether it is in use or not.
    pub fn reset_by_host(&self) {
        let _exclusive = self.core.gate().exclusive();
        self.core.reset();
    }

    /// Writes configuration space as the host may at any time (`config` in sysfs), whether the device is
    /// in use or not.
    ///
    /// # Errors
    /// [`RegionError::BeyondConfig`] if the access passes the end; nothing is written then.
    pub fn write_config_by_host(&self, offset: u64, data: &[u8]) -> Result<(), RegionError> {
        let _exclusive = self.core.gate().exclusive();
        self.core.write_config(offset, data)
    }

    /// Asks its user, by the request interrupt, to give it back.
    pub fn ask_for_release(&self) {
        self.core.interrupts().request_release();
    }

    /// Asks for the device back and waits until no file is open. Afterwards nobody can open it.
    pub(super) fn withdraw(&self, patience: Duration) -> Result<(), BindError> {
        let ask = || self.ask_for_release();
        self.core.users().withdraw(patience, ask)
    }

    /// Says that `physical` is the physical function of this virtual one, and is offered to programs:
    /// from now on a token is needed. Only the first call counts.
    pub fn set_physical(&self, physical: &Arc<VfioDevice>) {
        self.core.sriov().set_physical(physical.core.sriov());
    }

    /// Whether the device is offered whole, so that a token means something to it.
    pub fn knows_tokens(&self) -> bool {
        !self.is_child()
    }

    /// Checks the token that comes with a bind or open; sets that of a physical function whose virtual
    /// functions are not in use.
    ///
    /// # Errors
    /// [`TokenError::Missing`] or [`TokenError::Wrong`] if a token is needed; [`TokenError::Unneeded`]
    /// for one that is given to a device without virtual or physical function.
    pub fn check_token(&self, token: Option<&Token>) -> Result<(), TokenError> {
        self.core.sriov().check(token)
    }

    /// Whether the device can be migrated: stopped, saved and restored.
    pub fn can_migrate(&self) -> bool {
        self.core.has(Feature::Migration)
    }
}

impl Inspect for VfioDevice {
    fn inspect(&self) -> Node {
        let users = self.core.users().counts();
        Node::new()
            .with("group", self.group_number())
            .with(
                "kind",
                match self.passthrough() {
                    Passthrough::Whole(_) => "pdev",
                    Passthrough::Child(_) => "mdev",
                    Passthrough::Emulated(_) => "emulated mdev",
                },
            )
            .with("open_files", users.open)
            .with("bound", users.bound)
            .with("leaving", users.leaving)
            .with("msix_enabled", self.core.interrupts().msix_enabled())
            .with("function", self.model().function().inspect())
            .with("dma_faults", self.faults().inspect())
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDevice")
            .field("name", &self.name)
            .field("group", &self.group_number())
            .field("model", self.model())
            .finish_non_exhaustive()
    }
}
