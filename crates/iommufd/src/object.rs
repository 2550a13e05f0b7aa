//! The object table: one space of ids for all types.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::error::Error;

/// The id of one object of a [`Context`](crate::Context), 1..=2^31-1. Programs send any number, so
/// holding one says nothing about an object existing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(u32);

impl ObjectId {
    /// The id that a program sent.
    pub const fn from_raw(value: u32) -> Self {
        ObjectId(value)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.0)
    }
}
