//! FEATURE (`vfio_ioctl_device_feature`, `drivers/vfio/vfio_main.c`, and
//! `vfio_pci_core_ioctl_feature`, `drivers/vfio/pci/vfio_pci_core.c`).

use std::sync::Arc;

use ioasid_core::host::IrqSink;
use ioasid_vfio::{DeviceFile, device::Feature as Known, error::FeatureError};

use zerocopy::{FromZeros, IntoBytes};

use super::{copy, logging, long_enough, migration, named, valid};
use crate::{
    CallError, Program,
    error::{FieldError, RequestError, Wanted},
    fields::names,
    memory,
    spec::vfio::{DmaLoggingControl, DmaLoggingReport, Feature, LowPowerWakeup},
};

pub(super) fn feature(
    file: &DeviceFile,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    let request: Feature = copy::standard(program, arg, Feature::MIN)?;
    check_flags(&request)?;
    let number = request.flags & Feature::NUMBER;
    let needs = match number {
        Feature::VF_TOKEN => Known::Token,
        Feature::LOW_POWER_ENTRY
        | Feature::LOW_POWER_ENTRY_WITH_WAKEUP
        | Feature::LOW_POWER_EXIT => Known::LowPower,
        Feature::DMA_LOGGING_START | Feature::DMA_LOGGING_STOP | Feature::DMA_LOGGING_REPORT => {
            Known::DmaLog
        }
        Feature::MIGRATION | Feature::MIG_DEVICE_STATE | Feature::MIG_DATA_SIZE => {
            return migration::feature(file, &request, arg, program).map(|()| 0);
        }
        // It is refused before anything else is looked at, for it needs a state that never is.
        Feature::MIG_PRECOPY_INFO_V2 => return Err(RequestError::NoPrecopy.into()),
        // Exported memory needs a kernel with dma-bufs.
        number => return Err(RequestError::UnknownFeature { number }.into()),
    };
    if !file.has_feature(needs) {
        return Err(FeatureError::Absent(needs).into());
    }
    let data = copy::offset(arg, Feature::MIN as u64)?;
    match number {
        Feature::VF_TOKEN => {
            if settable(&request, 16)? {
                let mut token = [0; 16];
                memory::read(program, data, &mut token)?;
                file.set_token(token)?;
            }
        }
        Feature::LOW_POWER_ENTRY => {
            if settable(&request, 0)? {
                file.enter_low_power(None)?;
            }
        }
        Feature::LOW_POWER_EXIT => {
            if settable(&request, 0)? {
                file.exit_low_power()?;
            }
        }
        Feature::DMA_LOGGING_START => {
            if settable(&request, size_of::<DmaLoggingControl>())? {
                logging::start(file, data, program)?;
            }
        }
        Feature::DMA_LOGGING_STOP => {
            if settable(&request, 0)? {
                file.stop_dma_log()?;
            }
        }
        Feature::DMA_LOGGING_REPORT => {
            let bytes = size_of::<DmaLoggingReport>();
            if check_feature(&request, Feature::GET, bytes)? {
                logging::report(file, data, program)?;
            }
        }
        _ => {
            if settable(&request, size_of::<LowPowerWakeup>())? {
                file.enter_low_power(Some(wakeup(data, program)?))?;
            }
        }
    }
    Ok(0)
}

/// Whether a feature that can be set alone, with `bytes` of data, is to be set; otherwise the
/// program only asks whether it can be.
fn settable(request: &Feature, bytes: usize) -> Result<bool, CallError> {
    check_feature(request, Feature::SET, bytes)
}

/// That the flags of a request go together, whatever the feature (`vfio_ioctl_device_feature`).
fn check_flags(request: &Feature) -> Result<(), CallError> {
    let wish = request.flags & !Feature::NUMBER;
    valid(FieldError::flags("flags", wish, names::FEATURE_WISH))?;
    let both = Feature::GET | Feature::SET;
    if wish & (both | Feature::PROBE) == both {
        return Err(RequestError::Invalid(FieldError::Exclusive {
            field: "flags",
            value: wish.into(),
            known: names::FEATURE_WAY,
        })
        .into());
    }
    Ok(())
}

/// Whether a feature with which `possible` can be done ([`Feature::GET`], [`Feature::SET`]), with `bytes`
/// of data, is to be got or set; otherwise the program only asks whether it can be
/// (`vfio_check_feature`, `include/linux/vfio.h`).
///
/// # Errors
/// EINVAL if the flags do not go together, ask for what is not possible or for nothing, or
/// if there is no room for the data.
pub fn check_feature(request: &Feature, possible: u32, bytes: usize) -> Result<bool, CallError> {
    check_flags(request)?;
    let wish = request.flags & (Feature::GET | Feature::SET);
    if wish & !possible != 0 {
        return Err(RequestError::FeatureWay {
            number: request.flags & Feature::NUMBER,
            set: wish & !possible & Feature::SET != 0,
        }
        .into());
    }
    if request.flags & Feature::PROBE != 0 {
        return Ok(false);
    }
    if wish == 0 {
        return Err(RequestError::Invalid(FieldError::OneOf {
            field: "flags",
            value: request.flags.into(),
            known: names::FEATURE_WAY,
        })
        .into());
    }
    long_enough(request.argsz, Feature::MIN + bytes)?;
    Ok(true)
}

fn wakeup(data: u64, program: &dyn Program) -> Result<Arc<dyn IrqSink>, CallError> {
    let mut entry = LowPowerWakeup::new_zeroed();
    memory::read(program, data, entry.as_mut_bytes())?;
    // A program that wants no eventfd has a feature of its own for that.
    valid(named("wakeup_eventfd", entry.wakeup_eventfd))?;
    let fd = entry.wakeup_eventfd;
    let eventfd = program.eventfd(fd);
    Ok(eventfd.map_err(|error| RequestError::Descriptor {
        fd,
        wanted: Wanted::Eventfd,
        error,
    })?)
}
