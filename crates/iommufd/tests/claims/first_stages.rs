//! Guests' first-stage tables on the domains of software devices (VT-d).

use std::sync::{Arc, mpsc::channel};

use ioasid_core::{AddrRange, Pasid, PciAddress, inspect::Inspect, memory::OwnPages};
use ioasid_iommu::{
    Device, Domain, DomainKind, Fault, FirstStage, PageRequestError, PageResponse, Stop,
    TableFormat,
};
use ioasid_iommufd::{
    AllocError, AttachError, BoundDevice, DirtyRequest, Error, HwptAlloc, HwptFlags,
    InvalidateError, Invalidated, ObjectError, ObjectId, UserArray, UserData, UserDataError,
    ViommuAlloc,
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

/// A root, a table for each level below it, and a page: guest-physical, in what the IOAS maps from 0.
const TABLES: [u64; 4] = [ROOT, 0x6000, 0x7000, 0x8000];
const TARGET: u64 = 0x9000;
/// Leads to `TARGET`.
const INPUT: u64 = 0x1234_5000;
/// Present, writable, user.
const RIGHTS: u64 = 0b111;

/// Writes entries for `INPUT` into the guest's memory, and says where the last one is.
fn put_tables(memory: &OwnPages) -> usize {
    let mut last = 0;
    for (level, table) in TABLES.into_iter().enumerate() {
        let index = INPUT >> (39 - 9 * level) & 0x1ff;
        last = (table + 8 * index) as usize;
        let to = TABLES.get(level + 1).copied().unwrap_or(TARGET);
        memory.memory().write(last, &(to | RIGHTS).to_le_bytes());
    }
    last
}

#[test]
fn a_nest_parent_and_the_address_space_itself_are_one_domain() {
    for order in 0..8 {
        let m = machine();
        let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
        let program = Program::new(0x1000);
        let ioas = m.ioas();
        let memory = m.map(ioas, 0, 0x1_0000);
        put_tables(&memory);
        let dirty = if order & 4 == 0 {
            HwptFlags::NONE
        } else {
            HwptFlags::DIRTY_TRACKING
        };
        let take = || {
            let args = HwptAlloc::new(pdev.id(), ioas).with_flags(PARENT.with(dirty));
            let parent = m.context.hwpt_alloc(args).unwrap();
            assert_eq!(pdev.attach(parent), Ok(parent));
            parent
        };
        let parent = if order & 1 == 0 {
            let parent = take();
            mdev.attach(ioas).unwrap();
            parent
        } else {
            mdev.attach(ioas).unwrap();
            take()
        };
        let (whole, child) = (
            (pdev.device().address(), None),
            (mdev.device().address(), Some(pasid(5))),
        );
        assert_eq!(m.routes(), [whole, child], "one domain, order {order}");

        program.put(DATA as usize, &stage_one(0, 48));
        let data = UserData::new(&program, VTD_S1, DATA, LEN);
        let nested = HwptAlloc::new(pdev.id(), parent).with_flags(HwptFlags::PASID);
        let nested = m.context.hwpt_alloc_with(nested, Some(&data)).unwrap();
        pdev.attach(nested).unwrap();
        assert_eq!(m.routes(), [child], "still one, with a nested one on it");
        assert!(dma_write(&pdev, None, INPUT, 7) && dma_write(&mdev, None, TARGET + 1, 8));
        let at = |offset: u64| byte(&memory, (TARGET + offset) as usize);
        assert_eq!((at(0), at(1)), (7, 8), "the same memory");
        assert!(!reaches(&pdev, TARGET) && !reaches(&mdev, INPUT));

        let leave_child = || mdev.detach();
        let leave_whole = || {
            pdev.attach(parent).unwrap();
            assert_eq!(m.context.destroy(nested), Ok(()));
            pdev.detach();
            assert_eq!(m.context.destroy(parent), Ok(()));
        };
        if order & 2 == 0 {
            leave_child();
            assert!(reaches(&pdev, INPUT));
            leave_whole();
        } else {
            leave_whole();
            assert_eq!(m.routes(), [child]);
            assert!(reaches(&mdev, TARGET));
            leave_child();
        }
        assert_eq!(m.domains().len(), 0, "order {order}");
    }
}

#[test]
fn pages_are_asked_of_the_queue_of_the_first_stage_with_the_input_address() {
    let g = guest();
    let memory = g.m.map(g.ioas, 0, 0x1_0000);
    let last = put_tables(&memory);
    let present = memory_word(&memory, last);
    memory.memory().write(last, &[0; 8]);
    let (queue, file) = g.m.context.fault_queue_alloc().unwrap();
    let asking = HwptAlloc {
        fault_id: queue.get(),
        ..HwptAlloc::new(g.pdev.id(), g.parent)
            .with_flags(HwptFlags::FAULT_ID_VALID.with(HwptFlags::PASID))
    };
    let data = g.data(0, 48);
    let asking = g.m.context.hwpt_alloc_with(asking, Some(&data)).unwrap();
    let mute = g.nest(0, 48);
    g.pdev.attach(mute).unwrap();
    g.pdev.attach_pasid(asking, 6).unwrap();
    let miss = |at: Option<Pasid>| {
        let mut port = g.pdev.device().port();
        let mut guard = port.enter(at);
        match guard.write(INPUT + 0x123, &[1]).stop {
            Some(Stop::Fault(fault)) => fault,
            other => panic!("{other:?}"),
        }
    };
    let (send, answers) = channel();
    let ask = |fault: &Fault| {
        let send = send.clone();
        let on_answer = Box::new(move |answer| {
            // The test has both ends.
            let _ = send.send(answer);
        });
        g.pdev.device().request_page(fault, on_answer)
    };
    let without = ask(&miss(None));
    assert_matches!(without, Err(PageRequestError::NoHandler { .. }));
    let fault = miss(Some(pasid(6)));
    assert_eq!(fault.iova, INPUT + 0x123, "what the device asked for");
    ask(&fault).unwrap();
    let record = file.read(40).unwrap();
    let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
    let address = u64::from_ne_bytes(record[24..32].try_into().unwrap());
    assert_eq!(
        (word(4), word(8), address),
        (g.pdev.id().get(), 6, INPUT),
        "device, PASID, page"
    );
    // What a VMM does meanwhile: the guest's handler writes the entry, and the guest invalidates.
    memory.memory().write(last, &present);
    let done = g.invalidate(asking, INVALIDATE, &[entry(INPUT, 1, 1, 0)]);
    assert_eq!((done.done, done.result), (1, Ok(())));
    let answer = [word(36).to_ne_bytes(), [0; 4]].concat();
    assert_eq!(file.write(&answer), Ok(8));
    assert_eq!(answers.recv(), Ok(PageResponse::Success));
    assert!(dma_write(&g.pdev, Some(pasid(6)), INPUT + 0x123, 5));
    assert_eq!(byte(&memory, TARGET as usize + 0x123), 5);
}

fn memory_word(memory: &OwnPages, at: usize) -> [u8; 8] {
    let mut word = [0; 8];
    memory.memory().read(at, &mut word);
    word
}

#[test]
fn what_a_nested_domain_writes_is_dirty_in_the_parent() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let memory = m.map(ioas, 0, 0x1_0000);
    put_tables(&memory);
    let flags = PARENT.with(HwptFlags::DIRTY_TRACKING);
    let parent = HwptAlloc::new(pdev.id(), ioas).with_flags(flags);
    let g = Guest {
        parent: m.context.hwpt_alloc(parent).unwrap(),
        program: Program::new(0x1000),
        m,
        pdev,
        ioas,
    };
    let nested = g.nest(0, 48);
    g.pdev.attach(nested).unwrap();
    let context = &g.m.context;
    context.hwpt_set_dirty_tracking(g.parent, true).unwrap();
    let missing = Err(ObjectError::Missing(nested).into());
    assert_eq!(context.hwpt_set_dirty_tracking(nested, true), missing);
    let dirty = || {
        let request = DirtyRequest {
            hwpt: g.parent,
            iova: 0,
            len: 0x1_0000,
            page_size: PAGE,
            no_clear: false,
        };
        let mut pages = Vec::new();
        let report = &mut |range: AddrRange| {
            pages.extend((range.start()..=range.last()).step_by(PAGE as usize));
        };
        context.hwpt_get_dirty(request, report).unwrap();
        pages
    };
    assert_eq!(dirty(), []);
    assert!(dma_write(&g.pdev, None, INPUT, 1));
    let written = [&TABLES[..], &[TARGET]].concat();
    assert_eq!(dirty(), written, "the page, and the tables by their marks");
    assert!(dma_write(&g.pdev, None, INPUT, 2));
    assert_eq!(dirty(), [TARGET], "their marks are there");
    let mut blind = config(2);
    blind.dirty = false;
    let blind = g.m.iommu.add_device(blind).unwrap();
    let blind = g.m.context.bind_device(&blind, sink()).unwrap();
    for page_table in [g.parent, nested] {
        assert_matches!(
            blind.attach(page_table),
            Err(Error::Attach(AttachError::Incompatible(_)))
        );
    }
}
