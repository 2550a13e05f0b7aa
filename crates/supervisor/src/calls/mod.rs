//! The system calls that a session answers.
//!
//! [`table`] is the list: for each call its number, when the filter asks the session about it, and
//! what its registers mean. [`filter`] is made from it, the session dispatches by it, and the text
//! `intercepted.md`, which stands in the documentation of [`filter`], is checked against it.

mod assembler;
pub(crate) mod call;
pub mod filter;
pub(crate) mod greeting;
pub(crate) mod table;
