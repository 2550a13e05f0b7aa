//! The way of a device to memory: ports, guards and what they keep.

mod bytes;
pub(crate) mod inside;
mod nested;
pub(crate) mod port;
mod recent;
mod remote;
pub(crate) mod tlb;
pub(crate) mod transfer;
mod view;
mod walks;
pub(crate) mod write_watch;
