//! The registers of the device (docs/specs/edu.rst of QEMU).

use ioasid_core::regmap::{RegMap, Register as Entry};

/// Vendor id.
pub const VENDOR: u16 = 0x1234;
/// Device id.
pub const DEVICE: u16 = 0x11e8;
/// Class code: does not fit any class.
pub const CLASS: u32 = 0x00_ff00;
/// Revision.
pub const REVISION: u8 = 0x10;
/// The address bits that a whole device drives: 28, so that drivers learn to set a DMA mask.
pub const DMA_MASK: u64 = 0x0fff_ffff;
/// Bytes of BAR 0.
pub const BAR_SIZE: u64 = 0x10_0000;

/// Offsets of the registers in BAR 0.
pub mod offset {
    /// Read: [`IDENTIFICATION`](super::IDENTIFICATION).
    pub const IDENTIFICATION: u64 = 0x00;
    /// Read: what was written, inverted.
    pub const LIVENESS: u64 = 0x04;
    /// Write: computes the factorial; read: the result, modulo 2^32.
    pub const FACTORIAL: u64 = 0x08;
    /// [`COMPUTING`](super::COMPUTING) and [`FACTORIAL_INTERRUPT`](super::FACTORIAL_INTERRUPT).
    pub const STATUS: u64 = 0x20;
    /// Read: the bits of the interrupts that are raised.
    pub const INTERRUPT_STATUS: u64 = 0x24;
    /// Write: raises interrupts.
    pub const INTERRUPT_RAISE: u64 = 0x60;
    /// Write: takes interrupts back.
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    /// Address that a transfer reads from.
    pub const DMA_SOURCE: u64 = 0x80;
    /// Address that a transfer writes to.
    pub const DMA_DESTINATION: u64 = 0x88;
    /// Bytes of a transfer.
    pub const DMA_COUNT: u64 = 0x90;
    /// [`DMA_START`](super::DMA_START) and its like.
    pub const DMA_COMMAND: u64 = 0x98;
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// [`offset::IDENTIFICATION`].
    Identification,
    /// [`offset::LIVENESS`].
    Liveness,
    /// [`offset::FACTORIAL`].
    Factorial,
    /// [`offset::STATUS`].
    Status,
    /// [`offset::INTERRUPT_STATUS`].
    InterruptStatus,
    /// [`offset::INTERRUPT_RAISE`].
    InterruptRaise,
    /// [`offset::INTERRUPT_ACKNOWLEDGE`].
    InterruptAcknowledge,
    /// [`offset::DMA_SOURCE`].
    DmaSource,
    /// [`offset::DMA_DESTINATION`].
    DmaDestination,
    /// [`offset::DMA_COUNT`].
    DmaCount,
    /// [`offset::DMA_COMMAND`].
    DmaCommand,
}

/// The registers of BAR 0.
pub static REGISTERS: RegMap<Register> = RegMap::new(&[
    Entry::read_only(offset::IDENTIFICATION, 4, Register::Identification),
    Entry::read_write(offset::LIVENESS, 4, Register::Liveness),
    Entry::read_write(offset::FACTORIAL, 4, Register::Factorial),
    Entry::read_write(offset::STATUS, 4, Register::Status),
    Entry::read_only(offset::INTERRUPT_STATUS, 4, Register::InterruptStatus),
    Entry::write_only(offset::INTERRUPT_RAISE, 4, Register::InterruptRaise),
    Entry::write_only(
        offset::INTERRUPT_ACKNOWLEDGE,
        4,
        Register::InterruptAcknowledge,
    ),
    Entry::read_write(offset::DMA_SOURCE, 8, Register::DmaSource),
    Entry::read_write(offset::DMA_DESTINATION, 8, Register::DmaDestination),
    Entry::read_write(offset::DMA_COUNT, 8, Register::DmaCount),
    Entry::read_write(offset::DMA_COMMAND, 8, Register::DmaCommand),
]);

/// Version 1.0 of the device.
pub const IDENTIFICATION: u32 = 0x0100_00ed;
/// Status: a factorial is being computed. Read-only.
pub const COMPUTING: u32 = 0x01;
/// Status: raise [`FACTORIAL_DONE`] at its end.
pub const FACTORIAL_INTERRUPT: u32 = 0x80;
/// Interrupt: a factorial is computed.
pub const FACTORIAL_DONE: u32 = 0x01;
/// Interrupt: a transfer is done.
pub const DMA_DONE: u32 = 0x100;
/// Command: transfer; reads as set until it is done.
pub const DMA_START: u64 = 0x01;
/// Command: from the device's buffer to memory; otherwise from memory.
pub const DMA_TO_MEMORY: u64 = 0x02;
/// Command: raise [`DMA_DONE`] at the end.
pub const DMA_INTERRUPT: u64 = 0x04;
/// Where the device's buffer is, for transfers alone.
pub const BUFFER: u64 = 0x4_0000;
/// Bytes of the buffer.
pub const BUFFER_SIZE: usize = 4096;
