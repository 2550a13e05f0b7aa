//! The page in which a session asks a process's agent for copies.
//!
//! An agent ([`crate::agent`]) shares the program's address space, so a copy between two places of
//! the program's private memory is one copy there, where the session would need system calls and
//! two. A session asks for some at a time, and waits for the answer to all of them.
//!
//! | word | written by | says |
//! |---|---|---|
//! | `wanted` | the session, and taken back by the library | an agent would be of use |
//! | `asked` | the session | the number of the last question; the agent sleeps on it |
//! | `answered` | the agent | the number of the last answer; the session sleeps on it |
//! | `dozing` | the agent | it is asleep, or about to be |
//! | `waiting` | the session | likewise |
//!
//! Whoever is about to sleep says so and then looks once more; whoever has news writes it and then
//! looks whether somebody sleeps. Between the two writes and the two looks stands a fence on either
//! side, so that one of them sees the other. (The futex compares once more, which alone would keep
//! anybody from sleeping through news; the two words save the system call that wakes.)
//!
//! The session trusts nothing here: it reads how many bytes were copied once, and takes no more than
//! it has asked for.

#[cfg(not(ioasid_shuttle))]
pub use core::sync::atomic::AtomicU32 as Word;
#[cfg(not(ioasid_shuttle))]
use core::sync::atomic::{AtomicU64, fence};
#[cfg(ioasid_shuttle)]
pub use shuttle::sync::atomic::AtomicU32 as Word;
#[cfg(ioasid_shuttle)]
use shuttle::sync::atomic::{AtomicU64, fence};

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

/// Bytes of the page.
pub const ERRANDS_BYTES: usize = 4096;

/// Copies that can be asked for at once.
pub const ERRANDS: usize = if cfg!(ioasid_shuttle) { 1 } else { 64 };

/// How often an agent looks for the next question before it sleeps: with the processor's pause in
/// between some microseconds, which is what waking it would cost.
const LOOKS: u32 = if cfg!(ioasid_shuttle) { 2 } else { 300 };

/// How often a session looks for the answer before it sleeps.
const PATIENCE: u32 = if cfg!(ioasid_shuttle) { 2 } else { 150 };

/// The page. Zeros are one without a question and without an agent.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Errands {
    wanted: Word,
    asked: Word,
    answered: Word,
    dozing: Word,
    waiting: Word,
    count: Word,
    _pad: [u64; 5],
    copies: [Copy; ERRANDS],
}

#[cfg(not(ioasid_shuttle))]
const _: () = assert!(size_of::<Errands>() == ERRANDS_BYTES);

/// One copy.
#[repr(C)]
#[derive(Debug)]
struct Copy {
    dst: AtomicU64,
    src: AtomicU64,
    len: AtomicU64,
    done: AtomicU64,
}

/// One copy, by addresses of the program. The two ranges do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errand {
    /// Where to.
    pub dst: u64,
    /// Where from.
    pub src: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes copied, the first ones.
    pub done: u64,
}

/// A question that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    number: u32,
    /// The answer that was there before.
    before: u32,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered.
    Answered,
    /// Not yet.
    Pending,
    /// There is something that no agent has written.
    Spoilt,
}

/// How a side sleeps and is woken: by a futex, or as a model checker does.
pub trait Futex {
    /// Sleeps while `word` is `value`, but not for ever; may end at any time.
    fn wait(&self, word: &Word, value: u32);
    /// Wakes who sleeps on `word`.
    fn wake(&self, word: &Word);
}

impl Default for Errands {
    /// A page without a question. (Both sides of a real one map zeros.)
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Errands {
            wanted: Word::new(0),
            asked: Word::new(0),
            answered: Word::new(0),
            dozing: Word::new(0),
            waiting: Word::new(0),
            count: Word::new(0),
            _pad: [0; 5],
            copies: core::array::from_fn(|_| Copy {
                dst: zero(),
                src: zero(),
                len: zero(),
                done: zero(),
            }),
        }
    }
}

impl Errands {
    /// The library's side: whether an agent is to be started, by whoever sees it first.
    pub fn take_wish(&self) -> bool {
        self.wanted.load(Relaxed) != 0
            && self.wanted.compare_exchange(1, 0, AcqRel, Relaxed).is_ok()
    }

    /// The session's side: an agent would be of use.
    pub fn wish(&self) {
        self.wanted.store(1, Release);
    }

    /// The agent's side: the question that was asked last, which an earlier agent may have left.
    pub fn last_asked(&self) -> u32 {
        self.asked.load(Acquire)
    }

    /// The agent's side: waits for a question after `last` and answers it. `copy` gets a destination, a
    /// source and a length, and says how many bytes it has copied; one that it does not finish is the last.
    /// Returns the number of the question.
    pub fn serve(
        &self,
        last: u32,
        futex: &impl Futex,
        mut copy: impl FnMut(u64, u64, u64) -> u64,
    ) -> u32 {
        let asked = self.await_change(&self.asked, last, (&self.dozing, LOOKS), || {
            futex.wait(&self.asked, last);
        });
        let Some(asked) = asked else {
            return last;
        };
        let count = self.count.load(Relaxed) as usize;
        for errand in self.copies.iter().take(count) {
            let len = errand.len.load(Relaxed);
            let done = copy(errand.dst.load(Relaxed), errand.src.load(Relaxed), len);
            errand.done.store(done, Relaxed);
            if done != len {
                break;
            }
        }
        Self::announce(&self.answered, asked, &self.waiting, || {
            futex.wake(&self.answered);
        });
        asked
    }

    /// The session's side: asks for `errands`, [`ERRANDS`] of them at most. One session asks one
    /// question at a time.
    pub fn ask(&self, errands: &[Errand], futex: &impl Futex) -> Asked {
        let before = self.answered.load(Relaxed);
        for (copy, errand) in self.copies.iter().zip(errands) {
            copy.dst.store(errand.dst, Relaxed);
            copy.src.store(errand.src, Relaxed);
            copy.len.store(errand.len, Relaxed);
            copy.done.store(0, Relaxed);
        }
        self.count.store(errands.len().min(ERRANDS) as u32, Relaxed);
        let number = self.asked.load(Relaxed).wrapping_add(1);
        Self::announce(&self.asked, number, &self.dozing, || {
            futex.wake(&self.asked);
        });
        Asked { number, before }
    }

    /// The session's side: sleeps once if the question is not answered yet, and reads what was done if it
    /// is.
    pub fn answer(&self, asked: Asked, errands: &mut [Errand], futex: &impl Futex) -> Outcome {
        let Asked { number, before } = asked;
        let mut now = self.answered.load(Acquire);
        if now == before && now != number {
            let changed = self.await_change(&self.answered, now, (&self.waiting, PATIENCE), || {
                futex.wait(&self.answered, before);
            });
            now = changed.unwrap_or(before);
        }
        match now {
            _ if now == number => {}
            _ if now == before => return Outcome::Pending,
            _ => return Outcome::Spoilt,
        }
        for (copy, errand) in self.copies.iter().zip(errands) {
            errand.done = copy.done.load(Relaxed).min(errand.len);
        }
        Outcome::Answered
    }

    /// What `word` is, once it is not `last`; `None` if it still is after some looks and one sleep.
    fn await_change(
        &self,
        word: &Word,
        last: u32,
        (asleep, looks): (&Word, u32),
        sleep: impl FnOnce(),
    ) -> Option<u32> {
        let changed = || Some(word.load(Acquire)).filter(|now| *now != last);
        for _ in 0..looks {
            if let Some(now) = changed() {
                return Some(now);
            }
            pause();
        }
        asleep.store(1, Relaxed);
        fence(SeqCst);
        if changed().is_none() {
            sleep();
        }
        asleep.store(0, Relaxed);
        changed()
    }

    /// Sets `word`, and wakes who sleeps on it.
    fn announce(word: &Word, value: u32, asleep: &Word, wake: impl FnOnce()) {
        word.store(value, Release);
        fence(SeqCst);
        if asleep.load(Relaxed) != 0 {
            wake();
        }
    }
}

#[cfg(not(ioasid_shuttle))]
fn pause() {
    core::hint::spin_loop();
}

#[cfg(ioasid_shuttle)]
fn pause() {
    shuttle::hint::spin_loop();
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    struct Nobody;

    impl Futex for Nobody {
        fn wait(&self, _: &Word, _: u32) {}
        fn wake(&self, _: &Word) {}
    }

    fn errand(at: u64) -> Errand {
        Errand {
            dst: at,
            src: at + 1,
            len: 100,
            done: 0,
        }
    }

    #[test]
    fn what_is_asked_is_done_in_order_up_to_a_failure_and_answered() {
        let page = Errands::default();
        let mut errands: Vec<_> = (0..ERRANDS as u64).map(errand).collect();
        let asked = page.ask(&errands, &Nobody);
        assert_eq!(page.answer(asked, &mut errands, &Nobody), Outcome::Pending);
        let mut seen = Vec::new();
        let last = page.serve(0, &Nobody, |dst, src, len| {
            seen.push((dst, src, len));
            if dst == 9 { 5 } else { len }
        });
        assert_eq!(last, asked.number);
        assert_eq!(page.answer(asked, &mut errands, &Nobody), Outcome::Answered);
        for (at, errand) in (0..).zip(&errands) {
            assert_eq!(
                errand.done,
                [100, 5, 0][(at >= 9) as usize + (at > 9) as usize]
            );
        }
        let first: Vec<_> = (0..10).map(|at| (at, at + 1, 100)).collect();
        assert_eq!(
            seen, first,
            "the one that did not come to its end is the last"
        );
        assert_eq!(
            page.serve(last, &Nobody, |_, _, len| len),
            last,
            "nothing new"
        );
    }

    #[test]
    fn no_more_is_believed_than_was_asked_for() {
        let page = Errands::default();
        let mut errands = [errand(0)];
        let asked = page.ask(&errands, &Nobody);
        page.serve(0, &Nobody, |_, _, _| u64::MAX);
        assert_eq!(page.answer(asked, &mut errands, &Nobody), Outcome::Answered);
        assert_eq!(errands[0].done, 100);
    }

    #[test]
    fn a_wish_is_taken_once() {
        let page = Errands::default();
        assert!(!page.take_wish());
        page.wish();
        assert!(page.take_wish() && !page.take_wish());
    }

    #[test]
    fn what_a_program_writes_into_the_page_is_nobodys_loss_but_its_own() {
        let page = Errands::default();
        let mut errands = [errand(0)];
        let asked = page.ask(&errands, &Nobody);
        page.answered.store(asked.number.wrapping_add(7), Relaxed);
        assert_eq!(page.answer(asked, &mut errands, &Nobody), Outcome::Spoilt);
        page.count.store(u32::MAX, Relaxed);
        let mut copies = 0;
        page.serve(0, &Nobody, |_, _, len| {
            copies += 1;
            len
        });
        assert_eq!(copies, ERRANDS);
    }
}
