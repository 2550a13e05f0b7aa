//! The child side: what happens between `fork` and the program's first instruction.
//!
//! The executable that holds this crate runs itself again under a hidden verb, and that process
//! calls [`main`]. It has one thread, which matters: a user namespace cannot be entered otherwise.
//!
//! 1. The description of `/dev` and `/sys` arrives on an inherited socket.
//! 2. A user and mount namespace is made; a mount namespace alone where we are root already. A child
//!    tries it first: where it is refused half-way, there is no way back. If it is refused, step 3 is
//!    left out, and the filter asks about every path instead.
//! 3. `/dev` becomes a tmpfs with the host's nodes bound into it and placeholder files for ours;
//!    `/sys` a tmpfs that mirrors the host's and has our devices in it.
//! 4. The seccomp filter is installed, and its listener goes to the session over the socket.
//! 5. A greeting goes through the filter and comes back, so that a machine that cannot read this
//!    process's memory shows now, in words, and not later as ENOTTY.
//! 6. `execve`, with the uid it had and without the capabilities that the namespace gave.

mod dev;
mod error;
mod namespace;
pub(crate) mod remount;
mod sysfs;
mod terminals;

use std::{
    ffi::OsString,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

pub use error::LaunchError;
use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
};

use crate::{
    filter,
    listener::Listener,
    preload, sys,
    wire::{Attach, Channel, Description, Mmio, Mode, REPLY_BYTES, Release},
};

/// The hidden verb.
pub const VERB: &str = "__launch";

/// After the descriptor: namespaces if they can be had, or never.
pub(crate) const NAMESPACES_IF_ALLOWED: &str = "auto";
pub(crate) const NO_NAMESPACES: &str = "no-namespaces";

/// Instead of a descriptor: keep answering a listener whose machine is gone.
pub const LINGER: &str = "--linger";

/// Instead of a descriptor: mount a sysfs for a program that runs already.
const REMOUNT: &str = "--sysfs";

/// Exit status: we failed ourselves.
pub const EXIT_FAILED: u8 = 125;
/// Exit status: the program was found and could not be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Exit status: there is no such program.
pub const EXIT_NOT_FOUND: u8 = 127;

/// The greeting's request number: our type byte, with a number that no ioctl of Linux has.
pub(crate) const GREETING: u32 = filter::TYPE_BYTE | 0xfe;
/// What the launcher writes into the greeting.
pub(crate) const GREETING_QUESTION: [u8; 8] = *b"ioasid ?";
/// What the session answers.
pub(crate) const GREETING_ANSWER: [u8; 8] = *b"ioasid !";

/// Runs the hidden verb: `args` are the words after it, `FD MODE PROGRAM [ARG...]`.
///
/// Replaces this process by the program, or says on stderr why not and gives the exit status:
/// 125, 126 or 127. The process must have one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let first = args.next();
    if first.as_ref().is_some_and(|word| word == LINGER) {
        return linger(args.next());
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

    let mode = settle(&description, mode)?;
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
    };
    channel.send(&attach, Some(listener.as_fd()))?;
    drop(listener);
    let release: Release = channel.receive(REPLY_BYTES)?;
    greet()?;
    drop(channel);
    execute(program, preload::environment(release.library))
}

/// Builds `/dev` and `/sys`, if this host lets us.
fn settle(description: &Description, mode: Option<OsString>) -> Result<Mode, LaunchError> {
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

/// The inherited socket, which the program must not inherit.
fn descriptor(word: Option<OsString>) -> Result<OwnedFd, LaunchError> {
    let number: Option<RawFd> = word.and_then(|w| w.to_str()?.parse().ok());
    let fd = number
        .and_then(|n| sys::inherited(n).ok())
        .ok_or(LaunchError::Usage)?;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|_| LaunchError::Usage)?;
    Ok(fd)
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
    let mut buffer = GREETING_QUESTION;
    match sys::greeting_ioctl(GREETING, &mut buffer) {
        Ok(_) if buffer == GREETING_ANSWER => Ok(()),
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

/// Answers for a machine that is gone, until the last process of the tree is: without this, every
/// filtered call of a daemon that outlives `ioasid run` would fail with ENOSYS. Its own files
/// keep working; ours are dead.
fn linger(word: Option<OsString>) -> ExitCode {
    let Ok(fd) = descriptor(word) else {
        return ExitCode::from(EXIT_FAILED);
    };
    let Ok(listener) = Listener::new(fd) else {
        return ExitCode::from(EXIT_FAILED);
    };
    // The terminal and the pipes of whoever started the program are not ours to keep open.
    if let Ok(null) = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let _ = rustix::process::setsid();
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return ExitCode::from(EXIT_FAILED),
        }
        let events = fds[0].revents();
        if events.contains(PollFlags::IN) {
            match listener.receive() {
                Ok(Some(request)) if request.nr == libc::SYS_ioctl => {
                    listener.fail(request.id, Errno::NODEV.raw_os_error());
                }
                Ok(Some(request)) => listener.proceed(request.id),
                Ok(None) => {}
                Err(_) => return ExitCode::from(EXIT_FAILED),
            }
        } else if events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return ExitCode::SUCCESS;
        }
    }
}
