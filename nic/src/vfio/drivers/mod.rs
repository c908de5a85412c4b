//! The drivers, a folder each.
