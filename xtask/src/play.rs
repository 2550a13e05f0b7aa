//! Named claims, one after the other: what `e2e` and `vm` play.

use std::time::Instant;

use anyhow::{Result, bail};

/// A claim about a stage, and what it says when it holds.
pub(crate) type Claim<S> = fn(&S) -> Result<String>;

/// Plays the claims whose names contain `only`. `what` they are called, in the plural.
///
/// # Errors
/// One failed, or there was none.
pub(crate) fn play<S>(
    what: &str,
    claims: &[(&str, Claim<S>)],
    only: Option<&str>,
    stage: &S,
) -> Result<()> {
    let (mut passed, mut failed) = (0, 0);
    for (name, claim) in claims {
        if only.is_some_and(|text| !name.contains(text)) {
            continue;
        }
        let start = Instant::now();
        let result = claim(stage);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(said) => {
                passed += 1;
                println!("  ok   {name} ({seconds:.1} s)\n       {said}");
            }
            Err(error) => {
                failed += 1;
                println!("  FAIL {name} ({seconds:.1} s)\n       {error:#}");
            }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if failed > 0 || passed == 0 {
        bail!("{failed} {what} failed");
    }
    Ok(())
}
