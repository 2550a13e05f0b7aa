//! Accesses to mapped registers, and what else the library in a program asks.

/// Why the library that catches accesses to mapped registers gets no answer. For an access the program
/// sees the signal that it would get without the machine: SIGBUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// At this address no register is mapped, or not with the permission (EFAULT).
    #[error("no register is mapped at {address:#x} that could be accessed so with {size} bytes")]
    NotMapped {
        /// The program's address.
        address: u64,
        /// Bytes of the access.
        size: u64,
    },
    /// The instruction is not one that is emulated (EFAULT).
    #[error("the instruction that accesses the register at {address:#x} is not emulated")]
    Instruction {
        /// The program's address of the register.
        address: u64,
    },
    /// A question that no library asks (EINVAL).
    #[error("{shape:#x} is no question about a register")]
    Malformed {
        /// What it was.
        shape: u64,
    },
    /// The file stands for no node (ENOENT).
    #[error("the file is no node of the machine")]
    NoNode,
    /// Shared pages would not be watched on this host (ENODEV).
    #[error("the host has no processor to spare for watching a shared page")]
    NotWatched,
    /// The process has a shared page (EBUSY).
    #[error("the process has a shared page already")]
    HasPage,
    /// As many processes as can be watched have a shared page (ENOSPC).
    #[error("{limit} processes have a shared page, as many as can be watched")]
    TooManyPages {
        /// The most.
        limit: usize,
    },
    /// The kernel does not let the machine look into the process (EPERM).
    #[error("the machine may not read the memory of the process")]
    MemoryClosed,
}
