//! `cargo xtask e2e`: real programs, end to end. Each claim is checked against the release build, in
//! a short form unless `--long` is given; started as root, also for an unprivileged user.

mod claims;
pub(crate) mod stage;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use stage::Stage;

/// `cargo xtask e2e`.
#[derive(Args, Debug)]
pub(crate) struct E2e {
    /// As often as the claims say, not a small sample.
    #[arg(long)]
    long: bool,
    /// Only claims whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Checks every claim.
pub(crate) fn run(arguments: &E2e) -> Result<()> {
    let stage = Stage::build(arguments.long)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, claim) in claims::CLAIMS {
        if arguments
            .only
            .as_ref()
            .is_some_and(|text| !name.contains(text.as_str()))
        {
            continue;
        }
        let start = Instant::now();
        let result = claim(&stage);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(what) => {
                passed += 1;
                println!("  ok   {name} ({seconds:.1} s)\n       {what}");
            }
            Err(error) => {
                failed += 1;
                println!("  FAIL {name} ({seconds:.1} s)\n       {error:#}");
            }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if failed > 0 || passed == 0 {
        bail!("{failed} end-to-end claims failed");
    }
    Ok(())
}
