//! What one lock protects: the work queues, the descriptors in them, and the commands that wait for
//! those. Engines and portals meet here.

pub(crate) mod commands;
pub(crate) mod job;
pub(crate) mod queue;
pub(crate) mod schedule;
pub(crate) mod session;
pub(crate) mod state;
