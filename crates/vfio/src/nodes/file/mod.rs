//! One open device file: bind, attach, detach, close; its device's registers are in `access`, its
//! features in `features`.

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

use super::{
    device::{DeviceInfo, VfioDevice},
    group::{BoundAlone, VfioGroup},
};
use crate::{
    base::error::{AttachError, BindError, Error, Result},
    device::{
        binding::{Binding, UserPasid, UserPasids},
        core::DeviceCore,
        irq::{self, IrqIndex, IrqInfo, SetIrqs},
        region::{self, RegionInfo},
        usage::DeviceUse,
    },
};

mod access;
mod features;

/// One open `/dev/vfio/devices/vfioN`. Dropping it closes it.
pub struct DeviceFile {
    device: Arc<VfioDevice>,
    number: u64,
    /// Changes under the state lock and the device's gate.
    bound: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Unbound,
    Bound(Bound),
    /// Opened through its group, which is bound.
    Grouped(Arc<VfioGroup>),
    Closed,
}

/// Bound by its own file.
#[derive(Debug)]
struct Bound {
    // Fields are dropped in this order: the group can be opened when the device is free.
    use_: DeviceUse,
    _alone: BoundAlone,
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

    fn core(&self) -> &DeviceCore {
        self.device.core()
    }

    /// Its number among the files of the device.
    pub(super) fn number(&self) -> u64 {
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
    /// In this order: [`BindError::AlreadyBound`], also if it was opened through its group;
    /// [`GroupError::Open`](crate::error::GroupError::Open); the error of `context`;
    /// [`BindError::BoundElsewhere`]; what binding to the context says, for a whole device
    /// [`NotOwner`](ioasid_iommufd::AttachError::NotOwner) while a driver of the host or somebody else
    /// owns its DMA, for a child [`BindError::NoPasid`].
    pub fn bind_with<E: From<Error>>(
        &self,
        context: impl FnOnce() -> std::result::Result<Arc<Context>, E>,
    ) -> std::result::Result<ObjectId, E> {
        self.state.lock().expect_unbound().map_err(Error::from)?;
        let alone = self.device.group().bind_alone().map_err(Error::from)?;
        let context = context()?;
        let mut state = self.state.lock();
        state.expect_unbound().map_err(Error::from)?;
        let core = self.device.core();
        let (use_, id) = DeviceUse::bind(core, self.number, &context)?;
        *state = State::Bound(Bound {
            use_,
            _alone: alone,
        });
        self.set_bound(true);
        Ok(id)
    }

    /// Undoes a bind whose answer could not be delivered: as closing, but the file stays open and
    /// can be bound again.
    pub fn unbind(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Bound(_)) {
            self.set_bound(false);
            *state = State::Unbound;
        }
    }

    /// Whether PASIDs of the user's choice can be attached to the device, asked before one is known.
    ///
    /// # Errors
    /// [`AttachError::NoUserPasids`] of a mediated device.
    pub fn user_pasids(&self) -> Result<UserPasids, AttachError> {
        self.core().user_pasids()
    }

    /// Attaches the device, or a PASID of the user's choice, to the IOAS or page table `pt_id`, or to
    /// another one than before; returns the id of the page table.
    ///
    /// # Errors
    /// [`BindError::NotBound`] or [`Error::Iommufd`]. What was attached stays attached.
    pub fn attach(&self, pt_id: ObjectId, pasid: Option<UserPasid>) -> Result<ObjectId> {
        self.state.lock().binding()?.attach(pt_id, pasid)
    }

    /// Detaches. Nothing is attached: nothing to do.
    ///
    /// # Errors
    /// [`BindError::NotBound`].
    pub fn detach(&self, pasid: Option<UserPasid>) -> Result<(), BindError> {
        self.state.lock().binding()?.detach(pasid);
        Ok(())
    }

    /// What the device has.
    ///
    /// # Errors
    /// [`BindError::NotBound`].
    pub fn info(&self) -> Result<DeviceInfo> {
        self.expect_bound()?;
        Ok(DeviceInfo {
            reset: true,
            regions: region::REGIONS,
            irqs: irq::IRQ_INDEXES,
            atomics: self.core().hardware().function().atomics() >> 7,
        })
    }

    /// What the region `index` is.
    ///
    /// # Errors
    /// [`BindError::NotBound`], or that of the index.
    pub fn region_info(&self, index: u32) -> Result<RegionInfo> {
        self.expect_bound()?;
        Ok(self.core().registers().info(index)?)
    }

    /// What the interrupt index `index` is.
    ///
    /// # Errors
    /// [`BindError::NotBound`], or that of the index.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        self.expect_bound()?;
        Ok(IrqIndex::new(index)?.info(self.core().hardware().function())?)
    }

    /// Connects, disconnects or fires interrupts.
    ///
    /// # Errors
    /// [`BindError::NotBound`], or as [`Interrupts::set`](crate::irq::Interrupts::set).
    pub fn set_irqs(&self, request: &SetIrqs) -> Result<()> {
        let core = self.core();
        let _shared = core.gate().shared();
        self.expect_bound()?;
        let request = core.watched().irqs(request);
        Ok(core
            .interrupts()
            .set(core.hardware().function(), &request)?)
    }

    /// Lets an eventfd unmask the wired interrupt.
    ///
    /// # Errors
    /// [`BindError::NotBound`], or as [`Interrupts::unmask_by`](crate::irq::Interrupts::unmask_by).
    pub fn unmask_by<W>(&self, watch: Option<W>) -> Result<()>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> std::result::Result<Box<dyn EventfdWatch>, FdError>,
    {
        let core = self.core();
        let _shared = core.gate().shared();
        self.expect_bound()?;
        let function = core.hardware().function();
        Ok(core.interrupts().unmask_by(function, watch)?)
    }

    /// Resets the device's registers and stops its DMA. Configuration space, BARs, interrupts and
    /// attachments are kept.
    ///
    /// # Errors
    /// [`BindError::NotBound`].
    pub fn reset(&self) -> Result<()> {
        let _exclusive = self.core().gate().exclusive();
        self.expect_bound()?;
        self.core().reset();
        Ok(())
    }

    /// Closes the file: what was bound is released (`device/usage.rs` has the order). Never fails, and
    /// does nothing the second time.
    pub fn close(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Closed) {
            return;
        }
        if !matches!(*state, State::Unbound) {
            self.set_bound(false);
        }
        let old = std::mem::replace(&mut *state, State::Closed);
        if let State::Grouped(group) = old {
            group.close_device(&self.device);
        } else {
            drop(old);
        }
        drop(state);
        self.core().users().close();
    }

    /// The file is one of `group`'s, and can be used.
    pub(super) fn enter_group(&self, group: &Arc<VfioGroup>) {
        let mut state = self.state.lock();
        *state = State::Grouped(Arc::clone(group));
        self.set_bound(true);
    }

    /// Whether it was opened through the group: it is bound from the start, and what is attached is
    /// the container's business.
    pub fn is_of_group(&self) -> bool {
        matches!(*self.state.lock(), State::Grouped(_))
    }

    /// Lets accesses in from now on, or keeps them out: none is under way then.
    fn set_bound(&self, bound: bool) {
        let _exclusive = self.core().gate().exclusive();
        self.bound.store(bound, Ordering::Release);
    }

    /// Asked under the gate, the answer holds as long as the gate is held.
    fn expect_bound(&self) -> Result<(), BindError> {
        if self.is_bound() {
            Ok(())
        } else {
            Err(BindError::NotBound)
        }
    }
}

impl State {
    fn expect_unbound(&self) -> Result<(), BindError> {
        match self {
            State::Unbound => Ok(()),
            State::Bound(_) | State::Grouped(_) => Err(BindError::AlreadyBound),
            State::Closed => Err(BindError::NotBound),
        }
    }

    /// The device, bound by its own file.
    fn binding(&self) -> Result<&Binding, BindError> {
        match self {
            State::Bound(bound) => bound.use_.binding().ok_or(BindError::NotBound),
            State::Unbound | State::Grouped(_) | State::Closed => Err(BindError::NotBound),
        }
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
