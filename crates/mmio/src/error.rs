//! Why an instruction was not carried out.

use crate::space::Fault;

/// Why an instruction was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end before the instruction does.
    #[error("the instruction is longer than the bytes at hand")]
    Truncated,
    /// The bytes are no instruction: #UD, SIGILL on Linux.
    #[error("no valid instruction")]
    Invalid,
    /// An instruction that this crate does not carry out.
    #[error("an instruction that is not emulated")]
    Unsupported,
    /// The instruction demands an alignment that the address does not have: #GP, SIGSEGV on Linux.
    #[error("{address:#x} is not aligned to {alignment} bytes")]
    Misaligned {
        /// The address of the operand.
        address: u64,
        /// What it should be a multiple of, in bytes.
        alignment: u64,
    },
    /// The instruction is for privileged code, or its operand breaks a rule: #GP, SIGSEGV on Linux.
    #[error("a general protection fault")]
    Privileged,
    /// A division by zero, or whose quotient is too large: #DE, SIGFPE on Linux.
    #[error("a division by zero or out of range")]
    Divide,
    /// Memory did not answer.
    #[error(transparent)]
    Fault(#[from] Fault),
}
