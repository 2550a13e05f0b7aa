//! Programs and the machines that serve them: [`run`] starts a program, [`control`] is the socket
//! of a machine that programs can join.

pub mod control;
pub mod run;
