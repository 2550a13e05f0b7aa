//! The ioctls, reads and writes of a VFIO device
//! (`drivers/vfio/{vfio_main,device_cdev}.c`, `drivers/vfio/pci/vfio_pci_core.c`).
//!
//! The rules that all commands share: until the file is bound every command but BIND is EINVAL, an
//! unknown one too; then an unknown command is ENOTTY. A command with a struct copies the part of it
//! that has to be there (EFAULT) and compares `argsz` with its length (EINVAL); a larger `argsz` is
//! always fine.

use ioasid_vfio::{DeviceFile, error::BindError};

use crate::{
    CallError, Program,
    error::{FieldError, RequestError},
    fields::Described,
    spec::vfio as spec,
    table::{self, Argument, File, Row, Support},
};

mod attach;
pub(crate) mod container;
mod copy;
mod feature;
pub(crate) mod group;
mod info;
mod ioeventfd;
mod irqs;
mod logging;
mod migration;

pub use container::ioctl as container_ioctl;
pub use feature::check_feature;
pub use group::ioctl as group_ioctl;

/// What a command works on, and the function that carries it out.
#[derive(Clone, Copy)]
struct Handler {
    needs: Needs,
    run: Run,
}

type Run = fn(&DeviceFile, u64, &dyn Program) -> Result<u64, CallError>;

/// The file that a command works on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Any, bound or not.
    AnyFile,
    /// One that is bound, by itself or through its group.
    Bound,
    /// One that is bound by itself: what is attached is otherwise the container's business.
    BoundAlone,
}

type Command = table::Command<Handler>;

/// The ioctls of a device file.
const COMMANDS: &[Command] = &[
    command::<spec::DeviceInfo>(
        spec::DEVICE_GET_INFO,
        "GET_INFO",
        spec::DeviceInfo::MIN,
        info::device,
    ),
    command::<spec::RegionInfo>(
        spec::DEVICE_GET_REGION_INFO,
        "GET_REGION_INFO",
        spec::RegionInfo::MIN,
        info::region,
    ),
    command::<spec::IrqInfo>(
        spec::DEVICE_GET_IRQ_INFO,
        "GET_IRQ_INFO",
        spec::IrqInfo::MIN,
        info::irq,
    ),
    command::<spec::IrqSet>(
        spec::DEVICE_SET_IRQS,
        "SET_IRQS",
        spec::IrqSet::MIN,
        irqs::set,
    ),
    Command::plain(spec::DEVICE_RESET, "RESET", Argument::None, bound(reset)),
    command::<spec::HotReset>(
        spec::DEVICE_GET_PCI_HOT_RESET_INFO,
        "GET_PCI_HOT_RESET_INFO",
        spec::HotReset::MIN,
        hot_reset_info,
    ),
    command::<spec::HotReset>(
        spec::DEVICE_PCI_HOT_RESET,
        "PCI_HOT_RESET",
        spec::HotReset::MIN,
        hot_reset,
    ),
    command::<spec::Ioeventfd>(
        spec::DEVICE_IOEVENTFD,
        "IOEVENTFD",
        spec::Ioeventfd::MIN,
        ioeventfd::set,
    ),
    command::<spec::Feature>(
        spec::DEVICE_FEATURE,
        "FEATURE",
        spec::Feature::MIN,
        feature::feature,
    )
    .partial(),
    Command::with::<spec::BindIommufd>(
        spec::DEVICE_BIND_IOMMUFD,
        "BIND_IOMMUFD",
        spec::BindIommufd::MIN,
        Handler {
            needs: Needs::AnyFile,
            run: attach::bind,
        },
    ),
    Command::with::<spec::AttachIommufdPt>(
        spec::DEVICE_ATTACH_IOMMUFD_PT,
        "ATTACH_IOMMUFD_PT",
        spec::AttachIommufdPt::MIN,
        bound_alone(attach::attach),
    ),
    Command::with::<spec::DetachIommufdPt>(
        spec::DEVICE_DETACH_IOMMUFD_PT,
        "DETACH_IOMMUFD_PT",
        spec::DetachIommufdPt::MIN,
        bound_alone(attach::detach),
    ),
];

const fn command<T: Described>(
    request: u32,
    name: &'static str,
    min_size: usize,
    run: Run,
) -> Command {
    Command::with::<T>(request, name, min_size, bound(run))
}

const fn bound(run: Run) -> Handler {
    let needs = Needs::Bound;
    Handler { needs, run }
}

const fn bound_alone(run: Run) -> Handler {
    let needs = Needs::BoundAlone;
    Handler { needs, run }
}

/// Commands of Linux that no device here has (`include/uapi/linux/vfio.h`).
const MISSING: &[(u32, &str)] = &[
    (spec::DEVICE_QUERY_GFX_PLANE, "QUERY_GFX_PLANE"),
    (spec::DEVICE_GET_GFX_DMABUF, "GET_GFX_DMABUF"),
];

/// As documents show them.
pub(crate) fn rows() -> impl Iterator<Item = Row> {
    let missing = MISSING.iter().map(|(request, name)| Row {
        file: File::Device,
        request: *request,
        name,
        support: Support::No,
        argument: Argument::None,
    });
    table::rows(File::Device, COMMANDS).chain(missing)
}

/// The kernel's name of the device ioctl `cmd`, without `VFIO_DEVICE_`, for messages.
pub fn command_name(cmd: u32) -> Option<&'static str> {
    table::find(COMMANDS, cmd).map(|command| command.name)
}

/// Whether the ioctl `cmd` can make DMA of a device its program's business: BIND_IOMMUFD on the device,
/// GET_DEVICE_FD on its group.
pub const fn binds(cmd: u32) -> bool {
    matches!(
        cmd,
        spec::DEVICE_BIND_IOMMUFD | crate::spec::group::GET_DEVICE_FD
    )
}

/// Runs the ioctl `cmd` with the argument `arg` on `file`, for `program`.
///
/// # Errors
/// What the kernel would answer.
pub fn device_ioctl(
    file: &DeviceFile,
    cmd: u32,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    let command = table::find(COMMANDS, cmd);
    // An unknown command is refused as one of a bound file, and is a use of the device too.
    let needs = command.map_or(Needs::Bound, |command| command.handler.needs);
    if needs != Needs::AnyFile {
        if !file.is_bound() {
            return Err(BindError::NotBound.into());
        }
        if needs == Needs::BoundAlone && file.is_of_group() {
            let name = command.map_or("the command", |command| command.name);
            return Err(RequestError::OpenedByGroup { name }.into());
        }
        file.wake();
    }
    let command = command.ok_or(RequestError::UnknownCommand {
        file: File::Device,
        request: cmd,
    })?;
    (command.handler.run)(file, arg, program)
}

/// Looks at an access of `len` bytes as a whole, for a caller that makes it in parts.
///
/// # Errors
/// EINVAL for an unbound file; EFAULT for an access to configuration space that passes its end.
pub fn check_access(file: &DeviceFile, offset: u64, len: u64) -> Result<(), CallError> {
    Ok(file.check_access(offset, len)?)
}

/// Reads `data.len()` bytes at the file offset `offset`; returns how many it could.
///
/// # Errors
/// EINVAL for an unbound file, no such region or an offset past its end; EFAULT past the end of
/// configuration space; EIO while the device's memory is disabled.
pub fn pread(file: &DeviceFile, offset: u64, data: &mut [u8]) -> Result<usize, CallError> {
    Ok(file.read(offset, data)?)
}

/// Writes `data` at the file offset `offset`; returns how many bytes it could. 64 aligned bytes on a
/// BAR with wide stores are one store.
///
/// # Errors
/// As [`pread`].
pub fn pwrite(file: &DeviceFile, offset: u64, data: &[u8]) -> Result<usize, CallError> {
    Ok(file.write(offset, data)?)
}

/// What a field of a command of VFIO may not be: EINVAL.
fn valid(checked: Result<(), FieldError>) -> Result<(), CallError> {
    Ok(checked.map_err(RequestError::Invalid)?)
}

/// That a struct with what stands behind it has at least `min` bytes.
fn long_enough(argsz: u32, min: usize) -> Result<(), RequestError> {
    let (size, min) = (argsz.into(), min as u64);
    match size < min {
        true => Err(RequestError::TooSmall { size, min }),
        false => Ok(()),
    }
}

/// A descriptor that a struct names, which is not negative.
fn named(field: &'static str, value: i32) -> Result<(), FieldError> {
    match value {
        0.. => Ok(()),
        _ => Err(FieldError::Negative { field, value }),
    }
}

fn reset(file: &DeviceFile, _arg: u64, _program: &dyn Program) -> Result<u64, CallError> {
    file.reset()?;
    Ok(0)
}

/// An endpoint inside the root complex has neither a slot nor a bus that could be reset.
fn hot_reset_info(_file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let _: spec::HotReset = copy::standard(program, arg, spec::HotReset::MIN)?;
    Err(RequestError::NoHotReset.into())
}

fn hot_reset(_file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let request: spec::HotReset = copy::standard(program, arg, spec::HotReset::MIN)?;
    // A device file gives no groups: its iommufd says what it owns.
    valid(FieldError::zero("flags", request.flags))?;
    valid(FieldError::zero("count", request.count))?;
    Err(RequestError::NoHotReset.into())
}
