//! The allocator of I/O virtual addresses for the DMA API: top down, below 4 GiB first, as the
//! kernel does for PCI devices (drivers/iommu/dma-iommu.c).

use std::collections::BTreeMap;

use ioasid_core::{AddrRange, memory::PAGE_SIZE};

/// The last address that a device with 32-bit address registers reaches.
const LAST_32BIT: u64 = u32::MAX as u64;

/// Free ranges by first address; they neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IovaAllocator {
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// All of `aperture` except `reserved` and the first page, so that no mapping is at 0.
    pub(crate) fn new(aperture: AddrRange, reserved: impl IntoIterator<Item = AddrRange>) -> Self {
        let mut allocator = IovaAllocator {
            free: BTreeMap::from([(aperture.start(), aperture.last())]),
        };
        let first_page = AddrRange::new(0, PAGE_SIZE - 1);
        for range in reserved.into_iter().chain(first_page) {
            allocator.carve(widen(range));
        }
        allocator
    }

    /// Takes `range` out of every free range that it touches.
    fn carve(&mut self, range: AddrRange) {
        let hit: Vec<AddrRange> = self
            .free
            .iter()
            .filter_map(|(start, last)| AddrRange::new(*start, *last))
            .filter(|free| free.overlaps(range))
            .collect();
        for free in hit {
            self.free.remove(&free.start());
            if free.start() < range.start() {
                self.free.insert(free.start(), range.start() - 1);
            }
            if range.last() < free.last() {
                self.free.insert(range.last() + 1, free.last());
            }
        }
    }

    /// `len` bytes at a multiple of `align` (a power of two); both multiples of the page size.
    pub(crate) fn alloc(&mut self, len: u64, align: u64) -> Option<AddrRange> {
        let range = [LAST_32BIT, u64::MAX]
            .into_iter()
            .find_map(|limit| self.find(len, align, limit))?;
        self.carve(range);
        Some(range)
    }

    fn find(&self, len: u64, align: u64, limit: u64) -> Option<AddrRange> {
        self.free.iter().rev().find_map(|(first, last)| {
            let last = (*last).min(limit);
            let room = last.checked_sub(len.checked_sub(1)?)?;
            let start = room & !(align - 1);
            (start >= *first).then(|| AddrRange::from_len(start, len))?
        })
    }

    /// Gives back what [`IovaAllocator::alloc`] gave.
    pub(crate) fn free(&mut self, range: AddrRange) {
        let (mut start, mut last) = (range.start(), range.last());
        let before = self.free.range(..start).next_back();
        if let Some((&first, &end)) = before
            && end.checked_add(1) == Some(start)
        {
            self.free.remove(&first);
            start = first;
        }
        if let Some(next) = last.checked_add(1)
            && let Some(end) = self.free.remove(&next)
        {
            last = end;
        }
        self.free.insert(start, last);
    }
}

/// The range rounded outwards to whole pages.
fn widen(range: AddrRange) -> AddrRange {
    let in_page = PAGE_SIZE - 1;
    AddrRange::new(range.start() & !in_page, range.last() | in_page).unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aperture() -> AddrRange {
        AddrRange::new(0, (1 << 48) - 1).unwrap()
    }

    #[test]
    fn addresses_come_top_down_below_4_gib_and_avoid_reserved_ranges() {
        let msi = AddrRange::new(0xfee0_0000, 0xfeef_ffff).unwrap();
        let mut iovas = IovaAllocator::new(aperture(), [msi]);
        let mut seen = Vec::new();
        for _ in 0..64 {
            let range = iovas.alloc(1 << 20, 1 << 20).unwrap();
            assert!(
                range.last() <= LAST_32BIT && !range.overlaps(msi),
                "{range}"
            );
            assert!(seen.iter().all(|other: &AddrRange| !other.overlaps(range)));
            seen.push(range);
        }
    }

    #[test]
    fn freed_addresses_merge_back_to_the_start() {
        let mut iovas = IovaAllocator::new(aperture(), []);
        let fresh = iovas.clone();
        let mut taken: Vec<_> = (1..200_u64)
            .filter_map(|i| iovas.alloc(i * PAGE_SIZE, PAGE_SIZE))
            .collect();
        assert_eq!(taken.len(), 199);
        while let Some(range) = (!taken.is_empty()).then(|| taken.swap_remove(taken.len() / 2)) {
            iovas.free(range);
        }
        assert_eq!(iovas, fresh);
    }

    #[test]
    fn a_full_space_gives_nothing_and_never_address_0() {
        let small = AddrRange::new(0, 0x3fff).unwrap();
        let mut iovas = IovaAllocator::new(small, []);
        assert!(iovas.alloc(0x4000, 0x1000).is_none());
        assert_eq!(iovas.alloc(0x3000, 0x1000), AddrRange::new(0x1000, 0x3fff));
        assert!(iovas.alloc(0x1000, 0x1000).is_none());
    }

    #[test]
    fn the_last_page_of_the_64_bit_space_can_be_allocated_and_freed() {
        let top = AddrRange::new(u64::MAX - 0x1fff, u64::MAX).unwrap();
        let mut iovas = IovaAllocator::new(top, []);
        let fresh = iovas.clone();
        let a = iovas.alloc(0x1000, 0x1000).unwrap();
        let b = iovas.alloc(0x1000, 0x1000).unwrap();
        assert_eq!(a.last(), u64::MAX);
        iovas.free(a);
        iovas.free(b);
        assert_eq!(iovas, fresh);
    }
}
