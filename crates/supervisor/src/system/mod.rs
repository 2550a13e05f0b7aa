//! System calls that no safe wrapper covers, typed. Nothing here knows of a machine.

pub mod listener;
pub(crate) mod process;
pub(crate) mod ptrace;
mod ret;
pub(crate) mod seccomp;
pub(crate) mod shared_page;
pub(crate) mod signals;
