//! `cargo xtask e2e`: real programs, end to end. Each claim is checked against the release build, in
//! a short form unless `--long` is given; started as root, also for an unprivileged user.

mod claims;
pub(crate) mod stage;

use anyhow::Result;
use clap::Args;

use crate::play::play;
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
    let only = arguments.only.as_deref();
    play("end-to-end claims", claims::CLAIMS, only, &stage)
}
