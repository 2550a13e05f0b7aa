//! Who pays for locked memory, and when.

use std::sync::Arc;

use ioasid_core::{
    Prot,
    host::Account,
    memory::{Extent, MemoryGone, OwnPages, PageSource, PinError},
};
use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::{Context, CopyArgs, Error, Limits, MapArgs, MemoryLedger, ObjectId};

use crate::machine::*;

fn account(process: u64) -> Account {
    Account {
        process,
        user: 1000,
        unlimited: false,
        limit: Some(4 * PAGE),
    }
}

struct Setup {
    m: Machine,
    ledger: Arc<MemoryLedger>,
}

fn setup(limits: Limits) -> Setup {
    let iommu = Iommu::new(IommuConfig::default());
    let ledger = MemoryLedger::new(limits);
    let context = Context::with_ledger(&iommu, &ledger);
    Setup {
        m: Machine { iommu, context },
        ledger,
    }
}

/// Pages of a file.
#[derive(Debug)]
struct File(OwnPages);

impl PageSource for File {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        self.0.pin(offset, len, prot)
    }

    fn is_file(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.0.read(offset, dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.0.write(offset, src)
    }
}

impl Setup {
    fn map(&self, process: u64, ioas: ObjectId, iova: u64, len: u64) -> Result<u64, Error> {
        let pages = Arc::new(File(self.m.pages(len)));
        let args = MapArgs::fixed(iova, len, Prot::RW);
        let context = &self.m.context;
        context.ioas_map_for(account(process), ioas, pages, args)
    }
}

#[test]
fn memory_counts_from_its_first_use_to_the_last_and_once() {
    let s = setup(Limits::Counted);
    let (one, two) = (s.m.ioas(), s.m.ioas());
    s.map(7, one, 0x1000, 3 * PAGE).unwrap();
    assert_eq!(s.ledger.pinned(7), 0, "no page table needs it");
    let (first, second) = (s.m.pdev(1), s.m.pdev(2));
    first.attach(one).unwrap();
    let counted = || (s.ledger.pinned(7), s.ledger.locked_by_user(1000));
    assert_eq!(counted(), (3 * PAGE, 3 * PAGE));
    second.attach(two).unwrap();
    let copy = CopyArgs {
        dst: two,
        src: one,
        dst_iova: Some(0x9000),
        src_iova: 0x2000,
        len: PAGE,
        prot: Prot::RW,
    };
    s.m.context.ioas_copy(copy).unwrap();
    assert_eq!(counted(), (3 * PAGE, 3 * PAGE), "a copy is no more memory");
    s.m.context.ioas_unmap_all(one).unwrap();
    assert_eq!(counted(), (PAGE, PAGE), "what the copy holds");
    s.m.context.ioas_unmap_all(two).unwrap();
    assert_eq!(counted(), (0, 0));
    assert_eq!(s.ledger.locked(7), 0, "the user's limit, not the process's");
}

#[test]
fn with_the_option_the_limit_is_the_processs_own() {
    let s = setup(Limits::Enforced);
    s.m.context.set_rlimit_per_process(true).unwrap();
    let device = s.m.pdev(1);
    let ioas = s.m.ioas();
    device.attach(ioas).unwrap();
    s.map(7, ioas, 0x1_0000, 4 * PAGE).unwrap();
    s.map(8, ioas, 0x2_0000, 4 * PAGE).unwrap();
    assert_eq!(
        (s.ledger.locked(7), s.ledger.locked(8)),
        (4 * PAGE, 4 * PAGE)
    );
    let over = s.map(8, ioas, 0x3_0000, PAGE);
    assert_eq!(over, Err(Error::Pin(PinError::NoMemory)));
    assert_eq!(s.ledger.locked_by_user(1000), 0);
}

#[test]
fn a_map_over_the_limit_leaves_nothing() {
    let s = setup(Limits::Enforced);
    let (device, ioas) = (s.m.pdev(1), s.m.ioas());
    device.attach(ioas).unwrap();
    let over = Err(Error::Pin(PinError::NoMemory));
    assert_eq!(s.map(7, ioas, 0x1_0000, 5 * PAGE), over);
    assert_eq!(s.ledger.pinned(7), 0);
    assert!(!reaches(&device, 0x1_0000));
    s.map(7, ioas, 0x1_0000, 4 * PAGE).unwrap();
    assert_eq!(s.map(9, ioas, 0x2_0000, PAGE), over, "one user, one limit");
    s.m.context.ioas_unmap_all(ioas).unwrap();
    s.map(9, ioas, 0x2_0000, PAGE).unwrap();
}

#[test]
fn an_attach_over_the_limit_leaves_nothing() {
    let s = setup(Limits::Enforced);
    let (device, ioas) = (s.m.pdev(1), s.m.ioas());
    s.map(7, ioas, 0x1_0000, 3 * PAGE).unwrap();
    s.map(7, ioas, 0x2_0000, 3 * PAGE).unwrap();
    let over = Err(Error::Pin(PinError::NoMemory));
    assert_eq!(device.attach(ioas), over);
    assert_eq!((s.ledger.pinned(7), s.m.domains().len()), (0, 0));
}

#[test]
fn mappings_of_files_can_become_another_processs() {
    let s = setup(Limits::Counted);
    s.m.context.set_rlimit_per_process(true).unwrap();
    let (one, two) = (s.m.ioas(), s.m.ioas());
    let device = s.m.pdev(1);
    device.attach(one).unwrap();
    s.map(7, one, 0x1000, PAGE).unwrap();
    s.map(7, two, 0x1000, PAGE).unwrap();
    s.m.context.change_process(account(8)).unwrap();
    assert_eq!((s.ledger.pinned(7), s.ledger.locked(7)), (0, 0));
    assert_eq!((s.ledger.pinned(8), s.ledger.locked(8)), (PAGE, PAGE));
    s.m.pdev(2).attach(two).unwrap();
    drop(device);
    assert_eq!(
        s.ledger.pinned(8),
        0,
        "what is pinned later counts there too"
    );
}

#[test]
fn who_may_not_lock_as_much_does_not_get_it() {
    let s = setup(Limits::Enforced);
    s.m.context.set_rlimit_per_process(true).unwrap();
    let (ioas, device) = (s.m.ioas(), s.m.pdev(1));
    device.attach(ioas).unwrap();
    s.map(7, ioas, 0x1_0000, 2 * PAGE).unwrap();
    s.map(7, ioas, 0x2_0000, 2 * PAGE).unwrap();
    let poor = Account {
        limit: Some(3 * PAGE),
        ..account(8)
    };
    let refused = s.m.context.change_process(poor);
    assert_eq!(refused, Err(Error::Pin(PinError::NoMemory)));
    assert_eq!((s.ledger.locked(7), s.ledger.locked(8)), (4 * PAGE, 0));
}

#[test]
fn a_map_is_one_mapping_however_often_it_is_copied() {
    let s = setup(Limits::Counted);
    let (one, two) = (s.m.ioas(), s.m.ioas());
    assert_eq!(s.ledger.mappings(), 0);
    let map = |number: u64| s.m.map(one, 0x10000 + number * PAGE, PAGE);
    let _memory: Vec<_> = (0..10).map(map).collect();
    // The file remembers the last program that has mapped.
    assert_eq!(s.ledger.mappings(), 11);
    let copy = CopyArgs {
        dst: two,
        src: one,
        dst_iova: Some(0x10000),
        src_iova: 0x10000,
        len: 10 * PAGE,
        prot: Prot::RW,
    };
    s.m.context.ioas_copy(copy).unwrap();
    s.m.context.ioas_unmap_all(one).unwrap();
    assert_eq!(s.ledger.mappings(), 11, "the copies keep what they show");
    s.m.context.ioas_unmap_all(two).unwrap();
    assert_eq!(s.ledger.mappings(), 1);
}
