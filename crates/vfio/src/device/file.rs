//! One open device file: bind, attach, detach, close.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::{
    host::{EventfdWatch, FdError, IrqSink},
    sync::Mutex,
};
use ioasid_iommufd::{Context, ObjectId};

use super::{DeviceInfo, VfioDevice, bound::BoundTo};
use crate::{
    error::{Error, Result},
    group::{BoundAlone, VfioGroup},
    irq::{IrqInfo, SetIrqs},
    model::Passthrough,
    region::{RegionIndex, RegionInfo},
};

/// One open `/dev/vfio/devices/vfioN`. Dropping it closes it.
pub struct DeviceFile {
    pub(super) device: Arc<VfioDevice>,
    number: u64,
    /// Changes under the state lock and the device's gate.
    pub(super) bound: AtomicBool,
    pub(super) state: Mutex<State>,
}

#[derive(Debug)]
pub(super) enum State {
    Unbound,
    Bound(Bound),
    /// Opened through its group, which is bound.
    Grouped(Arc<VfioGroup>),
    Closed,
}

/// Bound by its own file.
#[derive(Debug)]
pub(super) struct Bound {
    device: BoundTo,
    /// Nobody opens the group meanwhile.
    alone: BoundAlone,
}

impl DeviceFile {
    pub(super) fn new(device: Arc<VfioDevice>, number: u64) -> Self {
        DeviceFile {
            device,
            number,
            bound: AtomicBool::new(false),
            state: Mutex::new(State::Unbound),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<VfioDevice> {
        &self.device
    }

    /// Its number among the files of the device.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the file is bound: until then every operation but bind is refused.
    pub fn is_bound(&self) -> bool {
        self.bound.load(Ordering::Acquire)
    }

    /// Binds the device to `context` and opens it for use; returns the id of the device object.
    ///
    /// # Errors
    /// As [`DeviceFile::bind_with`].
    pub fn bind(&self, context: &Arc<Context>) -> Result<ObjectId> {
        self.bind_with(|| Ok(Arc::clone(context)))
    }

    /// As [`DeviceFile::bind`], with a context that is looked up in between, so that errors keep
    /// their order. No lock is held while `context` runs: it may read a program's memory.
    ///
    /// A whole device claims the DMA ownership of its group. A child claims nothing, and works while
    /// its parent's driver is busy: it gets its default PASID.
    ///
    /// # Errors
    /// In this order: [`Error::AlreadyBound`], also if it was opened through its group;
    /// [`Error::GroupBusy`]; the error of `context`; [`Error::BoundElsewhere`];
    /// what binding to the context says, for a whole device
    /// [`NotOwner`](ioasid_iommufd::Error::NotOwner) while a driver of the host or a stranger owns
    /// its DMA, for a child [`Error::Exhausted`] when no PASID is left.
    pub fn bind_with<E: From<Error>>(
        &self,
        context: impl FnOnce() -> std::result::Result<Arc<Context>, E>,
    ) -> std::result::Result<ObjectId, E> {
        self.state.lock().expect_unbound()?;
        let alone = self.device.group.bind_alone()?;
        let context = context()?;
        let mut state = self.state.lock();
        state.expect_unbound()?;
        self.device.take(self.number)?;
        let device = self.device.bind(&context).inspect_err(|_| {
            self.device.give_back(self.number);
        })?;
        let id = device.id();
        *state = State::Bound(Bound { device, alone });
        let _exclusive = self.device.exclusive();
        self.bound.store(true, Ordering::Release);
        Ok(id)
    }

    /// Undoes a bind whose answer could not be delivered: as closing, but the file stays open and
    /// can be bound again.
    pub fn unbind(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Bound(_)) {
            self.release(&mut state, State::Unbound);
        }
    }

    /// Attaches the device to the IOAS or page table `pt_id`, or to another one than before, and
    /// returns the id of the page table. `pasid` is one of the user's choice.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoUserPasid`] for a PASID on a child, or
    /// [`Error::Iommufd`]. What was attached stays attached.
    pub fn attach(&self, pt_id: ObjectId, pasid: Option<u32>) -> Result<ObjectId> {
        let state = self.state.lock();
        let bound = state.bound()?;
        match pasid {
            None => bound.attach(pt_id),
            Some(_) if self.device.is_child() => Err(Error::NoUserPasid),
            Some(pasid) => bound.attach_pasid(pt_id, pasid),
        }
    }

    /// Detaches. Nothing is attached: nothing to do.
    ///
    /// # Errors
    /// [`Error::NotBound`], or [`Error::NoUserPasid`] for a PASID on a child.
    pub fn detach(&self, pasid: Option<u32>) -> Result<()> {
        let state = self.state.lock();
        let bound = state.bound()?;
        match pasid {
            None => bound.detach(),
            Some(_) if self.device.is_child() => return Err(Error::NoUserPasid),
            Some(pasid) => bound.detach_pasid(pasid),
        }
        Ok(())
    }

    /// What the device has.
    ///
    /// # Errors
    /// [`Error::NotBound`].
    pub fn info(&self) -> Result<DeviceInfo> {
        self.expect_bound()?;
        Ok(self.device.info())
    }

    /// What the region `index` is.
    ///
    /// # Errors
    /// [`Error::NotBound`], or [`Error::NoSuchIndex`].
    pub fn region_info(&self, index: u32) -> Result<RegionInfo> {
        self.expect_bound()?;
        self.device.region_info(index)
    }

    /// What the interrupt index `index` is.
    ///
    /// # Errors
    /// [`Error::NotBound`], or [`Error::NoSuchIndex`].
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        self.expect_bound()?;
        self.device.irq_info(index)
    }

    /// Connects, disconnects or fires interrupts.
    ///
    /// # Errors
    /// [`Error::NotBound`], or as [`Interrupts::set`](crate::irq::Interrupts::set).
    pub fn set_irqs(&self, request: &SetIrqs) -> Result<()> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        let function = self.device.model.function();
        self.device.interrupts.set(function, request)
    }

    /// Lets an eventfd unmask the wired interrupt.
    ///
    /// # Errors
    /// [`Error::NotBound`], or as [`Interrupts::unmask_by`](crate::irq::Interrupts::unmask_by).
    pub fn unmask_by<W>(&self, watch: Option<W>) -> Result<()>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> std::result::Result<Box<dyn EventfdWatch>, FdError>,
    {
        let _shared = self.device.shared();
        self.expect_bound()?;
        let function = self.device.model.function();
        self.device.interrupts.unmask_by(function, watch)
    }

    /// Resets the device's registers and stops its DMA. Configuration space, BARs, interrupts and
    /// attachments are kept.
    ///
    /// # Errors
    /// [`Error::NotBound`].
    pub fn reset(&self) -> Result<()> {
        let _exclusive = self.device.exclusive();
        self.expect_bound()?;
        self.device.reset_model();
        Ok(())
    }

    /// Reads at the file offset `offset` (a region's offset plus one inside it); returns the number
    /// of bytes, which is less than asked for at the end of a BAR.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoSuchIndex`], [`Error::BeyondRegion`],
    /// [`Error::BeyondConfig`], [`Error::MemoryDisabled`].
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        self.device.wake();
        self.device.read(offset, data)
    }

    /// Looks at an access as a whole, before any part of it is made: one to configuration space that
    /// passes its end is refused (`vfio_pci_config_rw_single`), while one to a BAR is cut short.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::BeyondConfig`].
    pub fn check_access(&self, offset: u64, len: u64) -> Result<()> {
        self.expect_bound()?;
        let size = self.device.model.function().config_size();
        match RegionIndex::at(offset) {
            Ok((RegionIndex::Config, at)) if len > 0 && at.saturating_add(len) > size => {
                Err(Error::BeyondConfig)
            }
            _ => Ok(()),
        }
    }

    /// Writes at the file offset `offset`; as [`DeviceFile::read`].
    ///
    /// # Errors
    /// As [`DeviceFile::read`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<usize> {
        if super::access::is_register(offset) {
            let _shared = self.device.shared();
            self.expect_bound()?;
            self.device.wake();
            self.device.write(offset, data)
        } else {
            let _exclusive = self.device.exclusive();
            self.expect_bound()?;
            self.device.wake();
            self.device.write(offset, data)
        }
    }

    /// Closes the file: what was bound is released. Never fails, and does nothing the second time.
    ///
    /// The order: bus mastering off; a child's queue disabled, drained and its page requests
    /// flushed; the device released and pristine; interrupts off; detached; the child's PASID freed.
    pub fn close(&self) {
        let mut state = self.state.lock();
        match &*state {
            State::Closed => return,
            State::Unbound => *state = State::Closed,
            State::Bound(_) => self.release(&mut state, State::Closed),
            State::Grouped(group) => {
                let group = Arc::clone(group);
                *state = State::Closed;
                self.leave_group(&group);
            }
        }
        drop(state);
        self.device.use_.lock().open -= 1;
        self.device.closed.notify_all();
    }

    fn release(&self, state: &mut State, next: State) {
        {
            let _exclusive = self.device.exclusive();
            self.bound.store(false, Ordering::Release);
            self.device.stop();
        }
        let mut alone = None;
        if let State::Bound(bound) = std::mem::replace(state, next) {
            // Dropping what is bound detaches it.
            drop(bound.device);
            alone = Some(bound.alone);
        }
        self.device.free_pasid();
        self.device.give_back(self.number);
        // The group can be opened from here on.
        drop(alone);
    }

    /// Asked under the gate, the answer holds as long as the gate is held.
    pub(super) fn expect_bound(&self) -> Result<()> {
        if self.is_bound() {
            Ok(())
        } else {
            Err(Error::NotBound)
        }
    }
}

impl State {
    fn expect_unbound(&self) -> Result<()> {
        match self {
            State::Unbound => Ok(()),
            State::Bound(_) | State::Grouped(_) => Err(Error::AlreadyBound),
            State::Closed => Err(Error::NotBound),
        }
    }

    fn bound(&self) -> Result<&BoundTo> {
        match self {
            State::Bound(bound) => Ok(&bound.device),
            State::Unbound | State::Grouped(_) | State::Closed => Err(Error::NotBound),
        }
    }
}

impl VfioDevice {
    /// Reserves the device for the file `number`.
    pub(super) fn take(&self, number: u64) -> Result<()> {
        let mut users = self.use_.lock();
        match users.bound {
            Some(_) => return Err(Error::BoundElsewhere),
            None => {
                users.bound = Some(number);
                self.count_token_user(true);
            }
        }
        drop(users);
        self.model.function().tell_watchers();
        Ok(())
    }

    pub(super) fn give_back(&self, number: u64) {
        let mut users = self.use_.lock();
        if users.bound == Some(number) {
            users.bound = None;
            self.count_token_user(false);
            drop(users);
            self.model.function().tell_watchers();
        }
    }

    /// Stops the device and makes it pristine, with the gate held.
    pub(super) fn stop(&self) {
        let function = self.model.function();
        function.clear_bus_master();
        if let Passthrough::Child(child) = &self.passthrough {
            child.quiesce();
        }
        self.clear_features();
        self.model.release();
        self.end_migration();
        self.interrupts.clear(function);
        function.restore();
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for DeviceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceFile")
            .field("device", &self.device.name())
            .field("number", &self.number)
            .field("bound", &self.is_bound())
            .finish_non_exhaustive()
    }
}
