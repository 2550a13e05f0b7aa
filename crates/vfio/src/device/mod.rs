//! The parts of one device, each owned by a type of its own.
//!
//! * `core`: all parts, and what concerns several of them: reset and release.
//! * `hardware`: the model and how it reaches memory; `gate`: what excludes what.
//! * `registers`: accesses to regions; [`region`], [`irq`]: the region and interrupt indexes.
//! * `migration`, `dma_log`, `low_power`, `ioeventfd`, `token`: one feature each.
//! * `users`: open files and the one that has bound the device; `binding`: the device in an iommufd
//!   context; `usage`: one use of the device from begin to end.
//! * `watched`: what a trace is told of it.

pub(crate) mod binding;
pub(crate) mod core;
mod dma_log;
mod gate;
mod hardware;
mod ioeventfd;
pub mod irq;
mod low_power;
mod migration;
pub mod region;
pub(crate) mod registers;
pub(crate) mod token;
pub(crate) mod usage;
mod users;
mod watched;

pub(crate) use self::watched::Watched;
pub use self::{
    binding::{UserPasid, UserPasids},
    ioeventfd::StoreRequest,
    migration::{MAX_STATE, MigrationData, MigrationState},
    registers::{MapRange, MapRequest},
    token::Token,
};
pub use crate::base::abi::Feature;
