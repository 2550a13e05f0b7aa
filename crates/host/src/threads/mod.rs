//! The threads of one client, which it may block as long as it likes.

pub(crate) mod closer;
pub(crate) mod eventfds;
pub(crate) mod interrupts;
pub(crate) mod worker;
