//! A device with all that a program can make of it.

use std::{fmt, sync::Arc};

use ioasid_iommu::{FaultLog, FaultSink};
use ioasid_iommufd::Context;

use super::{
    binding::{Binding, UserPasids},
    dma_log::DmaLog,
    gate::Gate,
    hardware::Hardware,
    ioeventfd::Ioeventfds,
    irq::Interrupts,
    migration::Migration,
    registers::Registers,
    token::Sriov,
    users::Users,
    watched::Watched,
};
use crate::{
    base::{
        abi::Feature,
        error::{AttachError, BindError, FeatureError, RegionError, Result},
    },
    model::{DeviceModel, Migrate, Passthrough},
    pci::ConfigEffect,
};

/// The parts of one device. What concerns several of them at once is here; all else is the part's own
/// business.
pub(crate) struct DeviceCore {
    gate: Arc<Gate>,
    hardware: Arc<Hardware>,
    registers: Arc<Registers>,
    interrupts: Interrupts,
    ioeventfds: Ioeventfds,
    migration: Arc<Migration>,
    dma_log: DmaLog,
    sriov: Sriov,
    faults: Arc<FaultLog>,
    users: Users,
    watched: Watched,
}

impl DeviceCore {
    pub(crate) fn new(
        model: Arc<dyn DeviceModel>,
        passthrough: Passthrough,
        watched: Watched,
    ) -> Arc<Self> {
        let function = model.function();
        let sriov = Sriov::new(function.sriov().is_some(), function.is_virtual());
        let gate = Arc::new(Gate::default());
        let hardware = Hardware::new(model, passthrough);
        Arc::new(DeviceCore {
            registers: Registers::new(&hardware, &gate, &watched),
            migration: Migration::new(&gate),
            gate,
            hardware,
            interrupts: Interrupts::default(),
            ioeventfds: Ioeventfds::default(),
            dma_log: DmaLog::default(),
            sriov,
            faults: FaultLog::new(FaultLog::DEFAULT_CAPACITY),
            users: Users::default(),
            watched,
        })
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    pub(crate) fn registers(&self) -> &Arc<Registers> {
        &self.registers
    }

    pub(crate) fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    pub(crate) fn ioeventfds(&self) -> &Ioeventfds {
        &self.ioeventfds
    }

    /// The migration of a device that can be migrated, and how its model does that.
    ///
    /// # Errors
    /// [`FeatureError::Absent`].
    pub(crate) fn migration(&self) -> Result<(&Arc<Migration>, &dyn Migrate), FeatureError> {
        let model = self.hardware.model().migration();
        let model = model.ok_or(FeatureError::Absent(Feature::Migration))?;
        Ok((&self.migration, model))
    }

    pub(crate) fn dma_log(&self) -> &DmaLog {
        &self.dma_log
    }

    pub(crate) fn sriov(&self) -> &Sriov {
        &self.sriov
    }

    pub(crate) fn faults(&self) -> &Arc<FaultLog> {
        &self.faults
    }

    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    pub(crate) fn users(&self) -> &Users {
        &self.users
    }

    /// Whether it is a mediated device: a child with a default PASID, or an emulated one.
    pub(crate) fn is_child(&self) -> bool {
        !matches!(self.hardware.passthrough(), Passthrough::Whole(_))
    }

    /// Whether PASIDs of the user's choice can be attached: this is decided here alone.
    ///
    /// # Errors
    /// [`AttachError::NoUserPasids`] of a mediated device.
    pub(crate) fn user_pasids(&self) -> Result<UserPasids, AttachError> {
        match self.is_child() {
            true => Err(AttachError::NoUserPasids),
            false => Ok(UserPasids(())),
        }
    }

    /// Whether the device has a feature.
    pub(crate) fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Token => self.sriov.has_token(),
            Feature::LowPower => !self.is_child(),
            Feature::Migration => self.hardware.model().migration().is_some(),
            // What software copies is no DMA.
            Feature::DmaLog => !matches!(self.hardware.passthrough(), Passthrough::Emulated(_)),
        }
    }

    /// Writes at a file offset, with the gate held: exclusively outside BARs.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<usize, RegionError> {
        let (count, effect) = self.registers.write(offset, data)?;
        self.follow(effect);
        Ok(count)
    }

    /// Writes configuration space, with the gate held exclusively.
    pub(crate) fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), RegionError> {
        let effect = self.hardware.function().write_config(offset, data)?;
        self.follow(effect);
        Ok(())
    }

    fn follow(&self, effect: ConfigEffect) {
        if effect == ConfigEffect::Reset {
            self.reset();
        }
    }

    /// Resets the device, with the gate held exclusively. A migration is over then.
    pub(crate) fn reset(&self) {
        self.hardware.reset();
        self.migration.end();
    }

    /// Binds the device to `context`.
    ///
    /// # Errors
    /// As [`Binding::new`].
    pub(crate) fn bind(&self, context: &Arc<Context>) -> Result<Binding> {
        let faults = Arc::clone(&self.faults) as Arc<dyn FaultSink>;
        Binding::new(&self.hardware, context, faults)
    }

    /// Reserves the device for its file `number`.
    ///
    /// # Errors
    /// [`BindError::BoundElsewhere`].
    pub(super) fn reserve(&self, number: u64) -> Result<(), BindError> {
        self.users.bind(number, || self.sriov.count_user(true))?;
        self.hardware.function().report_change();
        Ok(())
    }

    /// Ends that.
    pub(super) fn free(&self) {
        self.users.unbind(|| self.sriov.count_user(false));
        self.hardware.function().report_change();
    }

    /// Stops the device and makes it pristine, with the gate held exclusively.
    pub(super) fn stop(&self) {
        let function = self.hardware.function();
        function.clear_bus_master();
        if let Passthrough::Child(child) = self.hardware.passthrough() {
            child.quiesce();
        }
        self.registers.power().exit();
        self.dma_log.stop();
        self.ioeventfds.clear();
        self.hardware.model().release();
        self.migration.end();
        self.interrupts.clear(function);
        function.restore();
    }
}

impl fmt::Debug for DeviceCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCore")
            .field("hardware", &self.hardware)
            .finish_non_exhaustive()
    }
}
