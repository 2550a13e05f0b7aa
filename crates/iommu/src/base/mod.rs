//! Names and values that the whole crate uses. Nothing here knows a device, a group or a domain.

pub(crate) mod source_id;
