//! Migration of a device: the states of `enum vfio_device_mig_state` (`include/uapi/linux/vfio.h`),
//! and the bytes that carry a device from one process to another.
//!
//! The arcs are those of `vfio_mig_get_next_state` (`drivers/vfio/vfio_main.c`) for a device with
//! STOP_COPY alone: every state is left for another one by way of STOP. What is written in RESUMING
//! is looked at as a whole when that state is left, so that a device either has all of it or none.

use super::{DeviceFile, VfioDevice};
use crate::{
    error::{Error, Result},
    model::{Migrate, StateError},
    pci::Function,
};

/// Most bytes of a saved state: a device with 32 queues of 1024 descriptors has 2 MiB of those that
/// wait, and about as much of what can be under way.
pub const MAX_STATE: usize = 8 << 20;

/// What a device does about migration. The numbers are those of the ABI.
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

impl MigrationState {
    /// The state `number` that can be asked for: not ERROR, and none of those that need another
    /// ability than STOP_COPY.
    ///
    /// # Errors
    /// [`Error::BadMigrationState`].
    pub fn wanted(number: u32) -> Result<Self> {
        match number {
            1 => Ok(MigrationState::Stop),
            2 => Ok(MigrationState::Running),
            3 => Ok(MigrationState::StopCopy),
            4 => Ok(MigrationState::Resuming),
            _ => Err(Error::BadMigrationState),
        }
    }
}

/// Where the migration of one device stands. Changes with the device's gate held exclusively.
#[derive(Debug, Default)]
pub(super) struct Migration {
    state: MigrationState,
    /// The state that is being read, or what has been written of one.
    data: Vec<u8>,
    /// Bytes of it that were read.
    read: usize,
}

impl DeviceFile {
    /// Whether the device can be migrated: stopped, saved and restored.
    pub fn can_migrate(&self) -> bool {
        self.device.can_migrate()
    }

    /// Where its migration stands.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`].
    pub fn migration_state(&self) -> Result<MigrationState> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        self.device.migrate()?;
        Ok(self.device.migration.lock().state)
    }

    /// Takes the device to `wanted`, by way of STOP if need be. May wait for DMA that is under way.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`]; [`Error::BadMigrationState`] in state ERROR;
    /// [`Error::BadDeviceState`] if what was written is no state of such a device, which is in
    /// state ERROR then; [`Error::Exhausted`] if its state is larger than [`MAX_STATE`]: it is in
    /// STOP then.
    pub fn set_migration_state(&self, wanted: MigrationState) -> Result<()> {
        let _exclusive = self.device.exclusive();
        self.expect_bound()?;
        self.device.go_to(wanted)
    }

    /// Reads the next bytes of the saved state; 0 at its end.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`]; [`Error::BadMigrationState`] unless in STOP_COPY.
    pub fn read_migration(&self, data: &mut [u8]) -> Result<usize> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        self.device.migrate()?;
        let mut migration = self.device.migration.lock();
        if migration.state != MigrationState::StopCopy {
            return Err(Error::BadMigrationState);
        }
        let rest = migration.data.get(migration.read..).unwrap_or_default();
        let count = rest.len().min(data.len());
        if let (Some(to), Some(from)) = (data.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        migration.read += count;
        Ok(count)
    }

    /// Adds bytes to the state that is to be restored.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`]; [`Error::BadMigrationState`] unless in RESUMING;
    /// [`Error::Exhausted`] beyond [`MAX_STATE`].
    pub fn write_migration(&self, data: &[u8]) -> Result<()> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        self.device.migrate()?;
        let mut migration = self.device.migration.lock();
        if migration.state != MigrationState::Resuming {
            return Err(Error::BadMigrationState);
        }
        if data.len() > MAX_STATE - migration.data.len().min(MAX_STATE) {
            return Err(Error::Exhausted("bytes of a saved state"));
        }
        migration.data.extend_from_slice(data);
        Ok(())
    }

    /// Bytes that are left to read in STOP_COPY; otherwise the most that there will be.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`].
    pub fn migration_size(&self) -> Result<u64> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        self.device.migrate()?;
        let migration = self.device.migration.lock();
        Ok(match migration.state {
            MigrationState::StopCopy => migration.data.len() - migration.read,
            _ => MAX_STATE,
        } as u64)
    }
}

impl VfioDevice {
    /// Whether the device can be migrated: stopped, saved and restored.
    pub fn can_migrate(&self) -> bool {
        self.model.migration().is_some()
    }

    fn migrate(&self) -> Result<&dyn Migrate> {
        self.model.migration().ok_or(Error::NoFeature)
    }

    /// The device was reset: it runs, and nothing is left of a migration.
    pub(super) fn end_migration(&self) {
        *self.migration.lock() = Migration::default();
    }

    /// One arc, or two by way of STOP.
    fn go_to(&self, wanted: MigrationState) -> Result<()> {
        let model = self.migrate()?;
        let state = self.migration.lock().state;
        if state == wanted && state != MigrationState::Error {
            return Ok(());
        }
        match state {
            MigrationState::Error => return Err(Error::BadMigrationState),
            MigrationState::Stop => {}
            MigrationState::Running => model.pause(),
            MigrationState::StopCopy => {}
            MigrationState::Resuming => self.restore(model)?,
        }
        // In STOP from here on.
        let mut next = Migration {
            state: wanted,
            ..Migration::default()
        };
        match wanted {
            MigrationState::Running => model.resume(),
            MigrationState::StopCopy => next.data = envelope::seal(self.model.function(), model),
            _ => {}
        }
        if next.data.len() > MAX_STATE {
            // Nobody could restore it. It stays stopped.
            self.migration.lock().state = MigrationState::Stop;
            return Err(Error::Exhausted("bytes of a saved state"));
        }
        *self.migration.lock() = next;
        Ok(())
    }

    /// Gives the device the state that was written. One that is left without a byte stays as it is.
    fn restore(&self, model: &dyn Migrate) -> Result<()> {
        let data = std::mem::take(&mut self.migration.lock().data);
        if data.is_empty() {
            return Ok(());
        }
        let function = self.model.function();
        let before = envelope::config(function);
        let restored = envelope::open(&data, &before).and_then(|(config, state)| {
            self.reset_model();
            model.pause();
            set_config(function, config);
            model.load(state)
        });
        if let Err(StateError) = restored {
            self.reset_model();
            set_config(function, &before);
            model.pause();
            self.migration.lock().state = MigrationState::Error;
            return Err(Error::BadDeviceState);
        }
        Ok(())
    }
}

/// Writes all of configuration space as a program may. A reset that it asks for does not happen: the
/// device has just been reset.
fn set_config(function: &Function, config: &[u8]) {
    let _ = function.write_config(0, config);
}

/// What is around a model's state: who made it, how long it is, and configuration space.
mod envelope {
    use super::{Function, MAX_STATE, Migrate, StateError};
    use crate::saved::{Reader, Writer, expect};

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
