//! Translation through two stages: a guest's table, read entry by entry through the parent's page table, and
//! then the parent's page table.
//!
//! The parent decides about every address that the guest's table names, for tables and for pages: nothing
//! that a guest writes leads out of the parent. A walk reads as many entries as the table has levels,
//! whatever they say.
//!
//! The guest's table may lie in memory of another process, where to read it may block. Then a walk stops
//! with an [`Errand`], and [`View::prepare`] runs it where that is allowed, keeps what was read with the
//! domain ([`crate::domain::guest_tables`]) and walks again from the start.

use std::sync::Arc;

use ioasid_core::{
    Access, DomainId, Prot,
    host::Worker,
    memory::{MemoryGone, PAGE_SIZE},
    spa::{Resolved, SharedRemote},
};
use ioasid_pgtable::{
    FirstStageFault, Translation, WalkFault,
    first_stage::{Marks, Next, Page, Request, Step},
};

use super::{
    transfer::Stop,
    view::View,
    walks::{State, Walks},
};
use crate::{
    device::route_table::Attachment,
    domain::{
        guest_tables::{Counts, KeptEntry, LINE},
        space::{AddressSpace, Nested, Translator},
    },
    events::{fault::FaultReason, nested_fault::NestedFault},
};

/// Most levels of a guest's table.
const MOST_LEVELS: usize = 5;
/// How often a walk begins again because the guest has changed an entry that it was about to mark.
const MOST_RESTARTS: usize = 16;
/// How often one address is prepared before the guard ends: each entry is read, read again for a fault, marked and
/// read once more; and some more for a guest that changes them meanwhile.
const MOST_ERRANDS: usize = 6 * MOST_LEVELS;

/// Why the two stages gave no translation.
pub(super) enum Miss {
    Fault(NestedFault),
    /// The guest's table lies in memory that this guard must not touch.
    Remote(Arc<dyn Worker>),
    /// Something has to be done first that may block.
    Errand(Errand),
}

impl Miss {
    /// `memory` is for its client's worker to touch; `gone` if it has none.
    fn elsewhere(memory: &SharedRemote, gone: NestedFault) -> Self {
        match memory.worker() {
            Some(worker) => Miss::Remote(Arc::clone(worker)),
            None => Miss::Fault(gone),
        }
    }
}

impl From<NestedFault> for Miss {
    fn from(fault: NestedFault) -> Self {
        Miss::Fault(fault)
    }
}

impl From<FirstStageFault> for Miss {
    fn from(fault: FirstStageFault) -> Self {
        Miss::Fault(NestedFault::FirstStage(fault))
    }
}

/// Work on a guest's table in memory of another process.
pub(super) struct Errand {
    memory: SharedRemote,
    /// Where in `memory`.
    offset: u64,
    /// The same place as a guest-physical address.
    address: u64,
    work: Work,
    /// What to say if the memory is gone.
    gone: NestedFault,
}

enum Work {
    /// To read so many bytes: whole lines, with the counts of before.
    Read { len: usize, counts: Counts },
    /// To replace an entry if it is still the one that was seen.
    Mark { seen: u64, marked: u64 },
}

/// The entries that a walk has used, and where they lie.
#[derive(Default)]
struct Trail {
    used: [(u64, u64); MOST_LEVELS],
    len: usize,
}

impl Trail {
    fn push(&mut self, address: u64, entry: u64) {
        if let Some(slot) = self.used.get_mut(self.len) {
            *slot = (address, entry);
            self.len += 1;
        }
    }

    /// The entries that lack a bit: where, what they were, and what they become.
    #[inline]
    fn to_mark(&self, marks: Marks) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let used = &self.used[..self.len];
        let marked = used
            .iter()
            .enumerate()
            .map(move |(number, (address, entry))| {
                let marks = match number + 1 == self.len {
                    true => marks.page,
                    false => marks.table,
                };
                (*address, *entry, entry | marks)
            });
        marked.filter(|(_, entry, marked)| entry != marked)
    }
}

/// What a walk is about.
struct Walk<'n> {
    nested: &'n Nested,
    domain: DomainId,
    counts: Counts,
    iova: u64,
    want: u64,
}

impl Walk<'_> {
    /// What tables are kept for.
    const fn tables(&self) -> State {
        State {
            domain: self.domain,
            changes: self.counts.tables,
        }
    }
}

impl View<'_> {
    /// The system physical address that `iova` leads to through both stages, and bytes from there: perhaps
    /// more than `want`.
    pub(super) fn two_stages(
        &self,
        space: &AddressSpace,
        nested: &Nested,
        iova: u64,
        want: u64,
        access: Access,
    ) -> Result<Translation, Miss> {
        let request = Request {
            access,
            supervisor: self.supervisor,
        };
        // Before anything is read.
        let counts = nested.counts(space);
        let state = State {
            domain: space.id,
            changes: counts.all,
        };
        let kept = self.walks.filter(|_| self.tlb.is_none());
        if let Some((spa, len)) = kept.and_then(|walks| walks.page(state, request, iova)) {
            return Ok(translation(spa, len, access));
        }
        let walk = Walk {
            nested,
            domain: space.id,
            counts,
            iova,
            want,
        };
        let page = self.first_stage(&walk, request)?;
        let (spa, len) = self.second_stage(nested, page, want, access)?;
        if let Some(walks) = kept {
            walks.keep_page(state, request, iova, (spa, len));
        }
        Ok(translation(spa, len, access))
    }

    /// The page in the guest's physical memory; its entries are marked.
    fn first_stage(&self, walk: &Walk<'_>, request: Request) -> Result<Page, Miss> {
        let marks = walk.nested.first_stage.marks(request.access);
        'walk: for _ in 0..MOST_RESTARTS {
            let (page, trail) = self.allowed_page(walk, request)?;
            if trail.to_mark(marks).next().is_some() {
                self.check_marks(walk, page, trail.to_mark(marks), request.access)?;
            }
            for (address, seen, marked) in trail.to_mark(marks) {
                if !self.mark(walk, address, seen, marked)? {
                    continue 'walk;
                }
            }
            return Ok(page);
        }
        Err(NestedFault::MarkFailed.into())
    }

    /// Finds out what the parent will refuse, before a bit is set: an access that is refused leaves no trace
    /// in the guest's table.
    #[cold]
    fn check_marks(
        &self,
        walk: &Walk<'_>,
        page: Page,
        to_mark: impl Iterator<Item = (u64, u64, u64)>,
        access: Access,
    ) -> Result<(), Miss> {
        let allows = |address, access| {
            let parent = walk.nested.second_stage()?;
            Some(parent.iova_to_phys(address)?.prot.allows(access))
        };
        for (address, ..) in to_mark {
            if allows(address, Access::Write) != Some(true) {
                self.table_address(walk, address, Access::Write)?;
            }
        }
        if self.before_interrupts(page.address, 1).is_none()
            || allows(page.address, access) != Some(true)
        {
            self.second_stage(walk.nested, page, walk.want, access)?;
        }
        Ok(())
    }

    /// The page that a request leads to, if the guest's table allows it.
    fn allowed_page(&self, walk: &Walk<'_>, request: Request) -> Result<(Page, Trail), Miss> {
        let find = |kept| {
            let (page, trail) = self.find_page(walk, request.access, kept)?;
            walk.nested.first_stage.check(page, request)?;
            Ok((page, trail))
        };
        match find(self.walks) {
            // A guest that gives a right need not say so: a table that is kept may allow less than it does now.
            Err(Miss::Fault(NestedFault::FirstStage(_))) if self.walks.is_some() => find(None),
            found => found,
        }
    }

    /// Walks the guest's table, without a trace in it: from the lowest table that is kept, if any may be.
    fn find_page(
        &self,
        walk: &Walk<'_>,
        access: Access,
        kept: Option<&Walks>,
    ) -> Result<(Page, Trail), Miss> {
        let (table, iova) = (&walk.nested.first_stage, walk.iova);
        let mark = table.marks(access).table;
        let mut trail = Trail::default();
        let guard = self.loaded.guard();
        let kept = kept.and_then(|walks| walks.lowest_table(guard, walk.tables(), iova));
        let (mut step, mut memory) = match kept {
            Some((step, memory)) => (step, Some(memory)),
            None => (table.begin(iova)?, None),
        };
        // Only tables whose way is marked are kept: a walk from one of them marks nothing above.
        let mut marked = true;
        loop {
            let address = step.entry_address(iova);
            let entry = match memory.take() {
                Some(memory) => memory
                    .slice(8 * step.index(iova), 8)
                    .ok_or(MemoryGone { done: 0 })
                    .and_then(|word| word.read_word())
                    .map_err(|_| self.table_gone(walk, address))?,
                None => self.entry(walk, step, marked)?,
            };
            trail.push(address, entry);
            marked &= entry & mark == mark;
            match step.take(iova, entry)? {
                Next::Table(next) => step = next,
                Next::Page(page) => return Ok((page, trail)),
            }
        }
    }

    /// The entry that a step is about, found through the parent; its table is kept if it `may_be`.
    fn entry(&self, walk: &Walk<'_>, step: Step, may_be: bool) -> Result<u64, Miss> {
        let address = step.entry_address(walk.iova);
        let spa = self.table_address(walk, address, Access::Read)?;
        let (guard, space) = (self.loaded.guard(), &self.device.shared().space);
        let in_page = spa & (PAGE_SIZE - 1);
        let kept = |walks: &Walks| {
            let table = walks.table(guard, walk.tables(), walk.iova, step, spa - in_page)?;
            table.slice(in_page as usize, 8)?.read_word().ok()
        };
        if let Some(entry) = self.walks.filter(|_| may_be).and_then(kept) {
            return Ok(entry);
        }
        match space.resolve(guard, spa, 8) {
            Some(Resolved::Direct(word)) => {
                let word = word.read_word();
                word.map_err(|_| self.table_gone(walk, address).into())
            }
            Some(Resolved::Remote { memory, offset, .. }) => {
                self.remote_entry(walk, step, memory, offset)
            }
            None => Err(self.table_gone(walk, address).into()),
        }
    }

    /// The entry that a step is about, which lies at `offset` of another process's memory: from what is kept of
    /// that.
    fn remote_entry(
        &self,
        walk: &Walk<'_>,
        step: Step,
        memory: SharedRemote,
        offset: u64,
    ) -> Result<u64, Miss> {
        let address = step.entry_address(walk.iova);
        let gone = self.table_gone(walk, address);
        if !self.blocking {
            return Err(Miss::elsewhere(&memory, gone));
        }
        match walk.nested.lines.entry(address, walk.counts) {
            Some(KeptEntry::Any(entry)) => return Ok(entry),
            Some(KeptEntry::Table(entry))
                if matches!(step.take(walk.iova, entry), Ok(Next::Table(_))) =>
            {
                return Ok(entry);
            }
            _ => {}
        }
        // The line, and those with the entries of the pages that come next.
        let line = address & !(LINE - 1);
        let next = match step.level() {
            0 => walk.want.div_ceil(PAGE_SIZE).saturating_mul(8),
            _ => 0,
        };
        let end = address.saturating_add(next).min(address | (PAGE_SIZE - 1));
        let len = (end & !(LINE - 1)) + LINE - line;
        let offset = offset.checked_sub(address - line).ok_or(gone)?;
        Err(Miss::Errand(Errand {
            memory,
            offset,
            address: line,
            work: Work::Read {
                len: len as usize,
                counts: walk.counts,
            },
            gone,
        }))
    }

    /// Replaces the entry at `address` by `marked` if it is still `seen`; whether it was.
    fn mark(&self, walk: &Walk<'_>, address: u64, seen: u64, marked: u64) -> Result<bool, Miss> {
        let spa = self.table_address(walk, address, Access::Write)?;
        let (guard, space) = (self.loaded.guard(), &self.device.shared().space);
        let failed = NestedFault::MarkFailed;
        match space.resolve(guard, spa, 8) {
            Some(Resolved::Direct(word)) => {
                Ok(word.exchange_word(seen, marked).map_err(|_| failed)?)
            }
            Some(Resolved::Remote { memory, offset, .. }) if self.blocking => {
                Err(Miss::Errand(Errand {
                    memory,
                    offset,
                    address,
                    work: Work::Mark { seen, marked },
                    gone: failed,
                }))
            }
            Some(Resolved::Remote { memory, .. }) => Err(Miss::elsewhere(&memory, failed)),
            None => Err(failed.into()),
        }
    }

    /// The system physical address of an entry of the guest's table.
    fn table_address(&self, walk: &Walk<'_>, address: u64, access: Access) -> Result<u64, Miss> {
        let Some(parent) = walk.nested.second_stage() else {
            return Err(self.table_gone(walk, address).into());
        };
        let found = parent.translate(address, access);
        Ok(found.map(|found| found.spa).map_err(|fault| {
            match (fault, access, is_root(walk, address)) {
                (WalkFault::OutOfRange, _, _) => NestedFault::TableAddressWidth,
                (_, Access::Write, _) => NestedFault::TableWrite,
                (_, Access::Read, true) => NestedFault::RootRead,
                (_, Access::Read, false) => NestedFault::TableRead,
            }
        })?)
    }

    fn table_gone(&self, walk: &Walk<'_>, address: u64) -> NestedFault {
        match is_root(walk, address) {
            true => NestedFault::RootGone,
            false => NestedFault::TableGone,
        }
    }

    /// Where a page of the guest's memory is.
    fn second_stage(
        &self,
        nested: &Nested,
        page: Page,
        want: u64,
        access: Access,
    ) -> Result<(u64, u64), Miss> {
        let room = self.before_interrupts(page.address, page.len);
        let room = room.ok_or(NestedFault::InterruptWindow)?;
        let parent = nested.second_stage().ok_or(NestedFault::NotMapped)?;
        let found = parent.translate_run(page.address, want.min(room), access);
        let found = found.map_err(|fault| match (fault, access) {
            (WalkFault::OutOfRange, _) => NestedFault::AddressWidth,
            (WalkFault::NotPresent, _) => NestedFault::NotMapped,
            (WalkFault::Permission, Access::Write) => NestedFault::Write,
            (WalkFault::Permission, Access::Read) => NestedFault::Read,
        })?;
        Ok((found.spa, found.len.min(room)))
    }

    /// What stops an access whose address the two stages do not translate.
    #[cold]
    pub(super) fn missed_nested(&self, iova: u64, access: Access, miss: Miss) -> Stop {
        match miss {
            Miss::Fault(fault) => self.refused(iova, access, FaultReason::Nested(fault)),
            Miss::Remote(worker) => Stop::Remote(worker),
            // What had been prepared was changed since. Under a guard of its own it is prepared again.
            Miss::Errand(_) => Stop::Budget,
        }
    }

    /// Reads and marks what a walk of `iova` needs of a guest's table in memory of another process, if the
    /// guard may block and that is where it lies. The addresses after it may have to be prepared again.
    ///
    /// # Errors
    /// What stops the access.
    pub(super) fn prepare(&mut self, iova: u64, want: u64, access: Access) -> Result<(), Stop> {
        if !self.blocking {
            return Ok(());
        }
        let mut doubted = false;
        for _ in 0..MOST_ERRANDS {
            let Some(attachment) = self.loaded.get() else {
                return Ok(());
            };
            let Translator::Nested(nested) = &attachment.space.translator else {
                return Ok(());
            };
            let message = self.pasid.is_none() && self.before_interrupts(iova, 1).is_none();
            if message || self.injected.get() {
                return Ok(());
            }
            match self.two_stages(&attachment.space, nested, iova, want, access) {
                Ok(_) => return Ok(()),
                Err(Miss::Errand(errand)) => self.run_errand(errand, iova, access)?,
                // What was kept may be older than a right that the guest has given: it need not say so.
                Err(Miss::Fault(NestedFault::FirstStage(_))) if !doubted => {
                    doubted = true;
                    forget_lines(nested, iova);
                }
                Err(miss) => return Err(self.missed_nested(iova, access, miss)),
            }
        }
        Err(Stop::Budget)
    }

    /// As [`View::prepare`], for the two sides of a copy of up to `len` bytes.
    ///
    /// # Errors
    /// What stops the access.
    pub(super) fn prepare_copy(&mut self, to: u64, from: u64, len: u64) -> Result<(), Stop> {
        self.prepare(from, len, Access::Read)?;
        self.prepare(to, len, Access::Write)
    }

    /// Runs an errand, where it may block for ever.
    fn run_errand(&mut self, errand: Errand, iova: u64, access: Access) -> Result<(), Stop> {
        let Some(attachment) = self.loaded.share() else {
            return Ok(());
        };
        let gone = errand.gone;
        let done = self.block(|| errand.run(&attachment));
        done.map_err(|MemoryGone { .. }| self.refused(iova, access, FaultReason::Nested(gone)))
    }
}

impl Errand {
    fn run(&self, attachment: &Attachment) -> Result<(), MemoryGone> {
        let Translator::Nested(nested) = &attachment.space.translator else {
            return Ok(());
        };
        match self.work {
            Work::Read { len, counts } => {
                let mut page = [0; PAGE_SIZE as usize];
                let bytes = page.get_mut(..len).ok_or(MemoryGone { done: 0 })?;
                self.memory.read(self.offset, bytes)?;
                nested.lines.keep(self.address, bytes, counts);
            }
            // In two steps: an entry that the guest's processor changes between them is overwritten.
            Work::Mark { seen, marked } => {
                let mut word = [0; 8];
                self.memory.read(self.offset, &mut word)?;
                nested.lines.forget(self.address);
                if u64::from_le_bytes(word) == seen {
                    self.memory.write(self.offset, &marked.to_le_bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// Drops the lines that a walk for `iova` comes through.
fn forget_lines(nested: &Nested, iova: u64) {
    let mut next = nested.first_stage.begin(iova).ok();
    while let Some(step) = next {
        let entry = nested.lines.forget(step.entry_address(iova));
        next = match entry.map(|entry| step.take(iova, entry)) {
            Some(Ok(Next::Table(table))) => Some(table),
            _ => None,
        };
    }
}

/// Whether the entry at `address` belongs to the guest's top table.
fn is_root(walk: &Walk<'_>, address: u64) -> bool {
    let top = walk.nested.first_stage.begin(walk.iova);
    top.is_ok_and(|top| top.table() == address & !(PAGE_SIZE - 1))
}

fn translation(spa: u64, len: u64, access: Access) -> Translation {
    Translation {
        spa,
        len,
        prot: match access {
            Access::Read => Prot::READ,
            Access::Write => Prot::WRITE,
        },
    }
}
