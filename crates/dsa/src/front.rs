//! A front: what one owner sees of a device apart from its queues. The device itself has one, and so
//! has each child, so that errors, command results and interrupts of one owner never show to
//! another.

use ioasid_core::sync::Mutex;
use ioasid_vfio::pci::Function;

use crate::spec::{
    CmdStatus, CommandError,
    registers::{GenCtrl, IntCause, SwError},
};

/// The vector for errors and commands; completions use the others, or this one too.
const MISC_VECTOR: u32 = 0;

/// Configuration space, interrupt vectors and status registers of one owner.
#[derive(Debug)]
pub(crate) struct Front {
    function: Function,
    registers: Mutex<Registers>,
}

#[derive(Debug, Default)]
struct Registers {
    control: GenCtrl,
    cause: IntCause,
    command: CmdStatus,
    error: SwError,
    msix_permissions: Vec<u64>,
    errors: u64,
}

/// An interrupt that is to be raised once no lock is held.
#[derive(Debug)]
#[must_use = "the interrupt has not been raised yet"]
pub(crate) struct MiscInterrupt(pub(crate) bool);

impl Front {
    pub(crate) fn new(function: Function) -> Self {
        let front = Front {
            function,
            registers: Mutex::default(),
        };
        front.reset();
        front
    }

    pub(crate) const fn function(&self) -> &Function {
        &self.function
    }

    /// MSI-X vectors, which are the interrupt handles of descriptors.
    pub(crate) fn vectors(&self) -> u32 {
        self.function.vectors().count()
    }

    /// Raises `vector`. Call it without holding a lock.
    pub(crate) fn interrupt(&self, vector: u16) {
        self.function.vectors().signal(vector.into());
    }

    /// Raises what a state change asked for. Call it without holding a lock.
    pub(crate) fn raise(&self, interrupt: MiscInterrupt) {
        if interrupt.0 {
            self.function.vectors().signal(MISC_VECTOR);
        }
    }

    /// Registers as after power-up, but for a command that is running.
    pub(crate) fn reset(&self) {
        let mut registers = self.registers.lock();
        *registers = Registers {
            command: registers.command,
            msix_permissions: vec![0; self.vectors() as usize],
            errors: registers.errors,
            ..Registers::default()
        };
    }

    /// Marks a command as running; `false` if one is running already.
    pub(crate) fn begin_command(&self) -> bool {
        let mut registers = self.registers.lock();
        let free = !registers.command.active();
        if free {
            registers.command = CmdStatus::new().with_active(true);
        }
        free
    }

    /// Stores the result of the running command.
    pub(crate) fn end_command(
        &self,
        result: Result<(), CommandError>,
        interrupt: bool,
    ) -> MiscInterrupt {
        let mut registers = self.registers.lock();
        let error = result.err().map_or(0, |error| error as u8);
        registers.command = CmdStatus::new().with_error(error);
        if interrupt {
            registers.cause.set_command(true);
        }
        MiscInterrupt(interrupt)
    }

    /// Stores an error, or counts it as overflow if one is there already.
    pub(crate) fn report(&self, error: SwError) -> MiscInterrupt {
        let mut registers = self.registers.lock();
        registers.errors += 1;
        if registers.error.info.valid() {
            registers.error.info.set_overflow(true);
            return MiscInterrupt(false);
        }
        registers.error = error;
        registers.error.info.set_valid(true);
        registers.cause.set_error(true);
        MiscInterrupt(registers.control.softerr_int_en())
    }

    /// Errors reported so far, lost ones included.
    pub(crate) fn errors(&self) -> u64 {
        self.registers.lock().errors
    }

    pub(crate) fn command_status(&self) -> CmdStatus {
        self.registers.lock().command
    }

    pub(crate) fn control(&self) -> GenCtrl {
        self.registers.lock().control
    }

    pub(crate) fn set_control(&self, value: u32) {
        self.registers.lock().control = GenCtrl::from_bits(value & 7);
    }

    pub(crate) fn cause(&self) -> IntCause {
        self.registers.lock().cause
    }

    /// INTCAUSE is write 1 to clear.
    pub(crate) fn clear_cause(&self, value: u32) {
        let mut registers = self.registers.lock();
        registers.cause = IntCause::from_bits(registers.cause.into_bits() & !value);
    }

    pub(crate) fn error(&self) -> SwError {
        self.registers.lock().error
    }

    /// Bits 0 (valid) and 1 (overflow) of SWERR are write 1 to clear; clearing valid clears all.
    pub(crate) fn clear_error(&self, value: u32) {
        let mut registers = self.registers.lock();
        if value & 2 != 0 {
            registers.error.info.set_overflow(false);
        }
        if value & 1 != 0 {
            registers.error = SwError::default();
        }
    }

    pub(crate) fn msix_permission(&self, vector: u64) -> u64 {
        let registers = self.registers.lock();
        let index = usize::try_from(vector).unwrap_or(usize::MAX);
        registers.msix_permissions.get(index).copied().unwrap_or(0)
    }

    /// The permission table is kept for drivers that read it back; vectors are not restricted.
    pub(crate) fn set_msix_permission(&self, vector: u64, value: u64) {
        let mut registers = self.registers.lock();
        let index = usize::try_from(vector).unwrap_or(usize::MAX);
        if let Some(entry) = registers.msix_permissions.get_mut(index) {
            *entry = value;
        }
    }
}
