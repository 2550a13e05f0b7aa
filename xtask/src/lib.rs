//! The parts of the development tasks that tests use too: the floor rule.
#![forbid(unsafe_code)]

pub mod floors;
