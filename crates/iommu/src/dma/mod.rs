//! The way of a device to memory: ports, guards and what they keep.

pub(crate) mod inside;
pub(crate) mod port;
mod recent;
mod remote;
pub(crate) mod tlb;
pub(crate) mod transfer;
mod view;
pub(crate) mod write_watch;
