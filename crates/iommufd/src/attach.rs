//! Attaching.
