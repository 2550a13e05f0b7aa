//! Grace periods: who is reading right now, and how to wait until they are done.
//!
//! A reader (a DMA engine, a worker, an inspection) owns a [`Slot`] and publishes an in-flight
//! marker in it for the length of one [`Guard`]. The marker names the domain being read, so that a
//! writer waits only for readers of *its* domain:
//!
//! 1. [`Slot::enter`] publishes "some domain" (a wildcard): the reader may now load cells of a
//!    [`ProtectedTable`], and so find its domain.
//! 2. [`Guard::narrow`] replaces the wildcard by that domain.
//! 3. Dropping the guard clears the marker and wakes parked waiters.
//!
//! A writer makes its change visible (clears page-table entries, swaps a cell), then calls
//! [`Grace::wait`]: when that returns, every guard that could have seen the old state is gone. The
//! order is the classic store-buffering one: the reader stores its marker, fences and loads the
//! data; the writer stores the data, fences and loads the markers; at least one sees the other.
//!
//! Waiters look a few times and then park: a guard is short, so a reader that runs is usually gone
//! before a thread could be put to sleep and woken; one that is preempted under its guard would cost
//! a spinning waiter a whole scheduling period.
//!
//! # Safety argument
//! Cells hand out `&T` to objects owned by an `Arc` in the cell. An object leaves its cell through
//! [`ProtectedTable::swap`], which gives the cell's reference to [`Grace::retire`]; that drops it
//! only when every guard that was published at the swap is gone. A guard of another [`Grace`]
//! protects nothing, so each load compares the two.
// UNSAFETY: cells are read without a lock; see the safety argument above.
#![allow(unsafe_code)]

use std::{any::Any, fmt, mem, ptr, sync::Arc};

use crate::{
    id::DomainId,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence},
    },
};

/// Marker of a slot with no guard.
const IDLE: u32 = 0;
/// How often a waiter looks before it parks: about the time that a thread takes to be put to sleep.
#[cfg(not(ioasid_shuttle))]
const SPINS: u32 = 200;
/// Marker of a guard that has not found its domain.
const ANY: u32 = DomainId::RESERVED;

/// The marker word: what is read in the low half, a sequence number that changes with every guard
/// in the high half, so that a waiter tells one guard from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marker(u64);

impl Marker {
    const fn new(sequence: u32, what: u32) -> Self {
        Marker((sequence as u64) << 32 | what as u64)
    }

    const fn sequence(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn what(self) -> u32 {
        self.0 as u32
    }
}

/// The shared part of a slot, on cache lines of its own.
#[repr(align(128))]
struct SlotState {
    marker: AtomicU64,
    waiters: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl SlotState {
    fn marker(&self) -> Marker {
        Marker(self.marker.load(Ordering::SeqCst))
    }

    /// Returns when the marker is not `seen` any more.
    fn wait_while(&self, seen: Marker) {
        #[cfg(not(ioasid_shuttle))]
        for _ in 0..SPINS {
            if self.marker() != seen {
                return;
            }
            std::hint::spin_loop();
        }
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut held = self.lock.lock();
        while self.marker() == seen {
            held = self.changed.wait(held);
        }
        drop(held);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Publishes `marker` and wakes whoever waits for the old one.
    fn publish(&self, marker: Marker) {
        self.marker.store(marker.0, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) != 0 {
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }
}

/// Something that waits for guards to go before it is dropped.
struct Retired {
    item: Box<dyn Any + Send>,
    readers: Vec<(Arc<SlotState>, u32)>,
}

/// All the readers of one machine, and what waits for them.
pub struct Grace {
    slots: Mutex<Vec<Arc<SlotState>>>,
    retired: Mutex<Vec<Retired>>,
}

impl Grace {
    /// A machine without readers.
    pub fn new() -> Arc<Self> {
        Arc::new(Grace {
            slots: Mutex::new(Vec::new()),
            retired: Mutex::new(Vec::new()),
        })
    }

    /// A slot for one reader thread at a time.
    pub fn slot(self: &Arc<Self>) -> Slot {
        let state = Arc::new(SlotState {
            marker: AtomicU64::new(0),
            waiters: AtomicU32::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        });
        self.slots.lock().push(Arc::clone(&state));
        Slot {
            grace: Arc::clone(self),
            state,
            sequence: 0,
        }
    }

    fn snapshot(&self) -> Vec<Arc<SlotState>> {
        self.slots.lock().clone()
    }

    /// Returns when every guard on `domain` (or on a domain not found yet) that was published
    /// before the call is gone. The caller has made its change visible before; a guard published
    /// later sees the change.
    ///
    /// Blocks as long as such a guard is held: never call it under a guard, nor with a lock held
    /// that a reader needs to finish.
    pub fn wait(&self, domain: DomainId) {
        fence(Ordering::SeqCst);
        for slot in self.snapshot() {
            let first = slot.marker();
            let mut now = first;
            while now.sequence() == first.sequence()
                && (now.what() == ANY || now.what() == domain.get())
            {
                slot.wait_while(now);
                now = slot.marker();
            }
        }
        self.collect();
    }

    /// Drops `item` once every guard that is published now is gone; never blocks.
    pub fn retire(&self, item: Box<dyn Any + Send>) {
        fence(Ordering::SeqCst);
        let readers: Vec<_> = self
            .snapshot()
            .into_iter()
            .filter_map(|slot| {
                let marker = slot.marker();
                (marker.what() != IDLE).then(|| (slot, marker.sequence()))
            })
            .collect();
        if readers.is_empty() {
            drop(item);
        } else {
            self.retired.lock().push(Retired { item, readers });
        }
        self.collect();
    }

    /// Drops what no guard can reach any more; never blocks.
    pub fn collect(&self) {
        let mut free: Vec<Box<dyn Any + Send>> = Vec::new();
        {
            let mut retired = self.retired.lock();
            let waiting = mem::take(&mut *retired);
            for mut entry in waiting {
                entry.readers.retain(|(slot, sequence)| {
                    let marker = slot.marker();
                    marker.sequence() == *sequence && marker.what() != IDLE
                });
                if entry.readers.is_empty() {
                    free.push(entry.item);
                } else {
                    retired.push(entry);
                }
            }
        }
        // Outside the lock: dropping an item may retire another.
        drop(free);
    }

    /// Items whose readers are not gone yet.
    pub fn retired_items(&self) -> usize {
        self.retired.lock().len()
    }
}

impl fmt::Debug for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grace")
            .field("slots", &self.slots.lock().len())
            .finish_non_exhaustive()
    }
}

/// One reader's place. Holds at most one [`Guard`] at a time.
pub struct Slot {
    grace: Arc<Grace>,
    state: Arc<SlotState>,
    sequence: u32,
}

impl Slot {
    /// Publishes the marker of a reader that has not found its domain yet.
    #[inline]
    pub fn enter(&mut self) -> Guard<'_> {
        self.sequence = self.sequence.wrapping_add(1);
        let marker = Marker::new(self.sequence, ANY);
        self.state.marker.store(marker.0, Ordering::Relaxed);
        // Pairs with the fence in `Grace::wait` and `Grace::retire`: whatever this reader loads
        // from here on is either the new state, or its marker is seen by the writer.
        fence(Ordering::SeqCst);
        Guard { slot: self }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.grace
            .slots
            .lock()
            .retain(|slot| !Arc::ptr_eq(slot, &self.state));
        self.grace.collect();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// A published in-flight marker. While it lives, what was loaded through it stays.
pub struct Guard<'a> {
    slot: &'a Slot,
}

impl Guard<'_> {
    /// Says that from here on only `domain` is read: waiters of other domains go on.
    #[inline]
    pub fn narrow(&self, domain: DomainId) {
        self.slot
            .state
            .publish(Marker::new(self.slot.sequence, domain.get()));
    }

    fn grace(&self) -> &Arc<Grace> {
        &self.slot.grace
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot
            .state
            .publish(Marker::new(self.slot.sequence, IDLE));
    }
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// A fixed number of cells, each empty or holding one shared object, read without a lock.
pub struct ProtectedTable<T: Send + Sync + 'static> {
    grace: Arc<Grace>,
    cells: Box<[AtomicPtr<T>]>,
}

impl<T: Send + Sync + 'static> ProtectedTable<T> {
    /// `len` empty cells whose readers are those of `grace`.
    pub fn new(grace: Arc<Grace>, len: usize) -> Self {
        let cells = (0..len).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        ProtectedTable { grace, cells }
    }

    /// The object in cell `index`; `None` if the cell is empty or there is no such cell.
    ///
    /// # Panics
    /// If the guard belongs to another [`Grace`]: a defect of the caller, never of a peer.
    #[inline]
    pub fn load<'g>(&'g self, index: usize, guard: &'g Guard<'_>) -> Option<&'g T> {
        assert!(
            Arc::ptr_eq(&self.grace, guard.grace()),
            "guard of another machine"
        );
        let object = self.cells.get(index)?.load(Ordering::Acquire);
        // SAFETY: a non-null pointer came from `Arc::into_raw` in `swap` and the cell's reference is
        // dropped only after every guard published at the swap that removed it is gone (module
        // comment). `guard` is published and belongs to the same `Grace`, and outlives `'g`.
        unsafe { object.as_ref() }
    }

    /// As [`ProtectedTable::load`], with a reference that outlives the guard.
    pub fn load_arc(&self, index: usize, guard: &Guard<'_>) -> Option<Arc<T>> {
        let object: *const T = self.load(index, guard)?;
        // SAFETY: the pointer came from `Arc::into_raw` and the cell's reference is alive, as in
        // `load`; the count is raised before a second owner is made.
        unsafe {
            Arc::increment_strong_count(object);
            Some(Arc::from_raw(object))
        }
    }

    /// Puts `new` into cell `index`; the old object is dropped after the grace period.
    ///
    /// # Panics
    /// If there is no such cell: a defect of the caller, never of a peer.
    pub fn swap(&self, index: usize, new: Option<Arc<T>>) {
        let new = new.map_or(ptr::null_mut(), |object| Arc::into_raw(object).cast_mut());
        let old = self.cells[index].swap(new, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: the pointer came from `Arc::into_raw`, and this swap took it out of the cell,
            // so the cell's reference is ours alone now.
            let old = unsafe { Arc::from_raw(old) };
            self.grace.retire(Box::new(old));
        }
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are no cells at all.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The grace period that protects the cells.
    pub fn grace(&self) -> &Arc<Grace> {
        &self.grace
    }
}

impl<T: Send + Sync + 'static> Drop for ProtectedTable<T> {
    fn drop(&mut self) {
        for cell in &mut self.cells {
            let object = mem::replace(cell.get_mut(), ptr::null_mut());
            if !object.is_null() {
                // SAFETY: as in `swap`; `&mut self` proves that no reader borrows the table, and
                // `load` ties what it hands out to a borrow of the table.
                drop(unsafe { Arc::from_raw(object) });
            }
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for ProtectedTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectedTable")
            .field("cells", &self.cells.len())
            .finish_non_exhaustive()
    }
}
