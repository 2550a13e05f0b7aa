//! Floor 7: what only an operating system can do, and nothing that knows about devices.
//!
//! A [`Client`] is one program tree: everything that belongs to it and to nobody else. It has two
//! threads of its own, because both things that they do can block for as long as the client likes:
//! a [`ClientWorker`] that touches the client's private memory, and a thread that writes to its
//! eventfds; a third listens to its eventfds, if there is anything to listen to, and descriptors
//! that are not what they should be are closed on threads for that alone ([`Closer`]). A
//! [`Process`] is one process of the client with its address space, held by open files and never by
//! a number that can be reused.
//!
//! Memory reaches the lower floors in two ways: a file that the client holds is mapped shared and
//! copied directly ([`FileMemory`]); everything else is read and written through the client's
//! `/proc/PID/mem`, on the client's worker. Copies of mapped files survive a truncation
//! ([`RecoveringCopy`]).
//!
//! The invariant of this crate: **whatever a client gives - an address, a file descriptor, a file
//! that never answers, a counter that is full - costs that client alone.** No call here waits for a
//! client, except on that client's own threads and in the reads and writes that a [`Process`] and
//! its pages offer, which only the thread that serves the client makes.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("ioasid-host needs Linux on x86-64");

mod client;
mod memory;
mod process;
mod system;
mod threads;

pub use client::{Client, Limits, MemoryFileId, ReceivedFd, prepare_received};
pub use memory::{agent::CopyAgent, file_memory::FileMemory, registers::Registers};
pub use process::{
    error::ProcessError,
    process::{MappedFile, Process, can_take_descriptors},
};
pub use system::{confine::confine, copy::RecoveringCopy, service};
pub use threads::{closer::Closer, interrupts::EventFd, worker::ClientWorker};
