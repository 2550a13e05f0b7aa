//! `ioasid` with one device more.

mod adder;
mod model;

use std::process::ExitCode;

fn main() -> ExitCode {
    ioasid::main_with(ioasid::standard().with::<model::AdderModel>())
}
