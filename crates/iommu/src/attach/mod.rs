//! What changes where the DMA of a device goes: attaching and detaching domains, claims of a group,
//! resets, and requests that a device must not issue for a time.

pub(crate) mod bus_master;
pub(crate) mod ownership;
pub(crate) mod reset;
pub(crate) mod source;
