//! The ioctls, reads and writes of a VFIO device.
