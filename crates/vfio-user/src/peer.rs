//! The client as a memory: DMA_READ and DMA_WRITE, the commands that a server sends.
//!
//! A thread of the client's own waits for the answer; the thread that reads the socket delivers it.
//! A client answers such a message only if it is not itself waiting for us. So while one of its
//! commands waits for the device's DMA to end, its answers are waited for only a short time
//! ([`Peer::hurry`]): a client that cannot answer then loses that DMA, and not itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ioasid_core::{
    memory::MemoryGone,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    spec::{DmaAccess, Header, MAX_DATA_XFER_SIZE, command},
    wire::{Broken, Message, Sender},
};

/// How long an answer is waited for while the client itself waits for the device's DMA to end.
/// QEMU gives a message up after five seconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of an answer to DMA_WRITE; the count may have 4 bytes or 8.
const SHORT_ACCESS: usize = 12;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Peer {
    sender: Sender,
    max_transfer: AtomicUsize,
    asked: Mutex<Asked>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    /// Messages without an answer, or with one that nobody has taken yet.
    open: BTreeMap<u16, Question>,
    next: u16,
    closed: bool,
    /// How many commands wait for the device's DMA, and until when answers are waited for.
    hurried: u32,
    until: Option<Instant>,
}

#[derive(Debug)]
struct Question {
    command: u16,
    access: DmaAccess,
    /// The data of DMA_READ, or nothing; an error is `None` within.
    answer: Option<Option<Vec<u8>>>,
    /// Nobody waits any more. The number stays taken until the answer comes.
    abandoned: bool,
}

/// The client's answers are waited for only a short time while this lives.
#[derive(Debug)]
pub(crate) struct Hurry<'a>(&'a Peer);

impl Peer {
    pub(crate) fn new(sender: Sender) -> Self {
        Peer {
            sender,
            max_transfer: AtomicUsize::new(MAX_DATA_XFER_SIZE as usize),
            asked: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    pub(crate) fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Bytes of one transfer that the client can take, at least 1.
    pub(crate) fn set_max_transfer(&self, bytes: usize) {
        self.max_transfer.store(bytes.max(1), Ordering::Release);
    }

    /// Reads the client's memory. Blocks until it answers, or is gone.
    pub(crate) fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let mut done = 0;
        for part in dst.chunks_mut(self.max_transfer.load(Ordering::Acquire)) {
            let gone = MemoryGone { done };
            let access = access(address, done, part.len()).ok_or(gone)?;
            let data = self.ask(command::DMA_READ, access, &[]).ok_or(gone)?;
            part.copy_from_slice(data.get(..part.len()).ok_or(gone)?);
            done += part.len();
        }
        Ok(())
    }

    /// Writes the client's memory. Blocks likewise.
    pub(crate) fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let mut done = 0;
        for part in src.chunks(self.max_transfer.load(Ordering::Acquire)) {
            let gone = MemoryGone { done };
            let access = access(address, done, part.len()).ok_or(gone)?;
            self.ask(command::DMA_WRITE, access, part).ok_or(gone)?;
            done += part.len();
        }
        Ok(())
    }

    fn ask(&self, command: u16, access: DmaAccess, data: &[u8]) -> Option<Vec<u8>> {
        let id = self.open(command, access)?;
        let header = Header {
            id,
            command,
            ..Header::default()
        };
        if self.sender.send(header, [access.as_bytes(), data]).is_err() {
            self.asked.lock().open.remove(&id);
            return None;
        }
        let mut asked = self.asked.lock();
        loop {
            if let Some(answer) = asked.open.get_mut(&id)?.answer.take() {
                asked.open.remove(&id);
                return answer;
            }
            if asked.closed {
                asked.open.remove(&id);
                return None;
            }
            asked = match asked.until {
                None => self.answered.wait(asked),
                Some(until) => match until.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => self.answered.wait_timeout(asked, left),
                    _ => {
                        tracing::debug!("a DMA message without an answer is given up");
                        asked.open.get_mut(&id)?.abandoned = true;
                        return None;
                    }
                },
            };
        }
    }

    /// A number for a new message, with its place.
    fn open(&self, command: u16, access: DmaAccess) -> Option<u16> {
        let mut asked = self.asked.lock();
        let expired = |asked: &MutexGuard<'_, Asked>| {
            asked.until.is_some_and(|until| until <= Instant::now())
        };
        if asked.closed || expired(&asked) || asked.open.len() > usize::from(u16::MAX) {
            return None;
        }
        let mut id = asked.next;
        while asked.open.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        asked.next = id.wrapping_add(1);
        let question = Question {
            command,
            access,
            answer: None,
            abandoned: false,
        };
        asked.open.insert(id, question);
        Some(id)
    }

    /// The client answers.
    pub(crate) fn deliver(&self, message: Message) -> Result<(), Broken> {
        let Message {
            header,
            mut payload,
            ..
        } = message;
        let mut asked = self.asked.lock();
        let Some(question) = asked.open.get_mut(&header.id) else {
            return Err(Broken::Nonsense("an answer to nothing"));
        };
        if question.command != header.command || question.answer.is_some() {
            return Err(Broken::Nonsense("an answer to something else"));
        }
        let data = if header.flags & Header::ERROR != 0 {
            None
        } else if question.command == command::DMA_READ {
            let count = usize::try_from(question.access.count).unwrap_or(usize::MAX);
            match DmaAccess::read_from_prefix(&payload) {
                Ok((access, data)) if access == question.access && data.len() == count => {
                    payload.drain(..size_of::<DmaAccess>());
                    Some(payload)
                }
                _ => return Err(Broken::Nonsense("an answer of another size")),
            }
        } else if payload.len() >= SHORT_ACCESS {
            Some(Vec::new())
        } else {
            return Err(Broken::Nonsense("an answer of another size"));
        };
        if question.abandoned {
            asked.open.remove(&header.id);
        } else {
            question.answer = Some(data);
            self.answered.notify_all();
        }
        Ok(())
    }

    /// From now on answers are waited for only a short time.
    pub(crate) fn hurry(&self) -> Hurry<'_> {
        let mut asked = self.asked.lock();
        asked.hurried += 1;
        if asked.until.is_none() {
            asked.until = Some(Instant::now() + PATIENCE);
        }
        self.answered.notify_all();
        Hurry(self)
    }

    /// The client is gone: those that wait for it wait no more.
    pub(crate) fn close(&self) {
        self.asked.lock().closed = true;
        self.answered.notify_all();
        self.sender.shut_down();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.asked.lock().closed
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        let mut asked = self.0.asked.lock();
        asked.hurried -= 1;
        if asked.hurried == 0 {
            asked.until = None;
        }
    }
}

fn access(address: u64, done: usize, count: usize) -> Option<DmaAccess> {
    Some(DmaAccess {
        address: address.checked_add(done as u64)?,
        count: count as u64,
    })
}
