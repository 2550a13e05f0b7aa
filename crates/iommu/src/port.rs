//! The DMA port: the only way of a device to memory.
//!
//! An engine thread owns a [`DmaPort`]. [`DmaPort::enter`] finds the domain of a route and publishes
//! that it is being read; the [`DmaGuard`] moves a bounded number of bytes and says how far it came
//! and why it stopped, so that a descriptor is resumed under the next guard, with every translation
//! made anew. Nothing under a guard blocks, except on a client's own worker
//! ([`DmaPort::enter_blocking`]), where only that client's unmaps wait for it.

use std::{fmt, sync::Arc};

use ioasid_core::{
    Access, DomainId, Pasid,
    grace::Slot,
    memory::MemoryGone,
    sync::atomic::{Ordering, fence},
};

use crate::{
    device::{Attachment, Device},
    fault::{Fault, FaultReason, FaultSink},
    transfer::{Direction, Stop, Transfer},
    view::{Place, View},
};

/// Bytes that [`DmaGuard::copy`], [`DmaGuard::fill`] and [`DmaGuard::compare`] may move under one
/// guard.
pub const GUARD_BYTES: u64 = 128 << 10;

/// Bytes that [`DmaGuard::read`], [`DmaGuard::write`] and [`DmaGuard::publish`] may move besides:
/// a descriptor that has used up its guard can still write its completion record under it.
pub const GUARD_SLACK: u64 = 64 << 10;

/// What a read or write costs at least, so that many small ones are bounded too.
const SMALLEST_CHARGE: u64 = 64;

/// Bytes copied at a time where a copy needs two steps.
const BOUNCE: usize = 16 << 10;

/// One engine thread's access to memory, in the name of one device.
pub struct DmaPort {
    device: Arc<Device>,
    slot: Slot,
    bounce: Box<[u8]>,
}

impl DmaPort {
    pub(crate) fn new(device: Arc<Device>, slot: Slot) -> Self {
        DmaPort {
            device,
            slot,
            bounce: vec![0; BOUNCE].into_boxed_slice(),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Enters the domain at `pasid`. Memory that may block is not touched: [`Stop::Remote`].
    #[inline]
    pub fn enter(&mut self, pasid: Option<Pasid>) -> DmaGuard<'_> {
        self.enter_as(pasid, false)
    }

    /// As [`DmaPort::enter`], where copies may block for ever. For the worker of the client that
    /// owns the memory, with a port of its own, and for nobody else: whoever changes the domain
    /// waits for this guard.
    pub fn enter_blocking(&mut self, pasid: Option<Pasid>) -> DmaGuard<'_> {
        self.enter_as(pasid, true)
    }

    fn enter_as(&mut self, pasid: Option<Pasid>, blocking: bool) -> DmaGuard<'_> {
        let guard = self.slot.enter();
        let attachment = self.device.routes().load(pasid, &guard);
        if let Some(attachment) = &attachment {
            guard.narrow(attachment.space.id);
        }
        DmaGuard {
            view: View {
                attachment,
                device: &self.device,
                pasid,
                blocking,
                guard,
            },
            bounce: &mut self.bounce,
            budget: GUARD_BYTES,
            slack: GUARD_SLACK,
            operations: 0,
            bytes: 0,
        }
    }

    /// Reports a fault whose guard is gone to whoever owns its route now. Where the attachment may
    /// have changed hands meanwhile, take a [`DmaGuard::reporter`] under the guard instead.
    pub fn report(&mut self, fault: &Fault) {
        let reporter = self.enter(fault.pasid).reporter();
        reporter.report(fault);
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

/// DMA in progress: while it lives, whoever takes a translation of its domain away waits.
///
/// Faults are returned, not reported: a page request may mend one. Whoever gives up calls
/// [`DmaGuard::report`], once.
pub struct DmaGuard<'a> {
    view: View<'a>,
    bounce: &'a mut [u8],
    budget: u64,
    slack: u64,
    operations: u64,
    bytes: u64,
}

impl DmaGuard<'_> {
    /// The domain that the route leads to.
    pub fn domain(&self) -> Option<DomainId> {
        let attachment = self.view.attachment.as_ref()?;
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
            attachment: self.view.attachment.clone(),
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
        self.bulk(len.saturating_sub(done), |guard, now, room| {
            let done = done + now;
            match direction {
                Direction::Forward => guard.copy_up(dst, src, done, room),
                Direction::Backward => guard.copy_down(dst, src, len - done, room),
            }
        })
    }

    /// Writes `pattern`, little-endian and repeated, to `len` bytes from `dst`. To go on after
    /// `done` bytes, rotate the pattern right by `8 * (done % 8)` bits.
    pub fn fill(&mut self, dst: u64, pattern: u64, len: u64) -> Transfer {
        for (byte, value) in self
            .bounce
            .iter_mut()
            .zip(pattern.to_le_bytes().into_iter().cycle())
        {
            *byte = value;
        }
        self.bulk(len, |guard, done, room| {
            let view = &guard.view;
            let iova = view.at(dst, done, Access::Write)?;
            let phase = (done % 8) as usize;
            let room = room.min((BOUNCE - 8) as u64);
            let place = view.locate(iova, room, Access::Write)?;
            let len = place.len().min(room);
            let source = &guard.bounce[phase..phase + len as usize];
            write_all(view, &place, source, iova)
        })
    }

    /// Compares `len` bytes at `a` and `b`. The offset of the first difference ends it, without a
    /// stop: `done` is that offset then.
    pub fn compare(&mut self, a: u64, b: u64, len: u64) -> (Transfer, Option<u64>) {
        let mut difference = None;
        let transfer = self.bulk(len, |guard, done, room| {
            let (left, right) = guard.bounce.split_at_mut(BOUNCE / 2);
            let view = &guard.view;
            let room = room.min(left.len() as u64);
            let at_a = view.at(a, done, Access::Read)?;
            let at_b = view.at(b, done, Access::Read)?;
            let place_a = view.locate(at_a, room, Access::Read)?;
            let place_b = view.locate(at_b, place_a.len(), Access::Read)?;
            let len = place_a.len().min(place_b.len());
            let (left, right) = (&mut left[..len as usize], &mut right[..len as usize]);
            let read_a = read_all(view, &place_a.part(0, len), left, at_a);
            let read_b = read_all(view, &place_b.part(0, len), right, at_b);
            let (good, stop) = match (read_a, read_b) {
                (Ok(_), Ok(_)) => (len, None),
                (Err(a), Ok(_)) => (a.done, Some(a)),
                (Ok(_), Err(b)) => (b.done, Some(b)),
                (Err(a), Err(b)) if b.done < a.done => (b.done, Some(b)),
                (Err(a), Err(_)) => (a.done, Some(a)),
            };
            let same = left
                .iter()
                .zip(right.iter())
                .take(good as usize)
                .position(|(a, b)| a != b);
            match (same, stop) {
                (Some(offset), _) => {
                    difference = Some(done + offset as u64);
                    Err(Halt {
                        done: offset as u64,
                        stop: None,
                    })
                }
                (None, Some(halt)) => Err(halt),
                (None, None) => Ok(len),
            }
        });
        (transfer, difference)
    }

    /// Reads `dst.len()` bytes from `iova`.
    pub fn read(&mut self, iova: u64, dst: &mut [u8]) -> Transfer {
        self.small(dst.len(), |guard, done, room| {
            let view = &guard.view;
            let at = view.at(iova, done as u64, Access::Read)?;
            let place = view.locate(at, room, Access::Read)?;
            let len = place.len() as usize;
            read_all(view, &place, &mut dst[done..done + len], at)
        })
    }

    /// Writes `src` at `iova`.
    pub fn write(&mut self, iova: u64, src: &[u8]) -> Transfer {
        self.small(src.len(), |guard, done, room| {
            let view = &guard.view;
            let at = view.at(iova, done as u64, Access::Write)?;
            let place = view.locate(at, room, Access::Write)?;
            let len = place.len() as usize;
            write_all(view, &place, &src[done..done + len], at)
        })
    }

    /// Writes one byte after everything this thread wrote before: the byte that tells a waiting CPU
    /// that a record is complete.
    pub fn publish(&mut self, iova: u64, byte: u8) -> Transfer {
        fence(Ordering::Release);
        self.write(iova, std::slice::from_ref(&byte))
    }

    fn copy_up(&mut self, dst: u64, src: u64, done: u64, room: u64) -> Result<u64, Halt> {
        let view = &self.view;
        let from = view.at(src, done, Access::Read)?;
        let source = view.locate(from, room, Access::Read)?;
        let to = view.at(dst, done, Access::Write)?;
        let target = view.locate(to, source.len(), Access::Write)?;
        let len = source.len().min(target.len());
        move_bytes(
            view,
            self.bounce,
            &target.part(0, len),
            to,
            &source.part(0, len),
            from,
        )
    }

    /// Copies bytes that end at offset `end` (exclusive) of both ranges.
    fn copy_down(&mut self, dst: u64, src: u64, end: u64, room: u64) -> Result<u64, Halt> {
        let view = &self.view;
        let from = view.at(src, end - 1, Access::Read)?;
        let source = view.locate_back(from, room, Access::Read)?;
        let to = view.at(dst, end - 1, Access::Write)?;
        let target = view.locate_back(to, source.len(), Access::Write)?;
        let direct = matches!((&source, &target), (Place::Direct(_), Place::Direct(_)));
        let mut len = source.len().min(target.len());
        if !direct {
            len = len.min(BOUNCE as u64);
        }
        let target = target.part(target.len() - len, len);
        let source = source.part(source.len() - len, len);
        let (to, from) = (to - (len - 1), from - (len - 1));
        // Bytes done before a fault inside the piece are at its front: not a part of the tail that
        // counts as done.
        move_bytes(view, self.bounce, &target, to, &source, from).map_err(|halt| Halt {
            done: 0,
            stop: halt.stop,
        })
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
        mut step: impl FnMut(&mut Self, usize, u64) -> Result<u64, Halt>,
    ) -> Transfer {
        let mut done = 0;
        let mut stop = None;
        while done < len {
            let room = (len - done).min(self.slack as usize) as u64;
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
        if let Some(attachment) = &self.view.attachment
            && self.operations > 0
        {
            let space = &attachment.space;
            space
                .operations
                .fetch_add(self.operations, Ordering::Relaxed);
            space.bytes.fetch_add(self.bytes, Ordering::Relaxed);
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

/// The end of a loop: what its last step did before, and why (nothing: the operation is over).
struct Halt {
    done: u64,
    stop: Option<Stop>,
}

impl<S: Into<Stop>> From<S> for Halt {
    fn from(stop: S) -> Self {
        Halt {
            done: 0,
            stop: Some(stop.into()),
        }
    }
}

fn gone(view: &View<'_>, done: usize, iova: u64, access: Access, reason: FaultReason) -> Halt {
    let at = iova.saturating_add(done as u64);
    Halt {
        done: done as u64,
        stop: Some(view.fault(at, access, reason).into()),
    }
}

fn read_all(view: &View<'_>, place: &Place<'_>, dst: &mut [u8], iova: u64) -> Result<u64, Halt> {
    match place.read(dst) {
        Ok(()) => Ok(dst.len() as u64),
        Err(MemoryGone { done }) => Err(gone(
            view,
            done,
            iova,
            Access::Read,
            FaultReason::MemoryGone,
        )),
    }
}

fn write_all(view: &View<'_>, place: &Place<'_>, src: &[u8], iova: u64) -> Result<u64, Halt> {
    match place.write(src) {
        Ok(()) => Ok(src.len() as u64),
        Err(MemoryGone { done }) => {
            Err(gone(view, done, iova, Access::Write, place.write_refused()))
        }
    }
}

/// Copies between two places of one length, at once where both are addressable, else through the
/// bounce buffer, as much as that holds.
fn move_bytes(
    view: &View<'_>,
    bounce: &mut [u8],
    target: &Place<'_>,
    to: u64,
    source: &Place<'_>,
    from: u64,
) -> Result<u64, Halt> {
    if let (Place::Direct(target_bytes), Place::Direct(source_bytes)) = (target, source) {
        return match target_bytes.copy_from(*source_bytes) {
            Ok(()) => Ok(source.len()),
            Err(MemoryGone { done }) => {
                // The copy does not say which side is gone.
                let probe = source_bytes.slice(done, 1);
                let source_gone = probe.is_some_and(|byte| byte.read(&mut [0]).is_err());
                Err(if source_gone {
                    gone(view, done, from, Access::Read, FaultReason::MemoryGone)
                } else {
                    gone(view, done, to, Access::Write, target.write_refused())
                })
            }
        };
    }
    let len = source.len().min(bounce.len() as u64);
    let buffer = &mut bounce[..len as usize];
    match read_all(view, &source.part(0, len), buffer, from) {
        Ok(_) => write_all(view, &target.part(0, len), buffer, to),
        Err(halt) => {
            // What could be read still arrives.
            let read = (halt.done as usize).min(buffer.len());
            write_all(view, &target.part(0, read as u64), &buffer[..read], to)?;
            Err(halt)
        }
    }
}
