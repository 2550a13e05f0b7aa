//! One descriptor that is not a batch.

use ioasid_engine::Halt;
use ioasid_iommu::{Direction, DmaGuard, Stop};

use super::{
    crc::Crc,
    ending::Ending,
    terms::{Effects, Terms},
};
use crate::spec::{
    Descriptor, Flags, Opcode, Status,
    descriptor::{CRC_BYPASS_INVERSION, CRC_BYPASS_REFLECTION, CRC_READ_SEED},
};

/// Bytes that an operation which looks at its data holds at a time.
const CHUNK: u64 = 16 << 10;
/// Bytes that Dualcast writes to one destination before it turns to the other.
const DUALCAST_CHUNK: u64 = 64 << 10;
/// Distance at which Cache Flush touches its range.
const FLUSH_STEP: u64 = 4096;

/// One descriptor and how far it has come.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(super) descriptor: Descriptor,
    /// Position in its batch.
    index: Option<u16>,
    pub(super) phase: Phase,
    /// Bytes of the transfer that are done.
    pub(super) done: u64,
    /// Page faults are not waited for any more.
    pub(super) denied: bool,
}

#[derive(Debug)]
pub(super) enum Phase {
    Check,
    Run(Work),
    End(Ending),
}

/// What an operation keeps between two steps besides the bytes done.
#[derive(Debug)]
pub(super) enum Work {
    Nothing,
    Move,
    Fill,
    Compare,
    ComparePattern {
        chunk: Chunk,
    },
    /// Bytes of the current chunk that each destination has.
    Dualcast {
        first: u64,
        second: u64,
    },
    CrcSeed {
        seed: [u8; 4],
        filled: u64,
    },
    Crc {
        crc: Crc,
        chunk: Chunk,
    },
    Flush,
}

/// A piece of the transfer on its way through a buffer.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    data: Vec<u8>,
    filled: u64,
    written: u64,
}

impl Chunk {
    /// The next `len` bytes.
    fn start(&mut self, len: u64) {
        if self.data.len() as u64 != len {
            self.data.resize(len as usize, 0);
        }
    }

    fn finish(&mut self) {
        (self.filled, self.written) = (0, 0);
    }
}

/// What running an operation came to.
enum Outcome {
    Done(Ending),
    Stopped(Stop),
}

impl From<Stop> for Outcome {
    fn from(stop: Stop) -> Self {
        Outcome::Stopped(stop)
    }
}

impl Operation {
    /// `descriptor`, at position `index` of a batch.
    pub(crate) const fn new(descriptor: Descriptor, index: Option<u16>) -> Self {
        Self::resumed(descriptor, index, 0)
    }

    /// The same, of whose transfer `done` bytes are done.
    pub(crate) const fn resumed(descriptor: Descriptor, index: Option<u16>, done: u64) -> Self {
        Operation {
            descriptor,
            index,
            phase: Phase::Check,
            done,
            denied: false,
        }
    }

    pub(crate) const fn deny_page(&mut self) {
        self.denied = true;
    }

    /// Goes on; `Ok` says whether the finished descriptor succeeded.
    pub(crate) fn step(
        &mut self,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
        effects: &mut Effects,
    ) -> Result<bool, Halt> {
        loop {
            self.phase = match &mut self.phase {
                Phase::Check => match check(&self.descriptor, terms, self.index) {
                    Ok(opcode) => Phase::Run(Work::new(opcode, &self.descriptor)),
                    Err(ending) => Phase::End(ending),
                },
                Phase::Run(work) => {
                    let before = self.done;
                    let outcome = work.run(&self.descriptor, &mut self.done, self.index, guard);
                    effects.counts.bytes += self.done - before;
                    match outcome {
                        Outcome::Done(ending) => Phase::End(ending),
                        Outcome::Stopped(stop) => self.stopped(stop, guard, terms, effects)?,
                    }
                }
                Phase::End(ending) => {
                    ending.step(&self.descriptor, guard, terms, effects)?;
                    return Ok(ending.succeeded());
                }
            };
        }
    }

    /// What follows when the data of the operation could not be reached.
    fn stopped(
        &self,
        stop: Stop,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
        effects: &mut Effects,
    ) -> Result<Phase, Halt> {
        let fault = Halt::or_fault(stop)?;
        let waits = self.descriptor.flags.block_on_fault() && terms.page_requests && !self.denied;
        if waits && fault.reason.is_recoverable() {
            return Err(Halt::Page(fault));
        }
        guard.report(&fault);
        effects.counts.faults += 1;
        let completed = u32::try_from(self.done).unwrap_or(u32::MAX);
        let mut ending = Ending::fault(Status::PageFault, &fault, completed, self.index);
        if matches!(self.phase, Phase::Run(Work::Move)) {
            let Descriptor {
                source,
                destination,
                size,
                ..
            } = self.descriptor;
            let backward = Direction::of(destination, source, size.into()) == Direction::Backward;
            ending.record_mut().result = u8::from(backward);
        }
        Ok(Phase::End(ending))
    }
}

/// The checks before anything is touched, in the order in which they are made.
pub(super) fn check(
    descriptor: &Descriptor,
    terms: &Terms,
    index: Option<u16>,
) -> Result<Opcode, Ending> {
    let fail = |status| Err(Ending::status(status, index));
    let flags = descriptor.flags;
    if flags.record_valid() && !descriptor.record_aligned() {
        return fail(Status::RecordAlignment);
    }
    // Those of a batch are as privileged as their batch.
    if terms.shared && !terms.privileged_mode && descriptor.privileged && index.is_none() {
        return fail(Status::Privilege);
    }
    let opcode = match Opcode::from_code(descriptor.opcode) {
        Some(Opcode::Batch | Opcode::Drain) if index.is_some() => return fail(Status::BadOpcode),
        Some(opcode) => opcode,
        None => return fail(Status::BadOpcode),
    };
    let invalid = flags.into_bits() & !allowed_flags(opcode, flags, terms).into_bits();
    if invalid != 0 {
        let mut ending = Ending::status(Status::InvalidFlags, index);
        ending.record_mut().specific = invalid.into();
        return Err(ending);
    }
    if flags.request_interrupt() && !terms.permits(descriptor.int_handle) {
        return fail(Status::InterruptHandle);
    }
    match opcode {
        Opcode::Noop | Opcode::Drain => return Ok(opcode),
        Opcode::Batch => {
            if !(2..=terms.max_batch).contains(&descriptor.size.into()) {
                return fail(Status::DescriptorCount);
            }
            if !descriptor.source.is_multiple_of(64) {
                return fail(Status::ListAlignment);
            }
            return Ok(opcode);
        }
        _ => {}
    }
    if !(1..=terms.max_transfer).contains(&descriptor.size.into()) {
        return fail(Status::TransferSize);
    }
    let size = u64::from(descriptor.size);
    let overlap = |a: u64, b: u64| a.abs_diff(b) < size;
    let (first, second) = (descriptor.destination, descriptor.specific0);
    match opcode {
        Opcode::Dualcast if (first ^ second) & 0xfff != 0 => fail(Status::DualcastAlignment),
        Opcode::Dualcast
            if overlap(first, second)
                || overlap(first, descriptor.source)
                || overlap(second, descriptor.source) =>
        {
            fail(Status::Overlap)
        }
        Opcode::CopyCrc if overlap(descriptor.source, first) => fail(Status::Overlap),
        _ => Ok(opcode),
    }
}

/// The flags that `opcode` may have. Hints (cache control, traffic classes, ordering, readback) are
/// accepted everywhere, as is a fence outside of a batch, where it has nothing to wait for.
fn allowed_flags(opcode: Opcode, flags: Flags, terms: &Terms) -> Flags {
    let specific = match opcode {
        Opcode::CrcGen | Opcode::CopyCrc => {
            CRC_READ_SEED | CRC_BYPASS_INVERSION | CRC_BYPASS_REFLECTION
        }
        _ => 0,
    };
    Flags::new()
        .with_fence(true)
        .with_block_on_fault(terms.block_on_fault)
        .with_record_valid(true)
        .with_request_record(flags.record_valid())
        .with_request_interrupt(true)
        .with_check_result(matches!(opcode, Opcode::Compare | Opcode::ComparePattern))
        .with_cache_control(true)
        .with_traffic_classes(0xf)
        .with_strict_ordering(true)
        .with_dest_readback(true)
        .with_specific(specific)
}

impl Work {
    pub(super) fn new(opcode: Opcode, descriptor: &Descriptor) -> Work {
        let chunk = Chunk::default();
        match opcode {
            Opcode::Noop | Opcode::Drain | Opcode::Batch => Work::Nothing,
            Opcode::MemoryMove => Work::Move,
            Opcode::Fill => Work::Fill,
            Opcode::Compare => Work::Compare,
            Opcode::ComparePattern => Work::ComparePattern { chunk },
            Opcode::Dualcast => Work::Dualcast {
                first: 0,
                second: 0,
            },
            Opcode::CrcGen | Opcode::CopyCrc => {
                let flags = descriptor.flags.specific();
                if flags & CRC_READ_SEED != 0 {
                    Work::CrcSeed {
                        seed: [0; 4],
                        filled: 0,
                    }
                } else {
                    let crc = Crc::new(descriptor.specific0 as u32, flags);
                    Work::Crc { crc, chunk }
                }
            }
            Opcode::CacheFlush => Work::Flush,
        }
    }

    /// Moves bytes until the operation is done or something stops it; `done` counts whole bytes of
    /// the transfer.
    fn run(
        &mut self,
        descriptor: &Descriptor,
        done: &mut u64,
        index: Option<u16>,
        guard: &mut DmaGuard<'_>,
    ) -> Outcome {
        match self.go(descriptor, done, index, guard) {
            Ok(ending) => Outcome::Done(ending),
            Err(stop) => Outcome::Stopped(stop),
        }
    }

    fn go(
        &mut self,
        descriptor: &Descriptor,
        done: &mut u64,
        index: Option<u16>,
        guard: &mut DmaGuard<'_>,
    ) -> Result<Ending, Stop> {
        let size = u64::from(descriptor.size);
        let (source, destination) = (descriptor.source, descriptor.destination);
        let mut ending = Ending::status(Status::Success, index);
        match self {
            Work::Nothing => {}
            Work::Move => {
                guard
                    .copy_on(destination, source, size, *done)
                    .advance(done)?;
            }
            Work::Fill => {
                let pattern = source.rotate_right(8 * (*done % 8) as u32);
                let to = destination.wrapping_add(*done);
                guard.fill(to, pattern, size - *done).advance(done)?;
            }
            Work::Compare => {
                let (a, b) = (source.wrapping_add(*done), destination.wrapping_add(*done));
                let before = *done;
                let (transfer, difference) = guard.compare(a, b, size - *done);
                if let Some(offset) = difference {
                    *done = before + offset;
                    return Ok(compared(descriptor, Some(*done), index));
                }
                transfer.advance(done)?;
                return Ok(compared(descriptor, None, index));
            }
            Work::ComparePattern { chunk } => {
                let difference = compare_pattern(descriptor, chunk, done, guard)?;
                return Ok(compared(descriptor, difference, index));
            }
            Work::Dualcast { first, second } => {
                dualcast(descriptor, (first, second), done, guard)?;
            }
            Work::CrcSeed { seed, filled } => {
                guard.read_on(descriptor.specific1, seed, filled)?;
                let crc = Crc::new(u32::from_le_bytes(*seed), descriptor.flags.specific());
                let chunk = Chunk::default();
                *self = Work::Crc { crc, chunk };
                return self.go(descriptor, done, index, guard);
            }
            Work::Crc { crc, chunk } => {
                update_crc(descriptor, (crc, chunk), done, guard)?;
                ending.record_mut().specific = crc.value().into();
            }
            Work::Flush => {
                // There is no cache to flush; that the range is mapped is what a client can see.
                while *done < size {
                    let mut touched = [0; 1];
                    let mut read = 0;
                    let at = destination.wrapping_add(*done);
                    guard.read_on(at, &mut touched, &mut read)?;
                    *done = size.min(*done + FLUSH_STEP - at % FLUSH_STEP);
                }
            }
        }
        Ok(ending)
    }
}

/// Compares the source with a pattern; gives the offset of the first difference.
fn compare_pattern(
    descriptor: &Descriptor,
    chunk: &mut Chunk,
    done: &mut u64,
    guard: &mut DmaGuard<'_>,
) -> Result<Option<u64>, Stop> {
    let size = u64::from(descriptor.size);
    let pattern = descriptor.destination.to_le_bytes();
    while *done < size {
        let len = CHUNK.min(size - *done);
        chunk.start(len);
        let from = descriptor.source.wrapping_add(*done);
        guard.read_on(from, &mut chunk.data, &mut chunk.filled)?;
        // A chunk starts at a multiple of the pattern's length.
        let differs = |(at, byte): (usize, &u8)| *byte != pattern[at % 8];
        if let Some(at) = chunk.data.iter().enumerate().position(differs) {
            *done += at as u64;
            return Ok(Some(*done));
        }
        chunk.finish();
        *done += len;
    }
    Ok(None)
}

/// Copies to two destinations, of which each has some bytes of the piece that is under way.
fn dualcast(
    descriptor: &Descriptor,
    (first, second): (&mut u64, &mut u64),
    done: &mut u64,
    guard: &mut DmaGuard<'_>,
) -> Result<(), Stop> {
    let size = u64::from(descriptor.size);
    let (destination, other) = (descriptor.destination, descriptor.specific0);
    while *done < size {
        let len = DUALCAST_CHUNK.min(size - *done);
        for (to, have) in [(destination, &mut *first), (other, &mut *second)] {
            let at = *done + *have;
            let (to, from) = (to.wrapping_add(at), descriptor.source.wrapping_add(at));
            if *have < len {
                guard.copy(to, from, len - *have).advance(have)?;
            }
        }
        (*first, *second) = (0, 0);
        *done += len;
    }
    Ok(())
}

/// Adds the source to a CRC, and copies it if the operation does.
fn update_crc(
    descriptor: &Descriptor,
    (crc, chunk): (&mut Crc, &mut Chunk),
    done: &mut u64,
    guard: &mut DmaGuard<'_>,
) -> Result<(), Stop> {
    let size = u64::from(descriptor.size);
    let copies = descriptor.opcode == Opcode::CopyCrc as u8;
    while *done < size {
        let len = CHUNK.min(size - *done);
        chunk.start(len);
        let from = descriptor.source.wrapping_add(*done);
        guard.read_on(from, &mut chunk.data, &mut chunk.filled)?;
        if copies {
            let to = descriptor.destination.wrapping_add(*done);
            guard.write_on(to, &chunk.data, &mut chunk.written)?;
        }
        crc.update(&chunk.data);
        chunk.finish();
        *done += len;
    }
    Ok(())
}

/// The end of a comparison that met its first difference at `difference`.
fn compared(descriptor: &Descriptor, difference: Option<u64>, index: Option<u16>) -> Ending {
    let result = u8::from(difference.is_some());
    let unexpected = descriptor.flags.check_result() && result != descriptor.specific0 as u8 & 1;
    let status = if unexpected {
        Status::SuccessFalsePredicate
    } else {
        Status::Success
    };
    let mut ending = Ending::status(status, index);
    let record = ending.record_mut();
    record.result = result;
    record.completed = difference.map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX));
    ending
}
