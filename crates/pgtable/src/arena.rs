//! Table memory.
//!
//! Tables come from chunks of zeroed memory and stay there until the arena is dropped: a table that
//! is not in the tree any more waits on a free list, all zero. So a reader that is late reads an old
//! table, never foreign memory, and a table that is taken again needs no clearing.
//!
//! A link between tables holds the host address of the table below it, as hardware would hold a
//! physical one. Table memory is never registered as system physical memory: no device can address
//! it.
//!
//! # Safety argument
//! [`Arena::child`] turns a link back into a reference. Links are made in one place,
//! [`Arena::link`], from a reference to a table. An entry that the format calls a link is one of
//! those, since leaves are never links (the contract of [`Format`], which its tests check); and it
//! is read from a table of the same arena, since a tree has one arena and keeps it to itself.
//! References borrow the arena, which frees chunks only when it is dropped, and entries are atomics:
//! no exclusive access is ever claimed.
// UNSAFETY: table memory is allocated raw and linked by address; see the safety argument above.
#![allow(unsafe_code)]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt, mem, ptr,
    ptr::NonNull,
};

use ioasid_core::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering, fence},
};

use crate::{
    format::Format,
    lines::{are_zero, clear_lines, store_lines},
    spec::{ADDRESS, ENTRIES, PAGE_SIZE},
};

/// Tables in the first chunk: a domain with little in it stays small.
const FIRST_CHUNK: usize = if cfg!(ioasid_shuttle) { 1 } else { 16 };
/// Tables in each further chunk: 2 MiB.
const CHUNK: usize = if cfg!(ioasid_shuttle) { 1 } else { 512 };

/// 512 entries: a page of table memory.
#[repr(C, align(4096))]
pub(crate) struct Table {
    entries: [AtomicU64; ENTRIES],
}

const _: () = assert!(mem::align_of::<Table>() as u64 == PAGE_SIZE);

impl Table {
    /// The entry in slot `index` modulo 512.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> &AtomicU64 {
        &self.entries[index % ENTRIES]
    }

    /// The entries in `count` slots from `first` on: fewer if the table ends before.
    #[inline]
    pub(crate) fn entries(&self, first: usize, count: usize) -> &[AtomicU64] {
        let tail = self.entries.get(first..).unwrap_or_default();
        &tail[..count.min(tail.len())]
    }

    /// Stores `first`, `first + step` and so on into `count` slots from `slot` on, as many as the
    /// table has. What was written before is visible to a thread that sees one of them.
    #[inline]
    pub(crate) fn store_run(&self, slot: usize, count: usize, first: u64, step: u64) {
        let entries = self.entries(slot, count);
        fence(Ordering::Release);
        // Up to the next 64 bytes one by one, then whole lines, then the rest.
        let (head, entries) = entries.split_at(entries.len().min(slot.wrapping_neg() % 8));
        let (lines, tail) = entries.as_chunks::<8>();
        let mut entry = first;
        for slot in head {
            slot.store(entry, Ordering::Relaxed);
            entry = entry.wrapping_add(step);
        }
        store_lines(lines, entry, step);
        entry = entry.wrapping_add(step.wrapping_mul(8 * lines.len() as u64));
        for slot in tail {
            slot.store(entry, Ordering::Relaxed);
            entry = entry.wrapping_add(step);
        }
    }

    /// Whether `count` slots from `slot` on hold nothing.
    #[inline]
    pub(crate) fn is_zero(&self, slot: usize, count: usize) -> bool {
        let entries = self.entries(slot, count);
        let zero = |slots: &[AtomicU64]| {
            let all = |all, slot: &AtomicU64| all | slot.load(Ordering::Relaxed);
            slots.iter().fold(0, all) == 0
        };
        let (head, rest) = entries.split_at(entries.len().min(slot.wrapping_neg() % 8));
        let (lines, tail) = rest.as_chunks::<8>();
        zero(head) && zero(tail) && are_zero(lines)
    }

    /// Clears the slots from `slot` on whose entries agree with `like` in the bits of `mask`, until one
    /// does not, at most `count`. Returns how many.
    #[inline]
    pub(crate) fn clear_alike(&self, slot: usize, count: usize, like: u64, mask: u64) -> usize {
        let entries = self.entries(slot, count);
        let clear = |slots: &[AtomicU64]| {
            let alike = |slot: &&AtomicU64| (slot.load(Ordering::Relaxed) ^ like) & mask == 0;
            let alike = slots.iter().take_while(alike);
            alike.map(|slot| slot.store(0, Ordering::Relaxed)).count()
        };
        let (head, rest) = entries.split_at(entries.len().min(slot.wrapping_neg() % 8));
        let done = clear(head);
        if done < head.len() {
            return done;
        }
        let whole = 8 * clear_lines(rest.as_chunks().0, like, mask);
        done + whole + clear(&rest[whole..])
    }

    /// Clears `count` slots from `slot` on. Returns how many of them were `present`; entries that
    /// agree with a present one in the bits of `mask` are.
    #[inline]
    pub(crate) fn clear_run(
        &self,
        slot: usize,
        count: usize,
        mask: u64,
        present: impl Fn(u64) -> bool,
    ) -> usize {
        let entries = self.entries(slot, count);
        let clear = |slots: &[AtomicU64]| {
            let clear = |slot: &AtomicU64| {
                let entry = slot.load(Ordering::Relaxed);
                slot.store(0, Ordering::Relaxed);
                usize::from(present(entry))
            };
            slots.iter().map(clear).sum::<usize>()
        };
        let (head, rest) = entries.split_at(entries.len().min(slot.wrapping_neg() % 8));
        let (mut lines, tail) = rest.as_chunks::<8>();
        let mut found = clear(head) + clear(tail);
        loop {
            let like = lines
                .first()
                .map_or(0, |line| line[0].load(Ordering::Relaxed));
            // The usual case: as the first, so are all.
            let alike = match present(like) {
                true => clear_lines(lines, like, mask),
                false => 0,
            };
            found += 8 * alike;
            let Some((line, rest)) = lines[alike..].split_first() else {
                return found;
            };
            found += clear(line);
            lines = rest;
        }
    }

    /// The address of the table in table space.
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        ptr::from_ref(self).expose_provenance() as u64
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({:#x})", self.address())
    }
}

/// A run of tables that were allocated together.
struct Chunk {
    memory: NonNull<u8>,
    layout: Layout,
    tables: NonNull<Table>,
    len: usize,
}

// SAFETY: a chunk is the sole owner of its memory, and what it hands out are atomics.
unsafe impl Send for Chunk {}

impl Chunk {
    fn new(len: usize) -> Self {
        // A plain allocation with room to align, not an aligned one: the allocator then gets zero
        // pages from the system, which cost nothing until they are touched.
        let layout = Layout::array::<Table>(len + 1)
            .and_then(|tables| Layout::from_size_align(tables.size(), 16))
            .expect("a chunk is a few MiB");
        // SAFETY: the size is not zero.
        let Some(memory) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout);
        };
        // SAFETY: one table more than `len` was asked for, so that the first aligned address is
        // followed by room for `len` tables.
        let tables = unsafe { memory.add(memory.align_offset(mem::align_of::<Table>())) }.cast();
        let chunk = Chunk {
            memory,
            layout,
            tables,
            len,
        };
        let end = chunk.tables.addr().get() + len * mem::size_of::<Table>();
        assert!(
            end as u64 & !ADDRESS == 0,
            "host addresses fit into an entry"
        );
        chunk.tables.as_ptr().expose_provenance();
        // The model checker's atomics are more than their value: zero bytes do not make one.
        #[cfg(ioasid_shuttle)]
        for index in 0..len * ENTRIES {
            // SAFETY: in bounds of the chunk, which no other thread has seen.
            unsafe {
                chunk
                    .tables
                    .cast::<AtomicU64>()
                    .add(index)
                    .write(AtomicU64::new(0));
            }
        }
        chunk
    }

    /// Table `index` of the chunk.
    fn table(&self, index: usize) -> NonNull<Table> {
        assert!(index < self.len);
        // SAFETY: in bounds, as just checked.
        unsafe { self.tables.add(index) }
    }

    /// Which table of the chunk lies at `address`.
    fn find(&self, address: u64) -> Option<usize> {
        let offset = usize::try_from(address)
            .ok()?
            .checked_sub(self.tables.addr().get())?;
        let index = offset / mem::size_of::<Table>();
        (index < self.len && offset.is_multiple_of(mem::size_of::<Table>())).then_some(index)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the arena is being dropped, so no reference into the
        // chunk is left (they borrow the arena).
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// Tables on their way from the tree to the free list. A late reader may still walk them: give them
/// back with [`PageTable::recycle`](crate::PageTable::recycle) after the barrier. Those that are
/// dropped instead stay unused until the page table goes.
#[must_use = "give them back with `PageTable::recycle` after the barrier"]
pub struct FreedTables {
    arena: u64,
    tables: Vec<NonNull<Table>>,
}

// SAFETY: the pointers are only used by the arena that they belong to, which is known by its number.
unsafe impl Send for FreedTables {}
// SAFETY: nothing is done through a shared reference but counting.
unsafe impl Sync for FreedTables {}

impl FreedTables {
    /// The list of a page table that has no tables of an arena.
    pub(crate) fn none() -> Self {
        FreedTables {
            arena: u64::MAX,
            tables: Vec::new(),
        }
    }

    /// Number of tables.
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Adds the tables of `other`, of the same page table: one barrier can serve many unmaps. Tables
    /// of another page table are left where they are.
    pub fn append(&mut self, other: &mut FreedTables) {
        if self.arena == other.arena {
            self.tables.append(&mut other.tables);
        }
    }

    /// Adds a table of the arena that made this list.
    pub(crate) fn push(&mut self, table: &Table) {
        self.tables.push(NonNull::from(table));
    }
}

impl fmt::Debug for FreedTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FreedTables({})", self.tables.len())
    }
}

#[derive(Default)]
struct Pool {
    chunks: Vec<Chunk>,
    /// Tables of the last chunk that were given out.
    used: usize,
    free: Vec<NonNull<Table>>,
}

// SAFETY: the pointers lead into chunks of the same pool; see `Chunk`.
unsafe impl Send for Pool {}

/// All the tables of one tree.
pub(crate) struct Arena {
    number: u64,
    pool: Mutex<Pool>,
}

/// The number of the next arena. Not a model checker's atomic: nothing is ordered by it.
static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

impl Arena {
    /// An arena without memory.
    pub(crate) fn new() -> Self {
        Arena {
            number: NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            pool: Mutex::new(Pool::default()),
        }
    }

    /// A table of zeros that is linked nowhere.
    pub(crate) fn allocate(&self) -> &Table {
        let mut pool = self.pool.lock();
        let table = if let Some(table) = pool.free.pop() {
            table
        } else {
            if pool
                .chunks
                .last()
                .is_none_or(|chunk| chunk.len == pool.used)
            {
                let len = if pool.chunks.is_empty() {
                    FIRST_CHUNK
                } else {
                    CHUNK
                };
                pool.chunks.push(Chunk::new(len));
                pool.used = 0;
            }
            let index = pool.used;
            pool.used += 1;
            let chunk = pool.chunks.last().expect("pushed above");
            chunk.table(index)
        };
        // SAFETY: a table of this arena: initialised, aligned and alive as long as the arena, which
        // the reference borrows. Shared access is all anyone has.
        unsafe { table.as_ref() }
    }

    /// An empty list for tables of this arena.
    pub(crate) fn freed(&self) -> FreedTables {
        FreedTables {
            arena: self.number,
            tables: Vec::new(),
        }
    }

    /// Takes back tables that were unlinked and are all zero. Tables of another arena are refused.
    ///
    /// Returning a table that a late reader still walks spoils that reader's answer, not memory.
    pub(crate) fn recycle(&self, mut freed: FreedTables) {
        if freed.arena == self.number && !freed.is_empty() {
            self.pool.lock().free.append(&mut freed.tables);
        }
    }

    /// The entry that makes `child` a part of a table at `level`.
    #[inline]
    pub(crate) fn link<F: Format>(&self, child: &Table, level: u32) -> u64 {
        F::link(child.address(), level)
    }

    /// The table that an entry of a table at `level` points to; `None` if it points to none.
    #[inline]
    pub(crate) fn child<F: Format>(&self, entry: u64, level: u32) -> Option<&Table> {
        if level == 0 || !F::is_link(entry, level) {
            return None;
        }
        let table: *const Table = ptr::with_exposed_provenance((entry & ADDRESS) as usize);
        // SAFETY: a link leads to a table of this arena, as the module's safety argument says.
        Some(unsafe { &*table })
    }

    /// The table at `address`, if that is one of this arena's.
    pub(crate) fn at(&self, address: u64) -> Option<&Table> {
        let pool = self.pool.lock();
        let table = pool
            .chunks
            .iter()
            .find_map(|chunk| Some(chunk.table(chunk.find(address)?)))?;
        // SAFETY: as in `allocate`.
        Some(unsafe { table.as_ref() })
    }
}

/// The top table and the number of levels below it, in one word so that a walk sees both change at
/// once.
pub(crate) struct Top(AtomicU64);

impl Top {
    /// A top table of a tree with `levels` levels.
    pub(crate) fn new(table: &Table, levels: u32) -> Self {
        Top(AtomicU64::new(table.address() | u64::from(levels)))
    }

    /// Replaces the top.
    pub(crate) fn set(&self, table: &Table, levels: u32) {
        self.0
            .store(table.address() | u64::from(levels), Ordering::Release);
    }

    /// The table and the number of levels. The `Top` is one of this `arena`'s tables.
    #[inline]
    pub(crate) fn get<'a>(&self, arena: &'a Arena) -> (&'a Table, u32) {
        let _ = arena;
        let top = self.0.load(Ordering::Acquire);
        let table: *const Table = ptr::with_exposed_provenance((top & ADDRESS) as usize);
        // SAFETY: the word was made from a reference to a table of the arena (`new`, `set`: their
        // caller, the tree, has one arena), which lives as long as `'a`.
        (unsafe { &*table }, (top & !ADDRESS) as u32)
    }
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_zero_and_distinct_across_chunks() {
        let arena = Arena::new();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..FIRST_CHUNK + CHUNK + 3 {
            let table = arena.allocate();
            assert!(table.address().is_multiple_of(4096) && seen.insert(table.address()));
            assert!(
                table
                    .entries(0, ENTRIES)
                    .iter()
                    .all(|entry| entry.load(Ordering::Relaxed) == 0)
            );
        }
        for &address in &seen {
            assert_eq!(arena.at(address).unwrap().address(), address);
            assert!(arena.at(address + 8).is_none());
        }
        assert!(arena.at(0).is_none() && arena.at(u64::MAX).is_none());
    }

    #[test]
    fn a_run_is_stored_into_its_slots_and_no_others() {
        let arena = Arena::new();
        for (slot, count) in [
            (0, 512),
            (0, 1),
            (3, 4),
            (5, 30),
            (7, 505),
            (8, 16),
            (511, 9),
        ] {
            let table = arena.allocate();
            table.store_run(slot, count, 0x5007, 0x1000);
            for index in 0..ENTRIES {
                let expected = match index.checked_sub(slot) {
                    Some(n) if n < count => 0x5007 + 0x1000 * n as u64,
                    _ => 0,
                };
                let found = table.entry(index).load(Ordering::Relaxed);
                assert_eq!(found, expected, "run of {count} from {slot}: slot {index}");
            }
        }
    }

    /// Runs that begin and end everywhere in a line.
    const RUNS: [(usize, usize); 7] = [
        (0, 512),
        (0, 1),
        (3, 4),
        (5, 30),
        (7, 505),
        (8, 16),
        (511, 1),
    ];

    fn load(table: &Table, index: usize) -> u64 {
        table.entry(index).load(Ordering::Relaxed)
    }

    #[test]
    fn one_entry_that_is_not_zero_is_seen_wherever_it_stands() {
        let arena = Arena::new();
        let table = arena.allocate();
        for (slot, count) in RUNS {
            assert!(table.is_zero(slot, count));
            for index in 0..ENTRIES {
                for bit in [0, 31, 32, 63] {
                    table.entry(index).store(1 << bit, Ordering::Relaxed);
                    let inside = (slot..slot + count).contains(&index);
                    assert_eq!(table.is_zero(slot, count), !inside, "slot {index}");
                    table.entry(index).store(0, Ordering::Relaxed);
                }
            }
        }
    }

    #[test]
    fn slots_are_cleared_up_to_the_first_that_is_another() {
        let arena = Arena::new();
        for (slot, count) in RUNS {
            for other in (0..ENTRIES).step_by(3) {
                let table = arena.allocate();
                // Bits outside of the mask differ all the time.
                table.store_run(0, ENTRIES, 0x7000_0000_0000_0085, 0x1000);
                let entry = table.entry(other);
                entry.store(load(table, other) ^ 0x80, Ordering::Relaxed);
                let cleared = table.clear_alike(slot, count, 0x85, 0x87);
                let expected = match other.checked_sub(slot) {
                    Some(n) if n < count => n,
                    _ => count,
                };
                assert_eq!(cleared, expected, "run of {count} from {slot}, but {other}");
                for index in 0..ENTRIES {
                    let gone = (slot..slot + cleared).contains(&index);
                    assert_eq!(load(table, index) == 0, gone, "slot {index}");
                }
            }
        }
    }

    #[test]
    fn a_cleared_run_counts_what_was_present() {
        let arena = Arena::new();
        let present = |entry: u64| entry & 3 != 0;
        for (slot, count) in RUNS {
            // Every so many slots there is no entry; the others are of two kinds.
            for holes in [1, 2, 3, 9, 40, 600] {
                let table = arena.allocate();
                let entry = |index: usize| match index % holes {
                    0 => 0,
                    _ => (0x1000 * index as u64) | if index % 50 < 25 { 3 } else { 2 },
                };
                for index in 0..ENTRIES {
                    table.entry(index).store(entry(index), Ordering::Relaxed);
                }
                let expected = (slot..slot + count).filter(|index| present(entry(*index)));
                let expected = expected.count();
                assert_eq!(table.clear_run(slot, count, 3, present), expected);
                for index in 0..ENTRIES {
                    let gone = (slot..slot + count).contains(&index);
                    let left = if gone { 0 } else { entry(index) };
                    assert_eq!(load(table, index), left, "slot {index}");
                }
            }
        }
    }

    #[test]
    fn a_recycled_table_is_given_out_again() {
        let arena = Arena::new();
        let first = arena.allocate();
        let address = first.address();
        let mut freed = arena.freed();
        freed.push(first);
        arena.recycle(freed);
        assert_eq!(arena.allocate().address(), address);
    }

    #[test]
    fn a_table_of_another_arena_is_refused() {
        let (here, there) = (Arena::new(), Arena::new());
        let mut freed = there.freed();
        freed.push(there.allocate());
        here.recycle(freed);
        assert!(there.at(here.allocate().address()).is_none());
    }
}
