//! The page that a process shares with its session while it touches registers often.
//!
//! The system call that asks for one access ([`crate::call`]) costs two switches between processes.
//! A thread of the session may poll instead: as long as it does, it looks at the slots of this
//! page, and an access is a question in a slot, answered there, without a system call on either
//! side.
//!
//! | a slot is | made so by |
//! |---|---|
//! | free | the library, when it has its answer or takes back its question |
//! | reserved | the library: a thread of the program writes its question |
//! | asked | the library: the question may be taken |
//! | taken | the session: it carries the access out, once |
//! | done, failed | the session: the answer is there |
//!
//! Each step is one exchange of the word that holds the state, so a question is either taken or
//! taken back, and never both. What is not answered in time is taken back and asked by the system
//! call, and what failed is asked again there, as nothing has been done then: so nothing has to be
//! right here but what is answered with "done". A thread whose question has been taken waits by the
//! system call ([`crate::call::Kind::Await`]) if it takes long.
//!
//! The session trusts nothing in the page. It copies a question once, then checks the copy; what
//! the program does to a slot meanwhile is the program's loss. All fields are atomic: both sides
//! may touch all of them at any time.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use crate::call::Shape;

/// Bytes of the page.
pub const PAGE_BYTES: usize = 4096;

/// Accesses of one process that can be under way at once. More threads use the system call.
pub const SLOTS: usize = 16;

/// How often a thread looks at a question that is not taken. With the processor's pause in between
/// some microseconds: less than the system call costs.
const UNTAKEN: u32 = 150;

/// How often a thread looks at a question that is being answered.
const UNANSWERED: u32 = 2000;

const FREE: u32 = 0;
const RESERVED: u32 = 1;
const ASKED: u32 = 2;
const TAKEN: u32 = 3;
const DONE: u32 = 4;
const FAILED: u32 = 5;

/// The page. Zeros are one that is not polled.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page {
    /// Not 0: a thread of the session looks at the slots.
    polled: AtomicU32,
    /// So that a slot lies in cache lines of its own: processors fetch them in pairs.
    _pad: [u32; 31],
    slots: [Slot; SLOTS],
}

const _: () = assert!(size_of::<Page>() == PAGE_BYTES && align_of::<Page>() == PAGE_BYTES);

/// One access.
#[repr(C, align(128))]
#[derive(Debug)]
struct Slot {
    state: AtomicU32,
    /// [`Shape::encode`].
    shape: AtomicU32,
    address: AtomicU64,
    /// The bytes to store, or those that were loaded; for an enqueue the first word is its answer.
    data: [AtomicU64; 8],
}

/// A question, as the session has copied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Kind and size, as the program has written them.
    pub shape: u64,
    /// Where in the program's memory.
    pub address: u64,
    /// What is stored.
    pub data: [u8; 64],
}

/// What came of an access that a program asked for in the page.
#[derive(Debug)]
pub enum Asked<'a> {
    /// It has been carried out, and the answer is in the data.
    Done,
    /// It has not been carried out: to be asked by the system call.
    Declined,
    /// It is being carried out, and takes long.
    Taken(Waiting<'a>),
}

/// A question that was taken and not answered yet.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Slot);

impl Waiting<'_> {
    /// The answer, if it is there now; true if the access has been carried out.
    pub fn answer(&self, data: &mut [u8; 64]) -> Option<bool> {
        self.0.answer(data)
    }
}

impl Page {
    /// Whether a thread of the session looks at the slots. For the library alone: the program may
    /// write it.
    pub fn is_polled(&self) -> bool {
        self.polled.load(Relaxed) != 0
    }

    /// Sets whether a thread of the session looks at the slots.
    pub fn set_polled(&self, polled: bool) {
        self.polled.store(polled.into(), Release);
    }

    /// The program's side: asks for one access and waits a little for the answer. `hint` spreads
    /// threads over the slots.
    pub fn ask(&self, hint: usize, address: u64, shape: Shape, data: &mut [u8; 64]) -> Asked<'_> {
        if !self.is_polled() {
            return Asked::Declined;
        }
        let Some(slot) = self.reserve(hint) else {
            return Asked::Declined;
        };
        slot.address.store(address, Relaxed);
        slot.shape.store(shape.encode() as u32, Relaxed);
        if !matches!(shape.kind, crate::call::Kind::Load) {
            slot.put(shape.size, data);
        }
        slot.state.store(ASKED, Release);
        for _ in 0..UNTAKEN {
            match slot.state.load(Relaxed) {
                ASKED if self.is_polled() => core::hint::spin_loop(),
                _ => break,
            }
        }
        let taken_back = slot.state.compare_exchange(ASKED, FREE, Relaxed, Relaxed);
        if taken_back.is_ok() {
            return Asked::Declined;
        }
        for _ in 0..UNANSWERED {
            match slot.answer(data) {
                Some(true) => return Asked::Done,
                Some(false) => return Asked::Declined,
                None => core::hint::spin_loop(),
            }
        }
        Asked::Taken(Waiting(slot))
    }

    fn reserve(&self, hint: usize) -> Option<&Slot> {
        let (later, first) = self.slots.split_at_checked(hint % SLOTS)?;
        first.iter().chain(later).find(|slot| {
            slot.state
                .compare_exchange(FREE, RESERVED, Acquire, Relaxed)
                .is_ok()
        })
    }

    /// Whether there is something to serve.
    pub fn has_questions(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.state.load(Relaxed) == ASKED)
    }

    /// The session's side: looks at each slot once and has what is asked there carried out, which
    /// says whether it was. Returns the number of accesses that were.
    pub fn serve(&self, mut carry_out: impl FnMut(&mut Question) -> bool) -> u32 {
        let mut served = 0;
        for slot in &self.slots {
            if slot.state.load(Relaxed) != ASKED
                || slot
                    .state
                    .compare_exchange(ASKED, TAKEN, Acquire, Relaxed)
                    .is_err()
            {
                continue;
            }
            let mut question = Question {
                shape: slot.shape.load(Relaxed).into(),
                address: slot.address.load(Relaxed),
                data: [0; 64],
            };
            slot.get(64, &mut question.data);
            let done = carry_out(&mut question);
            if done {
                slot.put(64, &question.data);
            }
            slot.state.store(if done { DONE } else { FAILED }, Release);
            served += u32::from(done);
        }
        served
    }
}

impl Slot {
    fn put(&self, len: usize, data: &[u8; 64]) {
        let words = data.as_chunks().0.iter().take(len.div_ceil(8));
        for (to, from) in self.data.iter().zip(words) {
            to.store(u64::from_le_bytes(*from), Relaxed);
        }
    }

    fn get(&self, len: usize, data: &mut [u8; 64]) {
        let words = data.as_chunks_mut().0.iter_mut().take(len.div_ceil(8));
        for (from, to) in self.data.iter().zip(words) {
            *to = from.load(Relaxed).to_le_bytes();
        }
    }

    /// The answer, if it is there; the slot is free then.
    fn answer(&self, data: &mut [u8; 64]) -> Option<bool> {
        let done = match self.state.load(Acquire) {
            DONE => true,
            FAILED => false,
            _ => return None,
        };
        if done {
            self.get(64, data);
        }
        self.state.store(FREE, Release);
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{boxed::Box, sync::atomic::AtomicBool, thread};

    use super::*;
    use crate::call::Kind;

    const STORE: Shape = Shape {
        kind: Kind::Store,
        size: 8,
    };

    fn page() -> Box<Page> {
        Box::new(Page {
            polled: AtomicU32::new(0),
            _pad: [0; 31],
            slots: [const {
                Slot {
                    state: AtomicU32::new(FREE),
                    shape: AtomicU32::new(0),
                    address: AtomicU64::new(0),
                    data: [const { AtomicU64::new(0) }; 8],
                }
            }; SLOTS],
        })
    }

    #[test]
    fn a_question_is_carried_out_once_or_taken_back() {
        const EACH: u64 = 3000;
        let (page, end) = (page(), AtomicBool::new(false));
        let (mut carried_out, mut declined) = (0u64, 0);
        thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut sum = 0;
                while !end.load(Acquire) {
                    page.set_polled(true);
                    for _ in 0..1000 {
                        page.serve(|question| {
                            assert_eq!(question.data.first(), Some(&1));
                            sum += 1;
                            true
                        });
                    }
                    page.set_polled(false);
                    thread::yield_now();
                }
                sum
            });
            let ask = |hint| {
                let mut declined = 0;
                for _ in 0..EACH {
                    let mut data = [0; 64];
                    data[0] = 1;
                    match page.ask(hint, 0, STORE, &mut data) {
                        Asked::Done => {}
                        Asked::Declined => declined += 1,
                        Asked::Taken(waiting) => {
                            while waiting.answer(&mut data).is_none() {
                                thread::yield_now();
                            }
                        }
                    }
                }
                declined
            };
            let askers: std::vec::Vec<_> =
                (0..4).map(|hint| scope.spawn(move || ask(hint))).collect();
            for asker in askers {
                declined += asker.join().unwrap_or(0);
            }
            end.store(true, Release);
            carried_out = server.join().unwrap_or(0);
        });
        assert_eq!(carried_out + declined, 4 * EACH);
    }

    #[test]
    fn what_nobody_takes_is_taken_back() {
        let page = page();
        let mut data = [0; 64];
        assert!(matches!(page.ask(0, 0, STORE, &mut data), Asked::Declined));
        page.set_polled(true);
        for _ in 0..2 * SLOTS {
            assert!(matches!(page.ask(0, 0, STORE, &mut data), Asked::Declined));
        }
        assert!(!page.has_questions());
        assert_eq!(page.serve(|_| true), 0);
    }

    #[test]
    fn without_a_free_slot_nothing_is_asked() {
        let page = page();
        page.set_polled(true);
        for slot in &page.slots {
            slot.state.store(TAKEN, Relaxed);
        }
        let mut data = [0; 64];
        assert!(matches!(page.ask(3, 0, STORE, &mut data), Asked::Declined));
    }

    #[test]
    fn a_question_is_copied_once_whatever_the_program_does_to_its_slot() {
        let page = page();
        for (state, slot) in (0..).zip(&page.slots) {
            slot.state.store(state, Relaxed);
            slot.shape.store(u32::MAX, Relaxed);
            slot.address.store(7, Relaxed);
        }
        let mut questions = 0;
        let served = page.serve(|question| {
            questions += 1;
            for slot in &page.slots {
                slot.address.store(8, Relaxed);
                slot.state.store(RESERVED, Relaxed);
            }
            assert_eq!((question.shape, question.address), (u32::MAX.into(), 7));
            assert_eq!(Shape::decode(question.shape), None);
            false
        });
        assert_eq!((questions, served), (1, 0));
        assert!(!page.has_questions());
    }
}
