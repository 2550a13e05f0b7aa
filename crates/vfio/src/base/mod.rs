//! What every other folder uses: errors, UUIDs, and the bytes of a saved state.

pub(crate) mod attribute;
pub mod error;
pub mod saved;
pub(crate) mod uuid;
