//! Commands that give a program a descriptor to read events from
//! (drivers/iommu/iommufd/eventq.c).

use std::sync::Arc;

use ioasid_iommufd::{EventFile, ObjectId, VeventqAlloc};
use zerocopy::{Immutable, IntoBytes};

use super::{call::Call, supported};
use crate::{
    CallError,
    error::{FieldError, RequestError},
    spec::iommufd as spec,
};

pub(super) fn fault_queue_alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::FaultAlloc = call.args();
    supported(FieldError::zero("flags", args.flags))?;
    let (id, file) = call.context().fault_queue_alloc()?;
    args.out_fault_id = id.get();
    install(call, id, file, |fd| {
        args.out_fault_fd = fd;
        args
    })
}

pub(super) fn veventq_alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::VeventqAlloc = call.args();
    supported(FieldError::zero("flags", args.flags))?;
    supported(FieldError::zero("reserved", args.reserved))?;
    supported(FieldError::chosen("type", args.kind))?;
    let (id, file) = call.context().veventq_alloc(VeventqAlloc {
        viommu: ObjectId::from_raw(args.viommu_id),
        kind: args.kind,
        depth: args.veventq_depth,
    })?;
    args.out_veventq_id = id.get();
    install(call, id, file, |fd| {
        args.out_veventq_fd = fd;
        args
    })
}

/// Gives the program the descriptor of a new object, in its reply. If either fails, nothing is left.
fn install<T: IntoBytes + Immutable>(
    call: &Call<'_>,
    id: ObjectId,
    file: Arc<dyn EventFile>,
    mut reply: impl FnMut(u32) -> T,
) -> Result<u64, CallError> {
    // A descriptor that the program has cannot be taken back: whether the reply arrives comes first.
    let replied = call.reply(&reply(0)).and_then(|_| {
        let program = call.program();
        let installed = program.install_event_file(Arc::clone(&file), true);
        Ok(installed.map_err(RequestError::NoDescriptor)?)
    });
    match replied {
        Ok(fd) => call.reply(&reply(fd.cast_unsigned())),
        Err(error) => {
            file.closed();
            let _ = call.context().destroy(id);
            Err(error)
        }
    }
}
