//! An endpoint: what one owner sees of a device apart from its queues. The device itself has one,
//! and so has each child, so that errors, command results and interrupts of one owner never show to
//! another.

use ioasid_core::{Pasid, sync::Mutex};
use ioasid_vfio::{
    model::StateError,
    pci::Function,
    saved::{Reader, Writer, expect},
};

use crate::{
    function::event_log::{EventLog, Slot},
    spec::{
        Cmd, CmdStatus, CommandError, Event,
        registers::{GenConfig, GenCtrl, IntCause, SwError},
        tables::MsixPermission,
    },
};

/// The vector for errors and commands; completions use the others, or this one too.
const MISC_VECTOR: u32 = 0;
/// Most entries of the permission table.
const MAX_VECTORS: usize = 2048;
/// Bits of GENCFG that exist.
const GENERAL_BITS: u32 = 0x30ff;

/// Configuration space, interrupt vectors and status registers of one owner.
#[derive(Debug)]
pub(crate) struct Endpoint {
    function: Function,
    /// A child's DMA has its default PASID, whatever its registers say.
    child: bool,
    registers: Mutex<Registers>,
}

#[derive(Debug, Default)]
struct Registers {
    control: GenCtrl,
    cause: IntCause,
    command: CmdStatus,
    /// The last command that was started.
    asked: Cmd,
    error: SwError,
    msix_permissions: Vec<u64>,
    errors: u64,
    general: GenConfig,
    log: EventLog,
}

/// An interrupt that is to be raised once no lock is held.
#[derive(Debug)]
#[must_use = "the interrupt has not been raised yet"]
pub(crate) struct MiscInterrupt(pub(crate) bool);

impl Endpoint {
    /// Of a whole device.
    pub(crate) fn new(function: Function) -> Self {
        Self::build(function, false)
    }

    /// Of a child.
    pub(crate) fn of_child(function: Function) -> Self {
        Self::build(function, true)
    }

    fn build(function: Function, child: bool) -> Self {
        let endpoint = Endpoint {
            function,
            child,
            registers: Mutex::default(),
        };
        endpoint.reset();
        endpoint
    }

    pub(crate) const fn function(&self) -> &Function {
        &self.function
    }

    /// MSI-X vectors, which are the interrupt handles of descriptors, as bits.
    pub(crate) fn vectors(&self) -> u64 {
        let count = self.function.vectors().count();
        u64::MAX.checked_shr(64 - count.min(64)).unwrap_or(0)
    }

    /// The vectors that a client of a shared queue may name: those whose permission entry has its
    /// PASID, or says that PASIDs do not matter.
    pub(crate) fn vectors_of(&self, pasid: Option<Pasid>) -> u64 {
        let registers = self.registers.lock();
        let entries = registers.msix_permissions.iter().take(64).enumerate();
        let permitted = entries.filter(|(_, entry)| {
            let entry = MsixPermission::from_bits(**entry as u32);
            let own = pasid.is_some_and(|pasid| entry.pasid() == pasid.get());
            entry.ignore() || (entry.pasid_en() && own)
        });
        permitted.fold(0, |vectors, (vector, _)| vectors | 1 << vector)
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
            asked: registers.asked,
            msix_permissions: vec![0; self.function.vectors().count() as usize],
            errors: registers.errors,
            ..Registers::default()
        };
    }

    /// Notes that a command is running; `false` if one is running already.
    pub(crate) fn begin_command(&self, cmd: Cmd) -> bool {
        let mut registers = self.registers.lock();
        let free = !registers.command.active();
        if free {
            registers.command = CmdStatus::new().with_active(true);
            registers.asked = cmd;
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

    /// Logs an event, or reports it as an error where there is no log or no room.
    pub(crate) fn log(&self, event: Event) -> MiscInterrupt {
        let mut registers = self.registers.lock();
        match registers.log.push(event) {
            Ok(()) => {
                registers.errors += 1;
                MiscInterrupt(false)
            }
            Err(event) => {
                drop(registers);
                self.report(event.error)
            }
        }
    }

    /// The entry that the caller is to write, if there is one. That of a child is written with the PASID
    /// and the privilege of the caller's descriptor: neither is the child's to choose.
    pub(crate) fn begin_entry(&self, pasid: Option<Pasid>, privileged: bool) -> Option<Slot> {
        let slot = self.registers.lock().log.begin()?;
        Some(match self.child {
            true => Slot {
                pasid,
                privileged,
                ..slot
            },
            false => slot,
        })
    }

    /// The entry is in memory.
    pub(crate) fn end_entry(&self) -> MiscInterrupt {
        let mut registers = self.registers.lock();
        let due = registers.log.written();
        registers.cause.set_event_log(true);
        MiscInterrupt(due && registers.control.evl_int_en())
    }

    /// The entry will be written later, by the next one that asks.
    pub(crate) fn put_off_entry(&self) {
        self.registers.lock().log.put_off();
    }

    /// The ring cannot be reached.
    pub(crate) fn abandon_log(&self) -> MiscInterrupt {
        let lost = self.registers.lock().log.failed();
        let mut interrupt = MiscInterrupt(false);
        for event in lost {
            // Each was counted when it was logged.
            interrupt.0 |= self.report(event.error).0;
            self.registers.lock().errors -= 1;
        }
        interrupt
    }

    /// Writes the registers into a state that is saved.
    pub(crate) fn save(&self, out: &mut Writer) {
        let registers = self.registers.lock();
        out.u32(registers.control.into_bits());
        out.u32(registers.cause.into_bits());
        out.u32(registers.general.into_bits());
        out.u32(registers.command.into_bits());
        // One that has ended will not be asked for again.
        let asked = match registers.command.active() {
            true => registers.asked.into_bits(),
            false => 0,
        };
        out.u32(asked);
        (0..3).for_each(|index| out.u64(registers.error.quadword(index)));
        (0..2).for_each(|index| out.u64(registers.log.config(index)));
        out.u64(registers.log.status());
        out.count(registers.msix_permissions.len());
        registers
            .msix_permissions
            .iter()
            .for_each(|entry| out.u64(*entry));
    }

    /// Takes the registers from such a state; the command that was running is given back.
    pub(crate) fn load(&self, state: &mut Reader<'_>) -> Result<Option<Cmd>, StateError> {
        let mut registers = self.registers.lock();
        registers.control = GenCtrl::from_bits(state.u32()? & 7);
        registers.cause = IntCause::from_bits(state.u32()?);
        registers.general = GenConfig::from_bits(state.u32()? & GENERAL_BITS);
        let command = CmdStatus::from_bits(state.u32()?);
        registers.command = command.with_active(false);
        let asked = Cmd::from_bits(state.u32()?);
        registers.error = SwError::from_quadwords([state.u64()?, state.u64()?, state.u64()?]);
        let config = [state.u64()?, state.u64()?];
        let status = state.u64()?;
        let logs = registers.general.event_log();
        registers.log.load(logs, config, status);
        expect(state.count(MAX_VECTORS)? == registers.msix_permissions.len())?;
        for entry in &mut registers.msix_permissions {
            *entry = state.u64()?;
        }
        Ok(command.active().then_some(asked))
    }

    /// GENCFG.
    pub(crate) fn general(&self) -> u32 {
        self.registers.lock().general.into_bits()
    }

    pub(crate) fn set_general(&self, value: u32) {
        let mut registers = self.registers.lock();
        registers.general = GenConfig::from_bits(value & GENERAL_BITS);
        let logs = registers.general.event_log();
        registers.log.enable(logs);
    }

    /// Whether the event log is on.
    pub(crate) fn has_log(&self) -> bool {
        self.registers.lock().general.event_log()
    }

    /// Checks the event log before the device is enabled.
    pub(crate) fn check_log(&self, max_pasids: u32) -> Result<(), CommandError> {
        // A child's PASID is not the user's to choose.
        let max_pasids = if self.child { 0 } else { max_pasids };
        self.registers.lock().log.check(max_pasids)
    }

    /// Reads or changes EVLCFG and EVLSTATUS.
    pub(crate) fn with_log<R>(&self, op: impl FnOnce(&mut EventLog) -> R) -> R {
        op(&mut self.registers.lock().log)
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

    pub(crate) fn msix_permission(&self, vector: usize) -> u64 {
        let registers = self.registers.lock();
        registers.msix_permissions.get(vector).copied().unwrap_or(0)
    }

    /// The permission table restricts the clients of shared queues; a dedicated queue has one
    /// client.
    pub(crate) fn set_msix_permission(&self, vector: usize, value: u64) {
        let mut registers = self.registers.lock();
        if let Some(entry) = registers.msix_permissions.get_mut(vector) {
            *entry = value;
        }
    }
}

/// An endpoint that belongs to no device, for tests of the parts.
#[cfg(test)]
pub(crate) fn test_endpoint() -> std::sync::Arc<Endpoint> {
    use crate::spec::registers as reg;
    use ioasid_vfio::pci::{Bar, FunctionBuilder, MsixLayout};
    let function = FunctionBuilder::new(reg::VENDOR, reg::DEVICE)
        .bar(0, Bar::memory64(reg::BAR0_SIZE))
        .msix(MsixLayout::new(0, reg::MSIX_TABLE, reg::MSIX_PBA, 2))
        .build();
    let function = function.expect("a layout that fits");
    let _ = function.write_config(4, &[6]);
    std::sync::Arc::new(Endpoint::new(function))
}
