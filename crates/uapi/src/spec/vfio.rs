//! `include/uapi/linux/vfio.h`.
