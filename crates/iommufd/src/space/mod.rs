//! I/O address spaces: which addresses are mapped, the pages behind them, the domains that hold the
//! mappings, and software that uses the pages without a page table.

pub(crate) mod access;
pub(crate) mod area;
pub(crate) mod area_map;
pub(crate) mod dirty;
pub(crate) mod domains;
pub(crate) mod ioas;
pub(crate) mod iova;
pub(crate) mod ledger;
pub(crate) mod pages;
mod pinned;
