//! Queues of events of a virtual IOMMU (VEVENTQ; drivers/iommu/iommufd/eventq.c).
//!
//! Every event has the next sequence number. A queue holds as many events as it was made for; those
//! that do not fit are lost, and one header without data at the end says so, with the number of the
//! last that was lost.

use std::{collections::VecDeque, fmt, sync::Arc};

use ioasid_core::sync::Mutex;

use crate::base::{
    error::{Error, EventError},
    id::ObjectId,
    queue::{Listener, Queue},
};

/// Bytes of a header: flags and sequence number (`struct iommufd_vevent_header`).
const HEADER: usize = 8;
/// Flag of a header: events before this number are lost, no data follows
/// (`IOMMU_VEVENTQ_FLAG_LOST_EVENTS`).
const LOST_EVENTS: u32 = 1 << 0;
/// The largest sequence number; 0 comes after it.
const LAST_SEQUENCE: u32 = i32::MAX as u32;

#[derive(Debug)]
struct Event {
    sequence: u32,
    /// `None`: a header that reports lost events.
    data: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    /// Those with data.
    count: u32,
    sequence: u32,
}

impl State {
    /// Adds what is to be read last. A header that was last goes: what follows reports the same.
    fn push(&mut self, data: Option<Vec<u8>>) {
        if self.events.back().is_some_and(|last| last.data.is_none()) {
            self.events.pop_back();
        }
        self.events.push_back(Event {
            sequence: self.sequence,
            data,
        });
        self.sequence = (self.sequence + 1) & LAST_SEQUENCE;
    }
}

/// A queue of events.
pub(crate) struct VeventQueue {
    id: ObjectId,
    viommu: ObjectId,
    depth: u32,
    state: Mutex<State>,
    listener: Listener,
}

impl VeventQueue {
    /// The most events that a queue can be made for.
    pub(crate) const MAX_DEPTH: u32 = 1 << 19;

    pub(crate) fn new(id: ObjectId, viommu: ObjectId, depth: u32) -> Arc<Self> {
        Arc::new(VeventQueue {
            id,
            viommu,
            depth,
            state: Mutex::default(),
            listener: Listener::default(),
        })
    }

    pub(crate) fn viommu(&self) -> ObjectId {
        self.viommu
    }

    /// Queues an event, or the note that it was lost.
    pub(crate) fn report(&self, data: &[u8]) {
        {
            let mut state = self.state.lock();
            if state.count >= self.depth {
                state.push(None);
            } else {
                state.count += 1;
                state.push(Some(data.to_vec()));
            }
        }
        self.listener.notify();
    }
}

impl Queue for VeventQueue {
    const NAME: &'static str = "[iommufd-viommu-event]";

    fn id(&self) -> ObjectId {
        self.id
    }

    fn listener(&self) -> &Listener {
        &self.listener
    }

    fn read(&self, count: usize) -> Result<Vec<u8>, Error> {
        if count < HEADER {
            return Err(too_short(count, HEADER));
        }
        let mut bytes = Vec::new();
        let mut state = self.state.lock();
        while let Some(event) = state.events.front() {
            let rest = count - bytes.len();
            if rest < HEADER {
                break;
            }
            let data = event.data.as_deref().unwrap_or_default();
            if rest - HEADER < data.len() {
                if bytes.is_empty() {
                    return Err(too_short(count, HEADER + data.len()));
                }
                break;
            }
            let flags = if event.data.is_none() { LOST_EVENTS } else { 0 };
            bytes.extend_from_slice(&flags.to_ne_bytes());
            bytes.extend_from_slice(&event.sequence.to_ne_bytes());
            bytes.extend_from_slice(data);
            if event.data.is_some() {
                state.count -= 1;
            }
            state.events.pop_front();
        }
        Ok(bytes)
    }

    fn is_readable(&self) -> bool {
        !self.state.lock().events.is_empty()
    }
}

fn too_short(len: usize, needed: usize) -> Error {
    EventError::ReadTooShort { len, needed }.into()
}

impl fmt::Debug for VeventQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VeventQueue")
            .field("id", &self.id)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(depth: u32) -> Arc<VeventQueue> {
        VeventQueue::new(ObjectId::from_raw(1), ObjectId::from_raw(2), depth)
    }

    /// (flags, sequence) of each header, with `len` bytes of data after those that have any.
    fn headers(mut bytes: &[u8], len: usize) -> Vec<(u32, u32)> {
        let mut headers = Vec::new();
        while let Some((header, rest)) = bytes.split_at_checked(HEADER) {
            let word = |at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            headers.push((word(0), word(4)));
            bytes = if word(0) & LOST_EVENTS == 0 {
                &rest[len..]
            } else {
                rest
            };
        }
        headers
    }

    #[test]
    fn events_that_do_not_fit_are_reported_as_lost_at_the_end() {
        let queue = queue(2);
        for event in 0u32..4 {
            queue.report(&event.to_ne_bytes());
        }
        let read = queue.read(100).unwrap();
        assert_eq!(headers(&read, 4), [(0, 0), (0, 1), (LOST_EVENTS, 3)]);
        queue.report(&[9; 4]);
        assert_eq!(headers(&queue.read(100).unwrap(), 4), [(0, 4)]);
    }

    #[test]
    fn the_note_of_lost_events_goes_when_an_event_follows() {
        let queue = queue(1);
        queue.report(&[0; 4]);
        queue.report(&[0; 4]);
        assert_eq!(headers(&queue.read(12).unwrap(), 4), [(0, 0)]);
        queue.report(&[0; 4]);
        assert_eq!(headers(&queue.read(100).unwrap(), 4), [(0, 2)]);
    }

    #[test]
    fn a_read_takes_whole_events() {
        let queue = queue(3);
        assert_eq!(queue.read(HEADER), Ok(Vec::new()), "empty");
        queue.report(&[1; 4]);
        queue.report(&[2; 4]);
        assert_eq!(queue.read(HEADER - 1), Err(too_short(7, 8)));
        assert_eq!(queue.read(HEADER), Err(too_short(8, 12)));
        assert_eq!(queue.read(HEADER + 4 + HEADER).unwrap().len(), 12);
        assert!(queue.is_readable());
    }

    #[test]
    fn sequence_numbers_wrap_to_0() {
        let queue = queue(3);
        queue.state.lock().sequence = LAST_SEQUENCE;
        queue.report(&[1; 4]);
        queue.report(&[1; 4]);
        let read = queue.read(100).unwrap();
        assert_eq!(headers(&read, 4), [(0, LAST_SEQUENCE), (0, 0)]);
    }
}
