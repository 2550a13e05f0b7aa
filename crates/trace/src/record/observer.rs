//! What a machine tells, as lines.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ioasid_core::{
    Access, DomainId, Pasid, Prot,
    observe::{Event, Observer, RegisterAccess, Unit},
};

use super::Recorder;
use crate::schema::{
    Bytes, Dma, Fault, Hex, Interrupt, Line, Lost, Map, Name, Register, Route, RouteChange, Submit,
    Unmap, Work,
};

/// Accesses to registers of one device that are written in each window of time; the others are
/// counted.
const ACCESSES: u64 = 1000;

/// That window, in nanoseconds.
const WINDOW: u64 = 100_000_000;

/// Bytes of an access that are written.
const VALUE_BYTES: usize = 64;

/// Devices share the places where accesses are counted if there are more than this.
const PLACES: usize = 64;

/// Writes what a machine does to a [`Recorder`].
pub struct MachineObserver {
    recorder: Arc<Recorder>,
    accesses: [Rate; PLACES],
}

impl MachineObserver {
    /// An observer that writes to `recorder`.
    pub fn new(recorder: &Arc<Recorder>) -> Arc<Self> {
        Arc::new(MachineObserver {
            recorder: Arc::clone(recorder),
            accesses: std::array::from_fn(|_| Rate::default()),
        })
    }

    /// The machine does nothing any more: says what was counted only.
    pub fn finish(&self) {
        let counted = self.accesses.iter();
        let accesses = counted.map(|rate| rate.left_out.swap(0, Ordering::Relaxed));
        let accesses = accesses.sum();
        if accesses > 0 {
            self.recorder.push(Line::Lost(Lost {
                t: self.recorder.now(),
                lines: 0,
                accesses,
            }));
        }
    }

    fn register(
        &self,
        device: &Arc<str>,
        (region, offset): (u32, u64),
        access: RegisterAccess,
        data: &[u8],
    ) -> Option<Line> {
        let t = self.recorder.now();
        let mut hasher = DefaultHasher::new();
        device.hash(&mut hasher);
        let place = self.accesses.get(hasher.finish() as usize % PLACES)?;
        let left_out = place.admit(t)?;
        let name = match access {
            RegisterAccess::Read => "read",
            RegisterAccess::Write => "write",
            RegisterAccess::Load => "load",
            RegisterAccess::Store => "store",
        };
        Some(Line::Register(Box::new(Register {
            t,
            device: device.into(),
            region,
            offset: Hex(offset),
            access: name.into(),
            size: data.len() as u64,
            value: Bytes::from(data.get(..VALUE_BYTES).unwrap_or(data)),
            left_out,
        })))
    }

    #[expect(clippy::too_many_lines, reason = "a decoder: one arm for each event")]
    fn line(&self, event: &Event<'_>) -> Option<Line> {
        let t = self.recorder.now();
        Some(match *event {
            Event::Register {
                device,
                region,
                offset,
                access,
                data,
            } => self.register(device, (region, offset), access, data)?,
            Event::Dma {
                device,
                pasid,
                domain,
                access,
                iova,
                len,
            } => Line::Dma(Dma {
                t,
                device: Name::Address(device),
                pasid: pasid.map(Pasid::get),
                domain: domain.map(DomainId::get),
                access: direction(access).into(),
                iova: Hex(iova),
                len: Hex(len),
            }),
            Event::Fault {
                device,
                pasid,
                access,
                iova,
                reason,
            } => Line::Fault(Fault {
                t,
                device: Name::Address(device),
                pasid: pasid.map(Pasid::get),
                access: direction(access).into(),
                iova: Hex(iova),
                reason: reason.into(),
            }),
            Event::Route {
                device,
                pasid,
                domain,
                before,
            } => Line::Route(Route {
                t,
                change: match (before, domain) {
                    (None, _) => RouteChange::Attach,
                    (Some(_), Some(_)) => RouteChange::Replace,
                    (Some(_), None) => RouteChange::Detach,
                },
                device: Name::Address(device),
                pasid: pasid.map(Pasid::get),
                domain: domain.map(DomainId::get),
                before: before.map(DomainId::get),
            }),
            Event::Map { domain, iova, prot } => Line::Map(Map {
                t,
                domain: domain.get(),
                iova: Hex(iova.start()),
                last: Hex(iova.last()),
                prot: rights(prot).into(),
            }),
            Event::Unmap {
                domain,
                iova,
                bytes,
            } => Line::Unmap(Unmap {
                t,
                domain: domain.get(),
                iova: Hex(iova.start()),
                last: Hex(iova.last()),
                bytes: Hex(bytes),
            }),
            Event::Interrupt {
                device,
                index,
                vector,
            } => Line::Interrupt(Interrupt {
                t,
                device: device.into(),
                index: index.into(),
                vector,
            }),
            Event::Submitted { unit, first, count } => Line::Submit(Submit {
                t,
                device: Name::Address(unit.device),
                unit: number(unit),
                first,
                count,
            }),
            Event::Worked {
                unit,
                number: descriptor,
                operation,
                engine,
                began,
                end,
            } => {
                let from = self.recorder.at(began);
                Line::Work(Work {
                    t: from,
                    duration: t.saturating_sub(from),
                    device: Name::Address(unit.device),
                    unit: number(unit),
                    number: descriptor,
                    operation: operation.into(),
                    engine: engine.map(|engine| u32::try_from(engine).unwrap_or(u32::MAX)),
                    end: end.name().into(),
                })
            }
        })
    }
}

impl Observer for MachineObserver {
    fn observe(&self, event: &Event<'_>) {
        if let Some(line) = self.line(event) {
            self.recorder.push(line);
        }
    }
}

impl fmt::Debug for MachineObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MachineObserver")
            .field(&self.recorder)
            .finish()
    }
}

fn number(unit: Unit) -> u32 {
    u32::try_from(unit.number).unwrap_or(u32::MAX)
}

fn direction(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

fn rights(prot: Prot) -> &'static str {
    match (prot.read, prot.write) {
        (true, true) => "rw",
        (true, false) => "r",
        (false, true) => "w",
        (false, false) => "",
    }
}

/// How many accesses there were in the present window.
#[derive(Default)]
struct Rate {
    window: AtomicU64,
    count: AtomicU64,
    left_out: AtomicU64,
}

impl Rate {
    /// An access at `t`: how many were left out before it, if it is one to write.
    fn admit(&self, t: u64) -> Option<u64> {
        let window = t / WINDOW;
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.count.store(0, Ordering::Relaxed);
        }
        if self.count.fetch_add(1, Ordering::Relaxed) < ACCESSES {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_above_the_rate_are_counted_and_the_next_one_says_how_many() {
        let rate = Rate::default();
        for _ in 0..ACCESSES {
            assert_eq!(rate.admit(WINDOW), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(rate.admit(WINDOW + 1), None);
        }
        assert_eq!(rate.admit(2 * WINDOW), Some(7));
        assert_eq!(rate.admit(2 * WINDOW), Some(0));
    }
}
