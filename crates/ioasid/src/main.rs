//! The program `ioasid` with the device models of this project.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ioasid::main()
}
