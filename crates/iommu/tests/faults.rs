//! Faults: exact, to the owner alone, bounded; and page requests, which are always answered.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::{Arc, Mutex, OnceLock, mpsc};

use common::*;
use ioasid_core::{Access, DomainId, Prot, memory::OwnPages};
use ioasid_iommu::{
    AttachError, Device, DeviceConfig, DmaSource, Domain, DomainConfig, DomainKind, Fault,
    FaultLog, FaultReason, FaultSink, Iommu, Mismatch, PageRequest, PageRequestError,
    PageRequestHandler, PageRequestId, PageResponse,
};

const IOVA: u64 = 0x10_0000;

#[test]
fn a_fault_record_says_what_happened_to_its_owner_and_to_nobody_else() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (mine, my_sink) = log();
    let (theirs, their_sink) = log();
    let read_only = domain(&iommu);
    let memory = pages(&iommu, 4096);
    read_only.map(IOVA, memory.spa(), 4096, Prot::READ).unwrap();
    let (other, _other_memory) = mapped(&iommu, IOVA, 4096);
    source(&device, 2).attach(&read_only, &my_sink).unwrap();
    source(&device, 3).attach(&other, &their_sink).unwrap();
    let mut port = device.port();

    write(&mut port, pasid(2), IOVA + 8, b"x").unwrap_err();
    // A copy reads its source to the last mapped byte before it faults on the next.
    copy(&mut port, pasid(2), 0, IOVA + 4096, 1).unwrap_err();
    let mut byte = [0];
    let transfer = port.enter(pasid(2)).read(1 << 60, &mut byte);
    let fault = *transfer.fault().unwrap();
    port.report(&fault);

    let record = |iova, access, reason| Fault {
        device: device.address(),
        pasid: pasid(2),
        iova,
        access,
        reason,
    };
    assert_eq!(
        mine.drain(),
        [
            record(IOVA + 8, Access::Write, FaultReason::Permission),
            record(IOVA + 4096, Access::Read, FaultReason::NotPresent),
            record(1 << 60, Access::Read, FaultReason::AddressWidth),
        ]
    );
    assert_eq!(theirs.total(), 0);
    assert_eq!((read_only.faults(), other.faults()), (3, 0));
    // Where nothing is attached, only the device's own log has it.
    write(&mut port, pasid(4), IOVA, b"x").unwrap_err();
    assert_eq!((mine.total(), theirs.total()), (3, 0));
    assert_eq!(device.fault_log().total(), 1);
}

#[test]
fn a_flood_of_a_million_faults_keeps_the_log_small() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let flooded = FaultLog::new(100);
    let (quiet, quiet_sink) = log();
    let flooded_sink: Arc<dyn FaultSink> = flooded.clone();
    let (a, b) = (domain(&iommu), domain(&iommu));
    source(&device, 1).attach(&a, &flooded_sink).unwrap();
    source(&device, 2).attach(&b, &quiet_sink).unwrap();
    let mut port = device.port();
    for _ in 0..1_000_000 {
        write(&mut port, pasid(1), IOVA, b"x").unwrap_err();
    }
    assert_eq!(flooded.faults().len(), 100);
    assert_eq!(flooded.dropped(), 1_000_000 - 100);
    assert_eq!((a.faults(), quiet.total()), (1_000_000, 0));
}

#[test]
fn the_interrupt_window_is_no_memory_without_a_pasid_and_plain_addresses_with_one() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let window = 0xfee0_0000;
    let domain = domain(&iommu);
    let memory = pages(&iommu, 8192);
    domain
        .map(window - 4096, memory.spa(), 8192, Prot::RW)
        .unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    source(&device, 1).attach(&domain, &sink()).unwrap();
    let mut port = device.port();
    let fault = write(&mut port, None, window - 2, b"abcd").unwrap_err();
    assert_eq!(
        (fault.iova, fault.reason),
        (window, FaultReason::InterruptWindow)
    );
    assert_eq!(&contents(&memory, 4100)[4094..], b"ab\0\0\0\0");
    // Downwards as well.
    let fault = copy(&mut port, None, window - 8, window - 16, 16).unwrap_err();
    assert_eq!(fault.reason, FaultReason::InterruptWindow);
    write(&mut port, pasid(1), window - 2, b"ABCD").unwrap();
    assert_eq!(&contents(&memory, 4098)[4094..], b"ABCD");
    let unmapped = write(&mut port, pasid(1), window + 4096, b"x").unwrap_err();
    assert_eq!(unmapped.reason, FaultReason::NotPresent);
}

#[test]
fn a_transfer_that_passes_the_end_of_the_address_space_faults() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let config = DomainConfig::unmanaged(FORMAT).with_kind(DomainKind::Identity);
    let identity = iommu.alloc_domain(config).unwrap();
    DmaSource::new(&device, None)
        .attach(&identity, &sink())
        .unwrap();
    let memory = pages(&iommu, 4096);
    let mut port = device.port();
    for (dst, src) in [
        (u64::MAX - 1, memory.spa()),
        (memory.spa(), u64::MAX - 1),
        (u64::MAX, u64::MAX - 1),
    ] {
        copy(&mut port, None, dst, src, 4096).unwrap_err();
    }
    copy(&mut port, None, memory.spa(), memory.spa(), u64::MAX).unwrap_err();
}

/// Keeps requests; the test answers.
#[derive(Debug, Default)]
struct Keeper(Mutex<Vec<PageRequest>>);

impl PageRequestHandler for Keeper {
    fn request(&self, request: PageRequest) {
        self.0.lock().unwrap().push(request);
    }
}

impl Keeper {
    fn ids(&self) -> Vec<PageRequestId> {
        self.0.lock().unwrap().iter().map(|r| r.id).collect()
    }
}

/// Misses at [`IOVA`] and asks for the page; gives the receiver of the answer.
fn miss(
    device: &Arc<Device>,
    tag: Option<ioasid_core::Pasid>,
) -> Result<mpsc::Receiver<PageResponse>, PageRequestError> {
    let mut port = device.port();
    let fault = *port.enter(tag).write(IOVA + 9, b"x").fault().unwrap();
    let (send, receive) = mpsc::channel();
    device.request_page(
        &fault,
        Box::new(move |answer| send.send(answer).unwrap_or_default()),
    )?;
    Ok(receive)
}

fn with_keeper(iommu: &Arc<Iommu>) -> (Arc<Domain>, Arc<Keeper>) {
    let domain = domain(iommu);
    let keeper = Arc::new(Keeper::default());
    domain.set_page_request_handler(Some(keeper.clone()));
    (domain, keeper)
}

#[test]
fn an_answered_page_request_lets_the_access_go_on_and_is_not_a_fault() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (reports, sink) = log();
    let (domain, keeper) = with_keeper(&iommu);
    source(&device, 5).attach(&domain, &sink).unwrap();
    let answer = miss(&device, pasid(5)).unwrap();
    let request = keeper.0.lock().unwrap()[0];
    assert_eq!(
        (request.device, request.pasid, request.iova, request.access),
        (device.address(), pasid(5), IOVA, Access::Write)
    );
    let memory = pages(&iommu, 4096);
    domain.map(IOVA, memory.spa(), 4096, Prot::RW).unwrap();
    iommu
        .page_response(request.id, PageResponse::Success)
        .unwrap();
    assert_eq!(answer.recv(), Ok(PageResponse::Success));
    write(&mut device.port(), pasid(5), IOVA + 9, b"x").unwrap();
    assert_eq!(reports.total(), 0);
    assert!(
        iommu
            .page_response(request.id, PageResponse::Success)
            .is_err(),
        "answered once"
    );
}

#[test]
fn the_end_of_a_route_or_of_the_handler_answers_what_is_pending() {
    let iommu = machine();
    let device = device(&iommu, 1);
    type End = fn(&Arc<Iommu>, &Arc<Device>, &Arc<Domain>);
    let ends: [End; 3] = [
        |_, device, _| DmaSource::new(device, None).detach(),
        |iommu, device, _| {
            DmaSource::new(device, None)
                .replace(&domain(iommu), &sink())
                .unwrap()
        },
        |_, _, domain| domain.set_page_request_handler(None),
    ];
    for end in ends {
        let (domain, keeper) = with_keeper(&iommu);
        DmaSource::new(&device, None)
            .attach(&domain, &sink())
            .unwrap();
        let answers: Vec<_> = (0..100).map(|_| miss(&device, None).unwrap()).collect();
        assert_eq!(iommu.pending_page_requests(), 100);
        end(&iommu, &device, &domain);
        for answer in answers {
            assert_eq!(answer.recv(), Ok(PageResponse::Invalid));
        }
        assert_eq!(iommu.pending_page_requests(), 0);
        for id in keeper.ids() {
            assert!(iommu.page_response(id, PageResponse::Success).is_err());
        }
        DmaSource::new(&device, None).detach();
    }
}

#[test]
fn nobody_is_asked_where_nobody_can_answer() {
    let iommu = machine();
    let able = device(&iommu, 1);
    let unable = iommu
        .add_device(DeviceConfig {
            page_requests: false,
            ..DeviceConfig::new(address(2))
        })
        .unwrap();
    let plain = domain(&iommu);
    DmaSource::new(&able, None).attach(&plain, &sink()).unwrap();
    DmaSource::new(&unable, None)
        .attach(&plain, &sink())
        .unwrap();
    let domain = plain.id();
    assert_eq!(
        miss(&able, None).unwrap_err(),
        PageRequestError::NoHandler { domain }
    );
    let (handled, _keeper) = with_keeper(&iommu);
    assert_eq!(
        DmaSource::new(&unable, None).replace(&handled, &sink()),
        Err(AttachError::Incompatible(Mismatch::PageRequests {
            device: unable.address()
        }))
    );
    // A blocked route cannot be mended by a page.
    assert_eq!(
        miss(&able, pasid(1)).unwrap_err(),
        PageRequestError::NotRecoverable {
            reason: FaultReason::NotAttached
        }
    );
}

#[test]
fn outstanding_page_requests_of_a_device_are_bounded() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _keeper) = with_keeper(&iommu);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let limit = ioasid_iommu::PAGE_REQUEST_LIMIT;
    let _answers: Vec<_> = (0..limit).map(|_| miss(&device, None).unwrap()).collect();
    assert_eq!(
        miss(&device, None).unwrap_err(),
        PageRequestError::TooMany {
            device: device.address()
        }
    );
}

/// A handler that takes the old mapping away before it gives the new one, from within the request.
#[derive(Debug)]
struct Swapper {
    iommu: Arc<Iommu>,
    domain: OnceLock<Arc<Domain>>,
    memory: OwnPages,
}

impl PageRequestHandler for Swapper {
    fn request(&self, request: PageRequest) {
        let domain = self.domain.get().unwrap();
        assert_eq!(domain.unmap(range(IOVA + 4096, 4096)), 4096);
        domain
            .map(request.iova, self.memory.spa(), 4096, Prot::RW)
            .unwrap();
        self.iommu
            .page_response(request.id, PageResponse::Success)
            .unwrap();
    }
}

#[test]
fn an_unmap_by_the_handler_of_a_pending_request_completes() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA + 4096, 4096);
    let swapper = Arc::new(Swapper {
        iommu: Arc::clone(&iommu),
        domain: OnceLock::new(),
        memory: pages(&iommu, 4096),
    });
    swapper.domain.set(Arc::clone(&domain)).unwrap();
    domain.set_page_request_handler(Some(swapper.clone()));
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let answer = miss(&device, None).unwrap();
    assert_eq!(answer.recv(), Ok(PageResponse::Success));
    write(&mut device.port(), None, IOVA, b"there").unwrap();
    assert_eq!(&contents(&swapper.memory, 5), b"there");
    domain.set_page_request_handler(None);
}

#[test]
fn a_guard_names_its_domain_and_its_reporter_outlives_the_attachment() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (mine, my_sink) = log();
    let (next, next_sink) = log();
    let (a, b) = (domain(&iommu), domain(&iommu));
    DmaSource::new(&device, None).attach(&a, &my_sink).unwrap();
    let mut port = device.port();
    let (fault, reporter) = {
        let mut guard = port.enter(None);
        assert_eq!(guard.domain(), DomainId::new(a.id().get()));
        let transfer = guard.write(IOVA, b"x");
        (*transfer.fault().unwrap(), guard.reporter())
    };
    DmaSource::new(&device, None)
        .replace(&b, &next_sink)
        .unwrap();
    // Reported late: to whom it happened, not to whom the route belongs now.
    reporter.report(&fault);
    assert_eq!((mine.total(), next.total()), (1, 0));
}
