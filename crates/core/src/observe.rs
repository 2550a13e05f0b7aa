//! What a machine does, told to one observer as it happens: the base of a trace.
//!
//! A machine has one [`Watch`], which its parts share. Nobody watches at first, and then all of this
//! costs one load where something happens. Events of DMA are told under a guard, and those of
//! interrupts by engines that serve every client: an observer must not block.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Instant,
};

use crate::{Access, AddrRange, DomainId, Pasid, PciAddress, Prot};

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A device moved bytes, or tried to.
    Dma {
        /// The device whose request it was.
        device: PciAddress,
        /// The PASID that the request had.
        pasid: Option<Pasid>,
        /// Where its route led to; `None` if nowhere.
        domain: Option<DomainId>,
        /// The direction.
        access: Access,
        /// The first I/O virtual address.
        iova: u64,
        /// Bytes that were moved; less than asked for if the transfer stopped.
        len: u64,
    },
    /// An access was refused, and its device gave it up.
    Fault {
        /// The device.
        device: PciAddress,
        /// The PASID that the request had.
        pasid: Option<Pasid>,
        /// The direction.
        access: Access,
        /// The first I/O virtual address that was refused.
        iova: u64,
        /// Why.
        reason: &'static str,
    },
    /// A route leads somewhere else from now on.
    Route {
        /// The device.
        device: PciAddress,
        /// The PASID; `None` for requests without one.
        pasid: Option<Pasid>,
        /// Where it leads to; `None` if nowhere.
        domain: Option<DomainId>,
        /// Where it led to before.
        before: Option<DomainId>,
    },
    /// A domain has a new mapping.
    Map {
        /// The domain.
        domain: DomainId,
        /// The I/O virtual addresses.
        iova: AddrRange,
        /// What devices may do there.
        prot: Prot,
    },
    /// Mappings of a domain are gone, and no DMA through them is in flight.
    Unmap {
        /// The domain.
        domain: DomainId,
        /// The I/O virtual addresses.
        iova: AddrRange,
        /// Bytes in them that were mapped.
        bytes: u64,
    },
    /// A device raised an interrupt, and its user listens to it.
    Interrupt {
        /// The device: a PCI address, or the UUID of a mediated device.
        device: &'a Arc<str>,
        /// The interrupt index (`MSIX`, ...).
        index: &'static str,
        /// The vector.
        vector: u32,
    },
    /// A register was accessed, or configuration space.
    Register {
        /// The device, as for an interrupt.
        device: &'a Arc<str>,
        /// The number of the region.
        region: u32,
        /// Offset in the region.
        offset: u64,
        /// How.
        access: RegisterAccess,
        /// The bytes, in the order of their addresses.
        data: &'a [u8],
    },
    /// A device took descriptors in.
    Submitted {
        /// Whose they are.
        unit: Unit,
        /// The number of the first.
        first: u64,
        /// How many: they have consecutive numbers.
        count: u64,
    },
    /// An engine has worked on a descriptor.
    Worked {
        /// Whose it is.
        unit: Unit,
        /// Its number.
        number: u64,
        /// What it does (`memmove`, ...).
        operation: &'static str,
        /// The engine, or `None` for the worker of the client that owns the memory.
        engine: Option<usize>,
        /// When that began; it has ended now.
        began: Instant,
        /// Why it ended.
        end: WorkEnd,
    },
}

/// How a register is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterAccess {
    /// By `read` on the file of the device.
    Read,
    /// By `write`.
    Write,
    /// By a load from a mapping.
    Load,
    /// By a store to one.
    Store,
}

/// A queue or channel of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The device.
    pub device: PciAddress,
    /// The number of the queue or channel.
    pub number: usize,
}

/// Why an engine works on a descriptor no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkEnd {
    /// It is done, successful or not.
    Done,
    /// It was cut short.
    Aborted,
    /// It goes on later.
    Later,
    /// It goes on on its client's worker.
    Remote,
    /// It waits for a page.
    Page,
}

impl WorkEnd {
    /// All of them.
    pub const ALL: [WorkEnd; 5] = [
        WorkEnd::Done,
        WorkEnd::Aborted,
        WorkEnd::Later,
        WorkEnd::Remote,
        WorkEnd::Page,
    ];

    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            WorkEnd::Done => "done",
            WorkEnd::Aborted => "aborted",
            WorkEnd::Later => "later",
            WorkEnd::Remote => "remote",
            WorkEnd::Page => "page",
        }
    }
}

/// Takes events of a machine.
///
/// Called from every thread of it, also under a guard and with locks held: an implementation must
/// not block, and must bound what it keeps.
pub trait Observer: Send + Sync + fmt::Debug {
    /// Takes one event.
    fn observe(&self, event: &Event<'_>);
}

/// Who watches a machine: nobody, or one observer for the rest of its life.
#[derive(Debug, Default)]
pub struct Watch(OnceLock<Arc<dyn Observer>>);

impl Watch {
    /// Tells `observer` what happens from now on; whether it is the first.
    pub fn start(&self, observer: Arc<dyn Observer>) -> bool {
        self.0.set(observer).is_ok()
    }

    /// Whether anybody watches.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.get().is_some()
    }

    /// Tells what `event` makes, if anybody watches.
    #[inline]
    pub fn tell<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if let Some(observer) = self.0.get() {
            tell(&**observer, event);
        }
    }
}

#[cold]
fn tell<'a>(observer: &dyn Observer, event: impl FnOnce() -> Event<'a>) {
    observer.observe(&event());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Observer for Seen {
        fn observe(&self, event: &Event<'_>) {
            self.0.lock().push(format!("{event:?}"));
        }
    }

    #[test]
    fn nothing_is_made_while_nobody_watches() {
        let watch = Watch::default();
        watch.tell(|| panic!("made for nobody"));
        assert!(!watch.is_on());
    }

    #[test]
    fn the_first_observer_stays() {
        let (watch, seen) = (Watch::default(), Arc::new(Seen::default()));
        assert!(watch.start(seen.clone()));
        assert!(!watch.start(Arc::new(Seen::default())));
        let domain = DomainId::new(3).expect("a domain number");
        watch.tell(|| Event::Unmap {
            domain,
            iova: AddrRange::ALL,
            bytes: 4096,
        });
        assert_eq!(seen.0.lock().len(), 1);
    }
}
