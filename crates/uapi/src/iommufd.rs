//! The ioctls of `/dev/iommu` (drivers/iommu/iommufd/main.c).
//!
//! The order of checks, the same for every command: an unknown number is ENOTTY and its argument is
//! not touched; then the struct's size is read (EFAULT); a known number in a request that is
//! otherwise different is ENOTTY; a size below the least is EINVAL; bytes beyond the known struct
//! must be 0 (E2BIG); bytes that an older program does not have count as 0. A reply is as much of
//! the struct as the program has.
//!
//! A number outside the table is a command of a VFIO container: see `container.rs`. IOMMU_TEST_CMD is
//! ENOTTY, as in a kernel without its self-test, unless a back end adds it ([`Extension`]).

use std::{fmt, mem::size_of, sync::Arc};

use ioasid_iommufd::Context;

use crate::{
    CallError, Program,
    error::{FieldError, RequestError},
    fields::{Described, Names},
    spec::iommufd as spec,
    table::{self, File, Row},
};

mod call;
mod container;
mod dirty;
mod events;
mod hwpt;
mod ioas;
mod nesting;
mod object;

pub use call::Call;

type Handler = fn(&Call<'_>) -> Result<u64, CallError>;

/// One ioctl of `/dev/iommu`.
pub type Command = table::Command<Handler>;

/// A command whose struct never grew.
const fn command<T: Described>(nr: u32, name: &'static str, run: Handler) -> Command {
    grown::<T>(nr, name, size_of::<T>(), run)
}

/// A command whose struct grew from `min_size`.
const fn grown<T: Described>(
    nr: u32,
    name: &'static str,
    min_size: usize,
    run: Handler,
) -> Command {
    Command::with::<T>(spec::TYPE << 8 | nr, name, min_size, run)
}

/// The number of IOMMU_DESTROY.
const DESTROY: u32 = 0x80;

/// Every ioctl of Linux 7.2, by number and without gaps from [`spec::BASE`].
pub const COMMANDS: &[Command] = &[
    command::<spec::Destroy>(DESTROY, "DESTROY", object::destroy),
    command::<spec::IoasAlloc>(0x81, "IOAS_ALLOC", ioas::alloc),
    command::<spec::IoasAllowIovas>(0x82, "IOAS_ALLOW_IOVAS", ioas::allow_iovas),
    command::<spec::IoasCopy>(0x83, "IOAS_COPY", ioas::copy),
    command::<spec::IoasIovaRanges>(0x84, "IOAS_IOVA_RANGES", ioas::iova_ranges),
    command::<spec::IoasMap>(0x85, "IOAS_MAP", ioas::map),
    command::<spec::IoasUnmap>(0x86, "IOAS_UNMAP", ioas::unmap),
    command::<spec::Opt>(0x87, "OPTION", object::option),
    command::<spec::VfioIoas>(0x88, "VFIO_IOAS", object::vfio_ioas),
    grown::<spec::HwptAlloc>(0x89, "HWPT_ALLOC", 24, hwpt::alloc),
    grown::<spec::HwInfo>(0x8a, "GET_HW_INFO", 32, hwpt::hw_info),
    command::<spec::HwptSetDirtyTracking>(0x8b, "HWPT_SET_DIRTY_TRACKING", dirty::set_tracking),
    command::<spec::HwptGetDirtyBitmap>(0x8c, "HWPT_GET_DIRTY_BITMAP", dirty::get_bitmap),
    command::<spec::HwptInvalidate>(0x8d, "HWPT_INVALIDATE", nesting::invalidate),
    command::<spec::FaultAlloc>(0x8e, "FAULT_QUEUE_ALLOC", events::fault_queue_alloc),
    command::<spec::IoasMapFile>(0x8f, "IOAS_MAP_FILE", ioas::map_file),
    grown::<spec::ViommuAlloc>(0x90, "VIOMMU_ALLOC", 24, nesting::viommu_alloc).partial(),
    command::<spec::VdeviceAlloc>(0x91, "VDEVICE_ALLOC", nesting::vdevice_alloc).partial(),
    command::<spec::IoasChangeProcess>(0x92, "IOAS_CHANGE_PROCESS", object::change_process),
    grown::<spec::VeventqAlloc>(0x93, "VEVENTQ_ALLOC", 28, events::veventq_alloc).partial(),
    command::<spec::HwQueueAlloc>(0x94, "HW_QUEUE_ALLOC", nesting::hw_queue_alloc).partial(),
];

/// A command that a back end adds to those of Linux.
pub trait Extension: Send + Sync + fmt::Debug {
    /// Its number, name and sizes; the number is none of [`COMMANDS`].
    fn command(&self) -> &'static Command;

    /// Runs it. The struct has been read.
    ///
    /// # Errors
    /// What the program is to see.
    fn run(&self, call: &Call<'_>) -> Result<u64, CallError>;
}

impl Command {
    /// The command of an [`Extension`] whose struct grew from `min_size`.
    pub const fn extension<T: Described>(nr: u32, name: &'static str, min_size: usize) -> Self {
        grown::<T>(nr, name, min_size, not_here)
    }
}

/// As [`ioctl`], with one more command.
///
/// # Errors
/// As [`ioctl`].
pub fn extended_ioctl(
    extension: &dyn Extension,
    context: &Arc<Context>,
    cmd: u32,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    let command = extension.command();
    if cmd & 0xff != command.request & 0xff {
        return ioctl(context, cmd, arg, program);
    }
    extension.run(&Call::read(context, command, cmd, arg, program)?)
}

/// A command of an [`Extension`], without it.
fn not_here(call: &Call<'_>) -> Result<u64, CallError> {
    Err(unknown(call.request()))
}

/// What a field of a command of `/dev/iommu` may not be: EOPNOTSUPP, for a later version may know it.
fn supported(checked: Result<(), FieldError>) -> Result<(), CallError> {
    Ok(checked.map_err(RequestError::NotSupported)?)
}

/// A value of a field that none of `known` is.
fn no_value(field: &'static str, value: impl Into<u64>, known: Names) -> CallError {
    let value = value.into();
    RequestError::NotSupported(FieldError::Value {
        field,
        value,
        known,
    })
    .into()
}

/// No command of this file has the number.
fn unknown(request: u32) -> CallError {
    let file = File::Iommufd;
    RequestError::UnknownCommand { file, request }.into()
}

/// As documents show them, with those of a VFIO container.
pub(crate) fn rows() -> impl Iterator<Item = Row> {
    table::rows(File::Iommufd, COMMANDS).chain(container::rows())
}

/// The table has no gaps, so a number is an index. Whether the rest of the request is right too shows
/// when the struct's size has been read.
fn find(cmd: u32) -> Option<&'static Command> {
    let index = (cmd & 0xff).checked_sub(spec::BASE)?;
    COMMANDS.get(usize::try_from(index).ok()?)
}

/// The kernel's name of the ioctl `cmd`, without `IOMMU_`, for messages.
pub fn command_name(cmd: u32) -> Option<&'static str> {
    let command = find(cmd).filter(|command| command.request == cmd)?;
    Some(command.name)
}

/// Whether the ioctl `cmd` is IOMMU_DESTROY.
pub const fn is_destroy(cmd: u32) -> bool {
    cmd == spec::TYPE << 8 | DESTROY
}

/// Runs the ioctl `cmd` with the argument `arg` on `context`, for `program`.
///
/// # Errors
/// What the kernel would answer.
pub fn ioctl(
    context: &Arc<Context>,
    cmd: u32,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    let Some(command) = find(cmd) else {
        return container::ioctl(context, cmd, arg, program);
    };
    let call = Call::read(context, command, cmd, arg, program)?;
    (command.handler)(&call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_dense_and_its_structs_fit_the_buffer() {
        for (index, command) in COMMANDS.iter().enumerate() {
            assert_eq!(
                command.request as usize & 0xff,
                spec::BASE as usize + index,
                "{}",
                command.name
            );
            assert!(command.min_size <= command.size && command.size <= call::MAX_SIZE);
            assert_eq!(command_name(command.request), Some(command.name));
        }
    }
}
