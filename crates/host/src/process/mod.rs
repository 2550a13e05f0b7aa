//! The processes of one client, and their address ranges as sources of pages.

mod allowed;
mod caller;
pub(crate) mod error;
mod pages;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
pub(crate) mod process;
pub(crate) mod processes;
pub(crate) mod procfs;
pub(crate) mod resources;
