//! The IOVA bookkeeping against a model of plain lists: a chosen address is the one that the
//! kernel's search comes to, whatever was mapped, unmapped, reserved and allowed before. For whole
//! pages that is the lowest that fits.

use ioasid_core::{AddrRange, memory::PAGE_SIZE};
use ioasid_iommu::ReservedKind;
use proptest::prelude::*;

use super::{HUGE_PAGE, IovaSpace, Owner, ReservedRange};
use crate::base::{
    error::{MapError, ReservedBy},
    id::ObjectId,
};

/// Everything happens in the first pages of the space, so that it is crowded.
const PAGES: u64 = 48;

#[derive(Clone, Debug)]
enum Step {
    MapAt {
        page: u64,
        pages: u64,
    },
    Map {
        address: u64,
        len: u64,
        page_table: bool,
    },
    Unmap {
        which: usize,
    },
    Reserve {
        owner: u32,
        page: u64,
        pages: u64,
    },
    Unreserve {
        owner: u32,
    },
    Allow {
        page: u64,
        pages: u64,
    },
    AllowAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![
        1..=6 * PAGE_SIZE,
        (1..6u64).prop_map(|pages| pages * PAGE_SIZE)
    ];
    let len = prop_oneof![3 => len, 1 => 1..40u64];
    let address = prop_oneof![
        2 => Just(0),
        4 => (0..64u64).prop_map(|page| page * PAGE_SIZE),
        1 => (0..64u64).prop_map(|page| page * PAGE_SIZE / 2),
        2 => 0..4 * PAGE_SIZE,
    ];
    let step = prop_oneof![
        3 => (0..PAGES, 1..6u64).prop_map(|(page, pages)| Step::MapAt { page, pages }),
        6 => (address, len, any::<bool>())
            .prop_map(|(address, len, page_table)| Step::Map { address, len, page_table }),
        6 => any::<usize>().prop_map(|which| Step::Unmap { which }),
        1 => (0..3u32, 0..PAGES, 1..4u64)
            .prop_map(|(owner, page, pages)| Step::Reserve { owner, page, pages }),
        1 => (0..3u32).prop_map(|owner| Step::Unreserve { owner }),
        1 => (0..PAGES, 1..24u64).prop_map(|(page, pages)| Step::Allow { page, pages }),
        1 => Just(Step::AllowAll),
    ];
    prop::collection::vec(step, 1..120)
}

#[derive(Default)]
struct Model {
    areas: Vec<AddrRange>,
    reserved: Vec<(Owner, AddrRange)>,
    allowed: Option<AddrRange>,
}

fn pages(page: u64, count: u64) -> AddrRange {
    AddrRange::from_len(page * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

impl Model {
    fn is_reserved(&self, range: AddrRange) -> bool {
        self.reserved
            .iter()
            .any(|(_, reserved)| reserved.overlaps(range))
    }

    fn is_mapped(&self, range: AddrRange) -> bool {
        self.areas.iter().any(|area| area.overlaps(range))
    }

    /// Whether a fixed mapping of `range` is refused for what is in its way, and for nothing else.
    fn agrees(&self, range: AddrRange, checked: Result<AddrRange, MapError>) -> bool {
        match checked {
            Err(MapError::Reserved { reserved, by, .. }) => {
                reserved.overlaps(range) && self.reserved.contains(&(owner_of(by), reserved))
            }
            Err(MapError::Exists { mapped, .. }) => {
                let exists = mapped.overlaps(range) && self.areas.contains(&mapped);
                exists && !self.is_reserved(range)
            }
            other => other == Ok(range) && !self.is_reserved(range) && !self.is_mapped(range),
        }
    }

    /// Tries the start of every gap, from the lowest.
    fn find(&self, address: u64, len: u64, alignment: u64) -> Result<u64, MapError> {
        let mut unit = len.next_power_of_two().min(HUGE_PAGE);
        while !address.is_multiple_of(unit) {
            unit /= 2;
        }
        if unit < alignment {
            return Err(MapError::Misaligned {
                what: "address",
                value: address,
                alignment,
            });
        }
        let no_space = MapError::NoSpace { len, alignment };
        let fit = |start: u64, last: u64| {
            let start = start.next_multiple_of(unit) | (address % PAGE_SIZE);
            (start < last && last - start >= len - 1).then_some(start)
        };
        let window = self.allowed.unwrap_or(AddrRange::ALL);
        let last = window.last().min(u64::MAX - PAGE_SIZE);
        let first = fit(window.start().max(PAGE_SIZE), last).ok_or(no_space)?;
        let reserved = self.reserved.iter().map(|(_, reserved)| reserved);
        let mut taken: Vec<_> = self.areas.iter().chain(reserved).copied().collect();
        taken.sort();
        let mut at = first;
        for taken in taken.into_iter().filter(|taken| taken.last() >= first) {
            let gap_last = taken.start().min(last.saturating_add(1)).saturating_sub(1);
            if let Some(start) = Some(gap_last)
                .filter(|gap_last| *gap_last >= at)
                .and_then(|gap_last| fit(at, gap_last))
            {
                return Ok(start);
            }
            at = at.max(taken.last().saturating_add(1));
        }
        fit(at, last).filter(|_| at <= last).ok_or(no_space)
    }
}

fn reserved_range(number: u32, range: AddrRange) -> ReservedRange {
    let by = ReservedBy::Device {
        device: ObjectId::from_raw(number),
        address: "0000:6a:01.0".parse().expect("an address"),
        kind: ReservedKind::Reserved,
    };
    ReservedRange { range, by }
}

fn owner_of(by: ReservedBy) -> Owner {
    match by {
        ReservedBy::Device { device, .. } => Owner::Device(device),
        other => panic!("only devices reserve here, not {other:?}"),
    }
}

fn owner(number: u32) -> Owner {
    Owner::Device(ObjectId::from_raw(number))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_bookkeeping_agrees_with_plain_lists(steps in steps()) {
        let mut space = IovaSpace::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::MapAt { page, pages: count } => {
                    let range = pages(page, count);
                    let checked = space.check(range.start(), range.len_saturating(), PAGE_SIZE);
                    prop_assert!(model.agrees(range, checked), "{range}: {checked:?}");
                    if checked.is_ok() {
                        space.insert(range, ());
                        model.areas.push(range);
                    }
                }
                Step::Map { address, len, page_table } => {
                    let alignment = if page_table { PAGE_SIZE } else { 1 };
                    let found = space.find(address, len, alignment);
                    prop_assert_eq!(found, model.find(address, len, alignment));
                    if let Ok(start) = found {
                        let range = AddrRange::from_len(start, len).unwrap();
                        space.insert(range, ());
                        model.areas.push(range);
                    }
                }
                Step::Unmap { which } if !model.areas.is_empty() => {
                    let area = model.areas.swap_remove(which % model.areas.len());
                    prop_assert_eq!(space.remove(area.start()), Some((area, ())));
                }
                Step::Unmap { .. } => {}
                Step::Reserve { owner: number, page, pages: count } => {
                    let range = pages(page, count);
                    let taken = model.reserved.iter().any(|(other, _)| *other == owner(number));
                    let blocked = model.is_mapped(range)
                        || model.allowed.is_some_and(|allowed| allowed.overlaps(range));
                    let reserved = reserved_range(number, range);
                    let reserved = space.reserve(owner(number), vec![reserved]);
                    if !taken && blocked {
                        let conflict = reserved.is_err_and(|error| error.is_range_conflict());
                        prop_assert!(conflict);
                    } else {
                        prop_assert_eq!(reserved, Ok(()));
                        if !taken {
                            model.reserved.push((owner(number), range));
                        }
                    }
                }
                Step::Unreserve { owner: number } => {
                    space.unreserve(owner(number));
                    model.reserved.retain(|(other, _)| *other != owner(number));
                }
                Step::Allow { page, pages: count } => {
                    let range = pages(page, count);
                    let allowed = space.set_allowed(&[range]);
                    prop_assert_eq!(allowed.is_ok(), !model.is_reserved(range));
                    if allowed.is_ok() {
                        model.allowed = Some(range);
                    }
                }
                Step::AllowAll => {
                    prop_assert_eq!(space.set_allowed(&[]), Ok(()));
                    model.allowed = None;
                }
            }
            let mut areas = model.areas.clone();
            areas.sort();
            prop_assert_eq!(space.areas().map(|(range, ())| range).collect::<Vec<_>>(), areas);
            let mapped: u64 = model.areas.iter().map(|area| area.len_saturating()).sum();
            prop_assert_eq!(space.mapped(), mapped);
        }
    }
}

#[test]
fn the_ends_of_the_space_can_be_mapped_but_are_never_chosen() {
    let mut space = IovaSpace::default();
    let last = u64::MAX - PAGE_SIZE + 1;
    assert_eq!(
        space.check(last, PAGE_SIZE, PAGE_SIZE).map(AddrRange::last),
        Ok(u64::MAX)
    );
    space.insert(AddrRange::new(PAGE_SIZE, last - 1).unwrap(), ());
    let full = MapError::NoSpace {
        len: PAGE_SIZE,
        alignment: PAGE_SIZE,
    };
    assert_eq!(space.find(0, PAGE_SIZE, PAGE_SIZE), Err(full));
    assert!(space.check(0, PAGE_SIZE, PAGE_SIZE).is_ok());
    assert_eq!(space.remove(PAGE_SIZE).map(|(_, area)| area), Some(()));
    assert_eq!(space.find(0, PAGE_SIZE, PAGE_SIZE), Ok(PAGE_SIZE));
    let len = u64::MAX / 2;
    let overflow = MapError::Overflow { start: 0, len };
    assert_eq!(space.find(0, len, 1), Err(overflow));
}

#[test]
fn a_chosen_address_has_the_offset_of_the_memory_in_its_page() {
    let mut space = IovaSpace::default();
    assert_eq!(space.find(0x7f00_1234, 100, 1), Ok(0x1234));
    space.insert(AddrRange::from_len(0x1234, 100).unwrap(), ());
    assert_eq!(space.find(0x7f00_1800, 0x800, 1), Ok(0x1800));
    let misaligned = MapError::Misaligned {
        what: "address",
        value: 0x7f00_1234,
        alignment: PAGE_SIZE,
    };
    assert_eq!(
        space.find(0x7f00_1234, PAGE_SIZE, PAGE_SIZE),
        Err(misaligned)
    );
}
