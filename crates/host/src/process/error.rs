//! Why a process cannot be looked into.

use rustix::io::Errno;

/// Why a process could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// It has ended (ESRCH).
    #[error("the process has ended")]
    Gone,
    /// The kernel does not let us look into it: it is not dumpable, or Yama forbids it (EPERM).
    #[error("not allowed to look into the process (not dumpable, or Yama's ptrace_scope)")]
    Denied(#[source] Errno),
    /// No file descriptor or no memory left on our side (ENOMEM).
    #[error("out of file descriptors or memory")]
    NoMemory(#[source] Errno),
    /// `/proc` or a pidfd fails in another way (ESRCH, as for one that has ended).
    #[error("the process cannot be opened: {0}")]
    Failed(Errno),
}

impl From<Errno> for ProcessError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::SRCH | Errno::NOENT => ProcessError::Gone,
            Errno::ACCESS | Errno::PERM => ProcessError::Denied(errno),
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => ProcessError::NoMemory(errno),
            other => ProcessError::Failed(other),
        }
    }
}
