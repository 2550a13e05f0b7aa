//! Access objects: software that uses the memory of an IOAS without a page table.

use std::{fmt, sync::Arc};

use ioasid_core::AddrRange;

use super::{area::AreaHold, pages::PinnedRun, pinned::Pieces};
use crate::base::id::ObjectId;

/// The user of an [`Access`](crate::Access).
pub trait AccessUser: Send + Sync + fmt::Debug {
    /// Drops every [`PinnedPages`] that has an address in `range`, before it returns. New pins
    /// there are refused from now on. Called with no lock held, from any thread.
    fn unmap(&self, range: AddrRange);
}

/// What an access object is for.
#[derive(Clone, Debug)]
pub enum AccessKind {
    /// Copies bytes, at any address.
    Copies,
    /// Pins whole pages: mappings of the IOAS must be aligned to pages.
    Pins(Arc<dyn AccessUser>),
    /// Pins whole pages for hardware and never releases them: UNMAP is refused. The owner of such
    /// an access object is an object of the same file, and does not keep the file.
    Locks,
}

/// The object behind an [`Access`](crate::Access).
pub(crate) struct AccessObject {
    id: ObjectId,
    kind: AccessKind,
}

impl AccessObject {
    pub(crate) fn new(id: ObjectId, kind: AccessKind) -> Arc<Self> {
        Arc::new(AccessObject { id, kind })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    /// Whether mappings must be aligned to pages for it.
    pub(crate) fn pins(&self) -> bool {
        !matches!(self.kind, AccessKind::Copies)
    }

    /// Whether it keeps the file open: its owner is outside.
    pub(crate) fn keeps_file(&self) -> bool {
        !matches!(self.kind, AccessKind::Locks)
    }

    /// Whether hardware owns what it pins.
    pub(crate) fn locks(&self) -> bool {
        matches!(self.kind, AccessKind::Locks)
    }

    /// Asks the user to release the pages in `range`.
    pub(crate) fn ask_back(&self, range: AddrRange) {
        if let AccessKind::Pins(user) = &self.kind {
            user.unmap(range);
        }
    }
}

impl fmt::Debug for AccessObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessObject")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

struct PinnedArea {
    hold: AreaHold,
    pieces: Pieces,
    _run: PinnedRun,
}

/// Pages that an access object has pinned. Their system physical addresses stay valid until this is
/// dropped.
pub struct PinnedPages {
    range: AddrRange,
    areas: Vec<PinnedArea>,
}

impl PinnedPages {
    /// Nothing yet of `range`.
    pub(crate) fn new(range: AddrRange) -> Self {
        PinnedPages {
            range,
            areas: Vec::new(),
        }
    }

    /// The next part of the range.
    pub(crate) fn push(&mut self, hold: AreaHold, run: PinnedRun, pieces: Pieces) {
        self.areas.push(PinnedArea {
            hold,
            pieces,
            _run: run,
        });
    }

    /// The addresses in the IOAS.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// The (system physical address, length) pieces behind the range, in order. Neighbours whose
    /// addresses touch are one piece.
    pub fn pieces(&self) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (spa, len) in self.areas.iter().flat_map(|area| area.pieces.iter()) {
            match joined.last_mut() {
                Some((start, bytes)) if *start + *bytes == spa => *bytes += len,
                _ => joined.push((spa, len)),
            }
        }
        joined
    }

    /// Whether hardware owns them.
    pub fn are_locked(&self) -> bool {
        self.areas.iter().any(|area| area.hold.locks())
    }
}

impl fmt::Debug for PinnedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPages({})", self.range)
    }
}
