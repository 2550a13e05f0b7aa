//! The models that the project brings along, each registered as one of another crate would be.

pub mod accel;
pub mod dsa;
pub mod edu;
pub mod ioat;
pub mod queue;

use crate::model::Models;

/// `dsa`, `ioat`, and `edu` whole and emulated.
pub fn standard() -> Models {
    Models::new()
        .with::<dsa::Dsa>()
        .with::<ioat::Ioat>()
        .with::<edu::Edu>()
        .with::<edu::Emulated>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{Model, names};

    /// Keys that are other names of one, or sections of their own.
    const UNLISTED: &[&str] = &["queue", "channel"];

    fn check<M: Model>(other_names: &[&str]) {
        let taken = names::fields::<M::Section>().unwrap_or_default();
        let taken = taken.iter().filter(|name| !UNLISTED.contains(name));
        let taken: BTreeSet<_> = taken.filter(|name| !other_names.contains(name)).collect();
        let listed: BTreeSet<_> = M::KEYS.iter().map(|key| &key.name).collect();
        assert_eq!(taken, listed, "{}", M::NAME);
    }

    #[test]
    fn every_key_of_a_model_is_described() {
        check::<dsa::Dsa>(&["channels"]);
        check::<ioat::Ioat>(&["queues"]);
        check::<edu::Edu>(&[]);
        check::<edu::Emulated>(&[]);
    }
}
