//! A batch: a list of descriptors in the client's memory, read with the client's PASID.

use std::collections::VecDeque;

use ioasid_engine::Halt;
use ioasid_iommu::{Copy, DmaGuard, Fault};

use super::{
    ending::Ending,
    operation::{Operation, check},
    terms::{Effects, Terms},
};
use crate::spec::{CompletionRecord, Descriptor, Opcode, Status, descriptor::DESCRIPTOR_SIZE};

/// Descriptors that are read ahead. The client may change what was not read yet, and only that.
pub(super) const WINDOW: u64 = 32;
/// Descriptors that run under one guard: with its bytes, what bounds it.
const PER_GUARD: u32 = 64;

/// A batch descriptor and how far its list has come.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(super) descriptor: Descriptor,
    pub(super) phase: Phase,
    /// Descriptors that were read.
    pub(super) fetched: u64,
    pub(super) window: VecDeque<Descriptor>,
    /// Bytes of the next descriptors that were copied ahead of them.
    ahead: VecDeque<u64>,
    pub(super) current: Option<Operation>,
    /// Descriptors that ended.
    pub(super) ended: u64,
    pub(super) failed: bool,
    pub(super) denied: bool,
    /// Bytes of the window that is being read.
    buffer: Vec<u8>,
    filled: u64,
}

#[derive(Debug)]
pub(super) enum Phase {
    Check,
    Run,
    End(Ending),
}

impl Batch {
    pub(crate) const fn new(descriptor: Descriptor) -> Self {
        Batch {
            descriptor,
            phase: Phase::Check,
            fetched: 0,
            window: VecDeque::new(),
            ahead: VecDeque::new(),
            current: None,
            ended: 0,
            failed: false,
            denied: false,
            buffer: Vec::new(),
            filled: 0,
        }
    }

    pub(crate) const fn deny_page(&mut self) {
        match &mut self.current {
            Some(operation) => operation.deny_page(),
            None => self.denied = true,
        }
    }

    pub(crate) fn step(
        &mut self,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
        effects: &mut Effects,
    ) -> Result<(), Halt> {
        loop {
            self.phase = match &self.phase {
                Phase::Check => match check(&self.descriptor, terms, None) {
                    Ok(_) => Phase::Run,
                    Err(ending) => Phase::End(ending),
                },
                Phase::Run => Phase::End(self.run(guard, terms, effects)?),
                Phase::End(ending) => return ending.step(&self.descriptor, guard, terms, effects),
            };
        }
    }

    fn run(
        &mut self,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
        effects: &mut Effects,
    ) -> Result<Ending, Halt> {
        let count = u64::from(self.descriptor.size);
        let mut here = 0;
        while self.ended < count {
            if self.current.is_none() {
                if here == PER_GUARD {
                    return Err(Halt::Budget);
                }
                if self.window.is_empty()
                    && let Some(fault) = self.fetch(count, guard, terms)?
                {
                    guard.report(&fault);
                    effects.counts.faults += 1;
                    let ended = self.completed();
                    return Ok(Ending::fault(Status::BatchPageFault, &fault, ended, None));
                }
                if self.ahead.is_empty() {
                    self.copy_ahead(guard, terms, effects);
                }
                let Some(descriptor) = self.window.pop_front() else {
                    continue;
                };
                // The descriptors before have ended: this engine runs a batch in order.
                if descriptor.flags.fence() && self.failed {
                    break;
                }
                let index = u16::try_from(self.ended).unwrap_or(u16::MAX);
                let done = self.ahead.pop_front().unwrap_or(0);
                self.current = Some(Operation::resumed(descriptor, Some(index), done));
            }
            if let Some(operation) = &mut self.current {
                self.failed |= !operation.step(guard, terms, effects)?;
                self.current = None;
                self.ended += 1;
                here += 1;
            }
        }
        let status = if self.failed {
            Status::BatchFail
        } else {
            Status::Success
        };
        let record = CompletionRecord {
            status: status as u8,
            completed: self.completed(),
            ..CompletionRecord::default()
        };
        Ok(Ending::new(record, None))
    }

    /// Copies for the next descriptors at once, where that is possible (in a program's private memory): for
    /// those that move memory and wait for nothing. They end one by one, as ever.
    fn copy_ahead(&mut self, guard: &mut DmaGuard<'_>, terms: &Terms, effects: &mut Effects) {
        if !guard.may_block() {
            return;
        }
        let moves = |(at, descriptor): &(usize, &Descriptor)| {
            let fenced = descriptor.flags.fence() && *at > 0;
            !fenced && matches!(check(descriptor, terms, Some(0)), Ok(Opcode::MemoryMove))
        };
        let first = self.window.iter().enumerate().take_while(moves);
        let mut copies: Vec<_> = first
            .map(|(_, descriptor)| Copy {
                dst: descriptor.destination,
                src: descriptor.source,
                len: descriptor.size.into(),
                done: 0,
            })
            .collect();
        if copies.len() < 2 {
            return;
        }
        guard.copy_ahead(&mut copies);
        self.ahead.extend(copies.iter().map(|copy| copy.done));
        effects.counts.bytes += copies.iter().map(|copy| copy.done).sum::<u64>();
    }

    /// Reads the next part of the list: all of it, or the descriptors before a page fault, or the
    /// fault if there are none.
    fn fetch(
        &mut self,
        count: u64,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
    ) -> Result<Option<Fault>, Halt> {
        let len = WINDOW.min(count - self.fetched) as usize * DESCRIPTOR_SIZE;
        self.buffer.resize(len, 0);
        let from = self
            .descriptor
            .source
            .wrapping_add(self.fetched * DESCRIPTOR_SIZE as u64);
        let fault = match guard.read_on(from, &mut self.buffer, &mut self.filled) {
            Ok(()) => None,
            Err(stop) => Some(Halt::or_fault(stop)?),
        };
        let whole = self.filled as usize / DESCRIPTOR_SIZE * DESCRIPTOR_SIZE;
        if let Some(fault) = fault
            && whole == 0
        {
            let waits =
                self.descriptor.flags.block_on_fault() && terms.page_requests && !self.denied;
            if waits && fault.reason.is_recoverable() {
                return Err(Halt::Page(fault));
            }
            return Ok(Some(fault));
        }
        let (read, _) = self.buffer.split_at(whole);
        let (descriptors, _) = read.as_chunks::<DESCRIPTOR_SIZE>();
        self.window
            .extend(descriptors.iter().map(Descriptor::from_bytes));
        self.fetched += self.window.len() as u64;
        self.filled = 0;
        Ok(None)
    }

    fn completed(&self) -> u32 {
        u32::try_from(self.ended).unwrap_or(u32::MAX)
    }
}
