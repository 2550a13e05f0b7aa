//! What a program can ask of a device beyond registers and interrupts: low power, tokens, and stores
//! that an eventfd makes (`drivers/vfio/pci/vfio_pci_core.c`, `vfio_pci_rdwr.c`).

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::{
    host::{EventfdWatch, FdError, IrqSink},
    sync::Mutex,
};

use super::{DeviceFile, VfioDevice, token::Token};
use crate::{
    error::{Error, Result},
    model::Passthrough,
    region::RegionIndex,
};

/// Ioeventfds of one device.
const MAX_IOEVENTFDS: usize = 1000;

/// What a program has made of a device, beside its registers and interrupts.
#[derive(Debug, Default)]
pub(super) struct Features {
    /// Whether the program lets the device sleep. Changes with `power`.
    may_sleep: AtomicBool,
    power: Mutex<Power>,
    stores: Mutex<Vec<Ioeventfd>>,
}

/// Whether the device may sleep while nobody uses it.
#[derive(Debug, Default)]
enum Power {
    #[default]
    Awake,
    /// It may; the first use by a program signals `wake`, if there is one, and ends that.
    MaySleep { wake: Option<Arc<dyn IrqSink>> },
}

/// A feature that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The token of a physical function.
    Token,
    /// Low power, and the way back.
    LowPower,
    /// A log of the pages that the device writes.
    DmaLog,
}

/// A store that an eventfd makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreRequest {
    /// File offset of the register.
    pub offset: u64,
    /// What is stored, in the low bytes.
    pub data: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
}

#[derive(Debug)]
struct Ioeventfd {
    request: StoreRequest,
    /// Cleared when the store is taken back, under the device's gate.
    listener: Arc<Store>,
    _watch: Box<dyn EventfdWatch>,
}

struct Store {
    device: Weak<VfioDevice>,
    active: AtomicBool,
    bar: u8,
    offset: u64,
    data: [u8; 8],
    size: usize,
}

impl IrqSink for Store {
    fn signal(&self) {
        let Some(device) = self.device.upgrade() else {
            return;
        };
        let _shared = device.shared();
        let data = self.data.get(..self.size).unwrap_or_default();
        if self.active.load(Ordering::Acquire) {
            // Memory that does not answer loses the store, as on hardware.
            let _ = device.store_at(self.bar, self.offset, data);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("bar", &self.bar)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl DeviceFile {
    /// Whether the device has a feature.
    pub fn has_feature(&self, feature: Feature) -> bool {
        match feature {
            Feature::Token => self.device.has_token(),
            Feature::LowPower => !self.device.is_child(),
            // What software copies is no DMA.
            Feature::DmaLog => !matches!(self.device.passthrough, Passthrough::Emulated(_)),
        }
    }

    /// Sets the token that users of the virtual functions must know.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`] if it is no physical function.
    pub fn set_token(&self, token: Token) -> Result<()> {
        self.expect_bound()?;
        self.device.set_token(token)
    }

    /// Lets the device sleep while the program does not use it: mappings of its BARs fault. Its next
    /// use by a program signals `wake` and ends that, if `wake` is given; otherwise it sleeps again
    /// afterwards.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`] of a child, [`Error::LowPowerAlready`].
    pub fn enter_low_power(&self, wake: Option<Arc<dyn IrqSink>>) -> Result<()> {
        let _exclusive = self.device.exclusive();
        self.expect_bound()?;
        if !self.has_feature(Feature::LowPower) {
            return Err(Error::NoFeature);
        }
        let features = &self.device.features;
        let mut power = features.power.lock();
        if matches!(*power, Power::MaySleep { .. }) {
            return Err(Error::LowPowerAlready);
        }
        *power = Power::MaySleep { wake };
        // The host takes it from D0 to sleep and back, whatever state the program has put it into.
        self.device.model.function().power_up();
        features.may_sleep.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends that. Nothing to do if the device may not sleep.
    ///
    /// # Errors
    /// [`Error::NotBound`].
    pub fn exit_low_power(&self) -> Result<()> {
        let _exclusive = self.device.exclusive();
        self.expect_bound()?;
        self.device.end_low_power();
        Ok(())
    }

    /// The program uses the device: every ioctl says so first, reads and writes do it by themselves. A
    /// device that may sleep with an eventfd is awake from then on.
    pub fn wake(&self) {
        self.device.wake();
    }

    /// Lets an eventfd, which `watch` finds, make a store each time that it is signalled; for `None`
    /// takes that back.
    ///
    /// # Errors
    /// [`Error::NotBound`]; [`Error::BeyondRegion`] for a store of 8 bytes, outside of the BARs or on
    /// the MSI-X table; [`Error::IoeventfdExists`]; [`Error::NoIoeventfd`] if there is none to take
    /// back, [`Error::TooManyIoeventfds`], or the error of `watch`.
    pub fn store_by_eventfd<W>(&self, request: StoreRequest, watch: Option<W>) -> Result<()>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> std::result::Result<Box<dyn EventfdWatch>, FdError>,
    {
        self.expect_bound()?;
        let bad = || Error::BeyondRegion;
        let (RegionIndex::Bar(bar), offset) = RegionIndex::at(request.offset).map_err(|_| bad())?
        else {
            return Err(bad());
        };
        let function = self.device.model.function();
        let size = function.bar(bar).map_or(0, |bar| bar.size);
        let end = offset.saturating_add(request.size.into());
        let table = function.msix().filter(|msix| msix.bar == bar);
        let on_table = |table: u64, bytes: u64| end > table && offset < table.saturating_add(bytes);
        if end > size
            || table.is_some_and(|msix| on_table(msix.table, msix.table_bytes()))
            || !matches!(request.size, 1 | 2 | 4)
        {
            return Err(bad());
        }
        let mut stores = self.device.features.stores.lock();
        let known = stores.iter().position(|known| known.request == request);
        match (known, watch) {
            (Some(known), None) => {
                let gone = stores.swap_remove(known);
                gone.listener.active.store(false, Ordering::Release);
                Ok(())
            }
            (Some(_), Some(_)) => Err(Error::IoeventfdExists),
            (None, None) => Err(Error::NoIoeventfd),
            (None, Some(_)) if stores.len() >= MAX_IOEVENTFDS => Err(Error::TooManyIoeventfds),
            (None, Some(watch)) => {
                let listener = Arc::new(Store {
                    device: Arc::downgrade(&self.device),
                    active: AtomicBool::new(true),
                    bar,
                    offset,
                    data: request.data.to_le_bytes(),
                    size: request.size.into(),
                });
                let watch = watch(Arc::clone(&listener) as Arc<dyn IrqSink>);
                stores.push(Ioeventfd {
                    request,
                    listener,
                    _watch: watch.map_err(Error::Eventfd)?,
                });
                Ok(())
            }
        }
    }
}

impl VfioDevice {
    /// Whether mappings fault because the device may be asleep.
    pub(super) fn may_sleep(&self) -> bool {
        self.features.may_sleep.load(Ordering::Acquire)
    }

    pub(super) fn wake(&self) {
        if self.may_sleep() {
            let mut power = self.features.power.lock();
            if let Power::MaySleep { wake: Some(wake) } = &*power {
                wake.signal();
                *power = Power::Awake;
                self.features.may_sleep.store(false, Ordering::Release);
            }
        }
    }

    fn end_low_power(&self) {
        *self.features.power.lock() = Power::Awake;
        self.features.may_sleep.store(false, Ordering::Release);
    }

    /// Takes back what a program has made of the device, with the gate held exclusively.
    pub(super) fn clear_features(&self) {
        self.end_low_power();
        self.end_log();
        let stores = std::mem::take(&mut *self.features.stores.lock());
        for store in &stores {
            store.listener.active.store(false, Ordering::Release);
        }
    }
}
