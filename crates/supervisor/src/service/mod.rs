//! Programs and the machines that serve them: [`run`] starts a program, [`control`] is the socket
//! of a machine that programs can join.

mod client;
pub mod control;
mod place;
pub mod run;
