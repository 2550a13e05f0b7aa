//! The child side: what happens between `fork` and the program's first instruction.
//!
//! The executable that holds this crate runs itself again under a hidden verb, and that process
//! calls [`main`]. It has one thread, which matters: a user namespace cannot be entered otherwise.
//!
//! 1. The description of `/dev` and `/sys` arrives on an inherited socket.
//! 2. A user and mount namespace is made; a mount namespace alone where we are root already. A
//!    child tries it first: where it is refused half-way, there is no way back. If it is refused,
//!    step 3 is left out, and the filter asks about every path instead.
//! 3. `/dev` becomes a tmpfs with the host's nodes bound into it and placeholder files for ours;
//!    `/sys` a tmpfs that mirrors the host's and has our devices in it.
//! 4. The seccomp filter is installed, and its listener goes to the session over the socket.
//! 5. A greeting goes through the filter and comes back, so that a machine that cannot read this
//!    process's memory shows now, in words, and not later as ENOTTY.
//! 6. `execve`, with the uid it had and without the capabilities that the namespace gave.

mod dev;
mod error;
mod namespace;
pub(crate) mod preload;
pub(crate) mod remount;
mod stand_in;
mod sysfs;
mod terminals;
pub(crate) mod words;

use std::{
    ffi::OsString,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

pub use error::{LaunchError, namespace_hint};
pub use words::{EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, LINGER, VERB};
use words::{NAMESPACES_IF_ALLOWED, NO_NAMESPACES, REMOUNT, descriptor};

use crate::{
    calls::{
        filter,
        greeting::{ANSWER, QUESTION, REQUEST},
    },
    system::process::greeting_ioctl,
    wire::{Attach, Channel, Description, Mmio, Mode, REPLY_BYTES, Release},
};

/// Runs the hidden verb: `args` are the words after it, `FD MODE PROGRAM [ARG...]`.
///
/// Replaces this process by the program, or says on stderr why not and gives the exit status:
/// 125, 126 or 127. The process must have one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let first = args.next();
    if first.as_ref().is_some_and(|word| word == LINGER) {
        return stand_in::main(args.next());
    }
    if first.as_ref().is_some_and(|word| word == REMOUNT) {
        return remount::main(args.next());
    }
    let mode = args.next();
    match launch(first, mode, args.collect()) {
        Ok(never) => match never {},
        Err(error) => {
            // Nothing is left to do if stderr is closed.
            let _ = writeln!(io::stderr(), "ioasid: {error}");
            if let Some(hint) = error.hint() {
                let _ = writeln!(io::stderr(), "  hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn launch(
    socket: Option<OsString>,
    mode: Option<OsString>,
    program: Vec<OsString>,
) -> Result<std::convert::Infallible, LaunchError> {
    let mut channel = Channel::new(UnixStream::from(descriptor(socket)?));
    let description: Description = channel.receive(REPLY_BYTES)?;

    let mode = build_directories(&description, mode)?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let scope = filter::Scope {
        base: filter::base(limit),
        reach: u32::try_from(description.reach).unwrap_or(u32::MAX),
        status: description.status,
        attributes: description.attributes,
        paths: matches!(mode, Mode::Paths { .. }),
    };
    let listener = filter::install(&filter::program(&scope)).map_err(LaunchError::Filter)?;
    let attach = Attach {
        base: scope.base,
        mode,
        mmio: Mmio::default(),
        explain: false,
        pid: std::process::id(),
    };
    channel.send(&attach, Some(listener.as_fd()))?;
    drop(listener);
    let release: Release = channel.receive(REPLY_BYTES)?;
    greet()?;
    drop(channel);
    execute(program, preload::environment(release.library))
}

/// Builds `/dev` and `/sys`, if this host lets us.
fn build_directories(
    description: &Description,
    mode: Option<OsString>,
) -> Result<Mode, LaunchError> {
    let mode = mode.as_ref().and_then(|mode| mode.to_str());
    let reason = match mode {
        Some(NAMESPACES_IF_ALLOWED) => namespace::refusal(),
        Some(NO_NAMESPACES) => Some("it was asked for".to_owned()),
        _ => return Err(LaunchError::Usage),
    };
    if let Some(reason) = reason {
        return Ok(Mode::Paths { reason });
    }
    let directory = std::env::current_dir().ok();
    namespace::enter()?;
    let placeholders =
        dev::build(&description.nodes, &description.groups).map_err(LaunchError::Dev)?;
    let sys = sysfs::build(&description.sysfs)?;
    return_to(directory);
    Ok(Mode::Namespaces { placeholders, sys })
}

/// A working directory under `/dev` or `/sys` is the covered one now: look it up again.
fn return_to(directory: Option<PathBuf>) {
    if let Some(path) = directory
        && [Path::new("/dev"), Path::new("/sys")]
            .iter()
            .any(|covered| path.starts_with(covered))
    {
        // Staying in the covered directory is what is left if it no longer exists.
        let _ = std::env::set_current_dir(&path);
    }
}

fn greet() -> Result<(), LaunchError> {
    let mut buffer = QUESTION;
    match greeting_ioctl(REQUEST, &mut buffer) {
        Ok(_) if buffer == ANSWER => Ok(()),
        Ok(_) => Err(LaunchError::NoMemoryAccess(
            io::ErrorKind::InvalidData.into(),
        )),
        Err(error) => Err(LaunchError::NoMemoryAccess(error)),
    }
}

/// `preload` is the value of LD_PRELOAD, if it is to have another one than it has.
fn execute(
    words: Vec<OsString>,
    preload: Option<OsString>,
) -> Result<std::convert::Infallible, LaunchError> {
    let mut words = words.into_iter();
    let program = words.next().ok_or(LaunchError::Usage)?;
    // The capabilities in the namespace go with execve, unless they are ambient.
    let _ = rustix::thread::clear_ambient_capability_set();
    let mut command = Command::new(&program);
    command.args(words);
    if let Some(preload) = preload {
        command.env(preload::VARIABLE, preload);
    }
    let error = command.exec();
    let name = program.to_string_lossy().into_owned();
    if error.kind() == io::ErrorKind::NotFound {
        Err(LaunchError::NotFound(name))
    } else {
        Err(LaunchError::NotExecutable(name, error))
    }
}
