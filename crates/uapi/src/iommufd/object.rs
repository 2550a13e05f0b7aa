//! Commands on objects of any type and on the file itself
//! (drivers/iommu/iommufd/{main,vfio_compat}.c).

use std::mem::offset_of;

use ioasid_iommufd::{ObjectId, OptionError};

use super::{call::Call, no_value, supported};
use crate::{CallError, error::FieldError, fields::names, spec::iommufd as spec};

pub(super) fn destroy(call: &Call<'_>) -> Result<u64, CallError> {
    let args: spec::Destroy = call.args();
    call.context().destroy(ObjectId::from_raw(args.id))?;
    Ok(0)
}

pub(super) fn option(call: &Call<'_>) -> Result<u64, CallError> {
    let args: spec::Opt = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    let value = match args.option_id {
        spec::OPTION_RLIMIT_MODE => rlimit_mode(call, &args)?,
        spec::OPTION_HUGE_PAGES => huge_pages(call, &args)?,
        other => return Err(no_value("option_id", other, names::OPTION)),
    };
    // Only the value is written back.
    call.reply_field(offset_of!(spec::Opt, val64), value)
}

fn flag(value: u64) -> Result<bool, OptionError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(OptionError::NoSuchValue(value)),
    }
}

/// The kernel asks for CAP_SYS_RESOURCE to set it; here it limits nobody, so everybody may.
fn rlimit_mode(call: &Call<'_>, args: &spec::Opt) -> Result<u64, CallError> {
    supported(FieldError::zero("object_id", args.object_id))?;
    match args.op {
        spec::OPTION_OP_GET => Ok(call.context().rlimit_per_process().into()),
        spec::OPTION_OP_SET => {
            // Objects are looked at before the value.
            let set = flag(args.val64);
            let current = call.context().rlimit_per_process();
            let wanted = set.unwrap_or(current);
            call.context().set_rlimit_per_process(wanted)?;
            set?;
            Ok(args.val64)
        }
        other => Err(no_value("op", other, names::OPTION_OP)),
    }
}

fn huge_pages(call: &Call<'_>, args: &spec::Opt) -> Result<u64, CallError> {
    let ioas = ObjectId::from_raw(args.object_id);
    let current = call.context().ioas_huge_pages(ioas)?;
    match args.op {
        spec::OPTION_OP_GET => Ok(current.into()),
        spec::OPTION_OP_SET => {
            call.context()
                .set_ioas_huge_pages(ioas, flag(args.val64)?)?;
            Ok(args.val64)
        }
        other => Err(no_value("op", other, names::OPTION_OP)),
    }
}

pub(super) fn vfio_ioas(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::VfioIoas = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    match args.op {
        spec::VFIO_IOAS_GET => {
            args.ioas_id = call.context().vfio_ioas()?.get();
            call.reply(&args)
        }
        spec::VFIO_IOAS_SET => {
            let ioas = ObjectId::from_raw(args.ioas_id);
            call.context().set_vfio_ioas(Some(ioas))?;
            Ok(0)
        }
        spec::VFIO_IOAS_CLEAR => {
            call.context().set_vfio_ioas(None)?;
            Ok(0)
        }
        other => Err(no_value("op", other, names::VFIO_IOAS)),
    }
}

pub(super) fn change_process(call: &Call<'_>) -> Result<u64, CallError> {
    let args: spec::IoasChangeProcess = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    call.context().change_process(call.program().account())?;
    Ok(0)
}
