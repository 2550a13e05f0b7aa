//! What the program shows: claims about its devices, each tried in every round.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// How long a device may take for anything: its processors are emulated and shared.
const PATIENCE: Duration = Duration::from_secs(20);

/// A claim about a device `D`, in this round; how many attempts it took.
pub(crate) type Claim<D> = fn(&D, u64) -> Result<u64>;

/// Attempts by claim, or what was wrong.
pub(crate) type Results = BTreeMap<&'static str, Result<u64>>;

/// Plays each claim once.
pub(crate) fn play<D>(
    claims: &[(&'static str, Claim<D>)],
    device: &D,
    round: u64,
    results: &mut Results,
) {
    for (name, claim) in claims {
        let sum = results.entry(name).or_insert(Ok(0));
        if let Ok(before) = sum {
            *sum = claim(device, round).map(|count| *before + count);
        }
    }
}

/// Waits until `done`, looking at a device again and again.
///
/// # Errors
/// If that takes too long.
pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        ensure!(Instant::now() < deadline, "{what} takes too long");
    }
    Ok(())
}
