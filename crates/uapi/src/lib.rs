//! Floor 6: bytes to typed commands and back.
//!
//! * [`spec`]: the structs of `include/uapi/linux/{iommufd,vfio}.h` as types, nothing else.
//! * [`mod@iommufd`]: the ioctls of `/dev/iommu`: one dispatch table, one function per command.
//! * [`mod@vfio`]: the ioctls, reads and writes of a VFIO device.
//! * [`error`]: why a call was refused, with the values of the rule; [`errno`]: the only place in the
//!   project where an errno has a number.
//! * [`decode`]: a call and its struct as names and values, for people and for traces.
//! * [`table`]: what a dispatch table is made of; [`ioctls`]: all ioctls in one list, and how much of
//!   each there is.
//! * [`Program`], [`memory`]: what an ioctl needs of the program that issued it.
//!
//! Sizes, flags, errnos and the order of checks are Linux 7.2's. Nothing that a program sends makes
//! this crate panic: every number of a program is checked before it is used, and each byte of a
//! program's memory is read once.
#![forbid(unsafe_code)]

mod bitmap;
pub mod decode;
pub mod errno;
pub mod error;
mod fields;
pub mod ioctls;
pub mod iommufd;
pub mod memory;
pub mod program;
pub mod spec;
pub mod table;
pub mod vfio;

pub use errno::Errno;
pub use error::CallError;
pub use program::Program;
