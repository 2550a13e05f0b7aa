//! BAR0 as tables: which registers there are, how wide they are, and which of them software writes.

use ioasid_core::regmap::{RegBlocks, RegMap, Register};

use super::{
    registers as reg,
    tables::{GRPCFG_SIZE, WQCFG_SIZE},
};

/// A register that is in no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// `VERSION`.
    Version,
    /// [`reg::GenCap`].
    GenCap,
    /// [`reg::WqCap`].
    WqCap,
    /// [`reg::GroupCap`].
    GroupCap,
    /// [`reg::EngineCap`].
    EngineCap,
    /// Operations that are supported.
    OpCap,
    /// [`reg::TableOffsets`].
    Offsets,
    /// [`reg::GenConfig`].
    GenConfig,
    /// [`reg::GenCtrl`].
    GenCtrl,
    /// [`reg::GenStatus`].
    GenStatus,
    /// [`reg::IntCause`].
    IntCause,
    /// [`super::Cmd`].
    Cmd,
    /// [`super::CmdStatus`].
    CmdStatus,
    /// Commands that are supported.
    CmdCap,
    /// This quadword of [`reg::SwError`].
    SwError(u64),
    /// This quadword of [`super::event_log::EventLogConfig`].
    EventLogConfig(u64),
    /// The low half of [`super::event_log::EventLogStatus`]: how far software has read.
    EventLogHead,
    /// Its high half: how far the device has written, and whether an interrupt is pending.
    EventLogTail,
}

/// The registers before the tables.
pub static REGISTERS: RegMap<Reg> = RegMap::new(&[
    Register::read_only(reg::VERSION, 4, Reg::Version),
    Register::read_only(reg::GENCAP, 8, Reg::GenCap),
    Register::read_only(reg::WQCAP, 8, Reg::WqCap),
    Register::read_only(reg::GRPCAP, 8, Reg::GroupCap),
    Register::read_only(reg::ENGCAP, 8, Reg::EngineCap),
    Register::read_only(reg::OPCAP, 8, Reg::OpCap),
    Register::read_only(reg::OFFSETS, 8, Reg::Offsets),
    Register::read_write(reg::GENCFG, 4, Reg::GenConfig),
    Register::read_write(reg::GENCTRL, 4, Reg::GenCtrl),
    Register::read_only(reg::GENSTS, 4, Reg::GenStatus),
    Register::read_write(reg::INTCAUSE, 4, Reg::IntCause),
    Register::write_only(reg::CMD, 4, Reg::Cmd),
    Register::read_only(reg::CMDSTS, 4, Reg::CmdStatus),
    Register::read_only(reg::CMDCAP, 4, Reg::CmdCap),
    Register::read_write(reg::SWERR, 8, Reg::SwError(0)),
    Register::read_only(reg::SWERR + 8, 8, Reg::SwError(1)),
    Register::read_only(reg::SWERR + 16, 8, Reg::SwError(2)),
    Register::read_only(reg::SWERR + 24, 8, Reg::SwError(3)),
    Register::read_write(reg::EVLCFG, 8, Reg::EventLogConfig(0)),
    Register::read_write(reg::EVLCFG + 8, 8, Reg::EventLogConfig(1)),
    Register::read_write(reg::EVLSTATUS, 4, Reg::EventLogHead),
    Register::read_write(reg::EVLSTATUS + 4, 4, Reg::EventLogTail),
]);

/// One entry of the group table, by the index of the quadword.
pub static GROUP_ENTRY: RegMap<u64> = RegMap::new(&[
    Register::read_write(0, 8, 0),
    Register::read_write(32, 8, 4),
    Register::read_write(40, 8, 5),
]);

/// One entry of the queue table, by the index of the dword.
pub static QUEUE_ENTRY: RegMap<u64> = RegMap::new(&[
    Register::read_write(0, 4, 0),
    Register::read_write(4, 4, 1),
    Register::read_write(8, 4, 2),
    Register::read_write(12, 4, 3),
    Register::read_only(24, 4, 6),
]);

/// One entry of the MSI-X permission table.
pub static PERMISSION_ENTRY: RegMap<()> = RegMap::new(&[Register::read_write(0, 8, ())]);

const GROUPS: RegBlocks = RegBlocks {
    base: reg::GRPCFG,
    stride: GRPCFG_SIZE,
};
const QUEUES: RegBlocks = RegBlocks {
    base: reg::WQCFG,
    stride: WQCFG_SIZE,
};
const PERMISSIONS: RegBlocks = RegBlocks {
    base: reg::MSIXPERM,
    stride: 8,
};

/// What an offset of BAR0 belongs to, with the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// [`REGISTERS`].
    Registers(u64),
    /// The [`GROUP_ENTRY`] of this group.
    Group(usize, u64),
    /// The [`QUEUE_ENTRY`] of this queue.
    Queue(usize, u64),
    /// The [`PERMISSION_ENTRY`] of this vector.
    Permission(usize, u64),
    /// No register at all.
    Nothing,
}

impl Area {
    /// Areas begin and end, and so do entries, at multiples of this many bytes.
    pub const UNIT: u64 = 8;

    /// The area of `offset`.
    pub fn of(offset: u64) -> Area {
        let (blocks, area): (RegBlocks, fn(usize, u64) -> Area) = match offset {
            0..reg::GRPCFG => return Area::Registers(offset),
            reg::GRPCFG..reg::WQCFG => (GROUPS, Area::Group),
            reg::WQCFG..reg::MSIXPERM => (QUEUES, Area::Queue),
            reg::MSIXPERM..reg::MSIX_TABLE => (PERMISSIONS, Area::Permission),
            _ => return Area::Nothing,
        };
        let found = blocks.find(offset);
        found.map_or(Area::Nothing, |(index, at)| area(index, at))
    }
}
