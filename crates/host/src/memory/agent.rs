//! Something that shares a program's address space and copies in it.

use std::fmt;

use ioasid_core::memory::InnerCopy;

/// Copies between two places of one program's private memory, made where it is.
pub trait CopyAgent: fmt::Debug + Send + Sync {
    /// Makes these copies, one after the other, up to the first that does not come to its end; what ended
    /// that is for another way to find out. False if it cannot: then all are to be made another way,
    /// whatever part of them has been.
    ///
    /// When it returns, nothing of the copies is under way. May block as long as the program likes.
    fn copy(&self, copies: &mut [InnerCopy]) -> bool;
}

/// Whether an agent makes these copies with less than two system calls for each would cost: waking it and
/// being woken takes some 12 us, two calls on a short piece 1 us, and 6 KiB more another.
pub(crate) fn is_worth_it(copies: &[InnerCopy]) -> bool {
    const WAKING: u64 = 12;
    const PER_US: u64 = 6 << 10;
    let bytes: u64 = copies.iter().map(|copy| copy.len).sum();
    copies.len() as u64 + bytes / PER_US >= WAKING
}
