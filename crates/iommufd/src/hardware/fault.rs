//! Fault queues: page requests that a program answers (drivers/iommu/iommufd/eventq.c).
//!
//! A request waits in the queue until it is read, and then, under a cookie, for its answer. Both
//! end with the attachment that it came through: a detach or replace answers
//! [`PageResponse::Invalid`], so no device waits for an answer that cannot come.
//!
//! Every request here is a group of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use ioasid_core::{
    Access, Pasid, PciAddress,
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_iommu::{Iommu, OnAnswer, PageRequest, PageRequestHandler, PageResponse};

use crate::base::{
    error::{Error, EventError},
    id::ObjectId,
    queue::{Listener, Queue},
};

/// Bytes of one request as programs read it (`struct iommu_hwpt_pgfault`).
const RECORD: usize = 40;
/// Bytes of one answer (`struct iommu_hwpt_page_response`).
const ANSWER: usize = 8;

/// Flag of a record: the PASID means something.
const PASID_VALID: u32 = 1 << 0;
/// Flag of a record: the last request of its group.
const LAST_PAGE: u32 = 1 << 1;
/// Permission bits of a record.
const PERM_READ: u32 = 1 << 0;
const PERM_WRITE: u32 = 1 << 1;

/// Requests that a queue holds, read or not. The IOMMU's own limit for a device is below it; what a
/// back end reports beyond it is answered at once.
const LIMIT: usize = 1 << 14;

/// One page request, as it is reported to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The PASID of the access.
    pub pasid: Option<u32>,
    /// The page request group.
    pub group: u32,
    /// `enum iommu_hwpt_pgfault_perm`: what the device wants to do.
    pub perm: u32,
    /// The address.
    pub address: u64,
}

/// One attachment of a device (or of a PASID of it), from attach to detach or replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Handle(pub(crate) u64);

struct Group {
    handle: Handle,
    device: ObjectId,
    fault: PageFault,
    on_answer: OnAnswer,
}

impl Group {
    fn record(&self, cookie: u32) -> [u8; RECORD] {
        let fault = &self.fault;
        let valid = if fault.pasid.is_some() {
            PASID_VALID
        } else {
            0
        };
        let words = [
            valid | LAST_PAGE,
            self.device.get(),
            fault.pasid.unwrap_or(0),
            fault.group,
            fault.perm,
            0,
        ];
        let mut record = [0; RECORD];
        for (word, place) in words.iter().zip(record.chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        record[24..32].copy_from_slice(&fault.address.to_ne_bytes());
        // Bytes 32..36 are the length that the device hints at: none does.
        record[36..].copy_from_slice(&cookie.to_ne_bytes());
        record
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Group>,
    /// Read, by cookie.
    read: BTreeMap<u32, Group>,
}

/// A fault queue.
pub(crate) struct FaultQueue {
    id: ObjectId,
    state: Mutex<State>,
    listener: Listener,
}

impl FaultQueue {
    pub(crate) fn new(id: ObjectId) -> Arc<Self> {
        Arc::new(FaultQueue {
            id,
            state: Mutex::default(),
            listener: Listener::default(),
        })
    }

    fn push(&self, group: Group) {
        let refused = {
            let mut state = self.state.lock();
            if state.waiting.len() + state.read.len() < LIMIT {
                state.waiting.push_back(group);
                None
            } else {
                Some(group)
            }
        };
        match refused {
            Some(group) => (group.on_answer)(PageResponse::Invalid),
            None => self.listener.notify(),
        }
    }

    /// Answers everything that came through `handle`.
    pub(crate) fn flush(&self, handle: Handle) {
        self.flush_if(|group| group.handle == handle);
    }

    /// Answers everything.
    pub(crate) fn flush_all(&self) {
        self.flush_if(|_| true);
    }

    fn flush_if(&self, which: impl Fn(&Group) -> bool) {
        let mut flushed = Vec::new();
        {
            let mut state = self.state.lock();
            for group in std::mem::take(&mut state.waiting) {
                if which(&group) {
                    flushed.push(group);
                } else {
                    state.waiting.push_back(group);
                }
            }
            for (cookie, group) in std::mem::take(&mut state.read) {
                if which(&group) {
                    flushed.push(group);
                } else {
                    state.read.insert(cookie, group);
                }
            }
        }
        if flushed.is_empty() {
            return;
        }
        for group in flushed {
            (group.on_answer)(PageResponse::Invalid);
        }
        self.listener.notify();
    }

    fn answer(&self, cookie: u32, code: u32) -> Result<(), EventError> {
        // `enum iommufd_page_response_code`; the kernel's own third code is not for programs.
        let response = match code {
            0 => PageResponse::Success,
            1 => PageResponse::Invalid,
            other => return Err(EventError::NoSuchAnswer(other)),
        };
        let group = self.state.lock().read.remove(&cookie);
        let group = group.ok_or(EventError::NoSuchFault(cookie))?;
        (group.on_answer)(response);
        Ok(())
    }

    /// (waiting to be read, waiting for an answer).
    pub(crate) fn pending(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.waiting.len(), state.read.len())
    }
}

impl Queue for FaultQueue {
    const NAME: &'static str = "[iommufd-pgfault]";
    const TAKES_ANSWERS: bool = true;

    fn id(&self) -> ObjectId {
        self.id
    }

    fn listener(&self) -> &Listener {
        &self.listener
    }

    fn read(&self, count: usize) -> Result<Vec<u8>, Error> {
        if !count.is_multiple_of(RECORD) {
            return Err(partial(count, RECORD));
        }
        let mut bytes = Vec::new();
        let mut state = self.state.lock();
        if count == 0 && !state.waiting.is_empty() {
            return Err(EventError::ReadTooShort {
                len: count,
                needed: RECORD,
            }
            .into());
        }
        let mut cookie = 0;
        while bytes.len() < count
            && let Some(group) = state.waiting.pop_front()
        {
            // The lowest free number from 1. There are fewer than `LIMIT`.
            cookie += 1;
            while state.read.contains_key(&cookie) {
                cookie += 1;
            }
            bytes.extend_from_slice(&group.record(cookie));
            state.read.insert(cookie, group);
        }
        Ok(bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        if !bytes.len().is_multiple_of(ANSWER) {
            return Err(partial(bytes.len(), ANSWER));
        }
        let mut done = 0;
        let (words, _) = bytes.as_chunks::<4>();
        let (answers, _) = words.as_chunks::<2>();
        for [cookie, code] in answers {
            match self.answer(u32::from_ne_bytes(*cookie), u32::from_ne_bytes(*code)) {
                Ok(()) => done += ANSWER,
                Err(error) if done == 0 => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn is_readable(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }
}

fn partial(len: usize, record: usize) -> Error {
    EventError::PartialRecord { len, record }.into()
}

impl Inspect for FaultQueue {
    fn inspect(&self) -> Node {
        let (waiting, read) = self.pending();
        Node::new()
            .with("id", self.id.get())
            .with("waiting", waiting)
            .with("read", read)
    }
}

impl fmt::Debug for FaultQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waiting, read) = self.pending();
        f.debug_struct("FaultQueue")
            .field("id", &self.id)
            .field("waiting", &waiting)
            .field("read", &read)
            .finish_non_exhaustive()
    }
}

impl Drop for FaultQueue {
    fn drop(&mut self) {
        self.flush_all();
    }
}

/// How a request through one route is reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported {
    pub(crate) handle: Handle,
    /// The device object that attached.
    pub(crate) device: ObjectId,
    /// The PASID that the program chose: not that of a child, which no program learns.
    pub(crate) pasid: Option<Pasid>,
}

/// Takes the page requests of one page table: looks up what they came through and queues them.
pub(crate) struct FaultHandler {
    iommu: Arc<Iommu>,
    queue: Arc<FaultQueue>,
    /// Held while a request is queued: when a route is gone from here, none of its requests comes
    /// any more.
    routes: Mutex<BTreeMap<(PciAddress, Option<Pasid>), Reported>>,
}

impl FaultHandler {
    pub(crate) fn new(iommu: &Arc<Iommu>, queue: &Arc<FaultQueue>) -> Arc<Self> {
        Arc::new(FaultHandler {
            iommu: Arc::clone(iommu),
            queue: Arc::clone(queue),
            routes: Mutex::default(),
        })
    }

    pub(crate) fn queue(&self) -> &Arc<FaultQueue> {
        &self.queue
    }

    /// Requests of `device` at `pasid` are reported as `reported` from now on.
    pub(crate) fn enter(&self, device: PciAddress, pasid: Option<Pasid>, reported: Reported) {
        self.routes.lock().insert((device, pasid), reported);
    }

    /// The attachment is over: its requests are answered, and no more of them come.
    pub(crate) fn leave(&self, handle: Handle) {
        self.routes
            .lock()
            .retain(|_, reported| reported.handle != handle);
        self.queue.flush(handle);
    }

    /// Queues a request that came through an attachment that is in place.
    pub(crate) fn report(&self, reported: Reported, fault: PageFault, on_answer: OnAnswer) {
        self.queue.push(Group {
            handle: reported.handle,
            device: reported.device,
            fault,
            on_answer,
        });
    }
}

impl PageRequestHandler for FaultHandler {
    fn request(&self, request: PageRequest) {
        let iommu = Arc::clone(&self.iommu);
        let on_answer = move |response| {
            // Answered already if the route or the domain went meanwhile.
            let _ = iommu.page_response(request.id, response);
        };
        let routes = self.routes.lock();
        let Some(reported) = routes.get(&(request.device, request.pasid)).copied() else {
            drop(routes);
            return on_answer(PageResponse::Invalid);
        };
        let fault = PageFault {
            pasid: reported.pasid.map(Pasid::get),
            group: request.group.into(),
            perm: match request.access {
                Access::Read => PERM_READ,
                Access::Write => PERM_WRITE,
            },
            address: request.iova,
        };
        self.report(reported, fault, Box::new(on_answer));
    }
}

impl fmt::Debug for FaultHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.queue, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn push(queue: &FaultQueue, handle: u64, address: u64) -> Receiver<PageResponse> {
        let (send, receive) = channel();
        queue.push(Group {
            handle: Handle(handle),
            device: ObjectId::from_raw(3),
            fault: PageFault {
                pasid: Some(7),
                group: 9,
                perm: PERM_WRITE,
                address,
            },
            on_answer: Box::new(move |response| {
                // A test that is not interested has dropped the other end.
                let _ = send.send(response);
            }),
        });
        receive
    }

    fn answer(cookie: u32, code: u32) -> Vec<u8> {
        [cookie.to_ne_bytes(), code.to_ne_bytes()].concat()
    }

    fn queue() -> Arc<FaultQueue> {
        FaultQueue::new(ObjectId::from_raw(1))
    }

    #[test]
    fn a_record_says_who_wants_what_where() {
        let queue = queue();
        let _answered = push(&queue, 1, 0x1234_5000);
        let record = queue.read(RECORD).unwrap();
        let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
        let words: Vec<u32> = (0..RECORD).step_by(4).map(word).collect();
        let flags = PASID_VALID | LAST_PAGE;
        assert_eq!(words, [flags, 3, 7, 9, PERM_WRITE, 0, 0x1234_5000, 0, 0, 1]);
    }

    #[test]
    fn a_read_takes_whole_records_and_an_empty_queue_gives_none() {
        let queue = queue();
        assert_eq!(queue.read(RECORD), Ok(Vec::new()));
        assert_eq!(queue.read(41), Err(partial(41, 40)));
        let _one = push(&queue, 1, 0);
        let _two = push(&queue, 1, 0x1000);
        let too_short = EventError::ReadTooShort { len: 0, needed: 40 };
        assert_eq!(queue.read(0), Err(too_short.into()));
        assert_eq!(queue.read(3 * RECORD).unwrap().len(), 2 * RECORD);
        assert!(!queue.is_readable());
    }

    #[test]
    fn cookies_are_the_lowest_free_numbers_from_1() {
        let queue = queue();
        let cookies = |read: Vec<u8>| -> Vec<u32> {
            let records = read.chunks_exact(RECORD);
            records
                .map(|record| u32::from_ne_bytes(record[36..].try_into().unwrap()))
                .collect()
        };
        let _answered: Vec<_> = (0..3).map(|at| push(&queue, 1, at)).collect();
        assert_eq!(cookies(queue.read(3 * RECORD).unwrap()), [1, 2, 3]);
        assert_eq!(queue.write(&answer(2, 0)), Ok(ANSWER));
        let _more: Vec<_> = (0..2).map(|at| push(&queue, 1, at)).collect();
        assert_eq!(cookies(queue.read(2 * RECORD).unwrap()), [2, 4]);
    }

    #[test]
    fn a_write_stops_at_the_first_answer_that_is_not_good() {
        let queue = queue();
        let one = push(&queue, 1, 0);
        let two = push(&queue, 1, 0x1000);
        let unread = EventError::NoSuchFault(1).into();
        assert_eq!(queue.write(&answer(1, 0)), Err(unread));
        queue.read(2 * RECORD).unwrap();
        assert_eq!(queue.write(&[0; 7]), Err(partial(7, 8)));
        let unknown = EventError::NoSuchAnswer(2).into();
        assert_eq!(queue.write(&answer(1, 2)), Err(unknown));
        let mixed = [answer(2, 1), answer(2, 0), answer(1, 0)].concat();
        assert_eq!(queue.write(&mixed), Ok(ANSWER));
        assert_eq!(two.recv(), Ok(PageResponse::Invalid));
        assert!(one.try_recv().is_err(), "behind the bad one");
        assert_eq!(queue.write(&answer(1, 0)), Ok(ANSWER));
        assert_eq!(one.recv(), Ok(PageResponse::Success));
    }

    #[test]
    fn the_end_of_an_attachment_answers_what_came_through_it_read_or_not() {
        let queue = queue();
        let read = push(&queue, 1, 0);
        let other = push(&queue, 2, 0x1000);
        queue.read(2 * RECORD).unwrap();
        let unread = push(&queue, 1, 0x2000);
        queue.flush(Handle(1));
        assert_eq!(read.recv(), Ok(PageResponse::Invalid));
        assert_eq!(unread.recv(), Ok(PageResponse::Invalid));
        assert!(other.try_recv().is_err());
        let late = EventError::NoSuchFault(1).into();
        assert_eq!(queue.write(&answer(1, 0)), Err(late));
        drop(queue);
        assert_eq!(other.recv(), Ok(PageResponse::Invalid), "destroyed");
    }

    #[test]
    fn a_flood_is_answered_not_stored() {
        let queue = queue();
        let answered: Vec<_> = (0..LIMIT as u64).map(|at| push(&queue, 1, at)).collect();
        assert_eq!(push(&queue, 1, 0).recv(), Ok(PageResponse::Invalid));
        assert!(answered.iter().all(|answer| answer.try_recv().is_err()));
    }
}
