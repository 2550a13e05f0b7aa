//! The features of migration (`vfio_ioctl_device_feature_mig_device_state` and its neighbours,
//! `drivers/vfio/vfio_main.c`).

use ioasid_vfio::{
    DeviceFile, Error, MigrationState, device::Feature as Known, error::FeatureError,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{check_feature, copy};
use crate::{
    CallError, Program,
    error::RequestError,
    memory,
    spec::vfio::{Feature, MigState},
};

/// MIGRATION, MIG_DEVICE_STATE and MIG_DATA_SIZE. Each has 8 bytes of data.
pub(super) fn feature(
    file: &DeviceFile,
    request: &Feature,
    arg: u64,
    program: &dyn Program,
) -> Result<(), CallError> {
    if !file.can_migrate() {
        return Err(FeatureError::Absent(Known::Migration).into());
    }
    let number = request.flags & Feature::NUMBER;
    let possible = match number {
        Feature::MIG_DEVICE_STATE => Feature::GET | Feature::SET,
        _ => Feature::GET,
    };
    if !check_feature(request, possible, size_of::<u64>())? {
        return Ok(());
    }
    let data = copy::offset(arg, Feature::MIN as u64)?;
    let word = match number {
        Feature::MIGRATION => MigState::STOP_COPY,
        Feature::MIG_DATA_SIZE => file.migration_size()?,
        _ => return state(file, request.flags & Feature::SET != 0, data, program),
    };
    Ok(memory::write(program, data, &word.to_ne_bytes())?)
}

/// Reports the state, or changes it. A state that has data comes with a descriptor for it.
fn state(file: &DeviceFile, sets: bool, at: u64, program: &dyn Program) -> Result<(), CallError> {
    let mut mig = MigState::new_zeroed();
    memory::read(program, at, mig.as_mut_bytes())?;
    let changed = match sets {
        true => MigrationState::wanted(mig.device_state)
            .map_err(Error::from)
            .and_then(|wanted| file.set_migration_state(wanted)),
        false => {
            mig.device_state = file.migration_state()? as u32;
            Ok(None)
        }
    };
    mig.data_fd = -1;
    // A descriptor that the program has cannot be taken back: whether its memory is there comes first.
    memory::write(program, at, mig.as_bytes())?;
    if let Some(data) = changed? {
        let installed = program.install_event_file(data, true);
        mig.data_fd = installed.map_err(RequestError::NoDescriptor)?;
        memory::write(program, at, mig.as_bytes())?;
    }
    Ok(())
}
