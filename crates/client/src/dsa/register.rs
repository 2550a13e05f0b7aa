//! Registers in BAR 0 and the portal in BAR 2.

use bitfield_struct::bitfield;

/// PCI vendor and device id, as they lie in the first four bytes of config space.
pub const PCI_ID: u32 = 0x0b25_8086;

/// Offset of the command register in config space.
pub const PCI_COMMAND: u64 = 0x04;
/// PCI command: memory space enabled, bus master, INTx disabled.
pub const PCI_COMMAND_ON: u16 = 1 << 1 | 1 << 2 | 1 << 10;

/// General capabilities ([`GeneralCaps`]), 64 bits.
pub const GENCAP: u64 = 0x10;
/// Work queue capabilities ([`WqCaps`]), 64 bits.
pub const WQCAP: u64 = 0x20;
/// Operation capabilities, 256 bits: bit n says that opcode n is there.
pub const OPCAP: u64 = 0x40;
/// Where the tables are ([`TableOffsets`]), 64 bits of them.
pub const OFFSETS: u64 = 0x60;
/// Device state, 32 bits: bits 0..2 are 0 disabled, 1 enabled, 3 halted.
pub const GENSTS: u64 = 0x90;
/// Command ([`CommandRegister`]), 32 bits; a write starts it.
pub const CMD: u64 = 0xa0;
/// State of the last command ([`CommandStatus`]), 32 bits.
pub const CMDSTS: u64 = 0xa8;
/// Errors outside of any descriptor ([`SoftwareErrorWord`] is the first of four words).
pub const SWERR: u64 = 0xc0;

/// Bytes of one group in GRPCFG: 256 bits of queues, 64 bits of engines, 64 bits of flags.
pub const GRPCFG_STRIDE: u64 = 64;
/// Offset of the engines inside one group.
pub const GRPCFG_ENGINES: u64 = 32;
/// Offset of the dword with mode, priority and PASID inside one WQCFG.
pub const WQCFG_PASID_DWORD: u64 = 8;

/// What the device can do.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct GeneralCaps {
    /// A fault may block a descriptor.
    pub block_on_fault: bool,
    /// MEMMOVE handles overlapping areas.
    pub overlapping_copy: bool,
    #[bits(2)]
    __: u8,
    /// CMDCAP says which commands there are.
    pub command_caps: bool,
    #[bits(11)]
    __: u16,
    /// log2 of the largest transfer in bytes.
    #[bits(5)]
    pub max_transfer_shift: u8,
    /// log2 of the largest batch.
    #[bits(4)]
    pub max_batch_shift: u8,
    #[bits(6)]
    __: u8,
    /// Queues and groups can be configured; clear in a virtual device.
    pub configurable: bool,
    __: u32,
}

/// What the work queues can do.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct WqCaps {
    /// Descriptors that all queues hold together.
    pub total_size: u16,
    /// Number of queues.
    pub queues: u8,
    /// log2 of the size of one WQCFG over 32 bytes.
    #[bits(4)]
    pub config_size: u8,
    #[bits(20)]
    __: u32,
    /// Shared mode.
    pub shared_mode: bool,
    /// Dedicated mode.
    pub dedicated_mode: bool,
    #[bits(4)]
    __: u8,
    /// Each queue has its own set of operations.
    pub operation_config: bool,
    #[bits(9)]
    __: u16,
}

/// Where the tables are, in units of 256 bytes from the start of BAR 0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TableOffsets {
    /// Group configuration.
    pub groups: u16,
    /// Work queue configuration.
    pub queues: u16,
    /// MSI-X permissions.
    pub msix_permissions: u16,
    /// Interrupt message storage.
    pub ims: u16,
}

impl TableOffsets {
    /// Bytes per unit.
    pub const UNIT: u64 = 0x100;
}

/// A command of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "named as in the specification, 9.2.13")]
pub enum Command {
    EnableDevice = 1,
    DisableDevice = 2,
    DrainAll = 3,
    AbortAll = 4,
    ResetDevice = 5,
    EnableWq = 6,
    DisableWq = 7,
    DrainWq = 8,
    AbortWq = 9,
    ResetWq = 10,
    DrainPasid = 11,
    AbortPasid = 12,
}

impl Command {
    /// The operand that names queue `index` to the commands that take a set of queues.
    pub const fn queue_set(index: u32) -> u32 {
        1 << (index % 16) | (index / 16) << 16
    }
}

/// The CMD register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CommandRegister {
    /// Operand.
    #[bits(20)]
    pub operand: u32,
    /// A [`Command`].
    #[bits(5)]
    pub command: u8,
    #[bits(6)]
    __: u8,
    /// Raise interrupt 0 when done.
    pub interrupt: bool,
}

/// The CMDSTS register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CommandStatus {
    /// Error code, 0 if none.
    pub error: u8,
    /// Result, if the command has one.
    pub result: u16,
    #[bits(7)]
    __: u8,
    /// Still running.
    pub active: bool,
}

/// The first word of SWERR.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SoftwareErrorWord {
    /// An error is recorded.
    pub valid: bool,
    /// There were more.
    pub overflow: bool,
    /// The descriptor is known.
    pub descriptor_valid: bool,
    /// The queue is known.
    pub queue_valid: bool,
    /// It came from a batch.
    pub batch: bool,
    /// Direction, if the address is known.
    pub write: bool,
    /// With supervisor rights.
    pub privileged: bool,
    #[bits(1)]
    __: u8,
    /// Error code.
    pub error: u8,
    /// Work queue.
    pub queue: u8,
    #[bits(8)]
    __: u8,
    /// Operation of the descriptor.
    pub opcode: u8,
    #[bits(24)]
    __: u32,
}

/// The first 16 bytes of a WQCFG.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct WqConfig {
    /// Descriptors that the queue holds.
    pub size: u16,
    __: u16,
    /// Limit of the limited portal.
    pub threshold: u16,
    __: u16,
    /// Dedicated mode.
    pub dedicated: bool,
    /// A fault may block a descriptor.
    pub block_on_fault: bool,
    #[bits(2)]
    __: u8,
    /// Priority in its group, 1..=15.
    #[bits(4)]
    pub priority: u8,
    /// PASID, if `pasid_enabled`.
    #[bits(20)]
    pub pasid: u32,
    /// Descriptors carry the PASID.
    pub pasid_enabled: bool,
    /// With supervisor rights.
    pub privileged: bool,
    #[bits(2)]
    __: u8,
    /// log2 of the largest transfer in bytes.
    #[bits(5)]
    pub max_transfer_shift: u8,
    /// log2 of the largest batch.
    #[bits(4)]
    pub max_batch_shift: u8,
    #[bits(23)]
    __: u32,
}

/// Offset of the operation set inside one WQCFG, if it has one: 256 bits.
pub const WQCFG_OPERATIONS: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_their_fields_where_the_specification_puts_them() {
        let caps = GeneralCaps::from_bits(1 << 31 | 9 << 21 | 21 << 16 | 1 << 4);
        assert_eq!((caps.max_transfer_shift(), caps.max_batch_shift()), (21, 9));
        assert!(caps.configurable() && caps.command_caps() && !caps.block_on_fault());
        let caps = WqCaps::from_bits(1 << 54 | 1 << 49 | 1 << 24 | 4 << 16 | 128);
        assert_eq!(
            (caps.total_size(), caps.queues(), caps.config_size()),
            (128, 4, 1)
        );
        assert!(caps.operation_config() && caps.dedicated_mode() && !caps.shared_mode());
        let command = CommandRegister::new()
            .with_command(Command::EnableWq as u8)
            .with_operand(3);
        assert_eq!(u32::from(command), 6 << 20 | 3);
        assert!(CommandStatus::from_bits(1 << 31).active());
        assert_eq!(Command::queue_set(17), 2 | 1 << 16);
    }

    #[test]
    fn a_work_queue_has_its_pasid_in_the_third_dword() {
        let config = WqConfig::new()
            .with_size(16)
            .with_dedicated(true)
            .with_priority(1)
            .with_pasid(0x12345)
            .with_pasid_enabled(true)
            .with_max_transfer_shift(21)
            .with_max_batch_shift(5);
        let bytes = u128::from(config).to_le_bytes();
        assert_eq!(bytes[0..4], [16, 0, 0, 0]);
        assert_eq!(
            bytes[8..12],
            (1u32 | 1 << 4 | 0x12345 << 8 | 1 << 28).to_le_bytes()
        );
        assert_eq!(bytes[12..16], (21u32 | 5 << 5).to_le_bytes());
    }
}
