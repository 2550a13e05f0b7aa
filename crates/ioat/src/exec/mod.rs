//! Executing one descriptor: a resumable state machine that moves bytes through a [`DmaGuard`] and
//! never waits.
//!
//! A descriptor is read, checked and carried out by steps: each runs under one guard until that is
//! done or a [`Halt`] says why it cannot go on there. What is left then is its completion word.

mod parity;
mod saved;

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use ioasid_core::Access;
use ioasid_engine::Halt;
use ioasid_iommu::{DmaGuard, Stop};

use self::parity::Parity;
use crate::spec::{
    ChanCtrl, ChanErr, ChanSts, ChannelStatus, Control, DESCRIPTOR_SIZE, Descriptor, Opcode,
};

/// Where a descriptor is and what its channel's registers say when it is begun.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Address of the descriptor.
    pub(crate) address: u64,
    /// It is the first of its chain.
    pub(crate) first: bool,
    /// Descriptors of the chain that are done.
    pub(crate) processed: u16,
    /// DMACOUNT, which may go on.
    pub(crate) target: Arc<AtomicU16>,
    /// Address of the last descriptor that was done.
    pub(crate) completed: u64,
    pub(crate) control: ChanCtrl,
    /// Address of the completion word.
    pub(crate) completion: u64,
    pub(crate) mask: ChanErr,
    /// Largest transfer in bytes.
    pub(crate) max_transfer: u32,
}

/// How a descriptor ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Errors, masked ones included.
    pub(crate) error: ChanErr,
    /// The channel halts here.
    pub(crate) halts: bool,
    /// A page fault was among the errors.
    pub(crate) faulted: bool,
    /// Its own address.
    pub(crate) address: u64,
    /// The address of the next one.
    pub(crate) next: u64,
    /// What it counts for: 2 with an extension.
    pub(crate) count: u16,
    /// It asks for an interrupt.
    pub(crate) interrupt: bool,
}

/// A descriptor under way.
#[derive(Debug)]
pub(crate) struct Execution {
    terms: Terms,
    bytes: [u8; DESCRIPTOR_SIZE],
    descriptor: Descriptor,
    extension: Descriptor,
    phase: Phase,
    error: ChanErr,
    faulted: bool,
    count: u16,
    next: u64,
    /// Bytes moved, completion word included.
    pub(crate) moved: u64,
}

#[derive(Debug)]
enum Phase {
    Begin,
    Read(u64),
    Check,
    ReadExtension(u64),
    Work(Work),
    /// Whether nothing is to be reported.
    Complete(bool),
}

/// What is left to do of the operation itself.
#[derive(Debug)]
enum Work {
    Null,
    Copy(u64),
    Fill(u64),
    Parity(Box<Parity>),
}

/// Why a descriptor is not done as it says.
pub(crate) enum Failure {
    Stopped(Stop),
    Error(ChanErr),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Failure::Stopped(stop)
    }
}

impl Execution {
    /// What it does, as far as the descriptor has been read.
    pub(crate) fn operation(&self) -> &'static str {
        let op = Opcode::from_code(self.descriptor.control().op());
        op.map_or("unknown", Opcode::name)
    }

    pub(crate) fn new(terms: Terms) -> Self {
        Execution {
            next: terms.address,
            terms,
            bytes: [0; DESCRIPTOR_SIZE],
            descriptor: Descriptor::default(),
            extension: Descriptor::default(),
            phase: Phase::Begin,
            error: ChanErr::new(),
            faulted: false,
            count: 1,
            moved: 0,
        }
    }

    /// Goes on until only the completion word is left, or until it cannot go on under this guard.
    pub(crate) fn step(&mut self, guard: &mut DmaGuard<'_>) -> Result<(), Halt> {
        while !matches!(self.phase, Phase::Complete(_)) {
            let done = self.advance(guard);
            self.outcome(done, guard)?;
        }
        Ok(())
    }

    /// Writes the completion word, if one is wanted.
    pub(crate) fn conclude(&mut self, guard: &mut DmaGuard<'_>) -> Result<Ending, Halt> {
        let done = self.complete(guard);
        self.outcome(done, guard)?;
        Ok(self.ending())
    }

    /// Takes in what a phase came to; after an error only its report is left.
    fn outcome(&mut self, done: Result<(), Failure>, guard: &mut DmaGuard<'_>) -> Result<(), Halt> {
        match done {
            Ok(()) => {}
            Err(Failure::Error(error)) => self.fail(error),
            Err(Failure::Stopped(stop)) => {
                let fault = Halt::or_fault(stop)?;
                guard.report(&fault);
                self.faulted = true;
                self.fail(self.error_of(fault.access));
            }
        }
        Ok(())
    }

    /// One phase on.
    fn advance(&mut self, guard: &mut DmaGuard<'_>) -> Result<(), Failure> {
        let Terms { address, first, .. } = self.terms;
        let remaining = self.remaining();
        match &mut self.phase {
            Phase::Begin => {
                if !address.is_multiple_of(DESCRIPTOR_SIZE as u64) {
                    let error = ChanErr::new().with_chain_addr(first).with_next_addr(!first);
                    return Err(Failure::Error(error));
                }
                self.phase = Phase::Read(0);
            }
            Phase::Read(done) => {
                guard.read_on(address, &mut self.bytes, done)?;
                self.descriptor = Descriptor::from_bytes(&self.bytes);
                self.next = self.descriptor.next();
                self.phase = Phase::Check;
            }
            Phase::Check => {
                let op = self.check().map_err(Failure::Error)?;
                self.phase = match self.descriptor.has_extension(op) {
                    true => Phase::ReadExtension(0),
                    false => Phase::Work(Work::new(op, &self.descriptor, &self.extension)),
                };
            }
            Phase::ReadExtension(done) => {
                let at = self.descriptor.next();
                if remaining < 2 {
                    let error = ChanErr::new().with_descriptor_count(true);
                    return Err(Failure::Error(error));
                }
                if !at.is_multiple_of(DESCRIPTOR_SIZE as u64) {
                    return Err(Failure::Error(ChanErr::new().with_next_addr(true)));
                }
                guard.read_on(at, &mut self.bytes, done)?;
                self.extension = Descriptor::from_bytes(&self.bytes);
                (self.count, self.next) = (2, self.extension.next());
                let op = Opcode::from_code(self.descriptor.control().op());
                let op = op.ok_or(Failure::Error(ChanErr::new().with_control(true)))?;
                self.phase = Phase::Work(Work::new(op, &self.descriptor, &self.extension));
            }
            Phase::Work(work) => {
                work.run(&self.descriptor, &mut self.moved, guard)?;
                self.phase = Phase::Complete(false);
            }
            Phase::Complete(_) => {}
        }
        Ok(())
    }

    /// Descriptors that may still be done, this one included.
    fn remaining(&self) -> u16 {
        let target = self.terms.target.load(Ordering::Acquire);
        target.wrapping_sub(self.terms.processed)
    }

    fn check(&self) -> Result<Opcode, ChanErr> {
        let control = self.descriptor.control();
        let unknown = ChanErr::new().with_control(true);
        let op = Opcode::from_code(control.op()).ok_or(unknown)?;
        let invalid = match op {
            Opcode::Copy => control.low() & Control::PAGE_BREAKS != 0,
            Opcode::Fill => control.low() != 0,
            Opcode::Xor | Opcode::XorVal => self.descriptor.source_count() > 8,
            Opcode::Pq | Opcode::PqVal => {
                self.descriptor.source_count() > 8 || control.p_disable() && control.q_disable()
            }
        };
        if invalid || control.bundle() {
            return Err(unknown);
        }
        let size = self.descriptor.size();
        if size == 0 || size > self.terms.max_transfer {
            return Err(ChanErr::new().with_length(true));
        }
        Ok(op)
    }

    /// Whether the errors so far halt the channel.
    fn halts(&self) -> bool {
        let masked = self.terms.mask.into_bits() & ChanErr::MASKABLE.into_bits();
        self.error.into_bits() & !masked != 0
    }

    /// Ends the descriptor with `error`; what is left is the report, if the program asks for one.
    fn fail(&mut self, error: ChanErr) {
        // If it was the completion word itself that failed, nothing is left at all.
        let silent = matches!(self.phase, Phase::Complete(_));
        self.error = ChanErr::from_bits(self.error.into_bits() | error.into_bits());
        self.phase = Phase::Complete(silent);
    }

    /// The error of an access that was refused in this phase.
    fn error_of(&self, access: Access) -> ChanErr {
        match (&self.phase, access) {
            (Phase::Complete(_), _) => ChanErr::new().with_completion_addr(true),
            (Phase::Work(_), Access::Read) => ChanErr::new().with_read_data(true),
            (Phase::Work(_), Access::Write) => ChanErr::new().with_write_data(true),
            _ => ChanErr::new().with_descriptor(true),
        }
    }

    /// Writes the completion word, if one is wanted.
    fn complete(&mut self, guard: &mut DmaGuard<'_>) -> Result<(), Failure> {
        let halts = self.halts();
        let wanted = match halts {
            true => self.terms.control.err_completion_en(),
            false => self.descriptor.control().compl_write(),
        };
        let silent = matches!(self.phase, Phase::Complete(true));
        if !wanted || silent {
            return Ok(());
        }
        if !self.terms.completion.is_multiple_of(8) {
            return Err(Failure::Error(ChanErr::new().with_completion_addr(true)));
        }
        let status = match halts {
            true => ChanSts::at(self.terms.completed, ChannelStatus::Halted),
            false if self.remaining() == self.count => {
                ChanSts::at(self.terms.address, ChannelStatus::Done)
            }
            false => ChanSts::at(self.terms.address, ChannelStatus::Active),
        };
        // Eight aligned bytes lie in one page: all of them are written or none.
        let transfer = guard.publish_word(self.terms.completion, status.into_bits());
        Ok(transfer.advance(&mut self.moved)?)
    }

    fn ending(&self) -> Ending {
        Ending {
            error: self.error,
            halts: self.halts(),
            faulted: self.faulted,
            address: self.terms.address,
            next: self.next,
            count: self.count,
            interrupt: self.descriptor.control().int_en(),
        }
    }

    /// How it ends if it cannot be carried out at all, because the client whose memory it needs is
    /// gone.
    pub(crate) fn lost(&self) -> Ending {
        Ending {
            error: ChanErr::new().with_read_data(true),
            halts: true,
            ..self.ending()
        }
    }
}

impl Work {
    fn new(op: Opcode, descriptor: &Descriptor, extension: &Descriptor) -> Self {
        match op {
            Opcode::Copy if descriptor.control().low() & Control::NULL != 0 => Work::Null,
            Opcode::Copy => Work::Copy(0),
            Opcode::Fill => Work::Fill(0),
            _ => Work::Parity(Box::new(Parity::new(op, descriptor, extension))),
        }
    }

    fn run(
        &mut self,
        descriptor: &Descriptor,
        moved: &mut u64,
        guard: &mut DmaGuard<'_>,
    ) -> Result<(), Failure> {
        let size = u64::from(descriptor.size());
        let (to, from) = (descriptor.destination(), descriptor.source());
        let (transfer, done) = match self {
            Work::Null => return Ok(()),
            Work::Copy(done) => (guard.copy_on(to, from, size, *done), done),
            Work::Fill(done) => {
                let phase = (*done % 8) as u32 * 8;
                let (to, rest) = (to.wrapping_add(*done), size.saturating_sub(*done));
                (guard.fill(to, from.rotate_right(phase), rest), done)
            }
            Work::Parity(parity) => return parity.run(moved, guard),
        };
        *moved += transfer.done;
        Ok(transfer.advance(done)?)
    }
}
