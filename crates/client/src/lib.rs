//! An ordinary VFIO client for two DSA devices, written on published crates only
