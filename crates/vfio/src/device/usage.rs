//! One use of a device, from the bind or open that begins it until the device is as new.

use std::sync::Arc;

use ioasid_iommufd::{Context, ObjectId};

use super::{binding::Binding, core::DeviceCore};
use crate::base::error::Result;

/// A device in use by one file, or by the files of its group.
///
/// Dropping it ends the use, in this order: bus mastering off; a child's queue disabled, drained and its
/// page requests flushed; the device released and pristine; interrupts off; detached; the child's PASID
/// freed; the device free for the next user.
#[derive(Debug)]
pub(crate) struct DeviceUse {
    // Fields are dropped in this order, after the device has been stopped.
    binding: Option<Binding>,
    reservation: Reservation,
}

/// The device is reserved for one user. Dropping it frees the device.
#[derive(Debug)]
struct Reservation(Arc<DeviceCore>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.free();
    }
}

impl DeviceUse {
    /// Reserves the device for its file `number` and binds it to `context`; the id of the object that
    /// stands for it there too.
    ///
    /// # Errors
    /// [`BindError::BoundElsewhere`](crate::error::BindError::BoundElsewhere), or as [`Binding::new`].
    pub(crate) fn bind(
        core: &Arc<DeviceCore>,
        number: u64,
        context: &Arc<Context>,
    ) -> Result<(Self, ObjectId)> {
        core.reserve(number)?;
        let reservation = Reservation(Arc::clone(core));
        let binding = core.bind(context)?;
        let id = binding.id();
        let binding = Some(binding);
        Ok((
            DeviceUse {
                binding,
                reservation,
            },
            id,
        ))
    }

    /// Reserves the device for its file `number` and has `open` bind and attach it; that gives nothing
    /// if the device is bound for longer than this use.
    ///
    /// # Errors
    /// [`BindError::BoundElsewhere`](crate::error::BindError::BoundElsewhere), or what `open` says.
    pub(crate) fn open(
        core: &Arc<DeviceCore>,
        number: u64,
        open: impl FnOnce() -> Result<Option<Binding>>,
    ) -> Result<Self> {
        core.reserve(number)?;
        let reservation = Reservation(Arc::clone(core));
        let binding = open()?;
        Ok(DeviceUse {
            binding,
            reservation,
        })
    }

    /// The device in its context, if it is bound by this use.
    pub(crate) fn binding(&self) -> Option<&Binding> {
        self.binding.as_ref()
    }
}

impl Drop for DeviceUse {
    fn drop(&mut self) {
        let core = &self.reservation.0;
        let _exclusive = core.gate().exclusive();
        core.stop();
    }
}
