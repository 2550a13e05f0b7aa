//! The DMA port: the only way of a device to memory.
//!
//! An engine thread owns a [`DmaPort`]. [`DmaPort::enter`] finds the domain of a route and publishes
//! that it is being read; the [`DmaGuard`] moves a bounded number of bytes and says how far it came
//! and why it stopped, so that a descriptor is resumed under the next guard, with every translation
//! made anew. Nothing under a guard blocks, except on a client's own worker
//! ([`DmaPort::enter_blocking`]), where only that client's unmaps wait for it.

use std::{cell::Cell, fmt, mem, sync::Arc};

use ioasid_core::{
    Access, DomainId, Pasid,
    grace::Slot,
    observe::Event,
    sync::atomic::{Ordering, fence},
};

use super::{
    bytes::copy_direct,
    recent::{Keeps, Recent},
    tlb::{PortTlb, Tlb},
    transfer::{Direction, Halt, Stop, Transfer, parts},
    view::{Entering, View},
};
use crate::{
    base::counters::ShardIndex,
    device::{Device, route_table::Attachment},
    events::fault::{DmaRefusal, Fault, FaultSink},
};

/// Bytes that [`DmaGuard::copy`], [`DmaGuard::fill`] and [`DmaGuard::compare`] may move under one
/// guard.
pub const GUARD_BYTES: u64 = 128 << 10;

/// As [`GUARD_BYTES`], for a guard that may block: only its client's own changes wait for it, and who makes
/// its copies for it is woken for each.
const BLOCKING_BYTES: u64 = 1 << 20;

/// Bytes that [`DmaGuard::read`], [`DmaGuard::write`] and [`DmaGuard::publish`] may move besides:
/// a descriptor that has used up its guard can still write its completion record under it.
pub const GUARD_SLACK: u64 = 64 << 10;

/// What a read or write costs at least, so that many small ones are bounded too.
const SMALLEST_CHARGE: u64 = 64;

/// Bytes filled or compared at a time.
const BOUNCE: usize = 16 << 10;

/// Routes of which a port keeps the domain found last.
const GUESSES: usize = 16;

thread_local! {
    /// The buffer of a port that is gone, for the next one of this thread: a worker makes one for each
    /// descriptor.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// One engine thread's access to memory, in the name of one device.
pub struct DmaPort {
    device: Arc<Device>,
    slot: Slot,
    /// Empty until it is needed.
    bounce: Vec<u8>,
    /// Where routes led last time, by the low bits of the PASID.
    guesses: [Option<DomainId>; GUESSES],
    tlb: Option<Box<PortTlb>>,
    recent: Box<Recent>,
    shard: ShardIndex,
    /// The next guard refuses its first access.
    refuses: bool,
    /// Requests with a PASID are supervisor requests.
    privileged: bool,
}

impl Device {
    /// A port for one engine thread.
    pub fn port(self: &Arc<Self>) -> DmaPort {
        DmaPort::new(self, None)
    }

    /// A port for one engine thread that keeps translations in `tlb`, which the device was given as
    /// its own ([`Device::enable_ats`]).
    pub fn port_with_tlb(self: &Arc<Self>, tlb: &Arc<Tlb>) -> DmaPort {
        DmaPort::new(self, Some(tlb))
    }
}

impl DmaPort {
    fn new(device: &Arc<Device>, tlb: Option<&Arc<Tlb>>) -> Self {
        DmaPort {
            device: Arc::clone(device),
            slot: device.shared().grace.slot(),
            bounce: Vec::new(),
            guesses: [None; GUESSES],
            tlb: tlb.map(PortTlb::new),
            recent: Box::new(Recent::new(&device.shared().space)),
            shard: ShardIndex::new(),
            refuses: false,
            privileged: false,
        }
    }

    /// Makes the first access under the next guard a fault, as a test has asked for
    /// ([`crate::FaultReason::Injected`]), or no more.
    pub fn refuse_next(&mut self, refuse: bool) {
        self.refuses = refuse;
    }

    /// Makes the requests with a PASID of later guards supervisor requests, or user requests, as they are at
    /// first. Only nested domains distinguish the two; requests without a PASID are always user requests.
    pub fn set_privileged(&mut self, privileged: bool) {
        self.privileged = privileged;
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Enters the domain at `pasid`. Memory that may block is not touched: [`Stop::Remote`].
    #[inline]
    pub fn enter(&mut self, pasid: Option<Pasid>) -> DmaGuard<'_> {
        self.enter_as(pasid, false, true)
    }

    /// As [`DmaPort::enter`], for requests that are not to use what the device's TLB keeps.
    #[inline]
    pub fn enter_untranslated(&mut self, pasid: Option<Pasid>) -> DmaGuard<'_> {
        self.enter_as(pasid, false, false)
    }

    /// As [`DmaPort::enter`], where copies may block for ever. Only for the worker of the client that
    /// owns the memory, with a port of its own: changes of the domain wait for this guard, and nothing
    /// else does. Every address is translated anew after a copy that may block; if the route has
    /// another attachment by then, the rest stops with [`Stop::Budget`].
    pub fn enter_blocking(&mut self, pasid: Option<Pasid>) -> DmaGuard<'_> {
        self.enter_as(pasid, true, false)
    }

    #[inline]
    fn enter_as(&mut self, pasid: Option<Pasid>, blocking: bool, tlb: bool) -> DmaGuard<'_> {
        let number = pasid.map_or(0, Pasid::get) as usize;
        let guess = &mut self.guesses[number % GUESSES];
        let keeps = match &self.tlb {
            _ if blocking => Keeps::Nothing,
            Some(kept) if tlb => Keeps::Tlb(kept, &self.recent),
            _ => Keeps::Recent(&self.recent),
        };
        let requests = Entering {
            pasid,
            supervisor: self.privileged && pasid.is_some(),
            blocking,
        };
        let view = View::enter(&self.device, &mut self.slot, requests, guess, keeps);
        if self.refuses {
            self.refuses = false;
            view.refuse_once();
        }
        DmaGuard {
            view,
            bounce: &mut self.bounce,
            budget: match blocking {
                true => BLOCKING_BYTES,
                false => GUARD_BYTES,
            },
            slack: GUARD_SLACK,
            shard: &mut self.shard,
            operations: 0,
            bytes: 0,
        }
    }

    /// Reports a fault whose guard is gone to the present owner of its route. Where the attachment may
    /// be another one meanwhile, take a [`DmaGuard::reporter`] under the guard instead.
    pub fn report(&mut self, fault: &Fault) {
        let reporter = self.enter(fault.pasid).reporter();
        reporter.report(fault);
    }
}

impl Drop for DmaPort {
    fn drop(&mut self) {
        let bounce = mem::take(&mut self.bounce);
        // A thread that is ending keeps none.
        let _ = SPARE.try_with(|spare| {
            let other = spare.take();
            spare.set(if other.len() > bounce.len() {
                other
            } else {
                bounce
            });
        });
    }
}

impl fmt::Debug for DmaPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPort")
            .field("device", &self.device.address())
            .finish_non_exhaustive()
    }
}

/// Where a fault goes: to the owner of the attachment that refused the access.
#[derive(Clone)]
pub struct FaultReporter {
    device: Arc<Device>,
    attachment: Option<Arc<Attachment>>,
}

impl FaultReporter {
    /// Reports and counts one fault.
    pub fn report(&self, fault: &Fault) {
        self.device.tell_refused(&DmaRefusal::Fault(*fault));
        self.device.watch().tell(|| Event::Fault {
            device: fault.device,
            pasid: fault.pasid,
            access: fault.access,
            iova: fault.iova,
            reason: fault.reason.name(),
        });
        match &self.attachment {
            Some(attachment) => {
                attachment.space.faults.fetch_add(1, Ordering::Relaxed);
                attachment.faults.report(fault);
            }
            None => self.device.fault_log().report(fault),
        }
    }
}

impl fmt::Debug for FaultReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultReporter")
            .field("device", &self.device.address())
            .finish_non_exhaustive()
    }
}

/// DMA in progress: while it lives, a change that takes a translation of its domain away waits.
///
/// Faults are returned, not reported: a page request may help. A consumer that gives up calls
/// [`DmaGuard::report`], once.
pub struct DmaGuard<'a> {
    pub(super) view: View<'a>,
    bounce: &'a mut Vec<u8>,
    pub(super) budget: u64,
    slack: u64,
    shard: &'a mut ShardIndex,
    operations: u64,
    pub(super) bytes: u64,
}

impl<'a> DmaGuard<'a> {
    /// The domain that the route leads to.
    pub fn domain(&self) -> Option<DomainId> {
        let attachment = self.view.attachment()?;
        Some(attachment.space.id)
    }

    /// Reports and counts a fault that the consumer gives up on.
    pub fn report(&self, fault: &Fault) {
        self.reporter().report(fault);
    }

    /// Where faults of this guard go, for a consumer that decides later.
    pub fn reporter(&self) -> FaultReporter {
        FaultReporter {
            device: Arc::clone(self.view.device),
            attachment: self.view.share_attachment(),
        }
    }

    /// Copies `len` bytes from `src` to `dst`, as `memmove` does for the whole range: where the
    /// destination begins inside the source, from the last byte down ([`Direction::of`]).
    pub fn copy(&mut self, dst: u64, src: u64, len: u64) -> Transfer {
        self.copy_on(dst, src, len, 0)
    }

    /// Goes on with [`DmaGuard::copy`] of the same three numbers, `done` bytes of which were done by
    /// earlier calls (at the end of the range, if the direction is backward).
    pub fn copy_on(&mut self, dst: u64, src: u64, len: u64, done: u64) -> Transfer {
        let direction = Direction::of(dst, src, len);
        let transfer = self.bulk(len.saturating_sub(done), |guard, now, room| {
            let done = done + now;
            match direction {
                Direction::Forward => guard.copy_up(dst, src, done, room),
                Direction::Backward => guard.copy_down(dst, src, len - done, room),
            }
        });
        if self.view.device.watch().is_on() {
            let first = match direction {
                Direction::Forward => done,
                Direction::Backward => len.saturating_sub(done + transfer.done),
            };
            self.tell(Access::Read, src.wrapping_add(first), transfer.done);
            self.tell(Access::Write, dst.wrapping_add(first), transfer.done);
        }
        transfer
    }

    /// Whether memory that may block can be touched under it.
    pub const fn may_block(&self) -> bool {
        self.view.blocking
    }

    /// Writes `pattern`, little-endian and repeated, to `len` bytes from `dst`. To go on after
    /// `done` bytes, rotate the pattern right by `8 * (done % 8)` bits.
    pub fn fill(&mut self, dst: u64, pattern: u64, len: u64) -> Transfer {
        self.make_bounce(BOUNCE);
        for (byte, value) in self.bounce[..BOUNCE]
            .iter_mut()
            .zip(pattern.to_le_bytes().into_iter().cycle())
        {
            *byte = value;
        }
        let transfer = self.bulk(len, |guard, done, room| {
            let iova = guard.view.at(dst, done, Access::Write)?;
            let phase = (done % 8) as usize;
            let room = room.min((BOUNCE - 8) as u64) as usize;
            guard.view.store(iova, &guard.bounce[phase..phase + room])
        });
        self.tell(Access::Write, dst, transfer.done);
        transfer
    }

    /// Compares `len` bytes at `a` and `b`. The offset of the first difference ends it, without a
    /// stop: `done` is that offset then.
    pub fn compare(&mut self, a: u64, b: u64, len: u64) -> (Transfer, Option<u64>) {
        let mut difference = None;
        self.make_bounce(BOUNCE);
        let transfer = self.bulk(len, |guard, done, room| {
            let (left, right) = guard.bounce[..BOUNCE].split_at_mut(BOUNCE / 2);
            let view = &mut guard.view;
            let room = room.min(left.len() as u64) as usize;
            let at_a = view.at(a, done, Access::Read)?;
            let at_b = view.at(b, done, Access::Read)?;
            let (len_a, halt_a) = parts(view.fetch(at_a, &mut left[..room]));
            let (len_b, halt_b) = match len_a {
                0 => (0, None),
                _ => parts(view.fetch(at_b, &mut right[..len_a])),
            };
            let mut pairs = left.iter().zip(right.iter()).take(len_b);
            if let Some(offset) = pairs.position(|(a, b)| a != b) {
                difference = Some(done + offset as u64);
                return Err(Halt {
                    done: offset as u64,
                    stop: None,
                });
            }
            // Of two that stopped, the one that came less far; else there is more of `a` to come.
            let stop = halt_b.or(halt_a.filter(|_| len_a == len_b));
            match stop {
                Some(stop) => Err(Halt {
                    done: len_b as u64,
                    stop: Some(stop),
                }),
                None => Ok(len_b as u64),
            }
        });
        self.tell(Access::Read, a, transfer.done);
        self.tell(Access::Read, b, transfer.done);
        (transfer, difference)
    }

    /// Reads `dst.len()` bytes from `iova`.
    pub fn read(&mut self, iova: u64, dst: &mut [u8]) -> Transfer {
        let transfer = self.small(dst.len(), |guard, done, room| {
            let at = guard.view.at(iova, done as u64, Access::Read)?;
            guard.view.fetch(at, &mut dst[done..done + room])
        });
        self.tell(Access::Read, iova, transfer.done);
        transfer
    }

    /// Writes `src` at `iova`.
    pub fn write(&mut self, iova: u64, src: &[u8]) -> Transfer {
        let transfer = self.small(src.len(), |guard, done, room| {
            let at = guard.view.at(iova, done as u64, Access::Write)?;
            guard.view.store(at, &src[done..done + room])
        });
        self.tell(Access::Write, iova, transfer.done);
        transfer
    }

    /// Writes one byte after everything this thread wrote before: the byte that shows a waiting CPU
    /// that a record is complete.
    pub fn publish(&mut self, iova: u64, byte: u8) -> Transfer {
        fence(Ordering::Release);
        self.write(iova, std::slice::from_ref(&byte))
    }

    /// As [`DmaGuard::publish`] for a word at a multiple of 8, which is written by one store: a reader
    /// that polls it sees the old value or the new one.
    pub fn publish_word(&mut self, iova: u64, word: u64) -> Transfer {
        fence(Ordering::Release);
        self.write(iova, &word.to_le_bytes())
    }

    /// Reads the rest of `dst` from `iova`, of which `done` bytes have been read by earlier calls,
    /// and adds to `done`.
    ///
    /// # Errors
    /// What stopped it.
    pub fn read_on(&mut self, iova: u64, dst: &mut [u8], done: &mut u64) -> Result<(), Stop> {
        match dst.get_mut(*done as usize..) {
            None | Some([]) => Ok(()),
            Some(rest) => self.read(iova.wrapping_add(*done), rest).advance(done),
        }
    }

    /// Writes the rest of `src` to `iova`, of which `done` bytes have been written by earlier calls,
    /// and adds to `done`.
    ///
    /// # Errors
    /// What stopped it.
    pub fn write_on(&mut self, iova: u64, src: &[u8], done: &mut u64) -> Result<(), Stop> {
        match src.get(*done as usize..) {
            None | Some([]) => Ok(()),
            Some(rest) => self.write(iova.wrapping_add(*done), rest).advance(done),
        }
    }

    /// Tells who watches that `len` bytes from `iova` were moved.
    #[inline]
    pub(super) fn tell(&self, access: Access, iova: u64, len: u64) {
        let watch = self.view.device.watch();
        if len > 0 && watch.is_on() {
            watch.tell(|| Event::Dma {
                device: self.view.device.address(),
                pasid: self.view.pasid,
                domain: self.domain(),
                access,
                iova,
                len,
            });
        }
    }

    #[inline(always)]
    fn copy_up(&mut self, dst: u64, src: u64, done: u64, room: u64) -> Result<u64, Halt> {
        let view = &self.view;
        let (to, from) = (dst.wrapping_add(done), src.wrapping_add(done));
        if to >= dst
            && from >= src
            && let Some(source) = view.direct(from, room, Access::Read)
            && let Some(target) = view.direct(to, source.len() as u64, Access::Write)
        {
            return copy_direct(view, target, to, source, from);
        }
        self.copy_up_slowly(dst, src, done, room)
    }

    /// A buffer of `len` bytes, with anything in it, and what else a copy through it needs.
    pub(super) fn bounced(&mut self, len: usize) -> (&mut View<'a>, &mut [u8]) {
        self.make_bounce(len);
        (&mut self.view, &mut self.bounce[..len])
    }

    fn make_bounce(&mut self, len: usize) {
        if self.bounce.is_empty() {
            *self.bounce = SPARE.take();
        }
        if self.bounce.len() < len {
            self.bounce.resize(len, 0);
        }
    }

    /// Repeats `step(done, room)` until `len` bytes are done, within the guard's bytes.
    fn bulk(
        &mut self,
        len: u64,
        mut step: impl FnMut(&mut Self, u64, u64) -> Result<u64, Halt>,
    ) -> Transfer {
        let mut done = 0;
        let mut stop = None;
        while done < len {
            let room = (len - done).min(self.budget);
            if room == 0 {
                stop = Some(Stop::Budget);
                break;
            }
            match step(self, done, room) {
                Ok(more) => {
                    done += more;
                    self.budget -= more;
                }
                Err(halt) => {
                    done += halt.done;
                    self.budget -= halt.done;
                    stop = halt.stop;
                    break;
                }
            }
        }
        self.operations += 1;
        self.bytes += done;
        Transfer { done, stop }
    }

    /// As [`DmaGuard::bulk`], for reads and writes of the consumer's own buffers.
    fn small(
        &mut self,
        len: usize,
        mut step: impl FnMut(&mut Self, usize, usize) -> Result<u64, Halt>,
    ) -> Transfer {
        let mut done = 0;
        let mut stop = None;
        while done < len {
            let room = (len - done).min(self.slack as usize);
            if room == 0 {
                stop = Some(Stop::Budget);
                break;
            }
            let (more, halt) = match step(self, done, room) {
                Ok(more) => (more, None),
                Err(halt) => (halt.done, Some(halt.stop)),
            };
            done += more as usize;
            self.slack = self.slack.saturating_sub(more.max(SMALLEST_CHARGE));
            if let Some(halt) = halt {
                stop = halt;
                break;
            }
        }
        self.operations += 1;
        self.bytes += done as u64;
        Transfer {
            done: done as u64,
            stop,
        }
    }
}

impl Drop for DmaGuard<'_> {
    fn drop(&mut self) {
        if let Some(attachment) = self.view.attachment()
            && (self.operations > 0 || self.bytes > 0)
        {
            let counters = &attachment.space.counters;
            counters.add(self.shard, self.operations, self.bytes);
        }
    }
}

impl fmt::Debug for DmaGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaGuard")
            .field("domain", &self.domain())
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
