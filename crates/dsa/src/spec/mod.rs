//! The hardware interface as types: registers, tables, descriptors, completion records.
//!
//! Layouts and numbers follow the Intel Data Streaming Accelerator Architecture Specification
//! (order number 341204, "the specification" below) and agree with what Linux calls them in
//! `drivers/dma/idxd/registers.h` and `include/uapi/linux/idxd.h`. No behaviour lives here.

pub mod command;
pub mod completion;
pub mod descriptor;
pub mod event_log;
pub mod map;
pub mod registers;
pub mod tables;

pub use command::{Cmd, CmdStatus, Command, CommandError};
pub use completion::{CompletionRecord, Status};
pub use descriptor::{Descriptor, Flags, Opcode};
pub use event_log::Event;
pub use tables::{GroupConfig, WqConfig, WqState};
