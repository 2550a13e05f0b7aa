//! The parts of the development tasks that tests use too: the floor rule between crates and inside
//! them, the rules of short files and of errors, the blocks of pages, the workspace and what is fetched into its cache.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool for a terminal")]

pub mod errors;
pub mod fetch;
pub mod floors;
pub mod modules;
pub mod page;
pub mod sizes;
pub mod workspace;
