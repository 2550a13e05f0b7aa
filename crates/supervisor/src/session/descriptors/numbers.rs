//! The numbers that descriptors of the machine get.

use ioasid_core::host::FdError;
use ioasid_host::Process;

use crate::calls::filter::RESERVED_FDS;

/// The reserved numbers: from `base` on, as many as the filter knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) base: u32,
}

impl Numbers {
    /// One past the last.
    fn end(self) -> u32 {
        self.base.saturating_add(RESERVED_FDS)
    }

    pub(crate) fn contains(self, number: u32) -> bool {
        (self.base..self.end()).contains(&number)
    }

    /// Numbers that are free in the program's table, reserved ones first. After them come those
    /// that the kernel gives out last: reads and writes of a file there do not work, ioctls do.
    pub(crate) fn free(self, process: &Process) -> impl Iterator<Item = u32> {
        let limit = process.descriptor_limit();
        (self.base..self.end())
            .chain((0..self.base).rev())
            .filter(move |number| *number < limit && is_free(process, *number))
    }

    /// The first free reserved number from `least` on.
    pub(crate) fn first_free(self, process: &Process, least: u32) -> Option<u32> {
        (self.base.max(least)..self.end()).find(|number| is_free(process, *number))
    }
}

fn is_free(process: &Process, number: u32) -> bool {
    let number = i32::try_from(number);
    number.is_ok_and(|n| matches!(process.fd_identity(n), Err(FdError::NotOpen)))
}
