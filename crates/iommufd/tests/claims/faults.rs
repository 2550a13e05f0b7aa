//! Page requests that a program answers: whatever happens, every request gets one answer.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
    mpsc::{Receiver, channel},
};

use ioasid_core::{Access, Pasid};
use ioasid_iommu::{Fault, FaultReason, PageRequestError, PageResponse};
use ioasid_iommufd::{
    AttachError, BoundDevice, Error, EventError, EventFile, HwptAlloc, HwptFlags, ObjectError,
    ObjectId, PageFault,
};

use crate::{backend, machine::*};

const RECORD: usize = 40;

/// A page table whose requests go to a queue of its own.
struct Queue {
    id: ObjectId,
    file: Arc<dyn EventFile>,
    hwpt: ObjectId,
}

fn queue(m: &Machine, device: &BoundDevice, ioas: ObjectId, flags: HwptFlags) -> Queue {
    let (id, file) = m.context.fault_queue_alloc().unwrap();
    let hwpt = with_queue(m, device, ioas, flags, id).unwrap();
    Queue { id, file, hwpt }
}

fn with_queue(
    m: &Machine,
    device: &BoundDevice,
    ioas: ObjectId,
    flags: HwptFlags,
    queue: ObjectId,
) -> Result<ObjectId, Error> {
    m.context.hwpt_alloc(HwptAlloc {
        fault_id: queue.get(),
        ..HwptAlloc::new(device.id(), ioas).with_flags(flags.with(HwptFlags::FAULT_ID_VALID))
    })
}

/// The device misses a page and asks for it.
fn ask(
    device: &BoundDevice,
    pasid: Option<Pasid>,
    iova: u64,
) -> Result<Receiver<PageResponse>, PageRequestError> {
    let (send, receive) = channel();
    let fault = Fault {
        device: device.device().address(),
        pasid: device.default_pasid().or(pasid),
        iova,
        access: Access::Write,
        reason: FaultReason::NotPresent,
    };
    let on_answer = Box::new(move |response| {
        // A test that is not interested has dropped the other end.
        let _ = send.send(response);
    });
    device.device().request_page(&fault, on_answer)?;
    Ok(receive)
}

fn words(record: &[u8]) -> Vec<u32> {
    record
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
        .collect()
}

fn answer(cookie: u32, code: u32) -> Vec<u8> {
    [cookie.to_ne_bytes(), code.to_ne_bytes()].concat()
}

#[test]
fn a_page_that_the_program_maps_in_time_is_a_success() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    device.attach(q.hwpt).unwrap();
    assert!(!reaches(&device, 0x5000));
    let answered = ask(&device, None, 0x5678).unwrap();
    assert!(q.file.is_readable() && q.file.is_writable());
    let record = words(&q.file.read(RECORD).unwrap());
    assert_eq!(record[0], 1 << 1, "the last page, no PASID");
    assert_eq!((record[1], record[2]), (device.id().get(), 0));
    assert_eq!((record[4], record[6]), (1 << 1, 0x5000), "write, page");
    let cookie = record[9];
    m.map(ioas, 0x5000, PAGE);
    assert_eq!(q.file.write(&answer(cookie, 0)), Ok(8));
    assert_eq!(answered.recv(), Ok(PageResponse::Success));
    assert!(reaches(&device, 0x5678));
    let late = q.file.write(&answer(cookie, 0));
    assert_matches!(
        late,
        Err(Error::Event(EventError::NoSuchFault(_))),
        "one answer each"
    );
}

#[test]
fn the_pasid_of_a_child_stays_its_parents_secret() {
    let m = machine();
    let (child, device, ioas) = (m.mdev(2, 5), m.pdev(1), m.ioas());
    let q = queue(&m, &child, ioas, HwptFlags::PASID);
    child.attach(q.hwpt).unwrap();
    device.attach(q.hwpt).unwrap();
    device.attach_pasid(q.hwpt, 77).unwrap();
    let _first = ask(&child, None, 0x1000).unwrap();
    let _second = ask(&device, Some(pasid(77)), 0x2000).unwrap();
    let read = q.file.read(2 * RECORD).unwrap();
    let (first, second) = (words(&read[..RECORD]), words(&read[RECORD..]));
    assert_eq!(first[..3], [1 << 1, child.id().get(), 0]);
    assert_eq!(second[..3], [1 << 1 | 1, device.id().get(), 77]);
}

#[test]
fn without_a_queue_no_page_request_is_taken() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    device.attach(ioas).unwrap();
    let asked = ask(&device, None, 0x1000).map(drop);
    assert!(
        matches!(asked, Err(PageRequestError::NoHandler { .. })),
        "{asked:?}"
    );
}

#[test]
fn devices_that_cannot_ask_are_refused() {
    let m = machine();
    let mut mute = config(3);
    mute.page_requests = false;
    let mute = m.iommu.add_device(mute).unwrap();
    let mute = m.context.bind_device(&mute, sink()).unwrap();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    assert_eq!(
        mute.attach(q.hwpt),
        Err(AttachError::NoPageRequests(mute.id()).into())
    );
    assert_ne!(mute.attach(ioas), Ok(q.hwpt), "never picked for an IOAS");
}

#[test]
fn a_queue_stays_while_a_page_table_or_a_descriptor_uses_it() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    assert_eq!(
        m.context.destroy(q.id),
        Err(ObjectError::InUse(q.id).into())
    );
    q.file.closed();
    assert_eq!(
        m.context.destroy(q.id),
        Err(ObjectError::InUse(q.id).into())
    );
    m.context.destroy(q.hwpt).unwrap();
    assert_eq!(m.context.destroy(q.id), Ok(()));
    let unknown = with_queue(&m, &device, ioas, HwptFlags::NONE, q.id);
    assert_eq!(unknown, Err(ObjectError::Missing(q.id).into()));
    assert_eq!(m.domains().len(), 0, "nothing is left of the page table");
}

#[test]
fn detach_and_replace_answer_what_is_waiting_read_or_not() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    let same_queue = with_queue(&m, &device, ioas, HwptFlags::NONE, q.id).unwrap();
    device.attach(q.hwpt).unwrap();
    for replaced in [true, false] {
        let read = ask(&device, None, 0x1000).unwrap();
        q.file.read(RECORD).unwrap();
        let unread = ask(&device, None, 0x2000).unwrap();
        if replaced {
            device.attach(same_queue).unwrap();
        } else {
            device.detach();
        }
        assert_eq!(read.try_recv(), Ok(PageResponse::Invalid));
        assert_eq!(unread.try_recv(), Ok(PageResponse::Invalid));
        assert!(!q.file.is_readable(), "nothing stale is read later");
        assert_matches!(
            q.file.write(&answer(1, 0)),
            Err(Error::Event(EventError::NoSuchFault(_)))
        );
    }
    let asked = ask(&device, None, 0x1000).map(drop);
    assert!(
        matches!(asked, Err(PageRequestError::NotAttached { .. })),
        "{asked:?}"
    );
}

#[test]
fn a_failed_replace_answers_nothing() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    device.attach(q.hwpt).unwrap();
    let waiting = ask(&device, None, 0x1000).unwrap();
    assert!(device.attach(NOBODY).is_err());
    assert!(waiting.try_recv().is_err());
    assert!(q.file.is_readable());
}

#[test]
fn only_the_attachment_that_ends_is_answered() {
    let m = machine();
    let (one, two, ioas) = (m.pdev(1), m.pdev(2), m.ioas());
    let q = queue(&m, &one, ioas, HwptFlags::NONE);
    one.attach(q.hwpt).unwrap();
    two.attach(q.hwpt).unwrap();
    let first = ask(&one, None, 0x1000).unwrap();
    let second = ask(&two, None, 0x1000).unwrap();
    one.detach();
    assert_eq!(first.try_recv(), Ok(PageResponse::Invalid));
    assert!(second.try_recv().is_err());
    let record = words(&q.file.read(RECORD).unwrap());
    assert_eq!(record[1], two.id().get());
}

#[test]
fn a_hundred_requests_end_with_the_file() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    device.attach(q.hwpt).unwrap();
    let waiting: Vec<_> = (0..100)
        .map(|page| ask(&device, None, page * PAGE).unwrap())
        .collect();
    q.file.read(30 * RECORD).unwrap();
    m.context.close();
    drop(device);
    let invalid = |answer: &Receiver<_>| answer.try_recv() == Ok(PageResponse::Invalid);
    assert!(waiting.iter().all(invalid));
    assert!(
        m.context.ioas_exists(ioas).is_ok(),
        "the descriptor is open"
    );
    q.file.closed();
    assert!(m.context.ioas_exists(ioas).is_err());
    assert_eq!(m.iommu.pending_page_requests(), 0);
}

#[test]
fn a_listener_is_called_when_a_queue_changes() {
    let m = machine();
    let (device, ioas) = (m.pdev(1), m.ioas());
    let q = queue(&m, &device, ioas, HwptFlags::NONE);
    device.attach(q.hwpt).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    q.file.set_notify(Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let _waiting = ask(&device, None, 0x1000).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    q.file.read(RECORD).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 2, "empty again");
}

#[test]
fn requests_of_a_back_end_go_where_the_device_is_attached() {
    let s = backend::setup();
    let context = &s.m.context;
    let (id, file) = context.fault_queue_alloc().unwrap();
    let nested = |parent| {
        let args = HwptAlloc {
            fault_id: id.get(),
            ..HwptAlloc::new(s.device.id(), parent).with_flags(HwptFlags::FAULT_ID_VALID)
        };
        context.hwpt_alloc_with(args, Some(&s.data(4))).unwrap()
    };
    let answers: Arc<Mutex<Vec<PageResponse>>> = Arc::default();
    let report = |pasid| {
        let answers = Arc::clone(&answers);
        let fault = PageFault {
            pasid,
            group: 3,
            perm: 1,
            address: 0x1234,
        };
        let on_answer = Box::new(move |answer| answers.lock().unwrap().push(answer));
        context.report_page_fault(s.device.id(), fault, on_answer)
    };
    assert_eq!(report(None), Ok(()));
    s.device.attach(s.parent).unwrap();
    assert_eq!(report(None), Ok(()));
    let invalid = [PageResponse::Invalid; 2];
    assert_eq!(*answers.lock().unwrap(), invalid, "no queue takes it");
    let nested = nested(s.parent);
    s.device.attach(nested).unwrap();
    report(Some(1)).unwrap();
    let record = words(&file.read(RECORD).unwrap());
    let owner = s.device.id().get();
    assert_eq!(
        record[..5],
        [3, owner, 1, 3, 1],
        "the program's PASID table"
    );
    assert_eq!(record[6], 0x1234);
    file.write(&answer(record[9], 0)).unwrap();
    assert_eq!(answers.lock().unwrap().last(), Some(&PageResponse::Success));
    let unknown = context.report_page_fault(
        NOBODY,
        PageFault {
            pasid: None,
            group: 0,
            perm: 0,
            address: 0,
        },
        Box::new(|_| {}),
    );
    assert_eq!(unknown, Err(ObjectError::Missing(NOBODY).into()));
}
