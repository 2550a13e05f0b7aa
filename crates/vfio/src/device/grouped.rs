//! A device that is open through its group: one open device, however many files.

use std::sync::{Arc, atomic::Ordering};

use ioasid_iommufd::Context;

use super::{DeviceFile, VfioDevice, bound::BoundTo, file::State};
use crate::{
    error::{Error, Result},
    group::{Behind, VfioGroup},
};

/// A device that is open through its group.
pub(crate) struct Opening {
    device: Arc<VfioDevice>,
    /// The file that the device is taken for.
    number: u64,
    files: usize,
    /// What goes when the device is closed: nothing, if the device belongs to a container as long as
    /// its group does.
    bound: Option<BoundTo>,
    pins_group: bool,
}

impl Opening {
    /// Opens `device`, for its file `number`.
    pub(crate) fn new(device: &Arc<VfioDevice>, number: u64, behind: &Behind) -> Result<Self> {
        device.take(number)?;
        let bound = match behind {
            Behind::Nothing => Err(Error::BackendState),
            Behind::Container(container, _) => container.open_device(device),
            Behind::Iommufd(context) => {
                let attach = |bound: &BoundTo| {
                    bound.attach(context.vfio_ioas()?)?;
                    Ok(())
                };
                device.bind_to(context, attach).map(Some)
            }
        };
        Ok(Opening {
            bound: bound.inspect_err(|_| device.give_back(number))?,
            device: Arc::clone(device),
            number,
            files: 1,
            pins_group: matches!(behind, Behind::Container(..)),
        })
    }

    /// Whether the group's file is in use as long as the device is open.
    pub(crate) fn pins_group(&self) -> bool {
        self.pins_group
    }

    /// One file more.
    pub(crate) fn open_file(&mut self) {
        self.files += 1;
    }

    /// One file less; says whether that was the last.
    pub(crate) fn close_file(&mut self) -> bool {
        self.files = self.files.saturating_sub(1);
        self.files == 0
    }

    /// Closes the device, in the order of [`DeviceFile::close`]. Says whether that frees the group's
    /// file.
    pub(crate) fn end(self) -> bool {
        {
            let _exclusive = self.device.exclusive();
            self.device.stop();
        }
        let was_bound = self.bound.is_some();
        drop(self.bound);
        if was_bound {
            self.device.free_pasid();
        }
        self.device.give_back(self.number);
        self.pins_group
    }
}

impl VfioDevice {
    /// Binds to `context` and attaches; nothing is left of either if the second fails.
    pub(crate) fn bind_to(
        &self,
        context: &Arc<Context>,
        attach: impl FnOnce(&BoundTo) -> Result<()>,
    ) -> Result<BoundTo> {
        let bound = self.bind(context)?;
        if let Err(error) = attach(&bound) {
            drop(bound);
            self.free_pasid();
            return Err(error);
        }
        Ok(bound)
    }
}

impl DeviceFile {
    /// The file is one of `group`'s, and can be used.
    pub(crate) fn enter_group(&self, group: &Arc<VfioGroup>) {
        let mut state = self.state.lock();
        *state = State::Grouped(Arc::clone(group));
        let _exclusive = self.device.exclusive();
        self.bound.store(true, Ordering::Release);
    }

    /// Ends the use of the device by this file, which was one of `group`'s.
    pub(super) fn leave_group(&self, group: &VfioGroup) {
        {
            let _exclusive = self.device.exclusive();
            self.bound.store(false, Ordering::Release);
        }
        group.close_device(&self.device);
    }

    /// Whether it was opened through the group: it is bound from the start, and what is attached is
    /// the container's business.
    pub fn is_of_group(&self) -> bool {
        matches!(*self.state.lock(), State::Grouped(_))
    }
}
