//! What this crate promises about other processes, shown with real ones.
#![allow(unsafe_code, missing_docs, clippy::print_stderr, clippy::unwrap_used)]

mod child;
mod dma;
mod interrupts;
mod leaks;
mod memory;
mod process;
mod registers;
mod silent;
mod unprivileged;
mod workers;
