//! Dirty tracking commands (drivers/iommu/iommufd/{hw_pagetable,iova_bitmap}.c).

use ioasid_core::AddrRange;
use ioasid_iommufd::{DirtyRequest, ObjectId};

use super::call::{Call, address};
use crate::{Errno, spec::iommufd as spec};

pub(super) fn set_tracking(call: &Call<'_>) -> Result<u64, Errno> {
    let args: spec::HwptSetDirtyTracking = call.args();
    if args.flags & !spec::DIRTY_TRACKING_ENABLE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let on = args.flags & spec::DIRTY_TRACKING_ENABLE != 0;
    call.context()
        .hwpt_set_dirty_tracking(ObjectId::from_raw(args.hwpt_id), on)?;
    Ok(0)
}

pub(super) fn get_bitmap(call: &Call<'_>) -> Result<u64, Errno> {
    let args: spec::HwptGetDirtyBitmap = call.args();
    if args.flags & !spec::DIRTY_BITMAP_NO_CLEAR != 0 || args.reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let request = DirtyRequest {
        hwpt: ObjectId::from_raw(args.hwpt_id),
        iova: args.iova,
        len: args.length,
        page_size: args.page_size,
        no_clear: args.flags & spec::DIRTY_BITMAP_NO_CLEAR != 0,
    };
    // The program's memory may block: it is touched when the page table's locks are free again.
    let mut dirty: Vec<AddrRange> = Vec::new();
    call.context()
        .hwpt_get_dirty(request, &mut |range| match dirty.last_mut() {
            Some(last) if last.last().checked_add(1) == Some(range.start()) => {
                if let Some(joined) = AddrRange::new(last.start(), range.last()) {
                    *last = joined;
                }
            }
            _ => dirty.push(range),
        })?;
    dirty.sort_unstable();
    let shift = args.page_size.trailing_zeros();
    let mut bitmap = Bitmap {
        call,
        data: args.data,
        window: 0,
        touched: 0,
        bits: Box::new([0; WINDOW]),
    };
    for range in dirty {
        let first = range.start().saturating_sub(args.iova) >> shift;
        let last = range.last().saturating_sub(args.iova) >> shift;
        bitmap.set(first, last)?;
    }
    bitmap.flush()?;
    Ok(0)
}

/// Bytes of the program's bitmap that are changed at a time.
const WINDOW: usize = 4096;
const WINDOW_BITS: u64 = WINDOW as u64 * 8;

/// The program's bitmap, which bits are added to in ascending order.
struct Bitmap<'a> {
    call: &'a Call<'a>,
    data: u64,
    /// Which window is being filled.
    window: u64,
    /// Bytes of it that have a bit, from its start.
    touched: usize,
    bits: Box<[u8; WINDOW]>,
}

impl Bitmap<'_> {
    /// Sets bits `first..=last`.
    fn set(&mut self, first: u64, last: u64) -> Result<(), Errno> {
        let mut bit = first;
        while bit <= last {
            let window = bit / WINDOW_BITS;
            if window != self.window {
                self.flush()?;
                self.window = window;
            }
            let end = last.min(window * WINDOW_BITS + (WINDOW_BITS - 1));
            for bit in bit..=end {
                let within = (bit % WINDOW_BITS) as usize;
                self.bits[within / 8] |= 1 << (within % 8);
            }
            self.touched = self.touched.max((end % WINDOW_BITS) as usize / 8 + 1);
            bit = end + 1;
        }
        Ok(())
    }

    /// ORs the window into the program's memory.
    fn flush(&mut self) -> Result<(), Errno> {
        if self.touched == 0 {
            return Ok(());
        }
        let at = address(self.data, self.window * WINDOW as u64)?;
        let mut theirs = vec![0; self.touched];
        self.call.program().read(at, &mut theirs)?;
        for (theirs, ours) in theirs.iter_mut().zip(self.bits.iter()) {
            *theirs |= ours;
        }
        self.call.program().write(at, &theirs)?;
        self.bits.fill(0);
        self.touched = 0;
        Ok(())
    }
}
