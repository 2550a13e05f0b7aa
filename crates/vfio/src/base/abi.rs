//! Numbers of the ABI that errors name: interrupt indexes and actions, features, migration states
//! (`include/uapi/linux/vfio.h`).

use std::fmt;

/// An interrupt index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum IrqIndex {
    /// The wired interrupt.
    Intx = 0,
    /// Message signalled interrupts.
    Msi = 1,
    /// Message signalled interrupts with a table.
    Msix = 2,
    /// An uncorrectable error of the device.
    Error = 3,
    /// The host asks for the device back.
    Request = 4,
}

impl fmt::Display for IrqIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl IrqIndex {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            IrqIndex::Intx => "INTx",
            IrqIndex::Msi => "MSI",
            IrqIndex::Msix => "MSI-X",
            IrqIndex::Error => "error",
            IrqIndex::Request => "request",
        }
    }
}

/// What to do with vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask.
    Unmask,
    /// Connect, disconnect or fire the trigger.
    Trigger,
}

impl fmt::Display for IrqAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IrqAction::Mask => "masked",
            IrqAction::Unmask => "unmasked",
            IrqAction::Trigger => "triggered",
        })
    }
}

/// A feature that a device may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The token of a physical function.
    Token,
    /// Low power, and the way back.
    LowPower,
    /// Migration: it can be stopped, saved and restored.
    Migration,
    /// A log of the pages that the device writes.
    DmaLog,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::Token => "VF token",
            Feature::LowPower => "low power",
            Feature::Migration => "migration",
            Feature::DmaLog => "log of its DMA",
        })
    }
}

/// What a device does about migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum MigrationState {
    /// A state could not be restored: only a reset ends that.
    Error = 0,
    /// It does no DMA, raises no interrupt and changes nothing.
    Stop = 1,
    /// It works.
    #[default]
    Running = 2,
    /// As [`MigrationState::Stop`]; its state can be read.
    StopCopy = 3,
    /// As [`MigrationState::Stop`]; a state can be written.
    Resuming = 4,
}

impl fmt::Display for MigrationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MigrationState::Error => "ERROR",
            MigrationState::Stop => "STOP",
            MigrationState::Running => "RUNNING",
            MigrationState::StopCopy => "STOP_COPY",
            MigrationState::Resuming => "RESUMING",
        })
    }
}
