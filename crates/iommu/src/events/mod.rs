//! What is reported to others: faults and page requests to the owner of a domain, writes to a log of
//! dirty pages, invalidations to a device that caches translations.

pub(crate) mod ats;
pub(crate) mod fault;
pub(crate) mod nested_fault;
pub(crate) mod page_request;
pub(crate) mod writes;
