//! Floor 1: what happened in a machine, as lines of JSON.
//!
//! * [`schema`]: the lines, versioned. `docs/trace.schema.json` is the same as a JSON Schema.
//! * [`record`]: keeping lines while they happen: a bounded queue, and one thread that writes.
//! * [`reader`]: reading a trace, with the number of each line. [`filter`]: which of its lines.
//! * [`show`]: a line as text. [`summary`]: the calls by name. [`stats`]: what each device did.
//! * [`chrome`]: the trace for Perfetto and `chrome://tracing`.
//!
//! What never lives here: anything that knows a running machine. It tells what happens as
//! [`ioasid_core::observe`] says it.
//!
//! Invariant: who tells something never waits, whatever becomes of the file. What does not fit in the
//! queue is counted, and the count is in the trace.
#![forbid(unsafe_code)]

pub mod chrome;
pub mod filter;
pub mod reader;
pub mod record;
pub mod schema;
pub mod show;
pub mod stats;
pub mod summary;

pub use filter::Filter;
pub use reader::{ReadError, Reader};
pub use record::{Recorder, Sink};
