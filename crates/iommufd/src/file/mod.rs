//! One open `/dev/iommu` file: its objects by id, what is attached to what, and how all of it goes.

pub(crate) mod attachments;
pub(crate) mod close;
pub(crate) mod context;
pub(crate) mod object;
pub(crate) mod page_tables;
pub(crate) mod table;
