//! Stores to registers that an eventfd makes (`vfio_pci_ioeventfd`,
//! `drivers/vfio/pci/vfio_pci_rdwr.c`).

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

use super::{region::RegionIndex, registers::Registers};
use crate::base::error::IoeventfdError;

/// Ioeventfds of one device, at most.
const MAX_IOEVENTFDS: usize = 1000;

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

/// The stores of one device.
#[derive(Debug, Default)]
pub(crate) struct Ioeventfds(Mutex<Vec<Ioeventfd>>);

#[derive(Debug)]
struct Ioeventfd {
    request: StoreRequest,
    store: Arc<Store>,
    _watch: Box<dyn EventfdWatch>,
}

/// What an eventfd signals.
struct Store {
    registers: Weak<Registers>,
    /// Cleared when the store is taken back, under the device's gate.
    active: AtomicBool,
    bar: u8,
    offset: u64,
    data: [u8; 8],
    size: usize,
}

impl IrqSink for Store {
    fn signal(&self) {
        let Some(registers) = self.registers.upgrade() else {
            return;
        };
        let _shared = registers.gate().shared();
        let data = self.data.get(..self.size).unwrap_or_default();
        if self.active.load(Ordering::Acquire) {
            // Memory that does not answer loses the store, as on hardware.
            let _ = registers.store_by_eventfd(self.bar, self.offset, data);
        }
    }
}

impl Ioeventfds {
    /// Lets an eventfd, which `watch` finds, make a store each time that it is signalled; for `None`
    /// takes that back.
    ///
    /// # Errors
    /// [`IoeventfdError`]; the error of `watch` is one of them.
    pub(crate) fn set<W>(
        &self,
        registers: &Arc<Registers>,
        request: StoreRequest,
        watch: Option<W>,
    ) -> Result<(), IoeventfdError>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> Result<Box<dyn EventfdWatch>, FdError>,
    {
        let (bar, offset) = register_of(registers, &request)?;
        let mut stores = self.0.lock();
        let known = stores.iter().position(|known| known.request == request);
        match (known, watch) {
            (Some(known), None) => {
                let gone = stores.swap_remove(known);
                gone.store.active.store(false, Ordering::Release);
                Ok(())
            }
            (Some(_), Some(_)) => Err(IoeventfdError::Exists {
                offset: request.offset,
            }),
            (None, None) => Err(IoeventfdError::NotFound {
                offset: request.offset,
            }),
            (None, Some(_)) if stores.len() >= MAX_IOEVENTFDS => Err(IoeventfdError::TooMany {
                limit: MAX_IOEVENTFDS,
            }),
            (None, Some(watch)) => {
                let store = Arc::new(Store {
                    registers: Arc::downgrade(registers),
                    active: AtomicBool::new(true),
                    bar,
                    offset,
                    data: request.data.to_le_bytes(),
                    size: request.size.into(),
                });
                let watch = watch(Arc::clone(&store) as Arc<dyn IrqSink>);
                stores.push(Ioeventfd {
                    request,
                    store,
                    _watch: watch.map_err(IoeventfdError::Eventfd)?,
                });
                Ok(())
            }
        }
    }

    /// Takes all of them back, with the gate held exclusively.
    pub(crate) fn clear(&self) {
        let stores = std::mem::take(&mut *self.0.lock());
        for store in &stores {
            store.store.active.store(false, Ordering::Release);
        }
    }
}

/// The BAR and the offset in it of a store: 1, 2 or 4 bytes inside a BAR and not on the MSI-X table.
fn register_of(registers: &Registers, request: &StoreRequest) -> Result<(u8, u64), IoeventfdError> {
    let no_register = IoeventfdError::NoRegister {
        offset: request.offset,
        size: request.size,
    };
    let Ok((RegionIndex::Bar(bar), offset)) = RegionIndex::at(request.offset) else {
        return Err(no_register);
    };
    let function = registers.function();
    let size = function.bar(bar).map_or(0, |bar| bar.size);
    let end = offset.saturating_add(request.size.into());
    let table = function.msix().filter(|msix| msix.bar == bar);
    let on_table = |table: u64, bytes: u64| end > table && offset < table.saturating_add(bytes);
    if end > size
        || table.is_some_and(|msix| on_table(msix.table, msix.table_bytes()))
        || !matches!(request.size, 1 | 2 | 4)
    {
        return Err(no_register);
    }
    Ok((bar, offset))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("bar", &self.bar)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}
