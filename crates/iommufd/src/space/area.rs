//! One mapping of an address space: the pages behind it, and its place in every domain.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use ioasid_core::{AddrRange, Prot, memory::PinBatch};

use super::{
    area_map::AreaMap,
    domains::IoasDomain,
    pages::{Pages, PinnedRun},
};
use crate::base::error::Error;

/// One mapping.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    behind: Behind,
    /// Where the area starts in its pages, in bytes.
    pub(crate) offset: u64,
    pub(crate) prot: Prot,
    /// Access objects that hold its pages, once there has been one.
    usage: Option<Arc<AreaUse>>,
}

/// What is behind an area.
#[derive(Clone, Debug)]
enum Behind {
    Pages(Arc<Pages>),
    /// System physical addresses, while the IOAS has a domain.
    Run(PinnedRun),
}

const _: () = assert!(
    size_of::<Area>() == 40,
    "a word more is one for each mapping"
);

impl Area {
    /// The pages from `offset`, with neither addresses nor users.
    pub(crate) fn new(pages: Arc<Pages>, offset: u64, prot: Prot) -> Self {
        Area {
            behind: Behind::Pages(pages),
            offset,
            prot,
            usage: None,
        }
    }

    /// The part of the area from `offset` of its pages, with the same addresses and no users.
    pub(crate) fn part(&self, offset: u64) -> Self {
        Area {
            behind: self.behind.clone(),
            offset,
            prot: self.prot,
            usage: None,
        }
    }

    pub(crate) fn pages(&self) -> &Arc<Pages> {
        match &self.behind {
            Behind::Pages(pages) => pages,
            Behind::Run(run) => run.pages(),
        }
    }

    /// Whether it has system physical addresses.
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(self.behind, Behind::Run(_))
    }

    /// Gives up the system physical addresses; they are valid until what this returns is dropped.
    pub(crate) fn unpin(&mut self) -> Option<PinnedRun> {
        let pages = Arc::clone(self.pages());
        match std::mem::replace(&mut self.behind, Behind::Pages(pages)) {
            Behind::Run(run) => Some(run),
            Behind::Pages(_) => None,
        }
    }

    /// Takes over the system physical addresses of `other`, which is the same area.
    pub(crate) fn share_addresses(&mut self, other: Area) {
        self.behind = other.behind;
    }

    /// Its users, to add one.
    pub(crate) fn usage(&mut self) -> &Arc<AreaUse> {
        self.usage.get_or_insert_default()
    }

    /// Whether hardware owns the pages.
    pub(crate) fn is_locked(&self) -> bool {
        self.usage.as_ref().is_some_and(|usage| usage.is_locked())
    }

    /// Whether an access object holds the pages.
    pub(crate) fn is_used(&self) -> bool {
        self.usage.as_ref().is_some_and(|usage| usage.is_used())
    }

    /// Whether an access object holds the pages. If so, no further one may.
    pub(crate) fn refuse_new(&self) -> bool {
        self.usage.as_ref().is_some_and(|usage| usage.refuse_new())
    }

    pub(crate) fn refuses_new(&self) -> bool {
        self.usage.as_ref().is_some_and(|usage| usage.refuses_new())
    }
}

/// Bytes of some pages, to become an area.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) pages: Arc<Pages>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The users of an area's pages besides its domains: access objects.
#[derive(Debug, Default)]
pub(crate) struct AreaUse {
    users: AtomicU32,
    locks: AtomicU32,
    leaving: AtomicBool,
}

impl AreaUse {
    fn is_locked(&self) -> bool {
        self.locks.load(Ordering::Acquire) > 0
    }

    fn refuse_new(&self) -> bool {
        let held = self.is_used();
        if held {
            self.leaving.store(true, Ordering::Release);
        }
        held
    }

    fn is_used(&self) -> bool {
        self.users.load(Ordering::Acquire) > 0
    }

    fn refuses_new(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }
}

/// One use of an area's pages, ended by drop.
pub(crate) struct AreaHold {
    usage: Arc<AreaUse>,
    locks: bool,
}

impl AreaHold {
    pub(crate) fn new(usage: &Arc<AreaUse>, locks: bool) -> Self {
        usage.users.fetch_add(1, Ordering::AcqRel);
        if locks {
            usage.locks.fetch_add(1, Ordering::AcqRel);
        }
        AreaHold {
            usage: Arc::clone(usage),
            locks,
        }
    }

    /// Whether hardware owns the pages by it.
    pub(crate) fn locks(&self) -> bool {
        self.locks
    }
}

impl Drop for AreaHold {
    fn drop(&mut self) {
        if self.locks {
            self.usage.locks.fetch_sub(1, Ordering::AcqRel);
        }
        self.usage.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Gives an area system physical addresses and writes it to every domain. What was written stays on
/// failure, for the caller to take down.
pub(crate) fn fill(
    domains: &[Arc<IoasDomain>],
    range: AddrRange,
    area: &mut Area,
    large_pages: bool,
    batch: &mut PinBatch,
) -> Result<(), Error> {
    if domains.is_empty() || area.pages().is_revoked() {
        return Ok(());
    }
    let len = range.len_saturating();
    let pieces = match &area.behind {
        Behind::Run(run) => run.pieces(area.offset, len),
        Behind::Pages(pages) => {
            let (run, pieces) = pages.pin(batch, area.offset, len)?;
            area.behind = Behind::Run(run);
            pieces
        }
    };
    for domain in domains {
        let mut iova = range.start();
        for (spa, len) in pieces.iter() {
            domain.map(iova, spa, len, area.prot, large_pages)?;
            iova = iova.wrapping_add(len);
        }
    }
    Ok(())
}

/// Takes areas out of every domain: one barrier each. The caller drops the areas, and with them the
/// pins, afterwards.
pub(crate) fn take_down(domains: &[Arc<IoasDomain>], areas: impl Iterator<Item = AddrRange>) {
    if domains.is_empty() {
        return;
    }
    let mut before: Vec<AddrRange> = Vec::new();
    let mut last: Option<AddrRange> = None;
    for range in areas {
        let joined = last
            .filter(|last| last.last().checked_add(1) == Some(range.start()))
            .and_then(|last| AddrRange::new(last.start(), range.last()));
        if joined.is_none() {
            before.extend(last);
        }
        last = Some(joined.unwrap_or(range));
    }
    let Some(last) = last else { return };
    if before.is_empty() {
        domains.iter().for_each(|domain| domain.unmap(&[last]));
    } else {
        before.push(last);
        domains.iter().for_each(|domain| domain.unmap(&before));
    }
}

/// Areas that were taken out of an address space.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// If there is just one.
    pub(crate) one: Option<(AddrRange, Area)>,
    pub(crate) some: Vec<(AddrRange, Area)>,
    /// If there are no others.
    pub(crate) all: AreaMap<Area>,
}

impl Taken {
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AddrRange> {
        let few = self.one.iter().chain(&self.some).map(|(range, _)| *range);
        few.chain(self.all.iter().map(|(range, _)| range))
    }

    /// Bytes of them together.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges()
            .fold(0, |sum, range| sum.saturating_add(range.len_saturating()))
    }
}
