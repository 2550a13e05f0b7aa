//! The whole device, and its queues as devices of their own.

pub(crate) mod child;
mod children;
pub(crate) mod claim;
pub(crate) mod device;
mod inspect;
pub(crate) mod mdev;
mod migration;
pub(crate) mod shared;
