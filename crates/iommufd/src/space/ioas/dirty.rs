//! Which ranges of an IOAS dirty bits can be read of.

use ioasid_core::AddrRange;

use super::Ioas;
use crate::{base::error::DirtyError, space::dirty::DirtyRequest};

impl Ioas {
    pub(crate) fn check_dirty(&self, request: DirtyRequest) -> Result<AddrRange, DirtyError> {
        let aligned = |unit: u64| {
            // As the kernel does, without asking whether the unit is a power of two.
            let mask = unit.wrapping_sub(1);
            let end = request.iova.wrapping_add(request.len);
            unit != 0 && request.iova & mask == 0 && end & mask == 0
        };
        let DirtyRequest { iova, len, .. } = request;
        let range = AddrRange::from_len(iova, len);
        if range.is_none() && request.iova != 0 {
            return Err(DirtyError::Overflow { iova, len });
        }
        for alignment in [self.state.lock().alignment(), request.page_size] {
            if !aligned(alignment) {
                return Err(DirtyError::Misaligned {
                    iova,
                    len,
                    alignment,
                });
            }
        }
        range.ok_or(DirtyError::Empty)
    }

    /// Whether areas cover the whole range.
    pub(crate) fn covered(&self, range: AddrRange) -> Result<(), DirtyError> {
        let state = self.state.lock();
        let mut next = range.start();
        for (area, _) in state.space.overlapping(range) {
            if area.start() > next {
                return Err(DirtyError::NotMapped { range });
            }
            match area.last().checked_add(1) {
                Some(after) if area.last() < range.last() => next = after,
                _ => return Ok(()),
            }
        }
        Err(DirtyError::NotMapped { range })
    }
}
