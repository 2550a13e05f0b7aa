//! The fixed registers of BAR0 (specification, section 9.2) and the offsets of the tables behind
//! them. All offsets are bytes from the start of BAR0.

use bitfield_struct::bitfield;

/// PCI vendor: Intel.
pub const VENDOR: u16 = 0x8086;
/// PCI device: DSA, first generation.
pub const DEVICE: u16 = 0x0b25;
/// PCI class code: base system peripheral, other (0x088000).
pub const CLASS: u32 = 0x08_80_00;

/// `VERSION`: 1.0.
pub const VERSION_VALUE: u32 = 0x100;

/// `VERSION`, 32 bits, read-only (section 9.2.1).
pub const VERSION: u64 = 0x00;
/// [`GenCap`].
pub const GENCAP: u64 = 0x10;
/// [`WqCap`].
pub const WQCAP: u64 = 0x20;
/// [`GroupCap`].
pub const GRPCAP: u64 = 0x30;
/// [`EngineCap`].
pub const ENGCAP: u64 = 0x38;
/// Operations capability, 256 bits: bit n set if opcode n is supported (section 9.2.6).
pub const OPCAP: u64 = 0x40;
/// [`TableOffsets`], 128 bits.
pub const OFFSETS: u64 = 0x60;
/// General configuration, 32 bits; writable while the device is disabled (section 9.2.8).
pub const GENCFG: u64 = 0x80;
/// [`GenCtrl`].
pub const GENCTRL: u64 = 0x88;
/// [`GenStatus`].
pub const GENSTS: u64 = 0x90;
/// [`IntCause`], write 1 to clear.
pub const INTCAUSE: u64 = 0x98;
/// [`crate::spec::Cmd`], write-only.
pub const CMD: u64 = 0xa0;
/// [`crate::spec::CmdStatus`], read-only.
pub const CMDSTS: u64 = 0xa8;
/// Command capability, 32 bits: bit n set if command n is supported.
pub const CMDCAP: u64 = 0xb0;
/// [`SwError`], 256 bits.
pub const SWERR: u64 = 0xc0;
/// First byte after SWERR.
pub const SWERR_END: u64 = 0xe0;
/// [`crate::spec::event_log::EventLogConfig`], 128 bits; writable while the device is disabled.
pub const EVLCFG: u64 = 0xe0;
/// [`crate::spec::event_log::EventLogStatus`].
pub const EVLSTATUS: u64 = 0xf0;

/// Where this model puts the group table: one [`crate::spec::GroupConfig`] per group.
pub const GRPCFG: u64 = 0x400;
/// Where this model puts the queue table: one [`crate::spec::WqConfig`] per queue.
pub const WQCFG: u64 = 0x800;
/// Where this model puts the MSI-X permission table: 8 bytes per vector.
pub const MSIXPERM: u64 = 0x1000;
/// MSI-X table, 16 bytes per vector: behind the registers, on pages of its own, because drivers
/// without the MSIX_MAPPABLE capability map around its page.
pub const MSIX_TABLE: u64 = 0x2000;
/// MSI-X pending bits.
pub const MSIX_PBA: u64 = 0x3000;
/// Size of BAR0 in bytes.
pub const BAR0_SIZE: u64 = 0x1_0000;

/// Bytes per queue in BAR2: four pages (unlimited, limited, and the same for the interrupt message
/// store, which this model does not have).
pub const PORTAL_STRIDE: u64 = 0x4000;
/// Bytes in one portal page.
pub const PORTAL_PAGE: u64 = 0x1000;

/// General capabilities (section 9.2.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct GenCap {
    /// A descriptor may ask to wait for a page fault to be handled.
    pub block_on_fault: bool,
    /// Memory Move copes with overlapping buffers.
    pub overlap_copy: bool,
    /// The cache control flag is supported for memory writes.
    pub cache_control_mem: bool,
    /// The cache control flag is supported for the Cache Flush operation.
    pub cache_control_cache: bool,
    /// The command capability register is valid.
    pub cmd_cap: bool,
    #[bits(3)]
    __: u8,
    /// Destination readback is supported.
    pub dest_readback: bool,
    /// The Drain descriptor may name readback addresses.
    pub drain_readback: bool,
    #[bits(3)]
    __: u8,
    /// Event log sizes that are supported; 0 for none.
    #[bits(2)]
    pub evl_support: u8,
    /// A batch may go on after a failed descriptor.
    pub batch_continuation: bool,
    /// Largest transfer: 2^n bytes.
    #[bits(5)]
    pub max_xfer_shift: u8,
    /// Largest batch: 2^n descriptors.
    #[bits(4)]
    pub max_batch_shift: u8,
    /// Size of the interrupt message store in units of 256; 0 for none.
    #[bits(6)]
    pub max_ims_mult: u8,
    /// Groups and queues can be configured by software.
    pub config_en: bool,
    __: u32,
}

/// Work queue capabilities (section 9.2.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct WqCap {
    /// Entries that can be divided among the queues.
    pub total_wq_size: u16,
    /// Number of queues.
    pub num_wqs: u8,
    /// Size of a WQCFG entry: 2^(n+5) bytes.
    #[bits(4)]
    pub wqcfg_size: u8,
    #[bits(20)]
    __: u32,
    /// Shared queues are supported.
    pub shared_mode: bool,
    /// Dedicated queues are supported.
    pub dedicated_mode: bool,
    /// ATS can be disabled per queue.
    pub wq_ats_support: bool,
    /// Queue priorities are supported.
    pub priority: bool,
    /// The occupancy field of WQCFG is valid.
    pub occupancy: bool,
    /// An interrupt at an occupancy limit is supported.
    pub occupancy_int: bool,
    /// Operations can be restricted per queue.
    pub op_config: bool,
    /// Page requests can be disabled per queue.
    pub wq_prs_support: bool,
    __: u8,
}

/// Group capabilities (section 9.2.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct GroupCap {
    /// Number of groups.
    pub num_groups: u8,
    /// Read buffers that can be divided among the groups.
    pub total_rdbufs: u8,
    /// Read buffers can be assigned.
    pub rdbuf_ctrl: bool,
    /// A limit of read buffers can be set.
    pub rdbuf_limit: bool,
    #[bits(46)]
    __: u64,
}

/// Engine capabilities (section 9.2.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EngineCap {
    /// Number of engines.
    pub num_engines: u8,
    #[bits(56)]
    __: u64,
}

/// Where the tables are, in units of 0x100 bytes (section 9.2.7).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct TableOffsets {
    /// Group configuration table.
    pub grpcfg: u16,
    /// Work queue configuration table.
    pub wqcfg: u16,
    /// MSI-X permission table.
    pub msix_perm: u16,
    /// Interrupt message store; 0 for none.
    pub ims: u16,
    /// Performance monitor; 0 for none.
    pub perfmon: u16,
    #[bits(48)]
    __: u64,
}

/// General configuration (section 9.2.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GenConfig {
    /// Limit of the read buffers; without effect.
    pub read_buffer_limit: u8,
    #[bits(4)]
    __: u8,
    /// Descriptors may ask for interrupts in user mode; without effect.
    pub user_interrupts: bool,
    /// Errors go to the event log.
    pub event_log: bool,
    #[bits(18)]
    __: u32,
}

/// General control (section 9.2.9).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GenCtrl {
    /// Interrupt 0 when SWERR becomes valid.
    pub softerr_int_en: bool,
    /// Interrupt 0 when the device halts.
    pub halt_int_en: bool,
    /// Interrupt 0 when the event log gets an entry.
    pub evl_int_en: bool,
    #[bits(29)]
    __: u32,
}

/// Device state in [`GenStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Accepts configuration and no work.
    Disabled = 0,
    /// Works.
    Enabled = 1,
    /// Finishes its work before it is disabled.
    Drain = 2,
    /// Stopped after an error; this model never halts.
    Halt = 3,
}

impl DeviceState {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => DeviceState::Disabled,
            1 => DeviceState::Enabled,
            2 => DeviceState::Drain,
            _ => DeviceState::Halt,
        }
    }
}

/// General status (section 9.2.10).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GenStatus {
    /// Device state.
    #[bits(2)]
    pub state: DeviceState,
    /// Which reset leaves the halt state.
    #[bits(2)]
    pub reset_type: u8,
    #[bits(28)]
    __: u32,
}

/// Why interrupt 0 was raised (section 9.2.11).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IntCause {
    /// SWERR became valid or overflowed.
    pub error: bool,
    /// A command completed.
    pub command: bool,
    /// A queue fell to its occupancy limit.
    pub occupancy: bool,
    /// A performance counter overflowed.
    pub perfmon_overflow: bool,
    /// The device halted.
    pub halt: bool,
    /// The event log got an entry.
    pub event_log: bool,
    #[bits(25)]
    __: u32,
    /// Interrupt handles were revoked.
    pub handle_revoked: bool,
}

/// First quadword of the software error register (section 9.2.15).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SwErrorInfo {
    /// The register holds an error; write 1 to clear.
    pub valid: bool,
    /// At least one more error was lost; write 1 to clear.
    pub overflow: bool,
    /// The fields that come from a descriptor are valid.
    pub desc_valid: bool,
    /// `wq_idx` is valid.
    pub wq_idx_valid: bool,
    /// The descriptor was in a batch; `batch_idx` is valid.
    pub batch: bool,
    /// The faulting access was a write.
    pub fault_write: bool,
    /// The descriptor was privileged.
    pub privileged: bool,
    __: bool,
    /// A [`crate::spec::Status`] or one of the codes for this register.
    pub error: u8,
    /// Queue index.
    pub wq_idx: u8,
    __: u8,
    /// Opcode of the descriptor.
    pub operation: u8,
    /// PASID of the descriptor as its submitter wrote it: never the one in WQCFG.
    #[bits(20)]
    pub pasid: u32,
    #[bits(4)]
    __: u8,
}

/// The software error register: the one place for errors that have no completion record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwError {
    /// What happened.
    pub info: SwErrorInfo,
    /// Index of the descriptor in its batch.
    pub batch_idx: u16,
    /// Flags of the descriptor that were refused, for [`crate::spec::Status::InvalidFlags`].
    pub invalid_flags: u32,
    /// Address that could not be reached.
    pub fault_addr: u64,
}

impl SwError {
    /// A descriptor was stored to the portal of a queue that is not enabled.
    pub const QUEUE_DISABLED: u8 = 0x52;

    /// The register with these quadwords; the fourth is 0.
    pub const fn from_quadwords(quadwords: [u64; 3]) -> Self {
        let [info, second, fault_addr] = quadwords;
        SwError {
            info: SwErrorInfo::from_bits(info),
            batch_idx: second as u16,
            invalid_flags: (second >> 32) as u32,
            fault_addr,
        }
    }

    /// Quadword `index` (0..=3) of the register.
    pub const fn quadword(&self, index: u64) -> u64 {
        match index {
            0 => self.info.into_bits(),
            1 => self.batch_idx as u64 | (self.invalid_flags as u64) << 32,
            2 => self.fault_addr,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_driver_looks_for_them() {
        let cap = GenCap::new()
            .with_cmd_cap(true)
            .with_max_xfer_shift(0x15)
            .with_max_batch_shift(0xa)
            .with_config_en(true);
        assert_eq!(cap.into_bits(), 1 << 4 | 0x15 << 16 | 0xa << 21 | 1 << 31);
        let cap = WqCap::new().with_total_wq_size(128).with_num_wqs(8);
        assert_eq!(
            cap.with_dedicated_mode(true).into_bits(),
            128 | 8 << 16 | 1 << 49
        );
        let error = SwErrorInfo::new().with_error(0x1a).with_pasid(0xf_ffff);
        assert_eq!(error.into_bits(), 0x1a << 8 | 0xf_ffff << 40);
        assert_eq!(IntCause::new().with_command(true).into_bits(), 2);
        assert_eq!(
            GenStatus::new().with_state(DeviceState::Halt).into_bits(),
            3
        );
    }
}
