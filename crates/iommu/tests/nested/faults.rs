//! Each way in which an access through two stages fails, with VT-d's number for it; nothing is moved.

use std::sync::Arc;

use ioasid_core::{Access, Prot};
use ioasid_iommu::{
    Device, DmaSource, Domain, FaultReason, FirstStage, FirstStageFault, Iommu, NestedFault,
    PageRequest, PageRequestError, PageRequestHandler, PageResponse,
};

use crate::{
    common::{
        guest::{A, BASE, D, Guest, P, PS, RW, US},
        *,
    },
    rights::{BITS, IOVA, try_access},
};

/// Where nothing is registered.
const NOWHERE: u64 = 0x7_0000_0000_0000;
/// Beyond what the parent translates.
const BEYOND: u64 = 1 << 48;
const WINDOW: u64 = 0xfee0_0000;

struct Case {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    guest: Guest,
    table: FirstStage,
    page: u64,
    /// From the top table down.
    entries: Vec<u64>,
}

impl Case {
    fn new(levels: u32) -> Self {
        let iommu = machine();
        let device = device(&iommu, 1);
        let mut guest = Guest::new(&iommu, 32 << 12);
        let table = guest.table(levels);
        let page = guest.page();
        guest.map(table, IOVA, page, 0, RW | US);
        let entries = guest.entries(table, IOVA, 0);
        Case {
            iommu,
            device,
            guest,
            table,
            page,
            entries,
        }
    }

    /// The entry that leads to the table of `level`, or the leaf.
    fn at(&self, above: usize) -> u64 {
        self.entries[self.entries.len() - 1 - above]
    }

    fn attach(&self) -> Arc<Domain> {
        let nested = self.guest.parent.nest(self.table).unwrap();
        source(&self.device, 3).attach(&nested, &sink()).unwrap();
        DmaSource::new(&self.device, None)
            .attach(&nested, &sink())
            .unwrap();
        nested
    }

    /// An access is refused for this reason, with and without a PASID, and nothing in the guest's memory is
    /// another.
    fn refuses(&self, access: Access, wanted: NestedFault, code: u8) {
        self.refuses_at(IOVA, access, wanted, code);
    }

    fn refuses_at(&self, iova: u64, access: Access, wanted: NestedFault, code: u8) {
        let _nested = self.attach();
        assert_eq!(wanted.code(), code, "{wanted}");
        let all = || {
            let mut bytes = vec![0; self.guest.len as usize];
            self.guest.memory.read(0, &mut bytes);
            bytes
        };
        let before = all();
        let mut port = self.device.port();
        for pasid in [None, pasid(3)] {
            for _ in 0..2 {
                let found = try_access(&mut port, pasid, iova, access);
                assert_eq!(found, Err(FaultReason::Nested(wanted)), "{pasid:?}");
            }
        }
        assert!(before == all(), "{wanted}: something was written");
        let text = FaultReason::Nested(wanted).to_string();
        assert!(text.contains(&format!("{code:#x}")), "{text}");
        drop(port);
        DmaSource::new(&self.device, None).detach();
        source(&self.device, 3).detach();
        assert_eq!(self.iommu.grace().retired_items(), 0);
    }
}

const WRITE: Access = Access::Write;
const READ: Access = Access::Read;

#[test]
fn addresses_that_are_not_canonical() {
    let wanted = NestedFault::FirstStage(FirstStageFault::NotCanonical);
    for (levels, iova) in [
        (4, 1 << 47),
        (4, !0 << 48),
        (4, 1 << 63),
        (5, 1 << 56),
        (5, !0 << 57),
        (5, 1 << 63),
    ] {
        Case::new(levels).refuses_at(iova, WRITE, wanted, 0x80);
    }
}

#[test]
fn entries_that_are_not_present_or_have_reserved_bits() {
    let not_present = NestedFault::FirstStage(FirstStageFault::NotPresent);
    let reserved = NestedFault::FirstStage(FirstStageFault::Reserved);
    for levels in [4, 5] {
        for above in 0..levels as usize {
            let case = Case::new(levels);
            let at = case.at(above);
            // All other bits say nothing then.
            case.guest.write(at, !P);
            case.refuses(READ, not_present, 0x71);
            case.guest.write(at, 0);
            case.refuses(WRITE, not_present, 0x71);
            let leaf_bits = BASE | P | RW | US | PS;
            match above {
                0 => {}
                1 => case.guest.write(at, leaf_bits | 1 << 13),
                2 => case.guest.write(at, leaf_bits | 1 << 29),
                _ => case.guest.write(at, leaf_bits),
            }
            if above > 0 {
                case.refuses(READ, reserved, 0x72);
                case.refuses(WRITE, reserved, 0x72);
            }
        }
    }
}

#[test]
fn tables_that_are_no_memory_or_not_the_parents() {
    for levels in [4, 5] {
        for above in 0..levels as usize {
            let is_root = above + 1 == levels as usize;
            let of_table = |root, other| if is_root { root } else { other };
            // The parent maps nothing there, or gives no right to read.
            let unreadable = of_table(
                (NestedFault::RootRead, 0x75),
                (NestedFault::TableRead, 0x76),
            );
            for prot in [None, Some(Prot::WRITE)] {
                let case = Case::new(levels);
                let page = case.at(above) & !0xfff;
                case.guest.parent.unmap(range(page, 4096));
                if let Some(prot) = prot {
                    case.guest.map_parent(page, prot);
                }
                case.refuses(READ, unreadable.0, unreadable.1);
            }
            let gone = of_table(
                (NestedFault::RootGone, 0x73),
                (NestedFault::TableGone, 0x70),
            );
            let case = Case::new(levels);
            let page = case.at(above) & !0xfff;
            case.guest.parent.unmap(range(page, 4096));
            let parent = &case.guest.parent;
            parent.map(page, NOWHERE, 4096, Prot::RW).unwrap();
            case.refuses(READ, gone.0, gone.1);
            let mut case = Case::new(levels);
            match is_root {
                true => case.table.root = BEYOND,
                false => case.guest.write(case.at(above + 1), BEYOND | P | RW | US),
            }
            case.refuses(WRITE, NestedFault::TableAddressWidth, 0x74);
        }
    }
}

#[test]
fn bits_that_must_be_set_in_a_table_that_is_read_only() {
    for levels in [4, 5] {
        for above in 0..levels as usize {
            for access in [READ, WRITE] {
                let case = Case::new(levels);
                let page = case.at(above) & !0xfff;
                case.guest.remap_parent(page, Prot::READ);
                case.refuses(access, NestedFault::TableWrite, 0x77);
                // Nothing has to be set.
                for at in &case.entries {
                    case.guest.write(*at, case.guest.read(*at) | A | D);
                }
                case.attach();
                let found = try_access(&mut case.device.port(), None, IOVA, access);
                assert_eq!(found, Ok(()));
            }
        }
    }
}

#[test]
fn pages_that_the_parent_refuses() {
    let case = Case::new(4);
    case.guest.parent.unmap(range(case.page, 4096));
    case.refuses(READ, NestedFault::NotMapped, 0x79);
    case.refuses(WRITE, NestedFault::NotMapped, 0x79);
    case.guest.map_parent(case.page, Prot::READ);
    case.refuses(WRITE, NestedFault::Write, 0x85);
    case.guest.remap_parent(case.page, Prot::WRITE);
    case.refuses(READ, NestedFault::Read, 0x86);
    case.guest.write(case.at(0), BEYOND | P | RW | US);
    case.refuses(WRITE, NestedFault::AddressWidth, 0x84);
}

#[test]
fn results_in_the_interrupt_window() {
    for (level, offset) in [(0, 0), (1, 0), (1, 0xf_f000), (2, 0x3ee0_0000)] {
        let mut case = Case::new(4);
        let size = 4096 << (9 * level);
        let leaf = case.guest.entry(case.table, IOVA, level);
        let page = if level > 0 { PS } else { 0 };
        case.guest
            .write(leaf, (WINDOW & !(size - 1)) | P | RW | US | page);
        // The parent would lead there.
        let parent = &case.guest.parent;
        parent.map(WINDOW, NOWHERE, 1 << 20, Prot::RW).unwrap();
        let iova = (IOVA & !(size - 1)) + offset;
        for access in [READ, WRITE] {
            case.refuses_at(iova, access, NestedFault::InterruptWindow, 0x87);
        }
    }
    // A large page goes on up to the window.
    let mut case = Case::new(4);
    let leaf = case.guest.entry(case.table, IOVA, 2);
    case.guest
        .write(leaf, (WINDOW & !0x3fff_ffff) | P | RW | US | PS);
    let memory = pages(&case.iommu, 0x20_0000);
    let parent = &case.guest.parent;
    let before = WINDOW - 0x10_0000;
    parent
        .map(before, memory.spa(), 0x20_0000, Prot::RW)
        .unwrap();
    let _nested = case.attach();
    let iova = (IOVA & !0x3fff_ffff) + (WINDOW & 0x3fff_ffff);
    let mut port = case.device.port();
    for pasid in [None, pasid(3)] {
        let transfer = port.enter(pasid).fill(iova - 0x2000, !0, 0x4000);
        assert_eq!(transfer.done, 0x2000);
        let fault = transfer.fault().unwrap();
        let wanted = FaultReason::Nested(NestedFault::InterruptWindow);
        assert_eq!((fault.iova, fault.reason), (iova, wanted));
    }
    let found = contents(&memory, 0x20_0000);
    assert!(found[0x10_0000..].iter().all(|byte| *byte == 0));
    assert!(found[0xf_e000..0x10_0000].iter().all(|byte| *byte == 0xff));
}

#[test]
fn an_input_in_the_interrupt_window_is_a_message_without_a_pasid_and_an_address_with_one() {
    let mut case = Case::new(4);
    let leaf = case.guest.map(case.table, WINDOW, case.page, 0, RW | US);
    let _nested = case.attach();
    let mut port = case.device.port();
    for access in [READ, WRITE] {
        let found = try_access(&mut port, None, WINDOW, access);
        assert_eq!(found, Err(FaultReason::InterruptWindow));
        assert_eq!(case.guest.read(leaf) & BITS, 0, "no walk");
    }
    try_access(&mut port, pasid(3), WINDOW, WRITE).unwrap();
    let found = try_access(&mut port, None, WINDOW, WRITE);
    assert_eq!(found, Err(FaultReason::InterruptWindow));
}

#[test]
fn faults_name_their_address_and_go_to_the_owner_of_the_nested_attachment() {
    let case = Case::new(4);
    let nested = case.guest.parent.nest(case.table).unwrap();
    let (log, faults) = log();
    source(&case.device, 3).attach(&nested, &faults).unwrap();
    let mut port = case.device.port();
    write(&mut port, pasid(3), IOVA + 0x1008, &[1]).unwrap_err();
    let found = log.drain();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].iova, IOVA + 0x1008);
    assert_eq!(found[0].pasid, pasid(3));
    assert_eq!((nested.faults(), case.guest.parent.faults()), (1, 0));
}

/// A handler that makes the guest enter the page, or changes the parent.
struct Handler(Box<dyn Fn(PageRequest) + Send + Sync>);

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}

impl PageRequestHandler for Handler {
    fn request(&self, request: PageRequest) {
        (self.0)(request);
    }
}

#[test]
fn a_page_request_asks_the_nested_domain_and_its_handler_may_change_both_stages() {
    use std::sync::mpsc;

    let case = Case::new(4);
    let leaf = case.at(0);
    let entry = case.guest.read(leaf);
    case.guest.write(leaf, 0);
    let nested = case.attach();
    let guest = Arc::new(case.guest);
    let handler = {
        let (guest, nested, iommu) = (
            Arc::clone(&guest),
            Arc::downgrade(&nested),
            Arc::clone(&case.iommu),
        );
        Handler(Box::new(move |request: PageRequest| {
            assert_eq!((request.iova, request.pasid), (IOVA, pasid(3)));
            let nested = nested.upgrade().unwrap();
            guest.write(leaf, entry);
            nested.invalidate(range(IOVA, 4096), ioasid_iommu::Invalidate::Leaves);
            // Another page of the guest: its barrier finds no guard.
            assert_eq!(guest.parent.unmap(range(BASE + 31 * 4096, 4096)), 4096);
            iommu
                .page_response(request.id, PageResponse::Success)
                .unwrap();
        }))
    };
    nested.set_page_request_handler(Some(Arc::new(handler)));
    let mut port = case.device.port();
    let transfer = port.enter(pasid(3)).write(IOVA + 8, &[1]);
    let fault = *transfer.fault().unwrap();
    let (send, answer) = mpsc::channel();
    let ask = |fault| {
        let send = send.clone();
        let on_answer = Box::new(move |answer| send.send(answer).unwrap());
        case.device.request_page(fault, on_answer)
    };
    ask(&fault).unwrap();
    assert_eq!(answer.recv(), Ok(PageResponse::Success));
    write(&mut port, pasid(3), IOVA + 8, &[1]).unwrap();
    // A request that is open when the route is replaced by the parent ends.
    nested.set_page_request_handler(Some(Arc::new(Handler(Box::new(|_| {})))));
    ask(&fault).unwrap();
    source(&case.device, 3)
        .replace(&guest.parent, &sink())
        .unwrap();
    assert_eq!(answer.recv(), Ok(PageResponse::Invalid));
    assert!(matches!(
        ask(&fault),
        Err(PageRequestError::NoHandler { domain }) if domain == guest.parent.id()
    ));
}

#[test]
fn a_page_request_is_made_for_what_a_page_can_mend() {
    use FirstStageFault as First;
    use NestedFault as Fault;
    let recoverable = [
        Fault::FirstStage(First::NotPresent),
        Fault::FirstStage(First::User),
        Fault::FirstStage(First::Write),
        Fault::NotMapped,
        Fault::Write,
        Fault::Read,
    ];
    let others = [
        Fault::FirstStage(First::NotCanonical),
        Fault::FirstStage(First::Reserved),
        Fault::FirstStage(First::SupervisorRequest),
        Fault::RootGone,
        Fault::TableGone,
        Fault::TableAddressWidth,
        Fault::RootRead,
        Fault::TableRead,
        Fault::TableWrite,
        Fault::AddressWidth,
        Fault::InterruptWindow,
        Fault::MarkFailed,
    ];
    let case = Case::new(4);
    let nested = case.attach();
    nested.set_page_request_handler(Some(Arc::new(Handler(Box::new(|_| {})))));
    for (reasons, wanted) in [(&recoverable[..], true), (&others[..], false)] {
        for reason in reasons {
            let fault = ioasid_iommu::Fault {
                device: case.device.address(),
                pasid: None,
                iova: IOVA,
                access: WRITE,
                reason: FaultReason::Nested(*reason),
            };
            let asked = case.device.request_page(&fault, Box::new(|_| {}));
            assert_eq!(asked.is_ok(), wanted, "{reason}");
        }
    }
}
