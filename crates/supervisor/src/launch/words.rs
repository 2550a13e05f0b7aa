//! The words of the launcher's command line, and its exit statuses.

use std::{
    ffi::OsString,
    os::fd::{OwnedFd, RawFd},
};

use super::error::LaunchError;
use crate::system::process::inherited;

/// The hidden verb.
pub const VERB: &str = "__launch";

/// After the descriptor: namespaces if the host allows them, or never.
pub(crate) const NAMESPACES_IF_ALLOWED: &str = "auto";
pub(crate) const NO_NAMESPACES: &str = "no-namespaces";

/// Instead of a descriptor: keep answering a listener whose machine is gone.
pub const LINGER: &str = "--linger";

/// Instead of a descriptor: mount a sysfs for a program that runs already.
pub(crate) const REMOUNT: &str = "--sysfs";

/// Exit status: we failed ourselves.
pub const EXIT_FAILED: u8 = 125;
/// Exit status: the program was found and could not be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Exit status: there is no such program.
pub const EXIT_NOT_FOUND: u8 = 127;

/// The inherited socket, which the program must not inherit.
pub(crate) fn descriptor(word: Option<OsString>) -> Result<OwnedFd, LaunchError> {
    let number: Option<RawFd> = word.and_then(|w| w.to_str()?.parse().ok());
    let fd = number
        .and_then(|n| inherited(n).ok())
        .ok_or(LaunchError::Usage)?;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|_| LaunchError::Usage)?;
    Ok(fd)
}
