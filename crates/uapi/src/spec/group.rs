//! `include/uapi/linux/vfio.h`: the structs and numbers of a VFIO group.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `VFIO_GROUP_GET_STATUS`.
pub const GET_STATUS: u32 = 0x3b67;
/// `VFIO_GROUP_SET_CONTAINER`: the argument points at a file descriptor.
pub const SET_CONTAINER: u32 = 0x3b68;
/// `VFIO_GROUP_UNSET_CONTAINER`.
pub const UNSET_CONTAINER: u32 = 0x3b69;
/// `VFIO_GROUP_GET_DEVICE_FD`: the argument points at a name.
pub const GET_DEVICE_FD: u32 = 0x3b6a;

/// `struct vfio_group_status`: VFIO_GROUP_GET_STATUS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct GroupStatus {
    /// Bytes of this struct.
    pub argsz: u32,
    /// [`GroupStatus::VIABLE`], [`GroupStatus::CONTAINER_SET`].
    pub flags: u32,
}

impl GroupStatus {
    /// It can be used (`VFIO_GROUP_FLAGS_VIABLE`).
    pub const VIABLE: u32 = 1 << 0;
    /// It has a container (`VFIO_GROUP_FLAGS_CONTAINER_SET`).
    pub const CONTAINER_SET: u32 = 1 << 1;
}
