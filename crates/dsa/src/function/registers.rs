//! BAR0: what the register files of the whole device and of its children have in common.

use ioasid_core::regmap::split;

use crate::{
    function::endpoint::Endpoint,
    spec::{
        Cmd, Command, GroupConfig, Opcode,
        map::{Area, GROUP_ENTRY, PERMISSION_ENTRY, QUEUE_ENTRY, REGISTERS, Reg},
        registers::{
            self as reg, DeviceState, EngineCap, GenCap, GenStatus, GroupCap, TableOffsets,
            VERSION_VALUE,
        },
    },
};

/// One owner's registers.
///
/// What is said of groups and engines by default holds for a device with one group, which has queue 0 and the one
/// engine, and which cannot be configured.
pub(crate) trait Registers {
    /// Status registers, interrupts.
    fn endpoint(&self) -> &Endpoint;
    fn general_capabilities(&self) -> GenCap;
    fn queue_capabilities(&self) -> u64;
    fn group_capabilities(&self) -> u64 {
        GroupCap::new().with_num_groups(1).into_bits()
    }
    fn engine_capabilities(&self) -> u64 {
        EngineCap::new().with_num_engines(1).into_bits()
    }
    fn command_capabilities(&self) -> u32;
    fn status(&self) -> GenStatus;
    /// Quadword `index` of the entry of group `group`.
    fn group_config(&self, group: usize, index: u64) -> u64 {
        let config = GroupConfig {
            queues: 1,
            engines: 1,
            flags: 0,
        };
        match group {
            0 => config.quadword(index),
            _ => 0,
        }
    }
    /// Changes the bits in `mask` of that quadword.
    fn set_group_config(&self, group: usize, index: u64, value: u64, mask: u64) {
        let _ = (group, index, value, mask);
    }
    /// Dword `index` of the entry of queue `queue`.
    fn queue_config(&self, queue: usize, index: u64) -> u32;
    fn set_queue_config(&self, queue: usize, index: u64, value: u32);
    /// Starts a command.
    fn command(&self, cmd: Cmd);
}

/// Reads any bytes of BAR0.
pub(crate) fn read(file: &dyn Registers, offset: u64, data: &mut [u8]) {
    for (offset, part) in split(offset, data.len(), Area::UNIT) {
        let data = data.get_mut(part).unwrap_or_default();
        match Area::of(offset) {
            Area::Registers(at) => REGISTERS.read(at, data, |reg| read_register(file, reg)),
            Area::Group(group, at) => {
                GROUP_ENTRY.read(at, data, |index| file.group_config(group, index));
            }
            Area::Queue(queue, at) => {
                QUEUE_ENTRY.read(at, data, |index| file.queue_config(queue, index).into());
            }
            Area::Permission(vector, at) => {
                PERMISSION_ENTRY.read(at, data, |()| file.endpoint().msix_permission(vector));
            }
            Area::Nothing => data.fill(0),
        }
    }
}

/// Writes whole dwords of BAR0, low one first. Narrower stores have no effect, as the
/// specification wants stores of 4 or 8 bytes (section 9.2).
pub(crate) fn write(file: &dyn Registers, offset: u64, data: &[u8]) {
    let (dwords, _) = data.as_chunks::<4>();
    if offset.is_multiple_of(4) {
        for (dword, at) in dwords.iter().zip((offset..).step_by(4)) {
            write_dword(file, at, dword);
        }
    }
}

fn write_dword(file: &dyn Registers, offset: u64, data: &[u8; 4]) {
    match Area::of(offset) {
        Area::Registers(at) => {
            REGISTERS.write(at, data, |reg, value, mask| {
                write_register(file, reg, value, mask);
            });
        }
        Area::Group(group, at) => {
            GROUP_ENTRY.write(at, data, |index, value, mask| {
                file.set_group_config(group, index, value, mask);
            });
        }
        Area::Queue(queue, at) => {
            QUEUE_ENTRY.write(at, data, |index, value, _| {
                file.set_queue_config(queue, index, value as u32);
            });
        }
        Area::Permission(vector, at) => {
            PERMISSION_ENTRY.write(at, data, |(), value, mask| {
                let old = file.endpoint().msix_permission(vector);
                let new = old & !mask | value;
                file.endpoint().set_msix_permission(vector, new);
            });
        }
        Area::Nothing => {}
    }
}

fn read_register(file: &dyn Registers, reg: Reg) -> u64 {
    let endpoint = file.endpoint();
    match reg {
        Reg::Version => VERSION_VALUE.into(),
        Reg::GenCap => file.general_capabilities().into_bits(),
        Reg::WqCap => file.queue_capabilities(),
        Reg::GroupCap => file.group_capabilities(),
        Reg::EngineCap => file.engine_capabilities(),
        Reg::OpCap => Opcode::capabilities(),
        Reg::Offsets => table_offsets().into_bits() as u64,
        Reg::GenConfig => endpoint.general().into(),
        Reg::GenCtrl => endpoint.control().into_bits().into(),
        Reg::GenStatus => file.status().into_bits().into(),
        Reg::IntCause => endpoint.cause().into_bits().into(),
        Reg::Cmd => 0,
        Reg::CmdStatus => endpoint.command_status().into_bits().into(),
        Reg::CmdCap => file.command_capabilities().into(),
        Reg::SwError(index) => endpoint.error().quadword(index),
        Reg::EventLogConfig(index) => endpoint.with_log(|log| log.config(index)),
        Reg::EventLogHead => endpoint.with_log(|log| log.status()),
        Reg::EventLogTail => endpoint.with_log(|log| log.status() >> 32),
    }
}

/// Writes the bits in `mask` of a register; those of `value` are 0 elsewhere.
fn write_register(file: &dyn Registers, reg: Reg, value: u64, mask: u64) {
    let endpoint = file.endpoint();
    let low = value as u32;
    match reg {
        Reg::GenConfig if disabled(file) => endpoint.set_general(low),
        Reg::GenCtrl => endpoint.set_control(low),
        Reg::IntCause => endpoint.clear_cause(low),
        Reg::Cmd => file.command(Cmd::from_bits(low)),
        // The bits that can be cleared are in the low dword.
        Reg::SwError(0) => endpoint.clear_error(low),
        Reg::EventLogConfig(index) if disabled(file) => {
            endpoint.with_log(|log| log.set_config(index, value, mask));
        }
        Reg::EventLogHead => endpoint.with_log(|log| log.set_head(low)),
        Reg::EventLogTail => endpoint.with_log(|log| log.clear_pending(low)),
        _ => {}
    }
}

/// Whether the general configuration can be changed.
fn disabled(file: &dyn Registers) -> bool {
    file.status().state() == DeviceState::Disabled
}

/// Where the tables lie.
pub(crate) fn table_offsets() -> TableOffsets {
    TableOffsets::new()
        .with_grpcfg((reg::GRPCFG >> 8) as u16)
        .with_wqcfg((reg::WQCFG >> 8) as u16)
        .with_msix_perm((reg::MSIXPERM >> 8) as u16)
}

/// The command that a store to CMD asks for.
pub(crate) fn decode(cmd: Cmd, capabilities: u32) -> Option<Command> {
    Command::from_code(cmd.code()).filter(|command| capabilities & 1 << *command as u32 != 0)
}
