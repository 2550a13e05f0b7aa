//! Accesses to the regions of a device: by reads and writes of its file, by mappings, and by DMA of other
//! devices; which region, and in what pieces (`drivers/vfio/pci/vfio_pci_rdwr.c`; `vfio_pci_core_mmap`
//! and its fault handlers, `drivers/vfio/pci/vfio_pci_core.c`).
//!
//! Nothing here maps memory: every access to a mapping arrives as a call, one for each access of the
//! processor. An access that fails is what a program sees as SIGBUS. Everything but the checks expects
//! the gate to be held.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::observe::RegisterAccess;

use super::{
    gate::Gate,
    hardware::Hardware,
    low_power::LowPower,
    region::{RegionIndex, RegionInfo},
    watched::Watched,
};
use crate::{
    base::error::RegionError,
    pci::{Bar, ConfigEffect, Function, spec::MSIX_ENTRY},
};

/// Bytes of one store to a BAR with wide stores.
const WIDE: u64 = 64;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What a program asks to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// File offset of the first byte, a multiple of the page size.
    pub offset: u64,
    /// Bytes; a part of a page counts as a page.
    pub len: u64,
    /// `MAP_SHARED` (or `MAP_SHARED_VALIDATE`).
    pub shared: bool,
    /// The file is open for writing. A shared mapping of one that is not is none for the kernel.
    pub writable: bool,
}

/// A part of a BAR that may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRange {
    /// The BAR.
    pub bar: u8,
    /// Offset of the first byte in the BAR, a multiple of the page size.
    pub offset: u64,
    /// Bytes, whole pages. The last page may reach beyond a BAR that is smaller than it.
    pub len: u64,
}

/// Whether the file offset lies in a BAR: such accesses run side by side.
pub(crate) fn is_register(offset: u64) -> bool {
    matches!(RegionIndex::at(offset), Ok((RegionIndex::Bar(_), _)))
}

/// One piece of an access to a BAR, with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// For the model: 1, 2, 4, 8 or 64 bytes.
    Register(usize),
    /// On the MSI-X table.
    Table(usize),
}

impl Piece {
    const fn len(self) -> usize {
        match self {
            Piece::Register(len) | Piece::Table(len) => len,
        }
    }
}

/// A BAR and the part of it that programs do not reach.
struct Layout {
    bar: Bar,
    table: Range<u64>,
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

    /// The pieces of an access of `len` bytes at `offset`, in order, each with the bytes of the access
    /// that it is about.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
        widest: u64,
    ) -> impl Iterator<Item = (Range<usize>, Piece)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let left = len.checked_sub(done).filter(|left| *left > 0)?;
            let piece = self.piece(offset + done as u64, left, widest);
            let start = done;
            done += piece.len();
            Some((start..done, piece))
        })
    }
}

/// The regions of one device.
#[derive(Debug)]
pub(crate) struct Registers {
    hardware: Arc<Hardware>,
    gate: Arc<Gate>,
    power: LowPower,
    mappable: AtomicBool,
    watched: Watched,
}

impl Registers {
    pub(crate) fn new(hardware: &Arc<Hardware>, gate: &Arc<Gate>, watched: &Watched) -> Arc<Self> {
        Arc::new(Registers {
            hardware: Arc::clone(hardware),
            gate: Arc::clone(gate),
            power: LowPower::default(),
            mappable: AtomicBool::new(false),
            watched: watched.clone(),
        })
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether the device may sleep.
    pub(crate) fn power(&self) -> &LowPower {
        &self.power
    }

    pub(super) fn function(&self) -> &Function {
        self.hardware.function()
    }

    pub(crate) fn set_mappable(&self, mappable: bool) {
        self.mappable.store(mappable, Ordering::Release);
    }

    /// What REGION_INFO says of region `index`.
    pub(crate) fn info(&self, index: u32) -> Result<RegionInfo, RegionError> {
        let mappable = self.mappable.load(Ordering::Acquire);
        RegionIndex::new(index)?.info(self.function(), mappable)
    }

    /// Reads at a file offset.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, RegionError> {
        if data.is_empty() {
            return Ok(0);
        }
        let (region, offset) = RegionIndex::at(offset)?;
        let count = match region {
            RegionIndex::Config => {
                self.function().read_config(offset, data)?;
                data.len()
            }
            RegionIndex::Bar(bar) => self.read_bar(bar, offset, data)?,
            RegionIndex::Rom | RegionIndex::Vga => return Err(absent(region)),
        };
        let read = data.get(..count).unwrap_or_default();
        self.watched
            .access(RegisterAccess::Read, (region, offset), read);
        Ok(count)
    }

    /// Writes at a file offset, with the gate held exclusively outside BARs; the bytes, and what the
    /// caller has to do then.
    pub(crate) fn write(
        &self,
        offset: u64,
        data: &[u8],
    ) -> Result<(usize, ConfigEffect), RegionError> {
        if data.is_empty() {
            return Ok((0, ConfigEffect::None));
        }
        let (region, offset) = RegionIndex::at(offset)?;
        match region {
            RegionIndex::Config => {
                self.watched
                    .access(RegisterAccess::Write, (region, offset), data);
                let effect = self.function().write_config(offset, data)?;
                Ok((data.len(), effect))
            }
            RegionIndex::Bar(bar) => {
                self.watched
                    .access(RegisterAccess::Write, (region, offset), data);
                let count = self.write_bar(bar, offset, data)?;
                Ok((count, ConfigEffect::None))
            }
            RegionIndex::Rom | RegionIndex::Vga => Err(absent(region)),
        }
    }

    /// Looks at an access as a whole, before any part of it is made: one to configuration space that
    /// passes its end is refused (`vfio_pci_config_rw_single`), while one to a BAR is cut short.
    pub(crate) fn check_access(&self, offset: u64, len: u64) -> Result<(), RegionError> {
        let size = self.function().config_size();
        match RegionIndex::at(offset) {
            Ok((RegionIndex::Config, at)) if len > 0 && at.saturating_add(len) > size => {
                let offset = at;
                Err(RegionError::BeyondConfig { offset, len, size })
            }
            _ => Ok(()),
        }
    }

    /// The MSI-X table reads as ones.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<usize, RegionError> {
        let layout = self.layout(bar)?;
        let count = clip(bar, offset, data.len(), layout.bar.size)?;
        for (range, piece) in layout.pieces(offset, count, 8) {
            let at = offset + range.start as u64;
            let part = data.get_mut(range).unwrap_or_default();
            match piece {
                Piece::Table(_) => part.fill(0xff),
                Piece::Register(_) => {
                    self.expect_answer(bar)?;
                    self.read_register(bar, at, part);
                }
            }
        }
        Ok(count)
    }

    /// The MSI-X table ignores writes.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Result<usize, RegionError> {
        let layout = self.layout(bar)?;
        let count = clip(bar, offset, data.len(), layout.bar.size)?;
        for (range, piece) in layout.pieces(offset, count, layout.widest_store()) {
            let at = offset + range.start as u64;
            if let Piece::Register(_) = piece {
                self.expect_answer(bar)?;
                self.write_register(bar, at, data.get(range).unwrap_or_default());
            }
        }
        Ok(count)
    }

    /// Whether a range of the file may be mapped, and what it is.
    pub(crate) fn map_range(&self, request: MapRequest) -> Result<MapRange, RegionError> {
        if !request.shared || !request.writable {
            return Err(RegionError::PrivateMapping);
        }
        let not_mappable = RegionError::NotMappable {
            offset: request.offset,
            len: request.len,
        };
        if !request.offset.is_multiple_of(PAGE) {
            return Err(not_mappable);
        }
        let Ok((RegionIndex::Bar(bar), offset)) = RegionIndex::at(request.offset) else {
            return Err(not_mappable);
        };
        let info = self.info(bar.into())?;
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE);
        let len = pages(request.len).ok_or(not_mappable)?;
        let end = offset.checked_add(len).ok_or(not_mappable)?;
        if !info.mmap || pages(info.size).is_none_or(|size| end > size) {
            return Err(not_mappable);
        }
        Ok(MapRange { bar, offset, len })
    }

    /// A load from a mapping, at a file offset. Bytes behind the end of the BAR read as ones.
    pub(crate) fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), RegionError> {
        let (bar, offset, inside) = self.mapped(offset, data.len())?;
        let (registers, tail) = data.split_at_mut_checked(inside).unwrap_or_default();
        tail.fill(0xff);
        self.load_bar(bar, offset, registers)?;
        let region = RegionIndex::Bar(bar);
        self.watched
            .access(RegisterAccess::Load, (region, offset), data);
        Ok(())
    }

    /// A load from a mapping reaches the MSI-X table too: it reads as after a reset, masked and without
    /// addresses, since its messages are the host's.
    fn load_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), RegionError> {
        let layout = self.layout(bar)?;
        for (range, piece) in layout.pieces(offset, data.len(), 8) {
            let at = offset + range.start as u64;
            let part = data.get_mut(range).unwrap_or_default();
            match piece {
                Piece::Table(_) => {
                    for (byte, at) in part.iter_mut().zip(at - layout.table.start..) {
                        *byte = u8::from(at % MSIX_ENTRY == MSIX_ENTRY - 4);
                    }
                }
                Piece::Register(_) => self.read_register(bar, at, part),
            }
        }
        Ok(())
    }

    /// A store to a mapping, at a file offset.
    pub(crate) fn store(&self, offset: u64, data: &[u8]) -> Result<(), RegionError> {
        let (bar, offset, inside) = self.mapped(offset, data.len())?;
        self.store_bar(bar, offset, data.get(..inside).unwrap_or_default())
    }

    /// The MSI-X table ignores stores.
    fn store_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), RegionError> {
        let region = RegionIndex::Bar(bar);
        self.watched
            .access(RegisterAccess::Store, (region, offset), data);
        let layout = self.layout(bar)?;
        for (range, piece) in layout.pieces(offset, data.len(), layout.widest_store()) {
            let at = offset + range.start as u64;
            if let Piece::Register(_) = piece {
                self.write_register(bar, at, data.get(range).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// A store by an eventfd.
    pub(super) fn store_by_eventfd(
        &self,
        bar: u8,
        offset: u64,
        data: &[u8],
    ) -> Result<(), RegionError> {
        self.expect_answer(bar)?;
        self.store_bar(bar, offset, data)
    }

    /// A deferrable store to a mapping; whether the device took it.
    pub(crate) fn enqueue(&self, offset: u64, data: &[u8; 64]) -> Result<bool, RegionError> {
        let (bar, offset, inside) = self.mapped(offset, data.len())?;
        let region = RegionIndex::Bar(bar);
        self.watched
            .access(RegisterAccess::Store, (region, offset), data);
        let model = self.hardware.model();
        let aligned = offset.is_multiple_of(64) && inside == data.len();
        Ok(aligned && !self.is_msix(bar, offset) && model.enqueue(bar, offset, data))
    }

    /// The BAR at a file offset, the offset in it, and how many of `len` bytes lie in it. Its memory
    /// answers.
    fn mapped(&self, offset: u64, len: usize) -> Result<(u8, u64, usize), RegionError> {
        let not_mapped = RegionError::NotMapped {
            offset,
            len: len as u64,
        };
        let (RegionIndex::Bar(bar), offset) = RegionIndex::at(offset)? else {
            return Err(not_mapped);
        };
        let info = self.info(bar.into())?;
        let end = offset.checked_add(len as u64).ok_or(not_mapped)?;
        if !info.mmap || end > info.size.next_multiple_of(PAGE) {
            return Err(not_mapped);
        }
        if self.power.may_sleep() {
            return Err(RegionError::Asleep);
        }
        self.expect_memory()?;
        let inside = info.size.saturating_sub(offset);
        Ok((bar, offset, len.min(usize::try_from(inside).unwrap_or(len))))
    }

    /// One access of the model's. No interrupt is ever pending: a vector without a listener drops it.
    fn read_register(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.is_pending_bits(bar, offset) {
            data.fill(0);
        } else {
            self.hardware.model().read(bar, offset, data);
        }
    }

    fn write_register(&self, bar: u8, offset: u64, data: &[u8]) {
        if !self.is_pending_bits(bar, offset) {
            self.hardware.model().write(bar, offset, data);
        }
    }

    /// Whether the offset belongs to MSI-X and not to the model.
    fn is_msix(&self, bar: u8, offset: u64) -> bool {
        let table = self.layout(bar).map_or(0..0, |layout| layout.table);
        table.contains(&offset) || self.is_pending_bits(bar, offset)
    }

    fn layout(&self, bar: u8) -> Result<Layout, RegionError> {
        let function = self.function();
        let msix = function.msix().filter(|msix| msix.bar == bar);
        Ok(Layout {
            bar: function.bar(bar).ok_or(absent(RegionIndex::Bar(bar)))?,
            table: msix.map_or(0..0, |msix| msix.table..msix.table + msix.table_bytes()),
        })
    }

    fn is_pending_bits(&self, bar: u8, offset: u64) -> bool {
        self.function().msix().is_some_and(|msix| {
            msix.bar == bar && (msix.pending..msix.pending + msix.pending_bytes()).contains(&offset)
        })
    }

    /// I/O ports are not memory: what enables that does not concern them.
    fn expect_answer(&self, bar: u8) -> Result<(), RegionError> {
        match self.function().bar(bar) {
            Some(bar) if bar.is_io => Ok(()),
            _ => self.expect_memory(),
        }
    }

    fn expect_memory(&self) -> Result<(), RegionError> {
        if self.function().memory_enabled() {
            Ok(())
        } else {
            Err(RegionError::MemoryDisabled)
        }
    }
}

fn absent(region: RegionIndex) -> RegionError {
    let index = region.number();
    RegionError::Absent { index }
}

/// How many of `len` bytes at `offset` lie in a BAR of `size` bytes.
fn clip(bar: u8, offset: u64, len: usize, size: u64) -> Result<usize, RegionError> {
    match size.checked_sub(offset) {
        None | Some(0) => Err(RegionError::BeyondEnd {
            index: bar.into(),
            offset,
            size,
        }),
        Some(rest) => Ok(len.min(usize::try_from(rest).unwrap_or(usize::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(layout: &Layout, at: u64, len: usize, widest: u64) -> Vec<Piece> {
        let pieces = layout.pieces(at, len, widest);
        pieces.map(|(_, piece)| piece).collect()
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
        assert_eq!(clip(2, 0xff8, 64, 0x1000), Ok(8));
        for offset in [0x1000, u64::MAX] {
            let beyond = RegionError::BeyondEnd {
                index: 2,
                offset,
                size: 0x1000,
            };
            assert_eq!(clip(2, offset, 1, 0x1000), Err(beyond));
        }
    }
}
