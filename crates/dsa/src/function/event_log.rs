//! The event log of one owner: what of it is in registers, and what waits to be written to memory.
//!
//! Entries are written by the engine or worker that met the error, in the address space of the
//! owner: of a child with its default PASID, so that neither the entry nor its absence shows to
//! anybody else. One of them writes at a time and takes what others leave for it.

use std::collections::VecDeque;

use ioasid_core::Pasid;

use crate::spec::{
    CommandError, Event,
    event_log::{EVENT_LOG_MIN, EVENT_SIZE, EventLogConfig, EventLogStatus},
};

/// Events that wait for their writer. More are lost, and show as an overflow of SWERR.
const WAITING_LIMIT: usize = 64;

/// Registers and events of one log.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    enabled: bool,
    config: EventLogConfig,
    status: EventLogStatus,
    waiting: VecDeque<Event>,
    /// An engine or a worker writes the first of them.
    writing: bool,
}

/// Where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) address: u64,
    /// The PASID of the configuration.
    pub(crate) pasid: Option<Pasid>,
    /// The configuration asks for privileged requests.
    pub(crate) privileged: bool,
    pub(crate) event: Event,
}

impl EventLog {
    pub(crate) const fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Checked when the device is enabled.
    pub(crate) fn check(&self, max_pasids: u32) -> Result<(), CommandError> {
        if self.enabled && self.config.size() < EVENT_LOG_MIN {
            return Err(CommandError::Configuration);
        }
        let possible = Pasid::new(self.config.pasid()).is_some_and(|p| p.get() < max_pasids);
        if self.enabled && self.config.pasid_en() && !possible {
            return Err(CommandError::PasidInvalid);
        }
        Ok(())
    }

    /// Quadword `index` of EVLCFG.
    pub(crate) fn config(&self, index: u64) -> u64 {
        (self.config.into_bits() >> (64 * (index & 1))) as u64
    }

    /// Changes the bits in `mask` of that quadword; the ring is empty then.
    pub(crate) fn set_config(&mut self, index: u64, value: u64, mask: u64) {
        let shift = 64 * (index & 1);
        let bits = self.config.into_bits() & !(u128::from(mask) << shift);
        self.config = EventLogConfig::from_bits(bits | u128::from(value) << shift);
        self.status = EventLogStatus::new();
    }

    /// As it was saved, when nothing waited to be written.
    pub(crate) fn load(&mut self, enabled: bool, config: [u64; 2], status: u64) {
        let [low, high] = config.map(u128::from);
        *self = EventLog {
            enabled,
            config: EventLogConfig::from_bits(low | high << 64),
            status: EventLogStatus::from_bits(status),
            ..EventLog::default()
        };
    }

    pub(crate) const fn status(&self) -> u64 {
        self.status.into_bits()
    }

    /// The driver says how far it has read.
    pub(crate) const fn set_head(&mut self, value: u32) {
        self.status.set_head(value as u16);
    }

    /// Write 1 to clear: the next entry raises an interrupt again.
    pub(crate) const fn clear_pending(&mut self, value: u32) {
        if value & 1 << 30 != 0 {
            self.status.set_interrupt_pending(false);
        }
    }

    /// Entries that the driver has not read.
    fn used(&self) -> u32 {
        let size = u32::from(self.config.size()).max(1);
        let (head, tail) = (self.status.head(), self.status.tail());
        (u32::from(tail) + size - u32::from(head) % size) % size
    }

    /// Takes an event in. Given back if there is no log, or no room: it belongs to SWERR then.
    pub(crate) fn push(&mut self, event: Event) -> Result<(), Event> {
        let room = u32::from(self.config.size()).saturating_sub(1 + self.used());
        let waiting = self.waiting.len();
        if !self.enabled || waiting >= WAITING_LIMIT || waiting as u32 >= room {
            return Err(event);
        }
        self.waiting.push_back(event);
        Ok(())
    }

    /// Makes the caller the writer of what waits, if it is to be one.
    pub(crate) fn begin(&mut self) -> Option<Slot> {
        if self.writing {
            return None;
        }
        let event = *self.waiting.front()?;
        self.writing = true;
        let offset = u64::from(self.status.tail()) * EVENT_SIZE as u64;
        Some(Slot {
            address: (self.config.base() << 12).wrapping_add(offset),
            pasid: match self.config.pasid_en() {
                true => Pasid::new(self.config.pasid()),
                false => None,
            },
            privileged: self.config.privileged(),
            event,
        })
    }

    /// The entry is in memory; whether interrupt 0 is due.
    pub(crate) fn written(&mut self) -> bool {
        self.writing = false;
        self.waiting.pop_front();
        let next = u32::from(self.status.tail()) + 1;
        let size = u32::from(self.config.size()).max(1);
        self.status.set_tail((next % size) as u16);
        let due = !self.status.interrupt_pending();
        self.status.set_interrupt_pending(true);
        due
    }

    /// The caller cannot write it now; another one will.
    pub(crate) const fn put_off(&mut self) {
        self.writing = false;
    }

    /// The ring cannot be reached: what waited belongs to SWERR.
    pub(crate) fn failed(&mut self) -> VecDeque<Event> {
        self.writing = false;
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> EventLog {
        let mut log = EventLog::default();
        log.enable(true);
        log.set_config(0, 0x5000, u64::MAX);
        log.set_config(1, 64, u64::MAX);
        log
    }

    #[test]
    fn a_full_ring_takes_nothing_until_the_driver_has_read() {
        let mut log = log();
        for entry in 0..63 {
            log.push(Event::default()).unwrap();
            let slot = log.begin().unwrap();
            assert_eq!(slot.address, 0x5000 + 64 * entry);
            assert!(log.begin().is_none(), "one writer at a time");
            assert_eq!(
                log.written(),
                entry == 0,
                "one interrupt until it is cleared"
            );
        }
        assert!(log.push(Event::default()).is_err());
        log.set_head(1);
        log.clear_pending(1 << 30);
        log.push(Event::default()).unwrap();
        assert_eq!(log.begin().unwrap().address, 0x5000 + 64 * 63);
        assert!(log.written());
        assert_eq!(log.status() >> 32 & 0xffff, 0, "it is a ring");
    }

    #[test]
    fn what_cannot_be_written_is_given_back() {
        let mut log = log();
        log.push(Event::default()).unwrap();
        log.push(Event::default()).unwrap();
        assert!(log.begin().is_some());
        assert_eq!(log.failed().len(), 2);
        assert!(log.begin().is_none());
        log.enable(false);
        assert!(log.push(Event::default()).is_err());
    }

    #[test]
    fn a_log_is_checked_when_the_device_is_enabled() {
        let mut log = EventLog::default();
        assert_eq!(log.check(0), Ok(()));
        log.enable(true);
        assert_eq!(log.check(8), Err(CommandError::Configuration));
        log.set_config(1, 64 | 8 << 16, u64::MAX);
        assert_eq!(log.check(8), Ok(()));
        log.set_config(0, 1, 1);
        assert_eq!(log.check(8), Err(CommandError::PasidInvalid));
        assert_eq!(log.check(9), Ok(()));
    }
}
