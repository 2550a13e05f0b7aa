//! The program `ioasid` as a library: `run`, `serve`, `inspect` and the rest, for the device models
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
mod look;
mod machines;
mod stdio;
mod trace;
mod verbs;
mod view;

use std::{env::VarError, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use cli::{Cli, Verb};
use stdio::{StdoutError, has_colour, say};
use tracing_subscriber::EnvFilter;

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
/// Exit status if the reader of standard output went away: that of a program which SIGPIPE ends.
const CLOSED: u8 = 128 + 13;

/// The variable that says what is logged, instead of `-v`.
const LOG: &str = "IOASID_LOG";

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
    // The only options before a verb have no values.
    let mut words = std::env::args_os().skip(1);
    let verb = words.find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    let (failed, usage) = match verb {
        Some(verb) if verb == "run" => (RUN_FAILED, RUN_FAILED),
        _ => (FAILED, USAGE),
    };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return ExitCode::from(match (error.print(), error.use_stderr()) {
                (_, true) => usage,
                (Ok(()), false) => 0,
                (Err(error), false) => report(StdoutError::from(error).into(), failed),
            });
        }
    };
    if let Err(error) = start_log(cli.verbose, cli.quiet) {
        say(&format!("ioasid: {error:#}"));
        return ExitCode::from(usage);
    }
    let result = match cli.verb {
        Verb::Run(args) => verbs::run(args, &models, cli.verbose, cli.quiet),
        Verb::Check(args) => check::run_check(args, &models),
        Verb::Serve(args) => verbs::serve(args, &models, cli.verbose),
        Verb::Inspect(args) => look::inspect(&args),
        Verb::Ls(args) => look::ls(&args, &models),
        Verb::Top(args) => look::top(&args),
        Verb::Graph(args) => look::graph(&args),
        Verb::Mdev(args) => verbs::mdev(args),
        Verb::Inject(args) => inject::run(args),
        Verb::Trace(args) => trace::run(args),
        Verb::Replay(args) => trace::replay(&args, &models),
        Verb::Demo(args) => demo::run(&args),
        Verb::Vm(_) => demo::vm::main().map(|()| 0),
        Verb::Launch(_) => Ok(USAGE),
    };
    ExitCode::from(result.unwrap_or_else(|error| report(error, failed)))
}

/// Says what went wrong, in one line; the exit status.
fn report(error: anyhow::Error, failed: u8) -> u8 {
    if let Some(StdoutError::Closed) = error.downcast_ref() {
        return CLOSED;
    }
    say(&format!("ioasid: {error:#}"));
    failed
}

/// Logs to standard error what `verbose` or `IOASID_LOG` says.
///
/// # Errors
/// If `IOASID_LOG` is no filter.
fn start_log(verbose: u8, quiet: bool) -> Result<()> {
    let default = match verbose {
        0 if quiet => "error",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let wanted = match std::env::var(LOG) {
        Ok(wanted) if !wanted.is_empty() => wanted,
        Ok(_) | Err(VarError::NotPresent) => default.to_owned(),
        Err(error) => bail!("{LOG}: {error}"),
    };
    let filter = EnvFilter::builder().parse(&wanted).with_context(|| {
        format!(
            "{LOG}={wanted:?} is no filter: it takes a level (error, warn, info, debug, trace), or \
             TARGET=LEVEL parts with commas between, such as info,ioasid_iommu=trace"
        )
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(has_colour(&std::io::stderr()))
        .with_writer(std::io::stderr);
    let _ = subscriber.without_time().try_init();
    Ok(())
}
