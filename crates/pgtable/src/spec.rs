//! Every bit of every entry.
