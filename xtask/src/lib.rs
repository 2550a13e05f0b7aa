//! The parts of the development tasks that tests use too: the floor rule, between crates and inside.
#![forbid(unsafe_code)]

pub mod floors;
pub mod modules;
