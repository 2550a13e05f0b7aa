//! The ioctls of `/dev/iommu`.

use std::sync::Arc;

use ioasid_iommufd::Context;

use crate::{Errno, Program};

/// Runs the ioctl `cmd` with the argument `arg` on `context`, for `program`.
///
/// # Errors
/// What the kernel would answer.
pub fn ioctl(context: &Arc<Context>, cmd: u32, arg: u64, program: &dyn Program) -> Result<u64, Errno> {
    let _ = (context, cmd, arg, program);
    todo!()
}
