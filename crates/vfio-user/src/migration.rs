//! Migration of a device over its socket: three features and two commands. The states and what they
//! mean are those of [`ioasid_vfio::device`]; here are the messages.

use ioasid_uapi::{
    spec::vfio::{Feature, MigState},
    vfio::check_feature,
};
use ioasid_vfio::{MigrationState, device::Feature as Known, error::FeatureError};
use zerocopy::IntoBytes;

use crate::{
    commands::{Target, feature_reply, prefix, size, too_much, whole},
    error::Result,
    spec::{MAX_DATA_XFER_SIZE, MigData},
};

impl Target {
    /// The features MIGRATION, MIG_DEVICE_STATE and MIG_DATA_SIZE.
    pub(crate) fn migration(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (request, data) = prefix::<Feature>(payload)?;
        if !self.file.can_migrate() {
            return Err(FeatureError::Absent(Known::Migration).into());
        }
        let number = request.flags & Feature::NUMBER;
        let possible = match number {
            Feature::MIG_DEVICE_STATE => Feature::GET | Feature::SET,
            _ => Feature::GET,
        };
        if !check_feature(&request, possible, size_of::<u64>())? {
            return Ok(feature_reply(&request, &[]));
        }
        match number {
            Feature::MIGRATION => Ok(feature_reply(&request, &MigState::STOP_COPY.to_ne_bytes())),
            Feature::MIG_DATA_SIZE => {
                let size = self.file.migration_size()?;
                Ok(feature_reply(&request, &size.to_ne_bytes()))
            }
            _ => {
                if request.flags & Feature::SET != 0 {
                    let wanted: MigState = whole(data)?;
                    let wanted = MigrationState::wanted(wanted.device_state)?;
                    self.file.set_migration_state(wanted)?;
                }
                let state = MigState {
                    device_state: self.file.migration_state()? as u32,
                    // No descriptor carries the data.
                    data_fd: -1,
                };
                Ok(feature_reply(&request, state.as_bytes()))
            }
        }
    }

    /// The next bytes of the saved state.
    pub(crate) fn migration_read(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let request: MigData = whole(payload)?;
        self.expect_migratable()?;
        let room = (request.argsz as usize).checked_sub(size_of::<MigData>());
        if request.size > MAX_DATA_XFER_SIZE {
            return Err(too_much(request.size.into(), MAX_DATA_XFER_SIZE.into()));
        }
        if room.is_none_or(|room| room < request.size as usize) {
            let needed = size_of::<MigData>() + request.size as usize;
            return Err(size(request.argsz as usize, needed));
        }
        // The state is what bounds the reply, not what the client would have room for.
        let data = self.file.read_migration(request.size as usize)?;
        let count = data.len();
        let reply = MigData {
            argsz: (size_of::<MigData>() + count) as u32,
            size: count as u32,
        };
        Ok([reply.as_bytes(), &data].concat())
    }

    /// More bytes of the state that is to be restored.
    pub(crate) fn migration_write(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (request, data) = prefix::<MigData>(payload)?;
        self.expect_migratable()?;
        if request.size > MAX_DATA_XFER_SIZE {
            return Err(too_much(request.size.into(), MAX_DATA_XFER_SIZE.into()));
        }
        if request.argsz as usize != payload.len() {
            return Err(size(payload.len(), request.argsz as usize));
        }
        if request.size as usize != data.len() {
            return Err(size(data.len(), request.size as usize));
        }
        self.file.write_migration(data)?;
        Ok(Vec::new())
    }

    fn expect_migratable(&self) -> Result<()> {
        match self.file.can_migrate() {
            true => Ok(()),
            false => Err(FeatureError::Absent(Known::Migration).into()),
        }
    }
}
