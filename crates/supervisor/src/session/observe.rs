//! What others may want to know of the calls of a program: each call on a file of the machine, when it is
//! finished, and each fault of DMA.
//!
//! Nothing is watched by default, and a call then pays for one comparison. A refusal is counted in any
//! case ([`Account`]): the program that fails after it can be told where to look.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ioasid_core::{PciAddress, sync::Mutex};
use ioasid_iommu::{DmaRefusal, DmaWatcher, Requests};
use ioasid_trace::schema::Exchange;
use ioasid_uapi::{
    CallError,
    decode::{self, Decoded, LONGEST, Value, names},
    table,
};
use ioasid_vfio::RegionIndex;

use super::steps::image;
use crate::wire::Counts;

/// The file of the machine that a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalledFile {
    /// `/dev/iommu`.
    Iommu,
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/NUMBER`.
    Group(u32),
    /// `/dev/vfio/devices/NAME`, or the same device by its group.
    Device(String),
    /// A file of events, which an ioctl gave.
    Events,
    /// An attribute of `/sys`, by its path below.
    Attribute(String),
    /// `fail-nth` of a thread.
    FailNth,
}

impl CalledFile {
    /// Whose ioctls the file has, if it has any.
    pub fn table(&self) -> Option<table::File> {
        match self {
            CalledFile::Iommu => Some(table::File::Iommufd),
            CalledFile::Container => Some(table::File::Container),
            CalledFile::Group(_) => Some(table::File::Group),
            CalledFile::Device(_) => Some(table::File::Device),
            CalledFile::Events | CalledFile::Attribute(_) | CalledFile::FailNth => None,
        }
    }
}

impl fmt::Display for CalledFile {
    /// In one word: `iommu`, `vfio0`, `group 5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CalledFile::Iommu => f.write_str("iommu"),
            CalledFile::Container => f.write_str("container"),
            CalledFile::Group(number) => write!(f, "group {number}"),
            CalledFile::Device(name) => f.write_str(name),
            CalledFile::Events => f.write_str("events"),
            CalledFile::Attribute(path) => write!(f, "/sys/{path}"),
            CalledFile::FailNth => f.write_str("fail-nth"),
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub enum CallResult<'a> {
    /// It returned this.
    Value(u64),
    /// It returned a new descriptor.
    Descriptor(i32),
    /// It was allowed, and the kernel carried it out.
    Proceeds,
    /// It was refused.
    Refused(&'a CallError),
    /// The host refused what the session did in its place, with this errno.
    Host(i32),
}

/// A call that has an end.
#[derive(Debug)]
pub struct FinishedCall<'a> {
    /// The program's name.
    pub program: &'a str,
    /// The process.
    pub process: i32,
    /// The thread.
    pub thread: u32,
    /// The file; none if the call names none of the machine.
    pub file: Option<CalledFile>,
    /// The descriptor, if the call names one.
    pub fd: Option<i32>,
    /// What the program asked for.
    pub call: Decoded,
    /// The ioctl's number, if it is one.
    pub request: Option<u32>,
    /// What an ioctl that succeeded wrote into its struct.
    pub reply: Option<Decoded>,
    /// How it ended.
    pub result: CallResult<'a>,
    /// It is an ioctl of another subsystem, such as the one by which a C library asks whether a file is a
    /// terminal: that it was refused is no news.
    pub is_foreign: bool,
    /// When the session began with it.
    pub began: Instant,
    /// How long it took.
    pub took: Duration,
    /// For those who want to do it again.
    pub again: Option<&'a Again>,
}

impl FinishedCall<'_> {
    /// Whether it is an access to a mapped register, which is no system call of the program's: it gets a signal
    /// in the place of an errno, and the device tells of the access.
    pub(crate) fn is_register_access(&self) -> bool {
        matches!(&*self.call.name, "load" | "store" | "enqueue")
    }
}

/// An ioctl that did not fail and whose steps were kept. Nothing is left to look up, so what is to be said of it can
/// be found out on any thread.
#[derive(Debug)]
pub struct KeptIoctl {
    pub(crate) program: Arc<str>,
    pub(crate) process: i32,
    pub(crate) thread: u32,
    pub(crate) file: CalledFile,
    pub(crate) fd: i32,
    pub(crate) request: u32,
    /// What it returned.
    pub(crate) value: u64,
    /// When the session began with it.
    pub began: Instant,
    pub(crate) took: Duration,
    pub(crate) again: Again,
}

impl KeptIoctl {
    /// Decodes it, for `tell`.
    pub fn decoded<R>(&self, tell: impl FnOnce(&FinishedCall<'_>) -> R) -> R {
        let Again {
            argument, steps, ..
        } = &self.again;
        let asked = image(steps, *argument, LONGEST, false);
        let answered = image(steps, *argument, LONGEST, true);
        let table = self.file.table();
        let call = table.map(|table| decode::request(table, self.request, *argument, &asked));
        tell(&FinishedCall {
            program: &self.program,
            process: self.process,
            thread: self.thread,
            file: Some(self.file.clone()),
            fd: Some(self.fd),
            call: call.unwrap_or_else(|| Decoded::new("ioctl")),
            request: Some(self.request),
            reply: table.map(|table| decode::reply(table, self.request, &answered)),
            result: CallResult::Value(self.value),
            is_foreign: false,
            began: self.began,
            took: self.took,
            again: Some(&self.again),
        })
    }
}

/// What it takes to do a call again.
#[derive(Clone, Debug, Default)]
pub struct Again {
    /// The number of the file among those of the program.
    pub file: Option<u64>,
    /// The name of the device on its bus, if it is one.
    pub device: Option<Arc<str>>,
    /// The argument of an ioctl; where a read, write or mapping begins in the file.
    pub argument: u64,
    /// What it did in its program, in order.
    pub steps: Vec<Exchange>,
}

/// Wants to know of calls.
///
/// It is called on the thread that answers the program, or one of its other threads, and must not block:
/// the program waits meanwhile.
pub trait CallObserver: Send + Sync + fmt::Debug {
    /// Whether it wants calls that were not refused, too. Asked once.
    fn wants_all(&self) -> bool;

    /// A call was finished. The program does not have the answer yet, but for a new descriptor.
    fn finished(&self, call: &FinishedCall<'_>);

    /// An ioctl did not fail, for an observer that wants all. By default it is decoded here and now, and told as any
    /// other call.
    fn kept(&self, ioctl: &Arc<KeptIoctl>) {
        ioctl.decoded(|call| self.finished(call));
    }

    /// Whether it wants what it takes to do a call again ([`FinishedCall::again`]), and to know of
    /// closed files. Asked once.
    fn wants_steps(&self) -> bool {
        false
    }

    /// The program has let go of the file of this number.
    fn closed(&self, file: u64) {
        let _ = file;
    }

    /// DMA of a device that the program has was refused. Called on a thread of the device, which serves
    /// every program.
    fn refused_dma(&self, refusal: &DmaRefusal) {
        let _ = refusal;
    }

    /// The program and all that it started are gone, and what they had is closed.
    fn ended(&self) {}
}

/// How many calls were refused, and how many faults of DMA there were.
#[derive(Debug, Default)]
pub struct Account {
    refused: AtomicU64,
    faults: AtomicU64,
}

impl Account {
    /// Calls that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Faults of DMA.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Both.
    pub fn counts(&self) -> Counts {
        Counts {
            refused: self.refused(),
            faults: self.faults(),
        }
    }

    pub(crate) fn add_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }
}

/// All that want to know of the calls of one program, and the account that is kept in any case.
#[derive(Debug)]
pub struct Observers {
    all: Vec<Arc<dyn CallObserver>>,
    /// Whether one of them wants every call.
    wants_all: bool,
    wants_steps: bool,
    account: Arc<Account>,
    /// Whose DMA counts.
    devices: Devices,
}

/// Devices whose DMA is a program's business.
#[derive(Debug)]
pub(crate) enum Devices {
    /// All of the machine: nobody else uses it.
    All,
    /// Those that it has bound.
    Bound(Mutex<Vec<(PciAddress, Requests)>>),
}

impl Observers {
    /// Of a program that has a machine for itself: every refused DMA is its business.
    pub fn of_private_machine(all: Vec<Arc<dyn CallObserver>>) -> Arc<Self> {
        Self::new(all, Devices::All)
    }

    /// Of a program on a machine that others use too: what counts is DMA of devices that it has bound.
    pub fn of_shared_machine(all: Vec<Arc<dyn CallObserver>>) -> Arc<Self> {
        Self::new(all, Devices::Bound(Mutex::default()))
    }

    fn new(all: Vec<Arc<dyn CallObserver>>, devices: Devices) -> Arc<Self> {
        Arc::new(Observers {
            wants_all: all.iter().any(|observer| observer.wants_all()),
            wants_steps: all.iter().any(|observer| observer.wants_steps()),
            all,
            account: Arc::default(),
            devices,
        })
    }

    /// The devices that the program has bound are these.
    pub(crate) fn set_bound(&self, bound: impl Iterator<Item = (PciAddress, Requests)>) {
        if let Devices::Bound(list) = &self.devices {
            *list.lock() = bound.collect();
        }
    }

    /// What is counted.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Whether nobody wants to know anything.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one wants to know of every call.
    pub fn wants_all(&self) -> bool {
        self.wants_all
    }

    /// Whether one wants what it takes to do a call again.
    pub fn wants_steps(&self) -> bool {
        self.wants_steps
    }

    /// The program has let go of the file of this number.
    pub(crate) fn closed(&self, file: u64) {
        self.all.iter().for_each(|observer| observer.closed(file));
    }

    /// The time now, if a call that begins now is to be reported whatever becomes of it, or if how long
    /// it takes is to be known.
    pub(crate) fn watch(&self) -> Option<Instant> {
        (!self.all.is_empty()).then(Instant::now)
    }

    /// Tells all of them that the program is gone.
    pub(crate) fn ended(&self) {
        for observer in &self.all {
            observer.ended();
        }
    }

    /// Tells those that want every call.
    pub(crate) fn kept(&self, ioctl: &Arc<KeptIoctl>) {
        for observer in &self.all {
            if observer.wants_all() {
                observer.kept(ioctl);
            }
        }
    }

    /// Tells all of them.
    pub(crate) fn finished(&self, call: &FinishedCall<'_>) {
        let refused = matches!(call.result, CallResult::Refused(_));
        for observer in &self.all {
            if refused || observer.wants_all() {
                observer.finished(call);
            }
        }
    }
}

/// The region and the offset in it that a file offset stands for.
pub(crate) fn place(call: Decoded, offset: u64) -> Decoded {
    match RegionIndex::at(offset) {
        Ok((region, within)) => {
            let names = names::REGION_INDEX;
            let call = call.with("region", Value::name(region.number().into(), names));
            call.with("offset", Value::Hex(within))
        }
        Err(_) => call.with("offset", Value::Hex(offset)),
    }
}

impl DmaWatcher for Observers {
    fn refused(&self, refusal: &DmaRefusal) {
        let (device, pasid) = refusal.source();
        let own = match &self.devices {
            Devices::All => true,
            Devices::Bound(list) => {
                let list = list.lock();
                let is_it = |(address, requests): &(PciAddress, Requests)| {
                    *address == device && requests.include(pasid)
                };
                list.iter().any(is_it)
            }
        };
        if own {
            self.account.add_fault();
            for observer in &self.all {
                observer.refused_dma(refusal);
            }
        }
    }
}
