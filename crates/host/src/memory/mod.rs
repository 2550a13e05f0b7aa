//! The memory of one client, registered as system physical addresses.
//!
//! Each registration takes windows of 1 GiB ([`windows`]). A memory file is mapped here ([`mod@file`],
//! [`file_memory`]); other shared memory is reached through a process that maps it ([`shared`]);
//! private memory is read and written where it is ([`address_space`]); device registers are
//! accessed by their owner ([`registers`]).

pub(crate) mod address_space;
pub(crate) mod agent;
pub(crate) mod file;
pub(crate) mod file_memory;
pub(crate) mod maps;
pub(crate) mod registers;
pub(crate) mod shared;
pub(crate) mod windows;
