//! Migration of a device: the states of `enum vfio_device_mig_state` (`include/uapi/linux/vfio.h`),
//! and the bytes that carry a device from one process to another.
//!
//! The arcs are those of `vfio_mig_get_next_state` (`drivers/vfio/vfio_main.c`) for a device with
//! STOP_COPY alone: every state is left for another one by way of STOP. What is written in RESUMING
//! is looked at as a whole when that state is left, so that a device either has all of it or none.

use std::sync::{Arc, Weak};

use ioasid_core::sync::Mutex;
use ioasid_iommufd::{Error as FileError, EventError, EventFile, Notify, ObjectError};

use super::{gate::Gate, hardware::Hardware};
pub use crate::base::abi::MigrationState;
use crate::{
    base::{error::MigrationError, saved::StateError},
    model::Migrate,
    pci::Function,
};

/// Most bytes of a saved state: a device with 32 queues of 1024 descriptors has 2 MiB of those that
/// wait, and about as much of what can be under way.
pub const MAX_STATE: usize = 8 << 20;

impl MigrationState {
    /// The state `number` that can be asked for: not ERROR, and none of those that need another
    /// ability than STOP_COPY.
    ///
    /// # Errors
    /// [`MigrationError::NoSuchState`].
    pub fn wanted(number: u32) -> Result<Self, MigrationError> {
        match number {
            1 => Ok(MigrationState::Stop),
            2 => Ok(MigrationState::Running),
            3 => Ok(MigrationState::StopCopy),
            4 => Ok(MigrationState::Resuming),
            _ => Err(MigrationError::NoSuchState { number }),
        }
    }
}

/// The migration of one device.
#[derive(Debug)]
pub(crate) struct Migration {
    gate: Arc<Gate>,
    progress: Mutex<Progress>,
}

/// Where it stands. The state changes with the device's gate held exclusively.
#[derive(Debug, Default)]
struct Progress {
    state: MigrationState,
    /// The state that is being read, or what has been written of one.
    data: Vec<u8>,
    /// Bytes of it that were read.
    read: usize,
    /// Changes of the state so far: a file of data is of one of them.
    turn: u64,
}

impl Progress {
    /// In `state`, with nothing read and nothing written.
    const fn next(&self, state: MigrationState) -> Self {
        Progress {
            state,
            data: Vec::new(),
            read: 0,
            turn: self.turn.wrapping_add(1),
        }
    }

    /// What is left to read.
    fn rest(&self) -> &[u8] {
        self.data.get(self.read..).unwrap_or_default()
    }

    /// Takes the next bytes, at most `count`.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.rest();
        let taken = rest.get(..count).unwrap_or(rest).to_vec();
        self.read += taken.len();
        taken
    }

    /// Adds bytes, if there is room for all of them.
    fn put(&mut self, data: &[u8]) -> Result<(), MigrationError> {
        let size = self.data.len().saturating_add(data.len());
        if size > MAX_STATE {
            return Err(too_large(size));
        }
        self.data.extend_from_slice(data);
        Ok(())
    }
}

fn too_large(size: usize) -> MigrationError {
    let limit = MAX_STATE;
    MigrationError::TooLarge { size, limit }
}

impl Migration {
    pub(crate) fn new(gate: &Arc<Gate>) -> Arc<Self> {
        Arc::new(Migration {
            gate: Arc::clone(gate),
            progress: Mutex::default(),
        })
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> MigrationState {
        self.progress.lock().state
    }

    /// The device was reset: it runs, and nothing is left of a migration.
    pub(crate) fn end(&self) {
        let mut progress = self.progress.lock();
        *progress = progress.next(MigrationState::Running);
    }

    /// Takes the device to `wanted`, by way of STOP if need be, with the gate held exclusively. Gives
    /// the data of the new state as a file of its own, if it has some: to read in STOP_COPY, to write in
    /// RESUMING. Nothing happens if the device is in that state already.
    ///
    /// # Errors
    /// [`MigrationError::InError`]; [`MigrationError::BadState`], with state ERROR from then on;
    /// [`MigrationError::TooLarge`], with state STOP from then on.
    pub(crate) fn set_state(
        self: &Arc<Self>,
        hardware: &Hardware,
        model: &dyn Migrate,
        wanted: MigrationState,
    ) -> Result<Option<Arc<MigrationData>>, MigrationError> {
        if !self.go_to(hardware, model, wanted)? {
            return Ok(None);
        }
        let writable = match wanted {
            MigrationState::StopCopy => false,
            MigrationState::Resuming => true,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(MigrationData {
            migration: Arc::downgrade(self),
            turn: self.progress.lock().turn,
            writable,
        })))
    }

    /// One arc, or two by way of STOP, or none: whether the state has changed.
    fn go_to(
        &self,
        hardware: &Hardware,
        model: &dyn Migrate,
        wanted: MigrationState,
    ) -> Result<bool, MigrationError> {
        let state = self.state();
        if state == wanted && state != MigrationState::Error {
            return Ok(false);
        }
        match state {
            MigrationState::Error => return Err(MigrationError::InError { to: wanted }),
            MigrationState::Stop => {}
            MigrationState::Running => model.pause(),
            MigrationState::StopCopy => {}
            MigrationState::Resuming => self.restore(hardware, model)?,
        }
        // In STOP from here on.
        let mut next = self.progress.lock().next(wanted);
        match wanted {
            MigrationState::Running => model.resume(),
            MigrationState::StopCopy => next.data = envelope::seal(hardware.function(), model),
            _ => {}
        }
        let size = next.data.len();
        if size > MAX_STATE {
            // Nobody could restore it. It stays stopped.
            *self.progress.lock() = next.next(MigrationState::Stop);
            return Err(too_large(size));
        }
        *self.progress.lock() = next;
        Ok(true)
    }

    /// Gives the device the state that was written. One that is left without a byte stays as it is.
    fn restore(&self, hardware: &Hardware, model: &dyn Migrate) -> Result<(), MigrationError> {
        let data = std::mem::take(&mut self.progress.lock().data);
        if data.is_empty() {
            return Ok(());
        }
        let function = hardware.function();
        let before = envelope::config(function);
        let restored = envelope::open(&data, &before).and_then(|(config, state)| {
            hardware.reset();
            model.pause();
            set_config(function, config);
            model.load(state)
        });
        if let Err(error) = restored {
            hardware.reset();
            set_config(function, &before);
            model.pause();
            let mut progress = self.progress.lock();
            *progress = progress.next(MigrationState::Error);
            return Err(error.into());
        }
        Ok(())
    }

    /// Takes the next bytes of the saved state, at most `count`; none at its end.
    ///
    /// # Errors
    /// [`MigrationError::OtherState`] unless in STOP_COPY.
    pub(crate) fn read(&self, count: usize) -> Result<Vec<u8>, MigrationError> {
        let mut progress = self.progress.lock();
        match progress.state {
            MigrationState::StopCopy => Ok(progress.take(count)),
            is => Err(MigrationError::OtherState {
                is,
                needed: MigrationState::StopCopy,
            }),
        }
    }

    /// Adds bytes to the state that is to be restored.
    ///
    /// # Errors
    /// [`MigrationError::OtherState`] unless in RESUMING; [`MigrationError::TooLarge`] beyond
    /// [`MAX_STATE`].
    pub(crate) fn write(&self, data: &[u8]) -> Result<(), MigrationError> {
        let mut progress = self.progress.lock();
        match progress.state {
            MigrationState::Resuming => progress.put(data),
            is => Err(MigrationError::OtherState {
                is,
                needed: MigrationState::Resuming,
            }),
        }
    }

    /// Bytes that are left to read in STOP_COPY; otherwise the most that there will be.
    pub(crate) fn size(&self) -> u64 {
        let progress = self.progress.lock();
        (match progress.state {
            MigrationState::StopCopy => progress.rest().len(),
            _ => MAX_STATE,
        }) as u64
    }
}

/// The data of one STOP_COPY or RESUMING as a file. When the device leaves that state, the file is of
/// no use any more.
#[derive(Debug)]
pub struct MigrationData {
    migration: Weak<Migration>,
    turn: u64,
    writable: bool,
}

impl MigrationData {
    /// Does something with the data, if it is still that of the device.
    fn with<R>(&self, op: impl FnOnce(&mut Progress) -> R) -> Result<R, FileError> {
        let migration = self.migration.upgrade().ok_or(ObjectError::Closed)?;
        let _shared = migration.gate.shared();
        let mut progress = migration.progress.lock();
        if progress.turn != self.turn {
            return Err(ObjectError::Closed.into());
        }
        Ok(op(&mut progress))
    }
}

impl EventFile for MigrationData {
    fn read(&self, count: usize) -> Result<Vec<u8>, FileError> {
        match self.writable {
            true => Err(EventError::WrongMode.into()),
            false => self.with(|progress| progress.take(count)),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, FileError> {
        match self.writable {
            true => match self.with(|progress| progress.put(bytes))? {
                Ok(()) => Ok(bytes.len()),
                // A file of data says that there is no room as any file does.
                Err(_) => Err(FileError::NoMemory),
            },
            false => Err(EventError::WrongMode.into()),
        }
    }

    fn is_readable(&self) -> bool {
        // The end of the data, too, is there to be read.
        !self.writable
    }

    /// There is no change to report.
    fn set_notify(&self, _notify: Notify) {}

    /// Without its file, the data stays as it is.
    fn closed(&self) {}

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn name(&self) -> &'static str {
        "vfio-migration"
    }
}

/// Writes all of configuration space as a program may. A reset that it asks for does not happen: the
/// device has just been reset.
fn set_config(function: &Function, config: &[u8]) {
    let _ = function.write_config(0, config);
}

/// What is around a model's state: what made it, how long it is, and configuration space.
mod envelope {
    use super::{Function, MAX_STATE, Migrate, StateError};
    use crate::base::saved::{Reader, Writer, expect};

    const MAGIC: &[u8; 8] = b"ioasidmg";
    const VERSION: u32 = 1;
    /// Magic, version, bytes of configuration space, bytes of the model's state, checksum.
    const HEADER: usize = 8 + 4 + 4 + 4 + 8;
    /// Ids and class of the header of configuration space, which have to be the same.
    const IDENTITY: [std::ops::Range<usize>; 3] = [0..4, 8..16, 0x2c..0x30];

    /// Configuration space as a program sees it.
    pub(super) fn config(function: &Function) -> Vec<u8> {
        let size = usize::try_from(function.config_size()).unwrap_or(0);
        let mut config = vec![0; size];
        let _ = function.read_config(0, &mut config);
        config
    }

    /// FNV-1a: against accidents. A forged state is the model's business.
    fn checksum(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// The device's whole state.
    pub(super) fn seal(function: &Function, model: &dyn Migrate) -> Vec<u8> {
        let (config, state) = (config(function), model.save());
        let body = [config.as_slice(), &state].concat();
        let mut out = Writer::default();
        out.bytes(MAGIC);
        out.u32(VERSION);
        out.count(config.len());
        out.count(state.len());
        out.u64(checksum(&body));
        out.bytes(&body);
        out.finish()
    }

    /// Configuration space and the model's state in `data`, for a device with configuration space
    /// `own`.
    pub(super) fn open<'a>(data: &'a [u8], own: &[u8]) -> Result<(&'a [u8], &'a [u8]), StateError> {
        let mut from = Reader::new(data);
        let (magic, version) = (from.array::<8>()?, from.u32()?);
        let (config_len, state_len) = (from.count(MAX_STATE)?, from.count(MAX_STATE)?);
        let sum = from.u64()?;
        let body = data.get(HEADER..).ok_or(StateError)?;
        let (config, state) = (from.bytes(config_len)?, from.bytes(state_len)?);
        from.finish()?;
        let same = |range: std::ops::Range<usize>| config.get(range.clone()) == own.get(range);
        expect(magic == *MAGIC && version == VERSION)?;
        expect(sum == checksum(body))?;
        expect(config.len() == own.len() && IDENTITY.into_iter().all(same))?;
        Ok((config, state))
    }
}
