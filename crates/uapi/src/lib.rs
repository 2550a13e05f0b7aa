//! Floor 6: bytes to typed commands: iommufd.h and vfio.h, dispatch tables, errno in one place
