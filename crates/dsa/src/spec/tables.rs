//! The configuration tables of BAR0: work queues (specification, section 9.2.24) and groups
//! (section 9.2.22).

use bitfield_struct::bitfield;

/// Bytes in one WQCFG entry (`WQCAP.wqcfg_size` = 0).
pub const WQCFG_SIZE: u64 = 32;
/// Bytes in one GRPCFG entry.
pub const GRPCFG_SIZE: u64 = 64;

/// State of a queue in WQCFG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WqState {
    /// Accepts no descriptors.
    Disabled = 0,
    /// Accepts descriptors.
    Enabled = 1,
}

impl WqState {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        if bits & 1 == 0 {
            WqState::Disabled
        } else {
            WqState::Enabled
        }
    }
}

/// Bytes 8..=11 of WQCFG: how the queue is used and whose address space it works in. The one dword
/// that a host writes when it gives a queue to a guest.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WqUse {
    /// 1: dedicated to one client; 0: shared.
    pub dedicated: bool,
    /// Descriptors may set Block On Fault.
    pub block_on_fault: bool,
    /// ATS is off for this queue.
    pub ats_disable: bool,
    /// Page requests are off for this queue.
    pub prs_disable: bool,
    /// Weight among the queues of the group, 1..=15; 0 is invalid.
    #[bits(4)]
    pub priority: u8,
    /// The PASID of every descriptor of a dedicated queue, if `pasid_en`.
    #[bits(20)]
    pub pasid: u32,
    /// Requests carry a PASID.
    pub pasid_en: bool,
    /// Requests are privileged: of dedicated queues, and only where the device's PASID capability has
    /// Privileged Mode enabled.
    pub privileged: bool,
    #[bits(2)]
    __: u8,
}

/// Bytes 12..=15 of WQCFG: limits.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WqLimits {
    /// Largest transfer: 2^n bytes.
    #[bits(5)]
    pub max_xfer_shift: u8,
    /// Largest batch: 2^n descriptors.
    #[bits(4)]
    pub max_batch_shift: u8,
    #[bits(23)]
    __: u32,
}

/// Bytes 24..=27 of WQCFG: what the device says about the queue.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WqStatus {
    /// Descriptors waiting.
    pub occupancy: u16,
    #[bits(13)]
    __: u16,
    /// The queue supports only the mode it is in.
    pub mode_support: bool,
    /// [`WqState`].
    #[bits(2)]
    pub state: WqState,
}

/// One entry of the queue table, as software wrote it. [`WqStatus`] is made when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WqConfig {
    /// Entries of this queue.
    pub size: u16,
    /// Threshold of shared queues.
    pub threshold: u16,
    /// Bytes 8..=11.
    pub usage: WqUse,
    /// Bytes 12..=15.
    pub limits: WqLimits,
}

impl WqConfig {
    /// Dword `index` (0..=7), with `status` as dword 6.
    pub const fn dword(&self, index: u64, status: WqStatus) -> u32 {
        match index {
            0 => self.size as u32,
            1 => self.threshold as u32,
            2 => self.usage.into_bits(),
            3 => self.limits.into_bits(),
            6 => status.into_bits(),
            _ => 0,
        }
    }

    /// Stores dword `index`; those that software cannot write are ignored.
    pub fn set_dword(&mut self, index: u64, value: u32) {
        match index {
            0 => self.size = value as u16,
            1 => self.threshold = value as u16,
            2 => self.usage = WqUse::from_bits(value & 0x3fff_ffff),
            3 => self.limits = WqLimits::from_bits(value & 0x1ff),
            _ => {}
        }
    }
}

/// The low half of one entry of the MSI-X permission table (section 9.2.23): which clients may name
/// the vector.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsixPermission {
    #[bits(2)]
    __: u8,
    /// Descriptors with any PASID, and with none.
    pub ignore: bool,
    /// Descriptors with `pasid`; otherwise those without one.
    pub pasid_en: bool,
    __: u8,
    /// The PASID.
    #[bits(20)]
    pub pasid: u32,
}

/// One entry of the group table. Up to 64 queues; the other three quadwords read as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupConfig {
    /// Bit n: queue n is in the group.
    pub queues: u64,
    /// Bit n: engine n is in the group.
    pub engines: u64,
    /// Group flags (traffic classes, read buffers): kept, without effect.
    pub flags: u64,
}

impl GroupConfig {
    /// Quadword `index` (0..=7) of the entry.
    pub const fn quadword(&self, index: u64) -> u64 {
        match index {
            0 => self.queues,
            4 => self.engines,
            5 => self.flags,
            _ => 0,
        }
    }

    /// The quadword that software may write, if `index` names one.
    pub const fn quadword_mut(&mut self, index: u64) -> Option<&mut u64> {
        match index {
            0 => Some(&mut self.queues),
            4 => Some(&mut self.engines),
            5 => Some(&mut self.flags),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pasid_dword_lies_where_the_driver_writes_it() {
        let usage = WqUse::new()
            .with_dedicated(true)
            .with_priority(10)
            .with_pasid(0x1234)
            .with_pasid_en(true)
            .with_privileged(true);
        assert_eq!(
            usage.into_bits(),
            1 | 10 << 4 | 0x1234 << 8 | 1 << 28 | 1 << 29
        );
        let permission = MsixPermission::new().with_pasid_en(true).with_pasid(5);
        assert_eq!(permission.into_bits(), 1 << 3 | 5 << 12);
        let status = WqStatus::new().with_state(WqState::Enabled);
        assert_eq!(status.into_bits(), 1 << 30);
    }

    #[test]
    fn reserved_bits_of_an_entry_do_not_stick() {
        let mut config = WqConfig::default();
        for index in 0..8 {
            config.set_dword(index, u32::MAX);
        }
        let status = WqStatus::new();
        assert_eq!(config.dword(0, status), 0xffff);
        assert_eq!(config.dword(2, status), 0x3fff_ffff);
        assert_eq!(config.dword(3, status), 0x1ff);
        assert_eq!(config.dword(6, status), 0);
    }
}
