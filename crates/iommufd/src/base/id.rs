//! Ids of objects, and counted uses of objects.

use std::{fmt, sync::Arc};

/// The id of one object of a [`Context`](crate::Context), 1..=2^31-1. Programs send any number, so
/// having one says nothing about an object existing.
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

/// One use of an object, by another object, an attachment or a handle. The object cannot be
/// destroyed while it lives; dropping it ends the use, and takes no lock.
#[derive(Clone)]
pub(crate) struct Use {
    /// The count is that of this.
    _count: Arc<()>,
}

impl fmt::Debug for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Use")
    }
}

/// The uses of one object, as the object table counts them. The count is that of the [`Use`]s that
/// live, so it cannot run away from them.
#[derive(Debug, Default)]
pub(crate) struct Users(Arc<()>);

impl Users {
    /// One more use.
    pub(crate) fn add(&self) -> Use {
        Use {
            _count: Arc::clone(&self.0),
        }
    }

    /// Whether a use lives.
    pub(crate) fn any(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_in_use_until_the_last_use_is_dropped() {
        let mut users = Users::default();
        assert!(!users.any());
        let first = users.add();
        let second = first.clone();
        drop(first);
        assert!(users.any());
        drop(second);
        assert!(!users.any());
    }

    #[test]
    fn a_use_that_outlives_its_object_changes_no_other_count() {
        let old = Users::default();
        let late = old.add();
        drop(old);
        let mut users = Users::default();
        let kept = users.add();
        drop(late);
        assert!(users.any());
        drop(kept);
        assert!(!users.any());
    }
}
