//! The calls of a run, again on a fresh machine.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    installation::Installation,
    launch::{self, Limits, Outcome},
};

/// The option of `ioasid run` that keeps the calls, in the folder where it runs.
pub(crate) const OPTION: &str = "--trace=run.trace";

/// Replays what [`OPTION`] has kept: whether every call did the same. A trace that has lost lines, on a host
/// too busy to write them, proves nothing, and its replay is shown only.
pub(crate) fn run(installed: &Installation, ioasid: &Path, limits: &Limits<'_>) -> Result<bool> {
    let mut command = installed.ioasid(ioasid);
    command.args(["replay", "run.trace"]);
    let ended = launch::run(command, limits)?;
    for line in ended.output.lines() {
        println!("replay: {line}");
    }
    if matches!(ended.outcome, Outcome::Ended(status) if status.success()) {
        return Ok(true);
    }
    println!("replay: {}", ended.outcome);
    let whole = is_whole(&installed.home().join("run.trace"))?;
    if !whole {
        println!("replay: not judged, since the trace has lost lines");
    }
    Ok(!whole)
}

/// Whether no line of a trace was lost.
fn is_whole(trace: &Path) -> Result<bool> {
    let file = File::open(trace).with_context(|| format!("opening {}", trace.display()))?;
    for line in BufReader::new(file).lines() {
        if line?.starts_with(r#"{"kind":"lost""#) {
            return Ok(false);
        }
    }
    Ok(true)
}
