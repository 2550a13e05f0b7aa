//! Reads and writes of a device file: which region, and in what pieces
//! (`drivers/vfio/pci/vfio_pci_rdwr.c`).

use super::VfioDevice;
use crate::{
    error::{Error, Result},
    pci::{Bar, ConfigEffect, spec::MSIX_ENTRY},
    region::RegionIndex,
};

/// Bytes of one store to a BAR with wide stores.
const WIDE: u64 = 64;

/// Whether the file offset lies in a BAR: such accesses run side by side.
pub(super) fn is_register(offset: u64) -> bool {
    matches!(RegionIndex::at(offset), Ok((RegionIndex::Bar(_), _)))
}

/// One piece of an access to a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// For the model: 1, 2, 4, 8 or 64 bytes.
    Register(usize),
    /// On the MSI-X table: reads as ones, ignores writes.
    Table(usize),
}

/// A BAR and the part of it that programs do not reach.
struct Layout {
    bar: Bar,
    table: std::ops::Range<u64>,
}

impl Layout {
    /// Bytes of the largest store that the model takes.
    fn widest_store(&self) -> u64 {
        if self.bar.wide_stores { WIDE } else { 8 }
    }

    /// The piece at `offset` when `left` bytes are left.
    fn piece(&self, offset: u64, left: usize, widest: u64) -> Piece {
        let until = if offset < self.table.start {
            self.table.start - offset
        } else if offset < self.table.end {
            let rest = usize::try_from(self.table.end - offset).unwrap_or(usize::MAX);
            return Piece::Table(left.min(rest));
        } else {
            u64::MAX
        };
        let fits = |size: &u64| *size <= until.min(left as u64) && offset.is_multiple_of(*size);
        let sizes = [WIDE, 8, 4, 2, 1].into_iter();
        let size = sizes.filter(|size| *size <= widest).find(fits);
        Piece::Register(size.unwrap_or(1) as usize)
    }
}

impl VfioDevice {
    /// Reads at a file offset, with the gate held.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        match RegionIndex::at(offset)? {
            (RegionIndex::Config, offset) => {
                self.model.function().read_config(offset, data)?;
                Ok(data.len())
            }
            (RegionIndex::Bar(bar), offset) => self.read_bar(bar, offset, data),
            (RegionIndex::Rom | RegionIndex::Vga, _) => Err(Error::NoSuchIndex),
        }
    }

    /// Writes at a file offset, with the gate held: exclusively outside BARs.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        match RegionIndex::at(offset)? {
            (RegionIndex::Config, offset) => {
                self.write_config(offset, data)?;
                Ok(data.len())
            }
            (RegionIndex::Bar(bar), offset) => self.write_bar(bar, offset, data),
            (RegionIndex::Rom | RegionIndex::Vga, _) => Err(Error::NoSuchIndex),
        }
    }

    /// Writes configuration space, with the gate held exclusively.
    fn write_config(&self, offset: u64, data: &[u8]) -> Result<()> {
        let function = self.model.function();
        if function.write_config(offset, data)? == ConfigEffect::Reset {
            self.reset_model();
        }
        Ok(())
    }

    /// Writes configuration space as the host may at any time (`config` in sysfs), whoever uses the
    /// device.
    ///
    /// # Errors
    /// [`Error::BeyondConfig`] if the access passes the end; nothing is written then.
    pub fn write_config_by_host(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _exclusive = self.exclusive();
        self.write_config(offset, data)
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<usize> {
        let layout = self.layout(bar)?;
        let count = clip(offset, data.len(), layout.bar.size)?;
        let mut rest = data.get_mut(..count).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let piece = layout.piece(at, rest.len(), 8);
            let (Piece::Register(size) | Piece::Table(size)) = piece;
            let Some((now, later)) = rest.split_at_mut_checked(size) else {
                break;
            };
            match piece {
                Piece::Table(_) => now.fill(0xff),
                Piece::Register(_) => {
                    self.expect_answer(bar)?;
                    self.read_register(bar, at, now);
                }
            }
            at += size as u64;
            rest = later;
        }
        Ok(count)
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Result<usize> {
        let layout = self.layout(bar)?;
        let count = clip(offset, data.len(), layout.bar.size)?;
        let mut rest = data.get(..count).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let piece = layout.piece(at, rest.len(), layout.widest_store());
            let (Piece::Register(size) | Piece::Table(size)) = piece;
            let Some((now, later)) = rest.split_at_checked(size) else {
                break;
            };
            if let Piece::Register(_) = piece {
                self.expect_answer(bar)?;
                self.write_register(bar, at, now);
            }
            at += size as u64;
            rest = later;
        }
        Ok(count)
    }

    /// A load from a mapping, which reaches the MSI-X table too: it reads as after a reset, masked and
    /// without addresses, since its messages are the host's.
    pub(super) fn load(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<()> {
        let layout = self.layout(bar)?;
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let piece = layout.piece(at, rest.len(), 8);
            let (Piece::Register(size) | Piece::Table(size)) = piece;
            let Some((now, later)) = rest.split_at_mut_checked(size) else {
                break;
            };
            match piece {
                Piece::Table(_) => {
                    for (byte, at) in now.iter_mut().zip(at - layout.table.start..) {
                        *byte = u8::from(at % MSIX_ENTRY == MSIX_ENTRY - 4);
                    }
                }
                Piece::Register(_) => self.read_register(bar, at, now),
            }
            at += size as u64;
            rest = later;
        }
        Ok(())
    }

    /// A store to a mapping. The MSI-X table ignores it.
    pub(super) fn store(&self, bar: u8, offset: u64, data: &[u8]) -> Result<()> {
        let layout = self.layout(bar)?;
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let piece = layout.piece(at, rest.len(), layout.widest_store());
            let (Piece::Register(size) | Piece::Table(size)) = piece;
            let Some((now, later)) = rest.split_at_checked(size) else {
                break;
            };
            if let Piece::Register(_) = piece {
                self.write_register(bar, at, now);
            }
            at += size as u64;
            rest = later;
        }
        Ok(())
    }

    /// A store by an eventfd.
    pub(super) fn store_at(&self, bar: u8, offset: u64, data: &[u8]) -> Result<()> {
        self.expect_answer(bar)?;
        self.store(bar, offset, data)
    }

    /// One access of the model's. No interrupt is ever pending: a vector that nobody listens to drops
    /// it.
    fn read_register(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.is_pending_bits(bar, offset) {
            data.fill(0);
        } else {
            self.model.read(bar, offset, data);
        }
    }

    fn write_register(&self, bar: u8, offset: u64, data: &[u8]) {
        if !self.is_pending_bits(bar, offset) {
            self.model.write(bar, offset, data);
        }
    }

    /// Whether the offset belongs to MSI-X and not to the model.
    pub(super) fn is_msix(&self, bar: u8, offset: u64) -> bool {
        let table = self.layout(bar).map_or(0..0, |layout| layout.table);
        table.contains(&offset) || self.is_pending_bits(bar, offset)
    }

    fn layout(&self, bar: u8) -> Result<Layout> {
        let function = self.model.function();
        let msix = function.msix().filter(|msix| msix.bar == bar);
        Ok(Layout {
            bar: function.bar(bar).ok_or(Error::NoSuchIndex)?,
            table: msix.map_or(0..0, |msix| msix.table..msix.table + msix.table_bytes()),
        })
    }

    fn is_pending_bits(&self, bar: u8, offset: u64) -> bool {
        self.model.function().msix().is_some_and(|msix| {
            msix.bar == bar && (msix.pending..msix.pending + msix.pending_bytes()).contains(&offset)
        })
    }

    /// I/O ports are not memory: what enables that does not concern them.
    fn expect_answer(&self, bar: u8) -> Result<()> {
        match self.model.function().bar(bar) {
            Some(bar) if bar.is_io => Ok(()),
            _ => self.expect_memory(),
        }
    }

    pub(super) fn expect_memory(&self) -> Result<()> {
        if self.model.function().memory_enabled() {
            Ok(())
        } else {
            Err(Error::MemoryDisabled)
        }
    }
}

/// How many of `len` bytes at `offset` lie in a region of `size` bytes.
fn clip(offset: u64, len: usize, size: u64) -> Result<usize> {
    match size.checked_sub(offset) {
        None | Some(0) => Err(Error::BeyondRegion),
        Some(rest) => Ok(len.min(usize::try_from(rest).unwrap_or(usize::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(layout: &Layout, mut at: u64, mut left: usize, widest: u64) -> Vec<Piece> {
        let mut found = Vec::new();
        while left > 0 {
            let piece = layout.piece(at, left, widest);
            let (Piece::Register(size) | Piece::Table(size)) = piece;
            found.push(piece);
            at += size as u64;
            left -= size;
        }
        found
    }

    #[test]
    fn accesses_split_into_the_largest_aligned_pieces() {
        use Piece::{Register, Table};
        let layout = Layout {
            bar: Bar::memory64(0x4000),
            table: 0x2000..0x2090,
        };
        assert_eq!(pieces(&layout, 1, 16, 8), [1, 2, 4, 8, 1].map(Register),);
        assert_eq!(pieces(&layout, 0, 8, 8), [Register(8)]);
        assert_eq!(
            pieces(&layout, 0x1ffc, 0x9c, 8),
            [Register(4), Table(0x90), Register(8)],
        );
        assert_eq!(pieces(&layout, 0x2004, 8, 8), [Table(8)]);
    }

    #[test]
    fn aligned_64_bytes_are_one_store_where_stores_are_wide() {
        use Piece::Register;
        let layout = Layout {
            bar: Bar::memory64(0x4000),
            table: 0..0,
        };
        assert_eq!(pieces(&layout, 0x40, 128, 64), [Register(64); 2]);
        assert_eq!(pieces(&layout, 0x40, 64, 8), [Register(8); 8]);
        let unaligned = pieces(&layout, 0x48, 64, 64);
        assert_eq!(unaligned, [Register(8); 8]);
    }

    #[test]
    fn regions_clip_and_end() {
        assert_eq!(clip(0xff8, 64, 0x1000), Ok(8));
        assert_eq!(clip(0x1000, 1, 0x1000), Err(Error::BeyondRegion));
        assert_eq!(clip(u64::MAX, 1, 0x1000), Err(Error::BeyondRegion));
    }
}
