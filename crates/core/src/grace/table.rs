//! Cells that are read without a lock, under a guard.
//!
//! # Safety argument
//! Cells hand out `&T` to objects owned by an `Arc` in the cell. An object leaves its cell through
//! [`ProtectedTable::swap`], which gives the cell's reference to [`Grace::retire`]; that drops it
//! only when every guard that was published at the swap is gone or has promised to hold nothing
//! ([`Guard::block`] and [`Guard::again`], which take the guard for themselves: nothing that was
//! loaded through it is still borrowed). A guard of another [`Grace`] protects nothing, so each load
//! compares the two.
// UNSAFETY: cells are read without a lock; see the safety argument above.
#![allow(unsafe_code)]

use std::{fmt, marker::PhantomData, mem, ptr, ptr::NonNull, sync::Arc};

use super::{Grace, Guard};
use crate::{
    id::DomainId,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// A fixed number of cells, each empty or holding one shared object, read without a lock.
pub struct ProtectedTable<T: Send + Sync + 'static> {
    grace: Arc<Grace>,
    cells: Box<[AtomicPtr<T>]>,
    /// Cells from here on were never used.
    used: AtomicUsize,
}

impl<T: Send + Sync + 'static> ProtectedTable<T> {
    /// `len` empty cells whose readers are those of `grace`.
    pub fn new(grace: Arc<Grace>, len: usize) -> Self {
        ProtectedTable {
            grace,
            cells: (0..len).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            used: AtomicUsize::new(0),
        }
    }

    /// The object in cell `index`; `None` if the cell is empty or there is no such cell.
    ///
    /// # Panics
    /// If the guard belongs to another [`Grace`]: a defect of the caller, never of a peer.
    #[inline]
    pub fn load<'g>(&'g self, index: usize, guard: &'g Guard<'_>) -> Option<&'g T> {
        self.assert_reader(guard);
        let object = self.cells.get(index)?.load(Ordering::Acquire);
        // SAFETY: a non-null pointer came from `Arc::into_raw` in `swap` and the cell's reference is
        // dropped only after every guard published at the swap that removed it is gone (module
        // comment). `guard` is published and belongs to the same `Grace`, and outlives `'g`.
        unsafe { object.as_ref() }
    }

    /// Panics if `guard` belongs to another [`Grace`], so that it protects nothing here.
    #[inline]
    pub(crate) fn assert_reader(&self, guard: &Guard<'_>) {
        assert!(
            Arc::ptr_eq(&self.grace, guard.grace()),
            "guard of another machine"
        );
    }

    /// Puts `new` into cell `index`; the old object is dropped after the grace period.
    ///
    /// # Panics
    /// If there is no such cell: a defect of the caller, never of a peer.
    pub fn swap(&self, index: usize, new: Option<Arc<T>>) {
        if new.is_some() {
            // Read by `drop` alone, which nothing runs beside.
            self.used.fetch_max(index + 1, Ordering::Relaxed);
        }
        let new = new.map_or(ptr::null_mut(), |object| Arc::into_raw(object).cast_mut());
        let old = self.cells[index].swap(new, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: the pointer came from `Arc::into_raw`, and this swap took it out of the cell,
            // so this is the only reference that the cell had.
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
        // The memory of cells that were never used is not there: it would come to be looked at.
        let used = self.used.load(Ordering::Relaxed);
        for cell in self.cells.iter_mut().take(used) {
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

/// A guard together with one object that was loaded under it, without a count of its own on it:
/// engines that use the object do not share a counter.
pub struct Loaded<'a, T: Send + Sync + 'static> {
    object: Option<NonNull<T>>,
    guard: Guard<'a>,
    table: PhantomData<&'a ProtectedTable<T>>,
}

impl<'a, T: Send + Sync + 'static> Loaded<'a, T> {
    /// The guard, with nothing found yet.
    #[inline]
    pub fn new(guard: Guard<'a>) -> Self {
        Loaded {
            object: None,
            guard,
            table: PhantomData,
        }
    }

    /// Loads what is in cell `index` of `table`.
    ///
    /// # Panics
    /// As [`ProtectedTable::load`].
    #[inline]
    pub fn find(&mut self, table: &'a ProtectedTable<T>, index: usize) {
        self.object = table.load(index, &self.guard).map(NonNull::from);
    }

    /// Loads what is in cell `inner` of the table in cell `outer` of `directory`.
    ///
    /// # Panics
    /// As [`ProtectedTable::load`].
    #[inline]
    pub fn find_in(
        &mut self,
        directory: &'a ProtectedTable<ProtectedTable<T>>,
        outer: usize,
        inner: usize,
    ) {
        let table = directory.load(outer, &self.guard);
        let object = table.and_then(|table| table.load(inner, &self.guard));
        self.object = object.map(NonNull::from);
    }

    /// The object.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: `find` and `find_in` loaded it under this guard, as `ProtectedTable::load` allows,
        // and whatever ends or renews the guard forgets it first. The table borrows for `'a`, or is
        // itself an object in a cell of one that does.
        self.object.map(|object| unsafe { object.as_ref() })
    }

    /// A counted reference to the object, which outlives the guard.
    pub fn share(&self) -> Option<Arc<T>> {
        let object: *const T = self.get()?;
        // SAFETY: the pointer came from `Arc::into_raw` and the cell's reference is alive, as in
        // `get`; the count is raised before a second owner is made.
        unsafe {
            Arc::increment_strong_count(object);
            Some(Arc::from_raw(object))
        }
    }

    /// The guard.
    #[inline]
    pub fn guard(&self) -> &Guard<'a> {
        &self.guard
    }

    /// Drops the object.
    pub fn forget(&mut self) {
        self.object = None;
    }

    /// As [`Guard::again`]; the object is dropped.
    pub fn again(&mut self) {
        self.object = None;
        self.guard.again();
    }

    /// As [`Guard::block`]; the object is dropped.
    pub fn block<R>(&mut self, domain: DomainId, work: impl FnOnce() -> R) -> R {
        self.object = None;
        self.guard.block(domain, work)
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Loaded<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("found", &self.object.is_some())
            .finish_non_exhaustive()
    }
}
