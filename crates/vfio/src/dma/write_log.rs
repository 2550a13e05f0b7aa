//! Which pages a device has written: a log that grows with what is written, not with what is watched.

use std::collections::BTreeMap;

use ioasid_core::{AddrRange, sync::Mutex};
use ioasid_iommu::WriteSink;

use crate::base::error::DmaLogError;

/// Ranges of one log: as many as fit into a page (`LOG_MAX_RANGES`, `drivers/vfio/vfio_main.c`).
pub const MAX_RANGES: u32 = 256;

/// The smallest page of a log, in bytes: that of every page table.
pub const MIN_PAGE: u64 = 4096;

/// The largest, in bytes. A wish for larger ones gets these.
const MAX_PAGE: u64 = 1 << 30;

/// Words of a chunk of the bitmap: 4096 pages.
const WORDS: usize = 64;
const CHUNK: u64 = WORDS as u64 * 64;

/// Chunks of one log: 64 MiB of bits.
const MAX_CHUNKS: usize = 1 << 17;

/// The ranges that a program wants to be watched, checked one after the other.
#[derive(Clone, Debug)]
pub struct LogRanges {
    page_size: u64,
    ranges: BTreeMap<u64, AddrRange>,
}

impl LogRanges {
    /// None yet, with pages of `page_size` bytes.
    pub fn new(page_size: u64) -> Self {
        LogRanges {
            page_size,
            ranges: BTreeMap::new(),
        }
    }

    /// Every address.
    pub fn all(page_size: u64) -> Self {
        LogRanges {
            page_size,
            ranges: BTreeMap::from([(0, AddrRange::ALL)]),
        }
    }

    /// `length` bytes from `iova`.
    ///
    /// # Errors
    /// In this order: [`DmaLogError::Misaligned`], [`DmaLogError::Overflow`], [`DmaLogError::Empty`],
    /// [`DmaLogError::Overlaps`], [`DmaLogError::TooManyRanges`].
    pub fn add(&mut self, iova: u64, length: u64) -> Result<(), DmaLogError> {
        let rest = self.page_size.wrapping_sub(1);
        if iova & rest != 0 || length & rest != 0 {
            return Err(DmaLogError::Misaligned {
                iova,
                length,
                page_size: self.page_size,
            });
        }
        let range = addresses(iova, length)?;
        let before = self.ranges.range(..=range.last()).next_back();
        if let Some((_, before)) = before.filter(|(_, before)| before.overlaps(range)) {
            let other = *before;
            return Err(DmaLogError::Overlaps { range, other });
        }
        if self.ranges.len() >= MAX_RANGES as usize {
            return Err(DmaLogError::TooManyRanges { limit: MAX_RANGES });
        }
        self.ranges.insert(iova, range);
        Ok(())
    }
}

/// `length` bytes from `iova`, which must not reach the end of all addresses.
fn addresses(iova: u64, length: u64) -> Result<AddrRange, DmaLogError> {
    let end = iova.checked_add(length);
    end.ok_or(DmaLogError::Overflow { iova, length })?;
    AddrRange::from_len(iova, length).ok_or(DmaLogError::Empty { iova })
}

/// The range of a report: `length` bytes from `iova`, in pages of `page_size` bytes.
///
/// # Errors
/// [`DmaLogError::PageSize`] if the size of a page is no power of two from [`MIN_PAGE`] on,
/// [`DmaLogError::Overflow`], [`DmaLogError::Empty`].
pub fn report_range(iova: u64, length: u64, page_size: u64) -> Result<AddrRange, DmaLogError> {
    if page_size < MIN_PAGE || !page_size.is_power_of_two() {
        return Err(DmaLogError::PageSize { bytes: page_size });
    }
    addresses(iova, length)
}

/// The pages that a device has written since the last report.
///
/// Every report is exact to a page of its own size. It takes memory for what is written alone,
/// and no more than 64 MiB: a device that writes more chunks of 4096 pages than that overruns it.
#[derive(Debug)]
pub struct WriteLog {
    /// Of a page.
    shift: u32,
    /// In order, without overlaps.
    ranges: Vec<AddrRange>,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    /// By the number of their first page, divided by that of a chunk's pages.
    chunks: BTreeMap<u64, Box<[u64; WORDS]>>,
    /// Something was written that there was no room for.
    overrun: bool,
}

impl WriteLog {
    /// An empty log of what is written in `ranges`.
    ///
    /// # Errors
    /// [`DmaLogError::NoRange`], or [`DmaLogError::PageSize`] if the size of a page is no power of two.
    pub fn new(ranges: LogRanges) -> Result<Self, DmaLogError> {
        if ranges.ranges.is_empty() {
            return Err(DmaLogError::NoRange);
        }
        if !ranges.page_size.is_power_of_two() {
            let bytes = ranges.page_size;
            return Err(DmaLogError::PageSize { bytes });
        }
        let page_size = ranges.page_size.clamp(MIN_PAGE, MAX_PAGE);
        Ok(WriteLog {
            shift: page_size.trailing_zeros(),
            ranges: ranges.ranges.into_values().collect(),
            pages: Mutex::default(),
        })
    }

    /// Bytes of a page of this log.
    pub fn page_size(&self) -> u64 {
        1 << self.shift
    }

    /// Whether all of `range` is watched. Ranges that touch count as one.
    pub fn watches(&self, range: AddrRange) -> bool {
        let first = self.ranges.partition_point(|r| r.last() < range.start());
        let mut next = range.start();
        for watched in self.ranges.get(first..).unwrap_or_default() {
            if !watched.contains(next) {
                return false;
            }
            match watched.last().checked_add(1) {
                Some(after) if after <= range.last() => next = after,
                _ => return true,
            }
        }
        false
    }

    /// Takes the pages in `range` that were written out of the log and reports each run of them to
    /// `found`, in order, as far as it lies in `range`. A page of which only a part is in `range` stays
    /// in the log too.
    ///
    /// # Errors
    /// [`DmaLogError::Overrun`]: nothing is known any more, all memory counts as written.
    pub fn take(
        &self,
        range: AddrRange,
        found: &mut dyn FnMut(AddrRange),
    ) -> Result<(), DmaLogError> {
        let (first, last) = (range.start() >> self.shift, range.last() >> self.shift);
        // Pages of which all is in the range.
        let inner = |page: u64| {
            let own = self.page(page);
            range.covers(own)
        };
        let mut next = first / CHUNK;
        while next <= last / CHUNK {
            // The lock is held for one chunk at a time: engines wait for it.
            let mut pages = self.pages.lock();
            if pages.overrun {
                return Err(DmaLogError::Overrun);
            }
            let chunks = &mut pages.chunks;
            let Some((&number, chunk)) = chunks.range_mut(next..=last / CHUNK).next() else {
                break;
            };
            let base = number * CHUNK;
            let mut taken = [0; WORDS];
            let mut empty = true;
            for (word, (bits, taken)) in (0_u64..).zip(chunk.iter_mut().zip(&mut taken)) {
                let from = base + word * 64;
                *taken = *bits & mask(from, first, last);
                let edges = [first, last].into_iter().filter(|page| !inner(*page));
                let kept = edges.fold(0, |kept, page| kept | mask(from, page, page));
                *bits &= !*taken | kept;
                empty &= *bits == 0;
            }
            if empty {
                chunks.remove(&number);
            }
            drop(pages);
            self.report(base, &taken, range, found);
            next = number + 1;
        }
        Ok(())
    }

    /// The runs of pages in a chunk.
    fn report(
        &self,
        base: u64,
        taken: &[u64; WORDS],
        range: AddrRange,
        found: &mut dyn FnMut(AddrRange),
    ) {
        let mut run: Option<(u64, u64)> = None;
        let mut end = |run: Option<(u64, u64)>| {
            let pages = run.and_then(|(first, last)| {
                AddrRange::new(self.page(first).start(), self.page(last).last())
            });
            if let Some(clipped) = pages.and_then(|pages| pages.intersect(range)) {
                found(clipped);
            }
        };
        for (word, bits) in (0_u64..).zip(taken) {
            let mut rest = *bits;
            while rest != 0 {
                let page = base + word * 64 + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                run = match run {
                    Some((first, last)) if last + 1 == page => Some((first, page)),
                    before => {
                        end(before);
                        Some((page, page))
                    }
                };
            }
        }
        end(run);
    }

    /// The addresses of a page.
    fn page(&self, page: u64) -> AddrRange {
        let start = page << self.shift;
        AddrRange::new(start, start | (self.page_size() - 1)).unwrap_or(AddrRange::ALL)
    }
}

impl Pages {
    /// Pages `first..=last` are written.
    fn set(&mut self, first: u64, last: u64) {
        for number in first / CHUNK..=last / CHUNK {
            let room = self.chunks.len() < MAX_CHUNKS;
            let chunk = match self.chunks.get_mut(&number) {
                Some(chunk) => chunk,
                None if room => self
                    .chunks
                    .entry(number)
                    .or_insert_with(|| Box::new([0; WORDS])),
                None => {
                    self.overrun = true;
                    return;
                }
            };
            for (word, bits) in (0_u64..).zip(chunk.iter_mut()) {
                *bits |= mask(number * CHUNK + word * 64, first, last);
            }
        }
    }
}

/// The bits of the pages `first..=last` in the word whose first page is `from`.
fn mask(from: u64, first: u64, last: u64) -> u64 {
    let until = from.saturating_add(63);
    if last < from || first > until {
        return 0;
    }
    let low = first.saturating_sub(from);
    let high = until.saturating_sub(last).min(63);
    (u64::MAX << low) & (u64::MAX >> high)
}

impl WriteSink for WriteLog {
    fn wrote(&self, range: AddrRange) {
        let first = self.ranges.partition_point(|r| r.last() < range.start());
        for watched in self.ranges.get(first..).unwrap_or_default() {
            let Some(written) = watched.intersect(range) else {
                return;
            };
            let pages = (written.start() >> self.shift, written.last() >> self.shift);
            self.pages.lock().set(pages.0, pages.1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn bytes(start: u64, len: u64) -> AddrRange {
        AddrRange::from_len(start, len).unwrap()
    }

    fn log(page_size: u64, ranges: &[(u64, u64)]) -> WriteLog {
        let mut wanted = LogRanges::new(page_size);
        for (iova, length) in ranges {
            wanted.add(*iova, *length).unwrap();
        }
        WriteLog::new(wanted).unwrap()
    }

    fn taken(log: &WriteLog, range: AddrRange) -> Vec<AddrRange> {
        let mut all = Vec::new();
        log.take(range, &mut |run| all.push(run)).unwrap();
        all
    }

    #[test]
    fn ranges_are_refused_as_the_kernel_refuses_them() {
        let mut ranges = LogRanges::new(4096);
        for (iova, length) in [(1, 4096), (0, 4097)] {
            let misaligned = DmaLogError::Misaligned {
                iova,
                length,
                page_size: 4096,
            };
            assert_eq!(ranges.add(iova, length), Err(misaligned));
        }
        assert_eq!(ranges.add(0, 0), Err(DmaLogError::Empty { iova: 0 }));
        let last_page = u64::MAX - 4095;
        let overflow = DmaLogError::Overflow {
            iova: last_page,
            length: 4096,
        };
        assert_eq!(ranges.add(last_page, 4096), Err(overflow));
        ranges.add(0x4000, 0x4000).unwrap();
        for (iova, length) in [
            (0x4000, 0x1000),
            (0x7000, 0x2000),
            (0x3000, 0x2000),
            (0, 0x10_000),
        ] {
            assert_eq!(
                ranges.add(iova, length),
                Err(DmaLogError::Overlaps {
                    range: bytes(iova, length),
                    other: bytes(0x4000, 0x4000),
                }),
                "{iova:#x}"
            );
        }
        ranges.add(0x3000, 0x1000).unwrap();
        for n in 2..u64::from(MAX_RANGES) {
            ranges.add(n << 20, 4096).unwrap();
        }
        assert_eq!(
            ranges.add(1 << 40, 4096),
            Err(DmaLogError::TooManyRanges { limit: 256 })
        );
        assert!(WriteLog::new(LogRanges::new(4096)).is_err(), "no range");
        let mut odd = LogRanges::new(0x3000);
        odd.add(0, 0).unwrap_err();
        assert!(WriteLog::new(LogRanges::all(0x3000)).is_err());
        assert_eq!(log(512, &[(0, 512)]).page_size(), MIN_PAGE);
    }

    #[test]
    fn ranges_that_touch_are_watched_as_one() {
        let log = log(
            4096,
            &[(0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x1000)],
        );
        assert!(log.watches(bytes(0x1800, 0x1000)));
        assert!(!log.watches(bytes(0x1800, 0x2000)));
        assert!(!log.watches(bytes(0x3fff, 2)));
        assert!(!log.watches(bytes(0x4fff, 2)));
        assert!(!log.watches(bytes(0, 0x1000)));
        assert!(
            WriteLog::new(LogRanges::all(4096))
                .unwrap()
                .watches(AddrRange::ALL)
        );
    }

    #[test]
    fn the_last_addresses_are_pages_too() {
        let log = WriteLog::new(LogRanges::all(4096)).unwrap();
        log.wrote(AddrRange::new(u64::MAX - 4096, u64::MAX).unwrap());
        let all = taken(&log, AddrRange::ALL);
        assert_eq!(all, [AddrRange::new(u64::MAX - 8191, u64::MAX).unwrap()]);
        assert_eq!(taken(&log, AddrRange::ALL), []);
    }

    #[test]
    fn a_page_that_is_asked_for_in_part_stays() {
        let log = log(0x4000, &[(0, 0x10_0000)]);
        log.wrote(bytes(0x5000, 1));
        assert_eq!(taken(&log, bytes(0x6000, 0x1000)), [bytes(0x6000, 0x1000)]);
        assert_eq!(taken(&log, bytes(0, 0x8000)), [bytes(0x4000, 0x4000)]);
        assert_eq!(taken(&log, bytes(0, 0x8000)), []);
    }

    #[test]
    fn a_log_that_is_full_says_so() {
        let log = WriteLog::new(LogRanges::all(4096)).unwrap();
        let chunk = CHUNK * 4096;
        for n in 0..=MAX_CHUNKS as u64 {
            log.wrote(bytes(n * chunk, 1));
        }
        let result = log.take(bytes(0, 4096), &mut |_| {});
        assert_eq!(result, Err(DmaLogError::Overrun));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wrote(u64, u64),
        Take(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Near the edges of chunks, ranges and pages.
        let place = prop_oneof![
            0_u64..0x2_0000,
            0xff_0000_u64..0x101_0000,
            0x2000_0000_u64..0x2000_8000
        ];
        let length = prop_oneof![1_u64..64, 0xff0_u64..0x1010, 1_u64..0x3_0000];
        (place, length, any::<bool>()).prop_map(|(at, len, write)| match write {
            true => Step::Wrote(at, len),
            false => Step::Take(at, len),
        })
    }

    proptest! {
        #[test]
        fn a_log_is_a_set_of_pages(steps in prop::collection::vec(step(), 1..60), shift in 12_u32..15) {
            let size = 1_u64 << shift;
            let watched = [(0, 0x1_0000), (0x1_8000, 0x100_0000), (0x2000_0000, 0x4000)];
            let log = log(size, &watched);
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Wrote(at, len) => {
                        log.wrote(bytes(at, len));
                        for range in watched.map(|(start, len)| bytes(start, len)) {
                            let Some(part) = range.intersect(bytes(at, len)) else {
                                continue;
                            };
                            model.extend(part.start() >> shift..=part.last() >> shift);
                        }
                    }
                    Step::Take(at, len) => {
                        let range = bytes(at, len);
                        let mut pages = BTreeSet::new();
                        for run in taken(&log, range) {
                            prop_assert!(range.covers(run));
                            pages.extend(run.start() >> shift..=run.last() >> shift);
                        }
                        let all: BTreeSet<u64> = (at >> shift..=(at + len - 1) >> shift).collect();
                        let expected: BTreeSet<u64> = model.intersection(&all).copied().collect();
                        prop_assert_eq!(pages, expected);
                        model.retain(|page| !range.covers(bytes(page << shift, size)));
                    }
                }
            }
        }
    }
}
