//! Copies inside of one program's private memory, where something makes them in place
//! ([`RemoteMemory::copy_inside`](ioasid_core::memory::RemoteMemory::copy_inside)): one by one, and
//! several at once.

use ioasid_core::{Access, memory::InnerCopy, spa::SharedRemote};

use super::{
    port::DmaGuard,
    view::{Far, Place, View, report_write},
};

/// Copies that [`DmaGuard::copy_ahead`] makes at once.
const MOST_AHEAD: usize = 32;

/// One of several copies ([`DmaGuard::copy_ahead`]), by I/O virtual addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Where to.
    pub dst: u64,
    /// Where from.
    pub src: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes done, the first ones.
    pub done: u64,
}

impl DmaGuard<'_> {
    /// Makes the first of these copies, as many as there are whose two sides lie in one program's private
    /// memory, at once, where something makes such copies in place; the last of them may be done in part.
    /// What is left is for [`DmaGuard::copy_on`], which also says what stopped it.
    ///
    /// Nothing of it is done under a guard that may not block.
    pub fn copy_ahead(&mut self, copies: &mut [Copy]) {
        let mut inner = Vec::new();
        let mut to = Vec::new();
        let mut found = None;
        let mut room = self.budget;
        for copy in copies.iter().take(MOST_AHEAD) {
            let Some((memory, one)) = self.view.inside(copy.dst, copy.src, copy.len) else {
                break;
            };
            let space = memory.place(0).map(|place| place.space);
            let (_, first) = found.get_or_insert((memory, space));
            if *first != space || copy.len > room {
                break;
            }
            room -= copy.len;
            inner.push(one);
            to.push(copy.dst);
        }
        let Some((memory, _)) = found else {
            return;
        };
        if !self.view.copy_inside(&memory, &mut inner, &to) {
            return;
        }
        for (copy, inner) in copies.iter_mut().zip(inner) {
            copy.done = inner.done;
            self.budget = self.budget.saturating_sub(inner.done);
            self.bytes += inner.done;
            self.tell(Access::Read, copy.src, inner.done);
            self.tell(Access::Write, copy.dst, inner.done);
        }
    }

    /// Makes one copy of `len` bytes, which both sides have, if it is such a one: as far as that comes, but no
    /// further than nothing.
    pub(super) fn copy_in_place(
        &mut self,
        to: u64,
        target: &Far,
        source: &Far,
        len: u64,
    ) -> Option<u64> {
        let mut copies = [inner_copy(target, source, len)?];
        let made = self.view.copy_inside(&target.memory, &mut copies, &[to]);
        Some(copies[0].done).filter(|done| made && *done > 0)
    }
}

/// The copy as one inside of a program's memory, if both sides lie in one.
fn inner_copy(target: &Far, source: &Far, len: u64) -> Option<InnerCopy> {
    let from = source.memory.place(source.offset)?;
    let to = target.memory.place(target.offset)?;
    (from.space == to.space).then_some(InnerCopy {
        dst: to.address,
        src: from.address,
        len,
        done: 0,
    })
}

impl View<'_> {
    /// A copy of `len` bytes that is one inside of a program's memory, as a whole, and that memory. `None`
    /// otherwise, whatever the reason.
    fn inside(&self, dst: u64, src: u64, len: u64) -> Option<(SharedRemote, InnerCopy)> {
        if !self.blocking || len == 0 || self.injected.get() || self.loaded.get().is_none() {
            return None;
        }
        let remote = |iova, access| match self.locate(iova, len, access) {
            Ok(Place::Remote(far)) if far.len == len => Some(far),
            _ => None,
        };
        let source = remote(src, Access::Read)?;
        let target = remote(dst, Access::Write)?;
        let copy = inner_copy(&target, &source, len)?;
        Some((target.memory, copy))
    }

    /// Makes copies that were found to be inside of the program of `memory`, to these
    /// addresses, as [`SharedRemote::copy_inside`].
    fn copy_inside(&mut self, memory: &SharedRemote, copies: &mut [InnerCopy], to: &[u64]) -> bool {
        let sink = self.sink.clone();
        self.block(|| {
            let made = memory.copy_inside(copies);
            // While the waiters for the guard still wait: afterwards the writes can be seen.
            if let Some(sink) = sink.filter(|_| made) {
                for (copy, iova) in copies.iter().zip(to) {
                    report_write(&sink, *iova, copy.done);
                }
            }
            made
        })
    }
}
