//! The event log: a ring in memory for errors that have no completion record (specification 2.0,
//! sections 5.9 and 9.2.17; `EVLCFG` and `EVLSTATUS` in drivers/dma/idxd/registers.h).

use bitfield_struct::bitfield;

use super::{
    completion::{CompletionRecord, RECORD_SIZE},
    registers::SwError,
};

/// Bytes in one entry (`GENCAP.evl_support` = 1).
pub const EVENT_SIZE: usize = 64;
/// Fewest entries of a ring.
pub const EVENT_LOG_MIN: u16 = 64;

/// Event log configuration, 128 bits; writable while the device is disabled.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct EventLogConfig {
    /// Entries are written with `pasid`.
    pub pasid_en: bool,
    /// Entries are written with privilege, if with a PASID.
    pub privileged: bool,
    #[bits(10)]
    __: u16,
    /// Address of the ring, in units of 4 KiB.
    #[bits(52)]
    pub base: u64,
    /// Entries in the ring.
    pub size: u16,
    /// PASID of the ring's address space.
    #[bits(20)]
    pub pasid: u32,
    #[bits(28)]
    __: u32,
}

/// Event log status. `head` is the driver's to write, `interrupt_pending` is write 1 to clear.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventLogStatus {
    /// The entry that the driver reads next.
    pub head: u16,
    __: u16,
    /// The entry that the device writes next.
    pub tail: u16,
    #[bits(14)]
    __: u16,
    /// Interrupt 0 has been raised for the log, and no other will be until this is cleared.
    pub interrupt_pending: bool,
    __: bool,
}

/// One entry: the error as in SWERR, and the completion record that could not be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub error: SwError,
    /// The record.
    pub record: CompletionRecord,
    /// Interrupt handle of the descriptor.
    pub int_handle: u16,
    /// The descriptor asked for an interrupt.
    pub request_interrupt: bool,
    /// The descriptor asked for a record on success too.
    pub request_record: bool,
}

impl Event {
    /// An event without a record: the descriptor had no place for one.
    pub fn without_record(error: SwError) -> Self {
        Event {
            error,
            ..Event::default()
        }
    }

    /// The bytes as they stand in the ring.
    pub fn to_bytes(self) -> [u8; EVENT_SIZE] {
        let invalid_flags = u64::from(self.error.invalid_flags);
        let information = match invalid_flags {
            0 => {
                u64::from(self.int_handle)
                    | u64::from(self.request_interrupt) << 16
                    | u64::from(self.request_record) << 18
            }
            flags => flags,
        };
        // Bits 0 and 1 are those of the register, not of the error; bit 7 says that the
        // information is valid.
        let quadwords = [
            self.error.info.into_bits() & !3 | 1 << 7,
            u64::from(self.error.batch_idx) | information << 32,
            self.error.fault_addr,
            0,
        ];
        let mut bytes = [0; EVENT_SIZE];
        for (chunk, quadword) in bytes.chunks_exact_mut(8).zip(quadwords) {
            chunk.copy_from_slice(&quadword.to_le_bytes());
        }
        bytes[EVENT_SIZE - RECORD_SIZE..].copy_from_slice(&self.record.to_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::registers::SwErrorInfo;

    #[test]
    fn fields_lie_where_the_driver_looks_for_them() {
        let config = EventLogConfig::new()
            .with_pasid_en(true)
            .with_base(0x1234)
            .with_size(64)
            .with_pasid(5);
        assert_eq!(config.into_bits(), (64 | 5 << 16) << 64 | 0x123_4001);
        let status = EventLogStatus::new().with_head(3).with_tail(4);
        let status = status.with_interrupt_pending(true).into_bits();
        assert_eq!(status, 3 | 4 << 32 | 1 << 62);
        let info = SwErrorInfo::new()
            .with_valid(true)
            .with_desc_valid(true)
            .with_error(0x1a)
            .with_wq_idx(2)
            .with_operation(3)
            .with_pasid(0x77);
        let event = Event {
            error: SwError {
                info,
                batch_idx: 9,
                fault_addr: 0xabc0,
                ..SwError::default()
            },
            record: CompletionRecord {
                status: 1,
                ..CompletionRecord::default()
            },
            int_handle: 6,
            request_interrupt: true,
            request_record: true,
        };
        let bytes = event.to_bytes();
        assert_eq!(bytes[..8], [0x84, 0x1a, 2, 0, 3, 0x77, 0, 0]);
        assert_eq!(bytes[8..16], [9, 0, 0, 0, 6, 0, 5, 0]);
        assert_eq!(bytes[16..18], [0xc0, 0xab]);
        assert_eq!(bytes[32], 1);
    }
}
