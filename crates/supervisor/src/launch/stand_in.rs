//! A process that answers in place of a machine that is gone.

use std::{ffi::OsString, process::ExitCode};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
};

use super::words::{EXIT_FAILED, descriptor};
use crate::system::listener::Listener;

/// Answers for a machine that is gone, until the last process of the tree is: without this, every
/// filtered call of a daemon that outlives `ioasid run` would fail with ENOSYS. Its own files
/// keep working; ours are dead.
pub(crate) fn main(word: Option<OsString>) -> ExitCode {
    let Ok(fd) = descriptor(word) else {
        return ExitCode::from(EXIT_FAILED);
    };
    let Ok(listener) = Listener::new(fd) else {
        return ExitCode::from(EXIT_FAILED);
    };
    // The terminal and the pipes of the program's parent are not to be kept open by this process.
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
