//! What every other folder uses: numbers of the ABI, errors, UUIDs, and the bytes of a saved state.

pub(crate) mod abi;
pub(crate) mod attribute;
pub mod error;
pub mod saved;
pub(crate) mod uuid;
