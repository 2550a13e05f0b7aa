//! The claims, each checked against the running scene: what was done, and what was found.

mod isolation;
mod library;
mod sharing;

use anyhow::Result;

use super::{
    Scene,
    screen::{Outcome, Screen},
};

/// A check: `Ok` is what was done and measured, `Err` what was wrong instead.
type Check = fn(&mut Scene) -> Result<Result<String, String>>;

/// Checks every claim, in an order in which each finds the scene as it needs it.
pub(crate) fn check(scene: &mut Scene, screen: &mut Screen) -> Result<()> {
    screen.heading("One device, several address spaces");
    all(scene, screen, sharing::CLAIMS);
    screen.heading("One VM cannot reach another, nor the parent");
    all(scene, screen, isolation::CLAIMS);
    screen.heading("The layers below");
    all(scene, screen, library::CLAIMS);
    Ok(())
}

fn all(scene: &mut Scene, screen: &mut Screen, claims: &[(&'static str, Check)]) {
    for (claim, check) in claims {
        let result = check(scene).unwrap_or_else(|error| Err(format!("{error:#}")));
        screen.claim(Outcome { claim, result });
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
