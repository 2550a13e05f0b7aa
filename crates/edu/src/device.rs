//! One device: registers, and the thread that computes and copies.

use std::{fmt, io, sync::Arc};

use ioasid_core::{
    host::Spawner,
    inject::Failure,
    inspect::{Inspect, Node},
    sync::{Condvar, Mutex, MutexGuard, thread},
};
use ioasid_iommu::Device;
use ioasid_vfio::{
    DeviceModel, EmulatedDma, Migrate,
    pci::{Bar, Function, FunctionBuilder, Intx, LayoutError, Vectors},
};

use crate::{
    memory::Memory,
    spec::{self, REGISTERS, Register},
};

/// The device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EduError {
    /// Its configuration space.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its thread.
    #[error("no thread for the device: {0}")]
    Thread(io::Error),
}

impl From<io::Error> for EduError {
    fn from(error: io::Error) -> Self {
        EduError::Thread(error)
    }
}

/// The educational device. Dropping it ends its thread.
pub struct Edu {
    function: Function,
    pub(crate) core: Arc<Core>,
}

/// What the device's thread needs.
pub(crate) struct Core {
    vectors: Arc<Vectors>,
    intx: Arc<Intx>,
    memory: Memory,
    state: Mutex<State>,
    /// There is work, or it is done.
    changed: Condvar,
}

/// The registers and the buffer.
#[derive(Clone)]
pub(crate) struct Registers {
    pub(crate) liveness: u32,
    pub(crate) factorial: u32,
    /// A factorial is to be computed of it.
    pub(crate) operand: Option<u32>,
    pub(crate) factorial_interrupt: bool,
    pub(crate) interrupts: u32,
    pub(crate) source: u64,
    pub(crate) destination: u64,
    pub(crate) count: u64,
    pub(crate) command: u64,
    pub(crate) buffer: Box<[u8; spec::BUFFER_SIZE]>,
}

struct State {
    registers: Registers,
    /// A copy is under way.
    copies: bool,
    /// A copy was lost, as a test asked for: its command stays as it is until a reset.
    stuck: bool,
    /// Counts resets: what a copy of the time before brings is of no use.
    resets: u64,
    /// Stopped to be migrated: nothing goes on.
    paused: bool,
    /// The device is gone.
    gone: bool,
}

impl Default for Registers {
    fn default() -> Self {
        Registers {
            liveness: 0,
            factorial: 0,
            operand: None,
            factorial_interrupt: false,
            interrupts: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            buffer: Box::new([0; spec::BUFFER_SIZE]),
        }
    }
}

impl Edu {
    /// An emulated device, whose thread is one of `spawner`'s and that reaches memory through `dma`.
    ///
    /// # Errors
    /// [`EduError::Thread`] if there is no thread.
    pub fn emulated(spawner: &dyn Spawner, dma: EmulatedDma) -> Result<Arc<Self>, EduError> {
        Edu::new(spawner, Memory::Access(dma))
    }

    /// A PCI function that does its DMA as `device` behind the IOMMU, with the address bits of
    /// `dma_mask` alone ([`spec::DMA_MASK`] is that of QEMU's device).
    ///
    /// # Errors
    /// [`EduError::Thread`] if there is no thread.
    pub fn whole(
        device: &Arc<Device>,
        dma_mask: u64,
        spawner: &dyn Spawner,
    ) -> Result<Arc<Self>, EduError> {
        Edu::new(spawner, Memory::bus(device, dma_mask))
    }

    fn new(spawner: &dyn Spawner, memory: Memory) -> Result<Arc<Self>, EduError> {
        let function = FunctionBuilder::new(spec::VENDOR, spec::DEVICE)
            .class(spec::CLASS, spec::REVISION)
            .bar(0, Bar::memory32(spec::BAR_SIZE))
            .intx()
            .msi(0)
            .build()?;
        let core = Arc::new(Core {
            vectors: Arc::clone(function.vectors()),
            intx: Arc::clone(function.intx()),
            memory,
            state: Mutex::new(State {
                registers: Registers::default(),
                copies: false,
                stuck: false,
                resets: 0,
                paused: false,
                gone: false,
            }),
            changed: Condvar::new(),
        });
        let worker = Arc::clone(&core);
        spawner.spawn("edu", Box::new(move || worker.run()))?;
        Ok(Arc::new(Edu { function, core }))
    }
}

impl DeviceModel for Edu {
    fn function(&self) -> &Function {
        &self.function
    }

    fn read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        if is_access(offset, data.len()) {
            let state = self.core.state.lock();
            REGISTERS.read(offset, data, |register| state.registers.read(register));
        } else {
            data.fill(0);
        }
    }

    fn write(&self, _bar: u8, offset: u64, data: &[u8]) {
        if is_access(offset, data.len()) {
            let mut state = self.core.state.lock();
            REGISTERS.write(offset, data, |register, value, _| {
                self.core.write(&mut state.registers, register, value);
            });
        }
    }

    fn reset(&self) {
        let mut state = self.core.state.lock();
        state.registers = Registers::default();
        state.stuck = false;
        state.resets += 1;
        state.paused = false;
        self.core.intx.set(false);
        while state.copies {
            state = self.core.changed.wait(state);
        }
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        Some(self)
    }
}

/// Whether registers take accesses like this one: from their start, of 4 bytes, those of transfers
/// of 8 too. The upper half of a register that 4 bytes are written to becomes 0.
fn is_access(offset: u64, bytes: usize) -> bool {
    let register = REGISTERS.starting_at(offset);
    register.is_some_and(|register| bytes == 4 || bytes as u64 == register.width)
}

impl Registers {
    fn read(&self, register: Register) -> u64 {
        match register {
            Register::Identification => spec::IDENTIFICATION.into(),
            Register::Liveness => self.liveness.into(),
            Register::Factorial => self.factorial.into(),
            Register::Status => self.status().into(),
            Register::InterruptStatus => self.interrupts.into(),
            Register::InterruptRaise | Register::InterruptAcknowledge => 0,
            Register::DmaSource => self.source,
            Register::DmaDestination => self.destination,
            Register::DmaCount => self.count,
            Register::DmaCommand => self.command,
        }
    }

    fn status(&self) -> u32 {
        let computing = self.operand.map_or(0, |_| spec::COMPUTING);
        let interrupt = if self.factorial_interrupt {
            spec::FACTORIAL_INTERRUPT
        } else {
            0
        };
        computing | interrupt
    }
}

/// A transfer as its registers say it.
struct Transfer {
    /// The address in memory.
    memory: u64,
    /// The bytes of the buffer.
    place: std::ops::Range<usize>,
    to_memory: bool,
}

impl Transfer {
    /// None if it leaves the buffer.
    fn new(registers: &Registers) -> Option<Transfer> {
        let to_memory = registers.command & spec::DMA_TO_MEMORY != 0;
        let (memory, buffer) = match to_memory {
            true => (registers.destination, registers.source),
            false => (registers.source, registers.destination),
        };
        let start = usize::try_from(buffer.checked_sub(spec::BUFFER)?).ok()?;
        let end = start.checked_add(usize::try_from(registers.count).ok()?)?;
        (start < end && end <= spec::BUFFER_SIZE).then_some(Transfer {
            memory,
            place: start..end,
            to_memory,
        })
    }
}

impl Core {
    /// Writes a register of the device, whose thread may have to do something then.
    fn write(&self, registers: &mut Registers, register: Register, value: u64) {
        let short = value as u32;
        let idle = registers.command & spec::DMA_START == 0;
        match register {
            Register::Liveness => registers.liveness = !short,
            Register::Factorial if registers.operand.is_none() => {
                registers.operand = Some(short);
                self.changed.notify_all();
            }
            Register::Status => {
                registers.factorial_interrupt = short & spec::FACTORIAL_INTERRUPT != 0
            }
            Register::InterruptRaise => self.raise(registers, short),
            Register::InterruptAcknowledge => {
                registers.interrupts &= !short;
                self.intx.set(registers.interrupts != 0);
            }
            Register::DmaSource if idle => registers.source = value,
            Register::DmaDestination if idle => registers.destination = value,
            Register::DmaCount if idle => registers.count = value,
            Register::DmaCommand if idle => {
                registers.command = value;
                self.changed.notify_all();
            }
            _ => {}
        }
    }

    fn run(&self) {
        let mut state = self.state.lock();
        while !state.gone {
            if state.paused {
                state = self.changed.wait(state);
                continue;
            }
            let is_stuck = state.stuck;
            let registers = &mut state.registers;
            if let Some(operand) = registers.operand.take() {
                registers.factorial = factorial(operand);
                if registers.factorial_interrupt {
                    self.raise(registers, spec::FACTORIAL_DONE);
                }
            } else if registers.command & spec::DMA_START != 0 && !is_stuck {
                state = self.transfer(state);
            } else {
                state = self.changed.wait(state);
            }
        }
    }

    /// Copies without the lock: memory may take its time.
    fn transfer<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let transfer = Transfer::new(&state.registers);
        let mut buffer = state.registers.buffer.clone();
        let resets = state.resets;
        state.copies = true;
        drop(state);
        let failure = transfer.as_ref().and_then(|_| self.memory.begin());
        if let Some(Failure::Delay(time)) = failure {
            thread::sleep(time);
        }
        let is_lost = failure == Some(Failure::Lose);
        if let Some(transfer) = transfer.filter(|_| !is_lost)
            && let Some(bytes) = buffer.get_mut(transfer.place)
        {
            match transfer.to_memory {
                true => self.memory.write(transfer.memory, bytes),
                false => self.memory.read(transfer.memory, bytes),
            }
        }
        let mut state = self.state.lock();
        state.copies = false;
        if state.resets == resets && is_lost {
            state.stuck = true;
        } else if state.resets == resets {
            let registers = &mut state.registers;
            registers.buffer = buffer;
            registers.command &= !spec::DMA_START;
            if registers.command & spec::DMA_INTERRUPT != 0 {
                self.raise(registers, spec::DMA_DONE);
            }
        }
        self.changed.notify_all();
        state
    }

    /// Stops the device, when a copy that is under way has ended, or lets it go on.
    pub(crate) fn set_paused(&self, paused: bool) {
        let mut state = self.state.lock();
        state.paused = paused;
        if !paused {
            // The line is a level: it follows registers that were restored.
            self.intx.set(state.registers.interrupts != 0);
        }
        self.changed.notify_all();
        while paused && state.copies {
            state = self.changed.wait(state);
        }
    }

    /// The registers of the paused device.
    pub(crate) fn registers(&self) -> Registers {
        self.state.lock().registers.clone()
    }

    /// Gives the paused device registers.
    pub(crate) fn set_registers(&self, registers: Registers) {
        self.state.lock().registers = registers;
    }

    fn raise(&self, registers: &mut Registers, interrupts: u32) {
        registers.interrupts |= interrupts;
        if registers.interrupts != 0 {
            // The one that is not enabled does nothing.
            self.intx.set(true);
            self.vectors.signal(0);
        }
    }
}

/// Modulo 2^32: from 34 on it is 0.
fn factorial(operand: u32) -> u32 {
    (1..=operand.min(34)).fold(1, u32::wrapping_mul)
}

impl Drop for Edu {
    fn drop(&mut self) {
        self.core.state.lock().gone = true;
        self.core.changed.notify_all();
    }
}

impl Inspect for Edu {
    fn inspect(&self) -> Node {
        let state = self.core.state.lock();
        Node::new()
            .with("copies", state.copies)
            .with("interrupts", u64::from(state.registers.interrupts))
    }
}

impl fmt::Debug for Edu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edu").finish_non_exhaustive()
    }
}
