//! When pages are pinned, how often, and when they are given back.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use ioasid_core::{
    Prot,
    host::Account,
    memory::{Extent, MemoryGone, OwnMemory, OwnPages, PageSource, PinBatch, PinError},
    spa::SpaSpace,
};
use ioasid_iommufd::{CopyArgs, Error, MapArgs, MapError};

use crate::machine::*;

/// Pages that get new system physical addresses at each pin, so that what is pinned can be counted.
#[derive(Debug)]
struct Counted {
    space: Arc<SpaSpace>,
    memory: Arc<OwnMemory>,
    pins: AtomicUsize,
    fault: bool,
    file: bool,
}

impl Counted {
    fn new(m: &Machine, len: u64) -> Arc<Self> {
        Arc::new(Self::build(m, len))
    }

    fn build(m: &Machine, len: u64) -> Self {
        Counted {
            space: Arc::clone(m.iommu.space()),
            memory: OwnMemory::new(len as usize),
            pins: AtomicUsize::new(0),
            fault: false,
            file: false,
        }
    }

    /// Addresses where nothing is mapped.
    fn unmapped(m: &Machine, len: u64) -> Arc<Self> {
        let mut pages = Self::build(m, len);
        pages.fault = true;
        Arc::new(pages)
    }

    fn file(m: &Machine, len: u64) -> Arc<Self> {
        let mut pages = Self::build(m, len);
        pages.file = true;
        Arc::new(pages)
    }

    fn pins(&self) -> usize {
        self.pins.load(Ordering::Relaxed)
    }
}

impl PageSource for Counted {
    fn size(&self) -> u64 {
        ioasid_core::memory::Backing::size(&*self.memory)
    }

    fn pin(&self, offset: u64, len: u64, _prot: Prot) -> Result<Vec<Extent>, PinError> {
        if self.fault {
            return Err(PinError::Fault);
        }
        self.pins.fetch_add(1, Ordering::Relaxed);
        let range = self.space.register(self.memory.clone(), 0);
        let range = range.map_err(|_| PinError::NoMemory)?;
        let spa = range.start() + offset;
        let hold = Arc::new(range);
        Ok(vec![Extent { spa, len, hold }])
    }

    fn is_file(&self) -> bool {
        self.file
    }

    fn read(&self, _offset: u64, _dst: &mut [u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }

    fn write(&self, _offset: u64, _src: &[u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }
}

#[test]
fn pages_are_pinned_by_the_first_domain_and_released_with_the_last() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    let pages = Counted::new(&m, 4 * PAGE);
    let args = MapArgs::fixed(0x10000, 4 * PAGE, Prot::RW);
    m.context.ioas_map(ioas, pages.clone(), args).unwrap();
    assert_eq!((pages.pins(), m.iommu.space().used_windows()), (0, 0));
    pdev.attach(ioas).unwrap();
    mdev.attach(ioas).unwrap();
    assert_eq!((pages.pins(), m.iommu.space().used_windows()), (1, 1));
    pdev.detach();
    assert_eq!(
        m.iommu.space().used_windows(),
        1,
        "the other still needs them"
    );
    mdev.detach();
    assert_eq!(m.iommu.space().used_windows(), 0);
    pdev.attach(ioas).unwrap();
    assert!(reaches(&pdev, 0x10000) && pages.pins() == 2);
    m.context.ioas_unmap_all(ioas).unwrap();
    assert_eq!(m.iommu.space().used_windows(), 0, "and so does an unmap");
}

#[test]
fn an_attach_to_many_mappings_is_all_or_nothing() {
    const MANY: u64 = 600;
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let pages = Counted::new(&m, PAGE);
    let at = |number: u64| 0x10000 + number * PAGE;
    let map = |number, pages: &Arc<Counted>| {
        let args = MapArgs::fixed(at(number), PAGE, Prot::RW);
        m.context.ioas_map(ioas, pages.clone(), args).unwrap();
    };
    (0..MANY).for_each(|number| map(number, &pages));
    map(MANY, &Counted::unmapped(&m, PAGE));
    assert_eq!(pdev.attach(ioas), Err(Error::Pin(PinError::Fault)));
    let seen = || (pages.pins() as u64, m.iommu.space().used_windows() as u64);
    assert_eq!(seen(), (MANY, 0), "all were pinned, and none stays so");
    assert_eq!(m.domains().len(), 0);
    m.context.ioas_unmap(ioas, at(MANY), PAGE).unwrap();
    pdev.attach(ioas).unwrap();
    assert_eq!(seen(), (2 * MANY, MANY));
    assert!((0..MANY).all(|number| reaches(&pdev, at(number))));
    pdev.detach();
    assert_eq!(seen(), (2 * MANY, 0));
}

/// Pages whose pins count how many of their batch came before.
#[derive(Debug)]
struct InBatch(OwnPages, Arc<Mutex<Vec<u64>>>);

impl PageSource for InBatch {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        self.pin_next(&mut PinBatch::single(), offset, len, prot)
    }

    fn pin_next(
        &self,
        batch: &mut PinBatch,
        offset: u64,
        len: u64,
        prot: Prot,
    ) -> Result<Vec<Extent>, PinError> {
        let before = batch.known::<u64>().copied().unwrap_or(0);
        batch.keep(|| before + 1);
        self.1.lock().unwrap().push(before);
        self.0.pin(offset, len, prot)
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.0.read(offset, dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.0.write(offset, src)
    }
}

#[test]
fn the_pins_of_an_attach_are_one_batch_and_each_map_is_its_own() {
    const MANY: u64 = 600;
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let memory = m.pages(PAGE);
    let map = |number: u64| {
        let pages = Arc::new(InBatch(memory.clone(), seen.clone()));
        let args = MapArgs::fixed(0x10000 + number * PAGE, PAGE, Prot::RW);
        m.context.ioas_map(ioas, pages, args).unwrap();
    };
    (0..MANY).for_each(map);
    pdev.attach(ioas).unwrap();
    (MANY..MANY + 2).for_each(map);
    let expected: Vec<_> = (0..MANY).chain([0, 0]).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn a_copy_is_pinned_once() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let (one, two) = (m.ioas(), m.ioas());
    pdev.attach(one).unwrap();
    mdev.attach(two).unwrap();
    let pages = Counted::new(&m, 4 * PAGE);
    let args = MapArgs::fixed(0x10000, 4 * PAGE, Prot::RW);
    m.context.ioas_map(one, pages.clone(), args).unwrap();
    let copy = CopyArgs {
        dst: two,
        src: one,
        dst_iova: Some(0x20000),
        src_iova: 0x11000,
        len: 2 * PAGE,
        prot: Prot::RW,
    };
    m.context.ioas_copy(copy).unwrap();
    assert_eq!(pages.pins(), 1);
    m.context.ioas_unmap_all(one).unwrap();
    assert_eq!(m.iommu.space().used_windows(), 1);
    assert!(reaches(&mdev, 0x20000));
    m.context.ioas_unmap_all(two).unwrap();
    assert_eq!(m.iommu.space().used_windows(), 0);
}

#[test]
fn an_address_that_is_not_there_is_an_error_only_for_a_page_table() {
    let fault = Error::Pin(PinError::Fault);
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    m.map(ioas, 0x8000, PAGE);
    let args = MapArgs::fixed(0x10000, PAGE, Prot::RW);
    let map = || m.context.ioas_map(ioas, Counted::unmapped(&m, PAGE), args);
    assert_eq!(map(), Ok(0x10000));
    assert_eq!(pdev.attach(ioas), Err(fault));
    assert_eq!(pdev.attached(None), None);
    assert_eq!(m.domains().len(), 0, "nothing is left of the attempt");
    let whole = m.context.ioas_iova_ranges(m.ioas()).unwrap();
    assert_eq!(m.context.ioas_iova_ranges(ioas), Ok(whole));
    m.context.ioas_unmap(ioas, 0x10000, PAGE).unwrap();
    pdev.attach(ioas).unwrap();
    assert_eq!(map(), Err(fault));
    assert!(reaches(&pdev, 0x8000) && !reaches(&pdev, 0x10000));
    m.map(ioas, 0x10000, PAGE);
}

#[test]
fn a_copy_that_fails_in_the_middle_leaves_nothing() {
    let m = machine();
    let pdev = m.pdev(1);
    let (src, dst) = (m.ioas(), m.ioas());
    pdev.attach(dst).unwrap();
    let good = Counted::new(&m, PAGE);
    let args = |iova| MapArgs::fixed(iova, PAGE, Prot::RW);
    m.context
        .ioas_map(src, good.clone(), args(0x10000))
        .unwrap();
    m.context
        .ioas_map(src, Counted::unmapped(&m, PAGE), args(0x11000))
        .unwrap();
    let copy = CopyArgs {
        dst,
        src,
        dst_iova: Some(0x10000),
        src_iova: 0x10000,
        len: 2 * PAGE,
        prot: Prot::RW,
    };
    assert_eq!(m.context.ioas_copy(copy), Err(Error::Pin(PinError::Fault)));
    assert!(!reaches(&pdev, 0x10000));
    assert_eq!((good.pins(), m.iommu.space().used_windows()), (1, 0));
    assert_eq!(m.context.ioas_unmap_all(dst), Ok(0));
}

#[test]
fn mappings_change_hands_only_if_files_hold_the_pages() {
    let m = machine();
    assert_eq!(m.context.change_process(Account::default()), Ok(()));
    let ioas = m.ioas();
    let args = MapArgs::fixed(0x10000, PAGE, Prot::RW);
    m.context
        .ioas_map(ioas, Counted::file(&m, PAGE), args)
        .unwrap();
    assert_eq!(m.context.change_process(Account::default()), Ok(()));
    m.map(ioas, 0x20000, PAGE);
    assert_matches!(
        m.context.change_process(Account::default()),
        Err(Error::Map(MapError::NotFileBacked { .. }))
    );
}
