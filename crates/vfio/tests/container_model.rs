//! The mappings of a container, both versions, against plain lists.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::Machine;
use ioasid_core::{AddrRange, Prot, host::Account, memory::OwnPages};
use ioasid_iommufd::Context;
use ioasid_vfio::{
    Container, ContainerFile, Error,
    container::{DirtyRange, MapRequest, UnmapRequest, Version},
    error::MapError,
};
use proptest::prelude::*;

const PAGE: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    /// First page and number of pages.
    Map(u64, u64),
    Update(u64, u64),
    Unmap(u64, u64),
    Invalidate(u64, u64),
    Dirty(u64, u64),
    UnmapAll,
    InvalidateAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..24u64, 0..6u64);
    let step = prop_oneof![
        6 => range().prop_map(|(page, pages)| Step::Map(page, pages)),
        2 => range().prop_map(|(page, pages)| Step::Update(page, pages)),
        4 => range().prop_map(|(page, pages)| Step::Unmap(page, pages)),
        2 => range().prop_map(|(page, pages)| Step::Invalidate(page, pages)),
        1 => range().prop_map(|(page, pages)| Step::Dirty(page, pages)),
        1 => Just(Step::UnmapAll),
        1 => Just(Step::InvalidateAll),
    ];
    prop::collection::vec(step, 1..60)
}

/// Why the lists refuse something, as far as they distinguish causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Invalid,
    Exists,
    NotFound,
    NoDirtyPages,
}

impl Refusal {
    fn of(error: Error) -> Refusal {
        match error {
            Error::Map(MapError::Exists { .. }) => Refusal::Exists,
            Error::Map(MapError::NotFound { .. }) => Refusal::NotFound,
            Error::Map(MapError::NoDirtyPages) => Refusal::NoDirtyPages,
            Error::Map(_) => Refusal::Invalid,
            other => panic!("{other}"),
        }
    }
}

/// First page, number of pages, and whether its address is invalid.
type Mapping = (u64, u64, bool);

/// What is mapped, in the order of addresses.
#[derive(Default)]
struct Model(Vec<Mapping>);

impl Model {
    fn overlaps((start, pages, _): &Mapping, page: u64, count: u64) -> bool {
        *start < page + count && page < start + pages
    }

    fn map(&mut self, page: u64, pages: u64) -> Result<(), Refusal> {
        if pages == 0 {
            return Err(Refusal::Invalid);
        }
        if self.0.iter().any(|map| Self::overlaps(map, page, pages)) {
            return Err(Refusal::Exists);
        }
        self.0.push((page, pages, false));
        self.0.sort_unstable();
        Ok(())
    }

    fn update(&mut self, page: u64, pages: u64) -> Result<(), Refusal> {
        if pages == 0 {
            return Err(Refusal::Invalid);
        }
        let mut maps = self.0.iter_mut();
        match maps.find(|map| Self::overlaps(map, page, pages)) {
            None => Err(Refusal::NotFound),
            Some(map) if *map == (page, pages, true) => {
                map.2 = false;
                Ok(())
            }
            Some(_) => Err(Refusal::Invalid),
        }
    }

    /// The mappings that an unmap is about, by the rules of the version.
    fn chosen(&self, version: Version, page: u64, pages: u64) -> Result<Vec<Mapping>, Refusal> {
        if pages == 0 {
            return Err(Refusal::Invalid);
        }
        let touched = self.0.iter().filter(|map| Self::overlaps(map, page, pages));
        let touched: Vec<Mapping> = touched.copied().collect();
        let starts_before = touched.iter().any(|map| map.0 < page);
        let ends_after = touched.iter().any(|map| map.0 + map.1 > page + pages);
        match version {
            Version::V2 if starts_before || ends_after => Err(Refusal::Invalid),
            // A range that starts inside of a mapping unmaps nothing, and says so.
            Version::V1 if starts_before => Ok(Vec::new()),
            _ => Ok(touched),
        }
    }

    fn unmap(&mut self, chosen: &[Mapping]) -> u64 {
        self.0.retain(|map| !chosen.contains(map));
        chosen.iter().map(|map| map.1 * PAGE).sum()
    }

    fn invalidate(&mut self, chosen: &[Mapping]) -> Result<u64, Refusal> {
        if chosen.iter().any(|map| map.2) {
            return Err(Refusal::Invalid);
        }
        for map in &mut self.0 {
            map.2 |= chosen.contains(map);
        }
        Ok(chosen.iter().map(|map| map.1 * PAGE).sum())
    }

    fn has(&self, page: u64) -> bool {
        self.0.iter().any(|map| Self::overlaps(map, page, 1))
    }
}

fn run(version: Version, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma("0000:6b:01.0"));
    let group = device.group().open().unwrap();
    let container = Container::new(Context::new(&machine.iommu));
    group
        .set_container(ContainerFile::Container(Arc::clone(&container)))
        .unwrap();
    container.set_iommu(version).unwrap();
    let tracks = container.set_dirty_tracking(true);
    prop_assert_eq!(tracks.is_ok(), version == Version::V2);

    let map = |page: u64, pages: u64, update: bool| {
        let request = MapRequest {
            iova: page * PAGE,
            vaddr: 0x10_0000,
            size: pages * PAGE,
            prot: Prot {
                read: !update,
                write: !update,
            },
            update,
        };
        let mapped = container.map(Account::default(), &request, || {
            let len = usize::try_from(pages * PAGE).unwrap();
            Ok::<_, Error>(Arc::new(OwnPages::new(machine.iommu.space(), len).unwrap()) as _)
        });
        mapped.map_err(Refusal::of)
    };
    let unmap = |range: Option<(u64, u64)>, vaddr: bool| {
        let (page, pages) = range.unwrap_or_default();
        let request = UnmapRequest {
            iova: page * PAGE,
            size: pages * PAGE,
            all: range.is_none(),
            vaddr,
            dirty: None,
        };
        let unmapped = container.unmap::<Error>(&request, |_| Ok(()));
        unmapped.map_err(Refusal::of)
    };
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Map(page, pages) => {
                prop_assert_eq!(map(page, pages, false), model.map(page, pages));
            }
            Step::Update(page, pages) => {
                prop_assert_eq!(map(page, pages, true), model.update(page, pages));
            }
            Step::Unmap(page, pages) => {
                let expected = model.chosen(version, page, pages);
                let expected = expected.map(|chosen| model.unmap(&chosen));
                prop_assert_eq!(unmap(Some((page, pages)), false), expected);
            }
            Step::Invalidate(page, pages) => {
                let expected = model.chosen(version, page, pages);
                let expected = expected.and_then(|chosen| model.invalidate(&chosen));
                prop_assert_eq!(unmap(Some((page, pages)), true), expected);
            }
            Step::UnmapAll => {
                let all = model.0.clone();
                prop_assert_eq!(unmap(None, false), Ok(model.unmap(&all)));
            }
            Step::InvalidateAll => {
                let all = model.0.clone();
                prop_assert_eq!(unmap(None, true), model.invalidate(&all));
            }
            Step::Dirty(page, pages) => {
                let request = DirtyRange {
                    iova: page * PAGE,
                    size: pages * PAGE,
                    page_size: PAGE,
                };
                let mut found = Vec::new();
                let result = container.dirty::<Error>(&request, |range: AddrRange| {
                    found.push((range.start() / PAGE, range.len_saturating() / PAGE));
                    Ok(())
                });
                let expected = match version {
                    Version::V1 => Err(Refusal::NoDirtyPages),
                    Version::V2 => model.chosen(version, page, pages),
                };
                let expected = expected.map(|maps| maps.iter().map(|m| (m.0, m.1)).collect());
                prop_assert_eq!(result.map(|()| found).map_err(Refusal::of), expected);
            }
        }
        let domains = machine.iommu.domains();
        for page in 0..32 {
            let mapped = domains[0].iova_to_phys(page * PAGE).is_some();
            prop_assert_eq!(mapped, model.has(page), "page {}", page);
        }
        let left = container.info().unwrap().mappings_left;
        prop_assert_eq!(left as usize, 65535 - model.0.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn version_1_agrees_with_plain_lists(steps in steps()) {
        run(Version::V1, steps)?;
    }

    #[test]
    fn version_2_agrees_with_plain_lists(steps in steps()) {
        run(Version::V2, steps)?;
    }
}
