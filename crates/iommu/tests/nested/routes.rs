//! Nested domains as what sources are attached to: isolation, changes of routes, what is withheld and reported.

use std::sync::{Arc, Mutex};

use ioasid_core::{Access, AddrRange};
use ioasid_iommu::{
    AttachError, DmaSource, Domain, DomainConfig, FaultReason, Invalidate, Requests, Stop,
    WriteSink,
};

use crate::{
    common::{
        guest::{A, D, Guest, Place, RW, US},
        *,
    },
    rights::{IOVA, try_access},
};

const LEN: u64 = 4096;

/// A process of the guest: its table, a page at [`IOVA`], and another one that no other process has.
struct Process {
    domain: Arc<Domain>,
    page: u64,
    own_iova: u64,
    own_page: u64,
}

fn process(guest: &mut Guest, number: u64) -> Process {
    let table = guest.table(4);
    let (page, own_page) = (guest.page(), guest.page());
    let own_iova = IOVA + (number + 1) * LEN;
    guest.map(table, IOVA, page, 0, RW | US);
    guest.map(table, own_iova, own_page, 0, RW | US);
    Process {
        domain: guest.parent.nest(table).unwrap(),
        page,
        own_iova,
        own_page,
    }
}

#[test]
fn one_pasid_of_two_devices_and_two_of_one_are_four_processes() {
    let iommu = machine();
    let devices = [device(&iommu, 1), device(&iommu, 2)];
    let mut guests = [Guest::new(&iommu, 64 * LEN), Guest::new(&iommu, 64 * LEN)];
    let sources: Vec<DmaSource> = devices
        .iter()
        .flat_map(|device| [source(device, 1), source(device, 2)])
        .collect();
    // Both machines on both devices: the parents are shared.
    let processes: Vec<Process> = (0..4)
        .map(|number| process(&mut guests[number % 2], number as u64))
        .collect();
    for (source, process) in sources.iter().zip(&processes) {
        source.attach(&process.domain, &sink()).unwrap();
    }
    for (number, source) in sources.iter().enumerate() {
        let mut port = source.device.port();
        let mark = [number as u8 + 1; 8];
        write(&mut port, source.pasid, IOVA, &mark).unwrap();
        for (other, process) in processes.iter().enumerate() {
            let guest = &guests[other % 2];
            let expected = if other <= number { other as u8 + 1 } else { 0 };
            assert_eq!(guest.bytes(process.page, 8), [expected; 8]);
            let reached = try_access(&mut port, source.pasid, process.own_iova, Access::Write);
            assert_eq!(reached.is_ok(), other == number, "{number} to {other}");
        }
    }
    for (number, process) in processes.iter().enumerate() {
        let own = guests[number % 2].bytes(process.own_page, 8);
        assert_eq!(own, [0x5a; 8]);
        let source = &sources[number];
        let expected = [(source.device.address(), source.pasid)];
        assert_eq!(process.domain.attachments(), expected);
        assert_eq!(process.domain.dma_bytes(), 16);
    }
    for guest in &guests {
        assert_eq!(guest.parent.attachments(), []);
        assert_eq!(guest.parent.dma_bytes(), 0);
    }
}

#[test]
fn a_route_goes_between_parent_and_nested_and_from_one_nested_to_another() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let mut guest = Guest::new(&iommu, 64 * LEN);
    let processes = [0, 1].map(|number| process(&mut guest, number));
    let free = guest.page();
    for pasid in [None, pasid(4)] {
        let route = DmaSource::new(&device, pasid);
        let mut port = device.port();
        route.attach(&guest.parent, &sink()).unwrap();
        let busy = route.attach(&processes[0].domain, &sink());
        assert!(matches!(busy, Err(AttachError::Attached { .. })));
        write(&mut port, pasid, free, b"gpa").unwrap();
        assert_eq!(guest.bytes(free, 3), b"gpa");
        for (number, process) in [(0, &processes[0]), (1, &processes[1]), (2, &processes[0])] {
            route.replace(&process.domain, &sink()).unwrap();
            try_access(&mut port, pasid, free, Access::Write).unwrap_err();
            write(&mut port, pasid, IOVA, &[number; 2]).unwrap();
            assert_eq!(guest.bytes(process.page, 2), [number; 2]);
            // Once more by itself.
            route.replace(&process.domain, &sink()).unwrap();
            assert_eq!(process.domain.attachments().len(), 1);
        }
        route.replace(&guest.parent, &sink()).unwrap();
        write(&mut port, pasid, free, b"end").unwrap();
        try_access(&mut port, pasid, IOVA, Access::Write).unwrap_err();
        assert_eq!(guest.bytes(processes[0].page, 2), [2; 2]);
        route.detach();
        assert_eq!(guest.parent.attachments(), []);
        let domains = [&processes[0].domain, &processes[1].domain];
        assert!(domains.iter().all(|domain| domain.attachments().is_empty()));
    }
    // Nothing but the guest and its processes holds them.
    for process in &processes {
        assert_eq!(Arc::strong_count(&process.domain), 1);
    }
    assert_eq!(Arc::strong_count(&guest.parent), 3);
}

#[test]
fn what_is_withheld_or_in_reset_reaches_no_nested_domain() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let mut guest = Guest::new(&iommu, 64 * LEN);
    let processes = [0, 1].map(|number| process(&mut guest, number));
    let routes = [DmaSource::new(&device, None), source(&device, 3)];
    for (route, process) in routes.iter().zip(&processes) {
        route.attach(&process.domain, &sink()).unwrap();
    }
    let mut port = device.port();
    let mut is_withheld = |pasid| {
        let stop = port.enter(pasid).write(IOVA, &[1]).stop;
        matches!(stop, Some(Stop::Withheld))
    };
    assert!(device.withhold(Requests::Of(pasid(3).unwrap())));
    assert!(is_withheld(pasid(3)) && !is_withheld(None));
    device.release(Requests::Of(pasid(3).unwrap()));
    assert!(device.withhold(Requests::All));
    assert!(is_withheld(pasid(3)) && is_withheld(None));
    // Attachments can change meanwhile.
    routes[0].replace(&guest.parent, &sink()).unwrap();
    routes[0].replace(&processes[0].domain, &sink()).unwrap();
    device.release(Requests::All);
    for pasid in [None, pasid(3)] {
        write(&mut port, pasid, IOVA, &[7]).unwrap();
    }
    for process in &processes {
        assert_eq!(guest.bytes(process.page, 1), [7]);
    }
    let reset = device.begin_reset();
    let refused = try_access(&mut port, None, IOVA, Access::Write);
    assert_eq!(refused, Err(FaultReason::Blocked));
    drop(reset);
    write(&mut port, pasid(3), IOVA, &[8]).unwrap();
    assert_eq!(guest.bytes(processes[1].page, 1), [8]);
}

#[derive(Debug, Default)]
struct Log(Mutex<Vec<AddrRange>>);

impl WriteSink for Log {
    fn wrote(&self, range: AddrRange) {
        self.0.lock().unwrap().push(range);
    }
}

#[test]
fn a_write_watch_reports_the_addresses_of_the_guest() {
    for place in [Place::Own, Place::Private] {
        let iommu = machine();
        let device = device(&iommu, 1);
        let config = DomainConfig::unmanaged(FORMAT);
        let mut guest = Guest::with(&iommu, 64 * LEN, place, config);
        let process = process(&mut guest, 0);
        source(&device, 3).attach(&process.domain, &sink()).unwrap();
        let log = Arc::<Log>::default();
        let watch = device.watch_writes(Requests::All, log.clone());
        let mut port = device.port();
        let mut guard = port.enter_blocking(pasid(3));
        let transfer = guard.write(IOVA + 4094, b"abcd");
        drop(guard);
        assert_eq!(
            transfer.stop.map(|stop| stop.to_string()),
            None,
            "{place:?}"
        );
        watch.flush();
        let told = std::mem::take(&mut *log.0.lock().unwrap());
        assert_eq!(told, [range(IOVA + 4094, 2), range(IOVA + 4096, 2)]);
    }
}

/// What is dirty in the parent, by page.
fn dirty(guest: &Guest, clear: bool) -> Vec<u64> {
    let mut found = Vec::new();
    let all = range(guest::BASE, guest.len);
    guest.parent.read_dirty(all, clear, &mut |range| {
        found.extend((range.start()..=range.last()).step_by(4096));
    });
    found
}

#[test]
fn the_parent_tells_pages_that_were_written_and_tables_in_which_bits_were_set() {
    for caching in [false, true] {
        let iommu = machine();
        let devices = [device(&iommu, 1), device(&iommu, 2)];
        let config = DomainConfig {
            dirty_tracking: true,
            ..DomainConfig::unmanaged(FORMAT)
        };
        let mut guest = Guest::with(&iommu, 64 * LEN, Place::Own, config);
        let table = guest.table(4);
        let [page, next] = [guest.page(), guest.page()];
        guest.map(table, IOVA, page, 0, RW | US);
        guest.map(table, IOVA + LEN, next, 0, RW | US);
        let entries = guest.entries(table, IOVA, 0);
        let nested = guest.parent.nest(table).unwrap();
        let tlb = ioasid_iommu::Tlb::new();
        if caching {
            devices[0].enable_ats(tlb.clone());
        }
        source(&devices[0], 1).attach(&nested, &sink()).unwrap();
        DmaSource::new(&devices[1], None)
            .attach(&guest.parent, &sink())
            .unwrap();
        let mut port = match caching {
            true => devices[0].port_with_tlb(&tlb),
            false => devices[0].port(),
        };
        let mut plain = devices[1].port();
        guest.parent.set_dirty_tracking(true);
        // A read sets bits in every table.
        let mut tables: Vec<u64> = entries.iter().map(|at| at & !0xfff).collect();
        tables.sort_unstable();
        try_access(&mut port, pasid(1), IOVA, Access::Read).unwrap();
        assert_eq!(dirty(&guest, true), tables);
        try_access(&mut port, pasid(1), IOVA, Access::Read).unwrap();
        assert_eq!(dirty(&guest, true), []);
        // A write sets the dirty bit in the leaf.
        for round in 0..3 {
            write(&mut port, pasid(1), IOVA + 16, &[1]).unwrap();
            let mut written = vec![page];
            if round == 0 {
                written.push(tables[tables.len() - 1].max(entries[3] & !0xfff));
            }
            written.sort_unstable();
            assert_eq!(dirty(&guest, round > 0), written, "{round}");
            if round == 0 {
                assert_eq!(dirty(&guest, true), written, "not cleared before");
            }
        }
        // Both kinds of routes in one bitmap.
        guest.write(entries[3] + 8, guest.read(entries[3] + 8) | A | D);
        let other = guest.page();
        write(&mut port, pasid(1), IOVA + LEN, &[1]).unwrap();
        write(&mut plain, None, other, &[1]).unwrap();
        assert_eq!(dirty(&guest, true), [next, other]);
        // A refused write leaves nothing.
        guest.remap_parent(page, ioasid_core::Prot::READ);
        try_access(&mut port, pasid(1), IOVA, Access::Write).unwrap_err();
        assert_eq!(dirty(&guest, true), []);
    }
}

/// Writes down what it is told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(Option<ioasid_core::Pasid>, AddrRange)>>);

impl ioasid_iommu::DeviceTlb for Told {
    fn invalidate(&self, pasid: Option<ioasid_core::Pasid>, range: AddrRange) {
        self.0.lock().unwrap().push((pasid, range));
    }
}

#[test]
fn a_device_with_a_tlb_is_told_of_changes_in_either_stage() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let told = Arc::<Told>::default();
    device.enable_ats(told.clone());
    let mut guest = Guest::new(&iommu, 64 * LEN);
    let process = process(&mut guest, 0);
    source(&device, 3).attach(&process.domain, &sink()).unwrap();
    let taken = || std::mem::take(&mut *told.0.lock().unwrap());
    let some = range(IOVA, 2 * LEN);
    process.domain.invalidate(some, Invalidate::Leaves);
    // The largest page that the address may lie in.
    let large = range(IOVA & !0x3fff_ffff, 1 << 30);
    assert_eq!(taken(), [(pasid(3), large)]);
    process
        .domain
        .invalidate(AddrRange::ALL, Invalidate::Tables);
    assert_eq!(taken(), [(pasid(3), AddrRange::ALL)]);
    // The parent's addresses are not those of the device.
    guest.parent.unmap(range(process.own_page, LEN));
    assert_eq!(taken(), [(pasid(3), AddrRange::ALL)]);
    source(&device, 3).replace(&guest.parent, &sink()).unwrap();
    assert_eq!(taken(), [(pasid(3), AddrRange::ALL)]);
    process.domain.invalidate(some, Invalidate::Tables);
    assert_eq!(taken(), [], "it is not attached any more");
    let gone = range(process.page, LEN);
    guest.parent.unmap(gone);
    assert_eq!(taken(), [(pasid(3), gone)]);
}

#[test]
fn a_kept_translation_is_not_used_after_a_change_in_either_stage() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = ioasid_iommu::Tlb::new();
    device.enable_ats(tlb.clone());
    let mut guest = Guest::new(&iommu, 64 * LEN);
    let process = process(&mut guest, 0);
    source(&device, 3).attach(&process.domain, &sink()).unwrap();
    for mut port in [device.port(), device.port_with_tlb(&tlb)] {
        for _ in 0..2 {
            write(&mut port, pasid(3), IOVA, &[1]).unwrap();
        }
        guest.parent.unmap(range(process.page, LEN));
        try_access(&mut port, pasid(3), IOVA, Access::Write).unwrap_err();
        guest.map_parent(process.page, ioasid_core::Prot::RW);
        write(&mut port, pasid(3), IOVA, &[2]).unwrap();
        // Another page of the guest in its place.
        guest.parent.unmap(range(process.page, LEN));
        let new = pages(&iommu, 4096);
        guest
            .parent
            .map(process.page, new.spa(), LEN, ioasid_core::Prot::RW)
            .unwrap();
        write(&mut port, pasid(3), IOVA, &[3]).unwrap();
        assert_eq!(
            (contents(&new, 1), guest.bytes(process.page, 1)),
            (vec![3], vec![2])
        );
        guest.remap_parent(process.page, ioasid_core::Prot::RW);
    }
    assert!(tlb.lookups().1 > 0);
}
