//! Grace periods: what is being read right now, and how to wait until the readers are done.
//!
//! A reader (a DMA engine, a worker, an inspection) owns a [`Slot`] and publishes an in-flight
//! marker in it for the length of one [`Guard`]. The marker names the domain being read, so that a
//! writer waits only for readers of *its* domain:
//!
//! 1. [`Slot::enter`] publishes "some domain" (a wildcard): the reader may now load cells of a
//!    [`ProtectedTable`], and so find its domain.
//! 2. [`Guard::narrow`] replaces the wildcard by that domain. A reader that can guess its domain
//!    publishes it at once ([`Slot::enter_in`]), and begins [again](Guard::again) if it was wrong.
//! 3. Dropping the guard clears the marker and wakes parked waiters.
//!
//! A writer makes its change visible (clears page-table entries, swaps a cell), then calls
//! [`Grace::wait`]: when that returns, every guard that could have seen the old state is gone. The
//! order is the classic store-buffering one: the reader stores its marker, fences and loads the
//! data; the writer stores the data, fences and loads the markers; at least one sees the other.
//!
//! What leaves a cell is dropped after all guards of that moment, whatever their domain
//! ([`Grace::retire`]): no writer waits, but one guard that never ended would keep all objects.
//! So a reader that must wait for its client does it inside [`Guard::block`], where its marker still
//! names the domain but says that nothing is held: only the writers of that domain wait.
//!
//! The marker of a guard that ends is stored without a fence, so that its end may miss a waiter that is
//! just about to park: such waiters nap (`SlotState::end` has the argument).
//!
//! Waiters look a few times and then park: a guard is short, so a reader that runs is usually gone
//! before a thread could be put to sleep and woken; one that is preempted under its guard would cost
//! a spinning waiter a whole scheduling period.

use std::{
    any::Any,
    fmt, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    id::DomainId,
    lock_order,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

#[cfg(ioasid_shuttle)]
use crate::sync::thread;

mod table;

pub use table::{Loaded, ProtectedTable};

/// How often a waiter looks before it parks: about the time that a thread takes to be put to sleep.
#[cfg(not(ioasid_shuttle))]
const SPINS: u32 = 200;

/// A waiter that has parked for a guard looks again after this time, and then after twice as long, up to
/// the longest.
const FIRST_NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// Reads no domain.
const NONE: u32 = 0;
/// Reads a domain, and has not found out which.
const ANY: u32 = DomainId::RESERVED;

/// The marker word. Bits 31:0: the domain that is read. Bit 32: references out of cells may be held.
/// Bits 63:33: a number that changes with every guard, so that a waiter can distinguish it from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marker(u64);

impl Marker {
    const HOLDS: u64 = 1 << 32;

    /// Of a guard.
    const fn guard(sequence: u32, domain: u32) -> Self {
        Marker((sequence as u64) << 33 | Self::HOLDS | domain as u64)
    }

    /// Of a guard that holds nothing.
    const fn blocked(sequence: u32, domain: u32) -> Self {
        Marker((sequence as u64) << 33 | domain as u64)
    }

    /// Of a slot without a guard.
    const fn idle(sequence: u32) -> Self {
        Self::blocked(sequence, NONE)
    }

    const fn same_guard(self, other: Marker) -> bool {
        self.0 >> 33 == other.0 >> 33
    }

    const fn holds(self) -> bool {
        self.0 & Self::HOLDS != 0
    }

    /// Whether `domain` may be read.
    const fn reads(self, domain: DomainId) -> bool {
        self.domain() == ANY || self.domain() == domain.get()
    }

    const fn domain(self) -> u32 {
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
    /// A model checker knows no store that becomes visible late: here a guard's end looks for
    /// waiters first.
    #[cfg(ioasid_shuttle)]
    late_stores: bool,
}

impl SlotState {
    fn marker(&self) -> Marker {
        Marker(self.marker.load(Ordering::SeqCst))
    }

    /// Returns when the marker is not `seen` any more, or at `deadline`: whether it is another one.
    fn wait_while(&self, seen: Marker, deadline: Option<Instant>) -> bool {
        #[cfg(not(ioasid_shuttle))]
        for _ in 0..SPINS {
            if self.marker() != seen {
                return true;
            }
            std::hint::spin_loop();
        }
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut held = self.lock.lock();
        let mut nap = FIRST_NAP;
        // Not looked at again afterwards: a guard may come back to the marker that was seen.
        let changed = loop {
            if self.marker() != seen {
                break true;
            }
            // A guard that ends may miss a waiter ([`SlotState::end`]); nothing else that changes the
            // marker does.
            if seen.holds() {
                held = self.nap(held, nap);
                nap = LONGEST_NAP.min(2 * nap);
                continue;
            }
            held = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(held),
                Some(left) if left.is_zero() => break false,
                Some(left) => self.changed.wait_timeout(held, left),
            };
        };
        drop(held);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        changed
    }

    /// Publishes the marker of a new guard in an idle slot.
    ///
    /// Pairs with the fence in [`Grace::wait`] and [`Grace::retire`]: whatever this reader loads from
    /// here on is either the new state, or its marker is seen by the writer.
    #[inline]
    fn begin(&self, marker: Marker) {
        // There an exchange is a full fence and takes half the time of the one that `fence` stands
        // for (crossbeam-epoch does the same).
        #[cfg(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri)))]
        {
            self.marker.swap(marker.0, Ordering::SeqCst);
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
        }
        #[cfg(not(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri))))]
        {
            self.marker.store(marker.0, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// Sleeps until the marker was changed, or for a while.
    #[cfg(not(ioasid_shuttle))]
    fn nap<'a>(&self, held: MutexGuard<'a, ()>, time: Duration) -> MutexGuard<'a, ()> {
        self.changed.wait_timeout(held, time)
    }

    /// The model checker has no time: with late stores it is always up, without it never is.
    #[cfg(ioasid_shuttle)]
    fn nap<'a>(&'a self, held: MutexGuard<'a, ()>, _: Duration) -> MutexGuard<'a, ()> {
        if !self.late_stores {
            return self.changed.wait(held);
        }
        drop(held);
        thread::yield_now();
        self.lock.lock()
    }

    /// Publishes the marker of an idle slot, and wakes the waiters that are there already.
    ///
    /// Without a fence between the two, which would double the time of a guard. So the store may become
    /// visible after the look: a waiter that came between sleeps, and nobody wakes it. Its nap ends
    /// soon, and by then the store is visible, for a processor holds none back for longer than its
    /// accesses before take. What the guard has read and written comes before the store in any case.
    #[inline]
    fn end(&self, marker: Marker) {
        #[cfg(ioasid_shuttle)]
        if self.late_stores {
            let waiters = self.waiters.load(Ordering::SeqCst);
            self.marker.store(marker.0, Ordering::Release);
            if waiters != 0 {
                self.wake();
            }
            return;
        }
        self.marker.store(marker.0, Ordering::Release);
        if self.waiters.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    /// Publishes `marker` and wakes the waiters for the old one.
    #[inline]
    fn publish(&self, marker: Marker) {
        self.marker.store(marker.0, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        drop(self.lock.lock());
        self.changed.notify_all();
    }
}

/// A slot, and the guard that was in it.
type Seen = (Arc<SlotState>, Marker);

/// Something that waits for guards to go before it is dropped.
struct Retired {
    item: Box<dyn Any + Send>,
    readers: Vec<Seen>,
}

/// All the readers of one machine, and what waits for them.
pub struct Grace {
    slots: Mutex<Vec<Arc<SlotState>>>,
    retired: Mutex<Vec<Retired>>,
    /// How many of them: a look without the lock.
    waiting: AtomicUsize,
    #[cfg(ioasid_shuttle)]
    late_stores: bool,
}

impl Grace {
    /// A machine without readers.
    pub fn new() -> Arc<Self> {
        Arc::new(Grace {
            slots: Mutex::new(Vec::new()),
            retired: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            #[cfg(ioasid_shuttle)]
            late_stores: false,
        })
    }

    /// As [`Grace::new`], on a processor where the end of a guard becomes visible late.
    #[cfg(ioasid_shuttle)]
    pub fn with_late_stores() -> Arc<Self> {
        Arc::new(Grace {
            slots: Mutex::new(Vec::new()),
            retired: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            late_stores: true,
        })
    }

    /// A slot for one reader thread at a time.
    pub fn slot(self: &Arc<Self>) -> Slot {
        let state = Arc::new(SlotState {
            marker: AtomicU64::new(0),
            waiters: AtomicU32::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
            #[cfg(ioasid_shuttle)]
            late_stores: self.late_stores,
        });
        self.slots.lock().push(Arc::clone(&state));
        Slot {
            grace: Arc::clone(self),
            state,
            sequence: 0,
        }
    }

    /// The slots whose markers are like that now. The caller's changes come before.
    fn readers(&self, like: impl Fn(Marker) -> bool) -> Vec<Seen> {
        fence(Ordering::SeqCst);
        let slots = self.slots.lock();
        let seen = slots.iter().map(|slot| (slot, slot.marker()));
        seen.filter(|(_, marker)| like(*marker))
            .map(|(slot, marker)| (Arc::clone(slot), marker))
            .collect()
    }

    /// Returns when every guard on `domain` (or on a domain not found yet) that was published
    /// before the call is gone. The caller has made its change visible before; a guard published
    /// later sees the change.
    ///
    /// Blocks as long as such a guard is held: never call it under a guard, nor with a lock held
    /// that a reader needs to finish.
    pub fn wait(&self, domain: DomainId) {
        self.wait_for(domain, None);
    }

    /// As [`Grace::wait`], but a guard that is [blocked](Guard::block) is waited for until `deadline`
    /// at most: its client's memory may never answer. Whether nothing is left.
    pub fn wait_until(&self, domain: DomainId, deadline: Instant) -> bool {
        self.wait_for(domain, Some(deadline))
    }

    fn wait_for(&self, domain: DomainId, deadline: Option<Instant>) -> bool {
        lock_order::assert_may_wait();
        let mut quiet = true;
        for (slot, first) in self.readers(|marker| marker.reads(domain)) {
            let mut now = first;
            while now.same_guard(first) && now.reads(domain) {
                // A guard that runs is bounded by its bytes.
                if !slot.wait_while(now, deadline.filter(|_| !now.holds())) {
                    quiet = false;
                    break;
                }
                now = slot.marker();
            }
        }
        self.collect();
        quiet
    }

    /// Drops `item` once every guard that is published now is gone; never blocks.
    pub fn retire(&self, item: Box<dyn Any + Send>) {
        let readers = self.readers(Marker::holds);
        if readers.is_empty() {
            drop(item);
        } else {
            let mut retired = self.retired.lock();
            retired.push(Retired { item, readers });
            self.waiting.store(retired.len(), Ordering::SeqCst);
        }
        self.collect();
    }

    /// Drops what no guard can reach any more; never blocks.
    pub fn collect(&self) {
        if self.retired_items() == 0 {
            return;
        }
        let mut free: Vec<Box<dyn Any + Send>> = Vec::new();
        {
            let mut retired = self.retired.lock();
            for mut entry in mem::take(&mut *retired) {
                entry.readers.retain(|(slot, seen)| {
                    let now = slot.marker();
                    now.same_guard(*seen) && now.holds()
                });
                if entry.readers.is_empty() {
                    free.push(entry.item);
                } else {
                    retired.push(entry);
                }
            }
            self.waiting.store(retired.len(), Ordering::SeqCst);
        }
        // Outside the lock: dropping an item may retire another.
        drop(free);
    }

    /// Items whose readers are not gone yet.
    pub fn retired_items(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
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
    /// Of the last guard, 31 bits. A waiter that sleeps through all of them waits for one more.
    sequence: u32,
}

impl Slot {
    /// Publishes the marker of a reader that has not found its domain yet.
    #[inline]
    pub fn enter(&mut self) -> Guard<'_> {
        self.begin(ANY)
    }

    /// As [`Slot::enter`], for a reader that reads nothing but cells and `domain`. If what it finds
    /// in the cells leads to another one, it begins [again](Guard::again).
    #[inline]
    pub fn enter_in(&mut self, domain: DomainId) -> Guard<'_> {
        self.begin(domain.get())
    }

    #[inline]
    fn begin(&mut self, domain: u32) -> Guard<'_> {
        let sequence = self.next();
        self.state.begin(Marker::guard(sequence, domain));
        Guard { slot: self }
    }

    #[inline]
    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1) & (u32::MAX >> 1);
        self.sequence
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
    slot: &'a mut Slot,
}

impl Guard<'_> {
    /// Says that from here on only `domain`, or none, is read: waiters of other domains go on. The
    /// guard [covered](Guard::covers) it before.
    #[inline]
    pub fn narrow(&self, domain: impl Into<Option<DomainId>>) {
        let domain = domain.into().map_or(NONE, DomainId::get);
        let marker = Marker::guard(self.slot.sequence, domain);
        self.slot.state.publish(marker);
    }

    /// Whether waiters of `domain` wait for this guard: what it leads to may be read.
    #[inline]
    pub fn covers(&self, domain: DomainId) -> bool {
        Marker(self.slot.state.marker.load(Ordering::Relaxed)).reads(domain)
    }

    /// Ends this guard and begins the next, as [`Slot::enter`] does. Nothing that was loaded before
    /// is borrowed still: the guard is taken for this.
    pub fn again(&mut self) {
        let sequence = self.slot.next();
        self.slot.state.publish(Marker::guard(sequence, ANY));
        // As in `SlotState::begin`.
        fence(Ordering::SeqCst);
    }

    /// Does `work`, which may block for ever and goes on using `domain`: memory that an address of it
    /// led to, kept by a reference of its own. Meanwhile waiters of `domain` wait, and nobody else
    /// does. Afterwards the guard begins [again](Guard::again): cells and tables are read anew.
    pub fn block<R>(&mut self, domain: DomainId, work: impl FnOnce() -> R) -> R {
        let marker = Marker::blocked(self.slot.sequence, domain.get());
        self.slot.state.publish(marker);
        let result = work();
        self.again();
        result
    }

    fn grace(&self) -> &Arc<Grace> {
        &self.slot.grace
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.state.end(Marker::idle(self.slot.sequence));
    }
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}
