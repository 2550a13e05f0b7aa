//! Low power: whether a program lets a device sleep while it does not use it
//! (`vfio_pci_core_feature_ioctl_pm`, `drivers/vfio/pci/vfio_pci_core.c`).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ioasid_core::{host::IrqSink, sync::Mutex};

use crate::base::error::FeatureError;

/// Whether the device may sleep.
#[derive(Debug, Default)]
pub(crate) struct LowPower {
    /// Read without the lock; changes with `power`.
    may_sleep: AtomicBool,
    power: Mutex<Power>,
}

#[derive(Debug, Default)]
enum Power {
    #[default]
    Awake,
    /// It may; the first use by a program signals `wake`, if there is one, and ends that.
    MaySleep { wake: Option<Arc<dyn IrqSink>> },
}

impl LowPower {
    /// Whether mappings fault because the device may be asleep.
    pub(crate) fn may_sleep(&self) -> bool {
        self.may_sleep.load(Ordering::Acquire)
    }

    /// Lets the device sleep.
    ///
    /// # Errors
    /// [`FeatureError::LowPowerAlready`].
    pub(crate) fn enter(&self, wake: Option<Arc<dyn IrqSink>>) -> Result<(), FeatureError> {
        let mut power = self.power.lock();
        if matches!(*power, Power::MaySleep { .. }) {
            return Err(FeatureError::LowPowerAlready);
        }
        *power = Power::MaySleep { wake };
        self.may_sleep.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends that, without a signal.
    pub(crate) fn exit(&self) {
        *self.power.lock() = Power::Awake;
        self.may_sleep.store(false, Ordering::Release);
    }

    /// A program uses the device: one that may sleep with an eventfd is awake from now on.
    pub(crate) fn wake(&self) {
        if self.may_sleep() {
            let mut power = self.power.lock();
            if let Power::MaySleep { wake: Some(wake) } = &*power {
                wake.signal();
                *power = Power::Awake;
                self.may_sleep.store(false, Ordering::Release);
            }
        }
    }
}
