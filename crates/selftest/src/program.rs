//! What the self-test asks about the memory of a program: which page is where, and how often it is
//! pinned.
//!
//! A page is known by its system physical address: memory that is shared has one wherever it is
//! mapped, private memory one for each address. That is the identity which the kernel's test finds
//! in page frames.

use ioasid_core::{Prot, memory::PAGE_SIZE};
use ioasid_uapi::{Errno, Program};

/// The system physical address of the page at `address` of the program, which is a multiple of
/// [`PAGE_SIZE`].
pub(crate) fn page_at(program: &dyn Program, address: u64) -> Result<u64, Errno> {
    let pages = program.pages(address, PAGE_SIZE)?;
    let extents = pages.pin(0, PAGE_SIZE, Prot::READ)?;
    let first = extents.first().ok_or(Errno::EFAULT)?;
    Ok(first.spa)
}
