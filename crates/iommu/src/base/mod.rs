//! Names, numbers and counters. Nothing here knows a device, a group or a domain.

pub(crate) mod counters;
pub(crate) mod locks;
pub(crate) mod pasid;
pub(crate) mod source_id;
