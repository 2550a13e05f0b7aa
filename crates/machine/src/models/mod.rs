//! The models that the project brings along, each registered as one of another crate would be.

pub mod dsa;
pub mod edu;
pub mod ioat;
pub mod queue;

use crate::model::Models;

/// `dsa`, `ioat` and `edu`.
pub fn standard() -> Models {
    Models::new()
        .with::<dsa::Dsa>()
        .with::<ioat::Ioat>()
        .with::<edu::Edu>()
}
