//! Floor 1: page-table formats and one generic walker.
//!
//! A [`PageTable`] is what a domain stands on: real table memory with the entries that hardware
//! would read, in one of three formats. The bits are in [`spec`], a format is one small file, and
//! the algorithms (map, unmap, walk, dirty read-and-clear, cut) are written once for all of them.
//!
//! * [`config`]: which format, and its names. [`custom`]: formats that a back end brings along.
//! * [`table`]: [`PageTable`], which the crate is about: one `match` on the format, no `dyn` below
//!   for those of this crate.
//! * [`first_stage`]: tables of guests, in memory that they write: the rules of a walk, entry by entry.
//! * [`error`]: why a mapping was refused or a walk stopped.
//! * [`spec`]: every bit of every entry, after the format's specification.
//!
//! Invariants: readers take no lock and load each entry once; accessed and dirty bits are set by
//! compare-exchange of the entry that was observed, so an entry that was cleared never comes back;
//! a table that was taken out of the tree is used again only after its owner's barrier
//! ([`PageTable::recycle`]); table memory is freed with the `PageTable`, so a late reader reads an
//! old table, never foreign memory.
//!
//! What never lives here: devices, routes, barriers, system physical memory. An entry's output
//! address is a number to this crate.
//!
//! All ranges are (start, inclusive last).

mod arena;
pub mod config;
pub mod custom;
pub mod error;
pub mod first_stage;
mod format;
mod lines;
pub mod spec;
pub mod table;
mod translation;
mod tree;

pub use arena::FreedTables;
pub use config::{TableConfig, TableFormat};
pub use custom::{CustomFormat, CustomTable};
pub use error::{MapError, WalkFault};
pub use first_stage::{FirstStage, FirstStageFault};
pub use table::PageTable;
pub use translation::{Translation, Unmapped};
