//! A device that answers what it likes.
#![forbid(unsafe_code)]
