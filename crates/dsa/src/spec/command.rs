//! Commands, their operands and their result codes (specification, sections 9.2.12 to 9.2.14).

use bitfield_struct::bitfield;

/// The command register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cmd {
    /// Queue index, queue bits or PASID, as the command says.
    #[bits(20)]
    pub operand: u32,
    /// A [`Command`].
    #[bits(5)]
    pub code: u8,
    #[bits(6)]
    __: u8,
    /// Interrupt 0 when the command completes.
    pub request_interrupt: bool,
}

/// The command status register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CmdStatus {
    /// A [`CommandError`], 0 for success.
    pub error: u8,
    /// Result of commands that have one.
    pub result: u16,
    #[bits(7)]
    __: u8,
    /// The command is still running.
    pub active: bool,
}

/// The commands of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Enable the device. No operand.
    EnableDevice = 1,
    /// Drain every queue and disable the device. No operand.
    DisableDevice = 2,
    /// Wait until every accepted descriptor is done. No operand.
    DrainAll = 3,
    /// Drop every queued descriptor, wait for those in flight. No operand.
    AbortAll = 4,
    /// Abort everything and return the registers to their defaults. No operand.
    ResetDevice = 5,
    /// Enable one queue; the operand is its index.
    EnableWq = 6,
    /// Drain and disable the queues of the operand (see [`queue_bits`]).
    DisableWq = 7,
    /// Drain the queues of the operand.
    DrainWq = 8,
    /// Abort the queues of the operand.
    AbortWq = 9,
    /// Abort, disable and reset the queues of the operand.
    ResetWq = 10,
    /// Drain the descriptors of one PASID; the operand is the PASID.
    DrainPasid = 11,
    /// Abort the descriptors of one PASID; the operand is the PASID.
    AbortPasid = 12,
}

impl Command {
    /// Every command of this model. Interrupt handle requests (13, 14) are not among them: here a
    /// handle *is* a vector index, and bit 13 of CMDCAP must be 0 for drivers to know that.
    pub const ALL: [Command; 12] = [
        Command::EnableDevice,
        Command::DisableDevice,
        Command::DrainAll,
        Command::AbortAll,
        Command::ResetDevice,
        Command::EnableWq,
        Command::DisableWq,
        Command::DrainWq,
        Command::AbortWq,
        Command::ResetWq,
        Command::DrainPasid,
        Command::AbortPasid,
    ];

    /// The command with this code.
    pub fn from_code(code: u8) -> Option<Command> {
        Command::ALL.into_iter().find(|c| *c as u8 == code)
    }

    /// The command capability register.
    pub fn capabilities() -> u32 {
        Command::ALL.iter().fold(0, |caps, c| caps | 1 << *c as u8)
    }
}

/// The queues that the operand of a disable, drain, abort or reset command names: bits 0..=15 are
/// a set of queues, bits 16..=19 say which 16.
pub fn queue_bits(operand: u32) -> u64 {
    let (set, window) = (u64::from(operand & 0xffff), (operand >> 16) & 0xf);
    set.checked_shl(window * 16).unwrap_or(0)
}

/// The operand that names one queue in such a command.
pub const fn queue_operand(queue: u32) -> u32 {
    1 << (queue % 16) | (queue / 16) << 16
}

/// Why a command failed: the codes of [`CmdStatus::error`]. The specification
/// distinguishes the four group errors only in prose; which is which here is said below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum CommandError {
    /// No such command.
    #[error("invalid command code")]
    InvalidCommand = 0x01,
    /// No such queue.
    #[error("invalid work queue index")]
    InvalidQueue = 0x02,
    /// The device cannot do it now.
    #[error("hardware error")]
    Hardware = 0x03,
    /// Enable device: already enabled.
    #[error("the device is enabled already")]
    DeviceEnabled = 0x10,
    /// Enable device: the general configuration is invalid.
    #[error("invalid configuration")]
    Configuration = 0x11,
    /// Enable device: PCI bus mastering is off.
    #[error("bus mastering is not enabled")]
    BusMaster = 0x12,
    /// Enable device: PASID settings are invalid.
    #[error("invalid PASID settings")]
    PasidInvalid = 0x13,
    /// Enable device: the sizes of the queues add up to more than there is.
    #[error("the queue sizes exceed the total")]
    QueueSizeRange = 0x14,
    /// Enable device: a queue with entries is in no group or in several, or a group names a queue
    /// that does not exist.
    #[error("a queue is not in exactly one group")]
    GroupQueues = 0x15,
    /// Enable device: an engine is in several groups, or does not exist.
    #[error("an engine is in more than one group")]
    GroupEngines = 0x16,
    /// Enable device: a group has queues and no engine.
    #[error("a group has queues and no engine")]
    GroupNoEngine = 0x17,
    /// Enable device: a group has engines and no queue.
    #[error("a group has engines and no queue")]
    GroupNoQueue = 0x18,
    /// Enable queue: the device is not enabled.
    #[error("the device is not enabled")]
    DeviceNotEnabled = 0x20,
    /// Enable queue: already enabled.
    #[error("the queue is enabled already")]
    QueueEnabled = 0x21,
    /// Enable queue: no entries, or a shared queue whose threshold is 0 or exceeds its entries.
    #[error("the queue has no entries, or its threshold is out of range")]
    QueueSize = 0x22,
    /// Enable queue: priority 0.
    #[error("the queue has no priority")]
    QueuePriority = 0x23,
    /// Enable queue: the mode is not supported.
    #[error("the queue mode is not supported")]
    QueueMode = 0x24,
    /// Enable queue: Block On Fault is not supported.
    #[error("block on fault is not supported")]
    BlockOnFault = 0x25,
    /// Enable queue: PASID settings that the device cannot meet, or a shared queue without PASIDs.
    #[error("the queue's PASID cannot be used")]
    PasidEnable = 0x26,
    /// Enable queue: the batch limit exceeds the device's.
    #[error("the batch limit is too large")]
    MaxBatch = 0x27,
    /// Enable queue: the transfer limit exceeds the device's.
    #[error("the transfer limit is too large")]
    MaxTransfer = 0x28,
    /// Disable device: it is not enabled.
    #[error("the device is not enabled")]
    DisableNotEnabled = 0x31,
    /// A command on a queue: the device is not enabled.
    #[error("the device is not enabled")]
    QueueDeviceNotEnabled = 0x32,
}

impl CommandError {
    /// Every error of this model.
    pub const ALL: [CommandError; 23] = [
        CommandError::InvalidCommand,
        CommandError::InvalidQueue,
        CommandError::Hardware,
        CommandError::DeviceEnabled,
        CommandError::Configuration,
        CommandError::BusMaster,
        CommandError::PasidInvalid,
        CommandError::QueueSizeRange,
        CommandError::GroupQueues,
        CommandError::GroupEngines,
        CommandError::GroupNoEngine,
        CommandError::GroupNoQueue,
        CommandError::DeviceNotEnabled,
        CommandError::QueueEnabled,
        CommandError::QueueSize,
        CommandError::QueuePriority,
        CommandError::QueueMode,
        CommandError::BlockOnFault,
        CommandError::PasidEnable,
        CommandError::MaxBatch,
        CommandError::MaxTransfer,
        CommandError::DisableNotEnabled,
        CommandError::QueueDeviceNotEnabled,
    ];

    /// The error with this code; `None` for success and for codes of other devices.
    pub fn from_code(code: u8) -> Option<CommandError> {
        CommandError::ALL.into_iter().find(|e| *e as u8 == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_not_requested() {
        assert_eq!(Command::capabilities(), 0x1ffe);
        assert_eq!(Command::from_code(13), None);
        assert_eq!(Command::from_code(0), None);
    }

    #[test]
    fn operands_name_queues_as_the_driver_writes_them() {
        for queue in [0, 1, 15, 16, 37, 63] {
            assert_eq!(queue_bits(queue_operand(queue)), 1 << queue);
        }
        assert_eq!(queue_bits(0x3 | 1 << 16), 0x3_0000);
        assert_eq!(
            queue_bits(u32::MAX),
            0,
            "beyond the 64 queues that can exist"
        );
    }
}
