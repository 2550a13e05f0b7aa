//! Waiting for what another thread or process brings about.

use std::time::{Duration, Instant};

/// Nothing in a test takes so long unless it never ends: a busy machine must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until `done`, for `what` in words.
///
/// # Panics
/// After [`PATIENCE`].
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut looks = 0;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        looks += 1;
        // Most waits are short; a long one leaves the processor to what is waited for.
        if looks < 1000 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
