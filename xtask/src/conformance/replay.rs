//! The calls of a run, again on a fresh machine.

use std::process::Command;

use anyhow::Result;

use super::launch::{self, Limits, Outcome};

/// The option of `ioasid run` that keeps the calls, in the folder where it runs.
pub(crate) const OPTION: &str = "--trace=run.trace";

/// Replays what [`OPTION`] has kept with `ioasid`: whether every call did the same.
pub(crate) fn run(mut ioasid: Command, limits: &Limits<'_>) -> Result<bool> {
    ioasid.args(["replay", "run.trace"]);
    let ended = launch::run(ioasid, limits)?;
    for line in ended.output.lines() {
        println!("replay: {line}");
    }
    let good = matches!(ended.outcome, Outcome::Ended(status) if status.success());
    if !good {
        println!("replay: {}", ended.outcome);
    }
    Ok(good)
}
