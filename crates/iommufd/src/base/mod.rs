//! What every other folder uses: ids and their uses, errors, flags, files of events, and data that
//! programs hand over.

pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod flags;
pub(crate) mod id;
pub(crate) mod queue;
pub(crate) mod user;
