//! The child side: what happens between `fork` and the program's first instruction.
//!
//! The executable that holds this crate runs itself again under a hidden verb, and that process
//! calls [`main`]. It has one thread, which matters: a user namespace cannot be entered otherwise.
//!
//! 1. The description of `/dev` and `/sys` arrives on an inherited socket.
//! 2. A user and mount namespace is made; a mount namespace alone where we are root already. For the
//!    former a child tries it first: where it is refused half-way, there is no way back. If it is
//!    refused, step 3 is left out, and the filter asks about every path instead.
//! 3. `/dev` becomes a tmpfs with the host's nodes, bound or linked, and placeholder files for ours;
//!    `/sys` a tmpfs that mirrors the host's and has our devices in it.
//! 4. The seccomp filter is installed, and its listener goes to the session over the socket.
//! 5. A greeting goes through the filter and comes back, so that a machine that cannot read this
//!    process's memory shows now, in words, and not later as ENOTTY.
//! 6. `execve`, with the uid it had and without the capabilities that the namespace gave.

mod dev;
mod error;
mod namespace;
mod path;
pub(crate) mod preload;
pub(crate) mod remount;
mod stand_in;
mod sysfs;
mod terminals;
mod umask;
mod view;
pub(crate) mod words;

use std::{
    ffi::OsString,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

pub use error::{LaunchError, namespace_hint};
use rustix::fs::OFlags;
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
    let place = WorkingDirectory::now();
    let entered = match mode.as_ref().and_then(|mode| mode.to_str()) {
        Some(NAMESPACES_IF_ALLOWED) => namespace::enter()?,
        Some(NO_NAMESPACES) => Err("it was asked for".to_owned()),
        _ => return Err(LaunchError::Usage),
    };
    let cover = match entered {
        Ok(cover) => cover,
        Err(reason) => return Ok(Mode::Paths { reason }),
    };
    let placeholders = dev::build(cover, &description.nodes, &description.groups);
    let placeholders = placeholders.map_err(LaunchError::Dev)?;
    let sys = sysfs::build(&description.sysfs)?;
    place.restore();
    Ok(Mode::Namespaces { placeholders, sys })
}

/// Where the program is to start.
struct WorkingDirectory {
    path: Option<PathBuf>,
    directory: rustix::io::Result<OwnedFd>,
}

impl WorkingDirectory {
    fn now() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        WorkingDirectory {
            path: std::env::current_dir().ok(),
            directory: rustix::fs::open(".", flags, rustix::fs::Mode::empty()),
        }
    }

    /// Goes there again. One under `/dev` or `/sys` is the covered one now and looked up again; if it
    /// no longer exists, staying in the covered one is what is left.
    fn restore(self) {
        let _ = self.directory.and_then(rustix::process::fchdir);
        if let Some(path) = self.path
            && [Path::new("/dev"), Path::new("/sys")]
                .iter()
                .any(|covered| path.starts_with(covered))
        {
            let _ = std::env::set_current_dir(&path);
        }
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
    let arguments: Vec<_> = words.collect();
    let preload = preload.map(|value| (preload::VARIABLE, value));
    let error = path::execute(&program, &arguments, preload);
    let name = program.to_string_lossy().into_owned();
    if error.kind() == io::ErrorKind::NotFound {
        Err(LaunchError::NotFound(name))
    } else {
        Err(LaunchError::NotExecutable(name, error))
    }
}
