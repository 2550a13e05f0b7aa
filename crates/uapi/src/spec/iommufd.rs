//! `include/uapi/linux/iommufd.h`.
