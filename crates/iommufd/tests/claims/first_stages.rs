//! Guests' first-stage tables on the domains of software devices (VT-d).

use std::sync::Arc;

use ioasid_core::{PciAddress, inspect::Inspect};
use ioasid_iommu::{Device, Domain, DomainKind, FirstStage, TableFormat};
use ioasid_iommufd::{
    AllocError, AttachError, BoundDevice, Error, HwptAlloc, HwptFlags, InvalidateError,
    Invalidated, ObjectError, ObjectId, UserArray, UserData, UserDataError, ViommuAlloc,
};

use crate::{machine::*, program::Program};

/// `IOMMU_HWPT_DATA_VTD_S1`.
const VTD_S1: u32 = 1;
/// `IOMMU_HWPT_INVALIDATE_DATA_VTD_S1`.
const INVALIDATE: u32 = 0;
/// Bytes of `struct iommu_hwpt_vtd_s1`, and of an entry of HWPT_INVALIDATE.
const LEN: u32 = 24;
/// Where they are in the program.
const DATA: u64 = 0x100;

const ROOT: u64 = 0x5000;

/// A device, an IOAS with a page table to nest on, and the program that has them.
struct Guest {
    m: Machine,
    program: Program,
    pdev: BoundDevice,
    ioas: ObjectId,
    parent: ObjectId,
}

const PARENT: HwptFlags = HwptFlags::NEST_PARENT.with(HwptFlags::PASID);

fn guest() -> Guest {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let args = HwptAlloc::new(pdev.id(), ioas).with_flags(PARENT);
    let parent = m.context.hwpt_alloc(args).unwrap();
    Guest {
        program: Program::new(0x1_0000),
        m,
        pdev,
        ioas,
        parent,
    }
}

fn stage_one(flags: u64, width: u32) -> Vec<u8> {
    let mut bytes = [flags.to_ne_bytes(), ROOT.to_ne_bytes()].concat();
    bytes.extend(width.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn entry(address: u64, pages: u64, flags: u32, reserved: u32) -> Vec<u8> {
    let mut bytes = [address.to_ne_bytes(), pages.to_ne_bytes()].concat();
    bytes.extend([flags.to_ne_bytes(), reserved.to_ne_bytes()].concat());
    bytes
}

impl Guest {
    fn data(&self, flags: u64, width: u32) -> UserData<'_> {
        self.program.put(DATA as usize, &stage_one(flags, width));
        UserData::new(&self.program, VTD_S1, DATA, LEN)
    }

    fn nest(&self, flags: u64, width: u32) -> ObjectId {
        let args = HwptAlloc::new(self.pdev.id(), self.parent).with_flags(HwptFlags::PASID);
        let data = self.data(flags, width);
        let nested = self.m.context.hwpt_alloc_with(args, Some(&data));
        nested.unwrap()
    }

    fn invalidate(&self, hwpt: ObjectId, kind: u32, entries: &[Vec<u8>]) -> Invalidated {
        self.program.put(DATA as usize, &entries.concat());
        let count = entries.len() as u32;
        let array = UserArray::new(&self.program, kind, DATA, LEN, count).unwrap();
        self.m.context.hwpt_invalidate(hwpt, &array)
    }

    fn nested_domains(&self) -> Vec<Arc<Domain>> {
        let mut domains = self.m.iommu.domains();
        domains.retain(|domain| domain.kind() == DomainKind::Nested);
        domains
    }
}

fn routes(domain: &Domain) -> Vec<(PciAddress, Option<u32>)> {
    let routes = domain.attachments().into_iter();
    let mut routes: Vec<_> = routes
        .map(|(device, pasid)| (device, pasid.map(|pasid| pasid.get())))
        .collect();
    routes.sort();
    routes
}

/// What the device, or a PASID of it, leads to.
fn route(device: &Device, pasid: Option<u32>) -> Option<Arc<Domain>> {
    let attachments = device.attachments().into_iter();
    let mut at = attachments.filter(|(at, _)| at.map(|at| at.get()) == pasid);
    at.next().map(|(_, domain)| domain)
}

#[test]
fn a_first_stage_is_a_domain_on_that_of_its_parent() {
    let g = guest();
    let nested = g.nest(0b111, 57);
    let [domain] = &g.nested_domains()[..] else {
        panic!("one nested domain");
    };
    let parent = g.m.context.hwpt_domain(g.parent).unwrap();
    assert!(
        domain
            .parent()
            .is_some_and(|domain| Arc::ptr_eq(domain, &parent))
    );
    let table = FirstStage {
        root: ROOT,
        levels: 5,
        supervisor: true,
        write_protect: true,
        extended_accessed: true,
    };
    assert_eq!(domain.first_stage(), Some(table));
    assert_eq!(g.m.domains().len(), 1, "it is no address space of its own");
    let second = g.nest(0, 48);
    assert_eq!(g.nested_domains().len(), 2, "nested ones are never shared");
    assert_eq!(g.m.context.destroy(second), Ok(()));
    assert_eq!(g.m.context.destroy(nested), Ok(()));
    let left: Vec<_> = g.nested_domains().iter().map(|one| one.id()).collect();
    assert_eq!(left, [domain.id()], "the one that this test holds");
}

#[test]
fn devices_and_pasids_move_between_parent_and_first_stages() {
    let g = guest();
    let address = g.pdev.device().address();
    let (one, two) = (g.nest(0, 48), g.nest(0, 57));
    let domains = g.nested_domains();
    g.pdev.attach(g.parent).unwrap();
    for at in [one, one, two, g.parent, g.parent, one] {
        assert_eq!(g.pdev.attach(at), Ok(at));
        assert_eq!(g.pdev.attached(None), Some(at));
    }
    assert_eq!(g.pdev.attach_pasid(two, 1), Ok(two));
    assert_eq!(g.pdev.attach_pasid(one, 7), Ok(one));
    assert_eq!(routes(&domains[0]), [(address, None), (address, Some(7))]);
    assert_eq!(routes(&domains[1]), [(address, Some(1))]);
    assert_eq!(g.m.routes(), [], "nothing stands on the parent itself");
    for in_use in [one, two, g.parent] {
        let refused = Err(ObjectError::InUse(in_use).into());
        assert_eq!(g.m.context.destroy(in_use), refused);
    }
    assert_eq!(g.pdev.attach_pasid(g.parent, 7), Ok(g.parent), "replaced");
    assert_eq!(g.m.routes(), [(address, Some(pasid(7)))]);
    for _ in 0..2 {
        g.pdev.detach();
        g.pdev.detach_pasid(1);
    }
    assert_eq!((g.pdev.attached(None), routes(&domains[0])), (None, vec![]));
    for gone in [one, two] {
        assert_eq!(g.m.context.destroy(gone), Ok(()));
    }
    let in_use = Err(ObjectError::InUse(g.parent).into());
    assert_eq!(g.m.context.destroy(g.parent), in_use, "PASID 7");
    g.pdev.detach_pasid(7);
    drop(domains);
    assert_eq!(g.m.context.destroy(g.parent), Ok(()));
    assert_eq!(g.m.domains().len(), 0);
}

#[test]
fn what_the_iommu_cannot_walk_is_refused_when_it_is_attached() {
    let g = guest();
    let odd = [0, 39, 47, 49, 52, 56, 64, u32::MAX].map(|width| g.nest(!0, width));
    let good = g.nest(!0, 57);
    let mut first = config(2);
    first.format = TableFormat::X86_64Stage1;
    let first = g.m.iommu.add_device(first).unwrap();
    let first = g.m.context.bind_device(&first, sink()).unwrap();
    g.pdev.attach(g.parent).unwrap();
    g.pdev.attach_pasid(g.parent, 4).unwrap();
    let own = g.m.context.hwpt_domain(g.parent).unwrap();
    for bad in odd {
        let refused = |attached: Result<ObjectId, Error>| {
            assert_matches!(
                attached,
                Err(Error::Attach(AttachError::Incompatible(_))),
                "{bad:?}"
            );
        };
        refused(g.pdev.attach(bad));
        refused(g.pdev.attach_pasid(bad, 4));
        refused(g.pdev.attach_pasid(bad, 5));
        for at in [None, Some(4)] {
            let leads = route(g.pdev.device(), at).unwrap();
            assert!(Arc::ptr_eq(&leads, &own), "the old route is in force");
        }
        assert_eq!(g.pdev.attached(Some(pasid(5))), None);
        assert_eq!(g.m.context.destroy(bad), Ok(()), "nothing uses it");
    }
    let elsewhere = first.attach(good);
    assert_matches!(elsewhere, Err(Error::Attach(AttachError::Incompatible(_))));
    assert_eq!(first.attached(None), None);
}

#[test]
fn only_devices_with_second_stage_tables_nest() {
    let g = guest();
    for (number, format) in [(2, TableFormat::X86_64Stage1), (3, TableFormat::AmdV1)] {
        let mut config = config(number);
        config.format = format;
        let device = g.m.iommu.add_device(config).unwrap();
        let device = g.m.context.bind_device(&device, sink()).unwrap();
        let before = g.m.context.inspect();
        let args = HwptAlloc::new(device.id(), g.ioas);
        let refused = Err(AllocError::NoNesting(format).into());
        let parent = args.with_flags(HwptFlags::NEST_PARENT);
        assert_eq!(g.m.context.hwpt_alloc(parent), refused);
        let on_other = HwptAlloc::new(device.id(), g.parent);
        let data = g.data(0, 48);
        assert_eq!(g.m.context.hwpt_alloc_with(on_other, Some(&data)), refused);
        assert_eq!(g.m.context.inspect(), before);
    }
    let viommu = ViommuAlloc {
        kind: 1,
        device: g.pdev.id(),
        hwpt: g.parent,
        data: UserData::new(&g.program, 1, DATA, 0),
    };
    let none = g.m.context.viommu_alloc(viommu);
    assert_eq!(none, Err(AllocError::TypeNotSupported(1).into()));
}

#[test]
fn invalidation_stops_at_the_first_bad_entry() {
    let g = guest();
    let nested = g.nest(0, 48);
    g.pdev.attach(nested).unwrap();
    let page = || entry(0x7000, 1, 1, 0);
    let all = || entry(0, u64::MAX, 0, 0);
    let stopped = |done, error: Error| Invalidated::stopped(done, error);
    let not_supported = |index, flags, reserved| {
        let error = InvalidateError::NotSupported {
            index,
            flags,
            reserved,
        };
        stopped(index, error.into())
    };
    let bad_range = |index, address, pages| {
        let error = InvalidateError::BadRange {
            index,
            address,
            pages,
        };
        stopped(index, error.into())
    };
    let done = |done| Invalidated {
        done,
        result: Ok(()),
    };
    for (entries, expected) in [
        (vec![], done(0)),
        (vec![page(), all(), page()], done(3)),
        (
            vec![entry(0, 0, 0, 0), entry(0xf000, 1 << 60, 1, 0)],
            done(2),
        ),
        (
            vec![page(), page(), entry(0x123, 1, 2, 0)],
            not_supported(2, 2, 0),
        ),
        (vec![entry(0x123, 1, 1, 9), page()], not_supported(0, 1, 9)),
        (
            vec![page(), entry(0x7fff, 1, 0, 0)],
            bad_range(1, 0x7fff, 1),
        ),
        (
            vec![entry(0x1000, u64::MAX, 0, 0)],
            bad_range(0, 0x1000, u64::MAX),
        ),
    ] {
        assert_eq!(g.invalidate(nested, INVALIDATE, &entries), expected);
    }
    for entries in [vec![], vec![entry(0x123, 1, !0, 0)]] {
        let error = UserDataError::WrongType {
            kind: VTD_S1,
            wanted: INVALIDATE,
        };
        let expected = stopped(0, error.into());
        assert_eq!(g.invalidate(nested, VTD_S1, &entries), expected);
    }
    for len in [1, 23, 25, 32, 4096] {
        let array = UserArray::new(&g.program, INVALIDATE, DATA, len, 1).unwrap();
        let stopped = g.m.context.hwpt_invalidate(nested, &array);
        let error = UserDataError::Length {
            len: len as usize,
            min: LEN as usize,
            max: LEN as usize,
        };
        assert_eq!(stopped, Invalidated::stopped(0, error.into()), "zeros too");
    }
}
