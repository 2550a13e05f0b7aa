//! The ioctls, reads and writes of a VFIO device
//! (`drivers/vfio/{vfio_main,device_cdev}.c`, `drivers/vfio/pci/vfio_pci_core.c`).
//!
//! The rules that all commands share: until the file is bound every command but BIND is EINVAL, an
//! unknown one too; then an unknown command is ENOTTY. A command with a struct copies the part of it
//! that has to be there (EFAULT) and compares `argsz` with its length (EINVAL); a larger `argsz` is
//! always fine.

use ioasid_vfio::DeviceFile;

use crate::{
    Errno, Program,
    spec::vfio as spec,
    table::{File, Row, Support},
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

/// One ioctl of a device file.
#[derive(Clone, Copy)]
struct Command {
    /// The whole request number.
    number: u32,
    /// The kernel's name, without `VFIO_DEVICE_`.
    name: &'static str,
    support: Support,
    run: Handler,
}

impl Command {
    /// The same, of which a part is refused.
    const fn partial(self) -> Self {
        Command {
            support: Support::Partial,
            ..self
        }
    }
}

type Handler = fn(&DeviceFile, u64, &dyn Program) -> Result<u64, Errno>;

/// The ioctls of a bound device file. BIND is here too, and alone works before.
const COMMANDS: &[Command] = &[
    command(spec::DEVICE_GET_INFO, "GET_INFO", info::device),
    command(
        spec::DEVICE_GET_REGION_INFO,
        "GET_REGION_INFO",
        info::region,
    ),
    command(spec::DEVICE_GET_IRQ_INFO, "GET_IRQ_INFO", info::irq),
    command(spec::DEVICE_SET_IRQS, "SET_IRQS", irqs::set),
    command(spec::DEVICE_RESET, "RESET", reset),
    command(
        spec::DEVICE_GET_PCI_HOT_RESET_INFO,
        "GET_PCI_HOT_RESET_INFO",
        hot_reset_info,
    ),
    command(spec::DEVICE_PCI_HOT_RESET, "PCI_HOT_RESET", hot_reset),
    command(spec::DEVICE_IOEVENTFD, "IOEVENTFD", ioeventfd::set),
    command(spec::DEVICE_FEATURE, "FEATURE", feature::feature).partial(),
    command(spec::DEVICE_BIND_IOMMUFD, "BIND_IOMMUFD", attach::bind),
    command(
        spec::DEVICE_ATTACH_IOMMUFD_PT,
        "ATTACH_IOMMUFD_PT",
        attach::attach,
    ),
    command(
        spec::DEVICE_DETACH_IOMMUFD_PT,
        "DETACH_IOMMUFD_PT",
        attach::detach,
    ),
];

const fn command(number: u32, name: &'static str, run: Handler) -> Command {
    Command {
        number,
        name,
        support: Support::Yes,
        run,
    }
}

/// Commands of Linux that no device here has (`include/uapi/linux/vfio.h`).
const MISSING: &[(u32, &str)] = &[
    (spec::DEVICE_QUERY_GFX_PLANE, "QUERY_GFX_PLANE"),
    (spec::DEVICE_GET_GFX_DMABUF, "GET_GFX_DMABUF"),
];

/// As documents show them.
pub(crate) fn rows() -> impl Iterator<Item = Row> {
    let row = |request, name, support| Row {
        file: File::Device,
        request,
        name,
        support,
    };
    let there = COMMANDS
        .iter()
        .map(move |command| row(command.number, command.name, command.support));
    let missing = MISSING
        .iter()
        .map(move |(request, name)| row(*request, name, Support::No));
    there.chain(missing)
}

fn find(number: u32) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.number == number)
}

/// The kernel's name of the device ioctl `cmd`, without `VFIO_DEVICE_`, for messages.
pub fn command_name(cmd: u32) -> Option<&'static str> {
    find(cmd).map(|command| command.name)
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
) -> Result<u64, Errno> {
    if cmd != spec::DEVICE_BIND_IOMMUFD && !file.is_bound() {
        return Err(Errno::EINVAL);
    }
    // What is attached is the container's business.
    let own_file_only = matches!(
        cmd,
        spec::DEVICE_ATTACH_IOMMUFD_PT | spec::DEVICE_DETACH_IOMMUFD_PT
    );
    if own_file_only && file.is_of_group() {
        return Err(Errno::ENOTTY);
    }
    if cmd != spec::DEVICE_BIND_IOMMUFD {
        // An unknown command is a use of the device too.
        file.wake();
    }
    let command = find(cmd).ok_or(Errno::ENOTTY)?;
    (command.run)(file, arg, program)
}

/// Looks at an access of `len` bytes as a whole, for a caller that makes it in parts.
///
/// # Errors
/// EINVAL for an unbound file; EFAULT for an access to configuration space that passes its end.
pub fn check_access(file: &DeviceFile, offset: u64, len: u64) -> Result<(), Errno> {
    Ok(file.check_access(offset, len)?)
}

/// Reads `data.len()` bytes at the file offset `offset`; returns how many it could.
///
/// # Errors
/// EINVAL for an unbound file, no such region or an offset past its end; EFAULT past the end of
/// configuration space; EIO while the device's memory is disabled.
pub fn pread(file: &DeviceFile, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
    Ok(file.read(offset, data)?)
}

/// Writes `data` at the file offset `offset`; returns how many bytes it could. 64 aligned bytes on a
/// BAR with wide stores are one store.
///
/// # Errors
/// As [`pread`].
pub fn pwrite(file: &DeviceFile, offset: u64, data: &[u8]) -> Result<usize, Errno> {
    Ok(file.write(offset, data)?)
}

fn reset(file: &DeviceFile, _arg: u64, _program: &dyn Program) -> Result<u64, Errno> {
    file.reset()?;
    Ok(0)
}

/// An endpoint inside the root complex has neither a slot nor a bus that could be reset.
fn hot_reset_info(_file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    let _: spec::HotReset = copy::standard(program, arg, spec::HotReset::MIN)?;
    Err(Errno::ENODEV)
}

fn hot_reset(_file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    let request: spec::HotReset = copy::standard(program, arg, spec::HotReset::MIN)?;
    // A device file gives no groups: its iommufd says what it owns.
    if request.flags != 0 || request.count != 0 {
        return Err(Errno::EINVAL);
    }
    Err(Errno::ENODEV)
}
