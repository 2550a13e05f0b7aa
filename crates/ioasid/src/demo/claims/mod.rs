//! The claims, each checked against the running demo: what was done, and what was found.

mod isolation;
mod library;
mod sharing;

use anyhow::Result;

use super::{
    Demo,
    output::{Outcome, Output},
};

/// A check: `Ok` is what was done and measured, `Err` what was wrong instead.
type Check = fn(&mut Demo) -> Result<Result<String, String>>;

/// Checks every claim, in an order in which each finds the demo as it needs it.
pub(crate) fn check(demo: &mut Demo, output: &mut Output) -> Result<()> {
    output.heading("One device, several address spaces");
    all(demo, output, sharing::CLAIMS);
    output.heading("One VM cannot reach another, nor the parent");
    all(demo, output, isolation::CLAIMS);
    output.heading("The layers below");
    all(demo, output, library::CLAIMS);
    Ok(())
}

fn all(demo: &mut Demo, output: &mut Output, claims: &[(&'static str, Check)]) {
    for (claim, check) in claims {
        let result = check(demo).unwrap_or_else(|error| Err(format!("{error:#}")));
        output.claim(Outcome { claim, result });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_claim_fits_a_terminal_of_80_columns() {
        let claims = [sharing::CLAIMS, isolation::CLAIMS, library::CLAIMS].concat();
        for (claim, _) in claims {
            assert!(claim.chars().count() <= 80 - 7, "`{claim}` is too long");
        }
    }
}
