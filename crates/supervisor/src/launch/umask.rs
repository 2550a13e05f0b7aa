//! The umask, while directories are built.

use rustix::fs::Mode;

/// Clears the umask of this process, so that what is made has the permissions it is made with. It is
/// what it was when this is dropped. Only for a process of one thread.
pub(crate) struct ClearUmask(Mode);

impl ClearUmask {
    pub(crate) fn new() -> Self {
        ClearUmask(rustix::process::umask(Mode::empty()))
    }
}

impl Drop for ClearUmask {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}
