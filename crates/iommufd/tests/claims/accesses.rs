//! Memory of an IOAS for software that needs no page table.

use std::sync::{Arc, Mutex};

use ioasid_core::{AddrRange, Prot};
use ioasid_iommufd::{
    Access, AccessError, AccessKind, AccessUser, CopyArgs, Error, MapArgs, ObjectError,
    PinnedPages, RangeError, UnmapError,
};

use crate::machine::*;

/// Holds pins until it is asked for them.
#[derive(Debug, Default)]
struct PinUser {
    pinned: Mutex<Vec<PinnedPages>>,
    asked: Mutex<Vec<AddrRange>>,
    stubborn: bool,
}

impl AccessUser for PinUser {
    fn unmap(&self, range: AddrRange) {
        self.asked.lock().unwrap().push(range);
        if !self.stubborn {
            let mut pinned = self.pinned.lock().unwrap();
            pinned.retain(|pages| !pages.range().overlaps(range));
        }
    }
}

impl PinUser {
    fn hold(&self, access: &Access, iova: u64, len: u64) {
        let pinned = access.pin(iova, len, true).unwrap();
        self.pinned.lock().unwrap().push(pinned);
    }

    fn held(&self) -> usize {
        self.pinned.lock().unwrap().len()
    }
}

fn range(start: u64, len: u64) -> AddrRange {
    AddrRange::from_len(start, len).unwrap()
}

fn pinning(m: &Machine, user: &Arc<PinUser>) -> Access {
    let user = Arc::clone(user) as Arc<dyn AccessUser>;
    m.context.create_access(AccessKind::Pins(user)).unwrap()
}

fn copying(m: &Machine) -> Access {
    m.context.create_access(AccessKind::Copies).unwrap()
}

#[test]
fn bytes_are_copied_across_areas_up_to_the_first_hole() {
    let m = machine();
    let ioas = m.ioas();
    let first = m.map(ioas, 0x1000, PAGE);
    let second = m.map(ioas, 0x2000, PAGE);
    let access = copying(&m);
    assert_matches!(
        access.read(0x1000, &mut [0]),
        Err(Error::Access(AccessError::NotAttached(_)))
    );
    access.attach(ioas).unwrap();
    assert_matches!(
        access.attach(ioas),
        Err(Error::Access(AccessError::AlreadyAttached { .. }))
    );
    access.write(0x1ffe, b"over").unwrap();
    assert_eq!((byte(&first, 4095), byte(&second, 0)), (b'v', b'e'));
    let mut found = [0; 4];
    access.read(0x1ffe, &mut found).unwrap();
    assert_eq!(&found, b"over");
    assert_matches!(
        access.write(0x2ffe, b"hole"),
        Err(Error::Access(AccessError::NotMapped { .. }))
    );
    assert_eq!((byte(&second, 4094), byte(&second, 4095)), (b'h', b'o'));
    assert_matches!(
        access.read(0x1000, &mut []),
        Err(Error::Access(AccessError::Empty))
    );
    assert_matches!(
        access.read(u64::MAX, &mut [0; 2]),
        Err(Error::Access(AccessError::Overflow { .. }))
    );
}

#[test]
fn what_was_mapped_read_only_is_not_written() {
    let m = machine();
    let ioas = m.ioas();
    let args = MapArgs::fixed(0x1000, PAGE, Prot::READ);
    let pages = Arc::new(m.pages(PAGE));
    m.context.ioas_map(ioas, pages, args).unwrap();
    let user = Arc::<PinUser>::default();
    let access = pinning(&m, &user);
    access.attach(ioas).unwrap();
    assert_matches!(
        access.write(0x1000, b"x"),
        Err(Error::Access(AccessError::Permission { .. }))
    );
    let refused = access.pin(0x1000, PAGE, true);
    assert_matches!(
        refused.map(drop),
        Err(Error::Access(AccessError::Permission { .. }))
    );
    access.pin(0x1000, PAGE, false).unwrap();
}

#[test]
fn a_page_is_pinned_once_however_many_hold_it() {
    let m = machine();
    let ioas = m.ioas();
    let pages = m.map(ioas, 0x1000, 2 * PAGE);
    let page = range(pages.spa() + PAGE, PAGE);
    let user = Arc::<PinUser>::default();
    let access = pinning(&m, &user);
    access.attach(ioas).unwrap();
    assert_eq!(m.context.pins_of(page), 0, "nothing needs it");
    user.hold(&access, 0x2000, PAGE);
    user.hold(&access, 0x1000, 2 * PAGE);
    assert_eq!(m.context.pins_of(page), 1);
    let pdev = m.pdev(1);
    pdev.attach(ioas).unwrap();
    let copied = m.ioas();
    let copy = CopyArgs {
        dst: copied,
        src: ioas,
        dst_iova: None,
        src_iova: 0x1000,
        len: 2 * PAGE,
        prot: Prot::RW,
    };
    m.context.ioas_copy(copy).unwrap();
    assert_eq!(m.context.pins_of(page), 1, "and a page table");
    let again = MapArgs::fixed(0x9000, 2 * PAGE, Prot::RW);
    m.context.ioas_map(ioas, Arc::new(pages), again).unwrap();
    assert_eq!(m.context.pins_of(page), 2, "another MAP");
    drop(pdev);
    assert_eq!(m.context.pins_of(page), 1);
    user.pinned.lock().unwrap().clear();
    assert_eq!(m.context.pins_of(page), 0);
}

#[test]
fn unmap_asks_for_what_is_pinned_and_goes_on_when_it_is_back() {
    let m = machine();
    let ioas = m.ioas();
    for iova in [0x1000, 0x3000, 0x5000] {
        m.map(ioas, iova, PAGE);
    }
    let user = Arc::<PinUser>::default();
    let access = pinning(&m, &user);
    access.attach(ioas).unwrap();
    user.hold(&access, 0x3000, PAGE);
    assert_eq!(m.context.ioas_unmap_all(ioas), Ok(3 * PAGE));
    assert_eq!(*user.asked.lock().unwrap(), [range(0x3000, PAGE)]);
    assert_eq!(user.held(), 0);
}

#[test]
fn unmap_gives_up_on_who_does_not_let_go() {
    let m = machine();
    let ioas = m.ioas();
    m.map(ioas, 0x1000, PAGE);
    m.map(ioas, 0x3000, PAGE);
    let user = Arc::new(PinUser {
        stubborn: true,
        ..PinUser::default()
    });
    let access = pinning(&m, &user);
    access.attach(ioas).unwrap();
    user.hold(&access, 0x3000, PAGE);
    assert_matches!(
        m.context.ioas_unmap_all(ioas),
        Err(Error::Unmap(UnmapError::StillHeld { .. }))
    );
    assert_eq!(user.asked.lock().unwrap().len(), 100);
    let refused = access.pin(0x3000, PAGE, true);
    assert_matches!(
        refused.map(drop),
        Err(Error::Access(AccessError::Leaving { .. })),
        "about to go"
    );
    let gone = access.pin(0x1000, PAGE, true);
    assert_matches!(
        gone.map(drop),
        Err(Error::Access(AccessError::NotMapped { .. })),
        "gone before"
    );
    user.pinned.lock().unwrap().clear();
    assert_eq!(m.context.ioas_unmap_all(ioas), Ok(PAGE));
}

#[test]
fn what_hardware_owns_is_not_unmapped() {
    let m = machine();
    let ioas = m.ioas();
    m.map(ioas, 0x1000, PAGE);
    let access = m.context.create_access(AccessKind::Locks).unwrap();
    access.attach(ioas).unwrap();
    let ring = access.pin(0x1000, PAGE, false).unwrap();
    assert!(ring.are_locked());
    assert_matches!(
        m.context.ioas_unmap(ioas, 0x1000, PAGE),
        Err(Error::Unmap(UnmapError::Locked { .. }))
    );
    drop(ring);
    assert_eq!(m.context.ioas_unmap(ioas, 0x1000, PAGE), Ok(PAGE));
}

#[test]
fn who_pins_makes_the_ioas_count_in_pages() {
    let m = machine();
    let ioas = m.ioas();
    let args = MapArgs::fixed(0x800, 0x800, Prot::RW);
    let half = Arc::new(m.pages(PAGE));
    m.context.ioas_map(ioas, half, args).unwrap();
    let access = pinning(&m, &Arc::default());
    assert_matches!(
        access.attach(ioas),
        Err(Error::Range(RangeError::MisalignedAreas { .. }))
    );
    m.context.ioas_unmap_all(ioas).unwrap();
    access.attach(ioas).unwrap();
    assert_eq!(m.context.ioas_iova_ranges(ioas).unwrap().alignment, PAGE);
    access.detach();
    assert_eq!(m.context.ioas_iova_ranges(ioas).unwrap().alignment, 1);
}

#[test]
fn a_replaced_ioas_gets_its_pins_back_and_can_go() {
    let m = machine();
    let (old, new) = (m.ioas(), m.ioas());
    m.map(old, 0x1000, PAGE);
    m.map(new, 0x8000, PAGE);
    let user = Arc::<PinUser>::default();
    let access = pinning(&m, &user);
    assert_matches!(
        access.replace(new),
        Err(Error::Access(AccessError::NotAttached(_)))
    );
    access.attach(old).unwrap();
    user.hold(&access, 0x1000, PAGE);
    access.replace(old).unwrap();
    assert_eq!(user.held(), 1, "itself");
    assert_eq!(
        access.replace(NOBODY),
        Err(ObjectError::Missing(NOBODY).into())
    );
    assert_eq!(user.held(), 1, "nothing");
    assert_eq!(m.context.destroy(old), Err(ObjectError::InUse(old).into()));
    access.replace(new).unwrap();
    assert_eq!(user.held(), 0);
    m.context.destroy(old).unwrap();
    user.hold(&access, 0x8000, PAGE);
}

#[test]
fn an_access_object_keeps_the_objects_of_a_closed_file() {
    let m = machine();
    let ioas = m.ioas();
    let pages = m.map(ioas, 0x1000, PAGE);
    let access = copying(&m);
    access.attach(ioas).unwrap();
    assert_eq!(
        m.context.destroy(access.id()),
        Err(ObjectError::InUse(access.id()).into())
    );
    m.context.close();
    access.write(0x1000, b"k").unwrap();
    assert_eq!(byte(&pages, 0), b'k');
    drop(access);
    assert_eq!(
        m.context.ioas_unmap_all(ioas),
        Err(ObjectError::Missing(ioas).into())
    );
}
