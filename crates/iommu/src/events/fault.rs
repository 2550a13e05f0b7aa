//! Unrecoverable faults: refused accesses, and where they are reported.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::{
    Access, Pasid, PciAddress,
    inspect::{Inspect, Node, Value},
    sync::Mutex,
};

use super::nested_fault::NestedFault;

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// Nothing is attached at this PASID of the device.
    NotAttached,
    /// The device is attached to a blocked domain, or (without a PASID) to none.
    Blocked,
    /// No mapping covers the address.
    NotPresent,
    /// The mapping, or the memory behind it, does not allow this access.
    Permission,
    /// The address lies outside what the page table can translate, or passes 2^64-1.
    AddressWidth,
    /// The translation leads to a system physical address where nothing is registered.
    Unregistered,
    /// The memory behind the mapping has vanished: a truncated file, a program that ended.
    MemoryGone,
    /// A memory access without a PASID to the interrupt window: it is a message, not a DMA.
    InterruptWindow,
    /// A nested domain: one of its two stages refused it.
    Nested(NestedFault),
    /// A test asked for it ([`ioasid_core::inject`]).
    Injected,
}

impl FaultReason {
    /// In a few words.
    pub const fn name(self) -> &'static str {
        match self {
            FaultReason::NotAttached => "nothing attached",
            FaultReason::Blocked => "blocked",
            FaultReason::NotPresent => "not mapped",
            FaultReason::Permission => "not permitted",
            FaultReason::AddressWidth => "outside the address width",
            FaultReason::Unregistered => "no memory there",
            FaultReason::MemoryGone => "memory gone",
            FaultReason::InterruptWindow => "interrupt window",
            FaultReason::Nested(fault) => fault.name(),
            FaultReason::Injected => "injected by a test",
        }
    }

    /// Whether a page request could make the access succeed: the translation is missing or too
    /// weak, and the manager of the address space may add it.
    pub const fn is_recoverable(self) -> bool {
        match self {
            FaultReason::NotPresent | FaultReason::Permission => true,
            FaultReason::Nested(fault) => fault.is_recoverable(),
            _ => false,
        }
    }
}

impl fmt::Display for FaultReason {
    /// As a sentence, with what would make the access succeed where that is plain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultReason::Nested(fault) => return fault.fmt(f),
            FaultReason::NotAttached => {
                "nothing is attached at this PASID: attach a page table to it"
            }
            FaultReason::Blocked => {
                "nothing is attached to the device, or its domain is blocked: attach a page table"
            }
            FaultReason::NotPresent => "nothing is mapped at this address",
            FaultReason::Permission => {
                "the mapping, or the memory behind it, does not allow this access"
            }
            FaultReason::AddressWidth => {
                "the address is beyond those that the page table translates"
            }
            FaultReason::Unregistered => "no memory is registered where the mapping leads to",
            FaultReason::MemoryGone => {
                "the memory behind the mapping is gone: unmapped, cut off, or its program has ended"
            }
            FaultReason::InterruptWindow => {
                "the interrupt window is no memory: a write there is an interrupt message"
            }
            FaultReason::Injected => "a test asked for this fault: an injection, not a mistake",
        })
    }
}

/// One refused access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The device whose DMA it was.
    pub device: PciAddress,
    /// The PASID that it carried.
    pub pasid: Option<Pasid>,
    /// The first I/O virtual address that was refused.
    pub iova: u64,
    /// The direction.
    pub access: Access,
    /// Why.
    pub reason: FaultReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.device)?;
        if let Some(pasid) = self.pasid {
            write!(f, " PASID {pasid}")?;
        }
        write!(f, ": {} at {:#x}: {}", self.access, self.iova, self.reason)
    }
}

/// Where the faults of one attachment go: to its owner alone.
///
/// Called by engines that serve every client, also under a guard: an implementation must not block,
/// and must bound what it keeps.
pub trait FaultSink: Send + Sync + fmt::Debug {
    /// Takes one fault.
    fn report(&self, fault: &Fault);
}

/// What kept DMA from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DmaRefusal {
    /// An access was refused, and the device gave it up.
    Fault(Fault),
    /// The device must not issue requests at present, and waits until it may.
    Withheld {
        /// The device.
        device: PciAddress,
        /// The PASID of the request.
        pasid: Option<Pasid>,
        /// The first I/O virtual address of the request.
        iova: u64,
        /// The direction.
        access: Access,
    },
}

impl DmaRefusal {
    /// The device whose DMA it was, and the PASID that the request had.
    pub const fn source(&self) -> (PciAddress, Option<Pasid>) {
        match self {
            DmaRefusal::Fault(fault) => (fault.device, fault.pasid),
            DmaRefusal::Withheld { device, pasid, .. } => (*device, *pasid),
        }
    }
}

impl fmt::Display for DmaRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DmaRefusal::Fault(fault) => fault.fmt(f),
            DmaRefusal::Withheld {
                device,
                pasid,
                iova,
                access,
            } => {
                write!(f, "{device}")?;
                if let Some(pasid) = pasid {
                    write!(f, " PASID {pasid}")?;
                }
                write!(
                    f,
                    ": {access} at {iova:#x}: bus mastering is off, and the request waits: set \
                     PCI_COMMAND.MASTER, and the device to D0"
                )
            }
        }
    }
}

/// Wants to know of DMA that is refused, on a machine as a whole.
///
/// Called by engines that serve every client, also under a guard: an implementation must not block, and
/// must bound what it keeps.
pub trait DmaWatcher: Send + Sync + fmt::Debug {
    /// DMA was refused. That requests are withheld is told once, until the device may issue them again.
    fn refused(&self, refusal: &DmaRefusal);
}

/// All who want to know. One that is dropped is forgotten.
#[derive(Debug, Default)]
pub(crate) struct DmaWatchers(Mutex<Vec<Weak<dyn DmaWatcher>>>);

impl DmaWatchers {
    pub(crate) fn add(&self, watcher: &Arc<dyn DmaWatcher>) {
        let mut watchers = self.0.lock();
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(watcher));
    }

    #[cold]
    pub(crate) fn tell(&self, refusal: &DmaRefusal) {
        for watcher in self.0.lock().iter().filter_map(Weak::upgrade) {
            watcher.refused(refusal);
        }
    }
}

/// A bounded ring of faults: the newest are dropped, and counted, when it is full, so that what
/// started the trouble stays readable.
#[derive(Debug)]
pub struct FaultLog {
    capacity: usize,
    state: Mutex<LogState>,
}

#[derive(Debug, Default)]
struct LogState {
    faults: VecDeque<Fault>,
    dropped: u64,
    total: u64,
}

impl FaultLog {
    /// Faults that [`FaultLog::default`] keeps.
    pub const DEFAULT_CAPACITY: usize = 64;

    /// A log that keeps up to `capacity` faults.
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(FaultLog {
            capacity,
            state: Mutex::default(),
        })
    }

    /// Takes the faults out, oldest first.
    pub fn drain(&self) -> Vec<Fault> {
        self.state.lock().faults.drain(..).collect()
    }

    /// Copies the faults that are held, oldest first.
    pub fn faults(&self) -> Vec<Fault> {
        self.state.lock().faults.iter().copied().collect()
    }

    /// Faults that found the log full.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// Faults reported, kept or not.
    pub fn total(&self) -> u64 {
        self.state.lock().total
    }
}

impl Default for FaultLog {
    fn default() -> Self {
        FaultLog {
            capacity: FaultLog::DEFAULT_CAPACITY,
            state: Mutex::default(),
        }
    }
}

impl FaultSink for FaultLog {
    fn report(&self, fault: &Fault) {
        let mut state = self.state.lock();
        state.total += 1;
        if state.faults.len() < self.capacity {
            state.faults.push_back(*fault);
        } else {
            state.dropped += 1;
        }
    }
}

impl Inspect for FaultLog {
    fn inspect(&self) -> Node {
        let state = self.state.lock();
        let faults = state.faults.iter().map(|fault| {
            Node::new()
                .with("device", fault.device.to_string())
                .with("pasid", fault.pasid.map(Pasid::get))
                .with("access", fault.access.to_string())
                .with("iova", Value::Hex(fault.iova))
                .with("reason", fault.reason.to_string())
        });
        let faults: Vec<Node> = faults.collect();
        Node::new()
            .with("faults", state.total)
            .with("dropped", state.dropped)
            .with("held", faults)
    }
}
