//! The ioctls of a VFIO group, `/dev/vfio/N` (`drivers/vfio/group.c`).

use ioasid_core::host::FdError;
use ioasid_vfio::{ContainerFile, GroupFile};

use super::copy;
use crate::{
    CallError, Program,
    error::{RequestError, Wanted},
    fields::Described,
    memory,
    spec::group as spec,
    table::{self, Argument, File, Row},
};

type Handler = fn(&GroupFile, u64, &dyn Program) -> Result<u64, CallError>;

type Command = table::Command<Handler>;

/// The commands, by number.
const COMMANDS: &[Command] = &[
    command::<spec::GroupStatus>(spec::GET_STATUS, "GET_STATUS", status),
    command::<i32>(spec::SET_CONTAINER, "SET_CONTAINER", set_container),
    Command::plain(
        spec::UNSET_CONTAINER,
        "UNSET_CONTAINER",
        Argument::None,
        |group, _, _| {
            group.unset_container()?;
            Ok(0)
        },
    ),
    Command::plain(
        spec::GET_DEVICE_FD,
        "GET_DEVICE_FD",
        Argument::Text,
        device_fd,
    ),
];

const fn command<T: Described>(request: u32, name: &'static str, handler: Handler) -> Command {
    Command::with::<T>(request, name, size_of::<T>(), handler)
}

/// Bytes of a name with the 0 behind it, at most (`PAGE_SIZE`).
const NAME: usize = 4096;

/// As documents show them.
pub(crate) fn rows() -> impl Iterator<Item = Row> {
    table::rows(File::Group, COMMANDS)
}

/// Runs the ioctl `cmd` with the argument `arg` on an open group, for `program`.
///
/// # Errors
/// What the kernel would answer.
pub fn ioctl(
    group: &GroupFile,
    cmd: u32,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    let command = table::find(COMMANDS, cmd).ok_or(RequestError::UnknownCommand {
        file: File::Group,
        request: cmd,
    })?;
    (command.handler)(group, arg, program)
}

fn status(group: &GroupFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    use spec::GroupStatus;
    let size = size_of::<GroupStatus>();
    let mut answer: GroupStatus = copy::standard(program, arg, size)?;
    let status = group.status()?;
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    answer.flags = flag(status.viable, GroupStatus::VIABLE)
        | flag(status.container_set, GroupStatus::CONTAINER_SET);
    copy::write_back(program, arg, &answer, size)?;
    Ok(0)
}

fn set_container(group: &GroupFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let mut fd = [0; 4];
    memory::read(program, arg, &mut fd)?;
    let (fd, wanted) = (i32::from_ne_bytes(fd), Wanted::Container);
    let file = match program.container(fd) {
        Ok(file) => Some(file),
        // Found out after what the group itself says.
        Err(FdError::WrongType) => None,
        Err(error) => {
            return Err(RequestError::Descriptor { fd, wanted, error }.into());
        }
    };
    group.expect_no_container()?;
    let file: ContainerFile = file.ok_or(RequestError::WrongFile { fd, wanted })?;
    group.set_container(file)?;
    Ok(0)
}

fn device_fd(group: &GroupFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let name = name(arg, program)?;
    let file = group.open_device(&name)?;
    let fd = program.install_device_file(file);
    let fd = fd.map_err(RequestError::NoDescriptor)?;
    Ok(u64::try_from(fd).map_err(|_| RequestError::NoDescriptor(FdError::NotOpen))?)
}

/// The text at `arg`, up to a 0 (`strndup_user`).
fn name(arg: u64, program: &dyn Program) -> Result<Vec<u8>, CallError> {
    let mut name = Vec::new();
    let mut buffer = [0; 256];
    while name.len() < NAME {
        let at = copy::offset(arg, name.len() as u64)?;
        // Not beyond a page whose neighbour need not be there.
        let room = 4096 - at % 4096;
        let len = usize::try_from(room).unwrap_or(0).min(buffer.len());
        let part = buffer.get_mut(..len).unwrap_or_default();
        memory::read(program, at, part)?;
        match part.iter().position(|byte| *byte == 0) {
            Some(end) => {
                name.extend_from_slice(part.get(..end).unwrap_or_default());
                if name.len() >= NAME {
                    break;
                }
                return Ok(name);
            }
            None => name.extend_from_slice(part),
        }
    }
    let limit = NAME as u64;
    Err(RequestError::NameTooLong { limit }.into())
}
