//! Dirty bits as a program gets them: 64 to a word, the first page of the range in the lowest bit of
//! the first (`update_user_bitmap`, drivers/vfio/vfio_iommu_type1.c).

use ioasid_core::AddrRange;

use super::{super::copy, spec};
use crate::{CallError, Program, error::RequestError, memory};

/// One past the last address that a program can have (`TASK_SIZE_MAX` with four levels).
const USER_END: u64 = (1 << 47) - 4096;

/// Bytes that are written at a time: whole words.
const CHUNK: usize = 4096;

const WORD: u64 = 8;
const WORD_BITS: u64 = 64;

/// Where the dirty bits of a range go.
pub(super) struct DirtyBits<'a> {
    program: &'a dyn Program,
    /// What bit 0 stands for.
    iova: u64,
    page_size: u64,
    data: u64,
}

impl<'a> DirtyBits<'a> {
    /// Checks a program's bitmap for `size` bytes from `iova`.
    ///
    /// # Errors
    /// EINVAL: it cannot lie where it is said to, or is too small or too large.
    pub(super) fn new(
        program: &'a dyn Program,
        iova: u64,
        size: u64,
        bitmap: &spec::Bitmap,
    ) -> Result<Self, CallError> {
        let end = bitmap.data.checked_add(bitmap.size);
        if end.is_none_or(|end| end > USER_END) {
            return Err(RequestError::BitmapAddress {
                address: bitmap.data,
                size: bitmap.size,
            }
            .into());
        }
        // The kernel takes the lowest bit for the size of a page here, and compares it later.
        let pages = size >> (bitmap.pgsize.trailing_zeros() % u64::BITS);
        let needed = pages.div_ceil(WORD_BITS).saturating_mul(WORD);
        if pages == 0 || bitmap.size < needed.max(1) || bitmap.size > spec::MAX_DIRTY_BITMAP {
            return Err(RequestError::BitmapSize {
                size: bitmap.size,
                needed: needed.max(1),
                limit: spec::MAX_DIRTY_BITMAP,
                pages,
            }
            .into());
        }
        Ok(DirtyBits {
            program,
            iova,
            page_size: bitmap.pgsize,
            data: bitmap.data,
        })
    }

    /// Bytes per bit.
    pub(super) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Sets the bits of a mapping. Bits before it in its first word stay as they are, those behind it
    /// in its last become 0.
    ///
    /// # Errors
    /// EFAULT.
    pub(super) fn set(&self, mapping: AddrRange) -> Result<(), CallError> {
        let shift = self.page_size.trailing_zeros() % u64::BITS;
        let first = mapping.start().saturating_sub(self.iova) >> shift;
        let last = mapping.last().saturating_sub(self.iova) >> shift;
        let word = |bit: u64| copy::offset(self.data, bit / WORD_BITS * WORD);
        let mut head = u64::MAX << (first % WORD_BITS);
        if !first.is_multiple_of(WORD_BITS) {
            let mut before = [0; WORD as usize];
            memory::read(self.program, word(first)?, &mut before)?;
            head |= u64::from_ne_bytes(before) & !(u64::MAX << (first % WORD_BITS));
        }
        let tail = u64::MAX >> (WORD_BITS - 1 - last % WORD_BITS);
        let words = last / WORD_BITS - first / WORD_BITS + 1;
        let mut done = 0;
        while done < words {
            let len = (words - done).min(CHUNK as u64 / WORD);
            let values = (done..done + len).map(|at| {
                let mut value = u64::MAX;
                if at == 0 {
                    value &= head;
                }
                if at + 1 == words {
                    value &= tail;
                }
                value
            });
            let bytes: Vec<u8> = values.flat_map(u64::to_ne_bytes).collect();
            let at = copy::offset(word(first)?, done * WORD)?;
            memory::write(self.program, at, &bytes)?;
            done += len;
        }
        Ok(())
    }
}
