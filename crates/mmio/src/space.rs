//! Memory as the instruction sees it: registers of devices here, ordinary memory there.

/// Why an access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Nothing is mapped there, or not for this access: a page fault, SIGSEGV on Linux.
    Page,
    /// Something is mapped there and does not answer: SIGBUS on Linux.
    Bus,
}

/// An access that did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{kind:?} fault at {address:#x}")]
pub struct Fault {
    /// First address that could not be reached.
    pub address: u64,
    /// Why.
    pub kind: FaultKind,
}

/// Memory at the addresses of the instruction (linear addresses, segment bases added).
///
/// Each call is one architectural access of 1, 2, 4, 8, 16, 32 or 64 bytes: what the processor would
/// do with one access reaches a register as one. The implementer decides by the address what is a
/// register and what is ordinary memory.
pub trait Space {
    /// Reads `data.len()` bytes.
    ///
    /// # Errors
    /// If they cannot be read.
    fn load(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault>;

    /// Writes `data.len()` bytes.
    ///
    /// # Errors
    /// If they cannot be written; none of them is then.
    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault>;

    /// A non-posted write of a 64-byte command (`enqcmd`): whether the device says *retry*.
    ///
    /// # Errors
    /// If there is nothing that takes commands. (A processor answers *retry* if the address is not a
    /// device's; an implementer does the same by `Ok(true)`.)
    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, Fault>;
}
