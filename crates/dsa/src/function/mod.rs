//! The PCI function of one owner: what it sees of a device apart from its queues. The whole device
//! has one, and so has each child.

pub(crate) mod endpoint;
pub(crate) mod event_log;
pub(crate) mod registers;
