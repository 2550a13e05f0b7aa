//! SET_IRQS: the header, its data, and the eventfds in it
//! (`vfio_set_irqs_validate_and_prepare`, `drivers/vfio/vfio_main.c`).

use ioasid_vfio::{DeviceFile, Eventfd, IrqAction, IrqData, IrqIndex, SetIrqs, error::IrqError};

use super::{copy, long_enough, valid};
use crate::{
    CallError, Program,
    error::{FieldError, RequestError},
    fields::names,
    memory,
    spec::vfio::{self as spec, IrqSet},
};

pub(super) fn set(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let header: IrqSet = copy::standard(program, arg, IrqSet::MIN)?;
    let index = IrqIndex::new(header.index)?;
    valid(FieldError::flags("flags", header.flags, names::IRQ_SET))?;
    let available = index.count(file.device().model().function());
    let end = u64::from(header.start) + u64::from(header.count);
    if header.start >= available || end > available.into() {
        return Err(IrqError::NoSuchVectors {
            index,
            start: header.start,
            count: header.count,
            available,
        }
        .into());
    }
    let numbers = numbers(&header, arg, program)?;
    let action = match header.flags & IrqSet::ACTIONS {
        IrqSet::ACTION_MASK => IrqAction::Mask,
        IrqSet::ACTION_UNMASK => IrqAction::Unmask,
        IrqSet::ACTION_TRIGGER => IrqAction::Trigger,
        // None of the actions, or several: the index has no handler for that.
        _ => {
            return Err(RequestError::NoHandler(FieldError::OneOf {
                field: "flags",
                value: header.flags.into(),
                known: names::IRQ_ACTION,
            })
            .into());
        }
    };
    if let (IrqIndex::Intx, IrqAction::Unmask, Numbers::Eventfds(fds)) = (index, action, &numbers)
        && let [fd] = fds.as_slice()
    {
        let watch = |listener| program.watch_eventfd(*fd, listener);
        file.unmask_by((*fd >= 0).then_some(watch))?;
        return Ok(0);
    }
    let data = match numbers {
        Numbers::None => IrqData::None,
        Numbers::Bools(bools) => IrqData::Bools(bools),
        Numbers::Eventfds(fds) => {
            IrqData::Eventfds(fds.into_iter().map(|fd| eventfd(fd, program)).collect())
        }
    };
    let fires = action == IrqAction::Trigger && !matches!(data, IrqData::Eventfds(_));
    file.set_irqs(&SetIrqs {
        index,
        action,
        start: header.start,
        count: header.count,
        data,
    })?;
    if fires {
        // As in the kernel, the eventfd is readable when the call returns.
        program.flush_interrupts();
    }
    Ok(0)
}

/// The data of a request, as it stands in the program's memory.
enum Numbers {
    None,
    Bools(Vec<bool>),
    Eventfds(Vec<i32>),
}

/// The data behind the header: the size of each element follows from the flags, their number was
/// checked against the index.
fn numbers(header: &IrqSet, arg: u64, program: &dyn Program) -> Result<Numbers, CallError> {
    let element = match header.flags & IrqSet::DATA_MASK {
        IrqSet::DATA_NONE => return Ok(Numbers::None),
        IrqSet::DATA_BOOL => 1,
        IrqSet::DATA_EVENTFD => 4,
        // The data is of one kind: two kinds at once are refused, as none
        // (`vfio_set_irqs_validate_and_prepare`).
        _ => {
            return Err(RequestError::Invalid(FieldError::OneOf {
                field: "flags",
                value: header.flags.into(),
                known: names::IRQ_DATA,
            })
            .into());
        }
    };
    let len = header.count as usize * element;
    long_enough(header.argsz, IrqSet::MIN + len)?;
    let mut bytes = vec![0; len];
    if len > 0 {
        memory::read(program, copy::offset(arg, IrqSet::MIN as u64)?, &mut bytes)?;
    }
    if element == 1 {
        return Ok(Numbers::Bools(
            bytes.iter().map(|byte| *byte != 0).collect(),
        ));
    }
    let numbers = bytes
        .chunks_exact(4)
        .filter_map(|bytes| bytes.first_chunk());
    let numbers = numbers.map(|bytes| i32::from_ne_bytes(*bytes));
    Ok(Numbers::Eventfds(numbers.collect()))
}

fn eventfd(fd: i32, program: &dyn Program) -> Eventfd {
    match fd {
        0.. => program
            .eventfd(fd)
            .map_or_else(Eventfd::Unusable, Eventfd::Sink),
        -1 => Eventfd::None,
        _ => Eventfd::Negative,
    }
}

const _: () = assert!(size_of::<spec::IrqSet>() == IrqSet::MIN);
