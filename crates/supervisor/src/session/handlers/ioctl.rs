//! `ioctl` on files of the machine.

use ioasid_host::ProcessError;
use ioasid_uapi::{
    self as uapi, CallError,
    error::{FileError, Operation},
};

use super::{
    ioctl_caller::{IoctlCaller, Named, keep},
    recorded::Recorded,
};
use crate::session::{
    answer::{Answer, Outcome, Pending},
    descriptors::object::Object,
    identity::Identity,
    state::State,
};

pub(crate) fn ioctl(
    state: &mut State,
    call: Pending<'_>,
    (fd, request, argument): (i32, u32, u64),
) -> Outcome {
    let Some(identity) = state.bound(call, fd)? else {
        if let Err(error @ ProcessError::Denied(_)) = call.process.descriptors_are_open() {
            state.program.warn_of_closed_memory(&error);
        }
        return Ok(Answer::Proceed);
    };
    state.descriptors.report_number(fd);
    let mappings = &mut state.descriptors.mappings;
    if !mappings.is_empty() && uapi::iommufd::is_destroy(request) {
        mappings.forget_unmapped(identity);
    }
    let (mut result, mut named) = carry_out(state, call, identity, (fd, request, argument));
    // It failed for a descriptor that is no file of the machine yet, before anything was done.
    if result.is_err()
        && let Some(not_bound) = named.not_bound
        && state.bound(call, not_bound)?.is_some()
    {
        if let Some(steps) = &state.steps {
            steps.again();
        }
        (result, named) = carry_out(state, call, identity, (fd, request, argument));
    }
    if result.is_ok() && !named.promises.is_empty() {
        keep(
            &mut state.descriptors,
            call,
            named.promises,
            state.steps.as_deref(),
        )?;
    }
    if result.is_ok() && uapi::vfio::binds(request) {
        state.descriptors.note_bound();
    }
    result.map(Answer::Value)
}

/// An ioctl on a file of the machine, and what came of the descriptors that its argument names.
fn carry_out(
    state: &mut State,
    call: Pending<'_>,
    identity: Identity,
    (fd, request, argument): (i32, u32, u64),
) -> (Result<u64, CallError>, Named) {
    let files = &state.descriptors.files;
    let Some(file) = files.get(identity) else {
        return (Err(FileError::Closed { fd }.into()), Named::default());
    };
    let numbers = state.descriptors.numbers();
    let program = IoctlCaller::new(call.process, files, numbers, argument);
    let recorded = state
        .steps
        .as_ref()
        .map(|steps| Recorded::new(&program, steps));
    let asks: &dyn uapi::Program = match &recorded {
        Some(recorded) => recorded,
        None => &program,
    };
    let result = match &file.object {
        Object::Iommufd(context) => {
            let result = match state.machine.view.extension() {
                Some(extension) => {
                    uapi::iommufd::extended_ioctl(extension, context, request, argument, asks)
                }
                None => uapi::iommufd::ioctl(context, request, argument, asks),
            };
            state.freed.left(context.ledger().mappings());
            result
        }
        Object::Device(device) => uapi::vfio::device_ioctl(device, request, argument, asks),
        Object::Container(container) => {
            uapi::vfio::container_ioctl(container, request, argument, asks)
        }
        Object::Group(group) => uapi::vfio::group_ioctl(group, request, argument, asks),
        Object::Event(_) | Object::FailNth(_) | Object::Attribute(_) => {
            Err(FileError::NoOperation {
                operation: Operation::Ioctl,
            }
            .into())
        }
    };
    if !state.program.observers.is_empty() {
        state.argument = program.argument();
    }
    let named = program.finish(result.is_ok());
    (result, named)
}
