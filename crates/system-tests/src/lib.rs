//! Tests with real programs: `ioasid` as it is installed, the programs that it runs, and virtual
//! machines.
//!
//! The tests stand in `tests/`, one program for each kind: `end_to_end`
//! with an ordinary client, `places` where programs live, `interop` with programs of others, `guests`
//! with stock guests under a stock QEMU. Here is what they share: the [`runner`], an
//! [`installation`] that every user can reach, a machine that is [`served`], [`pages`] of the
//! documentation, and [`guests`].
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "tests for a terminal")]

pub mod guests;
pub mod installation;
pub mod pages;
pub mod process;
pub mod runner;
pub mod served;
