//! The generic walker: a tree of tables in one [`Format`].
//!
//! Readers ([`Tree::translate`], [`Tree::iova_to_phys`]) take no lock. They load each entry on the way
//! once and decide on what they loaded. Writers (`map`, `unmap`, `dirty`, `cut`, one file each) hold
//! [`Tree::writer`]; they are the only ones to make, change or clear entries. A reader's only write
//! is a compare-exchange that adds accessed and dirty bits to the leaf it observed, so it never
//! revives an entry that a writer cleared.
//!
//! What a reader that runs beside a writer may find: the old translation or the new one, or none at
//! all while a range is being mapped or unmapped; never a mixture. A subtree is complete before it is
//! linked. Waiting until late readers are gone is the caller's barrier.

use std::marker::PhantomData;

use ioasid_core::{
    Access, AddrRange,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    arena::{Arena, FreedTables, Table, Top},
    error::WalkFault,
    format::Format,
    spec::{ADDRESS, ENTRIES, LEVEL_BITS, PAGE_SHIFT, PAGE_SIZE, entry_shift},
    translation::Translation,
};

mod cut;
mod dirty;

mod map;
mod unmap;

/// A page table in format `F`.
pub(crate) struct Tree<F: Format> {
    top: Top,
    /// Whether walks set accessed and dirty bits.
    tracking: AtomicBool,
    /// What a leaf must have for an access that leaves it as it is: the bits that allow it and, while
    /// tracking, its marks.
    required: Required,
    arena: Arena,
    writer: Mutex<Writer>,
    counters: Counters,
    format: PhantomData<F>,
}

/// A mask per access.
struct Required {
    read: AtomicU64,
    write: AtomicU64,
}

impl Required {
    fn new<F: Format>(tracking: bool) -> Self {
        let (read, write) = Self::masks::<F>(tracking);
        Required {
            read: AtomicU64::new(read),
            write: AtomicU64::new(write),
        }
    }

    fn masks<F: Format>(tracking: bool) -> (u64, u64) {
        let mask = |access| F::needs(access) | if tracking { F::marks(access) } else { 0 };
        (mask(Access::Read), mask(Access::Write))
    }

    /// A walk in flight may miss it, as it may miss that tracking began.
    fn set<F: Format>(&self, tracking: bool) {
        let (read, write) = Self::masks::<F>(tracking);
        self.read.store(read, Ordering::SeqCst);
        self.write.store(write, Ordering::SeqCst);
    }

    #[inline(always)]
    fn of(&self, access: Access) -> u64 {
        match access {
            Access::Read => self.read.load(Ordering::Relaxed),
            Access::Write => self.write.load(Ordering::Relaxed),
        }
    }
}

/// How the long way of a walk ended, small enough to be returned in registers: what came back through
/// memory would make the short way write its result there as well.
#[derive(Clone, Copy)]
struct Ended {
    /// The leaf.
    entry: u64,
    /// Its level, or one of the codes below.
    level: u32,
}

impl Ended {
    const OUT_OF_RANGE: u32 = u32::MAX;
    const NOT_PRESENT: u32 = u32::MAX - 1;
    const PERMISSION: u32 = u32::MAX - 2;

    fn fault(fault: WalkFault) -> Self {
        let level = match fault {
            WalkFault::OutOfRange => Self::OUT_OF_RANGE,
            WalkFault::NotPresent => Self::NOT_PRESENT,
            WalkFault::Permission => Self::PERMISSION,
        };
        Ended { entry: 0, level }
    }

    /// The leaf and its level.
    #[inline(always)]
    fn leaf(self) -> Result<(u64, u32), WalkFault> {
        match self.level {
            Self::OUT_OF_RANGE => Err(WalkFault::OutOfRange),
            Self::NOT_PRESENT => Err(WalkFault::NotPresent),
            Self::PERMISSION => Err(WalkFault::Permission),
            level => Ok((self.entry, level)),
        }
    }
}

/// What only writers touch.
struct Writer {
    /// Empty tables that a large leaf replaced; they leave with the next unmap, whose caller has a
    /// barrier.
    replaced: FreedTables,
}

/// Written under the writer's lock, read by anyone.
struct Counters {
    tables: AtomicU64,
    /// In units of 4 KiB, since the whole space has 2^64 bytes.
    pages: AtomicU64,
    writes: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        let old = counter.load(Ordering::Relaxed);
        counter.store(old.wrapping_add(n), Ordering::Relaxed);
    }

    fn sub(counter: &AtomicU64, n: u64) {
        Self::add(counter, n.wrapping_neg());
    }
}

/// Where a walk ended: a leaf or an entry that is not present.
struct Found<'t> {
    table: &'t Table,
    level: u32,
    entry: u64,
}

/// The slot for `address` in a table at `level`.
#[inline]
fn index(address: u64, level: u32) -> usize {
    (address >> entry_shift(level)) as usize % ENTRIES
}

/// The low `shift` bits; `shift` is below 64.
#[inline]
const fn mask(shift: u32) -> u64 {
    (1 << shift) - 1
}

/// The addresses that one entry of a table at `level` covers, around `address`.
#[inline]
fn slot_range(address: u64, level: u32) -> (u64, u64) {
    let mask = mask(entry_shift(level));
    (address & !mask, address | mask)
}

/// The part of `start..=last` that lies in the slot of `start`: its last address.
#[inline]
fn clip(start: u64, last: u64, level: u32) -> u64 {
    slot_range(start, level).1.min(last)
}

impl<F: Format> Tree<F> {
    /// An empty tree: its top table is allocated here.
    pub(crate) fn new(tracking: bool) -> Self {
        let arena = Arena::new();
        let top = Top::new(arena.allocate(), F::MIN_LEVELS);
        Tree {
            top,
            tracking: AtomicBool::new(tracking),
            required: Required::new::<F>(tracking),
            writer: Mutex::new(Writer {
                replaced: arena.freed(),
            }),
            arena,
            counters: Counters {
                tables: AtomicU64::new(1),
                pages: AtomicU64::new(0),
                writes: AtomicU64::new(0),
            },
            format: PhantomData,
        }
    }

    /// The input addresses of the format.
    const APERTURE: AddrRange = AddrRange::new(0, F::LAST).expect("starts at 0");

    /// The input addresses of the format.
    pub(crate) fn aperture(&self) -> AddrRange {
        Self::APERTURE
    }

    /// Sizes of all leaves, as a bitmap.
    pub(crate) fn page_sizes(&self) -> u64 {
        (0..F::MAX_LEVELS).fold(0, |sizes, level| sizes | F::leaf_sizes(level))
    }

    /// The top table and the number of levels.
    #[inline]
    fn top(&self) -> (&Table, u32) {
        let (table, levels) = self.top.get(&self.arena);
        // A format with a fixed depth gets a walk without a loop.
        if F::MIN_LEVELS == F::MAX_LEVELS {
            (table, F::MAX_LEVELS)
        } else {
            (table, levels)
        }
    }

    /// Walks to the entry that decides about `iova`. `None` if the levels do not reach so far.
    #[inline(always)]
    fn find(&self, iova: u64) -> Option<Found<'_>> {
        let (table, levels) = self.top();
        // With a depth that is known the walk has no loop; most tables never grow.
        if levels == F::MIN_LEVELS {
            self.descend(table, F::MIN_LEVELS, iova)
        } else {
            self.descend(table, levels, iova)
        }
    }

    /// [`Tree::find`] from the top `table` of `levels` levels.
    #[inline(always)]
    fn descend<'t>(&'t self, mut table: &'t Table, levels: u32, iova: u64) -> Option<Found<'t>> {
        if iova > F::reach(levels) {
            return None;
        }
        let mut level = levels - 1;
        loop {
            let entry = table.entry(index(iova, level)).load(Ordering::Acquire);
            match self.arena.child::<F>(entry, level) {
                Some(child) => {
                    table = child;
                    level -= 1;
                }
                None => {
                    return Some(Found {
                        table,
                        level,
                        entry,
                    });
                }
            }
        }
    }

    /// The lowest table whose coverage holds `start..=last`, which the levels reach, and its level:
    /// where a writer starts. A slot that the range fills is the business of the table that holds it.
    #[inline]
    fn common_table(&self, start: u64, last: u64) -> (&Table, u32) {
        let (mut table, levels) = self.top();
        let mut level = levels - 1;
        while level > 0 {
            let slot = slot_range(start, level);
            let entry = table.entry(index(start, level)).load(Ordering::Relaxed);
            match self.arena.child::<F>(entry, level) {
                Some(child) if last <= slot.1 && (start, last) != slot => table = child,
                _ => break,
            }
            level -= 1;
        }
        (table, level)
    }

    /// The translation that the leaf `entry` of a table at `level` gives for `iova`.
    #[inline]
    fn translation(entry: u64, level: u32, iova: u64) -> Translation {
        let mask = mask(F::leaf_shift(entry, level));
        Translation {
            spa: (entry & ADDRESS & !mask) | (iova & mask),
            len: mask - (iova & mask) + 1,
            prot: F::prot(entry),
        }
    }

    /// The walk of an access, where nothing is to be marked and nothing to complain about.
    #[inline(always)]
    fn find_ready(&self, iova: u64, access: Access) -> Option<Found<'_>> {
        let required = self.required.of(access);
        self.find(iova).filter(|found| !found.entry & required == 0)
    }

    /// What hardware does for one access.
    #[inline(always)]
    pub(crate) fn translate(&self, iova: u64, access: Access) -> Result<Translation, WalkFault> {
        // The usual case is short enough to be inlined.
        let ended = match self.find_ready(iova, access) {
            Some(Found { entry, level, .. }) => Ok((entry, level)),
            None => self.find_and_mark(iova, access).leaf(),
        };
        let (entry, level) = ended?;
        Ok(Self::translation(entry, level, iova))
    }

    /// As [`Tree::translate`], for `want` bytes: one walk for all leaves of 4 KiB that follow each
    /// other in one table and in memory.
    #[inline(always)]
    pub(crate) fn translate_run(
        &self,
        iova: u64,
        want: u64,
        access: Access,
    ) -> Result<Translation, WalkFault> {
        let Some(found) = self.find_ready(iova, access) else {
            let (entry, level) = self.find_and_mark(iova, access).leaf()?;
            return Ok(Self::translation(entry, level, iova));
        };
        let mut translation = Self::translation(found.entry, found.level, iova);
        if translation.len < want && found.level == 0 {
            translation.len += Self::neighbours(&found, iova, want - translation.len);
        }
        Ok(translation)
    }

    /// Bytes of the leaves after `found`, which is that of `iova`, that go on where it ends, with the
    /// same attributes and marks: about as many as `want`.
    fn neighbours(found: &Found<'_>, iova: u64, want: u64) -> u64 {
        if F::leaf_shift(found.entry, 0) != PAGE_SHIFT {
            return 0;
        }
        let count = want.div_ceil(PAGE_SIZE).min(ENTRIES as u64);
        let entries = found.table.entries(index(iova, 0) + 1, count as usize);
        let mut expected = found.entry;
        let follows = |entry: &&AtomicU64| {
            expected = expected.wrapping_add(PAGE_SIZE);
            entry.load(Ordering::Acquire) == expected
        };
        entries.iter().take_while(follows).count() as u64 * PAGE_SIZE
    }

    /// The walk of an access when it faults or the leaf has to be marked.
    #[cold]
    #[inline(never)]
    fn find_and_mark(&self, iova: u64, access: Access) -> Ended {
        if iova > F::LAST {
            return Ended::fault(WalkFault::OutOfRange);
        }
        loop {
            let found = self.find(iova).filter(|found| F::is_present(found.entry));
            let Some(Found {
                table,
                level,
                entry,
            }) = found
            else {
                return Ended::fault(WalkFault::NotPresent);
            };
            if !F::prot(entry).allows(access) {
                return Ended::fault(WalkFault::Permission);
            }
            let marked = if self.dirty_tracking() {
                entry | F::marks(access)
            } else {
                entry
            };
            // The entry that was observed, or nothing: if it was changed meanwhile, the walk starts again.
            let slot = table.entry(index(iova, level));
            if marked == entry
                || slot
                    .compare_exchange(entry, marked, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                return Ended { entry, level };
            }
        }
    }

    /// The translation of `iova`, without a trace in the table.
    #[inline]
    pub(crate) fn iova_to_phys(&self, iova: u64) -> Option<Translation> {
        let found = self.find(iova)?;
        F::is_present(found.entry).then(|| Self::translation(found.entry, found.level, iova))
    }

    /// Whether walks set accessed and dirty bits.
    #[inline]
    pub(crate) fn dirty_tracking(&self) -> bool {
        self.tracking.load(Ordering::Relaxed)
    }

    /// Gives tables back after the caller's barrier.
    pub(crate) fn recycle(&self, freed: FreedTables) {
        self.arena.recycle(freed);
    }

    /// Tables in the tree.
    pub(crate) fn tables(&self) -> u64 {
        self.counters.tables.load(Ordering::Relaxed)
    }

    /// Mapped bytes; 2^64-1 stands for all of them.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        let pages = self.counters.pages.load(Ordering::Relaxed);
        pages.saturating_mul(PAGE_SIZE)
    }

    /// Entries that writers wrote.
    pub(crate) fn writes(&self) -> u64 {
        self.counters.writes.load(Ordering::Relaxed)
    }

    /// Address of the top table, and the number of levels.
    pub(crate) fn root(&self) -> (u64, u32) {
        let (table, levels) = self.top();
        (table.address(), levels)
    }

    /// Entry `index` of the table at `table`.
    pub(crate) fn read_entry(&self, table: u64, index: usize) -> Option<u64> {
        if index >= ENTRIES {
            return None;
        }
        let table = self.arena.at(table)?;
        Some(table.entry(index).load(Ordering::Acquire))
    }

    /// Adds levels until `last` is within reach. The old top becomes the first entry of the new one.
    fn grow(&self, last: u64) {
        let (mut table, mut levels) = self.top();
        while last > F::reach(levels) && levels < F::MAX_LEVELS {
            let above = self.arena.allocate();
            let link = self.arena.link::<F>(table, levels);
            above.entry(0).store(link, Ordering::Release);
            levels += 1;
            self.top.set(above, levels);
            table = above;
            Counters::add(&self.counters.tables, 1);
            Counters::add(&self.counters.writes, 1);
        }
    }
}

/// Slots from the one of `start` to the one of `last`, both in one table at `level`: the first and
/// how many.
#[inline]
fn slots(start: u64, last: u64, level: u32) -> (usize, usize) {
    let shift = entry_shift(level);
    let count = (last >> shift) - (start >> shift) + 1;
    debug_assert!(count <= 1 << LEVEL_BITS);
    (index(start, level), count as usize)
}
