//! BAR0 as dwords: what an owner's register file has in common, whoever the owner is.

use crate::{
    front::Front,
    spec::{
        Cmd, Command, Opcode,
        registers::{self as reg, DeviceState, GenCap, GenStatus, TableOffsets},
        tables::{GRPCFG_SIZE, WQCFG_SIZE},
    },
};

/// Second quadword of EVLCFG.
const EVLCFG_HIGH: u64 = reg::EVLCFG + 8;
/// High dword of EVLSTATUS.
const EVLSTATUS_HIGH: u64 = reg::EVLSTATUS + 4;

/// One owner's registers. Offsets are multiples of 4.
pub(crate) trait Registers {
    /// Status registers, interrupts.
    fn front(&self) -> &Front;
    fn general_capabilities(&self) -> GenCap;
    fn queue_capabilities(&self) -> u64;
    fn group_capabilities(&self) -> u64;
    fn engine_capabilities(&self) -> u64;
    fn command_capabilities(&self) -> u32;
    fn status(&self) -> GenStatus;
    /// Quadword `index` of the entry of group `group`.
    fn group_config(&self, group: u64, index: u64) -> u64;
    /// Changes the bits in `mask` of that quadword.
    fn set_group_config(&self, group: u64, index: u64, value: u64, mask: u64);
    /// Dword `index` of the entry of queue `queue`.
    fn queue_config(&self, queue: u64, index: u64) -> u32;
    fn set_queue_config(&self, queue: u64, index: u64, value: u32);
    /// Starts a command.
    fn command(&self, cmd: Cmd);
}

/// What a dword of BAR0 belongs to.
enum Place {
    Register(u64),
    Group {
        group: u64,
        quadword: u64,
        high: bool,
    },
    Queue {
        queue: u64,
        dword: u64,
    },
    MsixPermission {
        vector: u64,
        high: bool,
    },
}

fn place(offset: u64) -> Place {
    match offset {
        reg::GRPCFG..reg::WQCFG => {
            let at = offset - reg::GRPCFG;
            Place::Group {
                group: at / GRPCFG_SIZE,
                quadword: at % GRPCFG_SIZE / 8,
                high: !at.is_multiple_of(8),
            }
        }
        reg::WQCFG..reg::MSIXPERM => {
            let at = offset - reg::WQCFG;
            Place::Queue {
                queue: at / WQCFG_SIZE,
                dword: at % WQCFG_SIZE / 4,
            }
        }
        reg::MSIXPERM..reg::MSIX_TABLE => {
            let at = offset - reg::MSIXPERM;
            Place::MsixPermission {
                vector: at / 8,
                high: !at.is_multiple_of(8),
            }
        }
        offset => Place::Register(offset),
    }
}

/// Half of a quadword.
const fn half(value: u64, high: bool) -> u32 {
    (if high { value >> 32 } else { value }) as u32
}

/// A dword as half of a quadword, and its mask.
const fn as_half(value: u32, high: bool) -> (u64, u64) {
    if high {
        ((value as u64) << 32, u64::MAX << 32)
    } else {
        (value as u64, u32::MAX as u64)
    }
}

fn read_dword(file: &dyn Registers, offset: u64) -> u32 {
    let offset = match place(offset) {
        Place::Register(offset) => offset,
        Place::Group {
            group,
            quadword,
            high,
        } => return half(file.group_config(group, quadword), high),
        Place::Queue { queue, dword } => return file.queue_config(queue, dword),
        Place::MsixPermission { vector, high } => {
            return half(file.front().msix_permission(vector), high);
        }
    };
    let (base, high) = (offset & !7, offset & 4 != 0);
    let front = file.front();
    match base {
        reg::VERSION if !high => reg::VERSION_VALUE,
        reg::GENCAP => half(file.general_capabilities().into_bits(), high),
        reg::WQCAP => half(file.queue_capabilities(), high),
        reg::GRPCAP => half(file.group_capabilities(), high),
        reg::ENGCAP => half(file.engine_capabilities(), high),
        reg::OPCAP => half(Opcode::capabilities(), high),
        reg::OFFSETS => half(table_offsets().into_bits() as u64, high),
        reg::GENCFG if !high => front.general(),
        reg::GENCTRL if !high => front.control().into_bits(),
        reg::GENSTS if !high => file.status().into_bits(),
        reg::INTCAUSE if !high => front.cause().into_bits(),
        reg::CMDSTS if !high => front.command_status().into_bits(),
        reg::CMDCAP if !high => file.command_capabilities(),
        reg::SWERR..reg::SWERR_END => half(front.error().quadword((base - reg::SWERR) / 8), high),
        reg::EVLCFG | EVLCFG_HIGH => {
            let index = (base - reg::EVLCFG) / 8;
            half(front.with_log(|log| log.config(index)), high)
        }
        reg::EVLSTATUS => half(front.with_log(|log| log.status()), high),
        _ => 0,
    }
}

/// Whether the general configuration can be changed.
fn disabled(file: &dyn Registers) -> bool {
    file.status().state() == DeviceState::Disabled
}

fn write_dword(file: &dyn Registers, offset: u64, value: u32) {
    match place(offset) {
        Place::Group {
            group,
            quadword,
            high,
        } => {
            let (value, mask) = as_half(value, high);
            file.set_group_config(group, quadword, value, mask);
        }
        Place::Queue { queue, dword } => file.set_queue_config(queue, dword, value),
        Place::MsixPermission { vector, high } => {
            let (value, mask) = as_half(value, high);
            let old = file.front().msix_permission(vector);
            file.front()
                .set_msix_permission(vector, old & !mask | value);
        }
        Place::Register(reg::GENCFG) if disabled(file) => file.front().set_general(value),
        Place::Register(reg::GENCTRL) => file.front().set_control(value),
        Place::Register(reg::INTCAUSE) => file.front().clear_cause(value),
        Place::Register(reg::CMD) => file.command(Cmd::from_bits(value)),
        Place::Register(reg::SWERR) => file.front().clear_error(value),
        Place::Register(offset @ reg::EVLCFG..reg::EVLSTATUS) if disabled(file) => {
            let (value, mask) = as_half(value, offset & 4 != 0);
            let index = (offset - reg::EVLCFG) / 8;
            file.front()
                .with_log(|log| log.set_config(index, value, mask));
        }
        Place::Register(reg::EVLSTATUS) => file.front().with_log(|log| log.set_head(value)),
        Place::Register(EVLSTATUS_HIGH) => file.front().with_log(|log| log.clear_pending(value)),
        Place::Register(_) => {}
    }
}

/// Reads 1, 2, 4 or 8 naturally aligned bytes of BAR0; anything else reads as far as it goes.
pub(crate) fn read(file: &dyn Registers, offset: u64, data: &mut [u8]) {
    for (byte, at) in data.iter_mut().zip(offset..) {
        *byte = 0;
        if at >= reg::BAR0_SIZE {
            return;
        }
    }
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let bytes = read_dword(file, at & !3).to_le_bytes();
        let from = (at & 3) as usize;
        let len = rest.len().min(4 - from);
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(&bytes[from..from + len]);
        rest = later;
        at += len as u64;
    }
}

/// Writes whole dwords of BAR0, low one first. Narrower stores have no effect, as the
/// specification wants stores of 4 or 8 bytes (section 9.2).
pub(crate) fn write(file: &dyn Registers, offset: u64, data: &[u8]) {
    let (dwords, _) = data.as_chunks::<4>();
    if offset.is_multiple_of(4) {
        for (dword, at) in dwords.iter().zip((offset..).step_by(4)) {
            write_dword(file, at, u32::from_le_bytes(*dword));
        }
    }
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
