//! The messages that launcher, `run` and a served machine exchange, and the connection that carries
//! them. Nothing here knows how a program is run.

mod channel;
mod description;
mod messages;
pub mod tree;

pub use channel::{Channel, SCHEMA, WireError};
pub(crate) use description::describe;
pub use messages::{
    Attach, Counts, Description, Joined, Library, Mmio, Mode, NodeName, Placeholder, REPLY_BYTES,
    REQUEST_BYTES, Release, Request,
};
