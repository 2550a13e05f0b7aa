//! Floor 7: the mock that the kernel's own self-test of `/dev/iommu` works on.
//!
//! `tools/testing/selftests/iommu/iommufd` of Linux drives a device driver made for it, by one more
//! ioctl (`IOMMU_TEST_CMD`) that only test kernels have. This is that driver, as a back end of its
//! own beside the machine's real devices: [`SelfTest`] adds the ioctl to the others, and everything
//! behind it is built on the public interfaces of the floors below, as a foreign back end would be.
//! Without it the number is ENOTTY.
//!
//! * [`spec`]: numbers and layouts. `operations`: the 23 operations, one function each.
//! * `device`, `hardware`: mock devices, the IOMMU in front of them with its nested page tables,
//!   virtual IOMMUs and hardware queues. [`table`]: their page tables.
//! * `access`, `dmabuf`: the descriptors that operations hand out.
//! * `program`: which page of the program is where.
//!
//! What never lives here: a rule that programs of real devices meet as well. What the mock needs
//! and they do not stays on this side.
#![forbid(unsafe_code)]

mod access;
mod device;
mod dmabuf;
mod hardware;
mod operations;
mod program;
pub mod spec;
pub mod table;

use ioasid_uapi::{
    CallError,
    iommufd::{Call, Command, Extension},
};

/// `IOMMU_TEST_CMD`.
static COMMAND: Command =
    Command::extension::<spec::TestCmd>(spec::TEST_CMD, "TEST_CMD", spec::TEST_CMD_MIN);

/// The ioctl of the self-test, with the mock behind it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelfTest;

impl Extension for SelfTest {
    fn command(&self) -> &'static Command {
        &COMMAND
    }

    fn run(&self, call: &Call<'_>) -> Result<u64, CallError> {
        operations::run(call).map_err(CallError::Extension)
    }
}
