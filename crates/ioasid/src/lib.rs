//! The program `ioasid` as a library: `run`, `serve`, `inspect`, `mdev`, `inject`, `demo`, for the device models
//! of this project and for yours.
//!
//! A program with device models of its own is this one with other [`Models`]:
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     ioasid::main_with(ioasid::standard())
//! }
//! ```
//! Each model registers itself by `with`: see [`Model`] and `docs/how-to/write-a-device.md`. The
//! crates that a model is written against are re-exported here, so that one dependency is enough.

#![forbid(unsafe_code)]

mod catalog;
mod check;
mod cli;
mod demo;
mod explain;
mod find;
mod guests;
mod inject;
mod machines;
mod trace;
mod tree;
mod verbs;
mod view;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use cli::{Cli, Verb};

pub use ioasid_core as core;
pub use ioasid_iommu as iommu;
pub use ioasid_machine::{
    Model, Models,
    model::{self, Built, Driver, ModelError, Site},
    models::standard,
};
pub use ioasid_vfio as vfio;

/// Exit status of `run` when ioasid itself failed, as `env` and `timeout` have it.
const RUN_FAILED: u8 = 125;
/// From here on `-v` shows each call.
const CALLS_SHOWN: u8 = 2;
/// Exit status of the other verbs when something failed.
const FAILED: u8 = 1;
/// Exit status for a command line that makes no sense.
const USAGE: u8 = 2;

/// The whole program with the models of this project.
pub fn main() -> ExitCode {
    main_with(standard())
}

/// The whole program: reads the command line, does what it says, and returns the exit status.
///
/// `models` are those that machine files and `--device` can name. Call it first in `main`, before
/// anything is opened and any thread is started: `run` starts this executable again, through
/// `/proc/self/exe`, as the launcher of programs, and that call ends in one of them; `demo` starts it
/// once more for each of its VMs.
pub fn main_with(models: Models) -> ExitCode {
    // The launcher replaces this process: it must not have started anything.
    let mut words = std::env::args_os().skip(1);
    if words
        .next()
        .is_some_and(|verb| verb == ioasid_supervisor::launch::VERB)
    {
        return ioasid_supervisor::launch::main(words);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let is_run = std::env::args_os().nth(1) == Some(OsString::from("run"));
            let _ = error.print();
            return ExitCode::from(match (error.use_stderr(), is_run) {
                (false, _) => 0,
                (true, true) => RUN_FAILED,
                (true, false) => USAGE,
            });
        }
    };
    start_log(cli.verbose, cli.quiet);
    let failed = if matches!(cli.verb, Verb::Run(_)) {
        RUN_FAILED
    } else {
        FAILED
    };
    let result = match cli.verb {
        Verb::Run(args) => verbs::run(args, &models, cli.verbose, cli.quiet),
        Verb::Check(args) => check::run_check(args, &models),
        Verb::Serve(args) => verbs::serve(args, &models, cli.verbose),
        Verb::Inspect(args) => verbs::inspect(args),
        Verb::Mdev(args) => verbs::mdev(args),
        Verb::Inject(args) => inject::run(args),
        Verb::Trace(args) => trace::run(args),
        Verb::Replay(args) => trace::replay(&args, &models),
        Verb::Demo(args) => demo::run(&args),
        Verb::Vm(_) => demo::vm::main().map(|()| 0),
        Verb::Launch(_) => Ok(USAGE),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("ioasid: {error:#}"));
            ExitCode::from(failed)
        }
    }
}

/// One line on stderr; a closed stderr is no reason to fail.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Text on standard output, for which the verb was asked.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}

fn start_log(verbose: u8, quiet: bool) {
    let default = match verbose {
        0 if quiet => "error",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("IOASID_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = subscriber.without_time().try_init();
}
