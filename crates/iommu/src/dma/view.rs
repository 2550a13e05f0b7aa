//! From an I/O virtual address to bytes, under one guard: route, page walk, registered range.

use std::{cell::Cell, sync::Arc};

use ioasid_core::{
    Access, AddrRange, DomainId, Pasid,
    grace::{Loaded, Slot},
    memory::{MemoryGone, PAGE_SIZE, RawBytes},
    spa::{KeptBytes, KeptPlaces, Resolved, SharedRemote},
};
use ioasid_pgtable::{PageTable, Translation, WalkFault};

use super::{
    nested::Miss,
    recent::Keeps,
    tlb::PortTlb,
    transfer::{Stop, done_of},
    walks::Walks,
};
use crate::{
    device::{Device, route_table::Attachment},
    domain::space::{AddressSpace, Nested, Translator},
    events::{
        fault::{DmaRefusal, Fault, FaultReason},
        writes::WriteSink,
    },
};

/// The smallest leaf of every format: the step of a backward run.
const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// What one guard sees.
pub(crate) struct View<'a> {
    pub(super) loaded: Loaded<'a, Attachment>,
    /// The attachment that the route had before a copy blocked, if it has another one since, or none:
    /// this guard moves no more bytes, and its faults belong to the old owner.
    left: Option<Arc<Attachment>>,
    /// The device must not issue requests through the route, which looks as if nothing were attached.
    withheld: bool,
    /// A test asked for a fault: the next address is not translated.
    pub(super) injected: Cell<bool>,
    pub(crate) device: &'a Arc<Device>,
    pub(crate) pasid: Option<Pasid>,
    /// The requests are a supervisor's.
    pub(super) supervisor: bool,
    /// Whether memory that may block can be touched.
    pub(crate) blocking: bool,
    /// What the device keeps of earlier translations.
    pub(super) tlb: Option<&'a PortTlb>,
    /// What the port keeps of earlier guards, for a guard that cannot block.
    kept: Option<&'a KeptPlaces>,
    /// What the port keeps of walks through a nested domain.
    pub(super) walks: Option<&'a Walks>,
    /// Where writes are reported.
    pub(super) sink: Option<Arc<dyn WriteSink>>,
}

/// The requests of a guard.
#[derive(Clone, Copy)]
pub(crate) struct Entering {
    pub(crate) pasid: Option<Pasid>,
    pub(crate) supervisor: bool,
    /// Memory that may block can be touched.
    pub(crate) blocking: bool,
}

/// Bytes that an address leads to, all in one registration.
pub(crate) enum Place<'g> {
    Direct(RawBytes<'g>),
    Remote(Far),
}

/// Bytes of another process.
pub(crate) struct Far {
    pub(crate) memory: SharedRemote,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl<'g> Place<'g> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Place::Direct(bytes) => bytes.len() as u64,
            Place::Remote(far) => far.len,
        }
    }
}

impl<'a> View<'a> {
    /// Enters the domain at a route. `guess` is the domain that the route led to last time: if it
    /// still does, the marker is written once.
    #[inline]
    pub(crate) fn enter(
        device: &'a Arc<Device>,
        slot: &'a mut Slot,
        requests: Entering,
        guess: &mut Option<DomainId>,
        keeps: Keeps<'a>,
    ) -> Self {
        let Entering {
            pasid,
            supervisor,
            blocking,
        } = requests;
        let guard = match *guess {
            Some(domain) => slot.enter_in(domain),
            None => slot.enter(),
        };
        let mut loaded = Loaded::new(guard);
        device.routes().find(pasid, &mut loaded);
        let found = loaded.get().map(|attachment| attachment.space.marker);
        let mut withheld = false;
        if found.is_none() || found != *guess {
            (*guess, withheld) = find_domain(device, pasid, &mut loaded);
        }
        let (mut tlb, mut kept, mut walks) = (None, None, None);
        let memory = &device.shared().space;
        match (keeps, loaded.get()) {
            (Keeps::Nothing, _) | (Keeps::Recent(_), None) => {}
            (Keeps::Tlb(of_port, recent), attachment) => {
                of_port.catch_up();
                tlb = Some(of_port);
                walks =
                    attachment.and_then(|attachment| recent.walks_in(&attachment.space, memory));
            }
            (Keeps::Recent(recent), Some(attachment)) => {
                kept = Some(recent.catch_up(&attachment.space, (pasid, supervisor)));
                walks = recent.walks_in(&attachment.space, memory);
            }
        }
        View {
            loaded,
            left: None,
            withheld,
            injected: Cell::new(false),
            device,
            pasid,
            supervisor,
            blocking,
            tlb,
            kept,
            walks,
            sink: device.write_sinks().of(pasid),
        }
    }

    /// Refuses the first address that is looked up under this guard.
    pub(crate) fn refuse_once(&self) {
        self.injected.set(true);
    }

    /// Says that `len` bytes at `iova` were written, after that and under the guard.
    #[inline(always)]
    pub(crate) fn wrote(&self, iova: u64, len: u64) {
        if let Some(sink) = &self.sink {
            report_write(sink, iova, len);
        }
    }

    /// One walk, or what the device keeps of an earlier one.
    #[inline(always)]
    fn walk(
        &self,
        space: &AddressSpace,
        table: &PageTable,
        iova: u64,
        want: u64,
        access: Access,
    ) -> Result<Translation, WalkFault> {
        self.kept_or(space, iova, access, || {
            table.translate_run(iova, want, access)
        })
    }

    /// As [`View::walk`], through the two stages of a nested domain.
    fn walk_nested(
        &self,
        space: &AddressSpace,
        nested: &Nested,
        iova: u64,
        want: u64,
        access: Access,
    ) -> Result<Translation, Miss> {
        self.kept_or(space, iova, access, || {
            self.two_stages(space, nested, iova, want, access)
        })
    }

    /// What the device keeps of an earlier walk, or what `walk` finds.
    #[inline(always)]
    fn kept_or<E>(
        &self,
        space: &AddressSpace,
        iova: u64,
        access: Access,
        walk: impl FnOnce() -> Result<Translation, E>,
    ) -> Result<Translation, E> {
        let key = (space.id, self.pasid, self.supervisor);
        match self.tlb {
            None => walk(),
            Some(tlb) => tlb.translate(key, iova, access, walk),
        }
    }

    /// The attachment of this guard, also after the route has got another one.
    #[inline]
    pub(crate) fn attachment(&self) -> Option<&Attachment> {
        self.loaded.get().or(self.left.as_deref())
    }

    /// The same, for later.
    pub(crate) fn share_attachment(&self) -> Option<Arc<Attachment>> {
        self.loaded.share().or_else(|| self.left.clone())
    }

    /// Does `work`, which copies bytes that may block for ever. Only changes of this domain wait for
    /// it. What was located before is gone: the route and every address are looked up anew, and if the
    /// route has another attachment, the guard moves no more bytes.
    pub(crate) fn block<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let Some(attachment) = self.loaded.share() else {
            // Nothing was located: there is no attachment.
            return work();
        };
        let result = self.loaded.block(attachment.space.marker, work);
        self.device.routes().find(self.pasid, &mut self.loaded);
        let now = self.loaded.get();
        if now.is_some_and(|now| std::ptr::eq(now, &raw const *attachment)) {
            self.loaded.guard().narrow(attachment.space.marker);
            // A sink that was registered meanwhile waits no more.
            self.sink = self.device.write_sinks().of(self.pasid);
        } else {
            self.loaded.forget();
            self.loaded.guard().narrow(None);
            self.left = Some(attachment);
            self.sink = None;
        }
        result
    }

    pub(crate) fn fault(&self, iova: u64, access: Access, reason: FaultReason) -> Fault {
        Fault {
            device: self.device.address(),
            pasid: self.pasid,
            iova,
            access,
            reason,
        }
    }

    /// `base + offset`, which must not pass the end of the address space.
    pub(crate) fn at(&self, base: u64, offset: u64, access: Access) -> Result<u64, Fault> {
        base.checked_add(offset)
            .ok_or_else(|| self.fault(u64::MAX, access, FaultReason::AddressWidth))
    }

    /// One walk: the system physical address of `iova`, and for how many of `want` bytes it holds.
    fn translate(&self, iova: u64, want: u64, access: Access) -> Result<(u64, u64), Stop> {
        let Some(attachment) = self.loaded.get() else {
            return Err(self.unattached(iova, access));
        };
        if self.injected.get() {
            self.injected.set(false);
            return Err(self.refused(iova, access, FaultReason::Injected));
        }
        let want = match self.pasid {
            Some(_) => Some(want),
            None => self.before_interrupts(iova, want),
        };
        let Some(want) = want else {
            return Err(self.refused(iova, access, FaultReason::InterruptWindow));
        };
        match &attachment.space.translator {
            Translator::Paging(table) => {
                match self.walk(&attachment.space, table, iova, want, access) {
                    Ok(found) => Ok((found.spa, found.len.min(want))),
                    Err(error) => Err(self.missed(iova, access, error)),
                }
            }
            Translator::Nested(nested) => {
                match self.walk_nested(&attachment.space, nested, iova, want, access) {
                    Ok(found) => Ok((found.spa, found.len.min(want))),
                    Err(miss) => Err(self.missed_nested(iova, access, miss)),
                }
            }
            Translator::Identity => Ok((iova, want)),
            Translator::Blocked => Err(self.refused(iova, access, FaultReason::Blocked)),
        }
    }

    /// Why nothing can be translated here.
    #[cold]
    fn unattached(&self, iova: u64, access: Access) -> Stop {
        if self.withheld {
            if self.device.withheld().is_news() {
                self.device.tell_refused(&DmaRefusal::Withheld {
                    device: self.device.address(),
                    pasid: self.pasid,
                    iova,
                    access,
                });
            }
            return Stop::Withheld;
        }
        if self.left.is_some() {
            // Under a guard of its own it goes to what is attached now.
            return Stop::Budget;
        }
        let reason = match self.pasid {
            Some(_) => FaultReason::NotAttached,
            None => FaultReason::Blocked,
        };
        self.refused(iova, access, reason)
    }

    #[cold]
    fn missed(&self, iova: u64, access: Access, fault: WalkFault) -> Stop {
        let reason = match fault {
            WalkFault::Permission => FaultReason::Permission,
            WalkFault::OutOfRange => FaultReason::AddressWidth,
            WalkFault::NotPresent => FaultReason::NotPresent,
        };
        self.refused(iova, access, reason)
    }

    #[cold]
    pub(super) fn refused(&self, iova: u64, access: Access, reason: FaultReason) -> Stop {
        Stop::Fault(self.fault(iova, access, reason))
    }

    /// Up to `want` bytes from `iova` that are contiguous in system physical memory: neighbouring
    /// leaves are joined. Only the first byte's fault counts; a later one ends the run.
    fn run(&self, iova: u64, want: u64, access: Access) -> Result<(u64, u64), Stop> {
        let (spa, len) = self.translate(iova, want, access)?;
        if len >= want {
            return Ok((spa, len));
        }
        Ok((spa, self.run_on(iova, spa, len, want, access)))
    }

    /// How far the run of `len` bytes goes on.
    fn run_on(&self, iova: u64, spa: u64, mut len: u64, want: u64, access: Access) -> u64 {
        while len < want {
            let Some(next) = iova.checked_add(len) else {
                break;
            };
            match self.translate(next, want - len, access) {
                Ok((found, more)) if Some(found) == spa.checked_add(len) => len += more,
                _ => break,
            }
        }
        len
    }

    /// As [`View::run`] for the bytes that *end* with `last`.
    fn run_back(&self, last: u64, want: u64, access: Access) -> Result<(u64, u64), Stop> {
        let piece = |last: u64, want: u64| {
            let start = (last & !PAGE_MASK).max(last.saturating_sub(want - 1));
            (start, last - start + 1)
        };
        let (mut start, mut len) = piece(last, want);
        let (mut spa, found) = self.translate(start, len, access)?;
        if found < len {
            // Something begins inside the page: an interrupt window. The last byte lies in it.
            return Err(self.refused(last, access, FaultReason::InterruptWindow));
        }
        while len < want && start > 0 {
            let (before, more) = piece(start - 1, want - len);
            match self.translate(before, more, access) {
                Ok((found, run)) if run == more && found.checked_add(more) == Some(spa) => {
                    (spa, start, len) = (found, before, len + more);
                }
                _ => break,
            }
        }
        Ok((spa, len))
    }

    /// Up to `want` (not 0) bytes from `iova` if nothing about them is special. What this cannot do
    /// [`View::locate`] can, and says why it cannot.
    ///
    /// Apart from that one because of its results: they stay in registers.
    #[inline(always)]
    pub(crate) fn direct(&self, iova: u64, want: u64, access: Access) -> Option<RawBytes<'_>> {
        let attachment = self.loaded.get().filter(|_| !self.injected.get())?;
        let guard = self.loaded.guard();
        if let Some(bytes) = self
            .kept
            .and_then(|kept| kept.find(guard, access, iova, want))
        {
            return Some(bytes);
        }
        self.direct_by_walk(&attachment.space, iova, want, access)
    }

    /// [`View::direct`] for bytes that are not kept; they are from here on.
    #[inline]
    fn direct_by_walk(
        &self,
        space: &AddressSpace,
        iova: u64,
        want: u64,
        access: Access,
    ) -> Option<RawBytes<'_>> {
        let before_interrupts = |want: u64| match self.pasid {
            None => self.before_interrupts(iova, want),
            Some(_) => Some(want),
        };
        let want = before_interrupts(want)?;
        let Translation { spa, mut len, .. } = match &space.translator {
            Translator::Paging(table) => self.walk(space, table, iova, want, access).ok()?,
            Translator::Nested(nested) => {
                self.walk_nested(space, nested, iova, want, access).ok()?
            }
            Translator::Identity | Translator::Blocked => return None,
        };
        if len < want {
            len = self.run_on(iova, spa, len, want, access);
        }
        let guard = self.loaded.guard();
        let Some(kept) = self.kept else {
            let space = &self.device.shared().space;
            return space.resolve_direct(guard, spa, len.min(want));
        };
        let all = before_interrupts(len)?;
        let bytes = kept.resolve(guard, access, iova, (spa, all))?;
        bytes.slice(0, bytes.len().min(usize::try_from(want).ok()?))
    }

    /// How many of `want` bytes from `iova` come before the next interrupt window; `None` if `iova`
    /// lies in one.
    #[inline(always)]
    pub(super) fn before_interrupts(&self, iova: u64, mut want: u64) -> Option<u64> {
        for window in self.device.interrupt_windows() {
            if window.contains(iova) {
                return None;
            }
            if let Some(before) = window.start().checked_sub(iova) {
                want = want.min(before);
            }
        }
        Some(want)
    }

    /// The registered bytes at a system physical address, as far as one registration goes.
    fn place(&self, spa: u64, len: u64, iova: u64, access: Access) -> Result<Place<'_>, Stop> {
        let space = &self.device.shared().space;
        match space.resolve(self.loaded.guard(), spa, len) {
            Some(Resolved::Direct(bytes)) => Ok(Place::Direct(bytes)),
            Some(Resolved::Remote {
                memory,
                offset,
                len,
            }) => self.far(
                Far {
                    memory,
                    offset,
                    len,
                },
                iova,
                access,
            ),
            None => Err(self.refused(iova, access, FaultReason::Unregistered)),
        }
    }

    #[cold]
    fn far(&self, far: Far, iova: u64, access: Access) -> Result<Place<'_>, Stop> {
        match far.memory.worker() {
            Some(_) if self.blocking => Ok(Place::Remote(far)),
            Some(worker) => Err(Stop::Remote(Arc::clone(worker))),
            None => Err(self.refused(iova, access, FaultReason::MemoryGone)),
        }
    }

    /// Up to `want` (not 0) bytes from `iova`.
    pub(crate) fn locate(&self, iova: u64, want: u64, access: Access) -> Result<Place<'_>, Stop> {
        let (spa, len) = self.run(iova, want, access)?;
        self.place(spa, len, iova, access)
    }

    /// `want` (not 0) bytes from `iova` that have been located as directly addressable, or the first of
    /// them, for a copy that blocks.
    pub(crate) fn keep(&self, iova: u64, want: u64, access: Access) -> Result<KeptBytes, Stop> {
        let (spa, len) = self.run(iova, want, access)?;
        let space = &self.device.shared().space;
        let kept = space.keep_direct(self.loaded.guard(), spa, len);
        kept.ok_or_else(|| self.refused(iova, access, FaultReason::Unregistered))
    }

    /// Reports the bytes that a copy that blocks has written from `iova` on: to be called by it, while
    /// the waiters for the guard still wait.
    pub(crate) fn reported(&self, iova: u64) -> impl FnOnce(&Result<(), MemoryGone>, u64) + use<> {
        let sink = self.sink.clone();
        move |written, len| {
            if let Some(sink) = &sink {
                report_write(sink, iova, done_of(written, len as usize));
            }
        }
    }

    /// Up to `want` (not 0) bytes that end with `last`.
    pub(crate) fn locate_back(
        &self,
        last: u64,
        want: u64,
        access: Access,
    ) -> Result<Place<'_>, Stop> {
        let (spa, len) = self.run_back(last, want, access)?;
        let mut skip = 0;
        loop {
            match self.place(spa + skip, len - skip, last, access) {
                Ok(place) if skip + place.len() == len => return Ok(place),
                // The run goes on in the next registration.
                Ok(place) => skip += place.len(),
                // The first bytes of the run are no memory, but its last page may be.
                Err(Stop::Fault(_)) if len - skip > (last & PAGE_MASK) + 1 => {
                    return self.locate_back(last, (last & PAGE_MASK) + 1, access);
                }
                Err(stop) => return Err(stop),
            }
        }
    }
}

#[cold]
pub(super) fn report_write(sink: &Arc<dyn WriteSink>, iova: u64, len: u64) {
    if let Some(range) = AddrRange::from_len(iova, len) {
        sink.wrote(range);
    }
}

/// The guess was wrong: finds out what the route leads to, with a guard for any domain; or whether
/// requests through it are withheld.
#[cold]
fn find_domain<'a>(
    device: &'a Arc<Device>,
    pasid: Option<Pasid>,
    loaded: &mut Loaded<'a, Attachment>,
) -> (Option<DomainId>, bool) {
    let found =
        |loaded: &Loaded<'a, Attachment>| loaded.get().map(|attachment| attachment.space.marker);
    if found(loaded).is_some_and(|domain| !loaded.guard().covers(domain)) {
        loaded.again();
        device.routes().find(pasid, loaded);
    }
    let empty = found(loaded).is_none();
    let withheld = empty && device.withheld().explain(device.routes(), pasid, loaded);
    let domain = found(loaded);
    loaded.guard().narrow(domain);
    (domain, withheld)
}
