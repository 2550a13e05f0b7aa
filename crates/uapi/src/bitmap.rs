//! A bitmap of pages in a program's memory (`drivers/iommu/iommufd/iova_bitmap.c`): bits are only ever
//! added.

use ioasid_core::AddrRange;

use crate::{CallError, Program, memory};

/// Bytes of the program's bitmap that are changed at a time.
const WINDOW: usize = 4096;
const WINDOW_BITS: u64 = WINDOW as u64 * 8;

/// The program's bitmap, which bits are added to in ascending order.
pub(crate) struct Bitmap<'a> {
    program: &'a dyn Program,
    data: u64,
    /// The address that the first bit is for.
    iova: u64,
    /// Of the bytes that a bit is for.
    shift: u32,
    /// Which window is being filled.
    window: u64,
    /// Bytes of it that have a bit, from its start.
    touched: usize,
    bits: Box<[u8; WINDOW]>,
}

impl<'a> Bitmap<'a> {
    /// At the address `data`, with a bit for each `page_size` bytes (a power of two) from `iova`.
    pub(crate) fn new(program: &'a dyn Program, data: u64, iova: u64, page_size: u64) -> Self {
        Bitmap {
            program,
            data,
            iova,
            shift: page_size.trailing_zeros(),
            window: 0,
            touched: 0,
            bits: Box::new([0; WINDOW]),
        }
    }

    /// Sets the bits of `range`.
    pub(crate) fn set(&mut self, range: AddrRange) -> Result<(), CallError> {
        let bit_of = |address: u64| address.saturating_sub(self.iova) >> self.shift;
        let (mut bit, last) = (bit_of(range.start()), bit_of(range.last()));
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
    pub(crate) fn flush(&mut self) -> Result<(), CallError> {
        if self.touched == 0 {
            return Ok(());
        }
        let at = memory::address(self.data, self.window * WINDOW as u64)?;
        let mut theirs = vec![0; self.touched];
        memory::read(self.program, at, &mut theirs)?;
        for (theirs, ours) in theirs.iter_mut().zip(self.bits.iter()) {
            *theirs |= ours;
        }
        memory::write(self.program, at, &theirs)?;
        self.bits.fill(0);
        self.touched = 0;
        Ok(())
    }
}
