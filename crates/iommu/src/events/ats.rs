//! Address translation services (PCI Express base specification, 10): devices that keep translations
//! themselves.
//!
//! The IOMMU does not see what a device keeps, so every change that takes a translation away asks
//! the device: invalidate, and wait. [`DeviceTlb`] is the device's end of that; [`crate::Tlb`] is one that
//! works with [`crate::DmaPort`]s, for devices that have no reason to build their own.
//!
//! # The order of an invalidation
//! 1. The page-table entry is cleared, or the route's cell swapped.
//! 2. Every device with a TLB that has a route to the domain gets [`DeviceTlb::invalidate`].
//! 3. The barrier: guards on the domain end.
//!
//! A translation is read, kept and used under guards only, and a guard looks for invalidations after
//! it has published its marker and before it uses anything that was kept. So a guard that is not
//! waited for in step 3 sees both the new table and the invalidation; and one that kept an entry late
//! ends before step 3 does, and the next guard drops the entry. What was kept in one domain is never
//! used in another: a kept translation carries the number of its domain, and those are not reused.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid,
    lock_order::OrderedMutex,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::base::locks;

/// A device's cache of translations.
pub trait DeviceTlb: Send + Sync + fmt::Debug {
    /// What was translated for `pasid` in `range` is not true any more. Guards that are entered after
    /// this call must not use it; those that are in progress are waited for by the caller. Must not
    /// block.
    fn invalidate(&self, pasid: Option<Pasid>, range: AddrRange);
}

/// The TLB of a device, if it has one.
#[derive(Debug)]
pub(crate) struct Ats {
    /// A look at `tlb` without the lock.
    on: AtomicBool,
    tlb: OrderedMutex<Option<Arc<dyn DeviceTlb>>>,
}

impl Default for Ats {
    fn default() -> Self {
        Ats {
            on: AtomicBool::new(false),
            tlb: OrderedMutex::new(&locks::DEVICE_TLB, None),
        }
    }
}

impl Ats {
    pub(crate) fn set(&self, tlb: Option<Arc<dyn DeviceTlb>>) {
        let mut current = self.tlb.lock();
        self.on.store(tlb.is_some(), Ordering::SeqCst);
        *current = tlb;
    }

    /// Whether the device keeps translations.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// Asks the device to drop what it keeps of `ranges`, if it keeps anything.
    #[inline]
    pub(crate) fn invalidate(&self, pasid: Option<Pasid>, ranges: &[AddrRange]) {
        if self.is_on() {
            let current = self.tlb.lock();
            let tlb = current.iter();
            tlb.for_each(|tlb| {
                ranges
                    .iter()
                    .for_each(|range| tlb.invalidate(pasid, *range))
            });
        }
    }
}
